"""What a head reads: one linear map per lag, from the weights.

A query, key or value at position t is `Σ_j x_{t-j} K_j + constants`, where x is the stream that
enters the lowest convolution of the run directly below the head. Attention and MLPs are no linear
maps and end the run: what they wrote is part of x.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.frozen_factors import MeanScales, mean_scales
from interp.analysis.circuits.routes import CHANNELS, Channel, ours, place_of, route
from interp.models.linear import Frozen
from interp.models.shapes import Tokens


@dataclass(frozen=True, eq=False)
class Reads:
    """What one head reads: `Σ_j x_{t-j} maps[j] + bias[t]`, with the norms at mean scales.

    Attributes:
        head: "L1H3".
        channel: "q", "k" or "v".
        source: the hook point of x, "blocks.0.hook_resid_pre".
        layer: the layer that x enters; 0 means that x is the embedding, with positions if they
            enter the stream.
        maps: one map per lag, gains and centring of the norms folded in. Of smeared keys they hold
            for every key that has a key before it.
        constants: what no token writes, by the name of its parameter ("blocks.0.conv.b_conv",
            "pos_embed.W_pos" for shortformer positions): `[pos d_head]`, over n_ctx positions.
            Biases are constant once a position has all its lags.
        scales: the mean of every frozen factor, by name: what a norm divides by, a gate.
        scales_from: where the scales come from: "tokens", the embedding, "no norm".
        n_ctx: the model's longest context.
        centered: no map reads the mean over the directions of x: a LayerNorm takes it off first.
    """

    head: str
    channel: Channel
    source: str
    layer: int
    maps: Float[Tensor, "lag d_model d_head"]
    constants: Mapping[str, Float[Tensor, "pos d_head"]]
    scales: Frozen
    scales_from: str
    n_ctx: int
    centered: bool

    @property
    def lags(self) -> int:
        """How many tokens are read, the current one included."""
        return len(self.maps)

    @property
    def bias(self) -> Float[Tensor, "pos d_head"]:
        """The sum of the constants; zero where there are none."""
        nothing = self.maps.new_zeros(self.n_ctx, self.maps.shape[-1])
        return sum(self.constants.values(), start=nothing)


HeadReads = Mapping[Channel, Reads]
"""What a head's queries, keys and values read, at the same scales."""


def reads(
    model: Any,
    head: str,
    channel: Channel = "k",
    *,
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    scales: MeanScales | None = None,
) -> Reads:
    """Which map does a head apply to the token at each lag, for its queries, keys or values?

    Through the convolutions directly below it, any number of them, with and without residual, and
    through the smearing of its own keys, a two-lag convolution. Exact but for the norms: their
    scales depend on the input, and one mean scale stands for each.
    `interp.analysis.lags.lag_circuits` has the exact account of given sequences.

    Args:
        model: an interp model.
        head: "L1H3".
        channel: "q", "k" or "v".
        tokens: `[batch pos]` to take the mean scales from. Without, they are those that the
            embedding implies, lags being independent.
        frequencies: how frequent each token is, for that; default: all alike.
        scales: mean scales that are known already.

    Returns:
        The maps, in float32 or wider whatever the weights are in.

    Raises:
        TypeError: not an interp model.
        ValueError: no such head or channel; or the head reads what other layers wrote, through a
            convolution and a norm, and there are no tokens to tell its scale.

    Source: the lag formula is ours; smeared keys are Olsson et al.'s (2022, argument 2).

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16, lags=2)
    >>> reads(model, "L1H3", "k").maps.shape
    torch.Size([2, 32, 8])
    """
    way = route(model, head, channel)
    if scales is None:
        scales = mean_scales(ours(model), way, tokens, frequencies)
    constants = way.constants(way.n_ctx, scales.scales)
    return Reads(
        head=head,
        channel=channel,
        source=way.source,
        layer=way.layer,
        maps=way.maps(scales.scales),
        constants={name: x[0] for name, x in constants.items()},
        scales=scales.scales,
        scales_from=scales.origin,
        n_ctx=way.n_ctx,
        centered=way.centered,
    )


def all_reads(
    model: Any,
    heads: Iterable[str],
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
) -> dict[str, HeadReads]:
    """What several heads read, the scales below each layer being measured once."""
    model = ours(model)
    scales: dict[int, MeanScales] = {}
    read: dict[str, HeadReads] = {}
    for head in heads:
        layer, _ = place_of(model, head)
        if layer not in scales:
            scales[layer] = mean_scales(model, route(model, head, "q"), tokens, frequencies)
        read[head] = {c: reads(model, head, c, scales=scales[layer]) for c in CHANNELS}
    return read
