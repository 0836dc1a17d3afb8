"""Composition as a graph of heads above, and as a matrix per kind below."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import graph, style
from interp.plots.heatmaps import _Scale as Scale
from interp.results.result import Result, rounded

SURVIVES = 0.05
MOST_TEXTS = 20_000
MEASURES = ("score", "excess", "spread", "z", "p_corrected")

# Pixels.
TOP, RIGHT, LEGEND, COLORBAR = 92, 24, 30, 64
LAYERS_HEIGHT, LAYER_HEIGHT = 1000, (54, 120)
GRAPH_GAP, NODE, LEFT = 40, 40, 84
WIDTH, NARROWEST, GAP, CAPTION = 860, 420, 44, 46
CELL, SMALLEST, NAMED = 32.0, 4.0, 13.0
NAMES_BELOW = 70


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
        values = {measure: cells[row, column] for measure, cells in self.cells.items()}
        pair = f"<b>{self.sources[row]} → {self.targets[column]}</b>, {self.kind}-composition"
        if np.isnan(values["score"]):
            return f"{pair}<br>none"
        baseline = rounded(self.baseline[row, column], values["spread"])
        return (
            f"{pair}<br>score {rounded(values['score'])}, baseline {baseline}"
            f"<br>z {values['z']:+.1f}, corrected p {values['p_corrected']:.2g}"
            f"{', less than by chance' if values['z'] < 0 else ''}"
        )


def scores(result: Result) -> go.Figure:
    """Heads in layers with the pairs that survive, and excess over the baseline for every pair.

    An edge is as wide as its z is far from 0, and broken where z is negative; at most the 60
    strongest are drawn. Hovering over an edge or a cell tells its numbers.

    Raises:
        ValueError: not the result of `composition_scores`, or a measure or axis of it is missing.
    """
    panels = list(_panels(result))
    edges = [edge for panel in panels for edge in panel.edges()]
    names = (*panels[0].sources, *panels[0].targets)
    places = _Places.of(panels[0], len(panels), len(graph.Nodes.of(names).layers))
    scale = Scale.of(np.stack([panel.cells["excess"] for panel in panels]))
    figure = go.Figure(
        layout=style.layout(
            result,
            title={"text": _title(result, edges)},
            width=LEFT + places.width + RIGHT,
            height=places.top + places.height + places.bottom,
            margin={"l": LEFT, "r": RIGHT, "t": places.top, "b": places.bottom},
            coloraxis=scale.axis(),
            legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
        )
    )
    smallest = result.provenance.get("smallest_p", 0.0)
    nothing = "no pair survives the correction"
    if smallest >= SURVIVES:
        nothing = f"too few rotations to tell: p is at least {smallest:.2g}"
    _add_graph(figure, names, edges, places, nothing)
    for number, panel in enumerate(panels):
        _add_matrix(figure, number, panel, places)
    return figure


@dataclass(frozen=True)
class _Places:
    """Where the graph and the matrices are, in pixels from the upper left of the plots."""

    n_rows: int
    n_columns: int
    n_panels: int
    cell: float
    graph_height: float
    width: float
    beside: bool

    @classmethod
    def of(cls, panel: _Panel, n_panels: int, n_layers: int) -> "_Places":
        """Matrices side by side, or below each other where the cells would be too small."""
        n_rows, n_columns = len(panel.sources), len(panel.targets)
        cell = min(CELL, (WIDTH - GAP * (n_panels - 1)) / n_panels / n_columns)
        beside = cell >= SMALLEST
        cell = cell if beside else max(1.0, WIDTH / n_columns)
        matrices = n_columns * cell * n_panels + GAP * (n_panels - 1) if beside else WIDTH
        busiest = max(n_rows, n_columns) * NODE
        between = min(max(LAYERS_HEIGHT / n_layers, LAYER_HEIGHT[0]), LAYER_HEIGHT[1])
        return cls(
            n_rows,
            n_columns,
            n_panels,
            cell,
            between * (n_layers - 1) + NODE,
            min(WIDTH, max(matrices, busiest, NARROWEST)),
            beside,
        )

    @property
    def top(self) -> float:
        """Room for the title and the legend."""
        return TOP + LEGEND

    @property
    def bottom(self) -> float:
        """Room for the targets' names and the colours."""
        return COLORBAR + NAMES_BELOW

    @property
    def height(self) -> float:
        """Of the graph and all matrices."""
        rows = 1 if self.beside else self.n_panels
        step = self.n_rows * self.cell + CAPTION + NAMES_BELOW
        return self.graph_height + GRAPH_GAP + rows * step - NAMES_BELOW

    def graph(self) -> tuple[list[float], list[float]]:
        """Shares of width and of height, from below, of the graph."""
        return [0.0, 1.0], [1 - self.graph_height / self.height, 1.0]

    def matrix(self, number: int) -> tuple[list[float], list[float]]:
        """Of one matrix."""
        wide, high = self.n_columns * self.cell, self.n_rows * self.cell
        across, down = (number, 0) if self.beside else (0, number)
        left = across * (wide + GAP)
        above = self.graph_height + GRAPH_GAP + CAPTION
        above += down * (high + CAPTION + NAMES_BELOW)
        x = [left / self.width, min(1.0, (left + wide) / self.width)]
        return x, [max(0.0, 1 - (above + high) / self.height), 1 - above / self.height]


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


