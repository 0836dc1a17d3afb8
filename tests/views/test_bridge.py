"""The same analyses on a TransformerBridge, against Hugging Face's own eager attentions."""

import math
import statistics

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from interp.analysis import (
    head_scores,
    in_context_learning_score,
    induction_score,
    loss_by_position,
    repeated_sequence_loss,
)
from interp.analysis.heads.scores import common_and_rare
from interp.views import view
from tests.analysis import measured
from tests.analysis.bridges import (
    CONFIGS,
    D_VOCAB,
    GROUPED,
    N_CTX,
    SIZES,
    N,
    attentions,
    bridged,
    hugging_face,
    probe,
)

# ---------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("kind", CONFIGS)
def test_head_scores_are_those_of_hugging_faces_own_attentions(kind):
    patterns, _ = attentions(hugging_face(kind), probe(N))
    second, later = np.arange(N + 1, 2 * N + 1), np.arange(1, 2 * N + 1)
    samples = [
        patterns[:, :, second, second - N + 1].mean(-1),
        patterns[:, :, later, later - 1].mean(-1),
        patterns[:, :, second, second - N].mean(-1),
        patterns[:, :, later, 0].mean(-1),
    ]
    scores = head_scores(bridged(hugging_face(kind)), n=N, n_sequences=3, seed=2)
    assert scores.labels["head"] == tuple(f"L{layer}H{h}" for layer in range(2) for h in range(4))
    for row, (sample, result) in enumerate(zip(samples, scores.values, strict=True)):
        np.testing.assert_allclose(result, sample.mean(0), rtol=0, atol=1e-6)
        errors = [statistics.stdev(head) / math.sqrt(3) for head in sample.T.tolist()]
        np.testing.assert_allclose(scores.standard_error[row], errors, rtol=0, atol=1e-6)
    assert scores.values.std() > 0.01


