"""The weights of convolutions: as they stand, folded, measured, and from a course checkpoint."""

import numpy as np
import pytest
import torch

from interp.analysis.lags.convolutions import conv_lags, conv_singular_values, conv_weights
from interp.models import HookedAttn, HookedConvAttn
from tests.analysis import readers
from tests.models import zoo


def course_state(d_vocab=9, d_model=4, seed=0):
    """A course network whose convolution hands on the token before, and half of the current."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.randn(shape, generator=generator)
        for name, shape in {
            "embeddings.weight": (d_vocab, d_model),
            "conv.weight": (d_model, d_model, 3),
            "conv.bias": (d_model,),
            **{f"qkv.W_{m}.weight": (d_model, d_model) for m in "QKV"},
            "lm_head.weight": (d_vocab, d_model),
            "lm_head.bias": (d_vocab,),
        }.items()
    }
    state["conv.weight"][..., 0] = torch.eye(d_model)
    state["conv.weight"][..., 1] = 0.5 * torch.eye(d_model)
    return state


def test_a_course_checkpoint_shows_its_weights_as_they_are():
    state = course_state()
    state["conv.weight"][0, 2, 0] = 7.0  # [out in tap]: the tap 0 is the token before
    result = conv_weights(HookedConvAttn.from_course(state))
    assert result.axes == ("lag", "input", "output")
    assert result.values[1, 2, 0] == 7.0
    np.testing.assert_allclose(result.values[0], 0.5 * np.eye(4))
    table = conv_lags(HookedConvAttn.from_course(course_state())).sel(conv="L0")
    expected = {"norm": 1.0, "largest": 0.5, "directions": 4.0, "alignment": 1.0, "identity": 1.0}
    for measure, value in expected.items():
        assert float(table.sel(lag="lag 0", measure=measure)) == pytest.approx(value)
    assert float(table.sel(lag="lag 1", measure="norm")) == pytest.approx(2.0)


def test_gain_and_centring_are_folded_in():
    """Through the folded weights, x / s gives what the lags add but for the constants."""
    model = readers.build("three lags")
    _, cache = model.run_with_cache(zoo.tokens())
    x = cache["blocks.0.hook_resid_pre"] / cache["blocks.0.ln1.hook_scale"]
    offset = model.blocks[0].ln1.b @ model.conv(0).W[0]
    written = x @ torch.tensor(conv_weights(model).values[0]) + offset
    torch.testing.assert_close(written, cache["blocks.0.conv.hook_lags"][:, 0])


def test_a_depthwise_convolution_is_a_number_per_channel():
    model = readers.build("depthwise, rms, lag bias")
    result = conv_weights(model)
    assert result.axes == ("lag", "channel")
    expected = model.conv(0).W_conv * model.blocks[0].ln1.w
    np.testing.assert_allclose(result.values, expected.detach().numpy())


def test_measures_and_singular_values_agree():
    model = readers.build("three lags")
    weights, spectra = conv_weights(model).values, conv_singular_values(model).values
    table = conv_lags(model).sel(conv="L0")
    for lag in range(3):
        cells = table.sel(lag=f"lag {lag}")
        assert float(cells.sel(measure="largest")) == pytest.approx(spectra[lag, 0])
        assert float(cells.sel(measure="norm")) == pytest.approx(np.linalg.norm(weights[lag]))
        squares = spectra[lag] ** 2
        assert float(cells.sel(measure="directions")) == pytest.approx(
            squares.sum() ** 2 / (squares**2).sum()
        )
        cosine = (weights[lag] * weights[0]).sum() / np.linalg.norm(weights[lag])
        cosine /= np.linalg.norm(weights[0])
        assert float(cells.sel(measure="alignment")) == pytest.approx(cosine)
        assert (np.diff(spectra[lag]) <= 0).all()


def test_several_convolutions():
    model = readers.build("two convolutions")
    table = conv_lags(model)
    assert table.labels["conv"] == ("L0", "L1")
    assert np.isnan(table.sel(conv="L1", lag="lag 2").values).all()  # it has two lags
    np.testing.assert_allclose(conv_weights(model, 1).values.shape, (2, 12, 12))
    for ask in (conv_weights, conv_singular_values):
        with pytest.raises(ValueError, match="convolutions in layers"):
            ask(model)
        with pytest.raises(ValueError, match="layer 2 has no convolution"):
            ask(model, 2)


def test_random_weights_point_nowhere():
    """The cosine of two random matrices has a deviation of 1 / d_model."""
    cosines = []
    for seed in range(20):
        model = HookedConvAttn(d_vocab=9, d_model=16, n_heads=2, n_ctx=4, seed=seed)
        cells = conv_lags(model).sel(conv="L0", lag="lag 1")
        cosines.append(cells.sel(measure=["alignment", "identity"]).values * 16)
    assert np.abs(cosines).max() < 4
    assert 0.6 < np.std(cosines) < 1.4


def test_a_model_without_convolution_is_refused():
    plain = HookedAttn(d_vocab=9, d_model=6, n_heads=2, n_ctx=8)
    for ask in (conv_weights, conv_lags, conv_singular_values):
        with pytest.raises(ValueError, match="HookedAttn has no convolution"):
            ask(plain)
