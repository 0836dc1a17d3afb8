"""Circuits: planted ones, TransformerLens's FactoredMatrix, and brute force."""

import numpy as np
import pytest
import torch
from transformer_lens import FactoredMatrix

from interp.analysis.circuits.factored import Circuit
from interp.analysis.circuits.qk_ov import ov_circuit, qk_circuit
from interp.analysis.lags.lag_circuits import lag_circuits
from tests.analysis import planted
from tests.analysis.bridges import bridged, hugging_face, probe
from tests.models import zoo

HEADS = zoo.HEADS


def product(circuit: Circuit) -> np.ndarray:
    return (circuit.A.double() @ circuit.B.double()).numpy()


# --------------------------------------------------------------------------------------- planted


def test_the_planted_induction_head_matches_tokens_at_lag_0_and_1_alone():
    # L1H1 reads `token` for queries and `previous`, which lag 1 wrote, for keys: at (0, 1) a token
    # matches itself with the gain over the attention's scale, √d_head, and nothing else.
    d_vocab, gain = 9, 20.0
    model = planted.induction_conv_attn(d_vocab=d_vocab, n_ctx=12, head=1, gain=gain)
    circuit = qk_circuit(model, "L1H1", basis="vocabulary", lags=(0, 1))
    expected = gain * d_vocab**0.5 * np.eye(d_vocab)
    np.testing.assert_allclose(product(circuit), expected, atol=1e-12)
    for lags in ((0, 0), (1, 0), (1, 1)):
        other = qk_circuit(model, "L1H1", basis="vocabulary", lags=lags)
        np.testing.assert_allclose(product(other), 0, atol=1e-12)
    # One standing out of d_vocab: (1 - 1/V) / sqrt((1 - 1/V) / V) = sqrt(V - 1) row deviations.
    preference = circuit.diagonal_preference()
    assert float(preference.sel(measure="diagonal_preference")) == pytest.approx(8**0.5)
    assert float(preference.sel(measure="z")) > 5


def test_what_the_planted_head_writes_copies_at_value_lag_0_alone():
    model = planted.induction_conv_attn(d_vocab=9, n_ctx=12, head=1, logit_gain=10.0)
    copies = ov_circuit(model, "L1H1", basis="vocabulary")
    np.testing.assert_allclose(product(copies), 10 * np.eye(9), atol=1e-12)
    np.testing.assert_allclose(product(ov_circuit(model, "L1H1", basis="vocabulary", lag=1)), 0)
    assert copies.top_pairs(9)["source_id"].tolist() == copies.top_pairs(9)["predicted_id"].tolist()


def test_smeared_keys_are_two_lags():
    model = planted.induction_smeared_attn(d_vocab=9, n_ctx=12, alpha=0.4)
    share = float(torch.tensor(0.4).double().sigmoid())
    for lag, part in enumerate((share, 1 - share)):
        circuit = qk_circuit(model, "L0H0", basis="vocabulary", lags=(0, lag))
        np.testing.assert_allclose(product(circuit), part * 20 * 3 * np.eye(9), atol=1e-12)
    with pytest.raises(ValueError, match=r"queries of L0H0 read the current token alone"):
        qk_circuit(model, "L0H0", lags=(1, 0))


def test_the_planted_previous_token_head_matches_a_position_with_the_one_before():
    model = planted.known_heads(d_vocab=9, n_ctx=12)
    circuit = qk_circuit(model, "L0H0", basis="positions")
    gain = 20.0 * (9 + 12) ** 0.5
    np.testing.assert_allclose(product(circuit), gain * np.eye(12, k=-1), atol=1e-12)
    pairs = circuit.top_pairs(11)
    assert (pairs["query_id"] - pairs["key_id"]).tolist() == [1] * 11
    assert circuit.subset([3, 4]).values.tolist() == [[0, 0], [pytest.approx(gain), 0]]


# -------------------------------------------------------------------------------- TransformerLens


def test_without_norms_the_circuits_are_transformer_lenss_factored_matrices():
    model = zoo.from_config(zoo.config(HEADS, HEADS, norm="none"))
    for layer, head in ((0, 2), (1, 0)):
        name = f"L{layer}H{head}"
        QK, OV = model.QK[layer, head], model.OV[layer, head]
        for mine, theirs in (
            (qk_circuit(model, name), QK),
            (qk_circuit(model, name, basis="vocabulary"), model.W_E @ QK @ model.W_E.T),
            (qk_circuit(model, name, basis="positions"), model.W_pos @ QK @ model.W_pos.T),
            (ov_circuit(model, name), OV),
            (ov_circuit(model, name, basis="vocabulary"), model.W_E @ OV @ model.W_U),
        ):
            assert isinstance(mine, FactoredMatrix)
            torch.testing.assert_close(mine.AB, theirs.AB.detach())
            torch.testing.assert_close(mine.S, theirs.S.detach(), atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
def test_of_a_bridge_they_are_those_of_the_bridge_once_it_has_folded_its_norms(kind):
    raw, folded = (bridged(hugging_face(kind)) for _ in range(2))
    folded.enable_compatibility_mode(disable_warnings=True, center_unembed=False)
    QK, OV = folded.QK[1, 3], folded.OV[1, 3]
    bases = {
        qk_circuit(raw, "L1H3", basis="vocabulary"): folded.W_E @ QK @ folded.W_E.T,
        ov_circuit(raw, "L1H3", basis="vocabulary"): folded.W_E @ OV @ folded.W_U,
        qk_circuit(raw, "L1H3"): QK,
        ov_circuit(raw, "L1H3"): OV,
    }
    for mine, theirs in bases.items():
        torch.testing.assert_close(mine.AB, theirs.AB.detach(), atol=1e-5, rtol=1e-4)
    if kind == "gpt2":
        positions = folded.W_pos @ QK @ folded.W_pos.T
        mine = qk_circuit(raw, "L1H3", basis="positions")
        torch.testing.assert_close(mine.AB, positions.AB.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "neox"])
