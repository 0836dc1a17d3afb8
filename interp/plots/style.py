"""How every figure looks: one type face, one ink, few lines, colours for every kind of sight."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from unicodedata import east_asian_width

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float64

from interp.results.result import Result, rounded

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK = "#1f2430"
LETTER = 0.57
"""The width of a letter in running text, as a share of its height."""
# Half-transparent greys and no background: a figure sits on a light page as well as on a dark one.
FAINT = "rgba(128,128,128,0.22)"
QUIET = "#7a7a7a"
# Okabe and Ito (2008), less the yellow and the black.
SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")


def layout(**more: Any) -> go.Layout:
    """What all figures have in common; `interp.plots.panels` adds the title and the places."""
    base = go.Layout(
        template="none",
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={
            "bgcolor": INK,
            "bordercolor": INK,
            "font": {"family": FONT, "color": "white"},
            "namelength": -1,  # plotly cuts names after 15 letters
        },
        modebar={
            "bgcolor": "rgba(0,0,0,0)",
            "color": FAINT,
            "activecolor": QUIET,
            # plotly.js 4 offers to upload the data; a figure here never leaves the machine.
            # Two buttons stay: on a phone more would lie on the title. Dragging zooms in.
            "remove": [
                "sendChartToCloud",
                "select2d",
                "lasso2d",
                "autoScale2d",
                "zoom2d",
                "pan2d",
                "zoomIn2d",
                "zoomOut2d",
            ],
        },
        colorway=SERIES,
    )
    return base.update(more)


def text(label: object) -> str:
    """Any label as plotly shows it letter by letter: no markup, no link, no formula.

    Plotly reads a few tags of HTML in every text that it draws, and formulas between dollars where
    MathJax is there. Whatever comes from a result passes through here.

    >>> text("<b>"), text("$x$")
    ('&lt;b&gt;', '&#36;x&#36;')
    """
    return html.escape(str(label), quote=False).replace("$", "&#36;")


def words(name: object) -> str:
    """A name in plain words, safe in a figure's text: "copy_loss" becomes "copy loss"."""
    return text(plain(name))


def plain(name: object) -> str:
    """A name in plain words, not yet safe in a figure."""
    return str(name).replace("_", " ")


def token(label: object, longest: int | None = None) -> str:
    """A token as text in a figure: its blanks visible, and no markup; cut short for an axis.

    >>> token(" the"), token("interpretability", 8)
    ('␣the', 'interpr…')
    """
    return text(shortened(marked(label), longest))


def marked(label: object) -> str:
    """A token with all its blanks visible, the one it begins with too, as plain text."""
    shown = visible(label)
    return "␣" + shown[1:] if shown.startswith(" ") else shown


def visible(label: object) -> str:
    """A token that is not empty to look at, as plain text; a number as it is."""
    shown = str(label).replace("\n", "↵").replace("\t", "⇥")
    return shown if shown.strip() else "␣" * len(shown)


def shortened(plain: str, longest: int | None) -> str:
    """Plain text of at most so many letters."""
    return plain if longest is None or len(plain) <= longest else plain[: longest - 1] + "…"


def bold(label: object) -> str:
    """A label in bold."""
    return f"<b>{text(label)}</b>"


def small(label: object) -> str:
    """A label in small print."""
    return f'<span style="font-size:12px;color:{QUIET}">{text(label)}</span>'


def width_of(plain: str, size: float = 12) -> float:
    """About how many pixels a line of text takes; Chinese, Japanese and Korean letters take more.

    >>> width_of("L1H3") < width_of("L1H10")
    True
    """
    return size * sum(map(_share, plain))


def _share(letter: str) -> float:
    """The width of a letter, as a share of its height: enough for wide type faces."""
    if east_asian_width(letter) in "WF":
        return 1.0
    return 0.4 if letter in "fijlrt.,:;'|!()[] -" else 0.67 if letter < "a" else 0.6


def axis(title: str = "", **more: Any) -> dict[str, Any]:
    """A quiet axis: faint grid, no zero line, its title plain text of one line or several."""
    quiet = {
        "title": {"text": text(title).replace("\n", "<br>"), "font": {"size": 13}, "standoff": 10},
        "gridcolor": FAINT,
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "tickfont": {"size": 12},
        "ticklabelstandoff": 4,
        "automargin": True,
    }
    return quiet | more


def hovering(texts: Any) -> dict[str, Any]:
    """Of a trace: markup that hovering over each of its points shows, and nothing beside it."""
    return {"text": texts, "hovertemplate": "%{text}<extra></extra>"}


def require(result: Result, is_drawn: bool, what: str) -> None:
    """Refuse axes that a picture is not drawn of; `what` says which it takes."""
    if not is_drawn:
        raise ValueError(f"{result.name} has the axes {result.axes}; {what}")


def origin(result: Result) -> str:
    """The provenance that belongs beside a figure: model, variant, sequences, seed; plain text."""
    known = result.provenance
    parts = [str(known[key]) for key in ("model", "variant") if key in known]
    parts += [f"{known['n_sequences']} sequences"] if "n_sequences" in known else []
    parts += [f"{known['n_groups']} groups"] if "n_groups" in known else []
    parts += ["taken as independent"] if known.get("sequences") == "taken as independent" else []
    parts += ["errors unknown"] if str(known.get("errors")).startswith("unknown") else []
    parts += [f"seed {known['seed']}"] if "seed" in known else []
    return facts(parts)


def facts(parts: Iterable[str]) -> str:
    """Facts in a row: where a line ends, it ends between two of them."""
    return ", ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts if part)


def unit_of(result: Result, measure: object = None) -> str:
    """The unit of a result, or of one of its measures, plain; "" where there are several."""
    unit = result.unit
    return plain(unit if isinstance(unit, str) else unit.get(str(measure), ""))


def errors(result: Result) -> np.ndarray:
    """The standard error of each value, NaN where it is unknown."""
    error = result.standard_error
    return np.full_like(result.values, np.nan) if error is None else error


def reading(value: float, error: float = math.nan, chance: float = math.nan) -> str:
    """A value with its standard error, and its chance level where there is one."""
    known = rounded(value, error)
    return known if math.isnan(chance) else f"{known}, chance {rounded(chance)}"


def series(result: Result, along: str) -> Iterator[tuple[str, Result]]:
    """The parts of a result that have the axis `along` alone, each with its name ("" if it is all).

    Raises:
        ValueError: the result has more than one further axis, or not the axis itself.
    """
    others = [name for name in result.axes if name != along]
    what = (
        f"a plot along {along!r} takes that axis and at most one other; choose the rest with sel()"
    )
    require(result, along in result.axes and len(others) <= 1, what)
    if not others:
        yield "", result
        return
    for label in result.labels[others[0]]:
        yield str(label), result.sel(**{others[0]: label})


def bezier(*points: Sequence[float] | np.ndarray, n: int = 25) -> Float64[np.ndarray, "n 2"]:
    """A curve from the first point to the last, drawn towards those between."""
    t, degree = np.linspace(0, 1, n)[:, None], len(points) - 1
    weights = (math.comb(degree, k) * (1 - t) ** (degree - k) * t**k for k in range(degree + 1))
    return np.sum([w * np.array(point) for w, point in zip(weights, points, strict=True)], axis=0)


def faded(colour: str, opacity: float) -> str:
    """A colour such as "#0072B2", let through.

    >>> faded("#0072B2", 0.5)
    'rgba(0,114,178,0.5)'
    """
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
