"""What a head reads: one linear map per lag, with its norms and gates frozen.

On sequences the frozen factors are theirs, and the account is exact (`Route.parts`). For the
weights alone, means stand for them: over given tokens, or those that the embedding implies.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.analysis.circuits.head_maps import HeadMaps, Route, by_layer, head_maps
from interp.models.linear import (
    Channel,
    Constants,
    Factor,
    Freezing,
    Frozen,
    FrozenNorm,
    later,
    stay,
)
from interp.models.shapes import Tokens
from interp.views import View, view

TOKENS_AT_ONCE = 4_096

POSITIONS = 1_024
"""How many positions constants are given for where nobody asks for more."""


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
            "pos_embed.W_pos" for shortformer positions): `[pos d_head]`, over n_ctx positions, or
            of a longer context over the first 1,024, or those of given tokens.
            Biases are constant once a position has all its lags.
        scales: the mean of every frozen factor, by name: what a norm divides by, a gate.
        scales_from: where the scales come from: "tokens", the embedding, "no norm".
        n_ctx: over how many positions they are.
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


@dataclass(frozen=True)
class MeanScales:
    """The mean of every frozen factor, and where they come from."""

    scales: Frozen
    origin: str


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
    through the smearing of its own keys, a two-lag convolution. Exact but for the norms, and gates:
    they depend on the input, and one mean stands for each.
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
        TypeError: no model that can be viewed.
        ValueError: no such head or channel; a model whose biases are not known; or the head reads
            what other layers wrote, through a convolution and a norm, or reads through gates, and
            there are no tokens to tell its scale.

    Source: the lag formula is ours; smeared keys are Olsson et al.'s (2022, argument 2).

    >>> from interp.models import HookedConvAttn
    >>> model = HookedConvAttn(d_vocab=100, d_model=32, n_heads=4, n_ctx=16, lags=2)
    >>> reads(model, "L1H3", "k").maps.shape
    torch.Size([2, 32, 8])
    """
    maps = head_maps(view(model), [head])[head]
    way = maps.route(channel)
    if not way.end.has_constants:
        raise ValueError(
            f"{maps.viewed.name}: which biases its heads have is not known here, so {head} reads "
            "more than its maps; qk_circuit and ov_circuit answer for the maps"
        )
    n_pos = 0 if tokens is None else tokens.shape[1]
    return _Below.of(maps, scales or mean_scales(maps, tokens, frequencies), n_pos).read(way)


def read_heads(
    heads: Collection[HeadMaps],
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    captured: Mapping[str, Tensor] | None = None,
) -> dict[str, HeadReads]:
    """What several heads read, by label; what lies below a layer is computed once."""
    found: dict[str, HeadReads] = {}
    for layer in by_layer(heads).values():
        n_pos = 0 if tokens is None else tokens.shape[1]
        scales = mean_scales(layer, tokens, frequencies, captured)
        below = _Below.of(layer[0], scales, n_pos)
        for head in layer:
            found[head.label] = {c: below.read(way) for c, way in head.routes.items()}
    return found


@dataclass(frozen=True, eq=False)
class _Below:
    """What lies below a layer, with mean factors: the same for all its heads."""

    scales: MeanScales
    maps: Float[Tensor, "lag d_model d_model"] | None
    constants: Constants
    n_ctx: int

    @classmethod
    def of(cls, head: HeadMaps, scales: MeanScales, n_pos: int) -> "_Below":
        way = head.route("v")
        n_ctx = max(min(head.viewed.n_ctx, POSITIONS), n_pos)
        frozen = scales.scales
        return cls(scales, way.maps_below(frozen), way.constants_below(n_ctx, frozen), n_ctx)

    def read(self, way: Route) -> Reads:
        end, frozen, constants = way.end, self.scales.scales, {}
        if end.has_constants:
            constants = end.constants(self.constants, self.n_ctx, frozen, later)
        return Reads(
            head=way.head,
            channel=end.channel,
            source=way.source,
            layer=way.layer,
            maps=end.maps(self.maps, frozen),
            constants={name: x[0] for name, x in constants.items()},
            scales=frozen,
            scales_from=self.scales.origin,
            n_ctx=self.n_ctx,
            centered=way.centered,
        )


