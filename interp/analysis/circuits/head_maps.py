"""A head's virtual weights: its maps on the stream, through the convolutions directly below it.

A query, key or value at position t is `Σ_j x_{t-j} K_j + constants`, where x is the stream that
enters the lowest convolution of the run directly below the head. Attention and MLPs are no linear
maps and end the run: what they wrote is part of x.

A norm acts as `C diag(γ) / s` on what it reads. C diag(γ) is folded into the maps behind it; the
scale s depends on the token. Where a LayerNorm takes the mean off, what is written along
(1, ..., 1) reaches nobody: it is taken off the maps that write as well, as TransformerLens's
`fold_ln` and `center_writing_weights` do. Everything is in float32 or wider.

All of it comes from what a layer says of itself (`interp.models.description`), whoever wrote it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.models.checks import require_choice
from interp.models.description import Attending, Sublayer, Term, Writer
from interp.models.linear import (
    CHANNELS,
    Added,
    Channel,
    Constants,
    Factor,
    Freezing,
    Frozen,
    LinearChannel,
    LinearLayer,
    Source,
    moving,
    stay,
    wide,
)
from interp.models.shapes import KeyMask, Stream
from interp.views import View, view


@dataclass(frozen=True, eq=False)
class Route:
    """From the stream that enters a run of convolutions to one head's queries, keys or values."""

    head: str
    layer: int
    convs: tuple[LinearLayer, ...]
    end: LinearChannel

    @property
    def source(self) -> str:
        """The hook point of the stream that is read."""
        return f"blocks.{self.layer}.hook_resid_pre"

    @property
    def lags(self) -> int:
        """How many tokens are read, the current one included: lags along the way add up."""
        return self.end.lags + sum(conv.lags - 1 for conv in self.convs)

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """What has to be frozen for the maps to be linear, from the lowest."""
        below = [factor for conv in self.convs for factor in conv.factors]
        return (*below, *self.end.factors)

    @property
    def sources(self) -> tuple[str, ...]:
        """What is added on the way by what is no linear map of the stream."""
        return tuple(conv.name for conv in self.convs if isinstance(conv, Source))

    @property
    def hooks(self) -> list[str]:
        """What parts and constants are made of: the stream that is read, and the factors."""
        return [self.source, *(factor.hook for factor in self.factors)]

    def frozen(self, activations: Mapping[str, Tensor]) -> dict[str, Factor]:
        """The factors, from the activations at `hooks`."""
        return {factor.name: factor.of(activations[factor.hook]) for factor in self.factors}

    @property
    def centered(self) -> bool:
        """Whether a LayerNorm takes the mean off the stream before anything reads it."""
        return (self.convs[0] if self.convs else self.end).centered

    def maps(self, frozen: Frozen) -> Float[Tensor, "lag d_model d_head"]:
        """The map of each lag, for a position that has all its lags; the factors are means."""
        return self.end.maps(self.maps_below(frozen), frozen)

    def maps_below(self, frozen: Frozen) -> Float[Tensor, "lag d_model d_model"] | None:
        """Those of the convolutions alone; None where there are none."""
        maps = None
        for conv in self.convs:
            identity = torch.eye(len(self.end.weight)).to(self.end.weight)[None]
            maps = conv.parts(identity if maps is None else maps, frozen, stay)
        return maps

    def parts(
        self, stream: Stream, frozen: Frozen, key_mask: KeyMask | None = None
    ) -> Float[Tensor, "lag batch pos d_head"]:
        """What the tokens of each lag add, exactly: the factors are those of these sequences."""
        parts, move = stream[None], moving(key_mask)
        for conv in self.convs:
            parts = conv.parts(parts, frozen, move)
        return self.end.parts(parts, frozen, move)

    def constants(self, n_pos: int, frozen: Frozen, key_mask: KeyMask | None = None) -> Constants:
        """What offsets, biases and shortformer positions add, by the name of the parameter.

        They depend on the position while it is too early to have all lags.
        """
        below = self.constants_below(n_pos, frozen, key_mask)
        return self.end.constants(below, n_pos, frozen, moving(key_mask))

    def constants_below(
        self, n_pos: int, frozen: Frozen, key_mask: KeyMask | None = None
    ) -> Constants:
        """What the convolutions alone add."""
        constants: Constants = {}
        for conv in self.convs:
            constants = conv.constants(constants, n_pos, frozen, moving(key_mask))
        return constants

    def past_the_norm(self) -> "Route":
        """For positions that are added behind convolutions and norms."""
        return replace(self, convs=(), end=replace(self.end, norm=None))


