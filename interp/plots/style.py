"""How every figure looks: one type face, one ink, few lines, colours for every kind of sight."""

import html
from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go

from interp.results.result import Result

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#1f2430"
# Half-transparent greys and no background: a figure sits on a light page as well as on a dark one.
FAINT = "rgba(128,128,128,0.22)"
QUIET = "#7a7a7a"
# Okabe and Ito (2008), less the yellow and the black.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# cmocean's "dense" on white: even steps of lightness, from nothing to dark.
SEQUENTIAL = (
    "#f4f8f9", "#bfdde5", "#9cc9e2", "#81b4e3", "#739ae4", "#757fdd",
    "#7864ca", "#774aaf", "#71328d", "#641f68", "#501442", "#360e24",
)  # fmt: skip
# Blue below zero, red above (Crameri's "vik", thinned out): equal steps on both sides.
DIVERGING = (
    "#00215f", "#10508c", "#4f8cb5", "#a3c7d9", "#f3f1ee",
    "#e3b99f", "#cd8157", "#a64a14", "#590008",
)  # fmt: skip


def layout(result: Result, **more: Any) -> go.Layout:
    """A layout under the result's name and unit and, in small print, what the numbers come from."""
    unit = f", {words(result.unit)}" if result.unit and isinstance(result.unit, str) else ""
    base = go.Layout(
        template="none",
        title={
            "text": f"<b>{words(result.name)}</b>{unit}<br>{small(origin(result))}",
            "font": {"size": 16},
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 16, "t": 16},
        },
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"bgcolor": INK, "bordercolor": INK, "font": {"family": FONT, "color": "white"}},
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": FAINT,
            "activecolor": QUIET,
            # plotly.js 4 offers to upload the data; a figure here never leaves the machine.
            "remove": ["sendChartToCloud", "select2d", "lasso2d", "autoScale2d"],
        },
        colorway=SERIES,
    )
    return base.update(more)


def small(text: str) -> str:
    """Small print inside a figure's text."""
    return f'<span style="font-size:12px;color:{QUIET}">{text}</span>'


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis: faint grid, no zero line, its title in words."""
    quiet = {
        "title": {"text": title, "font": {"size": 13}, "standoff": 10},
        "gridcolor": FAINT,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 12},
        "ticklabelstandoff": 4,
        "automargin": True,
    }
    return quiet | more


def words(name: str) -> str:
    """A name in plain words, safe in a figure's text: "copy_loss" becomes "copy loss"."""
    return html.escape(name.replace("_", " "), quote=False)


def origin(result: Result) -> str:
    """The provenance that belongs beside a figure: model, variant, sequences, seed."""
    known = result.provenance
    parts = [str(known[key]) for key in ("model", "variant") if key in known]
    parts += [f"{known['n_sequences']} sequences"] if "n_sequences" in known else []
    parts += [f"{known['n_groups']} groups"] if "n_groups" in known else []
    parts += ["taken as independent"] if known.get("sequences") == "taken as independent" else []
    parts += [f"seed {known['seed']}"] if "seed" in known else []
    return html.escape(", ".join(parts), quote=False)


def series(result: Result, along: str) -> Iterator[tuple[str, Result]]:
    """The parts of a result that have the axis `along` alone, each with its name ("" if it is all).

    Raises:
        ValueError: the result has more than one further axis, or not the axis itself.
    """
    others = [name for name in result.axes if name != along]
    if along not in result.axes or len(others) > 1:
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a plot along {along!r} takes that axis and "
            "at most one other; choose the rest with sel()"
        )
    if not others:
        yield "", result
        return
    for label in result.labels[others[0]]:
        yield str(label), result.sel(**{others[0]: label})


def faded(colour: str, opacity: float) -> str:
    """A colour such as "#0072B2", let through.

    >>> faded("#0072B2", 0.5)
    'rgba(0,114,178,0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
