"""How the maps of several lags lie to each other, with lengths as the other side sees them.

A key matters only through scores, so the inner product of two lags' maps is
`<K_i, K_j> = tr(K_iᵀ Σ K_j M)`, with Σ the covariance of what they read and M = E[qᵀq]. Only the
products `K_iᵀ Σ K_j` are needed, of size d_head x d_head.
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
        rank: of Σ: how many directions the maps could read.
    """

    same: Float64[Tensor, "lag lag d_head d_head"]
    shifted: Float64[Tensor, "lag lag d_head d_head"]
    metric: Float64[Tensor, "d_head d_head"]
    rank: int


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
    """The cosine of the two maps, and its deviation if one of them were turned at random."""
    squares = products.diagonal()
    if float(squares.min()) <= NOTHING * float(squares.max()):
        reason = f"lag {int(squares.argmin())} is not read: a map of no length has no direction"
        undefined |= {"alignment": reason, "alignment_null": reason}
        return {"alignment": math.nan, "alignment_null": math.nan}
    length = float(squares.prod().sqrt())
    # <R K_1, K_0> over Haar rotations R of the whitened stream: tr(R G), of variance |G|² / rank.
    turned = grams.same[0, 0] @ grams.metric @ grams.same[1, 1] @ grams.metric
    null = math.sqrt(max(0.0, float(turned.trace())) / grams.rank) / length
    return {"alignment": float(products[0, 1]) / length, "alignment_null": null}


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