@dataclass(frozen=True, eq=False)
class HeadMaps:
    """All that the weights of one head say: what it reads, how it matches, what it writes.

    Attributes:
        viewed: the model.
        label: "L1H3".
        layer: its layer.
        index: its number there.
        sublayer: what its layer's attention says of itself.
        convs: the convolutions directly below, lowest first.
    """

    viewed: View
    label: str
    layer: int
    index: int
    sublayer: Sublayer
    convs: tuple[LinearLayer, ...]

    @property
    def attending(self) -> Attending:
        """How queries meet keys."""
        assert self.sublayer.attending is not None
        return self.sublayer.attending

    @property
    def source(self) -> int:
        """The layer that the stream which is read enters."""
        return min((conv.layer for conv in self.convs), default=self.layer)

    @cached_property
    def routes(self) -> dict[Channel, Route]:
        """The ways to its queries, keys and values: all three read the same stream."""
        return {channel: self.route(channel) for channel in CHANNELS}

    def route(self, channel: Channel) -> Route:
        """The way to one of them."""
        require_choice("channel", channel, CHANNELS)
        end = self.attending.channel(self.index, channel)
        return Route(self.label, self.source, self.convs, end)

    @property
    def hooks(self) -> list[str]:
        """What all three are made of."""
        return list(dict.fromkeys(name for way in self.routes.values() for name in way.hooks))

    @property
    def bias_hooks(self) -> tuple[str, ...]:
        """Where it stands what else is added to its scores, if anything is."""
        return () if self.attending.bias is None else (self.attending.bias,)

    @property
    def reads_back(self) -> bool:
        """Whether it reads an earlier token through its weights."""
        return any(way.lags > 1 for way in self.routes.values())

    @property
    def term(self) -> Term:
        """What it writes."""
        return self.sublayer.terms[self.index]

    @property
    def W_O(self) -> Float[Tensor, "d_head d_model"]:
        """From what it attended to, to what it writes at the same position.

        Through taps a head also writes at later ones: `unmapped` says so, and `written` has all.
        """
        return self.term.maps()[0]

    @property
    def W_O_by_lag(self) -> Float[Tensor, "lag d_head d_model"]:
        """The same to what it writes at later positions, lag 0 first."""
        return self.term.maps()

    def written(self, z: Float[Tensor, "*_ pos d_head"]) -> Float[Tensor, "*_ pos d_model"]:
        """All that it writes, from what it attended to at every position."""
        return self.term.spread(self.term.mapped(z))

    @property
    def unmapped(self) -> tuple[str, ...]:
        """What its map leaves out, for a provenance: what it writes after it has read."""
        lags = self.term.lags
        late = f"what L{self.layer} writes at lags 1 to {lags - 1} of its taps"
        return (late,) if lags > 1 else ()

    @property
    def output(self) -> Float[Tensor, "d_head d_model"]:
        """W_O as the stream's readers see it: norms behind it, and its mean taken off."""
        W_O, norm = self.W_O, self.sublayer.norm
        if self.sublayer.behind is not None:
            W_O = self.sublayer.behind.behind(W_O)
        return W_O if norm is None or self.sublayer.post_norm else norm.writing(W_O)

    @property
    def turns(self) -> bool:
        """Whether its scores depend on the distance by rotary positions."""
        return self.attending.rotate is not None

    def rotation(self, distance: int) -> Float[Tensor, "d_head d_head"] | None:
        """R with score(t, s) = q_t R k_sᵀ · scale at distance t - s; None where nothing turns."""
        if (rotate := self.attending.rotate) is None:
            return None
        weight = self.attending.channel(self.index, "q").weight
        identity = torch.eye(weight.shape[1]).to(weight)
        return identity if distance == 0 else rotate(identity[None, None], distance)[0, 0]

    def turned(self, queries: Float[Tensor, "*_ d_head"], distance: int) -> Tensor:
        """Queries as keys at this distance meet them."""
        R = self.rotation(distance)
        return queries if R is None else queries @ R

    def hidden_embedding(self) -> str:
        """Why the embedding is no part of the stream that is read; empty where it is."""
        if self.source == 0:
            return ""
        if self.sublayer.post_norm:
            return _post_norm(self.viewed)
        if not self.viewed.residual:
            return (
                f"{self.viewed.name} has no residual stream: {self.label} reads what layer "
                f"{self.source - 1} made of the tokens, not the tokens; ask for the residual basis"
            )
        return ""

    def check_embedding(self) -> None:
        """Refuse a head that does not read the embedding, nor a stream that it is a part of."""
        if why := self.hidden_embedding():
            raise ValueError(why)

    def check_output(self) -> None:
        """Refuse a head that the unembedding does not read."""
        check_pre_norm(self.viewed, self.sublayer)
        if not self.viewed.residual and self.layer < self.viewed.n_layers - 1:
            raise ValueError(
                f"{self.viewed.name} has no residual stream: what layer {self.layer} writes is "
                f"read by layer {self.layer + 1}, not by the unembedding; ask for the residual "
                "basis"
            )

    def check_positions(self) -> Float[Tensor, "pos d_model"]:
        """W_pos, where it is in the stream or added to this head's queries and keys.

        Raises:
            ValueError: no table of positions reaches the head.
        """
        table = self.viewed.position_table
        blind = f"the layer of {self.label} sees no positions: none are added there"
        if table is None:
            why = "they are rotary; ask for another basis, at a distance" if self.turns else blind
            raise ValueError(f"{self.viewed.name} has no table of positions, and {why}")
        if self.viewed.positions_enter_stream:
            self.check_embedding()
        elif self.routes["q"].end.positions is None:
            raise ValueError(blind)
        return wide(table)


