"""Positional circuits: planted heads, the scores of a model that cannot tell tokens apart."""

import numpy as np
import pytest
import torch

from interp.analysis.circuits.positional import positional_circuit
from interp.models import Attention, Conv, HookedAttn, HookedSequenceModel
from tests.analysis import planted
from tests.analysis.bridges import bridged, hugging_face
from tests.models import zoo

HEADS = zoo.HEADS


def test_the_planted_previous_token_head_scores_at_distance_1_alone():
    # A key scores 20 where it is one before, else 0: less each query's mean over its t + 1 keys,
    # 20 / (t + 1) for t > 0.
    n = 12
    model = planted.known_heads(d_vocab=9, n_ctx=n)
    found = positional_circuit(model, "L0H0")
    mean = np.array([0, *(20 / (t + 1) for t in range(1, n))])
    by_distance = [20 * (d == 1) - mean[d:].mean() for d in range(n)]
    np.testing.assert_allclose(found.sel(term="positions").values, by_distance, atol=1e-9)
    np.testing.assert_allclose(found.sel(term="tokens").values, 0, atol=1e-9)
    assert found.provenance["share"] == pytest.approx(1)


def test_the_planted_duplicate_token_head_owes_nothing_to_positions():
    model = planted.known_heads(d_vocab=9, n_ctx=12)
    found = positional_circuit(model, "L0H1")
    np.testing.assert_allclose(found.sel(term="positions").values, 0, atol=1e-9)
    # A score of 20 where both tokens are the same one of 9, drawn independently: with p = 1/9 a
    # deviation of 20 sqrt(p (1 - p)).
    np.testing.assert_allclose(found.sel(term="tokens").values, 20 * (8 / 81) ** 0.5)
    assert found.provenance["share"] == pytest.approx(0)


# ------------------------------------------------------------------------------------ brute force


def alike(model):
    """The model whose tokens are all the average token: its scores come from positions alone."""
    other = HookedSequenceModel(model.config).to(model.W_E.dtype)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.embed.W_E.copy_(model.W_E.mean(0).expand_as(model.W_E))
    return other.eval()


KINDS = {
    "learned": zoo.config(HEADS, norm="none"),
    "sinusoidal, through a convolution": zoo.config(
        Conv(lags=3), HEADS, norm="none", positions="sinusoidal"
    ),
    "shortformer": zoo.config(Conv(), zoo.SMEARED, norm="none", positions="shortformer"),
    "rotary": zoo.config(HEADS, norm="none", positions="rotary", rotary_base=50.0),
    "rotary, smeared": zoo.config(Conv(), zoo.SMEARED, norm="none", positions="rotary"),
    "sees its future": zoo.config(Attention(n_heads=3, d_head=4, causal=False), norm="none"),
    "no residual": zoo.config(Conv(), HEADS, norm="none", residual=False),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_positions_alone_give_the_scores_of_a_model_that_cannot_tell_tokens_apart(kind):
    model = zoo.from_config(KINDS[kind])
    layer, n = model.attention_layers[0], model.config.n_ctx
    _, cache = alike(model).run_with_cache(zoo.tokens(1))
    scores = cache["attn_scores", layer][0, 2].numpy()
    scores = np.where(np.isfinite(scores), scores, np.nan)
    scores -= np.nanmean(scores, axis=1, keepdims=True)
    found = positional_circuit(model, f"L{layer}H2")
    expected = [np.diag(scores, -distance).mean() for distance in found.labels["distance"]]
    np.testing.assert_allclose(found.sel(term="positions").values, expected, atol=1e-9)
    first = 0 if model.attn(layer).causal else 1 - n
    assert found.labels["distance"] == tuple(range(first, n))


@torch.no_grad()
def queries_and_keys(model, tokens):
    """Those of one head as they meet: keys smeared, both turned."""
    layer = model.attention_layers[0]
    attn = model.attn(layer)
    _, cache = model.run_with_cache(tokens)
    q, k = cache["q", layer], cache["k", layer]
    if attn.smear is not None:
        share = attn.smear.sigmoid()[:, None]
        k = torch.cat([k[:, :1], share * k[:, 1:] + (1 - share) * k[:, :-1]], dim=1)
    q, k = (x if attn.rotary is None else attn.rotary(x) for x in (q, k))
    return q[:, :, 1], k[:, :, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_add_the_deviation_of_scores_over_random_tokens(kind):
    # Queries and keys of separate draws, so that they never read the same token; the mean that is
    # taken off is over the keys of average tokens.
    model = zoo.from_config(KINDS[kind])
    attn = model.attn(model.attention_layers[0])
    n, draws = model.config.n_ctx, 20_000
    q, _ = queries_and_keys(model, zoo.tokens(draws, seed=3))
    _, k = queries_and_keys(model, zoo.tokens(draws, seed=4))
    _, average = queries_and_keys(alike(model), zoo.tokens(1))
    sees = np.tri(n, dtype=bool) if attn.causal else np.ones((n, n), dtype=bool)
    rest = (q @ average[0].T).numpy()
    rest = np.where(sees, rest, np.nan)
    scores = (q @ k.mT).numpy() - np.nanmean(rest, axis=-1, keepdims=True)
    variance = scores.var(axis=0) * attn.scale**2
    found = positional_circuit(model, f"L{model.attention_layers[0]}H1")
    for distance, deviation in zip(
        found.labels["distance"], found.sel(term="tokens").values, strict=True
    ):
        expected = np.diag(variance, -distance).mean() ** 0.5
        assert deviation == pytest.approx(expected, rel=0.03), distance


def test_what_tokens_change_for_all_keys_alike_counts_for_nothing():
    # A bias of keys meets every query's token, and the softmax cancels it.
    model = zoo.from_config(KINDS["learned"])
    before = positional_circuit(model, "L0H1")
    with torch.no_grad():
        model.attn(0).b_K[1] += 50
    np.testing.assert_allclose(positional_circuit(model, "L0H1").values, before.values, atol=1e-9)


def test_norms_stand_at_their_mean_scale():
    model = zoo.from_config(zoo.config(HEADS))
    found = positional_circuit(model, "L0H1")
    folded = model.fold_norms()
    centre = torch.eye(12).double() - 1 / 12
    rows = ((model.W_E[:, None] + model.W_pos) @ centre).flatten(0, 1)
    scale = (rows.square().mean() + model.config.norm_eps).sqrt()
    x = (model.W_E.mean(0) + model.W_pos) @ centre / scale
    attn = folded.attn(0)
    q, k = (x @ W[1] + b[1] for W, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K)))
    scores = (q @ k.T / 2).detach().numpy()
    scores = np.where(np.tri(8, dtype=bool), scores, np.nan)
    scores -= np.nanmean(scores, axis=1, keepdims=True)
    expected = [np.diag(scores, -distance).mean() for distance in range(8)]
    np.testing.assert_allclose(found.sel(term="positions").values, expected, atol=1e-9)
    assert found.provenance["scales"] == "embedding under uniform frequencies"


