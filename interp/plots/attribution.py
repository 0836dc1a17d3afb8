"""What the parts of a model add to a logit: bars, or a heatmap by position."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

MOST_ROWS = 40
"""Of more parts the largest are shown, and the others as one."""

# Pixels.
TOP, BOTTOM, RIGHT, READING = 72, 56, 24, 108
BAR, ROW, LETTER = 24, 20, 6.6
COLORBAR = 46


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
    values, error = (np.transpose(x, order) for x in (result.values, _errors(result)))
    names, values, error = _largest(result.labels[axis], values, error)
    positions = result.labels["position"]
    scale, height = Scale.of(values), ROW * len(names)
    return go.Figure(
        go.Heatmap(
            z=values,
            x=positions,
            text=[
                [rounded(*reading) for reading in zip(*row, strict=True)]
                for row in zip(values, error, strict=True)
            ],
            customdata=[[name] * len(positions) for name in names],
            hovertemplate="<b>%{customdata}</b> at %{x}<br>%{text}<extra></extra>",
            ygap=1,
            coloraxis="coloraxis",
        ),
        layout=style.layout(
            result,
            height=TOP + height + BOTTOM + COLORBAR,
            margin={"l": _room_for(names), "r": RIGHT, "t": TOP, "b": BOTTOM + COLORBAR},
            coloraxis=scale.axis(),
            xaxis=style.axis("position", showgrid=False),
            yaxis=_rows(names),
        ),
    )


def _bars(result: Result, axis: str) -> go.Figure:
    """A bar per part with its standard error, the sum of all at the foot."""
    names, values, errors = _largest(result.labels[axis], result.values, _errors(result))
    names, values = [*names, "sum"], np.append(values, result.values.sum())
    errors, places = np.append(errors, np.nan), np.arange(len(names))
    colours = [style.SERIES[0] if value >= 0 else style.SERIES[1] for value in values[:-1]]
    figure = go.Figure(
        layout=style.layout(
            result,
            height=TOP + BAR * len(names) + BOTTOM,
            margin={"l": _room_for(names), "r": READING, "t": TOP, "b": BOTTOM},
            xaxis=style.axis(
                style.words(str(result.unit)), fixedrange=True, rangemode="tozero",
                zeroline=True, zerolinecolor=style.QUIET, zerolinewidth=1,
            ),
            yaxis=_rows(names),
            showlegend=False,
        )
    )  # fmt: skip
    figure.add_bar(
        x=values,
        y=places,
        orientation="h",
        width=0.8,
        marker={"color": [*colours, style.QUIET], "opacity": 0.8, "cornerradius": 3},
        error_x={"array": errors, "thickness": 1.5, "width": 4, "color": style.QUIET},
        hoverinfo="skip",
    )
    # A bar's own text would lie under its error bar; left of zero it would meet the names.
    figure.add_scatter(
        x=np.maximum(values + np.nan_to_num(errors), 0.0),
        y=places,
        mode="text",
        text=[f"  {rounded(*reading)}" for reading in zip(values, errors, strict=True)],
        textposition="middle right",
        cliponaxis=False,
        hoverinfo="skip",
    )
    return figure


def _errors(result: Result) -> np.ndarray:
    error = result.standard_error
    return np.full_like(result.values, np.nan) if error is None else error


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


def _rows(names: Sequence[str]) -> dict[str, Any]:
    return style.axis(
        range=(len(names) - 0.5, -0.5),
        showgrid=False,
        fixedrange=True,
        tickvals=np.arange(len(names)),
        ticktext=[html.escape(name, quote=False) for name in names],
        ticklabelstandoff=8,
        automargin=False,
    )


def _room_for(names: Sequence[str]) -> float:
    return 24 + LETTER * max(map(len, names))
