"""What a model says of itself: what writes to its residual stream, where, and in which order.

In the words of Elhage et al. (2021) every sublayer reads the residual stream and writes to it, so
the stream is the sum of what was written. A view lists the writers of its model. What a layer
writes, what lies between two ends of a path, and what a logit is a sum of follow from that list.

A `Sublayer` says the rest: the terms that a writer's sum is made of (heads, lags) and how each
becomes a vector of the stream, what reads the stream for it (queries, keys, values), its norm, and
the linear map that it is once frozen factors are given, if it is one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interp.models.linear import Channel, FrozenNorm, LinearChannel, LinearLayer, later

Position = int | slice
ALL = slice(None)

Order = tuple[int, int]
"""Where in a model something happens: the layer (-1 below the first), and the step within it."""


class Step(IntEnum):
    """What happens within a layer, in this order."""

    BEFORE = 0
    READ = 1
    WRITTEN = 2
    MIDDLE = 3
    MLP = 4
    MLP_WRITTEN = 5
    AFTER = 6


STREAM = {"resid_pre": Step.BEFORE, "resid_mid": Step.MIDDLE, "resid_post": Step.AFTER}
"""Where a layer's stream stands, and when: entering, between its mixers and its MLP, leaving."""


def stream_hook(layer: int, name: str) -> str:
    """The hook point of a layer's stream, by its name in `STREAM`."""
    return f"blocks.{layer}.hook_{name}"


