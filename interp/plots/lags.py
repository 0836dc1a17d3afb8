"""What comes from which lag: grids of lag pairs, tables of smearing."""

import numpy as np
import plotly.graph_objects as go

from interp.plots import pictures, style
from interp.plots.heatmaps import _Scale as Scale
from interp.plots.tiles import Table, Tiles, reading
from interp.results.result import Result, rounded

PAIRS = Tiles(width=62, height=40, across="key", down="query")
SMEARS = Tiles(width=66, height=28, slanted=True)
CONVOLUTIONS = Tiles(width=84, height=32)
CHANNELS = {"k": "keys", "q": "queries", "v": "values"}


def pairs(result: Result) -> go.Figure:
    """A tile per pair of a query lag and a key lag, a panel per head.

    With an axis "measure" its first measure is drawn, and hovering tells them all. With "query" and
    "key" each pair is a picture of its part in every score.

    Raises:
        ValueError: axes that make no such grid.
    """
    axes = set(result.axes)
    if "query" in axes:
        return pictures.scores(result)
    if not {"query_lag", "key_lag"} <= axes or axes - {"head", "query_lag", "key_lag", "measure"}:
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a grid of lag pairs takes query_lag and "
            "key_lag, with head and measure beside them: choose the rest with sel()"
        )
    heads = result.labels.get("head", ("",))
    tables = [
        _pairs_of(result.sel(head=head) if "head" in axes else result, str(head)) for head in heads
    ]
    scale = Scale.of(np.concatenate([table.values.ravel() for table in tables]))
    return PAIRS.figure(result, tables, scale)


def _pairs_of(result: Result, head: str) -> Table:
    rows, columns = (result.labels[axis] for axis in ("query_lag", "key_lag"))
    measures = result.labels.get("measure", ())
    cells = {(i, j): result.sel(query_lag=i, key_lag=j) for i in rows for j in columns}
    drawn = [cell.sel(measure=measures[0]) if measures else cell for cell in cells.values()]

    def told(cell: Result) -> str:
        if not measures:
            return reading(cell)
        lines = (f"{style.words(str(m))} {reading(cell.sel(measure=m))}" for m in measures)
        return "<br>".join(lines)

    shape = (len(rows), len(columns))
    hover = [f"<b>{head}</b> query {i}, key {j}<br>{told(cell)}" for (i, j), cell in cells.items()]
    return Table(
        head,
        [*map(str, rows)],
        [*map(str, columns)],
        np.array([float(cell) for cell in drawn]).reshape(shape),
        np.array(hover).reshape(shape),
    )


def smears(result: Result) -> go.Figure:
    """A table per channel, heads by measures. Each kind of number has a colour scale of its own.

    Shares, cosines and R² are coloured from -1 to 1, z-values up to their largest.

    Raises:
        ValueError: not the axes "channel", "head" and "measure".
    """
    if result.axes != ("channel", "head", "measure"):
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a table of smearing takes channel, head "
            'and measure: keep them with sel(channel=["k"])'
        )
    tables = [_smears_of(result, str(channel)) for channel in result.labels["channel"]]
    return SMEARS.figure(result, tables, Scale(-1.0, 1.0, style.DIVERGING))


def _smears_of(result: Result, channel: str) -> Table:
    panel = result.sel(channel=channel)
    why = result.provenance.get("undefined", {})
    # A measure that this channel does not have is left out; one that is undefined tells why.
    explained = {name.split()[-1] for name in why if name.startswith(f"{channel} ")}
    columns = zip(panel.labels["measure"], panel.values.T, strict=True)
    measures = [m for m, column in columns if np.isfinite(column).any() or m in explained]
    panel = panel.sel(measure=measures)
    largest = np.abs(np.nan_to_num(panel.values)).max(axis=0)

    def told(head: str, measure: str) -> str:
        name = f"<b>{head}</b> {style.words(measure)}"
        text = reading(panel.sel(head=head, measure=measure))
        return "<br>".join(filter(None, [f"{name} {text}", why.get(f"{channel} {head} {measure}")]))

    heads = [str(head) for head in panel.labels["head"]]
    return Table(
        CHANNELS.get(channel, channel),
        heads,
        [style.words(str(m)) for m in measures],
        panel.values,
        np.array([[told(head, str(m)) for m in measures] for head in heads]),
        (panel.values / np.maximum(largest, 1.0)).clip(-1, 1),
    )


def convolutions(result: Result) -> go.Figure:
    """A table per convolution, lags by measures, each measure coloured up to its own largest.

    Raises:
        ValueError: not the axes "conv", "lag" and "measure".
    """
    if result.axes != ("conv", "lag", "measure"):
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a table of convolutions takes conv, lag "
            'and measure: keep them with sel(conv=["L0"])'
        )
    tables = [_convolution_of(result.sel(conv=conv), str(conv)) for conv in result.labels["conv"]]
    return CONVOLUTIONS.figure(result, tables, Scale(-1.0, 1.0, style.DIVERGING))


def _convolution_of(panel: Result, conv: str) -> Table:
    lags, measures = ([str(label) for label in panel.labels[axis]] for axis in ("lag", "measure"))

    def told(lag: str, measure: str) -> str:
        text = reading(panel.sel(lag=lag, measure=measure))
        return f"<b>{conv} {lag}</b> {style.words(measure)} {text}"

    largest = np.abs(np.nan_to_num(panel.values)).max(axis=0)
    return Table(
        conv,
        lags,
        [style.words(measure) for measure in measures],
        panel.values,
        np.array([[told(lag, measure) for measure in measures] for lag in lags]),
        panel.values / np.maximum(largest, 1.0),
    )


def spectra(result: Result) -> go.Figure:
    """The singular values of each lag, falling.

    Raises:
        ValueError: not the axes "lag" and "rank".
    """
    if result.axes != ("lag", "rank"):
        raise ValueError(f"{result.name} has the axes {result.axes}; a spectrum has lag and rank")
    figure = go.Figure(
        layout=style.layout(
            result,
            height=400,
            margin={"l": 66, "r": 24, "t": 92, "b": 58},
            xaxis=style.axis("rank", showgrid=False, showline=True, linecolor=style.FAINT),
            yaxis=style.axis(style.words(str(result.unit)), rangemode="tozero"),
            hovermode="x unified",
            legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
            showlegend=True,
        )
    )
    for number, lag in enumerate(result.labels["lag"]):
        line = result.sel(lag=lag)
        figure.add_scatter(
            x=result.labels["rank"],
            y=line.values,
            name=str(lag),
            mode="lines",
            line={"color": style.SERIES[number % len(style.SERIES)], "width": 2},
            text=[rounded(value) for value in line.values],
            hovertemplate="%{text}",
        )
    return figure
