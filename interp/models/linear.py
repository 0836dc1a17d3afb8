"""Sublayers as linear maps, once what depends on the token is frozen: norms' scales, gates.

A norm divides by a scale that depends on its input, and is linear otherwise:

    x ↦ x C diag(γ) / s + β,

C being the centring of a LayerNorm (the identity for RMSNorm). With s given, a convolution is one
linear map per lag, plus terms that no token writes: offsets and biases. Parts of a stream are kept
lag first, `[lag batch pos d_model]`; the same code composes weights, `[lag d_model d_model]`, which
have no positions to move along.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.models.norm import Norm
from interp.models.shapes import KeyMask

Factor = float | Float[Tensor, "..."]
Frozen = Mapping[str, Factor]
"""The value of every frozen factor, by its name: of some sequences, or a mean over tokens."""
Parts = Float[Tensor, "_ ... d_model"]
"""By lag, which grows on the way."""
Constants = Mapping[str, Float[Tensor, "#batch pos _"]]
"""What no token writes, under the name of the parameter it comes from."""
Move = Callable[[Tensor, int], Tensor]
Channel = Literal["q", "k", "v"]
CHANNELS: tuple[Channel, ...] = get_args(Channel)


def wide(x: Tensor) -> Tensor:
    """A weight without its gradient, in float32 or wider: 16 bits are too few to add up in."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def maybe_wide(x: Tensor | None) -> Tensor | None:
    """The same of a weight that may not be there."""
    return None if x is None else wide(x)


def later(x: Float[Tensor, "... pos _"], lag: int) -> Float[Tensor, "... pos _"]:
    """x moved `lag` positions later, zeros moving in."""
    return x if lag == 0 else F.pad(x, (0, 0, lag, 0))[..., : x.shape[-2], :]


def stay(x: Tensor, lag: int) -> Tensor:
    """Weights have no positions."""
    return x


def moving(key_mask: KeyMask | None) -> Move:
    """How the terms of a convolution move: padding counts as zero."""
    if key_mask is None:
        return later
    return lambda x, lag: later(x * key_mask[..., None], lag)


def by_lag(terms: Iterable[Tensor], parts: Parts) -> Parts:
    """What the terms of each lag add, by how far back it comes from in all: lags add up."""
    terms, n = list(terms), len(parts)
    place = torch.broadcast_shapes(parts.shape[1:], *(term.shape[1:] for term in terms))
    out = parts.new_zeros(n + len(terms) - 1, *place)
    for lag, term in enumerate(terms):
        out[lag : lag + n] += term
    return out


def everywhere(row: Float[Tensor, " _"], n_pos: int) -> Float[Tensor, "1 pos _"]:
    """The same vector at every position."""
    return row.expand(1, n_pos, -1)


