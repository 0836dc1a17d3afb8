"""Composition in models nobody here trained: TransformerLens's own scores, and what is refused."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from interp.analysis.circuits.composition import composition_scores
from interp.models import Attention, HookedSequenceModel, ModelConfig
from tests.analysis.bridges import CONFIGS, D_VOCAB, GROUPED, N_CTX, bridged, hugging_face


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox", "mistral"])
def test_raw_bridges_score_what_transformer_lens_gives_once_it_has_folded_their_norms(kind):
    # Gains, centring and grouped keys are folded by two independent pieces of code.
    mine = composition_scores(bridged(hugging_face(kind))).sel(measure="score")
    folded = bridged(hugging_face(kind))
    folded.enable_compatibility_mode(disable_warnings=True)
    for name in "QKV":
        theirs = folded.all_composition_scores(name).scores.detach()
        np.testing.assert_allclose(mine.sel(kind=name).values, theirs[0, :, 1], atol=1e-6)


def test_the_norm_behind_what_a_layer_writes_is_folded_too():
    mine = composition_scores(bridged(hugging_face("gemma2"))).sel(measure="score")
    folded = bridged(hugging_face("gemma2"))
    behind = 1 + folded.blocks[0].ln1_post.w.detach()
    folded.enable_compatibility_mode(disable_warnings=True)
    with torch.no_grad():
        written = (folded.W_V.repeat_interleave(2, 1) @ folded.W_O)[0] * behind
        W_QK = (folded.W_Q @ folded.W_K.repeat_interleave(2, 1).mT)[1]
    for i, j in itertools.product(range(4), range(4)):
        score = (written[i] @ W_QK[j]).norm() / written[i].norm() / W_QK[j].norm()
        got = mine.sel(kind="Q", source=f"L0H{i}", target=f"L1H{j}")
        assert float(got) == pytest.approx(float(score), abs=1e-6)


def test_a_plain_transformer_scores_what_transformer_lenss_own_model_of_its_weights_does():
    heads = Attention(n_heads=3, d_head=4)
    model = HookedSequenceModel(
        ModelConfig(d_vocab=20, d_model=24, n_ctx=8, layers=(heads,) * 3, norm="none")
    )
    native = TransformerBridge.boot_native(
        TransformerBridgeConfig(
            d_model=24, d_head=4, n_heads=3, n_layers=3, n_ctx=8, d_vocab=20, act_fn="gelu",
            attn_only=True, normalization_type=None, seed=0, init_weights=True,
        )
    )  # fmt: skip
    with torch.no_grad():
        for layer in range(3):
            for name in "QKVO":
                weight = getattr(native.blocks[layer].attn, f"W_{name}")
                getattr(model.attn(layer), f"W_{name}").copy_(weight)
    result = composition_scores(model).sel(measure="score")
    for kind in "QKV":
        theirs = native.all_composition_scores(kind).scores.detach()
        for (a, i), (b, j) in itertools.product(itertools.product(range(3), range(3)), repeat=2):
            if a < b:
                got = float(result.sel(kind=kind, source=f"L{a}H{i}", target=f"L{b}H{j}"))
                assert got == pytest.approx(float(theirs[a, i, b, j]), abs=1e-6)


def test_per_head_norms_of_queries_and_keys_are_folded():
    config = transformers.Qwen3Config(**GROUPED, head_dim=8)
    hf = hugging_face("qwen3", config)
    result = composition_scores(bridged(hf)).sel(measure="score")
    first, second = (layer.self_attn for layer in hf.model.layers)
    gain = [layer.input_layernorm.weight for layer in hf.model.layers]
    with torch.no_grad():
        V, K = (
            (gain[i] * w).view(2, 8, 32)
            for i, w in ((0, first.v_proj.weight), (1, second.k_proj.weight))
        )
        Q = (gain[1] * second.q_proj.weight).view(4, 8, 32)
        W_O = first.o_proj.weight.T.reshape(4, 8, 32)
        written = V[1].T @ W_O[3]
        W_QK = (Q[2].T * second.q_norm.weight) @ (second.k_norm.weight[:, None] * K[1])
        score = (written @ W_QK).norm() / written.norm() / W_QK.norm()
    got = result.sel(kind="Q", source="L0H3", target="L1H2")
    assert float(got) == pytest.approx(float(score), abs=1e-6)


def test_a_bridges_own_rotation_turns_its_circuits():
    model = bridged(hugging_face("llama"))
    near, far = (composition_scores(model, distance=d) for d in (0, 5))
    scores = near.sel(measure="score"), far.sel(measure="score")
    np.testing.assert_array_equal(*(s.sel(kind="V").values for s in scores))
    assert not np.allclose(*(s.sel(kind="Q").values for s in scores))


def test_bridges_whose_norms_cannot_be_folded_are_refused_with_the_reason():
    gpt1 = transformers.OpenAIGPTConfig(
        vocab_size=D_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=N_CTX
    )
    with pytest.raises(ValueError, match=r"OpenAIGPT.*cannot fold.*pre-norm"):
        composition_scores(bridged(hugging_face("openai-gpt", gpt1)))
    with pytest.raises(ValueError, match="n_ctx - 1 = 63"):
        composition_scores(bridged(hugging_face("llama")), distance=64)
    assert set(CONFIGS) >= {"gpt2", "llama"}
