"""Models with convolutions in every place where a head can read through them."""

import torch
from torch import Tensor

from interp.models import Attention, Conv, HookedSequenceModel
from tests.models import zoo

MORE = {
    "two convolutions": zoo.config(Conv(lags=3), Conv(lags=2, lag_bias=True), zoo.SMEARED),
    "two convolutions, no residual, rotary": zoo.config(
        Conv(lags=3), Conv(depthwise=True), zoo.SMEARED, residual=False, positions="rotary"
    ),
    "two convolutions, post, shortformer": zoo.config(
        Conv(lags=3, lag_bias=True), Conv(), zoo.SMEARED, norm_place="post", positions="shortformer"
    ),
    "attention between": zoo.config(zoo.HEADS, Conv(lags=3), zoo.HEADS, norm="rms"),
    "no norm, three lags, rotary": zoo.config(
        Conv(lags=3), Attention(n_heads=2, d_head=4, smear=True), norm="none", positions="rotary"
    ),
}
NAMES = tuple(name for name in (*zoo.CONFIGS, *MORE) if name != "conv alone")


def build(name: str, dtype: torch.dtype = torch.float64) -> HookedSequenceModel:
    """A model of the zoo or of this file, nothing in it at its initial value."""
    return zoo.from_config(MORE[name] if name in MORE else zoo.CONFIGS[name], dtype)


def key_hook(model: HookedSequenceModel, layer: int, channel: str) -> str:
    """Where the queries, keys or values of a layer are: smeared or tapped, not yet rotated."""
    mixed = f"blocks.{layer}.attn.hook_smeared_{channel}"
    return mixed if mixed in model.hook_dict else f"blocks.{layer}.attn.hook_{channel}"


def heads(model: HookedSequenceModel) -> list[tuple[str, int, int]]:
    """Name, layer and index of every head."""
    return [
        (f"L{layer}H{head}", layer, head)
        for layer in model.attention_layers
        for head in range(model.attn(layer).W_Q.shape[0])
    ]


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Equal to 1e-10 in float64 and to 1e-5 in float32, relative to the largest number."""
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    return bool((found - expected).abs().max() <= bound * expected.abs().max().clamp(min=1))