@torch.no_grad()
def test_at_a_distance_a_rotary_circuit_gives_the_bridges_own_scores(kind):
    # The first layer reads the normalised embedding: x_t QK(t - s) x_sᵀ / √d_head plus biases,
    # which are zeroed, is Hugging Face's own score.
    hf = hugging_face(kind)
    for name, parameter in hf.named_parameters():
        if "bias" in name:
            parameter.zero_()
    model, tokens = bridged(hf), probe(6)[:1]
    _, cache = model.run_with_cache(tokens)
    x, scale = model.W_E[tokens[0]].double(), cache["blocks.0.ln1.hook_scale"][0].double()
    for t, s in ((5, 5), (9, 2), (12, 11)):
        circuit = qk_circuit(model, "L0H1", distance=t - s)
        score = x[t] @ circuit.AB.double() @ x[s] / scale[t] / scale[s] / 8**0.5
        expected = cache["blocks.0.attn.hook_attn_scores"][0, 1, t, s]
        assert float(score) == pytest.approx(float(expected), abs=1e-4)
    assert circuit.provenance["distance"] == 1


# ------------------------------------------------------------------------------------ brute force


@pytest.mark.parametrize(
    "kind", ["three lags", "deep", "rotary, smeared", "shortformer, conv", "rms", "course"]
)
def test_lagged_circuits_are_those_that_add_up_to_the_scores(kind):
    # `lag_circuits` is held to the model's own scores; its circuits include 1 / √d_head.
    model = zoo.build(kind)
    layer = model.attention_layers[0]
    distance = 3 if model.config.positions == "rotary" else 0
    theirs = lag_circuits(model, f"L{layer}H0", distance=distance)
    scale, W_E = model.attn(layer).scale, model.W_E
    for (i, j), pair in theirs.qk.items():
        options = {"lags": (i, j), "distance": distance}
        mine = qk_circuit(model, f"L{layer}H0", **options)
        torch.testing.assert_close(mine.AB * scale, pair.AB)
        through = qk_circuit(model, f"L{layer}H0", basis="vocabulary", **options)
        torch.testing.assert_close(through.AB * scale, W_E @ pair.AB @ W_E.T)
    for lag, pair in theirs.ov.items():
        torch.testing.assert_close(ov_circuit(model, f"L{layer}H0", lag=lag).A, pair.A)


def test_gains_and_centring_are_folded_and_scales_are_mean_scales():
    model = zoo.from_config(zoo.config(HEADS))
    folded = model.fold_norms()
    centre = torch.eye(12).double() - 1 / 12
    rows = (model.W_E[:, None] + model.W_pos).flatten(0, 1)
    scale = (rows - rows.mean(-1, keepdim=True)).square().mean() + model.config.norm_eps
    for head in range(3):
        by_hand = centre @ folded.W_Q[0, head] @ folded.W_K[0, head].T @ centre / scale
        torch.testing.assert_close(qk_circuit(model, f"L0H{head}").AB, by_hand.detach())
        OV = centre @ folded.W_V[0, head] @ folded.W_O[0, head] @ centre / scale.sqrt()
        by_hand = model.W_E @ OV @ folded.W_U
        circuit = ov_circuit(model, f"L0H{head}", basis="vocabulary")
        torch.testing.assert_close(circuit.AB, by_hand.detach())
    assert circuit.provenance["scales"] == "embedding under uniform frequencies"
    left_out = circuit.provenance["left_out"]
    assert {"blocks.0.ln1.b", "blocks.0.attn.b_V", "blocks.0.attn.b_O", "unembed.b_U"} <= {
        *left_out
    }


def test_shortformer_positions_meet_queries_and_keys_behind_norm_and_convolution():
    model = zoo.build("shortformer, conv")
    circuit = qk_circuit(model, "L1H2", basis="positions")
    attn = model.attn(1)
    by_hand = model.W_pos @ attn.W_Q[2] @ attn.W_K[2].T @ model.W_pos.T
    torch.testing.assert_close(circuit.AB, by_hand.detach())
    assert "pos_embed.W_pos" not in circuit.provenance["left_out"]
    assert "pos_embed.W_pos" in qk_circuit(model, "L1H2").provenance["left_out"]