def activations(viewed: View, tokens: Tokens, names: Iterable[str]) -> dict[str, Tensor]:
    """What is computed at these hook points, in float32 or wider; nothing above is computed."""
    captured = viewed.capture(tokens, list(dict.fromkeys(names)))
    return {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in captured.items()}


def mean_scales(
    heads: HeadMaps | Sequence[HeadMaps],
    tokens: Tokens | None = None,
    frequencies: Float[Tensor, " vocab"] | None = None,
    captured: Mapping[str, Tensor] | None = None,
) -> MeanScales:
    """Mean factors over tokens; without, what the embedding under unigram frequencies implies.

    Args:
        heads: one, or several of one layer.
        tokens: `[batch pos]`.
        frequencies: of tokens, where there are none.
        captured: the activations of these tokens at the factors' hook points, if they are known.

    Raises:
        ValueError: nothing is known of the stream without tokens; or tokens where nobody needs
            them.
    """
    heads = [heads] if isinstance(heads, HeadMaps) else heads
    head, viewed = heads[0], heads[0].viewed
    ways = tuple(way for one in heads for way in one.routes.values())
    factors = {factor.name: factor for way in ways for factor in way.factors}
    reads_back = any(way.lags > 1 for way in ways)
    if tokens is not None and not viewed.starts_from_tables and not reads_back:
        raise ValueError(
            f"tokens are for the scales of norms below convolutions, and {viewed.name} has none of "
            "those that can be read; leave them out"
        )
    if not factors:
        return MeanScales({}, "no norm")
    gated = any(not part.is_implied for way in ways for part in (*way.convs, way.end))
    if tokens is not None:
        # A gate is between two tokens: that of the longest lag needs both.
        viewed.check_tokens(tokens, at_least=max(way.lags for way in ways) if gated else 1)
        return MeanScales(_means(viewed, factors.values(), tokens, captured), "tokens")
    if gated:
        raise ValueError(
            f"{head.label} reads through a gated convolution, whose gates depend on the tokens. "
            "Give tokens, and the maps are those at their mean"
        )
    if head.source == 0 and viewed.starts_from_tables:
        moments = embedding_moments(viewed, frequencies, positions=True)
        weights = "uniform" if frequencies is None else "given"
        return MeanScales(_implied(ways, moments), f"embedding under {weights} frequencies")
    if head.convs:
        raise ValueError(
            f"{head.label} reads {ways[0].source}, which is not the embedding: how the norms scale "
            "it cannot be told from the weights. Give tokens"
        )
    # Without a convolution there is one norm, and its scale a factor of everything.
    unknown = {name: factor.unknown for name, factor in factors.items()}
    return MeanScales(unknown, "1: a common factor, left out")


