"""Smeared keys, continued: every kind of model, and what is refused."""

import math

import numpy as np
import pytest
import torch

from interp.analysis.circuits.reads import reads
from interp.analysis.lags.smeared_keys import detect_smeared_keys
from interp.models import Attention, Conv, HookedAttn
from tests.analysis import measured, planted, readers
from tests.analysis.lags.test_smeared_keys import numbers, text
from tests.models import zoo


@pytest.mark.parametrize("name", ["three lags", "rotary, smeared", "not causal"])
def test_predictions_by_brute_force(name):
    model, tokens = readers.build(name), text(6)
    layer = model.attention_layers[0]
    attn, head = model.attn(layer), f"L{layer}H1"
    found = {c: numbers(detect_smeared_keys(model, tokens), head, c) for c in "kq"}
    read = {c: reads(model, head, c, tokens=tokens) for c in "qk"}
    _, cache = model.run_with_cache(tokens)
    start = max(one.lags for one in read.values()) - 1

    def account(one):
        x = cache[one.source]
        total = one.bias[:8].expand(len(tokens), -1, -1).clone()
        for lag, weight in enumerate(one.maps):
            total[:, lag:] += x[:, : 8 - lag] @ weight
        return attn.rotary(total[:, :, None])[:, :, 0] if attn.rotary else total

    q = cache[f"blocks.{layer}.attn.{attn.query_hook}"][:, :, 1]
    k = cache[f"blocks.{layer}.attn.{attn.key_hook}"][:, :, 1]
    for channel, guessed in (("q", account(read["q"]) @ k.mT), ("k", q @ account(read["k"]).mT)):
        whole = missed = 0.0
        for sequence in range(len(tokens)):
            for t in range(start, 8):
                keys = range(start, t + 1 if attn.causal else 8)
                score = np.array([float(q[sequence, t] @ k[sequence, s]) for s in keys])
                guess = np.array([float(guessed[sequence, t, s]) for s in keys])
                whole += ((score - score.mean()) ** 2).sum()
                missed += (((score - guess) - (score - guess).mean()) ** 2).sum()
        assert found[channel]["predicted_scores"] == pytest.approx(1 - missed / whole)


def test_without_a_norm_the_account_predicts_everything():
    model = readers.build("no norm, three lags, rotary")
    result = detect_smeared_keys(model, text())
    for channel in "kq":
        found = numbers(result, "L1H0", channel)
        assert found["predicted"] == pytest.approx(1)
        assert found["predicted_scores"] == pytest.approx(1)
    assert numbers(result, "L1H0", "v")["predicted"] == pytest.approx(1)


@pytest.mark.parametrize("with_tokens", [False, True])
def test_a_basis_of_the_head_changes_no_number(with_tokens):
    """W_K R, W_Q R⁻ᵀ, W_V S and S⁻¹ W_O compute the same scores and outputs."""
    model, tokens = readers.build("three lags"), text() if with_tokens else None
    before = detect_smeared_keys(model, tokens)
    generator = torch.Generator().manual_seed(5)
    R, S = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    attn = model.attn(1)
    with torch.no_grad():
        for change, names in ((R, ("W_K", "b_K")), (torch.linalg.inv(R).T, ("W_Q", "b_Q")),
                              (S, ("W_V", "b_V"))):  # fmt: skip
            for name in names:
                getattr(attn, name)[1] = getattr(attn, name)[1] @ change
        attn.W_O[1] = torch.linalg.inv(S) @ attn.W_O[1]
    np.testing.assert_allclose(detect_smeared_keys(model, tokens).values, before.values, rtol=1e-6)


def test_standard_errors_shrink_with_the_root_of_the_sequences():
    model = zoo.from_config(zoo.config(Conv(), Attention(2, 4)))
    few, many = (detect_smeared_keys(model, text(n)).standard_error for n in (32, 512))
    ratio = np.nanmedian((few / np.where(many > 0, many, np.nan))[..., :6])
    assert 2.5 < ratio < 6.5
    assert np.isnan(detect_smeared_keys(model).standard_error).all()


def test_the_standard_error_is_that_of_new_sequences():
    model = zoo.from_config(zoo.config(Conv(), Attention(1, 4)))
    chosen = {"channel": "k", "head": "L1H0", "measure": "alignment"}
    results = [detect_smeared_keys(model, text(32, seed=s)).sel(**chosen) for s in range(12)]
    claimed = np.mean([float(one.standard_error) for one in results])
    assert claimed == pytest.approx(np.std([float(one) for one in results], ddof=1), rel=0.5)


