"""Second moments of what the lags of a head contribute: from the embedding, or over tokens."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from interp.analysis.circuits.frozen_factors import Moments
from interp.analysis.circuits.reads import HeadReads, Reads
from interp.analysis.circuits.routes import Channel
from interp.analysis.lags.key_geometry import LagGrams
from interp.models.linear import later
from interp.models.shapes import Stream

HeardHead = Mapping[Channel, Float[Tensor, "batch pos d_head"]]
"""The queries, keys (smeared, not yet rotated) and values that one head computed."""


@dataclass(frozen=True, eq=False)
class Second:
    """Sums over positions that add up and subtract: the number, the sum and the sum of squares."""

    n: int
    total: Float64[Tensor, " _"]
    square: Float64[Tensor, "_ _"]

    @classmethod
    def over(cls, rows: Float[Tensor, "... _"]) -> "Second":
        """Of rows along the last axis."""
        flat = rows.flatten(0, -2).double()
        return cls(len(flat), flat.sum(0), flat.T @ flat)

    def __add__(self, other: "Second") -> "Second":
        return Second(self.n + other.n, self.total + other.total, self.square + other.square)

    def __sub__(self, other: "Second") -> "Second":
        return Second(self.n - other.n, self.total - other.total, self.square - other.square)

    def covariance(self) -> Float64[Tensor, "_ _"]:
        """About the mean."""
        mean = self.total / self.n
        return self.square / self.n - torch.outer(mean, mean)

    def mean_square(self) -> Float64[Tensor, "_ _"]:
        """About zero."""
        return self.square / self.n


@dataclass(frozen=True, eq=False)
class ChannelSums:
    """Over tokens, for one channel of one head.

    `same` is of x_t K_j for all lags j; `joint` of x_{t-j} K_j for all lags and, last, of what the
    model computed less what no token writes.
    """

    lags: int
    same: Second
    joint: Second

    @classmethod
    def over(
        cls, read: Reads, x: Stream, heard: Float[Tensor, "batch pos d_head"]
    ) -> "ChannelSums":
        """Over the positions that have all their lags."""
        n_pos, start = x.shape[1], read.lags - 1
        by_lag = [x @ one for one in read.maps]
        shifted = [later(part, lag) for lag, part in enumerate(by_lag)]
        written = heard - read.bias[:n_pos]
        same, joint = torch.cat(by_lag, dim=-1), torch.cat([*shifted, written], dim=-1)
        return cls(read.lags, Second.over(same[:, start:]), Second.over(joint[:, start:]))

    def __add__(self, other: "ChannelSums") -> "ChannelSums":
        return ChannelSums(self.lags, self.same + other.same, self.joint + other.joint)

    def __sub__(self, other: "ChannelSums") -> "ChannelSums":
        return ChannelSums(self.lags, self.same - other.same, self.joint - other.joint)

    def grams(self, read: Reads, stream: Second, metric: Tensor) -> LagGrams:
        """What the geometry needs."""
        same = _blocks(self.same.covariance(), self.lags)
        shifted = _blocks(self.joint.covariance(), self.lags + 1)[:-1, :-1]
        return _grams(read, stream.covariance(), same, shifted, metric)

    def predicted(self, metric: Tensor) -> float:
        """R² of the lags' sum as an account of what the model computed, an intercept aside."""
        blocks = torch.einsum(
            "ijab,ba->ij", _blocks(self.joint.covariance(), self.lags + 1), metric
        )
        signs = torch.tensor([-1.0] * self.lags + [1.0]).to(blocks)
        return 1 - float(signs @ blocks @ signs) / float(blocks[-1, -1])


