"""Matrices as pictures: the weights of each lag, a head's scores split over pairs of lags."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

# Pixels.
TOP, BOTTOM, LEFT, RIGHT = 92, 96, 70, 24
GAP, TITLE = 14, 22
SIDE, SMALL_SIDE, ROW, NARROWEST = 300, 190, 34, 460
FINEST = 128
"""Cells along one side: of more, each shows the largest of a block."""


Panels = Sequence[Sequence[tuple[str, np.ndarray]]]
"""Rows of pictures, each with its title."""


@dataclass(frozen=True)
class _Frame:
    """How pictures of one kind are drawn: their size in pixels, and what their axes mean."""

    width: int
    height: int
    across: str
    down: str
    columns: Sequence[str]
    rows: Sequence[str]


def weights(result: Result) -> go.Figure:
    """The matrix of each lag, side by side on one scale; a depthwise convolution's as one row each.

    Of a wide matrix each cell shows the entry of a block that is largest in size, with its sign.

    Raises:
        ValueError: not the axes "lag", "input" and "output", or "lag" and "channel".
    """
    lags = [f"lag {lag}" for lag in result.labels["lag"]] if "lag" in result.axes else []
    if result.axes == ("lag", "channel"):
        channels = [str(channel) for channel in result.labels["channel"]]
        frame = _Frame(2 * SIDE, ROW * len(lags), "channel", "", channels, lags)
        return _figure(result, [[("", result.values)]], frame)
    if result.axes != ("lag", "input", "output"):
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a picture of weights takes lag, input and "
            "output: keep them with sel(lag=[...])"
        )
    outputs, inputs = ([str(x) for x in result.labels[axis]] for axis in ("output", "input"))
    frame = _Frame(SIDE, SIDE, "output", "input", outputs, inputs)
    return _figure(result, [list(zip(lags, result.values, strict=True))], frame)


def scores(result: Result) -> go.Figure:
    """A head's scores, split: a panel per query lag (down) and key lag (across).

    The constants of each side are added together.

    Raises:
        ValueError: not the axes "query_lag", "key_lag", "query" and "key".
    """
    if result.axes != ("query_lag", "key_lag", "query", "key"):
        raise ValueError(
            f"{result.name} has the axes {result.axes}; split scores have query_lag, key_lag, "
            "query and key"
        )
    rows, values = _gathered(result.labels["query_lag"], result.values)
    columns, values = _gathered(result.labels["key_lag"], values.swapaxes(0, 1))
    values = values.swapaxes(0, 1)
    panels = [
        [(f"query {row}, key {column}", values[i, j]) for j, column in enumerate(columns)]
        for i, row in enumerate(rows)
    ]
    shown = result.provenance.get("words", result.labels["query"])
    words = [html.escape(f"{place} {word!r}") for place, word in enumerate(shown)]
    return _figure(result, panels, _Frame(SMALL_SIDE, SMALL_SIDE, "key", "query", words, words))


def _gathered(labels: Sequence[Any], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The lags as they are, and everything else along the first axis added up as "constants"."""
    lags = [str(label) for label in labels if str(label).startswith("lag ")]
    if len(lags) == len(labels):
        return lags, values
    constants = values[len(lags) :].sum(0, keepdims=True)
    return [*lags, "constants"], np.concatenate([values[: len(lags)], constants])


def _figure(result: Result, panels: Panels, frame: _Frame) -> go.Figure:
    """Rows of pictures on one scale, under the name of the head if they are of one."""
    if "head" in result.provenance:
        result = replace(result, name=f"{result.name} of {result.provenance['head']}")
    n_rows, n_columns = len(panels), max(len(row) for row in panels)
    plot_width = n_columns * (frame.width + GAP) - GAP
    plot_height = n_rows * (frame.height + TITLE) - TITLE
    pooled = [[(title, _pooled(values)) for title, values in row] for row in panels]
    everything = np.concatenate([values.ravel() for row in pooled for _, values in row])
    width = max(NARROWEST, LEFT + plot_width + RIGHT)
    figure = go.Figure(
        layout=style.layout(
            result,
            width=width,
            height=TOP + plot_height + BOTTOM,
            margin={"l": LEFT, "r": width - LEFT - plot_width, "t": TOP, "b": BOTTOM},
            coloraxis=Scale.of(everything).axis(),
        )
    )
    for i, row in enumerate(pooled):
        for j, (title, values) in enumerate(row):
            left, top = j * (frame.width + GAP), i * (frame.height + TITLE)
            x = [left / plot_width, min(1.0, (left + frame.width) / plot_width)]
            y = [max(0.0, 1 - (top + frame.height) / plot_height), 1 - top / plot_height]
            edges = (i == n_rows - 1, j == 0)
            _draw(figure, i * n_columns + j, title, values, frame, (x, y), edges)
    return figure


