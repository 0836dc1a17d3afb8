"""Which keys each layer sees, family by family; refusals of models that read no tokens."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import interp
from interp.views import view
from tests.analysis.bridges import GROUPED, SIZES, N, bridged, hugging_face, probe

LENGTH, WINDOW = 20, 6


def grouped(config, **options):
    return getattr(transformers, config)(**{**GROUPED, **options})


def ungrouped(config, **options):
    return getattr(transformers, config)(**{**SIZES, **options})


FEW = {"num_local_experts": 2, "num_experts_per_tok": 1}
SLIDES = {"sliding_window": WINDOW, "head_dim": 8}
SLIDING, CHUNKED, WHOLE = "sliding", "chunked", "whole"
FAMILIES = {
    "gpt-neo": (
        lambda: transformers.GPTNeoConfig(
            vocab_size=60, hidden_size=32, num_layers=2, num_heads=4, window_size=WINDOW,
            attention_types=[[["global", "local"], 1]], max_position_embeddings=64,
        ),
        [WHOLE, SLIDING],
    ),
    "llama4": (
        lambda: grouped(
            "Llama4TextConfig", head_dim=8, attention_chunk_size=WINDOW, intermediate_size_mlp=48,
            no_rope_layers=[1, 0], **FEW,
        ),
        [CHUNKED, WHOLE],
    ),
    "mistral": (lambda: grouped("MistralConfig", **SLIDES), [SLIDING, SLIDING]),
    "phi3": (lambda: grouped("Phi3Config", sliding_window=WINDOW), [SLIDING, SLIDING]),
    "qwen2, upper layers": (
        lambda: grouped(
            "Qwen2Config", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
        ),
        [WHOLE, SLIDING],
    ),
    "qwen2, switched off": (
        lambda: grouped("Qwen2Config", use_sliding_window=False, sliding_window=WINDOW),
        [WHOLE, WHOLE],
    ),
    "gemma2": (lambda: grouped("Gemma2Config", **SLIDES), [SLIDING, WHOLE]),
    "gemma3": (
        lambda: grouped(
            "Gemma3TextConfig", layer_types=["full_attention", "sliding_attention"], **SLIDES
        ),
        [WHOLE, SLIDING],
    ),
    "gpt-oss": (lambda: grouped("GptOssConfig", **SLIDES, **FEW), [SLIDING, WHOLE]),
    # Its window counts both sides: half of local_attention looks back.
    "modernbert decoder": (
        lambda: ungrouped("ModernBertDecoderConfig", local_attention=2 * WINDOW),
        [WHOLE, SLIDING],
    ),
    "gpt2": (
        lambda: transformers.GPT2Config(
            vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64
        ),
        [WHOLE, WHOLE],
    ),
}  # fmt: skip


def expected(kind):
    query, key = np.indices((LENGTH, LENGTH))
    visible = key <= query
    if kind == SLIDING:
        visible &= query - key < WINDOW
    if kind == CHUNKED:
        visible &= query // WINDOW == key // WINDOW
    return visible


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_visible_is_where_the_models_own_pattern_is_not_zero(family):
    make, kinds = FAMILIES[family]
    model = hugging_face(family, make())
    tokens = torch.randint(1, 60, (8, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attentions = model(tokens, output_attentions=True).attentions
    viewed = view(bridged(model))
    for layer, (pattern, kind) in enumerate(zip(attentions, kinds, strict=True)):
        visible = viewed.visible(layer, LENGTH).numpy()
        np.testing.assert_array_equal(visible, expected(kind))
        np.testing.assert_array_equal(visible, (pattern > 0).any(0).any(0).numpy())
        queries, keys = np.nonzero(expected(WHOLE))
        uniform = viewed.uniform(layer, torch.tensor(queries), torch.tensor(keys), LENGTH)
        shares = expected(kind) / expected(kind).sum(1, keepdims=True)
        np.testing.assert_allclose(uniform, shares[queries, keys], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gpt-neo", "llama4"])
def test_chance_knows_local_layers_and_chunks(family):
    make, kinds = FAMILIES[family]
    found = interp.head_scores(bridged(hugging_face(family, make())), n=N, n_sequences=2)
    # The key after the first occurrence lies 8 positions back: behind a window of 6, and in a
    # chunk of 6 never.
    induction = found.sel(score="induction")
    chance = np.asarray(induction.chance).reshape(2, 4)
    scores = induction.values.reshape(2, 4)
    for kind, of_layer, scored in zip(kinds, chance, scores, strict=True):
        assert (of_layer > 0.05).all() == (kind == WHOLE)
        if kind != WHOLE:
            assert (of_layer == 0).all()
            assert (scored == 0).all()


def test_looking_at_what_is_visible_leaves_others_hooks_and_the_model_alone():
    model, captured = bridged(hugging_face("mistral")), []

    def blind(pattern, hook):
        captured.append(pattern.shape)
        return torch.zeros_like(pattern)

    with model.hooks([("blocks.0.attn.hook_pattern", blind)]):
        visible = view(model).visible(0, LENGTH)
        assert captured == []
        scores = interp.head_scores(model, n=N, n_sequences=2)
        assert len(captured) == 1
    np.testing.assert_array_equal(visible, expected(SLIDING))
    assert (scores.values[:, :4] == 0).all()
    after = interp.head_scores(model, n=N, n_sequences=2)
    assert (after.sel(score="previous_token").values > 0).all()


def test_attention_to_keys_that_were_not_visible_is_refused(monkeypatch):
    model = bridged(hugging_face("mistral"))
    viewed = view(model)
    viewed.visible(0, 2 * N + 1)[:, 3] = False  # as if no other token had made it visible
    monkeypatch.setattr(interp.analysis.heads.scores, "view", lambda model: viewed)
    with pytest.raises(ValueError, match=r"layer 0 attends to keys.*sparse attention.*no chance"):
        interp.head_scores(model, n=N, n_sequences=2)


# ------------------------------------------------------------------------ what reads no tokens


def test_encoder_decoders_are_refused_by_name_in_a_bridge_or_not():
    sizes: dict[str, Any] = {"vocab_size": 60, "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}
    two: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_kv=8, d_ff=16, num_layers=1, num_heads=2, **sizes)
    )
    marian = transformers.MarianMTModel(
        transformers.MarianConfig(
            **sizes, **two, **heads, max_position_embeddings=32, decoder_start_token_id=0
        )
    )
    whisper = transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **sizes, **two, **heads, num_mel_bins=4, bos_token_id=1, decoder_start_token_id=1,
            max_source_positions=16, max_target_positions=16,
        )
    )  # fmt: skip
    for model in (t5, marian, whisper, bridged(t5), bridged(marian)):
        inner = getattr(model, "original_model", model)
        message = f"{type(inner).__name__} is an encoder-decoder, and those cannot be analysed yet"
        with pytest.raises(TypeError, match=message) as refusal:
            interp.head_scores(model)
        assert "TransformerBridge" not in str(refusal.value)


def test_images_are_refused_by_name_before_any_work():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8,
    )  # fmt: skip
    vit = transformers.ViTForImageClassification(config)
    for n in (50, 2):  # longer and shorter than what it reads
        for model in (vit, bridged(vit)):
            with pytest.raises(TypeError, match=r"ViTForImageClassification reads pixel_values"):
                interp.head_scores(model, n=n)
    with pytest.raises(TypeError, match="boot_transformers"):  # a model that can be wrapped
        interp.head_scores(hugging_face("gpt2"))


# ------------------------------------------------------------------------------------ messages


def test_of_two_inputs_the_one_that_does_not_repeat_itself_is_named():
    model, repeated = bridged(hugging_face("gpt2")), probe(N)
    other = torch.randint(1, 60, repeated.shape, generator=torch.Generator().manual_seed(0))
    for tokens, name in (((repeated, other), "corrupted"), ((other, repeated), "clean")):
        for direction in ("noise", "denoise"):
            message = rf"the {name} tokens do not repeat.*measured on both inputs.*different seeds"
            with pytest.raises(ValueError, match=message):
                interp.patch(model, *tokens, "heads", "second_copy_loss", direction)
        with pytest.raises(ValueError, match=rf"the {name} tokens do not repeat"):
            interp.attribution_patch(model, *tokens, metric="second_copy_loss")
        with pytest.raises(ValueError, match=rf"the {name} tokens do not repeat"):
            interp.path_patch(model, "L0H0", "L1H0", *tokens, "second_copy_loss")


def test_what_needs_biases_says_so_and_what_answers_for_a_bridge():
    model = bridged(hugging_face("llama"))
    with pytest.raises(ValueError, match=r"which biases .*logit_attribution .* path_patch"):
        interp.path_attribution(model, probe(N))
    with pytest.raises(ValueError, match=r"which biases .*qk_circuit"):
        interp.reads(model, "L0H0")
    assert interp.logit_attribution(model, probe(N)).values.size


def test_the_matches_of_a_bridge_are_those_of_its_circuits():
    model = bridged(hugging_face("llama"))  # its queries share keys
    table = interp.match_table(model, distance=3)
    for head in table.labels["head"]:
        circuit = interp.qk_circuit(model, head, basis="vocabulary", distance=3)
        expected = circuit.diagonal_preference().values[:3]
        found = table.sel(head=head, query_lag="lag 0", key_lag="lag 0").values
        np.testing.assert_allclose(found, expected, rtol=1e-4)