@dataclass(frozen=True, eq=False)
class HeadSums:
    """Over tokens, for one head: its channels, and the queries and keys that it computed."""

    channels: Mapping[Channel, ChannelSums]
    queries: Second
    keys: Second

    @classmethod
    def over(cls, read: HeadReads, x: Stream, heard: HeardHead) -> "HeadSums":
        """Of sequences of the stream x, on which the head computed what was heard."""
        channels: dict[Channel, ChannelSums] = {
            c: ChannelSums.over(read[c], x, heard[c]) for c in read
        }
        return cls(channels, Second.over(heard["q"]), Second.over(heard["k"]))

    def __add__(self, other: "HeadSums") -> "HeadSums":
        return self._with(other, operator.add)

    def __sub__(self, other: "HeadSums") -> "HeadSums":
        return self._with(other, operator.sub)

    def _with(self, other: "HeadSums", combine: Callable[[Any, Any], Any]) -> "HeadSums":
        return HeadSums(
            {c: combine(sums, other.channels[c]) for c, sums in self.channels.items()},
            combine(self.queries, other.queries),
            combine(self.keys, other.keys),
        )

    def metrics(self, W_O: Tensor, turn: Tensor) -> dict[Channel, Tensor]:
        """How each channel's vectors are measured by what they meet."""
        return _metrics(self.queries.mean_square(), self.keys.covariance(), W_O, turn)


def grams_of_weights(
    read: HeadReads, moments: Moments, W_O: Float[Tensor, "d_head d_model"], turn: Tensor
) -> dict[Channel, LagGrams]:
    """The same from the embedding's moments, tokens at different positions being independent."""
    same = {c: _products(read[c], moments) for c in read}
    apart = {c: x * torch.eye(len(x)).to(x)[:, :, None, None] for c, x in same.items()}
    # Independent lags: the covariance of a query or key is the sum over its lags.
    spread = {c: x.diagonal(dim1=0, dim2=1).sum(-1) for c, x in same.items()}
    query = moments.mean @ read["q"].maps.double().sum(0) + _late_bias(read["q"])
    metrics = _metrics(spread["q"] + torch.outer(query, query), spread["k"], W_O, turn)
    return {c: _grams(read[c], moments.covariance, same[c], apart[c], metrics[c]) for c in read}


def _grams(
    read: Reads, covariance: Tensor, same: Tensor, shifted: Tensor, metric: Tensor
) -> LagGrams:
    if read.centered:  # no map reads the mean direction, and none may be turned into it
        covariance = covariance - covariance.mean(0)
        covariance = covariance - covariance.mean(1, keepdim=True)
    maps = read.maps.double()
    varying = covariance @ maps
    return LagGrams(
        same=_padded(same, 2),
        shifted=_padded(shifted, 2),
        metric=metric,
        bare=_padded(maps.mT @ maps, 1),
        twice=_padded(varying.mT @ varying, 1),
        variance=float(covariance.trace()),
    )


def _padded(grams: Float64[Tensor, "... d_head d_head"], axes: int) -> Tensor:
    """With a lag 1 of zero where there is none: an ordinary head reads nothing from there."""
    missing = max(0, 2 - len(grams))
    return F.pad(grams, (0, 0, 0, 0, *(0, missing) * axes))


def _products(read: Reads, moments: Moments) -> Float64[Tensor, "lag lag d_head d_head"]:
    maps = read.maps.double()
    return torch.einsum("ima,mn,jnb->ijab", maps, moments.covariance, maps)


def _late_bias(read: Reads) -> Float64[Tensor, " d_head"]:
    """Of positions that have all their lags, the positions themselves left out."""
    rows = [x[-1].double() for name, x in read.constants.items() if name != "pos_embed.W_pos"]
    return torch.stack([torch.zeros_like(read.maps[0, 0], dtype=torch.float64), *rows]).sum(0)


def _metrics(queries: Tensor, keys: Tensor, W_O: Tensor, turn: Tensor) -> dict[Channel, Tensor]:
    W_O, turn = W_O.double(), turn.double()
    return {"q": turn @ keys @ turn.T, "k": turn.T @ queries @ turn, "v": W_O @ W_O.T}


def _blocks(square: Float64[Tensor, "_ _"], n: int) -> Float64[Tensor, "lag lag d_head d_head"]:
    width = len(square) // n
    return square.reshape(n, width, n, width).transpose(1, 2)