def test_the_prefix_matching_score_is_that_of_hugging_faces_own_attentions():
    tokens = probe(N, copies=4, exclude=common_and_rare(D_VOCAB))
    patterns, _ = attentions(hugging_face("llama"), tokens)
    pairs = [
        (row, t, s + 1)
        for row, line in enumerate(tokens.tolist())
        for t in range(N + 1, 4 * N + 1)
        for s in range(t)
        if line[s] == line[t]
    ]
    samples = measured.mean_of(patterns, tokens, pairs, len(pairs) // 3)
    scores = induction_score(
        bridged(hugging_face("llama")), variant="olsson", n=N, n_sequences=3, seed=2
    )
    np.testing.assert_allclose(scores.values, samples.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_losses_are_those_of_hugging_faces_own_logits(kind):
    tokens = probe(N)
    _, logits = attentions(hugging_face(kind), tokens)
    losses = -logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    model = bridged(hugging_face(kind))
    curve = loss_by_position(model, tokens)
    np.testing.assert_allclose(curve.values, losses.mean(0), rtol=0, atol=1e-5)
    late = in_context_learning_score(model, tokens, early=2, late=9)
    assert float(late) == pytest.approx((losses[:, 8] - losses[:, 1]).mean(), abs=1e-5)
    result = repeated_sequence_loss(model, n=N, n_sequences=3, seed=2)
    first, second = losses[:, 1:N].mean(), losses[:, N + 1 :].mean()
    np.testing.assert_allclose(result.values[:3], [first, second, first - second], atol=1e-5)


# ---------------------------------------------------------------------------------------- chance


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_without_queries_a_bridge_scores_exactly_the_reported_chance(kind):
    model = hugging_face(kind)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    scores = head_scores(bridged(model), n=N, n_sequences=2)
    np.testing.assert_allclose(scores.values, scores.chance, rtol=0, atol=1e-6)
    second = range(N + 1, 2 * N + 1)
    whole = statistics.fmean(1 / (t + 1) for t in second)
    # A window of 6 hides the key after the first occurrence, 8 positions before.
    expected = {"llama": [whole] * 8, "mistral": [0] * 8, "gemma2": [0] * 4 + [whole] * 4}[kind]
    np.testing.assert_allclose(scores.sel(score="induction").chance, expected, atol=1e-12)


# ------------------------------------------------------------------------- the kinds of bridges


def test_a_bridge_booted_the_documented_way_with_its_tokenizer(tmp_path):
    words = {f"w{token}": token for token in range(D_VOCAB)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w2")),
        bos_token="w5",
        eos_token="w6",
        pad_token="w6",
        unk_token="w2",
    )
    tokenizer.save_pretrained(tmp_path)  # the bridge wants to know where a tokenizer came from
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    model = TransformerBridge.boot_transformers(
        "tiny-llama", hf_model=hugging_face("llama"), tokenizer=tokenizer, device="cpu"
    )
    scores = head_scores(model, n=N, n_sequences=2)
    assert scores.provenance["bos"] == 5
    assert scores.provenance["model"] == "tiny-llama (LlamaForCausalLM)"
    assert view(model).special_tokens == (2, 5, 6)


def test_transformer_lens_native_models():
    config = TransformerBridgeConfig(
        d_model=32, d_head=8, n_heads=4, n_layers=2, n_ctx=N_CTX, d_vocab=D_VOCAB, act_fn="gelu",
        attn_only=True, normalization_type="LN", seed=0, init_weights=True,
    )  # fmt: skip
    model = TransformerBridge.boot_native(config)
    _, cache = model.run_with_cache(probe(N))
    patterns = measured.heads_of(cache["pattern", layer].detach() for layer in range(2))
    second = np.arange(N + 1, 2 * N + 1)
    by_hand = patterns[:, :, second, second - N + 1].mean((0, 2))
    scores = induction_score(model, n=N, n_sequences=3, seed=2)
    np.testing.assert_allclose(scores.values, by_hand, rtol=0, atol=1e-6)
    assert scores.provenance["model"] == "native (TransformerLensNative)"


def test_a_hybrid_is_scored_in_the_layers_that_attend():
    config = transformers.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"])
    patterns, _ = attentions(hugging_face("lfm2", config), probe(N))
    scores = head_scores(bridged(hugging_face("lfm2", config)), n=N, n_sequences=3, seed=2)
    assert scores.labels["head"] == ("L1H0", "L1H1", "L1H2", "L1H3")
    second = np.arange(N + 1, 2 * N + 1)
    by_hand = patterns[:, :, second, second - N + 1].mean((0, 2))
    np.testing.assert_allclose(scores.sel(score="induction").values, by_hand, atol=1e-6)


def test_a_model_without_attention_has_losses_but_no_head_scores():
    config = transformers.MambaConfig(vocab_size=D_VOCAB, hidden_size=32, num_hidden_layers=1)
    model = bridged(hugging_face("mamba", config))
    with pytest.raises(ValueError, match=r"MambaForCausalLM.* has no heads to score"):
        head_scores(model, n=N)
    losses = loss_by_position(model, probe(N))
    assert np.isfinite(losses.values).all()


@pytest.fixture
def encoder():
    def build(attention):
        config = transformers.BertConfig(**SIZES)
        model = transformers.BertForMaskedLM._from_config(config, attn_implementation=attention)
        return bridged(model.eval())

    return build


def test_patterns_that_are_not_computed_are_refused_with_the_remedy(encoder):
    with pytest.raises(ValueError, match=r'layers \[0, 1\] were not computed.*"eager"'):
        head_scores(encoder("sdpa"), n=N, n_sequences=2)


def test_an_encoder_sees_its_future_and_its_chance_says_so(encoder):
    scores = head_scores(encoder("eager"), n=N, n_sequences=2)
    np.testing.assert_allclose(scores.chance, 1 / (2 * N + 1), atol=1e-12)
    assert scores.values.max() < 0.2  # untrained: about 1 / 19
