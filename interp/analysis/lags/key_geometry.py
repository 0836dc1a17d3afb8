"""How the maps of several lags lie to each other, with lengths as the other side sees them.

A key matters only through scores, so the inner product of two lags' maps is
`<K_i, K_j> = tr(K_iᵀ Σ K_j M)`, with Σ the covariance of what they read and M = E[qᵀq]. Only the
products `K_iᵀ Σ K_j` are needed, of size d_head x d_head.

How far from 0 does the alignment of two unrelated maps lie? Maps are unrelated if one of them reads
the stream in random directions: K_j ↦ R K_j with a Haar rotation R of the stream itself, which
leaves the singular values of K_j, and what it writes in the head, as they are. The alignment is
then `<R K_j, K_i> / sqrt(<R K_j, R K_j> <K_i, K_i>)`, around 0, and its deviation

    ν_j² = tr(M K_jᵀ K_j M K_iᵀ Σ² K_i) / (tr Σ · tr(K_jᵀ K_j M) · <K_i, K_i>),

* tr(M K_jᵀ K_j M K_iᵀ Σ² K_i) / d = |K_j M K_iᵀ Σ|² / d: the variance of <R K_j, K_i>, which is
  linear in R (E[R_ab R_cd] = δ_ac δ_bd / d);
* tr Σ · tr(K_jᵀ K_j M) / d: the mean of <R K_j, R K_j>;
* <K_i, K_i>: the other map, which is not turned.

The ratio of the two means stands for the mean of the ratio: 1 to 3 % too large where the stream
varies in four directions or more, up to 16 % in two. It depends on which map is turned, unless both
read all directions alike; the larger one is given. A rotation of the *whitened* stream would be the
wrong question: it takes Σ^(-½) R Σ^½ K_j for a map that might have been, whose weights are largest
where the stream varies least, and calls it chance that two maps of random weights both see the few
directions in which a stream varies most.
"""

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from interp.analysis.circuits.reads import HeadReads, Moments, Reads
from interp.models.linear import Channel, later
from interp.models.shapes import Stream

NEARLY = 1e-2
"""Two eigenvalues this close, relative to the larger, are taken as equal; likewise u0 and -u1."""
NOTHING = 1e-12
"""A squared length under this share of the largest is taken as zero."""


@dataclass(frozen=True, eq=False)
class LagGrams:
    """What the geometry of one head's maps needs.

    Attributes:
        same: K_iᵀ Σ K_j, Σ the covariance of x_t.
        shifted: K_iᵀ Σ_ij K_j, Σ_ij the cross-covariance of x_{t-i} and x_{t-j}.
        metric: M.
        bare: K_iᵀ K_i.
        twice: K_iᵀ Σ² K_i.
        variance: tr Σ.
    """

    same: Float64[Tensor, "lag lag d_head d_head"]
    shifted: Float64[Tensor, "lag lag d_head d_head"]
    metric: Float64[Tensor, "d_head d_head"]
    bare: Float64[Tensor, "lag d_head d_head"]
    twice: Float64[Tensor, "lag d_head d_head"]
    variance: float


@dataclass(frozen=True, eq=False)
class Geometry:
    """The numbers by name; NaN where undefined, with the reason under the same name.

    `mixture` are the weights (u0, u1) of the common map that fits lags 0 and 1 best.
    """

    numbers: dict[str, float]
    undefined: dict[str, str]
    mixture: tuple[float, float]


def geometry(grams: LagGrams) -> Geometry:
    """Lag shares, alignment, and the smearing that fits best."""
    products = torch.einsum("ijab,ba->ij", grams.same, grams.metric)
    undefined: dict[str, str] = {}
    numbers = _shares(grams, undefined)
    numbers |= _alignment(grams, products[:2, :2], undefined)
    smear, mixture = _smear(products[:2, :2], undefined)
    return Geometry(numbers | smear, undefined, mixture)


def _shares(grams: LagGrams, undefined: dict[str, str]) -> dict[str, float]:
    parts = torch.einsum("ijab,ba->ij", grams.shifted, grams.metric)
    names = [f"lag_share_{lag}" for lag in range(len(parts))]
    total = float(parts.sum())
    if total <= NOTHING * float(parts.abs().sum()):
        undefined |= dict.fromkeys(names, "what is read never varies")
        return dict.fromkeys(names, math.nan)
    return dict(zip(names, (parts.sum(0) / total).tolist(), strict=True))


def _alignment(
    grams: LagGrams, products: Float64[Tensor, "2 2"], undefined: dict[str, str]
) -> dict[str, float]:
    """The cosine of the two maps, and its deviation if one of them were turned: ν above."""
    squares = products.diagonal()
    if float(squares.min()) <= NOTHING * float(squares.max()):
        reason = f"lag {int(squares.argmin())} is not read: a map of no length has no direction"
        undefined |= {"alignment": reason, "alignment_null": reason}
        return {"alignment": math.nan, "alignment_null": math.nan}
    turned = grams.metric @ grams.bare[:2]
    other = grams.metric @ grams.twice[:2].flip(0)
    squared = torch.einsum("jab,jba->j", turned, other)
    squared /= grams.variance * turned.diagonal(dim1=1, dim2=2).sum(-1) * squares.flip(0)
    return {
        "alignment": float(products[0, 1] / squares.prod().sqrt()),
        "alignment_null": math.sqrt(max(0.0, float(squared.max()))),
    }


