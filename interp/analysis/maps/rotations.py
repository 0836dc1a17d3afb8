"""What a composition score would be by chance: a random rotation put between the two actual maps.

With singular values s and t of the two maps, and W the corner of a Haar rotation in the width of
the stream, the score is `sqrt(Σ_ab s_a² W_ab² t_b²)` over |s| |t|. Only the spectra matter, so all
pairs share the same rotations. Its square has mean 1 / width whatever the spectra; its spread grows
as they decay, which is why Gaussian matrices of the same shape are no baseline.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

POWERS = 400
STEPS = torch.linspace(0, 0.98, 50, dtype=torch.float64)
ROTATIONS_AT_ONCE = 8_000_000
"""How many entries of rotations are there at a time."""

Spectra = Float64[Tensor, "_ _"]
"""A row per map: its squared singular values, adding up to 1."""


def spectra(maps: Float[Tensor, "head d_head d_model"], width: int) -> Spectra:
    """The squared singular values of each map over their sum; NaN for a map of zeros.

    As many as a stream of this width can have: the others are zero.
    """
    maps = maps.double()
    squares = torch.linalg.eigvalsh(maps @ maps.mT)[:, -width:].clamp(min=0)
    return squares / squares.sum(-1, keepdim=True)


def rotated(
    left: Spectra, right: Spectra, width: int, n_rotations: int, seed: int
) -> tuple[Float64[Tensor, "_ _"], Float64[Tensor, "_ _"]]:
    """Mean and deviation of the score of every pair, over Haar rotations drawn from a seed."""
    if left.shape[1] < right.shape[1]:  # the rotations cost less with the shorter side second
        mean, deviation = rotated(right, left, width, n_rotations, seed)
        return mean.T, deviation.T
    generator = torch.Generator().manual_seed(seed)
    columns = right.shape[1]
    at_once = max(1, ROTATIONS_AT_ONCE // (width * columns))
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    square = total.clone()
    for start in range(0, n_rotations, at_once):
        shape = (min(at_once, n_rotations - start), width, columns)
        gaussian = torch.randn(shape, generator=generator)
        corner = torch.linalg.qr(gaussian).Q[:, : left.shape[1]].double().square()
        scores = (left.cpu() @ corner @ right.cpu().T).sqrt()
        total += scores.sum(0)
        square += scores.square().sum(0)
    mean = total / n_rotations
    variance = (square - n_rotations * mean.square()) / (n_rotations - 1)
    return mean, variance.clamp(min=0).sqrt()


def tail_bound(
    scores: Float64[Tensor, "_ _"], left: Spectra, right: Spectra, width: int
) -> Float64[Tensor, "_ _"]:
    """No more than this share of all rotations gives as high a score: Chernoff's bound.

    It is that of the same sum over independent Gaussians in place of the rotation's entries. That
    it holds for rotations too takes no more than Jensen's inequality. With A and B the two maps'
    squares and d the width, and G Gaussian beside a rotation R, tr(A G B Gᵀ) is distributed as
    tr(A R M Rᵀ) with M = B^½ Gᵀ G B^½. The mean of M is d B: given R, the Gaussian sum is on
    average d times the rotation's, so that E exp is nowhere smaller.

    The bound is a generous one. In streams of 160 dimensions it is 5 to 6 times the share of what
    is drawn where that is 0.1, 12 to 16 times at 0.01, 26 to 31 times at 0.001; in narrow streams
    more, because a rotation's entries end where Gaussian tails go on (12 dimensions: 7, 24 and 96
    times). A normal distribution fitted to mean and deviation would be too small by powers of ten,
    because scores lean to the right.
    """
    tops = [side.amax(-1, keepdim=True) for side in (left, right)]
    # With w_ab = s_a² t_b² / width, log E exp(t X) = ½ Σ_r (2t)^r Σ_ab w_ab^r / r, and the sum over
    # ab is a product. `step` is 2 t times the largest w; past POWERS, a geometric series bounds it.
    powers = torch.arange(1, POWERS + 1, dtype=torch.float64)
    sums = [
        torch.stack([(side / top).pow(r).sum(-1) for r in powers.tolist()], dim=-1).cpu()
        for side, top in zip((left, right), tops, strict=True)
    ]
    heights = (scores.square() * width).cpu() / (tops[0] * tops[1].T).cpu() / 2
    exponent = torch.zeros_like(heights)
    for step in STEPS[1:]:
        weights = step**powers / (2 * powers)
        weights[-1] /= 1 - step
        exponent = torch.minimum(exponent, (sums[0] * weights) @ sums[1].T - step * heights)
    return exponent.exp()