def test_shorter_sequences_and_deeper_heads():
    model = zoo.from_config(zoo.config(HEADS, HEADS))
    assert positional_circuit(model, "L0H1", n_positions=5).labels["distance"] == (0, 1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"blocks\.1\.hook_resid_pre.*Give tokens"):
        positional_circuit(model, "L1H1")
    found = positional_circuit(model, "L1H1", tokens=zoo.tokens())
    assert found.provenance["scales"] == "tokens"
    assert found.plot().layout.title.text
    assert positional_circuit(HookedAttn(d_vocab=9, n_ctx=512), "L0H0").values.shape == (2, 256)


def test_random_weights_owe_most_of_a_score_to_no_position_in_particular():
    shares, means = [], []
    for seed in range(20):
        model = HookedAttn(d_vocab=60, d_model=64, n_heads=2, n_ctx=32, seed=seed)
        found = positional_circuit(model, "L0H1")
        shares.append(found.provenance["share"])
        means.append(found.sel(term="positions").values[:16])
    # Embedding and positions are drawn alike: one of four equal parts, (e + p) against (e + p).
    assert np.mean(shares) == pytest.approx(1 / 4, abs=0.06)
    assert np.abs(np.mean(means, axis=0)).max() < 0.15


def test_a_head_whose_scores_never_vary_has_no_share():
    model = HookedAttn(d_vocab=9, d_model=8, n_heads=2, n_ctx=8)
    with torch.no_grad():
        model.attn(0).W_Q.zero_()
    found = positional_circuit(model, "L0H0")
    assert found.provenance["share"] is None
    assert not found.values.any()
    assert "share" not in found.plot().layout.title.text


# ------------------------------------------------------------------------------------------ errors


def test_models_without_positions_are_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"no table of positions.*none"):
        positional_circuit(zoo.from_config(zoo.config(HEADS, positions="none")), "L0H0")
    blind = Attention(n_heads=3, d_head=4, positions=False)
    for positions in ("shortformer", "rotary"):
        model = zoo.from_config(zoo.config(blind, HEADS, positions=positions))
        with pytest.raises(ValueError, match="sees no positions"):
            positional_circuit(model, "L0H0")
    replaced = zoo.from_config(zoo.config(HEADS, HEADS, norm="none", residual=False))
    with pytest.raises(ValueError, match="no residual stream"):
        positional_circuit(replaced, "L1H0")
    with pytest.raises(ValueError, match="which biases its heads have, is not known"):
        positional_circuit(bridged(hugging_face("gpt2")), "L0H0")


def test_wrong_sizes_and_heads_are_refused():
    model = zoo.from_config(zoo.config(Conv(), HEADS))
    with pytest.raises(ValueError, match="2 to n_ctx=8"):
        positional_circuit(model, "L1H0", n_positions=9)
    with pytest.raises(ValueError, match="layer 0 is conv and has no heads"):
        positional_circuit(model, "L0H0")
    with torch.no_grad():
        model.conv(0).W_conv[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"conv\.W_conv"):
        positional_circuit(model, "L1H0")


def test_sixteen_bits_are_computed_in_float32():
    model = HookedAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8).bfloat16()
    wide = HookedAttn(d_vocab=20, d_model=32, n_heads=4, n_ctx=8).bfloat16().float()
    np.testing.assert_array_equal(
        positional_circuit(model, "L0H1").values, positional_circuit(wide, "L0H1").values
    )