def head_maps(
    viewed: View, labels: Iterable[str] | None = None, past_mlps: bool = False
) -> dict[str, HeadMaps]:
    """The maps of some heads, or of all; what lies below a layer is read once.

    Args:
        viewed: the model.
        labels: the heads.
        past_mlps: whether an MLP behind a convolution is a source beside it (`Source`), and does
            not end the run; tokens then have to say what it adds.

    Raises:
        ValueError: no such head.
    """
    layers: dict[int, tuple[Sublayer, tuple[LinearLayer, ...]]] = {}
    found = {}
    for label in viewed.head_labels if labels is None else labels:
        layer, index = viewed.head(label)
        if layer not in layers:
            layers[layer] = _attention(viewed, layer), run_below(viewed, layer, past_mlps)
        found[label] = HeadMaps(viewed, label, layer, index, *layers[layer])
    return found


def layer_heads(viewed: View, layer: int) -> list[HeadMaps]:
    """The maps of one layer's heads."""
    labels = [f"L{layer}H{index}" for index in range(viewed.heads[layer])]
    return list(head_maps(viewed, labels).values())


def padded(maps: Sequence[Float[Tensor, "_ d_in d_out"]]) -> list[Float[Tensor, "lag d_in d_out"]]:
    """Maps of as many lags: those of a head that has fewer are zero."""
    most = max(map(len, maps))
    return [F.pad(one, (0, 0, 0, 0, 0, most - len(one))) for one in maps]


def by_layer(heads: Iterable[HeadMaps]) -> dict[int, list[HeadMaps]]:
    """The heads of each layer: they read the same stream through the same convolutions."""
    layers: dict[int, list[HeadMaps]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head)
    return layers


def route(model: Any, head: str, channel: Channel) -> Route:
    """From the stream below a head's convolutions to its queries, keys or values.

    Raises:
        ValueError: no such head or channel, or weights that cannot be read.
    """
    return head_maps(view(model), [head])[head].route(channel)


def run_below(viewed: View, layer: int, past_mlps: bool = False) -> tuple[LinearLayer, ...]:
    """The convolutions directly below a layer, lowest first; whatever is not linear ends them.

    With `past_mlps` an MLP behind a convolution ends nothing, and is a source of its own.
    """
    run: list[LinearLayer] = []
    for below in reversed(range(layer)):
        mixer, *others = viewed.sublayers(below) or (None,)
        plain = past_mlps and not any(one.post_norm for one in others)
        if mixer is None or mixer.linear is None or (others and not plain):
            break
        run[:0] = [mixer.linear(), *(_source(one.writer) for one in others)]
    return tuple(run)


