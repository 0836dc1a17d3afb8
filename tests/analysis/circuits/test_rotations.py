"""The baseline of composition: exact moments, drawn rotations, and how often chance survives."""

import pytest
import torch
import torch.nn.functional as F

from interp.analysis.circuits.rotations import baseline, rotated, spectra


def decaying(n: int, power: float, width: int) -> torch.Tensor:
    squares = torch.arange(1, n + 1, dtype=torch.float64) ** -power
    return F.pad(squares / squares.sum(), (0, width - n))[None]


def moments(left, right, n, seed=0):
    draws = rotated(left, right, n, seed).double()
    return draws.mean(0), draws.std(0)


CASES = [(40, 12, 12, 1.0), (40, 8, 40, 2.0), (30, 10, 5, 4.0), (160, 16, 16, 0.0), (12, 1, 1, 0.0)]


@pytest.mark.parametrize(("width", "m", "n", "power"), CASES)
def test_the_square_has_the_moments_of_haar_rotations(width, m, n, power):
    # For traceless A and B, E tr(A R B Rᵀ)² = 2 |A|² |B|² / ((d - 1)(d + 2)) (Weingarten), so the
    # square of the score has mean 1/d and this variance.
    left, right = decaying(m, power, width), decaying(n, 1.0, width)
    mean, deviation = moments(left, right, 1_000)
    squares = float(mean**2 + deviation**2)
    assert squares == pytest.approx(1 / width, rel=0.05)
    purities = [float(side.square().sum()) - 1 / width for side in (left, right)]
    variance = 2 * purities[0] * purities[1] / ((width - 1) * (width + 2))
    # To first order the deviation of the root; exact where the spread is small.
    if variance**0.5 < 0.1 / width:
        assert float(deviation) == pytest.approx((variance * width) ** 0.5 / 2, rel=0.08)


def test_a_map_that_treats_all_directions_alike_scores_the_same_under_every_rotation():
    flat, other = decaying(16, 0.0, 16), decaying(5, 1.0, 16)
    mean, deviation = moments(flat, other, 50)
    assert float(mean) == pytest.approx(1 / 4, abs=1e-6)
    assert float(deviation) < 1e-6
    found = baseline(torch.full((1, 1), 0.25).double(), flat, other, 50, seed=0)
    assert found.z.isnan().all()
    assert found.p.isnan().all()


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
    mean, deviation = moments(spectra(A, 20), spectra(B, 20), 2_000, seed=1)
    assert float(mean) == pytest.approx(float(drawn.mean()), rel=0.03)
    assert float(deviation) == pytest.approx(float(drawn.std()), rel=0.1)


def test_rotations_are_those_of_the_seed_and_of_no_global_state():
    before = torch.get_rng_state()
    sides = decaying(4, 1, 9), decaying(3, 1, 9)
    one, same, other = (rotated(*sides, 20, seed) for seed in (0, 0, 1))
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])
    assert torch.equal(before, torch.get_rng_state())


def test_pairs_share_a_rotation_as_little_as_heads_share_directions():
    # If all pairs saw the same corner, the most extreme of many would be no more extreme than one.
    side = decaying(3, 1.0, 40).expand(5, -1)
    draws = rotated(side, side, 2_000, seed=0).flatten(1)
    apart = torch.corrcoef(draws.T)[~torch.eye(25, dtype=torch.bool)]
    assert float(apart.abs().max()) < 0.15
    assert float(draws.amax(1).mean()) > float(draws[:, 0].quantile(0.9))


@pytest.mark.parametrize("n_rotations", [2, 3, 39])
@pytest.mark.parametrize("seed", range(8))
def test_the_baseline_is_counted_among_all_draws(n_rotations, seed):
    left, right = decaying(3, 1.0, 9).repeat(2, 1), decaying(5, 2.0, 9).repeat(3, 1)
    draws = rotated(left, right, n_rotations, seed).double()
    apart = 2 * torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)).double()
    scores = draws.mean(0) + draws.std(0) * apart
    scores[1, 2] = torch.nan  # no pair
    found = baseline(scores, left, right, n_rotations, seed)
    known = scores.isfinite()
    mean, spread = draws.mean(0)[known], draws.std(0)[known]
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(found.mean[known], mean, **close)
    torch.testing.assert_close(found.spread[known], spread, **close)
    torch.testing.assert_close(found.z[known], (scores[known] - mean) / spread, **close)
    # What was found is one more draw, and all of them are measured alike.
    drawn = torch.cat([draws[:, known], scores[known][None]])
    x = (drawn - drawn.mean(0)) / drawn.std(0)
    above = 1 + (x[:-1].amax(1)[:, None] >= x[-1]).sum(0)
    below = 1 + (x[:-1].amin(1)[:, None] <= x[-1]).sum(0)
    expected = (2 * torch.minimum(above, below).double() / len(drawn)).clamp(max=1)
    torch.testing.assert_close(found.p[known], expected)
    for missing in (found.mean, found.spread, found.z, found.p):
        assert missing[~known].isnan().all()


def test_a_spread_is_rounding_only_where_it_is_a_millionth_of_the_mean():
    # Nearly alike in all directions: the score hardly changes, but it does, and z is known.
    nearly = torch.ones(1, 16).double()
    nearly[0, 0] = 1.02
    nearly /= nearly.sum()
    other = decaying(5, 1.0, 16)
    found = baseline(torch.full((1, 1), 0.26).double(), nearly, other, 50, seed=0)
    assert 1e-5 < float(found.spread / found.mean) < 1e-2
    assert float(found.z) > 1
    assert float(found.p) == pytest.approx(2 / 51)


@pytest.mark.parametrize("n_maps", [1, 6])
def test_chance_alone_lets_a_pair_survive_as_often_as_it_says(n_maps):
    # The maps turned at random many times, each time with a baseline of its own.
    width, trials, n_rotations = 20, 250, 39  # the smallest p is 0.05
    left = decaying(5, 1.0, width).expand(n_maps, -1)
    right = decaying(4, 2.0, width).expand(n_maps, -1)
    generator = torch.Generator().manual_seed(0)
    survived, low = 0, 0
    for trial in range(trials):
        turned = torch.linalg.qr(torch.randn(n_maps, n_maps, width, width, generator=generator))[0]
        scores = torch.einsum("ia,ijab,jb->ij", left, turned.double().square(), right).sqrt()
        found = baseline(scores, left, right, n_rotations, seed=trial)
        assert float(found.p.min()) >= 2 / (1 + n_rotations) - 1e-12
        survived += int((found.p < 0.051).any())
        low += int(((found.p < 0.051) & (found.z < 0)).any())
    error = (0.05 * 0.95 / trials) ** 0.5
    assert abs(survived / trials - 0.05) < 3 * error
    assert 0 < low < survived


def test_a_map_of_zeros_has_no_spectrum():
    maps = torch.zeros(2, 3, 8)
    maps[1, 0, 0] = 2
    squares = spectra(maps, 8)
    assert squares[0].isnan().all()
    assert squares[1].tolist() == [0, 0, 1, *[0] * 5]
    assert spectra(torch.eye(8)[None], 7).shape == (1, 7)
