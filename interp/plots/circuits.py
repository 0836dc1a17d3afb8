"""A circuit among chosen tokens or positions as a heatmap, and what positions say by distance."""

import numpy as np
import plotly.graph_objects as go

from interp.plots import heatmaps, pictures, style
from interp.plots.attention import _visible as visible
from interp.plots.heatmaps import WIDTH_FOR_LARGE_TEXT
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

ROWS = ("query_token", "source_token", "query_position")
COLUMNS = ("key_token", "predicted_token", "key_position")
LAGS = ("query_lag", "key_lag", "value_lag")
LABELLED = 80
"""Of more rows or columns none is named: hovering tells."""
TOLD_IN_FULL = 10_000
"""In more cells hovering tells names that are cut short, as on the axes."""

# Pixels.
TOP, BOTTOM, RIGHT = 84, 52, 24
PLOT, CELL, NARROWEST, LOWEST, WIDTH_FOR_TEXT = 640, 40, 440, 104, 30
LETTER, LONGEST_NAME = 7.0, 22
CURVE_HEIGHT, LEGEND_HEIGHT = 380, 28


def entries(result: Result) -> go.Figure:
    """A cell per pair: the query or source token down, the key or predicted token across.

    Values of both signs are coloured symmetrically around 0. Blank space is made visible. A value
    is written where there is room; hovering tells it with both words.

    Raises:
        ValueError: other axes than two that belong together.
    """
    if len(result.axes) != 2 or result.axes[0] not in ROWS or result.axes[1] not in COLUMNS:
        raise ValueError(
            f"{result.name} has the axes {result.axes}; a circuit is drawn of two, such as "
            "query_token and key_token"
        )
    down, across = result.axes
    words = {axis: [named(label) for label in result.labels[axis]] for axis in result.axes}
    names = {axis: [named(label, LONGEST_NAME) for label in result.labels[axis]] for axis in words}
    n_rows, n_columns = result.values.shape
    cell = min(CELL, PLOT / max(n_rows, n_columns))
    left, below = (_room_for(names[axis]) for axis in result.axes)
    width = max(NARROWEST, left + n_columns * cell + RIGHT)
    height = max(LOWEST, n_rows * cell)
    scale = Scale.of(result.values)
    figure = go.Figure(
        layout=style.layout(
            result,
            title={"text": _title(result, str(result.unit))},
            width=width,
            height=TOP + height + below + BOTTOM,
            margin={
                "l": left, "r": width - left - n_columns * cell, "t": TOP, "b": below + BOTTOM,
            },
            coloraxis=scale.axis(),
            xaxis=_axis(across, names[across], tickangle=-90),
            yaxis=_axis(down, names[down], autorange="reversed"),
        )
    )  # fmt: skip
    figure.add_heatmap(
        z=result.values,
        **_hover(result, words),
        xgap=cell > 8,
        ygap=cell > 8,
        coloraxis="coloraxis",
    )
    if cell >= WIDTH_FOR_TEXT:
        _write_values(figure, result.values, scale, 12 if cell >= WIDTH_FOR_LARGE_TEXT else 9)
    return figure


def _hover(result: Result, words: dict[str, list[str]]) -> dict[str, object]:
    roles = [axis.replace("_", " ") for axis in words]
    if result.values.size > TOLD_IN_FULL:
        # The axes know the words; a text for each of a million cells would take 150 MB.
        text = f"{roles[0]} <b>%{{y}}</b><br>{roles[1]} <b>%{{x}}</b><br>%{{z:.4~g}}"
        return {"hovertemplate": f"{text}<extra></extra>"}
    down, across = words.values()
    text = [
        [
            f"{roles[0]} <b>{row}</b><br>{roles[1]} <b>{column}</b><br>{rounded(value)}"
            for column, value in zip(across, line, strict=True)
        ]
        for row, line in zip(down, result.values, strict=True)
    ]
    return {"text": text, "hovertemplate": "%{text}<extra></extra>"}


def _write_values(figure: go.Figure, values: np.ndarray, scale: Scale, size: int) -> None:
    rows, columns = np.indices(values.shape)
    flat = values.ravel()
    largest = float(np.abs(flat).max(initial=0))
    digits = 2 if largest < 1 else 1 if largest < 10 else 0
    figure.add_scatter(
        x=columns.ravel(),
        y=rows.ravel(),
        mode="text",
        text=[f"{value:z.{digits}f}" for value in flat],
        textfont={"size": size, "color": scale.ink_on(flat)},
        hoverinfo="skip",
        showlegend=False,
    )


def of_values(result: Result) -> go.Figure:
    """What holds of each value lag: a score of every head in a panel per lag, or split outputs."""
    if "head" not in result.axes:
        return pictures.outputs(result)
    return heatmaps.heads(result)


def by_distance(result: Result) -> go.Figure:
    """The score from positions alone by distance, in a band of what tokens add to it.

    Raises:
        ValueError: other axes than "term" and "distance".
    """
    if result.axes != ("term", "distance"):
        raise ValueError(
            f"{result.name} has the axes {result.axes}; the terms are drawn together, over distance"
        )
    distances = np.array(result.labels["distance"])
    mean, spread = (result.sel(term=term).values for term in ("positions", "tokens"))
    figure = go.Figure(
        layout=style.layout(
            result,
            title={"text": _title(result)},
            height=CURVE_HEIGHT,
            margin={"l": 66, "r": RIGHT, "t": TOP + LEGEND_HEIGHT, "b": 58},
            xaxis=style.axis(
                "distance from key to query", showgrid=False, showline=True, linecolor=style.FAINT
            ),
            yaxis=style.axis(style.words(str(result.unit))),
            hovermode="x unified",
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        )
    )
    known = np.isfinite(mean + spread)
    x, low, high = distances[known], (mean - spread)[known], (mean + spread)[known]
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=style.faded(style.SERIES[0], 0.22),
        line={"width": 0},
        mode="lines",
        name="one deviation of what tokens add",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=distances,
        y=mean,
        mode="lines",
        line={"color": style.SERIES[0], "width": 2},
        name="positions alone",
        text=[f"{rounded(m)}, tokens ± {rounded(s)}" for m, s in zip(mean, spread, strict=True)],
        hovertemplate="%{text}<extra></extra>",
    )
    return figure


def named(label: object, longest: int | None = None) -> str:
    """A token as text in a figure: its blanks visible, and no markup; cut short for an axis."""
    if not isinstance(label, str):
        return str(label)
    text = visible(label)
    if text.startswith(" "):
        text = "␣" + text[1:]
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    return style.html.escape(text, quote=False)


def _title(result: Result, unit: str = "") -> str:
    known = result.provenance
    share, more = known.get("share"), [style.origin(result)]
    more += [f"{key.replace('_', ' ')} {known[key]}" for key in LAGS if known.get(key)]
    more += [f"distance {known['distance']}"] if "distance" in known else []
    more += [] if share is None else [f"positions' share {rounded(share)}"]
    of = f"{style.words(result.name)} of {known.get('head', '')}"
    return f"<b>{of}</b>{unit and ', '}{style.words(unit)}<br>{style.small(', '.join(more))}"


def _room_for(names: list[str]) -> float:
    if len(names) > LABELLED:
        return 40
    return 44 + LETTER * max(len(name) for name in names)


def _axis(axis: str, names: list[str], **more: object) -> dict[str, object]:
    shown = len(names) <= LABELLED
    return style.axis(
        axis.replace("_", " "),
        showgrid=False,
        fixedrange=True,
        automargin=False,
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=names,
        showticklabels=shown,
        **more,
    )
