"""Effects of interventions: what each unit does, each pair, and each unit at every position."""

import numpy as np
import plotly.graph_objects as go

from interp.plots import curves, style
from interp.plots.grids import grid, title, told
from interp.results.result import Result

MEASURES = ("estimate", "exact"), ("effect",)
"""What is drawn: the first of these that a result has. Hovering tells the rest."""
REMOVED = "removed"
FEW = 6
"""So many units have a colour each."""

# Pixels.
TOP, RIGHT, BOTTOM, LEGEND_HEIGHT = 76, 24, 56, 26
LETTER, ROW = 7.3, 22
COLOURS = {"estimate": style.SERIES[1], "exact": style.SERIES[0], "effect": style.SERIES[0]}


def drawn(result: Result) -> list[str]:
    """The measures of an intervention that are drawn; none, if it is something else."""
    measures = result.labels.get("measure", ())
    names = next((names for names in MEASURES if set(names) <= set(measures)), ())
    return [name for name in names if np.isfinite(result.sel(measure=name).values).any()]


def by_position(result: Result) -> go.Figure:
    """A curve; for the effects of several units, of each at every position, a grid.

    Raises:
        ValueError: an axis too many, or a position of a curve that is no number.
    """
    units, measures = _units(result), drawn(result)
    if not measures or len(units) != 2:
        return curves.curve(result)
    return grid(result, units[0], units[1], measures)


def by_unit(result: Result) -> go.Figure:
    """Bars of each measure; for more than a few units a row each, with its effect as a point.

    Units removed one after the other are joined by a line, from the first at the top. A grey band
    is the range of the random draws that a unit was compared with. Hovering tells every measure.
    Effects of pairs, and of senders on receivers, are a grid.

    Raises:
        ValueError: an axis too many.
    """
    units, measures = _units(result), drawn(result)
    if measures and len(units) == 2:
        return grid(result, units[0], units[1], measures)
    few = len(units) == 1 and len(result.labels[units[0]]) <= FEW and units[0] != REMOVED
    if not measures or len(units) != 1 or few:
        return curves.measures(result)
    return _rows(result, units[0], measures)


def _units(result: Result) -> list[str]:
    return [axis for axis in result.axes if axis != "measure"]


def _rows(result: Result, unit: str, measures: list[str]) -> go.Figure:
    rows = [style.words(str(label)) for label in result.labels[unit]]
    if unit == REMOVED:
        rows[1:] = [f"and {row}" for row in rows[1:]]
    left = max(60.0, 24 + LETTER * max(map(len, rows)))
    named = len(measures) > 1
    top = TOP + LEGEND_HEIGHT * named
    hover = ["<br>".join([f"<b>{row}</b>", *told(result, (i,))]) for i, row in enumerate(rows)]
    figure = go.Figure(
        layout=style.layout(
            result,
            title={"text": title(result, measures)},
            height=top + ROW * len(rows) + BOTTOM,
            margin={"l": left, "r": RIGHT, "t": top, "b": BOTTOM},
            showlegend=named,
            legend=curves.LEGEND,
            xaxis=style.axis(zeroline=True, zerolinecolor=style.QUIET, fixedrange=True),
            yaxis=style.axis(
                tickvals=[*range(len(rows))], ticktext=rows, range=(len(rows) - 0.5, -0.5),
                fixedrange=True, automargin=False,
            ),
        )
    )  # fmt: skip
    _add_random(figure, result)
    for number, name in enumerate(measures):
        part = result.sel(measure=name)
        aside = (number - (len(measures) - 1) / 2) * 0.3
        figure.add_scatter(
            x=part.values,
            y=np.arange(len(rows)) + aside,
            name=style.words(name),
            mode="lines+markers" if unit == REMOVED else "markers",
            line={"width": 1.5, "color": COLOURS[name]},
            marker={"color": COLOURS[name], "size": 8},
            error_x={"array": part.standard_error, "thickness": 1.5, "width": 0},
            text=hover,
            hovertemplate="%{text}<extra></extra>",
        )
    return figure


def _add_random(figure: go.Figure, result: Result) -> None:
    if not {"random_low", "random_high"} <= set(result.labels["measure"]):
        return
    low, high = (result.sel(measure=f"random_{end}").values for end in ("low", "high"))
    for row in np.flatnonzero(np.isfinite(low)):
        figure.add_shape(
            type="rect", x0=low[row], x1=high[row], y0=row - 0.4, y1=row + 0.4,
            fillcolor=style.FAINT, line={"width": 0}, layer="below",
        )  # fmt: skip