def _means(
    viewed: View,
    factors: Iterable[Freezing],
    tokens: Tokens,
    captured: Mapping[str, Tensor] | None = None,
) -> Frozen:
    factors, totals, counts = tuple(factors), dict[str, Factor](), dict[str, Factor]()
    hooks = [factor.hook for factor in factors]
    some_at_once = tokens.split(max(1, TOKENS_AT_ONCE // tokens.shape[1]))
    computed = (activations(viewed, some, hooks) for some in some_at_once)
    for found in computed if captured is None else [captured]:
        for factor in factors:
            activation, name = found[factor.hook], factor.name
            totals[name] = totals.get(name, 0.0) + factor.total(activation)
            counts[name] = counts.get(name, 0.0) + factor.count(activation)
    means = {name: total / counts[name] for name, total in totals.items()}
    dtype = torch.promote_types(next(viewed.model.parameters()).dtype, torch.float32)
    return {name: x.to(dtype) if isinstance(x, Tensor) else x for name, x in means.items()}


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of a stream at one position; positions are taken as independent."""

    mean: Float[Tensor, " d_model"]
    covariance: Float[Tensor, "d_model d_model"]


def embedding_moments(
    viewed: View, frequencies: Float[Tensor, " vocab"] | None, positions: bool = False
) -> Moments:
    """Of the embedding under unigram frequencies (default: uniform).

    With `positions` the table of positions is counted in, where it enters the stream.
    """
    weights = check_frequencies(viewed, frequencies)
    moments = _moments(viewed.embedding.detach(), weights)
    table = viewed.position_table
    if not positions or table is None or not viewed.positions_enter_stream:
        return moments
    table = table.detach()
    where = _moments(table, torch.ones(len(table), device=table.device) / len(table))
    return Moments(moments.mean + where.mean, moments.covariance + where.covariance)


def check_frequencies(
    viewed: View, frequencies: Float[Tensor, " vocab"] | None
) -> Float[Tensor, " vocab"]:
    """Frequencies that add up to 1; uniform where none are given.

    Raises:
        ValueError: not one number of at least 0 per token, or none above 0.
    """
    d_vocab, device = viewed.d_vocab, viewed.embedding.device
    if frequencies is None:
        return torch.full((d_vocab,), 1 / d_vocab, dtype=torch.float64, device=device)
    given = torch.as_tensor(frequencies, dtype=torch.float64, device=device)
    if (
        given.shape != (d_vocab,)
        or not given.isfinite().all()
        or given.min() < 0
        or not given.any()
    ):
        raise ValueError(
            f"frequencies have shape {tuple(given.shape)}; give one finite number of at least 0 "
            f"for each of the {d_vocab} tokens, such as torch.bincount(tokens.flatten(), "
            f"minlength={d_vocab})"
        )
    return given / given.sum()


def _moments(rows: Float[Tensor, "vocab d_model"], weights: Float[Tensor, " vocab"]) -> Moments:
    weights = weights.double()
    width = rows.shape[1]
    mean = torch.zeros(width, dtype=torch.float64, device=rows.device)
    square = mean.new_zeros(width, width)
    chunks = zip(rows.split(TOKENS_AT_ONCE), weights.split(TOKENS_AT_ONCE), strict=True)
    for some, weight in chunks:
        wide = some.double()
        mean += weight @ wide
        square += (wide * weight[:, None]).T @ wide
    return Moments(mean, square - torch.outer(mean, mean))


def _implied(ways: Collection[Route], moments: Moments) -> Frozen:
    """The root mean square of what each norm divides by, from the lowest to the highest."""
    scales: dict[str, Factor] = {}
    convs, ends = next(iter(ways)).convs, [way.end for way in ways]
    maps = torch.eye(len(moments.mean)).to(ends[0].weight)[None]
    constants: Constants = {}
    n_pos = max(way.lags for way in ways)  # the last of these positions has all its lags
    for conv in convs:
        if conv.norm is not None:
            normalised = maps, constants
            if conv.post_norm:
                before = conv.written_constants(constants, n_pos, scales, later)
                normalised = conv.written(maps, scales, stay), before
            scales[conv.norm.name] = _root_mean_square(conv.norm, moments, *normalised)
        maps = conv.parts(maps, scales, stay)
        constants = conv.constants(constants, n_pos, scales, later)
    for norm in {end.norm.name: end.norm for end in ends if end.norm is not None}.values():
        scales[norm.name] = _root_mean_square(norm, moments, maps, constants)
    for end in ends:
        scales |= end.implied(partial(_mean_square, moments), maps, constants, scales)
    return scales


def _root_mean_square(
    norm: FrozenNorm, moments: Moments, maps: Float[Tensor, "lag d_model d_model"], more: Constants
) -> float:
    centered = {name: norm.center(x.double()) for name, x in more.items()}
    return (_mean_square(moments, norm.center(maps.double()), centered) + norm.eps) ** 0.5


def _mean_square(
    moments: Moments, maps: Float[Tensor, "lag d_model _"], constants: Constants
) -> float:
    """Of what maps and constants make of a stream, lags being independent."""
    maps = maps.double()
    mean = moments.mean @ maps.sum(0)
    for constant in constants.values():
        mean = mean + constant[0, -1].double()
    variance = sum(((moments.covariance @ one) * one).sum(0) for one in maps)
    return float((mean.square() + variance).mean())
