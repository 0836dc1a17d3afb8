"""TransformerLens's native model with our weights."""

from typing import Any

import torch
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge

from interp.models import HookedAttnAttn


@torch.no_grad()
def native_twin(model: HookedAttnAttn) -> TransformerBridge:
    """`TransformerBridge.boot_native` of the same shape, weights copied; it gives the same logits.

    The native model's unembedding has no bias: make ours with `unembed_bias=False`.
    """
    config, head = model.config, model.config.attention_layers[0]
    twin_config = TransformerBridgeConfig(
        d_model=config.d_model,
        d_head=head.d_head,
        n_heads=head.n_heads,
        n_layers=len(config.layers),
        n_ctx=config.n_ctx,
        d_vocab=config.d_vocab,
        attn_only=True,
        act_fn="gelu",  # asked for even where there is no MLP
        normalization_type="LN",
    )
    twin = TransformerBridge.boot_native(twin_config).eval()  # type: ignore[attr-defined]
    theirs = {
        name.replace("._original_component", ""): weight
        for name, weight in twin.original_model.named_parameters()
    }
    ours = _renamed(model)
    if ours.keys() != theirs.keys():
        raise ValueError(f"TransformerLens names its weights differently: {sorted(theirs)}")
    for name, weight in ours.items():
        theirs[name].copy_(weight)
    return twin


def _renamed(model: HookedAttnAttn) -> dict[str, torch.Tensor]:
    final: Any = model.ln_final
    weights = {
        "tok_embed.weight": model.W_E,
        "pos.weight": model.W_pos,
        "ln_out.weight": final.w,
        "ln_out.bias": final.b,
        "head.weight": model.W_U.T,
    }
    for layer, block in enumerate(model.blocks):
        attn, ln1, prefix = model.attn(layer), block.ln1, f"layers.{layer}."
        weights |= {f"{prefix}ln1.weight": ln1.w, f"{prefix}ln1.bias": ln1.b}  # type: ignore[dict-item]
        for name in "QKV":
            weight, bias = getattr(attn, f"W_{name}"), getattr(attn, f"b_{name}")
            weights[f"{prefix}attn.{name.lower()}.weight"] = weight.transpose(1, 2).flatten(0, 1)
            weights[f"{prefix}attn.{name.lower()}.bias"] = bias.flatten()
        weights[f"{prefix}attn.o.weight"] = attn.W_O.flatten(0, 1).T
        weights[f"{prefix}attn.o.bias"] = attn.b_O  # type: ignore[assignment]
    return weights
