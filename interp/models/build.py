"""From a `ModelConfig` to modules: here, and only here, the config's choices are made."""

from collections.abc import Iterator

import torch
from torch import nn

from interp.models.attention import Attention, Rotary
from interp.models.block import NO_RESIDUAL, POST_NORM, PRE_NORM, AttentionBlock, Block, ConvBlock
from interp.models.config import Conv, ModelConfig
from interp.models.conv import CausalConv
from interp.models.embedding import LearnedPositions, SinusoidalPositions, crisp_sinusoids
from interp.models.mlp import MLP
from interp.models.norm import Norm


def build_positions(config: ModelConfig) -> LearnedPositions | SinusoidalPositions | None:
    """The table of positions; rotary positions live in the attention layers instead."""
    if config.positions in ("learned", "shortformer"):
        return LearnedPositions(config.n_ctx, config.d_model)
    if config.positions == "sinusoidal":
        return SinusoidalPositions(config.n_ctx, config.d_model)
    return None


def build_norm(config: ModelConfig, affine: bool = True) -> nn.Module:
    """The config's norm, or the identity."""
    if config.norm == "none":
        return nn.Identity()
    return Norm(config.d_model, config.norm, config.norm_eps, affine)


def build_blocks(config: ModelConfig) -> Iterator[Block]:
    """One block per layer spec."""
    if config.norm_place == "post":
        wiring = POST_NORM
    else:
        wiring = PRE_NORM if config.residual else NO_RESIDUAL
    for spec in config.layers:
        if isinstance(spec, Conv):
            conv = CausalConv(config.d_model, spec)
            block: Block = ConvBlock(conv, build_norm(config), wiring, config.dropout)
        else:
            rotary = None
            if config.positions == "rotary" and spec.positions:
                rotary = Rotary(config.n_ctx, spec.d_head, config.rotary_base)
            attn = Attention(config.d_model, spec, rotary, config.dropout)
            # Shortformer positions are added after the norm, unscaled. A gain there would only
            # repeat what W_Q, W_K and W_V can do, and could not be folded into them without
            # changing the positions.
            adds_positions = config.positions == "shortformer" and spec.positions
            affine = not adds_positions or config.norm_place == "post"
            block = AttentionBlock(attn, build_norm(config, affine), wiring, config.dropout)
        if spec.mlp is not None:
            block.add_mlp(MLP(config.d_model, spec.mlp), build_norm(config))
        yield block


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Normal weights of deviation 0.8 / √fan_in, as in TransformerLens; gains 1, biases and α 0.

    Shortformer positions start as sinusoids that tell neighbours apart: from noise or from longer
    waves, a previous-token head is slower to form and stays blurred.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last.startswith("W_"):
            deviation = 0.8 / _fan_in(last, parameter.shape, config.d_model) ** 0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(0, deviation, generator=generator))
    if config.positions == "shortformer":
        table = model.get_parameter("pos_embed.W_pos")
        table.copy_(crisp_sinusoids(config.n_ctx, config.d_model))


def _fan_in(name: str, shape: torch.Size, d_model: int) -> int:
    if name in ("W_E", "W_pos"):
        return d_model
    if name == "W_O":
        return shape[0] * shape[1]
    if name == "W_conv":
        return shape[0] * (shape[1] if len(shape) == 3 else 1)
    return shape[-2]
