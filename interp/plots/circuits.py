"""A circuit among chosen tokens or positions as a heatmap, and what positions say by distance."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import heatmaps, pictures, style
from interp.plots.curves import Line, Lines, in_panels, numbers
from interp.plots.panels import Axis
from interp.plots.registry import draws
from interp.plots.tiles import Tiles, drawn
from interp.results.result import Result, rounded

ROWS = ("query_token", "source_token", "query_position")
COLUMNS = ("key_token", "predicted_token", "key_position")
LAGS = ("query_lag", "key_lag", "value_lag")
LABELLED = 80
"""Of more rows or columns none is named: hovering shows them."""
IN_FULL = 10_000
"""In more cells hovering shows names that are cut short, as on the axes."""
LONGEST_NAME = 22
PLOT, CELL, WIDTH_FOR_TEXT = 640, 40, 30  # pixels


@draws(*ROWS)
def entries(result: Result) -> go.Figure:
    """A cell per pair: the query or source token down, the key or predicted token across.

    Values of both signs are coloured symmetrically around 0. Blank space is made visible. A value
    is written where there is room; hovering shows it with both words.

    Raises:
        ValueError: other axes than two that belong together.
    """
    is_pair = any(result.axes == pair for pair in product(ROWS, COLUMNS))
    style.require(result, is_pair, "a circuit is drawn of two, such as query_token and key_token")
    cell = min(CELL, PLOT / max(result.values.shape))
    largest = float(np.abs(result.values).max(initial=0))
    digits = 2 if largest < 1 else 1 if largest < 10 else 0
    rows, columns = (_axis(axis, result.labels[axis]) for axis in result.axes)
    tiles = Tiles(
        result.values,
        rows,
        columns,
        _hover(result),
        unit=style.unit_of(result),
        written=[f"{value:z.{digits}f}" for value in result.values.flat]
        if cell >= WIDTH_FOR_TEXT
        else None,
    )
    return drawn(result, [tiles], (cell, cell), **_heading(result))


def _axis(axis: str, labels: Sequence[object]) -> Axis:
    names = [
        style.shortened(style.marked(label), LONGEST_NAME) if isinstance(label, str) else label
        for label in labels
    ]
    return Axis(style.plain(axis), names, shown=len(names) <= LABELLED)


def _hover(result: Result) -> Callable[[int, int], str] | str:
    roles = [style.words(axis) for axis in result.axes]
    if result.values.size > IN_FULL:
        # The axes know the words; a text for each of a million cells would take 150 MB.
        return f"{roles[0]} <b>%{{y}}</b><br>{roles[1]} <b>%{{x}}</b><br>%{{z:.4~g}}"
    down, across = ([style.token(label) for label in result.labels[axis]] for axis in result.axes)
    return lambda i, j: (
        f"{roles[0]} <b>{down[i]}</b><br>{roles[1]} <b>{across[j]}</b>"
        f"<br>{rounded(result.values[i, j])}"
    )


@draws("value_lag")
def of_values(result: Result) -> go.Figure:
    """What holds of each value lag: a score of every head in a panel per lag, or split outputs."""
    if "head" not in result.axes:
        return pictures.outputs(result)
    return heatmaps.heads(result)


@draws("distance")
def by_distance(result: Result) -> go.Figure:
    """The score from positions alone by distance, in a band of what tokens add to it.

    Raises:
        ValueError: other axes than "term" and "distance".
    """
    both = result.axes == ("term", "distance")
    style.require(result, both, "the terms are drawn together, over distance")
    mean, spread = (result.sel(term=term).values for term in ("positions", "tokens"))
    line = Line(
        "positions alone",
        np.array(result.labels["distance"], dtype=np.float64),
        mean,
        spread,
        style.SERIES[0],
        legend="positions alone",
        band="one deviation of what tokens add",
        readings=[
            f"{rounded(m)}, tokens ± {rounded(s)}" for m, s in zip(mean, spread, strict=True)
        ],
    )
    panel = Lines([line], numbers("distance from key to query"), Axis(style.unit_of(result)))
    heading: dict[str, Any] = {**_heading(result), "unit": ""}
    return in_panels(result, [panel], **heading)


def _heading(result: Result) -> dict[str, Any]:
    known = result.provenance
    share = known.get("share")
    more = [f"{style.plain(key)} {known[key]}" for key in LAGS if known.get(key)]
    more += [f"distance {known['distance']}"] if "distance" in known else []
    more += [] if share is None else [f"positions' share {rounded(share)}"]
    notes = [", ".join(filter(None, [style.origin(result), style.facts(more)]))]
    return {"name": f"{result.name} of {known.get('head', '')}", "notes": notes}