@dataclass(frozen=True)
class Writer:
    """Something that adds a term to the residual stream.

    Attributes:
        label: as units and parts of results are written: `embed`, `L1.attn`, `L3.mamba`, `L2.mlp`.
        hook: the hook point where its term stands, behind whatever norm is applied to it.
        layer: whose it is; -1 for embeddings.
        kind: what it is within its layer: `attn`, `conv`, `mamba`, `mlp`; or `embed`, `pos_embed`.
        module: the module that computes it; hook points inside begin with this name.
        is_mlp: whether it reads the stream after its layer's mixers have written, which read it
            side by side.
        scale: what the activation at the hook point is multiplied with before it is added.
    """

    label: str
    hook: str
    layer: int
    kind: str
    module: str
    is_mlp: bool = False
    scale: float = 1.0

    @classmethod
    def embedding(cls, kind: str, hook: str | None = None, scale: float = 1.0) -> "Writer":
        """Of what enters the first layer."""
        return cls(kind, hook or f"hook_{kind}", -1, kind, kind, scale=scale)

    @property
    def reads(self) -> Order:
        """What is written before this changes it."""
        return self.layer, Step.MLP if self.is_mlp else Step.READ

    @property
    def writes(self) -> Order:
        """What reads after this sees it changed."""
        return self.layer, Step.MLP_WRITTEN if self.is_mlp else Step.WRITTEN

    def contains(self, hook: str) -> bool:
        """Whether a hook point is its own or lies inside its module."""
        return hook == self.hook or hook.startswith(f"{self.module}.")

    def term(self, activation: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """What is added to the stream, from the activation at its hook point."""
        return activation if self.scale == 1.0 else activation * self.scale


def of_layer(writers: Iterable[Writer], layer: int) -> tuple[Writer, ...]:
    """All that a layer writes; the embeddings for layer -1."""
    return tuple(writer for writer in writers if writer.layer == layer)


def between(writers: Iterable[Writer], first: Order, last: Order) -> Iterator[Writer]:
    """All that reads after `first` was written and has written before `last` reads."""
    return (writer for writer in writers if first < writer.reads and writer.writes < last)


@dataclass(frozen=True, eq=False)
class Place:
    """Part of the activation at a hook point.

    Attributes:
        hook: the hook point's name.
        index: which entries, along each axis after the batch.
        position_axis: which of these axes runs over positions.
    """

    hook: str
    index: tuple[Position, ...] = (ALL,)
    position_axis: int = 0

    def at(self, position: Position) -> "Place":
        """The same at one or several positions."""
        index = list(self.index)
        index[self.position_axis] = position
        return Place(self.hook, tuple(index), self.position_axis)

    def of(self, activation: Shaped[Tensor, "batch *rest"]) -> Shaped[Tensor, "batch *part"]:
        """This part of it, as a view."""
        return activation[(ALL, *self.index)]


@dataclass(frozen=True, eq=False)
class Term:
    """One of the terms that a writer's sum is made of.

    Where a depthwise convolution stands between a sublayer and the stream, what is read at one
    position is written at several: `Σ_j c_j ⊙ (y_{t-j} W)`.

    Attributes:
        label: "L1H3", "L0.lag1", "L1.attn.lag1".
        kind: "head", "lag", or "out.lag" for a lag of such a convolution.
        place: where it is read.
        to_stream: gives the map W from there to the stream; None where it is a vector of the
            stream. Weights are read only when they are asked for.
        taps: gives c, of the convolution that it goes through on its way; None where there is none.
        lag: of a convolution's term, how far back the token lies that it comes from.
    """

    label: str
    kind: str
    place: Place
    to_stream: Callable[[], Float[Tensor, "d_in d_model"]] | None = None
    taps: Callable[[], Float[Tensor, "lag d_model"]] | None = None
    lag: int | None = None

    def written(self, activation: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """What it adds, from the activation at its hook point."""
        return self.spread(self.projected(activation))

    def projected(self, activation: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The same before taps."""
        return self.mapped(self.place.of(activation))

    def mapped(self, part: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_model"]:
        """The same from what stands at its place."""
        return part if self.to_stream is None else part @ self.to_stream().to(part)

    def spread(self, x: Float[Tensor, "... pos d_model"]) -> Float[Tensor, "... pos d_model"]:
        """What becomes of a vector of the stream on the way there: Σ_j c_j ⊙ x_{t-j}."""
        return x if self.taps is None else self.over_lags(x).sum(0)

    def over_lags(
        self, x: Float[Tensor, "... pos d_model"]
    ) -> Float[Tensor, "lag ... pos d_model"]:
        """The same by lag; one lag where there are no taps."""
        if self.taps is None:
            return x[None]
        return torch.stack([later(x * row, lag) for lag, row in enumerate(self.taps().to(x))])

    @property
    def lags(self) -> int:
        """At how many positions it writes what it reads at one."""
        return 1 if self.taps is None else len(self.taps())

    def maps(self) -> Float[Tensor, "lag d_in d_model"]:
        """The map to what it adds j positions after it was read, for every lag j.

        Raises:
            ValueError: what is read is a vector of the stream already, and there is no map.
        """
        if self.to_stream is None:
            raise ValueError(f"{self.label} is read as a vector of the stream, without a map to it")
        weight = self.to_stream()
        return weight[None] if self.taps is None else weight * self.taps().to(weight)[:, None]


@dataclass(frozen=True, eq=False)
class Reader:
    """What takes something from the stream that can be told apart.

    Attributes:
        label: "L1H3.k".
        kind: "q", "k", "v" or "pattern"; what it is among those that are read alike.
        place: where its value is read.
        lag: of a convolution's term, how far back the token lies that it comes from.
    """

    label: str
    kind: str
    place: Place
    lag: int | None = None


@dataclass(frozen=True, eq=False)
class Attending:
    """How an attention layer's queries meet its keys: `score(t, s) = (q_t R_t) (k_s R_s)ᵀ scale`.

    Attributes:
        channel: gives what a head's queries, keys or values are of the stream. A ValueError says
            why where that cannot be told from the weights.
        scale: 1 / √d_head, mostly.
        scores: the hook point of all scores, `[batch head query key]`.
        pattern: that of the pattern.
        rotate: x R, turning `[batch pos any d_head]` by the angles of positions from a first one
            on; None where nothing turns.
        bias: the hook point of what else is added to the scores, a relative-position bias, say;
            None where nothing is.
    """

    channel: Callable[[int, Channel], LinearChannel]
    scale: float
    scores: str
    pattern: str
    rotate: Callable[[Tensor, int], Tensor] | None = None
    bias: str | None = None

    def turned(self, x: Float[Tensor, "batch pos any d_head"]) -> Tensor:
        """x R: queries or keys as they meet."""
        return x if self.rotate is None else self.rotate(x, 0)


@dataclass(frozen=True, eq=False)
class Sublayer:
    """A mixer or an MLP: what it reads, and what it writes.

    What is made of weights (`constants`, `linear`) is a function, called only when it is needed.

    Attributes:
        writer: the whole of what it adds, and when it reads and writes.
        terms: what the sum is made of; empty where it is opaque.
        constants: gives what it adds whatever it reads, by the name of the parameter.
        readers: its queries, keys and values, where it has such.
        norm: the norm before it, or behind the stream that it wrote to (`post_norm`).
        post_norm: whether the norm stands on the stream itself.
        behind: a norm between what it computes and what it adds.
        linear: gives it as a linear map given frozen factors; None where it is none.
        attending: how its heads attend; None where it has none.
        lags: the same sum by lag, where it goes through a convolution on its way to the stream:
            units, and no further terms.
    """

    writer: Writer
    terms: tuple[Term, ...] = ()
    constants: Callable[[], Mapping[str, Float[Tensor, " d_model"]]] = dict
    readers: tuple[Reader, ...] = ()
    norm: FrozenNorm | None = None
    post_norm: bool = False
    behind: FrozenNorm | None = None
    linear: Callable[[], LinearLayer] | None = None
    attending: Attending | None = None
    lags: tuple[Term, ...] = ()
