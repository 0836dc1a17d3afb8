"""What parts add to a logit, and what a model would predict after each layer, as they are drawn."""

import numpy as np
import pytest
import torch

from interp.analysis import lens_tokens, logit_attribution, logit_lens, path_attribution
from interp.models import HookedConvAttn
from interp.plots.attribution import MOST_ROWS
from interp.results.result import Result

TOKENS = torch.arange(20).reshape(2, 10)


@pytest.fixture(scope="module")
def model():
    return HookedConvAttn(d_vocab=40, d_model=32, n_heads=2, n_ctx=16, positions="none")


def bars_of(figure):
    return next(trace for trace in figure.data if trace.type == "bar")


def test_bars_end_with_their_sum(model):
    parts = logit_attribution(model, TOKENS, correct=7, per_position=False)
    figure = parts.plot()
    x = np.asarray(bars_of(figure).x)
    np.testing.assert_allclose(x, [*parts.values, parts.values.sum()])
    assert list(figure.layout.yaxis.ticktext) == [*parts.labels["part"], "sum"]
    readings = next(trace for trace in figure.data if trace.type == "scatter").text
    assert len(readings) == len(x)


def test_positions_are_columns_and_one_position_is_bars(model):
    parts = logit_attribution(model, TOKENS, correct=7, positions=[3, 5])
    (heatmap,) = parts.plot().data
    np.testing.assert_allclose(np.asarray(heatmap.z, float), parts.values)
    assert list(heatmap.x) == [3, 5]
    alone = logit_attribution(model, TOKENS, correct=7, positions=[5])
    np.testing.assert_allclose(np.asarray(bars_of(alone.plot()).x)[:-1], alone.values[:, 0])


def test_paths_are_drawn_as_parts_are(model):
    paths = path_attribution(model, TOKENS, "L1H1", per_position=False)
    np.testing.assert_allclose(np.asarray(bars_of(paths.plot()).x)[:-1], paths.values)


def test_of_very_many_parts_the_largest_are_shown_and_the_sum_is_of_all():
    n = MOST_ROWS + 10
    values = np.arange(n, dtype=float)
    many = Result("attribution", values, ("part",), labels={"part": [f"p{i}" for i in range(n)]})
    figure = many.plot()
    x = np.asarray(bars_of(figure).x)
    assert len(x) == MOST_ROWS + 1
    assert figure.layout.yaxis.ticktext[-2] == "11 others"
    assert x[-2] == values[:11].sum()
    assert x[-1] == values.sum()


def test_a_further_axis_is_refused():
    labels = {"part": ("embed", "L0"), "head": ("L0H0", "L0H1")}
    result = Result("attribution", np.zeros((2, 2)), ("part", "head"), labels=labels)
    with pytest.raises(ValueError, match=r"also has the axes.*sel\(\)"):
        result.plot()


def test_the_lens_has_a_panel_for_each_measure_and_the_layers_in_order(model):
    lens = logit_lens(model, TOKENS)
    lines = [trace for trace in lens.plot().data if trace.mode != "text" and len(trace.x) > 1]
    drawn = [np.asarray(line.y, float) for line in lines]
    for measure in lens.labels["measure"]:
        wanted = lens.sel(measure=measure).values
        assert any(y.shape == wanted.shape and np.allclose(y, wanted) for y in drawn)


def test_a_lens_by_position_needs_one_measure(model):
    lens = logit_lens(model, TOKENS, per_position=True)
    with pytest.raises(ValueError, match="choose one measure"):
        lens.plot()
    (heatmap,) = lens.sel(measure="loss").plot().data
    assert np.asarray(heatmap.z).shape == lens.sel(measure="loss").values.shape


def test_tokens_of_the_lens_stand_on_tiles_of_their_probability(model):
    tokens = lens_tokens(model, TOKENS[:1], k=2)
    tiles, words = tokens.plot().data
    np.testing.assert_allclose(np.asarray(tiles.z, float), tokens.values[..., 0])
    assert len(words.text) == tokens.values[..., 0].size
