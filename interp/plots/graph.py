"""Heads as a graph in layers, the lowest at the foot: who reads whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from interp.plots import style

MOST_EDGES = 60
"""Of more, the strongest."""
THINNEST, THICKEST, FAINTEST = 1.0, 7.0, 0.5
POINTS = 24
"""Of a curve: enough to look round, and to hover over."""
COLOURS = {"Q": style.SERIES[0], "K": style.SERIES[1], "V": style.SERIES[2]}
BENDS = {"Q": 0.16, "K": -0.16, "V": 0.0}
"""How far a curve leaves the straight line, so that kinds between the same heads lie apart."""


@dataclass(frozen=True)
class Edge:
    """A later head, the target, reads an earlier source."""

    source: str
    target: str
    kind: str
    weight: float
    hover: str
    broken: bool = False


@dataclass(frozen=True)
class Nodes:
    """Where every head or lag stands: its layer upwards, its place in the layer across."""

    places: Mapping[str, tuple[float, float]]
    layers: tuple[int, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> "Nodes":
        """Each layer's nodes spread over the whole width, in the order of their names."""
        by_layer: dict[int, list[str]] = {}
        for name in dict.fromkeys(names):
            by_layer.setdefault(layer_of(name), []).append(name)
        layers = tuple(sorted(by_layer))
        places = {
            name: ((index + 0.5) / len(by_layer[layer]), float(height))
            for height, layer in enumerate(layers)
            for index, name in enumerate(by_layer[layer])
        }
        return cls(places, layers)


def layer_of(name: str) -> int:
    """The layer in "L1H3" or "L0 lag 1"."""
    digits = name[1:].replace("H", " ").split()
    return int(digits[0])


def short(name: str) -> str:
    """What is written in a node: "3" of "L1H3", "lag 1" of "L0 lag 1"."""
    head = name.partition("H")[2]
    return head or name.partition(" ")[2]


def name_of(kind: str) -> str:
    """What the legend calls a kind of edge."""
    return f"{kind}-composition".lstrip("-")


def draw(
    figure: go.Figure, names: Sequence[str], edges: Sequence[Edge], axes: Mapping[str, str]
) -> None:
    """Add the graph to a figure, on these axes; heads without an edge are pale."""
    nodes = Nodes.of(names)
    strongest = sorted(edges, key=lambda edge: -edge.weight)[:MOST_EDGES]
    top = strongest[0].weight if strongest else 1.0
    in_legend = {edge.kind: edge for edge in reversed(strongest)}.values()  # of each the strongest
    for edge in reversed(strongest):  # the strongest on top
        ends = nodes.places[edge.source], nodes.places[edge.target]
        x, y = _curve(*ends, BENDS.get(edge.kind, 0)).T
        share = edge.weight / top
        colour = COLOURS.get(edge.kind, style.SERIES[0])
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines",
            line={
                "color": style.faded(colour, FAINTEST + (1 - FAINTEST) * share),
                "width": THINNEST + (THICKEST - THINNEST) * share,
                "shape": "spline",
                "dash": "dot" if edge.broken else "solid",
            },
            name=style.text(name_of(edge.kind)),
            legendgroup=style.text(edge.kind),
            legendrank="QKV".find(edge.kind),
            showlegend=any(edge is one for one in in_legend),
            **style.hovering([edge.hover] * len(x)),
            **axes,
        )
    _draw_nodes(figure, nodes, strongest, axes)


def _curve(start: tuple[float, float], end: tuple[float, float], bend: float) -> np.ndarray:
    """Over more layers it bends further, past the heads between."""
    further = bend * (1 + 0.35 * (end[1] - start[1] - 1))
    if bend == 0 and end[1] - start[1] > 1:
        further = 0.08
    across = min(max((start[0] + end[0]) / 2 + further, 0.0), 1.0)  # and inside the graph
    return style.bezier(start, (across, (start[1] + end[1]) / 2), end, n=POINTS)


def _draw_nodes(
    figure: go.Figure, nodes: Nodes, edges: Sequence[Edge], axes: Mapping[str, str]
) -> None:
    used = {name for edge in edges for name in (edge.source, edge.target)}
    names = list(nodes.places)
    x, y = zip(*nodes.places.values(), strict=True)
    crowded = max(sum(place[1] == height for place in nodes.places.values()) for height in set(y))
    size, wider = (26, 12) if crowded <= 16 else (15, 9)
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers+text",
        marker={
            "size": [size if "H" in name else size + wider for name in names],
            "symbol": ["circle" if "H" in name else "square" for name in names],
            "opacity": 1,
            "color": ["white" if name in used else style.FAINT for name in names],
            "line": {
                "width": [1.6 if name in used else 0 for name in names],
                "color": style.INK,
            },
        },
        text=[style.text(short(name)) for name in names],
        textfont={
            "size": 11 if crowded <= 16 else 8,
            "color": [style.INK if name in used else style.QUIET for name in names],
        },
        hovertext=[style.bold(name) for name in names],
        hoverinfo="text",
        cliponaxis=False,
        showlegend=False,
        **axes,
    )
