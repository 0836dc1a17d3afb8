"""Matrices as pictures: the weights of each lag, a head's scores split over pairs of lags."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.panels import Axis
from interp.plots.registry import Order, draws
from interp.plots.tiles import Tiles, drawn
from interp.results.result import Result, rounded

SIDE, SMALL_SIDE, ROW = 270, 190, 34  # pixels
FINEST = 128
"""Cells along one side: of more, each shows the largest of a block."""
NAMED = 8
"""So many rows have their names beside them."""


@draws("lag", order=Order.SHARED)
def weights(result: Result) -> go.Figure:
    """The matrix of each lag, side by side on one scale; a depthwise convolution's as one row each.

    Of a wide matrix each cell shows the entry of a block that is largest in size, with its sign.

    Raises:
        ValueError: not the axes "lag", "input" and "output", or "lag" and "channel".
    """
    lags = [f"lag {lag}" for lag in result.labels["lag"]] if "lag" in result.axes else []
    if result.axes == ("lag", "channel"):
        rows, columns = Axis("", lags), Axis("channel", result.labels["channel"])
        tiles = _picture(result, "", result.values, rows, columns)
        return drawn(result, [tiles], _cells(tiles, 2 * SIDE, ROW * len(lags)))
    what = "a picture of weights takes lag, input and output: keep them with sel(lag=[...])"
    style.require(result, result.axes == ("lag", "input", "output"), what)
    rows, columns = (Axis(axis, result.labels[axis]) for axis in ("input", "output"))
    pairs = zip(lags, result.values, strict=True)
    tiles = [_picture(result, lag, values, rows, columns) for lag, values in pairs]
    return drawn(result, tiles, _cells(tiles[0], SIDE, SIDE))


def scores(result: Result) -> go.Figure:
    """A head's scores, split: a panel per query lag (down) and key lag (across).

    The constants of each side are added together.

    Raises:
        ValueError: not the axes "query_lag", "key_lag", "query" and "key".
    """
    what = "split scores have query_lag, key_lag, query and key"
    style.require(result, result.axes == ("query_lag", "key_lag", "query", "key"), what)
    rows, values = _gathered(result.labels["query_lag"], result.values)
    columns, values = _gathered(result.labels["key_lag"], values.swapaxes(0, 1))
    values, words = values.swapaxes(0, 1), _words(result)
    tiles = [
        [
            _picture(
                result,
                f"query {row}, key {column}",
                values[i, j],
                Axis("query", words),
                Axis("key" if i == len(rows) - 1 else "", words),
            )
            for j, column in enumerate(columns)
        ]
        for i, row in enumerate(rows)
    ]
    return drawn(result, tiles, _cells(tiles[0][0], SMALL_SIDE, SMALL_SIDE), **_of_head(result))


def outputs(result: Result) -> go.Figure:
    """How much of what a head writes at each query comes from each value lag: the length of it.

    Raises:
        ValueError: not the axes "value_lag", "query" and "d_model".
    """
    what = "split outputs have value_lag, query and d_model"
    style.require(result, result.axes == ("value_lag", "query", "d_model"), what)
    rows, values = _gathered(result.labels["value_lag"], result.values)
    lengths = np.linalg.norm(values, axis=-1)
    tiles = _picture(result, "length", lengths, Axis("", rows), Axis("query", _words(result)))
    return drawn(result, [tiles], _cells(tiles, 2 * SIDE, ROW * len(rows)), **_of_head(result))


def _words(result: Result) -> list[str]:
    shown = result.provenance.get("words", result.labels["query"])
    return [f"{place} {word!r}" for place, word in enumerate(shown)]


def _of_head(result: Result) -> dict[str, Any]:
    """The heading of what belongs to one head."""
    head = result.provenance.get("head")
    return {} if head is None else {"name": f"{result.name} of {head}"}


def _gathered(labels: Sequence[Any], values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The lags as they are, and everything else along the first axis added up as "constants"."""
    lags = [str(label) for label in labels if str(label).startswith("lag ")]
    if len(lags) == len(labels):
        return lags, values
    constants = values[len(lags) :].sum(0, keepdims=True)
    return [*lags, "constants"], np.concatenate([values[: len(lags)], constants])


def _picture(result: Result, title: str, values: np.ndarray, rows: Axis, columns: Axis) -> Tiles:
    """One matrix; few rows are named, and hovering names the row and column of every cell."""
    values = _pooled(values)
    down, across = (_blocks([str(name) for name in axis.names or ()]) for axis in (rows, columns))
    lead = f"{style.bold(title)} {style.text(rows.title)}"
    return Tiles(
        values.round(6),
        Axis(rows.title, down, shown=len(down) <= NAMED),
        Axis(columns.title, across, shown=False),
        lambda i, j: (
            f"{lead} {style.text(down[i])}, {style.text(columns.title)} {style.text(across[j])}"
            f"<br>{rounded(values[i, j])}"
        ),
        title,
        unit=style.unit_of(result),
    )


def _cells(tiles: Tiles, width: float, height: float) -> tuple[float, float]:
    n_rows, n_columns = tiles.values.shape
    return width / n_columns, height / n_rows


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


def _blocks(names: Sequence[str]) -> list[str]:
    """One name per cell: the name itself, or the first and last of the block."""
    starts = _starts(len(names))
    ends = [*starts[1:], len(names)]
    pairs = zip(starts, ends, strict=True)
    return [names[a] if b - a == 1 else f"{names[a]} to {names[b - 1]}" for a, b in pairs]