@pytest.mark.parametrize("name", ["conv-attn", "smeared"])
def test_the_planted_induction_head(name):
    if name == "conv-attn":
        found = numbers(detect_smeared_keys(planted.induction_conv_attn(d_vocab=20, n_ctx=30)))
        assert found["lag_share_1"] == pytest.approx(1)
        assert found["match_1"] == pytest.approx(math.sqrt(19))
        assert math.isnan(found["match_0"])
        return
    model = planted.induction_smeared_attn(d_vocab=20, n_ctx=30, alpha=-1.0)
    found = numbers(detect_smeared_keys(model), "L0H0")
    assert found["smear"] == pytest.approx(1 / (1 + math.e))
    assert found["match_0"] == pytest.approx(found["match_1"]) == pytest.approx(math.sqrt(19))


def test_rotary_says_its_distance():
    model = readers.build("rotary, smeared")
    assert detect_smeared_keys(model).provenance["distance"] == 0
    near, far = (detect_smeared_keys(model, distance=d) for d in (1, 7))
    assert far.provenance["distance"] == 7
    assert not np.allclose(
        near.sel(channel="k").values, far.sel(channel="k").values, equal_nan=True
    )
    assert "distance" not in detect_smeared_keys(readers.build("rms")).provenance


@pytest.mark.parametrize(
    "name",
    ["tied", "one channel per head", "no output map", "course", "post, rms", "lag bias",
     "attention between", "shortformer, conv", "no residual", "as many lags as tokens"],
)  # fmt: skip
def test_every_kind_of_model_is_measured(name):
    model = readers.build(name)
    result = detect_smeared_keys(model, text())
    assert result.provenance["covariances"] == "tokens"
    shares = [i for i, m in enumerate(result.labels["measure"]) if m.startswith("lag_share")]
    np.testing.assert_allclose(result.values[..., shares].sum(-1), 1)
    assert np.isfinite(result.sel(measure="predicted").values).all()


def test_sixteen_bit_weights():
    wide = readers.build("three lags", torch.bfloat16).float()
    narrow = readers.build("three lags", torch.bfloat16)
    with_tokens = detect_smeared_keys(narrow, text())
    np.testing.assert_allclose(
        detect_smeared_keys(narrow).values, detect_smeared_keys(wide).values, rtol=1e-4, atol=1e-5
    )
    shares = [m for m in with_tokens.labels["measure"] if m.startswith("lag_share")]
    np.testing.assert_allclose(
        with_tokens.sel(measure=shares).values,
        detect_smeared_keys(wide, text()).sel(measure=shares).values,
        atol=0.02,
    )


def test_frequencies_are_those_of_the_tokens():
    """Independent tokens: the embedding under their frequencies is what they show."""
    model = zoo.from_config(zoo.config(Conv(), Attention(3, 4), positions="none", norm="none"))
    frequencies = torch.rand(zoo.D_VOCAB, generator=torch.Generator().manual_seed(1)) ** 3
    generator = torch.Generator().manual_seed(2)
    drawn = torch.multinomial(frequencies, 4000 * 8, replacement=True, generator=generator)
    measured_on = detect_smeared_keys(model, drawn.reshape(4000, 8))
    implied = detect_smeared_keys(model, frequencies=frequencies)
    assert "given frequencies" in implied.provenance["covariances"]
    names = ["lag_share_0", "alignment", "smear_fit"]
    np.testing.assert_allclose(
        implied.sel(measure=names).values, measured_on.sel(measure=names).values, atol=0.03
    )
    uniform = detect_smeared_keys(model)
    assert not np.allclose(uniform.sel(measure=names).values, implied.sel(measure=names).values)


def test_refusals_come_before_any_work():
    plain = measured.never_run(HookedAttn(d_vocab=9, d_model=6, n_heads=2, n_ctx=8))
    with pytest.raises(ValueError, match="none reads an earlier token"):
        detect_smeared_keys(plain)
    with pytest.raises(ValueError, match="none lies directly above"):
        detect_smeared_keys(measured.never_run(readers.build("one lag")))
    between = measured.never_run(readers.build("attention between"))
    with pytest.raises(ValueError, match="Give tokens"):
        detect_smeared_keys(between)
    model = measured.never_run(readers.build("three lags"))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        detect_smeared_keys(model, text() + 50)
    with pytest.raises(ValueError, match="same at every distance"):
        detect_smeared_keys(model, distance=3)
    with pytest.raises(ValueError, match="must have 3 to n_ctx=8"):
        detect_smeared_keys(model, text(pos=2))
    with pytest.raises(TypeError, match="give an interp model"):
        detect_smeared_keys(torch.nn.Linear(2, 2))
