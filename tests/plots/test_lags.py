"""Grids of lag pairs, tables of smearing, pictures of weights: every number where it belongs."""

import numpy as np
import pytest

from interp.plots import figure, pictures, style
from interp.plots.lags import pairs, smears
from interp.plots.tiles import written
from interp.results.result import Result

LAGS = ("lag 0", "lag 1")
HEADS = ("L1H0", "L1H1", "L1H2")


def shown(drawn):
    """The coloured heatmaps of a figure, without the grey tiles below them."""
    return [trace for trace in drawn.data if trace.type == "heatmap" and trace.coloraxis]


def table(**changes):
    axes = ("head", "query_lag", "key_lag", "measure")
    labels = {"head": HEADS, "query_lag": LAGS, "key_lag": LAGS, "measure": ("match", "rotated")}
    values = np.arange(24.0).reshape(3, 2, 2, 2)
    return Result("match_table", values, axes, labels, **changes)


def test_a_grid_per_head_with_queries_down_and_keys_across():
    drawn = figure(table())
    panels = shown(drawn)
    assert len(panels) == 3
    np.testing.assert_array_equal(panels[1].z, [[8, 10], [12, 14]])
    assert "<b>L1H1</b> query lag 0, key lag 1" in panels[1].text[0][1]
    assert "match 10.000" in panels[1].text[0][1]
    assert "rotated 11.000" in panels[1].text[0][1]
    low, high = drawn.layout.yaxis.range
    assert low > high  # lag 0 at the top
    assert {a.text for a in drawn.layout.annotations} >= {f"<b>{head}</b>" for head in HEADS}


def test_one_head_and_no_measure():
    one = table().sel(head="L1H2", measure="match")
    np.testing.assert_array_equal(shown(pairs(one))[0].z, [[16, 18], [20, 22]])
    with pytest.raises(ValueError, match="choose the rest with sel"):
        pairs(Result("x", np.zeros((1, 1, 1)), ("step", "query_lag", "key_lag"),
                     {"step": (1,), "query_lag": ("a",), "key_lag": ("b",)}))  # fmt: skip


def smeared(**changes):
    axes = ("channel", "head", "measure")
    measures = ("lag_share_0", "alignment", "match_0", "smeared_scores")
    labels = {"channel": ("k", "q"), "head": HEADS, "measure": measures}
    values = np.linspace(-1, 1, 24).reshape(2, 3, 4)
    values[..., 2] *= 20
    values[1, :, 3] = np.nan  # queries have no such measure
    values[1, :, 1] = np.nan
    why = {"undefined": {f"q {head} alignment": "lag 1 is not read" for head in HEADS}}
    return Result("smeared_keys", values, axes, labels, provenance=why, **changes)


def test_a_table_per_channel_without_the_measures_that_it_lacks():
    drawn = figure(smeared())
    keys, queries = shown(drawn)
    assert keys.z.shape == (3, 4)
    assert queries.z.shape == (3, 3)
    grey = next(trace for trace in drawn.data if trace.type == "heatmap" and not trace.coloraxis)
    assert "lag 1 is not read" in grey.text[0][1]
    texts = [trace.text for trace in drawn.data if trace.type == "scatter"]
    assert texts[0][2] == written(smeared().values[0, 0, 2])
    assert texts[1][1] == "–"
    # z-values are coloured up to their largest, cosines as they are.
    assert np.abs(keys.z[:, 2]).max() == 1
    np.testing.assert_allclose(keys.z[:, 1], smeared().values[0, :, 1])
    with pytest.raises(ValueError, match="keep them with sel"):
        smears(smeared().sel(channel="k"))


def test_the_ink_stands_out():
    drawn = figure(smeared())
    inks = next(trace for trace in drawn.data if trace.type == "scatter").textfont.color
    assert inks[2] == "white"  # -1 times 20, the darkest blue
    assert style.INK in inks


def split_scores(n_words=5):
    axes = ("query_lag", "key_lag", "query", "key")
    terms = (*LAGS, "blocks.0.conv.b_conv", "blocks.1.attn.b_Q")
    positions = tuple(range(n_words))
    labels = {"query_lag": terms, "key_lag": LAGS, "query": positions, "key": positions}
    values = np.random.default_rng(0).normal(size=(4, 2, n_words, n_words))
    words = [f"<w{i}>" for i in positions]
    return Result("lag_scores", values, axes, labels,
                  provenance={"words": words, "head": "L1H0"})  # fmt: skip


