"""Copying scores: planted heads, the whole circuit's eigenvalues, brute force, random weights."""

import numpy as np
import pytest
import torch

from interp.analysis.heads.copying import copying_score
from interp.models import Attention, Conv, HookedAttn, HookedConvAttn
from tests.analysis import planted
from tests.analysis.bridges import bridged, hugging_face
from tests.models import zoo

HEADS = zoo.HEADS


def test_the_planted_head_copies_at_lag_0_and_the_others_nothing():
    model = planted.induction_conv_attn(d_vocab=30, n_ctx=12, head=1, n_heads=2)
    scores = copying_score(model)
    assert scores.axes == ("value_lag", "head")
    assert float(scores.sel(value_lag="lag 0", head="L1H1")) == pytest.approx(1)
    assert np.isnan(scores.sel(value_lag="lag 1").values).all()
    assert np.isnan(float(scores.sel(value_lag="lag 0", head="L1H0")))
    # With every other token's logit equal, all of the raise falls on the token itself.
    scores = copying_score(model, "olsson", n=10)
    assert float(scores.sel(value_lag="lag 0", head="L1H1")) == pytest.approx(1)
    # What raises nothing has share 0, which makes a score of -1.
    assert scores.sel(value_lag="lag 1").values.tolist() == [-1, -1]


def test_a_head_that_lowers_what_it_sees_scores_minus_1_and_one_that_shifts_0():
    model = planted.induction_conv_attn(d_vocab=30, n_ctx=12, head=0, n_heads=3)
    spaces, identity = planted.Subspaces(30), torch.eye(30).double()
    with torch.no_grad():
        for head, written in ((1, -identity), (2, identity.roll(1, dims=1))):
            model.attn(1).W_V[head, spaces.token] = identity
            model.attn(1).W_O[head, :, spaces.output] = written
    lag_0 = copying_score(model).sel(value_lag="lag 0").values
    # A shift's eigenvalues are the roots of unity: as many ways as there are.
    np.testing.assert_allclose(lag_0, [1, -1, 0], atol=1e-12)
    # Lowering one raises the n - 1 others alike: none of the share is the token's own. A shift
    # raises a token of the sample only if both are drawn, and then not itself.
    olsson = copying_score(model, "olsson", n=10).sel(value_lag="lag 0").values
    np.testing.assert_allclose(olsson, [1, -1, -1], atol=1e-12)


def test_a_head_that_copies_the_token_before_scores_at_lag_1():
    model = planted.induction_conv_attn(d_vocab=30, n_ctx=12, head=0, n_heads=1)
    spaces = planted.Subspaces(30)
    with torch.no_grad():
        model.attn(1).W_V.zero_()
        model.attn(1).W_V[0, spaces.previous] = torch.eye(30).double()
    for variant in ("eigenvalue", "olsson"):
        scores = copying_score(model, variant, n=10)
        assert float(scores.sel(value_lag="lag 1", head="L1H0")) == pytest.approx(1)


# ------------------------------------------------------------------------------------ brute force


def whole_circuits(model):
    """W_E W_OV W_U of every head of a plain model, in float64, gains and centring folded."""
    folded = model.fold_norms()
    centre = torch.eye(model.config.d_model).double()
    if model.config.norm == "layer":
        centre = centre - 1 / model.config.d_model
    for layer in model.attention_layers:
        attn = folded.attn(layer)
        for W_V, W_O in zip(attn.W_V, attn.W_O, strict=True):
            yield (model.W_E @ centre @ W_V @ W_O @ centre @ folded.W_U).detach().numpy()


@pytest.mark.parametrize("kind", ["rms", "no norm", "wide heads", "tied, rms", "layer"])
def test_the_eigenvalues_are_those_of_the_whole_circuit(kind):
    made = {
        "rms": zoo.config(HEADS, HEADS, norm="rms"),
        "no norm": zoo.config(HEADS, HEADS, norm="none"),
        "wide heads": zoo.config(Attention(n_heads=2, d_head=16)),
        "tied, rms": zoo.config(HEADS, tied=True, norm="rms"),
        "layer": zoo.config(HEADS, HEADS),
    }
    model = zoo.from_config(made[kind])
    expected = []
    for circuit in whole_circuits(model):
        eigenvalues = np.linalg.eigvals(circuit)
        expected.append((eigenvalues.sum() / np.abs(eigenvalues).sum()).real)
    scores = copying_score(model)
    np.testing.assert_allclose(scores.values[0], expected, atol=1e-6)
    assert np.std(expected) > 0.05