def _source(writer: Writer) -> Source:
    added = Added(writer.label, writer.hook, writer.scale)
    return Source(
        layer=writer.layer,
        name=writer.label,
        norm=None,
        residual=True,
        post_norm=False,
        added=added,
    )


def convolutions(viewed: View) -> dict[int, LinearLayer]:
    """Every layer that is linear in several tokens, given its frozen factors."""
    sublayers = (sublayer for layer in viewed.lags for sublayer in viewed.sublayers(layer))
    layers = (sublayer.linear() for sublayer in sublayers if sublayer.linear is not None)
    return {layer.layer: layer for layer in layers}


def lag_names(n: int) -> tuple[str, ...]:
    """What results call lags: "lag 0", "lag 1", ..."""
    return tuple(f"lag {lag}" for lag in range(n))


def lag_maps(viewed: View, conv: LinearLayer) -> Float[Tensor, "lag d_model d_model"]:
    """C diag(γ) W_j of every lag, without the residual path; with post-norm or none, W_j.

    Raises:
        ValueError: they depend on the tokens.
    """
    if not conv.is_implied:
        raise ValueError(
            f"layer {conv.layer} is a convolution between gates, and what it applies to a token "
            "depends on the tokens around it: its weights alone give no map per lag. "
            'reads(model, "L1H3", tokens=tokens) has the maps of a head above it, at mean gates'
        )
    weights = wide(viewed.embedding)
    identity = torch.eye(weights.shape[1]).to(weights)
    if conv.norm is not None and not conv.post_norm:
        identity = conv.norm(identity, 1.0)
    return torch.stack(list(conv.terms(identity, {}, stay)))


def refuse_unread(viewed: View) -> None:
    """Refuse a model with convolutions that its view does not describe."""
    if unread := viewed.unread_convolutions:
        raise TypeError(
            f"{viewed.name} has convolutions through which this analysis cannot read ({unread[0]} "
            f"is the first of {len(unread)}); of a Hugging Face model in a bridge, wrap the model "
            "itself: interp.wrap(hf_model)"
        )


def check_pre_norm(viewed: View, sublayer: Sublayer) -> None:
    """Refuse a model in which what one layer writes is not what another reads."""
    if sublayer.post_norm:
        raise ValueError(_post_norm(viewed))


def check_distance(viewed: View, heads: Collection[HeadMaps], distance: int) -> None:
    """Refuse a distance that no score of these heads has, before any work.

    Raises:
        ValueError: it is outside the context, or nothing turns and the circuit is the same at all.
    """
    if not heads:
        return
    if not any(head.turns for head in heads):
        if distance:
            raise ValueError(
                f"distance is {distance}, but without rotary positions the circuit is the same at "
                "every distance; leave it out"
            )
    elif distance not in range(viewed.n_ctx):
        raise ValueError(
            f"distance is {distance}, but must be a whole number from 0 to n_ctx - 1 = "
            f"{viewed.n_ctx - 1}"
        )


def at_distance(heads: Iterable[HeadMaps], distance: int) -> dict[str, int]:
    """What a provenance says of the distance: nothing, where nothing turns."""
    return {"distance": distance} if any(head.turns for head in heads) else {}


def unmapped(heads: Iterable[HeadMaps]) -> tuple[str, ...]:
    """What one map per head leaves out: what goes through taps to later positions."""
    return tuple(dict.fromkeys(name for head in heads for name in head.unmapped))


def _attention(viewed: View, layer: int) -> Sublayer:
    for sublayer in viewed.sublayers(layer):
        if sublayer.attending is not None:
            return sublayer
    raise ValueError(f"{viewed.name}: what the heads of layer {layer} read is not known")


def _post_norm(viewed: View) -> str:
    return (
        f"{viewed.name} normalises the stream itself after every layer (post-norm), so what one "
        "layer writes is not what another reads. Use a pre-norm model"
    )
