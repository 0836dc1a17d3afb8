"""Whole patterns: planted, uniform, by brute force, and as TransformerLens caches them."""

import math

import numpy as np
import pytest
import torch

from interp.analysis import attention_pattern, repeated_tokens
from interp.plots import AttentionView
from tests.analysis import bridges, measured, planted

EXACT = {"rtol": 0, "atol": 1e-10}


def one_sequence(length=12, d_vocab=40):
    return torch.randint(d_vocab, (1, length), generator=torch.Generator().manual_seed(2))


def by_hand(model, tokens, layer):
    """Softmax of q k / sqrt(d_head), key by key, from cached queries and keys."""
    _, cache = model.run_with_cache(tokens)
    attn = model.attn(layer)
    prefix = f"blocks.{layer}.attn."
    q, k = (cache[prefix + hook][0] for hook in (attn.query_hook, attn.key_hook))
    n_pos, n_heads, width = q.shape
    pattern = np.zeros((n_heads, n_pos, n_pos))
    for head in range(n_heads):
        for t in range(n_pos):
            visible = range(t + 1) if attn.causal else range(n_pos)
            scores = [float(q[t, head] @ k[s, head]) / math.sqrt(width) for s in visible]
            weights = [math.exp(score - max(scores)) for score in scores]
            pattern[head, t, : len(visible)] = np.array(weights) / sum(weights)
    return pattern


def test_a_planted_head_looks_where_it_was_told_to():
    n = 6
    model = planted.induction_conv_attn(d_vocab=30, n_ctx=40, gain=planted.SURE)
    tokens = repeated_tokens(n, d_vocab=30, bos=planted.BOS, n_sequences=1).tokens
    pattern = attention_pattern(model, tokens, layer=1)
    induction, neighbour = pattern.values
    for t in range(n + 1, 2 * n + 1):
        assert induction[t, t - n + 1] == pytest.approx(1, abs=1e-12)
    uniform = np.tril(np.ones((2 * n + 1, 2 * n + 1))) / np.arange(1, 2 * n + 2)[:, None]
    np.testing.assert_allclose(neighbour, uniform, **EXACT)


@pytest.mark.parametrize("kind", sorted(measured.LAYERS))
def test_every_entry_is_the_softmax_worked_out_by_hand(kind):
    model = measured.build(kind)
    tokens = one_sequence()
    for layer in model.attention_layers:
        found = attention_pattern(model, tokens, layer)
        np.testing.assert_allclose(found.values, by_hand(model, tokens, layer), **EXACT)
        assert found.labels["head"][0] == f"L{layer}H0"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral"])
def test_a_bridge_gives_hugging_faces_attentions(kind):
    hugging_face = bridges.hugging_face(kind)
    tokens = one_sequence(20, bridges.D_VOCAB)
    expected = bridges.attentions(hugging_face, tokens)[0][0]
    bridge = bridges.bridged(hugging_face)
    found = [attention_pattern(bridge, tokens, layer).values for layer in range(2)]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-5)


def test_it_plots_as_a_view_of_its_words():
    view = attention_pattern(measured.build("conv-attn"), one_sequence(5), 1).plot()
    assert isinstance(view, AttentionView)
    assert view.tokens == tuple(str(token) for token in one_sequence(5)[0].tolist())


@pytest.mark.parametrize(
    ("tokens", "layer", "message"),
    [
        (one_sequence().repeat(2, 1), 1, r"shape \(2, 12\)"),
        (one_sequence(), 0, "layer 0 has no heads; the layers that have are"),
        (one_sequence() + 100, 1, "outside the vocabulary of 40"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(tokens, layer, message):
    with pytest.raises(ValueError, match=message):
        attention_pattern(measured.never_run(measured.build("conv-attn")), tokens, layer)


def test_nan_weights_are_named():
    model = measured.build("conv-attn")
    with torch.no_grad():
        model.attn(1).W_K[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="W_K"):
        attention_pattern(measured.never_run(model), one_sequence(), 1)
