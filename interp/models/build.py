"""From a `ModelConfig` to modules: here, and only here, the config's choices are made."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from interp.models.block import NO_RESIDUAL, POST_NORM, PRE_NORM, Block
from interp.models.config import ModelConfig
from interp.models.embedding import LearnedPositions, SinusoidalPositions, crisp_sinusoids
from interp.models.layers import FeedForward, Mixer
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
        norm = build_norm(config, spec.affine_norm(config))
        block = Block(spec.build(config), norm, wiring, config.dropout)
        if spec.mlp is not None:
            block.add_mlp(FeedForward(config.d_model, spec.mlp), build_norm(config))
        yield block


@torch.no_grad()
def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Normal weights of deviation 0.8 / √fan_in, as in TransformerLens; gains 1, biases and α 0.

    Shortformer positions start as sinusoids that tell neighbours apart: from noise or from longer
    waves, a previous-token head is slower to form and stays blurred.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        owner, _, last = name.rpartition(".")
        if last.startswith("W_"):
            fan_in = _fan_in(model.get_submodule(owner), last, parameter, config.d_model)
            drawn = torch.empty(parameter.shape).normal_(0, 0.8 / fan_in**0.5, generator=generator)
            parameter.copy_(drawn)
    if config.positions == "shortformer":
        table = model.get_parameter("pos_embed.W_pos")
        table.copy_(crisp_sinusoids(config.n_ctx, config.d_model))


def _fan_in(owner: nn.Module, name: str, weight: Tensor, d_model: int) -> int:
    """How many numbers one output of a weight adds up; an embedding's rows are as long as W_U's."""
    if isinstance(owner, Mixer | FeedForward):
        return owner.fan_in(name, weight)
    return d_model
