"""Heads land where their names say, on one colour scale, and tell their score when hovered over."""

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest

from interp.plots import style
from interp.plots.heatmaps import heads
from interp.results.result import Result

SCORES = ("induction", "previous_token", "duplicate_token", "first_token")


def scores(names: list[str], n_scores: int = 1, scale: float = 1.0) -> Result:
    values = scale * np.linspace(0.05, 0.95, n_scores * len(names)).reshape(n_scores, len(names))
    labels = {"score": SCORES[:n_scores], "head": names}
    return Result(
        "head_scores",
        values,
        ("score", "head"),
        labels,
        standard_error=np.full(values.shape, 0.02),
        chance=np.full((n_scores, 1), 0.013),
        unit="probability",
    )


def grid(n_layers: int, n_heads: int) -> list[str]:
    return [f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)]


def tiles(figure: go.Figure) -> list[go.Heatmap]:
    return [trace for trace in figure.data if trace.type == "heatmap"]


def test_values_land_in_their_cells_and_the_rest_is_no_head():
    # Layers 0 and 2 are convolutions; layer 1 has two heads, layer 3 has three.
    result = scores(["L1H0", "L1H1", "L3H0", "L3H2", "L3H1"]).sel(score="induction")
    grey, coloured = tiles(heads(result))
    nan = np.nan
    a, b, c, d, e = result.values
    np.testing.assert_array_equal(
        coloured.z, [[nan, nan, nan], [a, b, nan], [nan, nan, nan], [c, e, d]]
    )
    np.testing.assert_array_equal(np.isnan(grey.z), ~np.isnan(coloured.z))
    hover = np.array(coloured.text)
    assert set(hover[np.isnan(coloured.z)]) == {"no head"}
    assert hover[3, 2] == f"<b>L3H2</b>  {d:.3f} ± 0.020<br>chance 0.013"


def test_a_head_of_unknown_value_is_still_a_head():
    result = Result("x", np.array([0.5, np.nan]), ("head",), {"head": ("L0H0", "L0H1")})
    grey, _ = tiles(heads(result))
    assert grey.text[0][1].startswith("<b>L0H1</b>")
    assert grey.z[0][1] == 0


def test_layer_0_is_at_the_top():
    bottom, top = heads(scores(grid(3, 2))).layout.yaxis.range
    assert (bottom, top) == (2.5, -0.5)


def test_scores_share_one_scale_from_0_to_1():
    figure = heads(scores(grid(2, 8), n_scores=4, scale=0.3))
    coloured = [trace for trace in tiles(figure) if trace.coloraxis]
    assert [trace.coloraxis for trace in coloured] == ["coloraxis"] * 4
    assert len({(trace.xaxis, trace.yaxis) for trace in coloured}) == 4
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (0, 1)
    captions = [annotation.text for annotation in figure.layout.annotations]
    assert captions[1].startswith("<b>previous token</b>")
    assert "highest L1H7" in captions[1]
    assert "chance 0.013" in captions[1]


@pytest.mark.parametrize(
    ("values", "limits"),
    [([0.0, 0.2], (0, 1)), ([0.5, 7.0], (0, 7)), ([-0.2, 0.6], (-0.6, 0.6)), ([-3, 1], (-3, 3))],
)
def test_the_scale_suits_the_values(values, limits):
    figure = heads(Result("x", np.array(values), ("head",), {"head": ("L0H0", "L0H1")}))
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmax) == limits


def test_values_are_written_where_there_is_room_in_ink_that_stands_out():
    result = Result("x", np.array([0.0, 1.0, 0.25]), ("head",), {"head": grid(1, 3)})
    (text,) = (trace for trace in heads(result).data if trace.type == "scatter")
    assert text.text == ("0.00", "1.00", "0.25")
    assert text.textfont.color == (style.INK, "white", style.INK)
    crowded = heads(scores(grid(30, 9), n_scores=4))
    assert {trace.type for trace in crowded.data} == {"heatmap"}


@pytest.mark.parametrize(
    ("n_layers", "n_heads", "n_scores"),
    [(1, 1, 4), (1, 4, 4), (2, 8, 4), (12, 12, 1), (30, 9, 4), (48, 25, 4), (60, 64, 2)],
)
def test_panels_never_overlap_and_stay_readable(n_layers, n_heads, n_scores):
    figure = heads(scores(grid(n_layers, n_heads), n_scores))
    layout = figure.layout
    margin = layout.margin
    width = layout.width - margin.l - margin.r
    height = layout.height - margin.t - margin.b
    boxes = []
    for number in range(n_scores):
        suffix = str(number + 1) if number else ""
        (left, right), (bottom, top) = (
            layout[f"xaxis{suffix}"].domain,
            layout[f"yaxis{suffix}"].domain,
        )
        assert 0 <= left < right <= 1
        assert 0 <= bottom < top <= 1
        assert (right - left) * width / n_heads >= 16.9
        assert (top - bottom) * height / n_layers >= 14.9
        boxes.append((left, right, bottom, top))
    for one, other in itertools.combinations(boxes, 2):
        apart = one[1] < other[0] or other[1] < one[0] or one[2] > other[3] or other[2] > one[3]
        assert apart
    assert layout.width <= max(1000, n_heads * 18 + 100)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="'head 3' names no head"):
        heads(Result("x", np.zeros(1), ("head",), {"head": ("head 3",)}))
    axes = ("step", "score", "head")
    cube = Result("x", np.zeros((1, 1, 1)), axes, dict.fromkeys(axes, ("L0H0",)))
    with pytest.raises(ValueError, match="at most one other"):
        heads(cube)
    with pytest.raises(ValueError, match="no head to draw"):
        heads(Result("x", np.zeros(0), ("head",), {"head": ()}))


def test_names_are_text_not_markup():
    result = Result(
        "<b>x", np.zeros(1), ("head",), {"head": ("L0H0",)}, provenance={"model": "<i>m"}
    )
    title = heads(result).layout.title.text
    assert "&lt;b&gt;x" in title
    assert "&lt;i&gt;m" in title