def _title(result: Result, edges: Sequence[graph.Edge]) -> str:
    known = result.provenance
    facts = []
    if "n_pairs" in known:
        below = known.get("n_surviving_below", 0)
        facts.append(
            f"{known['n_surviving']} of {known['n_pairs']} pairs survive"
            + (f", {below} of them below chance (broken lines)" if below else "")
        )
    if len(edges) > graph.MOST_EDGES:
        facts.append(f"drawn: the {graph.MOST_EDGES} with z farthest from 0")
    lines = (style.origin(result), ", ".join(facts))
    small = "<br>".join(style.small(line) for line in lines if line)
    return f"<b>{style.words(result.name)}</b><br>{small}"


def _add_graph(
    figure: go.Figure,
    names: Sequence[str],
    edges: Sequence[graph.Edge],
    places: _Places,
    nothing: str,
) -> None:
    layers = graph.Nodes.of(names).layers
    x, y = places.graph()
    margin = NODE / 2 / places.graph_height * max(1, len(layers) - 1)
    figure.update_layout(
        xaxis={"domain": x, "anchor": "y", "range": (0, 1), "visible": False, "fixedrange": True},
        yaxis=style.axis(
            "layer", domain=y, anchor="x", range=(-margin, len(layers) - 1 + margin),
            tickvals=list(range(len(layers))), ticktext=[str(layer) for layer in layers],
            showgrid=False, fixedrange=True, automargin=False,
        ),
    )  # fmt: skip
    graph.draw(figure, names, edges, {"xaxis": "x", "yaxis": "y"})
    if not edges:
        figure.add_annotation(
            text=nothing, showarrow=False, font={"color": style.QUIET},
            x=0.5, xref="paper", y=sum(y) / 2, yref="paper",
        )  # fmt: skip


def _add_matrix(figure: go.Figure, number: int, panel: _Panel, places: _Places) -> None:
    x, y = places.matrix(number)
    suffix = str(number + 2)
    first = number == 0 or not places.beside
    axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    figure.add_heatmap(
        z=panel.cells["excess"].round(5),
        x=panel.targets,
        y=panel.sources,
        hoverongaps=False,
        xgap=places.cell > 8,
        ygap=places.cell > 8,
        coloraxis="coloraxis",
        **_hover(panel),
        **axes,
    )
    figure.update_layout(
        {
            f"xaxis{suffix}": _ticks(
                "target", panel.targets, places, domain=x, anchor=f"y{suffix}", tickangle=-90
            ),
            f"yaxis{suffix}": _ticks(
                "source" if first else "", panel.sources, places, domain=y, anchor=f"x{suffix}",
                autorange="reversed", showticklabels=first,
            ),
        }
    )  # fmt: skip
    caption = style.small("excess over the baseline") + "<br>" if first else ""
    figure.add_annotation(
        text=f"{caption}<b>{panel.kind}</b>", align="left",
        showarrow=False, x=x[0], xref="paper", xanchor="left", y=y[1], yref="paper",
        yanchor="bottom", yshift=2,
    )  # fmt: skip


def _hover(panel: _Panel) -> dict[str, Any]:
    """All numbers of a pair, or of very many pairs the excess alone: a page holds each text."""
    n_rows, n_columns = panel.baseline.shape
    if n_rows * n_columns > MOST_TEXTS:
        name = f"{panel.kind}-composition"
        return {"hovertemplate": f"<b>%{{y}} → %{{x}}</b>, {name}<br>excess %{{z}}<extra></extra>"}
    texts = [[panel.hover(row, column) for column in range(n_columns)] for row in range(n_rows)]
    return {"text": texts, "hovertemplate": "%{text}<extra></extra>"}


def _ticks(title: str, names: Sequence[str], places: _Places, **more: Any) -> dict[str, Any]:
    """Every name where there is room, else where a layer begins."""
    words = {name: name for name in names}
    if places.cell < NAMED:
        first = {graph.layer_of(name): name for name in reversed(names)}
        words = {name: f"L{layer}" for layer, name in first.items()}
    return style.axis(
        title, showgrid=False, fixedrange=True, automargin=False, tickmode="array",
        tickvals=list(words), ticktext=list(words.values()), tickfont={"size": 10}, **more,
    )  # fmt: skip
