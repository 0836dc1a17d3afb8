"""The layers between a stream and a head as linear maps, once the norms' scales are frozen.

A norm divides by a scale that depends on its input, and is linear otherwise: x ↦ x C diag(γ) / s,
plus the offset β. With s given, a stack of convolutions and a head's W_Q, W_K or W_V is one linear
map per lag, plus terms that no token writes: offsets and biases. Parts of a stream are kept lag
first, `[lag batch pos d_model]`; the same code composes weights, `[lag d_model d_model]`, which
have no positions to move along.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from interp.models.shapes import KeyMask

Scale = float | Float[Tensor, "batch pos 1"]
Parts = Float[Tensor, "_ ... d_model"]
"""By lag, which grows on the way."""
Constants = Mapping[str, Float[Tensor, "#batch pos _"]]
"""What no token writes, under the name of the parameter it comes from."""
Move = Callable[[Tensor, int], Tensor]


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


@dataclass(frozen=True, eq=False)
class NormStage:
    """x ↦ x C diag(γ) / s. `name` is the module's: "blocks.0.ln1"."""

    name: str
    centered: bool
    gain: Float[Tensor, " d_model"] | None
    offset: Float[Tensor, " d_model"] | None
    eps: float

    def __call__(self, x: Float[Tensor, "... d_model"], scale: Scale) -> Tensor:
        """The linear part."""
        x = self.center(x) / scale
        return x if self.gain is None else x * self.gain

    def center(self, x: Float[Tensor, "... d_model"]) -> Tensor:
        """x C: LayerNorm takes the mean off, RMSNorm does not."""
        return x - x.mean(-1, keepdim=True) if self.centered else x


@dataclass(frozen=True, eq=False)
class ConvStage:
    """A convolution with its norm and its residual path."""

    name: str
    norm: NormStage | None
    weight: Float[Tensor, "lag d_model d_model"]
    lag_bias: Float[Tensor, "lag d_model"] | None
    bias: Float[Tensor, " d_model"] | None
    residual: bool
    post_norm: bool

    @property
    def lags(self) -> int:
        """How many lags the convolution itself has."""
        return len(self.weight)

    def parts(self, parts: Parts, scale: Scale, move: Move) -> Parts:
        """The parts of the stream after this layer, by how far back they come from in all."""
        return self._leave(self.written(parts, scale, move), scale)

    def constants(self, below: Constants, n_pos: int, scale: Scale, move: Move) -> Constants:
        """The constant parts of the stream after this layer: those from below, and its own."""
        written = self.written_constants(below, n_pos, scale, move)
        after = {name: self._leave(x, scale) for name, x in written.items()}
        if self.post_norm and self.norm is not None and self.norm.offset is not None:
            after[f"{self.norm.name}.b"] = _everywhere(self.norm.offset, n_pos)
        return after

    def written(self, parts: Parts, scale: Scale, move: Move) -> Parts:
        """The parts before a post-norm."""
        heard = self._enter(parts, scale)
        terms = [move(heard @ weight, lag) for lag, weight in enumerate(self.weight)]
        n, place = len(parts), torch.broadcast_shapes(parts.shape[1:], terms[0].shape[1:])
        out = parts.new_zeros(n + self.lags - 1, *place)
        for lag, term in enumerate(terms):
            out[lag : lag + n] += term
        if self.residual:
            out[:n] += parts
        return out

    def written_constants(
        self, below: Constants, n_pos: int, scale: Scale, move: Move
    ) -> dict[str, Tensor]:
        """The constants before a post-norm."""
        through = {name: self.written(x[None], scale, move).sum(0) for name, x in below.items()}
        return through | self._own(n_pos, move)

    def _own(self, n_pos: int, move: Move) -> dict[str, Tensor]:
        own = {}
        if not self.post_norm and self.norm is not None and self.norm.offset is not None:
            own[f"{self.norm.name}.b"] = self._by_lag(self.norm.offset @ self.weight, n_pos, move)
        if self.lag_bias is not None:
            own[f"{self.name}.b_lags"] = self._by_lag(self.lag_bias, n_pos, move)
        if self.bias is not None:
            own[f"{self.name}.b_conv"] = _everywhere(self.bias, n_pos)
        return own

    def _by_lag(self, bias: Float[Tensor, "lag d_model"], n_pos: int, move: Move) -> Tensor:
        # A lag that reaches before the first token has no bias either.
        terms = (move(_everywhere(row, n_pos), lag) for lag, row in enumerate(bias))
        return torch.stack(list(terms)).sum(0)

    def _enter(self, x: Tensor, scale: Scale) -> Tensor:
        return x if self.post_norm or self.norm is None else self.norm(x, scale)

    def _leave(self, x: Tensor, scale: Scale) -> Tensor:
        return self.norm(x, scale) if self.post_norm and self.norm is not None else x