def _smear(
    products: Float64[Tensor, "2 2"], undefined: dict[str, str]
) -> tuple[dict[str, float], tuple[float, float]]:
    """The rank-one fit K_i ≈ u_i K: σ̂ = u0 / (u0 + u1), and the share of length that it keeps."""
    (low, high), vectors = torch.linalg.eigh(products)
    u0, u1 = vectors[:, 1].tolist()
    if float(high) <= 0:
        undefined |= dict.fromkeys(("smear", "smear_fit"), "nothing is read")
        return {"smear": math.nan, "smear_fit": math.nan}, (math.nan, math.nan)
    fit = float(high / (low + high))
    if float(high - low) <= NEARLY * float(high):
        undefined["smear"] = "two unrelated maps of equal length: no common map fits best"
        return {"smear": math.nan, "smear_fit": fit}, (math.nan, math.nan)
    if abs(u0 + u1) <= NEARLY * (abs(u0) + abs(u1)):
        undefined["smear"] = "a difference filter: the weights of the two lags cancel"
        return {"smear": math.nan, "smear_fit": fit}, (u0, u1)
    return {"smear": u0 / (u0 + u1), "smear_fit": fit}, (u0, u1)


Computed = Mapping[Channel, Float[Tensor, "batch pos d_head"]]
"""The queries, keys (smeared, not yet rotated) and values that one head computed."""


class Additive:
    """Sums that add up and subtract field by field, and mappings entry by entry."""

    def __add__(self, other: Self) -> Self:
        return _combined(operator.add, self, other)

    def __sub__(self, other: Self) -> Self:
        return _combined(operator.sub, self, other)


def _combined(combine: Callable[[Any, Any], Any], one: Any, other: Any) -> Any:
    if isinstance(one, Mapping):
        return {name: _combined(combine, x, other[name]) for name, x in one.items()}
    if isinstance(one, Additive):
        own, others = vars(one), vars(other)
        return type(one)(**{name: _combined(combine, x, others[name]) for name, x in own.items()})
    return combine(one, other)


@dataclass(frozen=True, eq=False)
class Second(Additive):
    """Sums over positions: their number, the sum and the sum of squares."""

    n: int
    total: Float64[Tensor, " _"]
    square: Float64[Tensor, "_ _"]

    @classmethod
    def over(cls, rows: Float[Tensor, "... _"]) -> "Second":
        """Of rows along the last axis."""
        flat = rows.flatten(0, -2).double()
        return cls(len(flat), flat.sum(0), flat.T @ flat)

    def covariance(self) -> Float64[Tensor, "_ _"]:
        """About the mean."""
        mean = self.total / self.n
        return self.square / self.n - torch.outer(mean, mean)

    def mean_square(self) -> Float64[Tensor, "_ _"]:
        """About zero."""
        return self.square / self.n


@dataclass(frozen=True, eq=False)
class ChannelSums(Additive):
    """Over tokens, for one channel of one head.

    `same` is of x_t K_j for all lags j; `joint` of x_{t-j} K_j for all lags and, last, of what the
    model computed less what no token writes.
    """

    same: Second
    joint: Second

    @classmethod
    def over(
        cls, read: Reads, x: Stream, computed: Float[Tensor, "batch pos d_head"]
    ) -> "ChannelSums":
        """Over the positions that have all their lags."""
        n_pos, start = x.shape[1], read.lags - 1
        by_lag = [x @ one for one in read.maps]
        shifted = [later(part, lag) for lag, part in enumerate(by_lag)]
        written = computed - read.bias[:n_pos]
        same, joint = torch.cat(by_lag, dim=-1), torch.cat([*shifted, written], dim=-1)
        return cls(Second.over(same[:, start:]), Second.over(joint[:, start:]))

    def grams(self, read: Reads, stream: Second, metric: Tensor) -> LagGrams:
        """What the geometry needs."""
        same = _blocks(self.same.covariance(), read.lags)
        shifted = _blocks(self.joint.covariance(), read.lags + 1)[:-1, :-1]
        return _grams(read, stream.covariance(), same, shifted, metric)

    def predicted(self, read: Reads, metric: Tensor) -> float:
        """R² of the lags' sum as an account of what the model computed, an intercept aside.

        NaN where what is computed never varies, as what meets it sees it.
        """
        joint = _blocks(self.joint.covariance(), read.lags + 1)
        blocks = torch.einsum("ijab,ba->ij", joint, metric)
        signs = torch.tensor([-1.0] * read.lags + [1.0]).to(blocks)
        whole = float(blocks[-1, -1])
        return 1 - float(signs @ blocks @ signs) / whole if whole > 0 else math.nan


@dataclass(frozen=True, eq=False)
class HeadSums(Additive):
    """Over tokens, for one head: its channels, and the queries and keys that it computed."""

    channels: Mapping[Channel, ChannelSums]
    queries: Second
    keys: Second

    @classmethod
    def over(cls, read: HeadReads, x: Stream, computed: Computed) -> "HeadSums":
        """Of sequences of the stream x, and of what the head computed on them."""
        channels: dict[Channel, ChannelSums] = {
            c: ChannelSums.over(read[c], x, computed[c]) for c in read
        }
        return cls(channels, Second.over(computed["q"]), Second.over(computed["k"]))

    def metrics(self, W_O: Tensor, turn: Tensor) -> dict[Channel, Tensor]:
        """How each channel's vectors are measured by what they meet."""
        return _metrics(self.queries.mean_square(), self.keys.covariance(), W_O, turn)


def grams_of_weights(
    read: HeadReads, moments: Moments, W_O: Float[Tensor, "d_head _"], turn: Tensor
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
