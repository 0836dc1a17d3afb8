"""What comes from which lag: grids of lag pairs, tables of smearing."""

import numpy as np
import plotly.graph_objects as go

from interp.plots import pictures, style
from interp.plots.curves import Line, Lines, colour, in_panels, numbers
from interp.plots.panels import Axis
from interp.plots.registry import draws
from interp.plots.tiles import Tiles, drawn, written
from interp.results.result import Label, Result

PAIR, SMEAR, CONVOLUTION = (70, 40), (66, 28), (84, 32)
"""Cells, in pixels."""
CHANNELS = {"k": "keys", "q": "queries", "v": "values"}


def _reading(value: Result) -> str:
    """A single value with its standard error, and its chance level where there is one."""
    known = (value.standard_error, value.chance)
    return style.reading(float(value), *(np.nan if x is None else float(x) for x in known))


def _measured(cell: Result) -> str:
    """All measures of a cell, a line each."""
    if "measure" not in cell.axes:
        return _reading(cell)
    measures = cell.labels["measure"]
    return "<br>".join(f"{style.words(m)} {_reading(cell.sel(measure=m))}" for m in measures)


@draws("query_lag")
def pairs(result: Result) -> go.Figure:
    """A tile per pair of a query lag and a key lag, a panel per head.

    With an axis "measure" its first measure is drawn, and hovering shows them all. With "query" and
    "key" each pair is a picture of its part in every score.

    Raises:
        ValueError: axes that make no such grid.
    """
    axes = set(result.axes)
    if "query" in axes:
        return pictures.scores(result)
    style.require(
        result,
        {"query_lag", "key_lag"} <= axes <= {"head", "query_lag", "key_lag", "measure"},
        "a grid of lag pairs takes query_lag and key_lag, with head and measure beside them: "
        "choose the rest with sel()",
    )
    heads = result.labels.get("head", ("",))
    parts = [result.sel(head=head) if "head" in axes else result for head in heads]
    tiles = [_pairs_of(part, str(head)) for head, part in zip(heads, parts, strict=True)]
    return drawn(result, tiles, PAIR)


def _pairs_of(result: Result, head: str) -> Tiles:
    rows, columns = (result.labels[axis] for axis in ("query_lag", "key_lag"))
    first = result.labels["measure"][0] if "measure" in result.axes else None
    cells = [[result.sel(query_lag=i, key_lag=j) for j in columns] for i in rows]
    shown = cells if first is None else [[x.sel(measure=first) for x in row] for row in cells]
    values = np.array([[float(cell) for cell in row] for row in shown])

    def hover(i: int, j: int) -> str:
        pair = f"query {style.text(rows[i])}, key {style.text(columns[j])}"
        return f"{style.bold(head)} {pair}<br>{_measured(cells[i][j])}"

    return Tiles(
        values,
        Axis("query", [*map(str, rows)]),
        Axis("key", [*map(str, columns)]),
        hover,
        head,
        unit=style.unit_of(result, first),
        written=[*map(written, values.flat)],
        is_grey=True,
    )


@draws(("channel", "measure"))
def smears(result: Result) -> go.Figure:
    """A table per channel, heads by measures. Each kind of number has a colour scale of its own.

    Shares, cosines and R² are coloured from -1 to 1, z-values up to their largest.

    Raises:
        ValueError: not the axes "channel", "head" and "measure".
    """
    what = 'a table of smearing takes channel, head and measure: keep them with sel(channel=["k"])'
    style.require(result, result.axes == ("channel", "head", "measure"), what)
    tables = [_smears_of(result, str(channel)) for channel in result.labels["channel"]]
    return drawn(result, tables, SMEAR)


def _smears_of(result: Result, channel: str) -> Tiles:
    panel = result.sel(channel=channel)
    why = result.provenance.get("undefined", {})
    # A measure that this channel does not have is left out; one that is undefined says why.
    explained = {name.split()[-1] for name in why if name.startswith(f"{channel} ")}
    columns = zip(panel.labels["measure"], panel.values.T, strict=True)
    measures = [m for m, column in columns if np.isfinite(column).any() or m in explained]
    reasons = {
        (head, measure): why.get(f"{channel} {head} {measure}", "")
        for head in panel.labels["head"]
        for measure in measures
    }
    return _table(panel.sel(measure=measures), "head", CHANNELS.get(channel, channel), "", reasons)


@draws("conv")
def convolutions(result: Result) -> go.Figure:
    """A table per convolution, lags by measures, each measure coloured up to its own largest.

    Raises:
        ValueError: not the axes "conv", "lag" and "measure".
    """
    what = 'a table of convolutions takes conv, lag and measure: keep them with sel(conv=["L0"])'
    style.require(result, result.axes == ("conv", "lag", "measure"), what)
    tables = [
        _table(result.sel(conv=conv), "lag", str(conv), f"{conv} ", {})
        for conv in result.labels["conv"]
    ]
    return drawn(result, tables, CONVOLUTION)


def _table(
    panel: Result, down: str, title: str, lead: str, reasons: dict[tuple[Label, Label], str]
) -> Tiles:
    """Rows by measures, each measure in shades up to its largest, if that is more than 1."""
    rows, measures = panel.labels[down], panel.labels["measure"]
    largest = np.abs(np.nan_to_num(panel.values)).max(axis=0)

    def hover(i: int, j: int) -> str:
        row, measure = rows[i], measures[j]
        reading = _reading(panel.sel(**{down: row, "measure": measure}))
        line = f"{style.bold(f'{lead}{row}')} {style.words(measure)} {reading}"
        return "<br>".join(filter(None, [line, style.text(reasons.get((row, measure), ""))]))

    return Tiles(
        panel.values,
        Axis("", rows),
        Axis("", [style.plain(measure) for measure in measures]),
        hover,
        title,
        written=[written(value) for value in panel.values.flat],
        shades=panel.values / np.maximum(largest, 1.0),
        is_grey=True,
    )


@draws("rank")
def spectra(result: Result) -> go.Figure:
    """The singular values of each lag, falling.

    Raises:
        ValueError: not the axes "lag" and "rank".
    """
    style.require(result, result.axes == ("lag", "rank"), "a spectrum has lag and rank")
    ranks = np.array(result.labels["rank"], dtype=np.float64)
    lines = [
        Line(str(lag), ranks, result.sel(lag=lag).values, None, colour(number), legend=str(lag))
        for number, lag in enumerate(result.labels["lag"])
    ]
    unit = Axis(style.unit_of(result), look={"rangemode": "tozero"})
    return in_panels(result, [Lines(lines, numbers("rank"), unit)])