def test_the_olsson_variant_is_that_of_the_whole_circuit_token_by_token():
    model = zoo.from_config(zoo.config(HEADS, HEADS))
    scores = copying_score(model, "olsson", n=7, n_samples=3, seed=4)
    generator = torch.Generator().manual_seed(4)
    drawn = [torch.randperm(23, generator=generator)[:7].tolist() for _ in range(3)]
    for head, circuit in enumerate(whole_circuits(model)):
        samples = []
        for tokens in drawn:
            shares = []
            for u, token in enumerate(tokens):
                logits = circuit[token, tokens]
                raised = np.maximum(logits - logits.mean(), 0)
                shares.append(raised[u] / raised.sum())
            samples.append(2 * np.mean(shares) - 1)
        assert scores.values[0, head] == pytest.approx(np.mean(samples), abs=1e-9)
        error = np.std(samples, ddof=1) / 3**0.5
        assert scores.standard_error[0, head] == pytest.approx(error, abs=1e-9)


def test_transformer_lenss_eigenvalues_of_a_bridge_give_the_same_score():
    raw, folded = (bridged(hugging_face("llama")) for _ in range(2))
    folded.enable_compatibility_mode(disable_warnings=True, center_unembed=False)
    scores = copying_score(raw)
    for layer, head in ((0, 1), (1, 3)):
        full = folded.W_E @ folded.OV[layer, head] @ folded.W_U
        eigenvalues = full.eigenvalues.detach()
        expected = float((eigenvalues.sum() / eigenvalues.abs().sum()).real)
        assert float(scores.sel(head=f"L{layer}H{head}")) == pytest.approx(expected, abs=1e-4)


def test_layers_with_other_lags_stand_beside_each_other():
    model = zoo.from_config(zoo.config(HEADS, Conv(lags=3), Attention(n_heads=2, d_head=4)))
    with pytest.raises(ValueError, match="Give tokens"):
        copying_score(model)
    scores = copying_score(model, tokens=zoo.tokens())
    assert scores.labels["value_lag"] == ("lag 0", "lag 1", "lag 2")
    assert scores.labels["head"] == ("L0H0", "L0H1", "L0H2", "L2H0", "L2H1")
    assert np.isnan(scores.values[1:, :3]).all()
    assert np.isfinite(scores.values[:, 3:]).all()
    assert scores.plot().layout.title.text


# ---------------------------------------------------------------------------------- random weights


def test_random_weights_copy_no_more_than_chance():
    eigenvalue, olsson = [], []
    for seed in range(20):
        model = HookedConvAttn(d_vocab=60, d_model=64, n_heads=2, n_ctx=8, seed=seed)
        eigenvalue.append(copying_score(model).values)
        scores = copying_score(model, "olsson", n=25)
        olsson.append(scores.values - scores.chance)
    assert scores.chance[0, 0] == pytest.approx(2 / 25 - 1)
    for sample in (eigenvalue, olsson):
        sample = np.stack(sample)
        assert abs(sample.mean()) < 3 * sample.std() / sample[..., 0].size ** 0.5
    assert np.std(eigenvalue) < 0.3
    assert np.std(olsson) < 0.1


# ------------------------------------------------------------------------------------------ errors


def test_what_cannot_be_scored_is_refused(unchecked: None):
    model = HookedAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8)
    with pytest.raises(ValueError, match="eigenvalue, olsson"):
        copying_score(model, "ratio")
    for n, n_samples in ((1, 1), (21, 1), (20, 0)):
        with pytest.raises(ValueError, match=rf"n={n} .*2 to 20 distinct"):
            copying_score(model, "olsson", n=n, n_samples=n_samples)
    for n in (2, 20):
        least = copying_score(model, "olsson", n=n, n_samples=1)
        np.testing.assert_allclose(least.chance, 2 / n - 1)
    with pytest.raises(ValueError, match="no heads"):
        copying_score(zoo.from_config(zoo.config(Conv())))
    with pytest.raises(ValueError, match="no residual stream"):
        copying_score(zoo.from_config(zoo.config(HEADS, HEADS, norm="none", residual=False)))
    with pytest.raises(ValueError, match="post-norm"):
        copying_score(zoo.from_config(zoo.config(HEADS, norm_place="post")))
    with torch.no_grad():
        model.unembed.W_U[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"unembed\.W_U"):
        copying_score(model)


def test_the_course_network_is_scored_through_its_convolution():
    model = zoo.build("course")
    scores = copying_score(model)
    assert scores.labels["value_lag"] == ("lag 0", "lag 1")
    V, W_U = model.attn(1).W_V.detach()[0], model.unembed.W_U.detach()  # one head, no output map
    for lag, W in enumerate(model.conv(0).W.detach()):
        eigenvalues = torch.linalg.eigvals(model.W_E.detach() @ W @ V @ W_U)
        expected = (eigenvalues.sum().real / eigenvalues.abs().sum()).item()
        found = float(scores.sel(value_lag=f"lag {lag}", head="L1H0"))
        assert found == pytest.approx(expected, abs=1e-9)


def test_draws_are_those_of_the_seed_and_disturb_nothing():
    model = HookedAttn(d_vocab=60, d_model=32, n_heads=4, n_ctx=8).bfloat16()
    before = torch.get_rng_state()
    one, same, other = (copying_score(model, "olsson", seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert torch.equal(before, torch.get_rng_state())
    assert np.isfinite(copying_score(model).values).all()
