"""Effects of interventions: what each unit does, each pair, and each unit at every position."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from interp.plots import curves, style
from interp.plots.panels import Axis, Panel, lay_out
from interp.plots.registry import Order, draws
from interp.plots.tiles import Tiles, drawn
from interp.results.result import Result, rounded

MEASURES = ("estimate", "exact"), ("effect",)
"""What is drawn: the first of these that a result has. Hovering shows the rest."""
REMOVED = "removed"
FEW = 6
"""So many units have a colour each."""
COLOURS = {"estimate": style.SERIES[1], "exact": style.SERIES[0], "effect": style.SERIES[0]}

# Pixels.
ROW, CELL_HEIGHT, CELL_WIDTH, WIDTH, READABLE = 22, 26, (3.0, 56.0), 760, 44


def measures_of(result: Result) -> list[str]:
    """The measures of an intervention that are drawn; none, if it is something else."""
    measures = result.labels.get("measure", ())
    names = next((names for names in MEASURES if set(names) <= set(measures)), ())
    return [name for name in names if np.isfinite(result.sel(measure=name).values).any()]


@draws("position", order=Order.POSITION)
def by_position(result: Result) -> go.Figure:
    """A curve; for the effects of several units, of each at every position, a grid.

    Raises:
        ValueError: an axis too many, or a position of a curve that is no number.
    """
    units, measures = _units(result), measures_of(result)
    if not measures or len(units) != 2:
        return curves.curve(result)
    return _grid(result, units, measures)


@draws("measure", order=Order.MEASURE)
def by_unit(result: Result) -> go.Figure:
    """Bars of each measure; for more than a few units a row each, with its effect as a point.

    Units removed one after the other are joined by a line, from the first at the top. A grey band
    is the range of the random draws that a unit was compared with. Hovering shows every measure.
    Effects of pairs, and of senders on receivers, are a grid.

    Raises:
        ValueError: an axis too many.
    """
    units, measures = _units(result), measures_of(result)
    if measures and len(units) == 2:
        return _grid(result, units, measures)
    few = len(units) == 1 and len(result.labels[units[0]]) <= FEW and units[0] != REMOVED
    if not measures or len(units) != 1 or few:
        return curves.measures(result)
    return _rows(result, units[0], measures)


def _units(result: Result) -> list[str]:
    return [axis for axis in result.axes if axis != "measure"]


def _unit(result: Result, measures: Sequence[str]) -> str:
    """The unit of what is drawn, where there is one."""
    units = {style.unit_of(result, name) for name in measures}
    return units.pop() if len(units) == 1 else ""


def _readings(result: Result, place: tuple[int, ...]) -> list[str]:
    """Every measure that is known at a place, with its standard error."""
    first = result.axes.index("measure")
    values, errors = (
        np.moveaxis(x, first, -1)[place] for x in (result.values, style.errors(result))
    )
    return [
        f"{style.words(name)} {rounded(value, error)}"
        for name, value, error in zip(result.labels["measure"], values, errors, strict=True)
        if np.isfinite(value)
    ]


def _grid(result: Result, axes: Sequence[str], measures: Sequence[str]) -> go.Figure:
    """A panel for each measure, rows and columns being two axes."""
    across = axes[1]
    rows, columns = (result.labels[axis] for axis in axes)
    joint = " at " if across == "position" else ", "

    def hover(i: int, j: int) -> str:
        cell = f"<b>{style.words(f'{rows[i]}{joint}{columns[j]}')}</b>"
        return "<br>".join([cell, *_readings(result, (i, j))])

    cell = min(max(WIDTH / len(columns), CELL_WIDTH[0]), CELL_WIDTH[1])
    tiles = [
        Tiles(
            values,
            Axis(names=[style.plain(row) for row in rows]),
            Axis(style.plain(across), columns),
            hover,
            style.plain(name),
            unit=style.unit_of(result, name),
            written=np.vectorize("{:z.2f}".format)(values) if cell > READABLE else None,
        )
        for name in measures
        for values in [result.sel(measure=name).values]
    ]
    return drawn(
        result, [[one] for one in tiles], (cell, CELL_HEIGHT), unit=_unit(result, measures)
    )


def _rows(result: Result, unit: str, measures: list[str]) -> go.Figure:
    rows = [style.plain(label) for label in result.labels[unit]]
    if unit == REMOVED:
        rows[1:] = [f"and {row}" for row in rows[1:]]
    hover = ["<br>".join([style.bold(row), *_readings(result, (i,))]) for i, row in enumerate(rows)]
    look = {"zeroline": True, "zerolinecolor": style.QUIET, "fixedrange": True, "nticks": 8}
    limits = {"range": (len(rows) - 0.5, -0.5), "showgrid": True}
    panel = Panel(Axis(look=look), Axis(names=rows, look=limits), ROW * len(rows))
    legend = [style.plain(name) for name in measures if len(measures) > 1]
    figure, _ = lay_out(result, [panel], unit=_unit(result, measures), legend=legend)
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
            **style.hovering(hover),
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
