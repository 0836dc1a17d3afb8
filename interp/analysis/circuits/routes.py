"""The way from a stream through the convolutions below a head to its queries, keys and values.

A query, key or value at position t is `Σ_j x_{t-j} K_j + constants`, where x is the stream that
enters the lowest convolution of the run directly below the head. Attention and MLPs are no linear
maps and end the run: what they wrote is part of x.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.models import HookedSequenceModel
from interp.models.block import Block
from interp.models.layers import MultiHeadAttention
from interp.models.layers.attention import CHANNELS, Channel, LinearChannel
from interp.models.linear import (
    Constants,
    Factor,
    Freezing,
    Frozen,
    FrozenNorm,
    LinearLayer,
    moving,
    stay,
    wide,
)
from interp.models.shapes import KeyMask, Stream

HEAD = re.compile(r"L(\d+)H(\d+)")


@dataclass(frozen=True, eq=False)
class Route:
    """From the stream that enters a run of convolutions to one head's queries, keys or values."""

    head: str
    channel: Channel
    layer: int
    convs: tuple[LinearLayer, ...]
    end: LinearChannel
    n_ctx: int

    @property
    def source(self) -> str:
        """The hook point of the stream that is read."""
        return f"blocks.{self.layer}.hook_resid_pre"

    @property
    def lags(self) -> int:
        """How many tokens are read, the current one included: lags along the way add up."""
        smeared = self.end.share is not None
        return 1 + sum(conv.lags - 1 for conv in self.convs) + smeared

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """What has to be frozen for the maps to be linear, from the lowest."""
        below = [factor for conv in self.convs for factor in conv.factors]
        return (*below, *(() if self.end.norm is None else (self.end.norm.factor,)))

    @property
    def centered(self) -> bool:
        """Whether a LayerNorm takes the mean off the stream before anything reads it."""
        return (self.convs[0] if self.convs else self.end).centered

    def maps(self, frozen: Frozen) -> Float[Tensor, "lag d_model d_head"]:
        """The map of each lag, for a position that has all its lags; the factors are means."""
        d_model = self.end.weight.shape[0]
        maps = torch.eye(d_model).to(self.end.weight)[None]
        for conv in self.convs:
            maps = conv.parts(maps, frozen, stay)
        return self.end.maps(maps, self._last_scale(frozen))

    def parts(
        self, stream: Stream, frozen: Frozen, key_mask: KeyMask | None = None
    ) -> Float[Tensor, "lag batch pos d_head"]:
        """What the tokens of each lag add, exactly: the factors are those of these sequences."""
        parts = stream[None]
        for conv in self.convs:
            parts = conv.parts(parts, frozen, moving(key_mask))
        return self.end.parts(parts, self._last_scale(frozen), key_mask)

    def constants(self, n_pos: int, frozen: Frozen, key_mask: KeyMask | None = None) -> Constants:
        """What offsets, biases and shortformer positions add, by the name of the parameter.

        They depend on the position while it is too early to have all lags.
        """
        constants: Constants = {}
        for conv in self.convs:
            constants = conv.constants(constants, n_pos, frozen, moving(key_mask))
        return self.end.constants(constants, n_pos, self._last_scale(frozen), key_mask)

    def _last_scale(self, frozen: Frozen) -> Factor:
        return 1.0 if self.end.norm is None else frozen[self.end.norm.name]


def route(model: Any, head: str, channel: Channel) -> Route:
    """The run of convolutions directly below a head, its weights at least in float32.

    Raises:
        TypeError: not an interp model: the maps are read from its weights.
        ValueError: no such head or channel; the message lists those there are.
    """
    if channel not in CHANNELS:
        raise ValueError(f"channel is {channel!r}; choose one of {', '.join(CHANNELS)}")
    model = ours(model)
    layer, index = place_of(model, head)
    convs = run_below(model, layer)
    return Route(
        head=head,
        channel=channel,
        layer=min(convs, default=layer),
        convs=tuple(linear_layer(model, below) for below in convs),
        end=_end(model, layer, index, channel),
        n_ctx=model.config.n_ctx,
    )


def ours(model: Any, instead: str = "") -> HookedSequenceModel:
    """The model, or the one inside a compiled one; a TypeError for any other library's.

    Args:
        model: what was handed in.
        instead: what answers a question of this kind for any model.
    """
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, HookedSequenceModel):
        remedy = f", or ask {instead}" if instead else ""
        if convolutions := _convolutions(model):
            raise TypeError(
                f"{type(model).__name__} has convolutions that this analysis cannot read yet "
                f"({convolutions[0]} is the first of {len(convolutions)}); give an interp model, "
                f"such as interp.load('conv-attn'){remedy}"
            )
        raise TypeError(
            f"this is computed from the weights of interp models, through whatever convolutions "
            f"they have; those of a {type(model).__name__} are not read here; give an interp "
            f"model, such as interp.load('conv-attn'){remedy}"
        )
    return inner