@dataclass(frozen=True, eq=False)
class Freezing:
    """A factor that can be frozen: its name, and the hook point that its value is read at."""

    name: str
    hook: str

    @property
    def unknown(self) -> Factor:
        """What stands for it where sizes do not matter, and nothing is known of the stream."""
        return 1.0

    def of(self, activation: Tensor) -> Tensor:
        """The factor on sequences, as it stands beside parts `[lag batch pos _]`."""
        return activation

    def total(self, activation: Tensor) -> Factor:
        """The sum of the factor over all tokens, for its mean."""
        return float(activation.double().sum())

    def count(self, activation: Tensor) -> Factor:
        """How many tokens that sum is over: a gate counts where the token at its lag exists."""
        return float(activation.shape[:2].numel())


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """x ↦ x C diag(γ) / s, with the scale s held at a given value.

    Attributes:
        name: the module's, "blocks.0.ln1"; its scale is read at `{name}.hook_scale`.
        centered: whether the mean is taken off.
        gain: γ, or None.
        offset: β, or None.
        eps: added to the variance under the root.
    """

    name: str
    centered: bool
    gain: Float[Tensor, " d_model"] | None
    offset: Float[Tensor, " d_model"] | None
    eps: float

    @classmethod
    def of(cls, norm: Any, name: str) -> "FrozenNorm | None":
        """Of a module, its weights at least in float32; None where there is no norm."""
        if not isinstance(norm, Norm):
            return None
        return cls(name, norm.centered, maybe_wide(norm.w), maybe_wide(norm.b), norm.eps)

    @property
    def factor(self) -> Freezing:
        """The scale."""
        return Freezing(self.name, f"{self.name}.hook_scale")

    def __call__(self, x: Float[Tensor, "... d_model"], scale: Factor) -> Tensor:
        """The linear part: x C diag(γ) / s."""
        x = self.center(x) / scale
        return x if self.gain is None else x * self.gain

    def center(self, x: Float[Tensor, "... d_model"]) -> Tensor:
        """x C: LayerNorm takes the mean off, RMSNorm does not."""
        return x - x.mean(-1, keepdim=True) if self.centered else x

    def reading(self, weight: Float[Tensor, "... d_model d_out"]) -> Tensor:
        """C diag(γ) W: a map that reads through the norm, without its scale."""
        if self.gain is not None:
            weight = self.gain[:, None] * weight
        return weight - weight.mean(-2, keepdim=True) if self.centered else weight

    def direction(self, row: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_model"]:
        """C diag(γ) d: the direction that is read before the norm where d is read behind it."""
        return self.center(row if self.gain is None else row * self.gain)

    def writing(self, weight: Float[Tensor, "... d_model"]) -> Tensor:
        """W C: a map whose outputs are read through such a norm."""
        return self.center(weight)

    def behind(self, weight: Float[Tensor, "... d_model"]) -> Tensor:
        """W C diag(γ): a map that the norm stands behind."""
        weight = self.center(weight)
        return weight if self.gain is None else weight * self.gain


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearLayer(ABC):
    """A mixer that is linear given its frozen factors, with its norm and its residual path.

    Attributes:
        layer: its number.
        name: the module's, "blocks.0.conv".
        norm: the norm before it, or after the sum where `post_norm`; None where there is none.
        residual: whether what it writes is added to the stream or replaces it.
        post_norm: whether the norm stands behind the sum.
        depthwise: whether each lag has a scalar per channel and no matrix.
    """

    layer: int
    name: str
    norm: FrozenNorm | None
    residual: bool
    post_norm: bool
    depthwise: bool = False

    is_implied: ClassVar[bool] = True
    """Whether the stream's moments imply its frozen factors, as they do a norm's mean scale."""

    @property
    @abstractmethod
    def lags(self) -> int:
        """How many tokens it reads, the current one included."""

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """What has to be frozen."""
        return () if self.norm is None else (self.norm.factor,)

    @property
    def centered(self) -> bool:
        """Whether its norm takes the mean off the stream before it is read."""
        return self.norm is not None and self.norm.centered and not self.post_norm

    @abstractmethod
    def terms(self, x: Float[Tensor, "... _"], frozen: Frozen, move: Move) -> Iterable[Tensor]:
        """What each lag makes of the normalised stream, from lag 0 on."""

    @abstractmethod
    def biases(self, n_pos: int, frozen: Frozen, move: Move) -> dict[str, Tensor]:
        """What is written whatever is read, by the name of the parameter."""

    def parts(self, parts: Parts, frozen: Frozen, move: Move) -> Parts:
        """The parts of the stream after this layer, by how far back they come from in all."""
        return self._leave(self.written(parts, frozen, move), frozen)

    def constants(self, below: Constants, n_pos: int, frozen: Frozen, move: Move) -> Constants:
        """The constant parts of the stream after this layer: those from below, and its own."""
        written = self.written_constants(below, n_pos, frozen, move)
        after = {name: self._leave(x, frozen) for name, x in written.items()}
        if self.post_norm and self.norm is not None and self.norm.offset is not None:
            after[f"{self.norm.name}.b"] = everywhere(self.norm.offset, n_pos)
        return after

    def written_constants(
        self, below: Constants, n_pos: int, frozen: Frozen, move: Move
    ) -> dict[str, Tensor]:
        """The constants before a post-norm."""
        through = {name: self.written(x[None], frozen, move).sum(0) for name, x in below.items()}
        own = self.biases(n_pos, frozen, move)
        if not self.post_norm and self.norm is not None and self.norm.offset is not None:
            # A lag that reaches before the first token has no offset either.
            offset = everywhere(self.norm.offset, n_pos)
            through_lags = torch.stack(list(self.terms(offset, frozen, move))).sum(0)
            own = {f"{self.norm.name}.b": through_lags, **own}
        return through | own

    def written(self, parts: Parts, frozen: Frozen, move: Move) -> Parts:
        """The parts before a post-norm."""
        out = by_lag(self.terms(self._enter(parts, frozen), frozen, move), parts)
        if self.residual:
            out[: len(parts)] += parts
        return out

    def _enter(self, x: Tensor, frozen: Frozen) -> Tensor:
        return x if self.post_norm or self.norm is None else self.norm(x, frozen[self.norm.name])

    def _leave(self, x: Tensor, frozen: Frozen) -> Tensor:
        if not self.post_norm or self.norm is None:
            return x
        return self.norm(x, frozen[self.norm.name])


@dataclass(frozen=True, eq=False)
class Added(Freezing):
    """What something adds to the stream, whatever it is of it."""

    scale: float = 1.0

    def of(self, activation: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """What is added."""
        return activation * self.scale

    def total(self, activation: Float[Tensor, "batch pos d_model"]) -> Factor:
        """By direction."""
        return self.of(activation).double().sum((0, 1))


@dataclass(frozen=True, eq=False, kw_only=True)
class Source(LinearLayer):
    """What no linear map of the stream adds to it, an MLP say: a source of its own.

    Attributes:
        added: what it adds: of some sequences, or a mean over tokens.
    """

    added: Added

    is_implied: ClassVar[bool] = False

    @property
    def lags(self) -> int:
        """It comes from the current token alone, as far as it is linear."""
        return 1

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """What it adds."""
        return (self.added,)

    def terms(self, x: Tensor, frozen: Frozen, move: Move) -> Iterable[Tensor]:
        """Nothing of it is a map of the stream."""
        return (torch.zeros_like(x),)

    def biases(self, n_pos: int, frozen: Frozen, move: Move) -> dict[str, Tensor]:
        """What it adds, under its own name."""
        added = torch.as_tensor(frozen[self.added.name])
        return {self.name: everywhere(added, n_pos) if added.ndim == 1 else added}


@dataclass(frozen=True, eq=False)
class LinearChannel:
    """One head's queries, keys or values as a linear map of the stream, given the norm's scale.

        k_t = Σ_j c_j(x_{t-j} C diag(γ) W / s + (β W + b)),

    where c_j, the part of a key that comes from j tokens back, is the identity at lag 0 and nothing
    else; a layer that mixes its keys with those before derives a class, with `lags` and
    `over_lags`.

    Attributes:
        name: the module's, "blocks.1.attn".
        channel: "q", "k" or "v".
        computed: the hook point where entry `head` is what all terms add up to, before positions
            turn it.
        head: the head's number there.
        norm: the norm before the layer; None where the stream is read as it is.
        weight: W.
        bias: b, or None.
        positions: a table that is added behind the norm to what is read (shortformer), or None.
        has_constants: whether bias and offset are known; where not, only the maps hold.
    """

    name: str
    channel: Channel
    computed: str
    head: int
    norm: FrozenNorm | None
    weight: Float[Tensor, "d_model d_head"]
    bias: Float[Tensor, " d_head"] | None = None
    positions: Float[Tensor, "pos d_model"] | None = None
    has_constants: bool = True

    is_implied: ClassVar[bool] = True
    """Whether the stream's moments imply its frozen factors."""
    mixing: ClassVar[str] = ""
    """What makes it of several tokens, such as "smearing"; nothing where it is of one."""

    @property
    def lags(self) -> int:
        """How many tokens it reads, the current one included."""
        return 1

    @property
    def factors(self) -> tuple[Freezing, ...]:
        """What has to be frozen."""
        return () if self.norm is None else (self.norm.factor,)

    @property
    def centered(self) -> bool:
        """Whether its norm takes the mean off the stream before it is read."""
        return self.norm is not None and self.norm.centered

    def implied(
        self,
        mean_square: Callable[[Tensor, Constants], float],
        below: Tensor,
        constants: Constants,
        frozen: Frozen,
    ) -> Frozen:
        """The factors behind its maps that the stream's moments imply.

        Args:
            mean_square: of what maps `[lag d_model d_head]` and constants make of the stream.
            below: the stream that is read, by lag, as maps of that whose moments are known.
            constants: what is added to it.
            frozen: the factors before.
        """
        return {}

    @property
    def reading(self) -> Float[Tensor, "d_model d_head"]:
        """C diag(γ) W: the map of the stream, the norm's scale left out."""
        return self.weight if self.norm is None else self.norm.reading(self.weight)

    def of(self, activation: Float[Tensor, "batch pos _ d_head"]) -> Tensor:
        """This head's, from the activation at `computed`."""
        return activation[:, :, self.head]

    def over_lags(self, x: Float[Tensor, "_ ... d_head"], move: Move) -> Iterable[Tensor]:
        """What projected parts of the stream add at each lag, from lag 0 on."""
        return (x,)

    def maps(self, below: Float[Tensor, "_ d_model d_model"] | None, frozen: Frozen) -> Tensor:
        """The map of each lag, for a position that has all its lags.

        Args:
            below: the stream that is read, by lag, as maps of another; None where it is that one.
            frozen: the factors' values.
        """
        weight = self.reading / self._scale(frozen)
        return self._mixed(weight[None] if below is None else below @ weight, stay)

    def parts(
        self, parts: Parts, frozen: Frozen, move: Move
    ) -> Float[Tensor, "lag batch pos d_head"]:
        """What each lag adds to the query, key or value, on sequences."""
        return self._mixed(self._project(parts, frozen), move)

    def constants(self, below: Constants, n_pos: int, frozen: Frozen, move: Move) -> Constants:
        """What each constant adds to it, those from below and its own."""
        own = {name: self._project(x, frozen) for name, x in below.items()}
        if self.norm is not None and self.norm.offset is not None:
            own[f"{self.norm.name}.b"] = everywhere(self.norm.offset @ self.weight, n_pos)
        if self.bias is not None:
            own[f"{self.name}.b_{self.channel.upper()}"] = everywhere(self.bias, n_pos)
        if self.positions is not None:
            own["pos_embed.W_pos"] = (self.positions[:n_pos] @ self.weight)[None]
        return {name: self._mixed(x[None], move).sum(0) for name, x in own.items()}

    def _scale(self, frozen: Frozen) -> Factor:
        return 1.0 if self.norm is None else frozen[self.norm.name]

    def _project(self, x: Tensor, frozen: Frozen) -> Tensor:
        return (x if self.norm is None else self.norm(x, self._scale(frozen))) @ self.weight

    def _mixed(self, x: Float[Tensor, "_ ... d_head"], move: Move) -> Tensor:
        return by_lag(self.over_lags(x, move), x)
