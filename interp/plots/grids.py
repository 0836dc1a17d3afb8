"""Effects of units at positions, of senders on receivers, of pairs: rows by columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

# Pixels.
TOP, RIGHT, COLORBAR, GAP, TITLE = 76, 40, 62, 28, 24
LETTER, ROW, NAMES = 7.5, 26, 52
COLUMNS, CELL, WRITTEN = 760, (3.0, 56.0), 4
NARROWEST = 440
READABLE = 44
"""A cell that is wider has room for its number."""


def grid(result: Result, down: str, across: str, measures: Sequence[str]) -> go.Figure:
    """A panel for each measure, rows and columns being two axes.

    There is no colour where a value is unknown. Hovering tells every measure with its standard
    error.
    """
    rows, columns = ([str(label) for label in result.labels[axis]] for axis in (down, across))
    cell = min(max(COLUMNS / len(columns), CELL[0]), CELL[1])
    slanted = LETTER * (longest := max(map(len, columns))) > cell and across != "position"
    left, below = max(60.0, 24 + LETTER * max(map(len, rows))), NAMES + slanted * 4.5 * longest
    width, height = cell * len(columns), ROW * len(rows)
    step = TITLE + height + below + GAP
    whole, plot_height = max(NARROWEST, left + width + RIGHT), step * len(measures) - below - GAP
    parts = [result.sel(measure=name).values for name in measures]
    figure = go.Figure(
        layout=style.layout(
            result,
            title={"text": title(result, measures)},
            width=whole,
            height=TOP + plot_height + below + COLORBAR,
            margin={"l": left, "r": whole - left - width, "t": TOP, "b": below + COLORBAR},
            coloraxis=Scale.of(np.stack(parts)).axis(),
        )
    )
    hover = _hover(result, rows, columns)
    for number, (name, values) in enumerate(zip(measures, parts, strict=True)):
        above = number * step + TITLE
        domain = max(0.0, 1 - (above + height) / plot_height), 1 - above / plot_height
        axes = _add_axes(figure, number, domain, rows, columns)
        every = 1 if across != "position" else max(1, int(np.ceil(4 * LETTER / cell)))
        figure.update_layout(
            {
                "xaxis" + axes["xaxis"][1:]: {
                    "title": {"text": style.words(across)},
                    "tickvals": [*range(0, len(columns), every)],
                    "ticktext": columns[::every],
                    "tickangle": -35 if slanted else 0,
                }
            }
        )
        figure.add_heatmap(
            z=values,
            text=hover,
            texttemplate="%{z:.2f}" if cell > READABLE else "",
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            xgap=int(cell > WRITTEN),
            ygap=1,
            coloraxis="coloraxis",
            **axes,
        )
        figure.add_annotation(
            text=f"<b>{style.words(name)}</b>", showarrow=False, x=0, xref="paper", xanchor="left",
            y=domain[1], yref="paper", yanchor="bottom", yshift=3,
        )  # fmt: skip
    return figure


def title(result: Result, measures: Sequence[str]) -> str:
    """The result's name with the unit of what is drawn, and its origin below."""
    unit = result.unit if isinstance(result.unit, str) else result.unit[measures[0]]
    head = f"<b>{style.words(result.name)}</b>" + (f", {style.words(unit)}" if unit else "")
    return f"{head}<br>{style.small(style.origin(result))}"


def told(result: Result, place: tuple[int, ...]) -> list[str]:
    """Every measure that is known at a place, with its standard error."""
    errors = result.standard_error
    errors = np.full_like(result.values, np.nan) if errors is None else errors
    first = result.axes.index("measure")
    values, errors = (np.moveaxis(x, first, -1)[place] for x in (result.values, errors))
    return [
        f"{style.words(str(name))} {rounded(value, error)}"
        for name, value, error in zip(result.labels["measure"], values, errors, strict=True)
        if np.isfinite(value)
    ]


def _hover(result: Result, rows: Sequence[str], columns: Sequence[str]) -> list[list[str]]:
    joint = " at " if result.axes[-1] == "position" else ", "
    return [
        [
            "<br>".join([f"<b>{style.words(down + joint + across)}</b>", *told(result, (i, j))])
            for j, across in enumerate(columns)
        ]
        for i, down in enumerate(rows)
    ]


def _add_axes(
    figure: go.Figure,
    number: int,
    domain: tuple[float, float],
    rows: Sequence[str],
    columns: Sequence[str],
) -> dict[str, str]:
    suffix = str(number + 1) if number else ""
    quiet: dict[str, Any] = {"showgrid": False, "fixedrange": True, "automargin": False}
    figure.update_layout(
        {
            f"xaxis{suffix}": style.axis(
                range=(-0.5, len(columns) - 0.5), anchor=f"y{suffix}", **quiet
            ),
            f"yaxis{suffix}": style.axis(
                tickvals=[*range(len(rows))], ticktext=[style.words(row) for row in rows],
                range=(len(rows) - 0.5, -0.5), domain=domain, anchor=f"x{suffix}", **quiet,
            ),
        }
    )  # fmt: skip
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
