"""Circuits of all sorts of models: which are refused, with what reason, and which are not."""

import numpy as np
import pytest
import torch

from interp.analysis.circuits.qk_ov import ov_circuit, qk_circuit
from interp.models import Attention, Conv, HookedAttn, HookedConvAttn, HookedSmearedAttn
from tests.analysis.bridges import N_CTX, bridged, hugging_face
from tests.models import zoo

HEADS = zoo.HEADS


# ------------------------------------------------------------------------------------------ errors


def test_heads_that_do_not_exist_are_refused_with_those_that_do():
    model = HookedConvAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8)
    with pytest.raises(ValueError, match="layer 0 is conv and has no heads"):
        qk_circuit(model, "L0H1")
    with pytest.raises(ValueError, match=r"no head L1H4.*L1H0 to L1H3"):
        ov_circuit(model, "L1H4")
    with pytest.raises(ValueError, match="no head L2H0"):
        qk_circuit(bridged(hugging_face("gpt2")), "L2H0")
    with pytest.raises(ValueError, match=r"'1\.0', but a head is written"):
        qk_circuit(bridged(hugging_face("gpt2")), "1.0")


def test_lags_without_a_convolution_are_refused():
    model = HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8)
    with pytest.raises(ValueError, match=r"keys of L0H1 read the current token alone"):
        qk_circuit(model, "L0H1", lags=(0, 1))
    with pytest.raises(ValueError, match=r"lag -1 does not exist"):
        ov_circuit(model, "L0H1", lag=-1)
    with pytest.raises(ValueError, match=r"values of L0H1"):
        ov_circuit(bridged(hugging_face("gpt2")), "L0H1", lag=1)
    deep = HookedConvAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8, lags=3)
    with pytest.raises(ValueError, match=r"lag 3 .*queries of L1H0 read lags 0 to 2"):
        qk_circuit(deep, "L1H0", lags=(3, 0))


def test_positions_that_are_not_there_are_refused_with_the_reason():
    for positions in ("none", "rotary"):
        model = zoo.from_config(zoo.config(HEADS, positions=positions))
        with pytest.raises(ValueError, match=f"no table of positions.*{positions}"):
            qk_circuit(model, "L0H1", basis="positions")
    with pytest.raises(ValueError, match="no table of positions"):
        qk_circuit(bridged(hugging_face("llama")), "L0H1", basis="positions")
    blind = Attention(n_heads=3, d_head=4, positions=False)
    model = zoo.from_config(zoo.config(HEADS, blind, positions="shortformer"))
    with pytest.raises(ValueError, match="sees no positions"):
        qk_circuit(model, "L1H1", basis="positions")


def test_tokens_that_do_not_reach_a_head_are_refused_with_the_reason():
    replaced = zoo.from_config(zoo.config(HEADS, HEADS, norm="none", residual=False))
    with pytest.raises(ValueError, match="L1H0 reads what layer 0 made"):
        qk_circuit(replaced, "L1H0", basis="vocabulary")
    with pytest.raises(ValueError, match="read by layer 1"):
        ov_circuit(replaced, "L0H0", basis="vocabulary")
    assert qk_circuit(replaced, "L1H0").shape == (12, 12)
    post = zoo.from_config(zoo.config(HEADS, norm_place="post"))
    with pytest.raises(ValueError, match="post-norm"):
        ov_circuit(post, "L0H0", basis="vocabulary")
    assert ov_circuit(post, "L0H0").shape == (12, 12)


def test_scales_that_only_tokens_can_tell_are_asked_for():
    model = zoo.from_config(zoo.config(HEADS, Conv(), HEADS))
    with pytest.raises(ValueError, match="Give tokens"):
        qk_circuit(model, "L2H0", lags=(0, 1))
    circuit = qk_circuit(model, "L2H0", lags=(0, 1), tokens=zoo.tokens())
    assert circuit.provenance["scales"] == "tokens"
    with pytest.raises(ValueError, match="leave them out"):
        qk_circuit(bridged(hugging_face("gpt2")), "L0H0", tokens=zoo.tokens())


def test_wrong_choices_are_refused(unchecked: None):
    model = HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8)
    with pytest.raises(ValueError, match="residual, vocabulary, positions"):
        qk_circuit(model, "L0H0", basis="tokens")
    with pytest.raises(ValueError, match="residual, vocabulary"):
        ov_circuit(model, "L0H0", basis="positions")
    for lags in (1, (1,), (0, 0, 0)):
        with pytest.raises(ValueError, match=r"lags is .* must be two"):
            qk_circuit(model, "L0H0", lags=lags)
    with pytest.raises(TypeError, match="integer"):
        ov_circuit(model, "L0H0", lag=0.5)
    with pytest.raises(ValueError, match="without rotary positions"):
        qk_circuit(model, "L0H0", distance=2)
    with pytest.raises(ValueError, match=f"n_ctx - 1 = {N_CTX - 1}"):
        qk_circuit(bridged(hugging_face("llama")), "L0H0", distance=N_CTX)
    with torch.no_grad():
        model.W_E[3, 0] = torch.nan
    with pytest.raises(ValueError, match="W_E"):
        qk_circuit(model, "L0H0")


# ------------------------------------------------------------------------------ all sorts of model


def test_tied_embeddings_and_sixteen_bits():
    model = HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8, tied=True).bfloat16()
    wide = HookedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8, tied=True).bfloat16().float()
    for ask in (qk_circuit, ov_circuit):
        one, other = (ask(m, "L0H1", basis="vocabulary") for m in (model, wide))
        assert one.A.dtype == torch.float32
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
    assert model.W_E.dtype == torch.bfloat16


def test_random_weights_prefer_no_token_to_another():
    # Also where there are many tokens: there random weights stand out of shuffles.
    z, against_shuffles = [], []
    for seed in range(20):
        model = HookedConvAttn(d_vocab=2_000, d_model=64, n_heads=1, n_ctx=8, seed=seed)
        for circuit in (
            qk_circuit(model, "L1H0", basis="vocabulary", lags=(0, 1)),
            qk_circuit(model, "L1H0", basis="vocabulary", lags=(1, 0)),
            ov_circuit(model, "L1H0", basis="vocabulary"),
        ):
            found = circuit.diagonal_preference()
            z.append(float(found.sel(measure="z")))
            value, shuffled = found.values[:2]
            against_shuffles.append(value / shuffled)
    assert abs(np.mean(z)) < 0.5
    assert 0.7 < np.std(z) < 1.4
    assert np.abs(z).max() < 4
    assert np.std(against_shuffles) > 2


def test_the_model_is_left_alone_and_circuits_carry_no_gradient():
    model = HookedSmearedAttn(d_vocab=30, d_model=32, n_heads=4, n_ctx=8).train()
    circuit = qk_circuit(model, "L0H1", basis="vocabulary", lags=(0, 1))
    assert model.training
    assert not circuit.A.requires_grad
    assert not circuit.B.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