def _pooled(values: np.ndarray) -> np.ndarray:
    """At most FINEST cells along each side: of every block the entry largest in size."""
    for axis in (0, 1):
        blocks = np.split(values, _starts(values.shape[axis])[1:], axis=axis)
        sizes = (np.nan_to_num(np.abs(block)).argmax(axis, keepdims=True) for block in blocks)
        values = np.concatenate(
            [np.take_along_axis(*pair, axis=axis) for pair in zip(blocks, sizes, strict=True)], axis
        )
    return values


def _starts(n: int) -> list[int]:
    """Where the blocks of a side begin: of one size, but for the last."""
    return list(range(0, n, -(-n // FINEST)))


def _names(names: Sequence[str]) -> list[str]:
    """One per cell: the name itself, or the first and last of the block."""
    starts = _starts(len(names))
    ends = [*starts[1:], len(names)]
    pairs = zip(starts, ends, strict=True)
    return [names[a] if b - a == 1 else f"{names[a]} to {names[b - 1]}" for a, b in pairs]


def _draw(
    figure: go.Figure,
    number: int,
    title: str,
    values: np.ndarray,
    frame: _Frame,
    place: tuple[list[float], list[float]],
    edges: tuple[bool, bool],
) -> None:
    """One picture; only those at the bottom and at the left name their axes."""
    suffix, (x, y), (lowest, leftmost) = str(number + 1) if number else "", place, edges
    rows, columns = _names(frame.rows), _names(frame.columns)
    caption = f"<b>{html.escape(title)}</b> {frame.down}"

    def told(i: int, j: int) -> str:
        return f"{caption} {rows[i]}, {frame.across} {columns[j]}<br>{rounded(values[i, j])}"

    hover = [[told(i, j) for j in range(len(columns))] for i in range(len(rows))]
    figure.add_heatmap(
        z=values.round(6), coloraxis="coloraxis", text=hover, hoverongaps=False,
        hovertemplate="%{text}<extra></extra>", xaxis=f"x{suffix}", yaxis=f"y{suffix}",
    )  # fmt: skip
    few = len(frame.rows) <= 8
    ticks = {"tickvals": [*range(len(rows))], "ticktext": frame.rows} if few else {"nticks": 6}
    quiet = {"showgrid": False, "fixedrange": True}
    figure.update_layout(
        {
            f"xaxis{suffix}": style.axis(
                frame.across if lowest else "", domain=x, anchor=f"y{suffix}",
                showticklabels=False, **quiet,
            ),
            f"yaxis{suffix}": style.axis(
                frame.down if leftmost else "", domain=y, anchor=f"x{suffix}", autorange="reversed",
                showticklabels=few and leftmost, **ticks, **quiet,
            ),
        }
    )  # fmt: skip
    figure.add_annotation(
        text=html.escape(title), showarrow=False, x=x[0], xref="paper", xanchor="left",
        y=y[1], yref="paper", yanchor="bottom",
    )  # fmt: skip


def outputs(result: Result) -> go.Figure:
    """How much of what a head writes at each query comes from each value lag: the length of it.

    Raises:
        ValueError: not the axes "value_lag", "query" and "d_model".
    """
    if result.axes != ("value_lag", "query", "d_model"):
        raise ValueError(
            f"{result.name} has the axes {result.axes}; split outputs have value_lag, query and "
            "d_model"
        )
    rows, values = _gathered(result.labels["value_lag"], result.values)
    shown = result.provenance.get("words", result.labels["query"])
    words = [html.escape(f"{place} {word!r}") for place, word in enumerate(shown)]
    frame = _Frame(2 * SIDE, ROW * len(rows), "query", "", words, rows)
    return _figure(result, [[("length", np.linalg.norm(values, axis=-1))]], frame)