def _convolutions(model: Any) -> list[str]:
    """The names of the convolutions over positions of another library's model."""
    wrapped = getattr(model, "original_model", model)
    modules = wrapped.named_modules() if isinstance(wrapped, nn.Module) else ()
    return [name for name, module in modules if isinstance(module, nn.Conv1d)]


def place_of(model: HookedSequenceModel, head: str) -> tuple[int, int]:
    """Layer and index of a head written "L1H3".

    Raises:
        ValueError: there is no such head; the message lists those there are.
    """
    match = HEAD.fullmatch(head) if isinstance(head, str) else None
    there = ", ".join(
        f"L{layer}H0 to L{layer}H{spec.n_heads - 1}" if spec.n_heads > 1 else f"L{layer}H0"
        for layer, spec in model.config.attention_layers.items()
    )
    there = f"the heads are {there}" if there else "it has no attention layer"
    if match is None:
        raise ValueError(f'head is {head!r}, but a head is written "L1H3"; {there}')
    layer, index = int(match[1]), int(match[2])
    if layer in model.conv_layers:
        raise ValueError(f"{head}: layer {layer} is a convolution and has no heads; {there}")
    if layer not in model.attention_layers or index >= model.attn(layer).W_Q.shape[0]:
        raise ValueError(f"there is no head {head}; {there}")
    return layer, index


def run_below(model: HookedSequenceModel, layer: int) -> tuple[int, ...]:
    """The convolutions directly below a layer, lowest first; an MLP ends the run."""
    first = layer
    while first > 0 and _is_linear(model, first - 1):
        first -= 1
    return tuple(range(first, layer))


def rotation(attn: MultiHeadAttention, distance: int = 0) -> Float[Tensor, "d_head d_head"]:
    """R with score(t, s) = q_t R k_sᵀ / √d_head at distance t - s, for rotary positions.

    The identity where positions are not rotary: there a distance is refused.

    Raises:
        ValueError: a distance that no score of this model has.
    """
    identity = torch.eye(attn.W_Q.shape[-1]).to(wide(attn.W_Q))
    check_turn(distance, None if attn.rotary is None else attn.rotary.n_ctx)
    if attn.rotary is None:
        return identity
    as_heads = identity.expand(1, distance + 1, -1, -1)
    return attn.rotary(as_heads)[0, distance].to(identity)


def check_turn(distance: int, n_ctx: int | None) -> None:
    """Refuse a distance that no rotary positions of this context have; None has no such positions.

    Raises:
        ValueError: a distance that no score of this model has.
    """
    if n_ctx is None and distance:
        raise ValueError(
            f"distance is {distance}, but without rotary positions the circuit is the same at "
            "every distance; leave it out"
        )
    if n_ctx is not None and distance not in range(n_ctx):
        raise ValueError(
            f"distance is {distance}, but must be a whole number from 0 to n_ctx - 1 = {n_ctx - 1}"
        )


def turn_at(attn: MultiHeadAttention, distance: int) -> Float[Tensor, "d_head d_head"]:
    """The rotation over a distance; a layer without rotary positions has none."""
    return rotation(attn, distance if attn.rotary is not None else 0)


def check_distance(model: HookedSequenceModel, distance: int) -> None:
    """Refuse a distance before any work: without rotary positions, or outside the context.

    Raises:
        ValueError: a distance that no score of this model has.
    """
    layers = [model.attn(layer) for layer in model.attention_layers]
    rotary = [attn for attn in layers if attn.rotary is not None]
    for attn in rotary[:1] or layers[:1]:
        rotation(attn, distance)


def at_distance(model: HookedSequenceModel, distance: int) -> dict[str, int]:
    """What a provenance says of the distance: nothing, where no layer has rotary positions."""
    rotary = any(model.attn(layer).rotary is not None for layer in model.attention_layers)
    return {"distance": distance} if rotary else {}


def _is_linear(model: HookedSequenceModel, layer: int) -> bool:
    block = cast(Block, model.blocks[layer])
    return block.mlp is None and next(block.sublayers(layer)).linear is not None


def linear_layer(model: HookedSequenceModel, layer: int) -> LinearLayer:
    """The mixer of one layer as a linear map, with its norm and its residual path.

    Raises:
        ValueError: it is none.
    """
    linear = next(cast(Block, model.blocks[layer]).sublayers(layer)).linear
    if linear is None:
        raise ValueError(f"layer {layer} is no linear map of the stream")
    return linear()


def _end(model: HookedSequenceModel, layer: int, index: int, channel: Channel) -> LinearChannel:
    block, attn = cast(Block, model.blocks[layer]), model.attn(layer)
    norm = None if block.wiring.post_norm else FrozenNorm.of(block.ln1, f"blocks.{layer}.ln1")
    added = model.pos_embed is not None and not model.positions_enter_stream
    return attn.channel(layer, index, channel, norm, model.W_pos if added else None)
