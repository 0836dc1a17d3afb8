"""The view of a `ModelConfig` that TransformerLens's tools read as `model.cfg`."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from interp.models.config import ModelConfig

_NORM_NAMES = {"layer": "LN", "rms": "RMS", "none": None}


@dataclass(frozen=True)
class LensConfig:
    """Sizes under TransformerLens's names.

    `n_heads`, `d_head` and `d_mlp` are the largest of any layer: TransformerLens knows only one,
    while our layers may differ and conv layers have none. `final_rms` is False: every norm of a
    model is of one kind.
    """

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    attn_only: bool
    normalization_type: str | None
    device: torch.device
    dtype: torch.dtype
    final_rms: bool = False

    @classmethod
    def of(cls, config: ModelConfig, weight: Tensor) -> Self:
        """The view of this config, on the device and in the dtype of a weight."""
        attentions = config.attention_layers.values()
        mlps = [layer.mlp.d_mlp for layer in config.layers if layer.mlp is not None]
        return cls(
            n_layers=len(config.layers),
            n_heads=max((layer.n_heads for layer in attentions), default=0),
            d_model=config.d_model,
            d_head=max((layer.d_head for layer in attentions), default=0),
            d_mlp=max(mlps, default=0),
            d_vocab=config.d_vocab,
            n_ctx=config.n_ctx,
            attn_only=not mlps,
            normalization_type=_NORM_NAMES[config.norm],
            device=weight.device,
            dtype=weight.dtype,
        )
