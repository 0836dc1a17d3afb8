"""Which heads have a score: one cell per head, layer 0 at the top, as TransformerLens draws it."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.panels import GAP, PAGE, Axis
from interp.plots.registry import Order, draws
from interp.plots.tiles import Tiles, drawn
from interp.results.labels import head_of
from interp.results.result import Result, rounded

# Pixels. A cell keeps a readable size whatever the number of heads; the figure grows instead.
HEIGHT, PANEL_WIDTH = 520, 200
CELL_WIDTH, CELL_HEIGHT = (17.0, 54.0), (15.0, 36.0)


@draws("head", order=Order.HEAD)
def heads(result: Result) -> go.Figure:
    """A heatmap of layers x heads; several scores stand in panels that share one colour scale.

    Layer 0 is at the top. Grey is a place without a head: a convolution layer has none, and layers
    may have different numbers of them. Values from 0 to 1 are coloured on that range, others up to
    their largest, and values of both signs symmetrically around 0, or around a chance level that
    all share; measures of several units have a scale for each. A cell has its value written in it
    where there is room; hovering shows it with its standard error and chance level.

    Args:
        result: an axis "head" with labels such as "L1H3", and at most one other axis.

    Raises:
        ValueError: one axis too many, no head at all, or a label that names no head.
    """
    panels = list(style.series(result, "head"))
    places = [_place(str(label), result.name) for label in result.labels["head"]]
    if not places or not panels:
        raise ValueError(f"{result.name} holds no head to draw")
    shape = 1 + max(layer for layer, _ in places), 1 + max(head for _, head in places)
    tiles = [_tiles(name, panel, places, shape) for name, panel in panels]
    return drawn(result, tiles, _cell(*shape, len(panels)), middle=_chance_of_all(result))


def _cell(n_layers: int, n_heads: int, n_panels: int) -> tuple[float, float]:
    """As many panels side by side as fit with readable cells, the others below them."""
    narrowest = max(PANEL_WIDTH, n_heads * CELL_WIDTH[0])
    columns = min(n_panels, max(1, int((PAGE + GAP) // (narrowest + GAP))))
    widest = max(CELL_WIDTH[1], PANEL_WIDTH / n_heads)
    width = ((PAGE + GAP) / columns - GAP) / n_heads
    return (
        min(max(width, CELL_WIDTH[0]), widest),
        min(max(HEIGHT / n_layers, CELL_HEIGHT[0]), CELL_HEIGHT[1]),
    )


def _chance_of_all(result: Result) -> float:
    chances = [] if result.chance is None else np.unique(result.chance)
    return float(chances[0]) if len(chances) == 1 and np.isfinite(chances[0]) else 0.0


def _place(label: str, name: str) -> tuple[int, int]:
    place = head_of(label)
    if place is None:
        raise ValueError(f'{name}: the label {label!r} names no head; heads are written "L1H3"')
    return place


def _tiles(
    name: str, panel: Result, places: Sequence[tuple[int, int]], shape: tuple[int, int]
) -> Tiles:
    """One panel as layers x heads: NaN where there is no head, and where a value is unknown."""
    values, hover = np.full(shape, np.nan), np.full(shape, "no head", object)
    written = np.full(shape, "", object)
    for place, row in zip(places, panel.to_frame().to_dict("records"), strict=True):
        reading = style.reading(row["value"], row["standard_error"], row["chance"])
        values[place] = row["value"]
        hover[place] = f"{style.bold(row['head'])}  {reading.replace(', chance', '<br>chance')}"
        written[place] = "" if np.isnan(row["value"]) else f"{row['value']:.2f}"
    layers, across = (range(n) for n in shape)
    return Tiles(
        values,
        Axis("layer", layers),
        Axis("head", across),
        lambda i, j: hover[i, j],
        style.plain(name),
        _note(panel),
        style.unit_of(panel),
        written,
        is_grey=True,
    )


def _note(panel: Result) -> str:
    """The best head and the chance level, if there is one."""
    facts = []
    if not np.isnan(panel.values).all():
        best = panel.best()
        facts.append(f"highest {best} {rounded(float(panel.sel(head=best)))}")
    if panel.chance is not None and len(set(panel.chance.tolist())) == 1:
        facts.append(f"chance {rounded(panel.chance[0])}")
    return style.facts(facts)
