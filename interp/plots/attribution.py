"""What the parts of a model add to a logit: bars, or a heatmap by position."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import curves, style
from interp.plots.panels import EDGE, Axis, lay_out
from interp.plots.registry import draws
from interp.plots.tiles import Tiles, drawn
from interp.results.result import Result, rounded

MOST_ROWS = 40
"""Of more parts the largest are shown, and the others as one."""

BAR, ROW = 24, 20  # pixels


@draws("part", "path")
def parts(result: Result) -> go.Figure:
    """What each "part" or "path" adds: bars with their sum, or over several positions a heatmap.

    Raises:
        ValueError: a further axis.
    """
    axis = "part" if "part" in result.axes else "path"
    if extra := set(result.axes) - {axis, "position"}:
        raise ValueError(f"{result.name} also has the axes {sorted(extra)}; choose with sel()")
    if "position" not in result.axes:
        return _bars(result, axis)
    if len(positions := result.labels["position"]) == 1:
        return _bars(result.sel(position=positions[0]), axis)
    return by_position(result, axis)


def by_position(result: Result, axis: str) -> go.Figure:
    """A heatmap with a row per label of an axis, and a column per position.

    Values of both signs are coloured symmetrically around 0.
    """
    order = [result.axes.index(axis), result.axes.index("position")]
    values, error = (np.transpose(x, order) for x in (result.values, style.errors(result)))
    names, values, error = _largest(result.labels[axis], values, error)
    positions = result.labels["position"]

    def hover(i: int, j: int) -> str:
        where = f"{style.bold(names[i])} at {style.text(positions[j])}"
        return f"{where}<br>{rounded(values[i, j], error[i, j])}"

    numbers = all(isinstance(position, int | float | np.number) for position in positions)
    across = Axis("position", None if numbers else positions, look={"showgrid": False})
    at = {"x": positions} if numbers else {}
    tiles = Tiles(values, Axis(names=names), across, hover, unit=style.unit_of(result), at=at)
    return drawn(result, [tiles], (None, ROW))


def _bars(result: Result, axis: str) -> go.Figure:
    """A bar per part with its standard error, the sum of all at the foot."""
    names, values, errors = _largest(result.labels[axis], result.values, style.errors(result))
    names, values = [*names, "sum"], np.append(values, result.values.sum())
    errors, places = np.append(errors, np.nan), np.arange(len(names))
    colours = [style.SERIES[0] if value >= 0 else style.SERIES[1] for value in values[:-1]]
    panel = curves.bar_panel(names, BAR, style.unit_of(result), places)
    figure, _ = lay_out(result, [panel], sides=(EDGE, curves.READING_WIDTH))
    figure.add_traces(curves.bars(values, errors, places, 0.8, [*colours, style.QUIET]))
    return figure


def _largest(
    labels: Sequence[Any], values: np.ndarray, errors: np.ndarray
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """All rows in their order; of very many the largest, and one for the sum of the others."""
    names = [str(label) for label in labels]
    if len(names) <= MOST_ROWS:
        return names, values, errors
    size = np.abs(values).reshape(len(names), -1).mean(1)
    chosen = np.sort(np.argsort(-size)[: MOST_ROWS - 1])
    rest = np.setdiff1d(np.arange(len(names)), chosen)
    others = values[rest].sum(0, keepdims=True)
    return (
        [*(names[i] for i in chosen), f"{len(rest)} others"],
        np.concatenate([values[chosen], others]),
        np.concatenate([errors[chosen], np.full_like(others, np.nan)]),
    )
