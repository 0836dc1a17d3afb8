"""What a composition score would be by chance: a random rotation put between the two actual maps.

With A = U diag(s) Vᵀ written and B = X diag(t) Yᵀ read, a Haar rotation R of the stream's d
dimensions makes the score

    |A R B|² / (|A|² |B|²) = Σ_ab s_a² W_ab² t_b² / (Σ_a s_a² · Σ_b t_b²),

* W = Vᵀ R X: the corner of a rotation, Haar distributed whatever V and X are;
* s_a², t_b²: the squared singular values, all of the maps that is left. Only they matter.

Each W_ab² has mean 1 / d, so the square of the score has, too, whatever the spectra are. Its
variance, of two maps whose squared singular values add up to 1, is (Weingarten calculus)

    2 (Σ_a s_a⁴ - 1/d) (Σ_b t_b⁴ - 1/d) / ((d - 1) (d + 2)),

* Σ_a s_a⁴ - 1/d: how far the map is from treating all directions alike; at 0 no rotation matters;
* (d - 1) (d + 2) / 2: how many directions traceless symmetric matrices have, over which rotations
  spread A Aᵀ evenly.

It grows as spectra decay, which is why Gaussian matrices of the same shape are no baseline.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Spectra = Float64[Tensor, "_ _"]
"""A row per map: its squared singular values, adding up to 1."""
Pairs = Float64[Tensor, "_ _"]
UNCHANGED = 1e-6
"""A spread under this share of the mean is rounding."""


def spectra(maps: Float[Tensor, "head d_head d_model"], width: int) -> Spectra:
    """The squared singular values of each map over their sum; NaN for a map of zeros.

    As many as the stream has dimensions; those that a map does not have are zero.
    """
    maps = maps.double()
    squares = torch.linalg.eigvalsh(maps @ maps.mT)[:, -width:].clamp(min=0)
    squares = F.pad(squares, (0, width - squares.shape[1]))
    return (squares / squares.sum(-1, keepdim=True)).cpu()


def rotated(
    left: Spectra, right: Spectra, n_rotations: int, seed: int
) -> Float[Tensor, "rotation _ _"]:
    """The score of every pair under Haar rotations drawn from a seed.

    Of one rotation of the whole stream, each map sees its own rows or columns, drawn at random: a
    corner of it is distributed as that of a rotation of one's own, and two pairs share no more of
    it than directions that they happen to have in common. So the highest score of all pairs is that
    of many pairs and not of one.
    """
    generator = torch.Generator().manual_seed(seed)
    width = left.shape[1]
    scores = torch.empty(n_rotations, len(left), len(right))
    for place in range(n_rotations):
        gaussian = torch.randn(width, width, generator=generator)
        squares = torch.linalg.qr(gaussian).Q.double().square()
        rows, columns = (
            side.gather(1, torch.rand(side.shape, generator=generator).argsort(dim=1))
            for side in (left, right)
        )
        scores[place] = (rows @ squares @ columns.T).sqrt()
    return scores


@dataclass(frozen=True, eq=False)
class Baseline:
    """What rotations give: mean and deviation of each pair, z and corrected p of what was found.

    z is NaN, and so is p, where no rotation changes the score.
    """

    mean: Pairs
    spread: Pairs
    z: Pairs
    p: Pairs


def baseline(scores: Pairs, left: Spectra, right: Spectra, n_rotations: int, seed: int) -> Baseline:
    """Scores beside those under rotations; NaN where there is no pair.

    p bounds the tail over all pairs at once (the max statistic of Westfall and Young 1993): of each
    rotation only the most extreme pair counts. With x[r] the deviations of all pairs under rotation
    r of n, and x that of what was found for one of them,

        p = min(1, 2 min(1 + #{r: max x[r] ≥ x}, 1 + #{r: min x[r] ≤ x}) / (1 + n)),

    * max x[r], min x[r]: over all pairs, so that with many pairs chance has many tries, and pairs
      that vary together are no more than they are;
    * 1 + ...: what was found is one more draw if it is chance, so that p is never 0;
    * 2 min(...): both tails were looked at;
    * 1 + n: all draws.

    For the same reason x is no z. It is in units of the mean m and spread u of all n + 1 draws of
    the pair, its own score s included: with mean μ and deviation σ of the n rotations,

        m = μ + (s - μ) / (n + 1),    u² = ((n - 1) σ² + (s - μ)² n / (n + 1)) / n.

    In units of the n alone it would lie farther out than any of them (with 36 pairs and 39
    rotations, a pair would survive in 15 % of cases instead of 5).
    """
    draws = rotated(left, right, n_rotations, seed)
    mean, spread = draws.mean(0).double(), draws.std(0).double()
    known: Bool[Tensor, "_ _"] = scores.isfinite() & (spread > UNCHANGED * mean)
    z = ((scores - mean) / spread).where(known, torch.nan)
    apart = scores - mean
    middle = mean + apart / (n_rotations + 1)
    squares = (n_rotations - 1) * spread**2 + apart**2 * n_rotations / (n_rotations + 1)
    unit = (squares / n_rotations).sqrt()
    draws -= middle.float()
    draws /= unit.float()
    shown = ((scores - middle) / unit)[known].float()

    def as_far(extremes: Tensor, observed: Tensor) -> Tensor:
        """How many of these are at least so high."""
        return n_rotations - torch.searchsorted(extremes.sort().values, observed)

    p = torch.full_like(z, torch.nan)
    if known.any():
        highest = torch.stack([one[known].max() for one in draws])
        lowest = torch.stack([one[known].min() for one in draws])
        above = as_far(highest, shown)
        below = as_far(-lowest, -shown)
        p[known] = 2 * (1 + torch.minimum(above, below).double()) / (1 + n_rotations)
        p.clamp_(max=1)
    missing = ~scores.isfinite()
    return Baseline(
        mean.masked_fill(missing, torch.nan), spread.masked_fill(missing, torch.nan), z, p
    )
