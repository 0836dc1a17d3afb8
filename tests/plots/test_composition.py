"""Composition as a graph and as matrices: edges, widths, places and what hovering tells."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from interp.plots import figure, graph
from interp.plots.composition import MEASURES, scores
from interp.results.result import Result

KINDS = ("Q", "K", "V")


def composition(sources, targets, strong=(), n_kinds=3) -> Result:
    """All pairs at the baseline, but for the strong ones: (kind, source, target, z)."""
    shape = (len(MEASURES), n_kinds, len(sources), len(targets))
    values = np.zeros(shape)
    values[MEASURES.index("score")] = 0.1
    values[MEASURES.index("spread")] = 0.01
    values[MEASURES.index("p_corrected")] = 1
    for kind, source, target, z in strong:
        place = KINDS.index(kind), sources.index(source), targets.index(target)
        numbers = {"score": 0.1 + z / 100, "excess": z / 100, "z": z, "p_corrected": 0.01}
        for measure, value in numbers.items():
            values[(MEASURES.index(measure), *place)] = value
    chance = np.full(shape, 0.1)
    for i, source in enumerate(sources):
        for j, target in enumerate(targets):
            if graph.layer_of(source) >= graph.layer_of(target):
                values[:, :, i, j] = np.nan
    labels = {"measure": MEASURES, "kind": KINDS[:n_kinds], "source": sources, "target": targets}
    return Result(
        "composition_scores",
        values,
        tuple(labels),
        labels,
        chance=chance,
        unit=dict.fromkeys(MEASURES, ""),
        provenance={"model": "m", "n_pairs": 10, "n_surviving": len(strong)},
    )


def heads(layer, n):
    return [f"L{layer}H{head}" for head in range(n)]


def drawn_as(drawn, mode):
    return [trace for trace in drawn.data if trace.type == "scatter" and trace.mode == mode]


def lines(drawn):
    return drawn_as(drawn, "lines")


def test_edges_are_the_surviving_pairs_as_wide_as_their_z():
    strong = [("K", "L0H0", "L1H2", 20.0), ("Q", "L0H1", "L1H2", 5.0)]
    drawn = figure(composition(heads(0, 3), heads(1, 3), strong))
    weak, wide = lines(drawn)  # the strongest on top
    assert (weak.legendgroup, wide.legendgroup) == ("Q", "K")
    assert wide.line.width == graph.THICKEST
    expected = graph.THINNEST + (graph.THICKEST - graph.THINNEST) / 4
    assert weak.line.width == pytest.approx(expected)
    assert "<b>L0H0 → L1H2</b>, K-composition" in wide.text[0]
    assert "score 0.300, baseline 0.100 ± 0.010<br>z +20.0, corrected p 0.01" in wide.text[0]
    nodes = graph.Nodes.of([*heads(0, 3), *heads(1, 3)])
    assert (wide.x[0], wide.y[0]) == nodes.places["L0H0"]
    assert (wide.x[-1], wide.y[-1]) == nodes.places["L1H2"]


def test_layer_0_is_at_the_foot_and_heads_without_an_edge_are_pale():
    drawn = figure(composition(heads(0, 12), heads(2, 12), [("V", "L0H0", "L2H1", 9.0)]))
    (nodes,) = drawn_as(drawn, "markers+text")
    assert len(nodes.x) == 24
    assert [nodes.y[i] for i in (0, 12)] == [0, 1]
    bold = [
        name for name, width in zip(nodes.hovertext, nodes.marker.line.width, strict=True) if width
    ]
    assert bold == ["<b>L0H0</b>", "<b>L2H1</b>"]
    assert nodes.marker.opacity == 1  # edges end at a head and do not shine through
    assert drawn.layout.yaxis.ticktext == ("0", "2")
    across = sorted(nodes.x[:12])
    width = drawn.layout.width - drawn.layout.margin.l - drawn.layout.margin.r
    assert min(np.diff(across)) * width > max(nodes.marker.size)


def test_conv_lags_are_squares_beside_the_heads():
    names = ["L0 lag 0", "L0 lag 1"]
    drawn = figure(composition(names, heads(1, 2), [("K", "L0 lag 1", "L1H0", 9.0)]))
    (nodes,) = drawn_as(drawn, "markers+text")
    assert nodes.text == ("lag 0", "lag 1", "0", "1")
    assert nodes.marker.symbol == ("square", "square", "circle", "circle")


def test_matrices_hold_the_excess_of_every_pair():
    strong = [("K", "L0H0", "L1H1", 20.0)]
    drawn = figure(composition([*heads(0, 2), *heads(1, 2)], [*heads(1, 2), *heads(2, 2)], strong))
    matrices = [trace for trace in drawn.data if trace.type == "heatmap"]
    assert len(matrices) == 3
    assert matrices[1].z[0][1] == 0.2
    assert np.isnan(matrices[1].z[2][0])
    assert matrices[1].text[2][0].endswith("none")
    boxes = [
        (drawn.layout[f"xaxis{i}"].domain, drawn.layout[f"yaxis{i}"].domain) for i in (2, 3, 4)
    ]
    assert boxes[0][0][1] < boxes[1][0][0] < boxes[1][0][1] < boxes[2][0][0]
    floor = drawn.layout.yaxis.domain[0]
    assert all(y[1] < floor for _, y in boxes)
    assert all(0 <= edge <= 1 for box in boxes for side in box for edge in side)


@pytest.mark.parametrize(("n_layers", "n_heads"), [(2, 1), (2, 12), (12, 12), (30, 9)])
def test_panels_of_any_model_lie_apart_and_stay_readable(n_layers, n_heads):
    names = [name for layer in range(n_layers) for name in heads(layer, n_heads)]
    drawn = figure(composition(names[:-n_heads], names[n_heads:]))
    layout = drawn.layout
    width = layout.width - layout.margin.l - layout.margin.r
    assert layout.width < 1_000
    for i in (2, 3, 4):
        left, right = layout[f"xaxis{i}"].domain
        assert (right - left) * width / ((n_layers - 1) * n_heads) >= 1
    domains = [(layout[f"xaxis{i}"].domain, layout[f"yaxis{i}"].domain) for i in (2, 3, 4)]
    for (x, y), (u, v) in pairwise(domains):
        assert x[1] < u[0] or y[0] > v[1]


def test_edges_stay_inside_the_graph_and_bend_where_they_could_meet():
    names = [name for layer in range(6) for name in heads(layer, 3)]
    strong = [(kind, "L0H0", "L5H0", 9.0) for kind in KINDS]
    curves = np.array(
        [line.x for line in lines(figure(composition(names[:-3], names[3:], strong)))]
    )
    assert curves.min() >= 0
    assert curves.max() <= 1
    between = curves[:, 1:-1]
    assert all((np.abs(one - other) > 1e-3).all() for one, other in pairwise(between))


def test_very_many_pairs_carry_no_texts():
    names = [name for layer in range(14) for name in heads(layer, 12)]
    drawn = figure(composition(names[:-12], names[12:]))
    matrix = next(trace for trace in drawn.data if trace.type == "heatmap")
    assert matrix.text is None
    assert "%{y} → %{x}" in matrix.hovertemplate


def test_only_the_strongest_edges_are_drawn_and_the_title_says_so():
    sources, targets = heads(0, 10), heads(1, 10)
    strong = [("K", s, t, 5.0 + i) for i, s in enumerate(sources) for t in targets]
    drawn = figure(composition(sources, targets, strong))
    assert len(lines(drawn)) == graph.MOST_EDGES
    assert "60 with z farthest from 0" in drawn.layout.title.text
    (entry,) = (line for line in lines(drawn) if line.showlegend)
    assert entry.line.width == graph.THICKEST


def test_a_pair_below_chance_is_as_wide_as_its_z_and_broken():
    strong = [("K", "L0H0", "L1H2", -20.0), ("K", "L0H1", "L1H2", 5.0)]
    result = composition(heads(0, 3), heads(1, 3), strong)
    result = replace(result, provenance={**result.provenance, "n_surviving_below": 1})
    drawn = figure(result)
    above, below = lines(drawn)
    assert below.line.width == graph.THICKEST
    assert (above.line.dash, below.line.dash) == ("solid", "dot")
    assert "z -20.0, corrected p 0.01, less than by chance" in below.text[0]
    assert "1 of them below chance" in drawn.layout.title.text


def test_too_few_rotations_are_no_finding():
    result = composition(heads(0, 2), heads(1, 2))
    few = replace(result, provenance={**result.provenance, "smallest_p": 2 / 21})
    notes = [note.text for note in figure(few).layout.annotations]
    assert "too few rotations to tell: p is at least 0.095" in notes


def test_where_nothing_survives_the_graph_says_so():
    drawn = figure(composition(heads(0, 2), heads(1, 2)))
    assert not lines(drawn)
    assert "no pair survives the correction" in [note.text for note in drawn.layout.annotations]


def test_one_kind_is_drawn_alone_and_one_measure_not():
    result = composition(heads(0, 2), heads(1, 2), [("K", "L0H0", "L1H1", 20.0)])
    alone = figure(result.sel(kind="K"))
    assert len([trace for trace in alone.data if trace.type == "heatmap"]) == 1
    assert len(figure(result.sel(kind=["Q", "K"])).data) == 4
    with pytest.raises(ValueError, match="every measure"):
        scores(result.sel(measure="z"))