@dataclass(frozen=True, eq=False)
class HeadStage:
    """One head's W_Q, W_K or W_V behind the attention's norm, and the smearing of its keys.

    `share` is σ(α) for a key that is smeared, else None. `positions` are those that are added to
    queries and keys only (shortformer), after the norm.
    """

    name: str
    channel: str
    norm: NormStage | None
    weight: Float[Tensor, "d_model d_head"]
    bias: Float[Tensor, " d_head"] | None
    positions: Float[Tensor, "pos d_model"] | None
    share: Float[Tensor, ""] | None

    def maps(self, maps: Float[Tensor, "lag d_model d_model"], scale: Scale) -> Tensor:
        """The map of each lag, for a position that has all its lags."""
        out = self._project(maps, scale)
        if self.share is None:
            return out
        nothing = torch.zeros_like(out[:1])
        current, previous = torch.cat([out, nothing]), torch.cat([nothing, out])
        return self.share * current + (1 - self.share) * previous

    def parts(
        self, parts: Parts, scale: Scale, key_mask: KeyMask | None
    ) -> Float[Tensor, "lag batch pos d_head"]:
        """What each lag adds to the head's query, key or value, on sequences."""
        out = self._project(parts, scale)
        if self.share is None:
            return out
        current, previous = self._smear(out, key_mask)
        nothing = torch.zeros_like(out[:1])
        return torch.cat([current, nothing]) + torch.cat([nothing, previous])

    def constants(
        self, below: Constants, n_pos: int, scale: Scale, key_mask: KeyMask | None
    ) -> Constants:
        """What each constant adds to it."""
        own = {name: self._project(x, scale) for name, x in below.items()}
        if self.norm is not None and self.norm.offset is not None:
            own[f"{self.norm.name}.b"] = _everywhere(self.norm.offset @ self.weight, n_pos)
        if self.bias is not None:
            own[f"{self.name}.b_{self.channel.upper()}"] = _everywhere(self.bias, n_pos)
        if self.positions is not None:
            own["pos_embed.W_pos"] = (self.positions[:n_pos] @ self.weight)[None]
        if self.share is None:
            return own
        smeared = {name: self._smear(x, key_mask) for name, x in own.items()}
        return {name: current + previous for name, (current, previous) in smeared.items()}

    def _project(self, x: Tensor, scale: Scale) -> Tensor:
        return (x if self.norm is None else self.norm(x, scale)) @ self.weight

    def _smear(self, x: Tensor, key_mask: KeyMask | None) -> tuple[Tensor, Tensor]:
        """The smeared key's part from here and its part from the key before.

        The first key, and one after padding, is unchanged.
        """
        assert self.share is not None
        has_previous = x.new_ones(1, x.shape[-2], 1)
        if key_mask is not None:
            has_previous = key_mask[..., None].to(x)
        given = later(has_previous, 1) * (1 - self.share)
        return (1 - given) * x, given * later(x, 1)


def _everywhere(row: Float[Tensor, " _"], n_pos: int) -> Float[Tensor, "1 pos _"]:
    return row.expand(1, n_pos, -1)
