"""How the maps of several lags lie to each other, with lengths as the other side sees them.

A key matters only through scores, so the inner product of two lags' maps is
`<K_i, K_j> = tr(K_iᵀ Σ K_j M)`, with Σ the covariance of what they read and M = E[qᵀq]. Only the
products `K_iᵀ Σ K_j` are needed, of size d_head x d_head.

How far from 0 does the alignment of two unrelated maps lie? Maps are unrelated if one of them reads
the stream in random directions: K_j ↦ R K_j with a Haar rotation R of the stream itself, which
leaves the singular values of K_j, and what it writes in the head, as they are. Then <R K_j, K_i>
has mean 0 and variance |K_j M K_iᵀ Σ|² / d_model, while <R K_j, R K_j> is on average
tr Σ tr(K_jᵀ K_j M) / d_model, so that the alignment's deviation is

    ν_j² = tr(M K_jᵀ K_j M K_iᵀ Σ² K_i) / (tr Σ · tr(K_jᵀ K_j M) · <K_i, K_i>),

with the ratio of the two means in place of the mean of the ratio: 1 to 3 % too large where the
stream varies in four directions or more, up to 16 % in two. It depends on which map is turned,
unless both read all directions alike; the larger one is given. A rotation of the *whitened* stream
would be the wrong question: it takes Σ^(-½) R Σ^½ K_j for a map that might have been, whose weights
are largest where the stream varies least, and calls it chance that two maps of random weights both
see the few directions in which a stream varies most.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

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