def test_scores_split_over_pairs_with_constants_together():
    result = split_scores()
    drawn = figure(result)
    panels = shown(drawn)
    assert len(panels) == 6
    np.testing.assert_allclose(panels[1].z, result.values[0, 1], atol=1e-6)
    np.testing.assert_allclose(panels[4].z, result.values[2:, 0].sum(0), atol=1e-6)
    assert "lag scores of L1H0" in drawn.layout.title.text
    assert "&lt;w2&gt;" in panels[0].text[2][0]
    assert drawn.layout.coloraxis.cmin == -drawn.layout.coloraxis.cmax


def test_outputs_show_the_length_of_each_part():
    values = np.zeros((3, 4, 5))
    values[1, 2] = (3, 4, 0, 0, 0)
    labels = {"value_lag": (*LAGS, "b"), "query": (0, 1, 2, 3), "d_model": (0, 1, 2, 3, 4)}
    drawn = figure(Result("lag_outputs", values, ("value_lag", "query", "d_model"), labels))
    np.testing.assert_array_equal(shown(drawn)[0].z, [[0] * 4, [0, 0, 5, 0], [0] * 4])
    assert drawn.layout.coloraxis.cmin == 0


def weights(size, axes=("lag", "input", "output")):
    values = np.random.default_rng(1).normal(size=(2, size, size)[: len(axes)])
    labels = {axis: tuple(range(n)) for axis, n in zip(axes, values.shape, strict=True)}
    return Result("conv_weights", values, axes, labels)


def test_wide_matrices_show_the_largest_entry_of_each_block_with_its_sign():
    result = weights(300)
    first, second = shown(figure(result))
    assert first.z.shape == (100, 100)
    for matrix, drawn in zip(result.values, (first, second), strict=True):
        block = matrix[3:6, 6:9]
        assert drawn.z[1, 2] == pytest.approx(block.ravel()[np.abs(block).argmax()], abs=1e-6)
    assert "input 3 to 5, output 6 to 8" in first.text[1][2]
    small = shown(figure(weights(20)))[0]
    np.testing.assert_allclose(small.z, weights(20).values[0], atol=1e-6)


def test_depthwise_weights_are_one_picture():
    (panel,) = shown(figure(weights(30, ("lag", "channel"))))
    assert panel.z.shape == (2, 30)
    with pytest.raises(ValueError, match="keep them with sel"):
        pictures.weights(weights(4).sel(lag=0))


def test_convolutions_and_spectra():
    measures = ("norm", "alignment")
    labels = {"conv": ("L0", "L2"), "lag": LAGS, "measure": measures}
    values = np.array([[[30.0, 1.0], [20.0, 0.1]], [[3.0, 1.0], [np.nan, np.nan]]])
    drawn = figure(Result("conv_lags", values, ("conv", "lag", "measure"), labels))
    assert len(shown(drawn)) == 2
    assert not drawn.layout.coloraxis.showscale
    ranks = {"lag": LAGS, "rank": (1, 2, 3)}
    lines = figure(Result("conv_singular_values", np.ones((2, 3)), ("lag", "rank"), ranks))
    assert [line.name for line in lines.data] == list(LAGS)


@pytest.mark.parametrize("n_heads", [1, 3, 16, 40])
def test_panels_do_not_overlap(n_heads):
    heads = tuple(f"L0H{i}" for i in range(n_heads))
    labels = {"head": heads, "query_lag": LAGS, "key_lag": LAGS}
    values = np.random.default_rng(2).random((n_heads, 2, 2))
    drawn = figure(Result("x", values, ("head", "query_lag", "key_lag"), labels))
    boxes = []
    for i in range(n_heads):
        suffix = str(i + 1) if i else ""
        boxes.append(
            (*drawn.layout[f"xaxis{suffix}"].domain, *drawn.layout[f"yaxis{suffix}"].domain)
        )
    assert all(0 <= a < b <= 1 and 0 <= c < d <= 1 for a, b, c, d in boxes)
    for i, (a, b, c, d) in enumerate(boxes):
        for e, f, g, h in boxes[:i]:
            assert b <= e or f <= a or d <= g or h <= c
    assert drawn.layout.width <= 1000
