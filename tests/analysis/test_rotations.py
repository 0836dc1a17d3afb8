"""The baseline of composition: its exact moments, drawn rotations, and the bound of its tail."""

import pytest
import torch

from interp.analysis.maps.rotations import rotated, spectra, tail_bound


def decaying(n: int, power: float) -> torch.Tensor:
    squares = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    return (squares / squares.sum())[None]


CASES = [(40, 12, 12, 1.0), (40, 8, 40, 2.0), (30, 10, 5, 4.0), (160, 16, 16, 0.0), (12, 1, 1, 0.0)]
DRAWN = 20_000
SIGMA = 4
"""How many standard errors of an empirical tail are allowed for."""


@pytest.mark.parametrize(("width", "m", "n", "power"), CASES)
def test_the_square_has_the_moments_of_haar_rotations(width, m, n, power):
    # For traceless A and B, E tr(A R B Rᵀ)² = 2 |A|² |B|² / ((d - 1)(d + 2)) (Weingarten), so the
    # square of the score has mean 1/d and this variance.
    left, right = decaying(m, power), decaying(n, 1.0)
    mean, deviation = rotated(left, right, width, 4_000, seed=0)
    squares = float(mean**2 + deviation**2)
    assert squares == pytest.approx(1 / width, rel=0.05)
    purities = [float(side.square().sum()) - 1 / width for side in (left, right)]
    variance = 2 * purities[0] * purities[1] / ((width - 1) * (width + 2))
    # To first order the deviation of the root; exact where the spread is small.
    if variance**0.5 < 0.1 / width:
        assert float(deviation) == pytest.approx((variance * width) ** 0.5 / 2, rel=0.08)


def test_a_map_that_treats_all_directions_alike_scores_the_same_under_every_rotation():
    mean, deviation = rotated(decaying(16, 0.0), decaying(5, 1.0), 16, 50, seed=0)
    assert float(mean) == pytest.approx(1 / 4, abs=1e-6)
    assert float(deviation) < 1e-6


def test_drawn_scores_are_those_of_rotated_matrices():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(1, 3, 20, generator=generator, dtype=torch.float64)
    B = torch.randn(1, 4, 20, generator=generator, dtype=torch.float64)
    scores = []
    for _ in range(2_000):
        gaussian = torch.randn(20, 20, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(gaussian)
        scores.append(float((A[0] @ (q * r.diagonal().sign()) @ B[0].T).norm()))
    drawn = torch.tensor(scores) / A.norm() / B.norm()
    mean, deviation = rotated(spectra(A, 20), spectra(B, 20), 20, 2_000, seed=1)
    assert float(mean) == pytest.approx(float(drawn.mean()), rel=0.03)
    assert float(deviation) == pytest.approx(float(drawn.std()), rel=0.1)


def test_rotations_are_those_of_the_seed_and_of_no_global_state():
    before = torch.get_rng_state()
    one, same, other = (rotated(decaying(4, 1), decaying(3, 1), 9, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("width", "m", "n", "power"), CASES)
def test_the_bound_of_the_tail_is_above_what_is_drawn_and_not_far(width, m, n, power):
    left, right = decaying(m, power), decaying(n, 1.0)
    generator = torch.Generator().manual_seed(0)
    corners = (
        torch.linalg.qr(torch.randn(DRAWN // 10, width, n, generator=generator)).Q[:, :m]
        for _ in range(10)
    )
    drawn = torch.cat([left @ corner.double().square() @ right.T for corner in corners])
    drawn = drawn.sqrt().flatten().sort().values
    for share, generous in ((0.1, 9), (0.01, 30), (0.001, 150)):
        height = drawn[int(DRAWN * (1 - share))]
        error = (share * (1 - share) / DRAWN) ** 0.5
        bound = float(tail_bound(height.view(1, 1), left, right, width))
        # Above every share of all rotations that can have given this share of those drawn.
        assert share + SIGMA * error <= bound <= generous * (share + SIGMA * error)


def test_far_out_the_bound_is_above_the_exact_tail():
    # Rank one on both sides: the square of the score is that of one entry of a unit vector, and
    # Beta(1/2, 11/2) in 12 dimensions. Its tail is (1 - I(h²)), here by integrating the density.
    one = torch.ones(1, 1, dtype=torch.float64)
    entry = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = (1 - entry.square()).pow((12 - 3) / 2)
    below = density.cumsum(0) / density.sum()
    for height in (0.3, 0.6, 0.8, 0.9, 0.95):
        exact = 1 - float(below[int(height * 200_000)])
        bound = float(tail_bound(height * one, one, one, 12))
        assert exact < bound <= 1


def test_the_bound_is_1_at_the_mean_and_falls_ever_after():
    left, right = decaying(8, 1.0), decaying(6, 1.0)
    scores = torch.linspace(0, 1, 60, dtype=torch.float64)[None]
    bounds = tail_bound(scores, left, right.expand(60, -1), 50)[0]
    assert float(bounds[0]) == 1
    assert (bounds.diff() <= 0).all()
    assert float(bounds[-1]) < 1e-6


def test_a_map_of_zeros_has_no_spectrum():
    maps = torch.zeros(2, 3, 8)
    maps[1, 0, 0] = 2
    squares = spectra(maps, 8)
    assert squares[0].isnan().all()
    assert squares[1].tolist() == [0, 0, 1]
    assert spectra(torch.eye(8)[None], 7).shape == (1, 7)
