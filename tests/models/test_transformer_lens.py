"""Where TransformerLens has the same architecture, the same weights give the same numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from interp.models import MLP, ActivationCache, Attention, HookedSequenceModel, ModelConfig
from tests.models import zoo
from tests.models.zoo import D_MODEL, D_VOCAB, N_CTX

SIZES: dict[str, Any] = {"d_model": D_MODEL, "d_vocab": D_VOCAB, "n_ctx": N_CTX, "n_heads": 3}
THEIRS: dict[str, dict[str, Any]] = {
    "attention only": {"attn_only": True, "d_mlp": None},
    "GPT": {"d_mlp": 16, "act_fn": "gelu_new"},
    "relu": {"d_mlp": 16, "act_fn": "relu"},
    "rms": {"d_mlp": 16, "act_fn": "silu", "normalization_type": "RMS"},
    "no norm": {"attn_only": True, "d_mlp": None, "normalization_type": None},
    "rotary": {
        "attn_only": True,
        "d_mlp": None,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_base": 100,
    },
}
NORMS = {"LN": "layer", "RMS": "rms", None: "none"}
# Not attn_scores: under that name their native model caches the pattern.
SHARED = {
    f"hook_{name}"
    for name in (
        *("embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"),
        *("q", "k", "v", "z", "pattern", "pre", "post", "scale", "normalized"),
    )
}


def their_model(name: str) -> TransformerBridge:
    arguments: dict[str, Any] = {
        **SIZES,
        "d_head": 4,
        "n_layers": 2,
        "normalization_type": "LN",
        "act_fn": "gelu",
        "architecture": "TransformerLensNative",
        "seed": 3,
    }
    config = TransformerBridgeConfig(**(arguments | THEIRS[name]))
    bridge = TransformerBridge.boot_native(config, dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in bridge.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(0.3 * noise)
    return bridge.eval()


def with_the_weights_of(bridge: TransformerBridge, name: str) -> HookedSequenceModel:
    """Our model of the same architecture, filled weight by weight under TransformerLens's names."""
    theirs = THEIRS[name]
    mlp = None if theirs["d_mlp"] is None else MLP(theirs["d_mlp"], theirs["act_fn"])
    config = ModelConfig(
        d_vocab=D_VOCAB,
        d_model=D_MODEL,
        n_ctx=N_CTX,
        layers=(Attention(n_heads=3, d_head=4, mlp=mlp),) * 2,
        positions="rotary" if name == "rotary" else "learned",
        norm=NORMS[theirs.get("normalization_type", "LN")],  # type: ignore[arg-type]
        rotary_base=100.0,
    )
    model = HookedSequenceModel(config).double().eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            theirs_there = their_weight(bridge, key)
            if name == "rotary" and key[-3:] in ("W_Q", "W_K", "b_Q", "b_K"):
                theirs_there = theirs_there[..., TURNING_TOGETHER]
            weight.copy_(theirs_there)
    return model


# In ours channel i turns with channel i + d_head / 2, in theirs the two channels are neighbours.
TURNING_TOGETHER = [0, 2, 1, 3]


def their_weight(bridge: TransformerBridge, key: str) -> Tensor:
    *path, last = key.split(".")
    if path[0] == "ln_final" or path[-1] in ("ln1", "ln2"):
        norm: Any = bridge.ln_final if path[0] == "ln_final" else bridge.blocks[int(path[1])]
        norm = norm if path[0] == "ln_final" else getattr(norm, path[-1])
        return norm.weight if last == "w" else norm.bias
    stack = getattr(bridge, last)
    return stack[int(path[1])] if path[0] == "blocks" else stack


@pytest.mark.parametrize("name", THEIRS)
def test_the_same_weights_give_the_same_logits_and_activations(name: str) -> None:
    bridge = their_model(name)
    ours, tokens = with_the_weights_of(bridge, name), zoo.tokens()
    # Their RMSNorm and their rotary tables are float32 whatever the weights are.
    tolerance = 1e-5 if name in ("rms", "rotary") else 1e-9
    logits, cache = ours.run_with_cache(tokens)
    their_logits, their_cache = bridge.run_with_cache(tokens)
    assert_close(logits, their_logits, rtol=0, atol=tolerance)
    shared = [key for key in cache if key.rsplit(".", 1)[-1] in SHARED and key in their_cache]
    assert len(shared) >= 18
    for key in shared:
        expected = their_cache[key].to(cache[key])
        if name == "rotary" and key.endswith(("hook_q", "hook_k")):
            expected = expected[..., TURNING_TOGETHER]
        assert_close(cache[key], expected, rtol=0, atol=tolerance, msg=key)
    loss = bridge(tokens, return_type="loss")
    assert_close(ours(tokens, "loss"), loss, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["attention only", "GPT"])
def test_decompositions_and_circuits_are_theirs(name: str) -> None:
    bridge = their_model(name)
    ours, tokens = with_the_weights_of(bridge, name), zoo.tokens()
    _, cache = ours.run_with_cache(tokens)
    _, their_cache = bridge.run_with_cache(tokens)
    assert isinstance(cache, ActivationCache)
    for stack, expected in (
        (cache.decompose_resid(), their_cache.decompose_resid()),
        (cache.accumulated_resid(1), their_cache.accumulated_resid(1)),
        (cache.stack_head_results(), their_cache.stack_head_results(-1)),
        (cache.get_full_resid_decomposition(), their_cache.get_full_resid_decomposition()),
    ):
        assert_close(stack, expected, rtol=0, atol=1e-9)
    for circuit in ("QK", "OV"):
        assert_close(getattr(ours, circuit).AB, getattr(bridge, circuit).AB, rtol=0, atol=1e-9)
    for layer in range(3):
        theirs = bridge.accumulated_bias(layer).double()
        assert_close(ours.accumulated_bias(layer), theirs, rtol=0, atol=1e-12)
    # Theirs leaves the last norm's gain out of a token's direction, and asks for a folded model.
    token, gain = 5, ours.ln_final.w
    theirs = bridge.tokens_to_residual_directions(torch.tensor(token)) * gain
    assert_close(ours.tokens_to_residual_directions(token), theirs, rtol=0, atol=1e-12)


def test_folding_is_theirs_but_for_centring() -> None:
    # What a LayerNorm gives has mean zero, so a map that reads it may have its mean taken out of
    # every column. Theirs does; ours leaves the weights that were trained.
    bridge = their_model("GPT")
    ours = with_the_weights_of(bridge, "GPT").fold_norms()
    bridge.enable_compatibility_mode(
        disable_warnings=True,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    assert_close(ours(zoo.tokens()), bridge(zoo.tokens()), rtol=0, atol=1e-5)
    for name in ("W_Q", "W_K", "W_V", "W_U"):
        folded = getattr(ours, name)
        centred = folded - folded.mean(-2, keepdim=True)
        assert_close(centred, getattr(bridge, name), rtol=0, atol=1e-5, msg=name)
    for name in ("b_Q", "b_K", "b_V", "b_O", "b_U"):
        assert_close(getattr(ours, name), getattr(bridge, name), rtol=0, atol=1e-5, msg=name)
