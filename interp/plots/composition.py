"""Composition as a graph of heads above, and as a matrix per kind below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from interp.plots import graph, style
from interp.plots.panels import GAP, Axis, Panel, lay_out
from interp.plots.registry import draws
from interp.plots.tiles import Tiles, draw, scales_of
from interp.results.result import Result, rounded

SURVIVES = 0.05
MOST_TEXTS = 20_000
MEASURES = ("score", "excess", "spread", "z", "p_corrected")

# Pixels.
LAYERS_HEIGHT, LAYER_HEIGHT = 1000, (54, 120)
NODE, WIDTH, NARROWEST = 40, 800, 304
CELL, SMALLEST = 32.0, 4.0


@dataclass(frozen=True)
class _Panel:
    """One kind's measures, each `[source target]`."""

    kind: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    cells: dict[str, np.ndarray]
    baseline: np.ndarray

    def edges(self) -> Iterator[graph.Edge]:
        """The pairs that survive the correction."""
        survives = (self.cells["p_corrected"] < SURVIVES) & np.isfinite(self.cells["z"])
        for row, column in np.argwhere(survives).tolist():
            weight = abs(float(self.cells["z"][row, column]))
            names = self.sources[row], self.targets[column]
            less = bool(self.cells["z"][row, column] < 0)
            yield graph.Edge(*names, self.kind, weight, self.hover(row, column), less)

    def hover(self, row: int, column: int) -> str:
        """All numbers of a pair."""
        values = {measure: cells[row, column] for measure, cells in self.cells.items()}
        source, target = self.sources[row], self.targets[column]
        pair = f"{style.bold(f'{source} → {target}')}, {style.text(graph.name_of(self.kind))}"
        if np.isnan(values["score"]):
            return f"{pair}<br>none"
        baseline = rounded(self.baseline[row, column], values["spread"])
        return (
            f"{pair}<br>score {rounded(values['score'])}, baseline {baseline}"
            f"<br>z {values['z']:+.1f}, corrected p {values['p_corrected']:.2g}"
            f"{', less than by chance' if values['z'] < 0 else ''}"
        )

    def tiles(self) -> Tiles:
        """The excess of every pair; of very many pairs hovering shows nothing more."""
        excess = self.cells["excess"].round(5)
        short = f"<b>%{{y}} → %{{x}}</b>, {style.text(graph.name_of(self.kind))}<br>excess %{{z}}"
        hover = self.hover if excess.size <= MOST_TEXTS else short  # a page holds each text
        axes = Axis("source", self.sources), Axis("target", self.targets)
        return Tiles(excess, *axes, hover, self.kind, unit="excess over the baseline")


@draws("source")
def scores(result: Result) -> go.Figure:
    """Heads in layers with the pairs that survive, and excess over the baseline for every pair.

    An edge is as wide as its z is far from 0, and broken where z is negative; at most the 60
    strongest are drawn. Hovering over an edge or a cell shows its numbers.

    Raises:
        ValueError: not the result of `composition_scores`, or a measure or axis of it is missing.
    """
    kinds = list(_panels(result))
    edges = [edge for kind in kinds for edge in kind.edges()]
    names = (*kinds[0].sources, *kinds[0].targets)
    n_columns = len(kinds[0].targets)
    cell = min(CELL, (WIDTH - GAP * (len(kinds) - 1)) / len(kinds) / n_columns)
    is_beside = cell >= SMALLEST
    if not is_beside:
        cell = max(1.0, WIDTH / n_columns)
    tiles = [kind.tiles() for kind in kinds]
    scales = scales_of(tiles)
    matrices = [one.panel((cell, cell)) for one in tiles]
    across = sum(one.width or 0 for one in matrices) + GAP * (len(matrices) - 1)
    busiest = max(len(kinds[0].sources), n_columns) * NODE
    width = min(WIDTH, max(across if is_beside else WIDTH, busiest, NARROWEST))
    rows = [matrices] if is_beside else [[matrix] for matrix in matrices]
    figure, (top, *below) = lay_out(
        result,
        [[_graph_panel(names, width)], *rows],
        unit="",
        notes=[style.origin(result), _note(result, edges)],
        scales=[*scales.values()],
        legend=[graph.name_of(kind) for kind in dict.fromkeys(edge.kind for edge in edges)],
    )
    graph.draw(figure, names, edges, top)
    if not edges:
        smallest = result.provenance.get("smallest_p", 0.0)
        nothing = "no pair survives the correction"
        if smallest >= SURVIVES:
            nothing = f"too few rotations to tell: p is at least {smallest:.2g}"
        figure.add_annotation(
            text=nothing, showarrow=False, font={"color": style.QUIET},
            x=0.5, xref="paper", y=0.5, yref="y domain",
        )  # fmt: skip
    for one, place in zip(tiles, below, strict=True):
        draw(figure, one, place, scales, (cell, cell))
    return figure


def _graph_panel(names: Sequence[str], width: float) -> Panel:
    layers = graph.Nodes.of(names).layers
    between = min(max(LAYERS_HEIGHT / len(layers), LAYER_HEIGHT[0]), LAYER_HEIGHT[1])
    height = between * (len(layers) - 1) + NODE
    margin = NODE / 2 / height * max(1, len(layers) - 1)
    hidden = {"range": (0, 1), "visible": False, "showticklabels": False, "fixedrange": True}
    upwards = {"range": (-margin, len(layers) - 1 + margin)}
    return Panel(Axis(look=hidden), Axis("layer", layers, look=upwards), height, width)


def _panels(result: Result) -> Iterator[_Panel]:
    needed = {"measure", "source", "target"}
    if set(result.axes) - {"kind"} != needed or set(result.labels["measure"]) != set(MEASURES):
        raise ValueError(
            f"{result.name} with the axes {result.axes} is not all of a composition: its drawing "
            "needs every measure; choose kinds, sources or targets with sel(kind=['K'])"
        )
    kinds = result.labels.get("kind", ("",))
    for kind in kinds:
        part = result.sel(kind=kind) if "kind" in result.axes else result
        cells = {measure: part.sel(measure=measure) for measure in MEASURES}
        score = cells["score"]
        yield _Panel(
            str(kind),
            tuple(map(str, result.labels["source"])),
            tuple(map(str, result.labels["target"])),
            {measure: cell.values for measure, cell in cells.items()},
            np.full_like(score.values, np.nan) if score.chance is None else score.chance,
        )


def _note(result: Result, edges: Sequence[graph.Edge]) -> str:
    known = result.provenance
    facts = []
    if "n_pairs" in known:
        below = known.get("n_surviving_below", 0)
        facts.append(f"{known['n_surviving']} of {known['n_pairs']} pairs survive")
        facts += [f"{below} of them below chance (broken lines)"] if below else []
    if len(edges) > graph.MOST_EDGES:
        facts.append(f"drawn: the {graph.MOST_EDGES} with z farthest from 0")
    return style.facts(facts)
