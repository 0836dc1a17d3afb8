"""How sure a phase change is: the bootstrap by its identities, and what is no phase change."""

import math
from functools import partial

import numpy as np
import pytest

from interp.analysis import Result, development, induction_score, phase_change
from interp.models import HookedConvAttn
from interp.results.intervals import student_t
from tests.analysis import planted
from tests.analysis.development.growth import DECADES, curve, found, of_samples, reason

# --------------------------------------------------------------------------------------- intervals

RISE = np.array([0, 0, 0.1, 0.9, 1.0, 1.0])


def bounds(result: Result, measure: str, **options) -> tuple[float, float]:
    change = phase_change(result, **options).sel(measure=measure)
    return float(change.sel(interval="low")), float(change.sel(interval="high"))


def test_what_a_sample_adds_to_every_step_changes_nothing():
    # Sequences differ, and each by as much at every step: nothing is unsure of the change.
    shifts = np.random.default_rng(0).normal(size=20)
    result = of_samples(RISE[:, None] + shifts)
    for measure, value in found(curve(RISE)).items():
        assert bounds(result, measure) == pytest.approx((value, value))
    unaware = curve(RISE, standard_error=np.full(6, shifts.std(ddof=1) / math.sqrt(20)))
    low, high = bounds(unaware, "height")
    assert high - low > 0.3


def test_samples_that_rise_differently_far_leave_only_the_height_unsure():
    heights = np.array([3.0, 3.5, 4.0, 5.5])
    result = of_samples(RISE[:, None] * heights)
    for measure in ("start", "end", "width"):
        value = found(curve(RISE))[measure]
        assert bounds(result, measure) == pytest.approx((value, value))
    # All 4^4 draws with replacement, one by one, drawn apart to Student's interval.
    every = np.sort(heights[np.indices((4,) * 4).reshape(4, -1)].mean(0))
    apart = student_t(0.975, 3) / 1.95996 * math.sqrt(4 / 3)
    expected = 4 + apart * (np.quantile(every, [0.025, 0.975]) - 4)
    np.testing.assert_allclose(bounds(result, "height", resamples=20_000), expected, atol=0.1)


def test_without_samples_errors_are_normal_and_independent_at_each_step():
    errors = np.full(6, 0.02)
    rise = [0, 0, 0, 0.4, 0.7, 1.0]
    low, high = bounds(curve(rise, standard_error=errors), "height", resamples=20_000)
    # The height is a difference of two values: 1.96 times the root of two squares.
    assert low == pytest.approx(1 - 1.96 * 0.02 * math.sqrt(2), abs=2e-3)
    assert high == pytest.approx(1 + 1.96 * 0.02 * math.sqrt(2), abs=2e-3)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (of_samples(RISE[:, None] + [0.0, 0.1]), "none: fewer than 3 independent samples"),
        (of_samples(RISE[:, None] + [0.0, 0.1, 0.2]), "bootstrap over 3 samples"),
        (curve(RISE, standard_error=np.full(6, 0.01)), "normal errors"),
        (curve(RISE), "none: no standard errors"),
        (curve(RISE, standard_error=np.full(6, np.nan)), "none: no standard errors"),
    ],
)
def test_the_provenance_says_how_intervals_were_made(result, said):
    assert phase_change(result).provenance["interval"].startswith(said)


@pytest.mark.parametrize("errors", [None, np.array([0.1, np.nan, 0.1, 0.1, 0.1, 0.1])])
def test_without_known_errors_there_is_no_interval(errors):
    change = phase_change(curve(RISE, standard_error=errors))
    assert np.isnan(change.sel(interval=["low", "high"]).values).all()
    assert np.isfinite(change.sel(interval="estimate").values).all()


def test_the_luck_of_the_farthest_is_taken_off_the_height():
    # A plateau of many checkpoints: the highest of k normal errors is about 0.02 times E(k) too
    # high, E(5) = 1.163 by the tables of order statistics; the draws are as lucky once more.
    plateau = [0, 1, 1, 1, 1, 1]
    errors = np.array([0, 0.02, 0.02, 0.02, 0.02, 0.02])
    low, high = bounds(curve(plateau, standard_error=errors), "height", resamples=20_000)
    assert (low + high) / 2 == pytest.approx(1 - 0.02 * 1.163, abs=1e-3)


def test_the_seed_decides():
    result = curve(RISE, standard_error=np.full(6, 0.05))
    one, same, other = (phase_change(result, seed=seed).values for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_two_samples_have_no_interval():
    change = phase_change(of_samples(RISE[:, None] * [1.0, 1.1]))
    assert np.isnan(change.sel(interval=["low", "high"]).values).all()
    assert np.isfinite(change.sel(interval="estimate").values).all()


def test_few_sequences_widen_the_normal_errors_to_students():
    errors = np.full(6, 0.02)
    few = curve(RISE, standard_error=errors, provenance={"n_sequences": 5})
    many = curve(RISE, standard_error=errors)
    wide, narrow = (np.ptp(bounds(one, "height")) for one in (few, many))
    assert wide / narrow == pytest.approx(2.776 / 1.960, rel=1e-3)


CURVES = 400


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, 8, 40])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(n):
    steps = np.unique(np.geomspace(1, 1e5, 20).round().astype(int)).tolist()
    truth = 1 / (1 + np.exp(-5 * (np.log10(steps) - 2.5)))
    exact = found(curve(truth, steps))
    rng = np.random.default_rng(0)
    held = dict.fromkeys(exact, 0)
    for _ in range(CURVES):
        own = rng.normal(size=(1, n)) + rng.normal(size=(len(steps), n))
        result = of_samples(truth[:, None] + 0.1 * own, steps)
        change = phase_change(result)
        for measure in held:
            low, high = change.sel(measure=measure, interval=["low", "high"]).values
            held[measure] += low <= exact[measure] <= high
    share = {measure: number / CURVES for measure, number in held.items()}
    assert 0.92 <= share["height"] <= 0.98, share
    # The times and the width are no means: of three samples they are a little less sure, and an end
    # between two checkpoints is never missed by much.
    assert min(share.values()) >= (0.88 if n == 3 else 0.92), share


# --------------------------------------------------------------------------------- no phase change


def test_a_flat_curve_has_none():
    assert reason(curve([0.3] * 6)) == "the score changes by 0.000, not above least=0.000"
    assert found(curve([0.3] * 6))["height"] == 0


def test_least_is_the_smallest_change_that_counts():
    assert reason(curve(RISE), least=1.0).endswith("not above least=1.000")
    assert found(curve(RISE), least=0.99)["width"] > 0


def test_attention_must_rise_above_three_times_chance():
    details = {"chance": np.array(0.02), "unit": "probability"}
    low = curve(0.02 + RISE * 0.0399, **details)
    assert reason(low).endswith("not above least=0.040")
    assert found(curve(0.02 + RISE * 0.0401, **details))["width"] > 0
    assert found(low, least=0.0)["width"] > 0
    assert found(curve(0.02 + RISE * 0.0399, chance=np.array(0.02), unit="nats"))["width"] > 0


@pytest.mark.parametrize("kind", ["samples", "errors"])
def test_errors_alone_are_no_phase_change(kind):
    steps = np.unique(np.geomspace(1, 1e5, 20).round().astype(int)).tolist()
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(100):
        samples = rng.normal(size=(len(steps), 30))
        if kind == "samples":
            result = of_samples(samples, steps)
        else:
            errors = samples.std(axis=1, ddof=1) / math.sqrt(30)
            result = curve(samples.mean(axis=1), steps, standard_error=errors)
        change = phase_change(result, resamples=400)
        wrong += "no_change" not in change.provenance
        null = change.sel(interval="estimate", measure="height").chance
    assert wrong <= 5  # at most 1 in 100 is meant, and 400 draws know that to a few
    assert 0.4 < float(null) < 1.2  # noise of 1 / sqrt(30) = 0.18 at each of 20 steps


def test_random_weights_show_no_phase_change():
    sizes = {"d_vocab": 100, "d_model": 32, "n_heads": 4, "n_ctx": 64}
    run = ((step, HookedConvAttn(**sizes, seed=number)) for number, step in enumerate(DECADES))
    grown = development(run, partial(induction_score, n=25, n_sequences=10))
    change = phase_change(grown)
    assert set(change.provenance["no_change"]) == {f"L1H{head}" for head in range(4)}
    assert np.isnan(change.sel(measure="start").values).all()
    assert np.abs(change.sel(measure="height", interval="estimate").values).max() < 0.02


def test_a_head_that_was_planted_changes_when_it_was_planted():
    run = (
        (step, planted.induction_conv_attn(d_vocab=60, n_ctx=64, head=1, gain=gain))
        for step, gain in zip(DECADES, (0, 0, 0, 40, 40, 40), strict=True)
    )
    analysis = partial(induction_score, n=10, n_sequences=1)
    change = phase_change(development(run, analysis, samples={"seed": range(8)}))
    window = change.sel(head="L1H1")
    assert (window.sel(measure="start").values >= 100 - 1e-6).all()
    assert (window.sel(measure="end").values <= 1000 + 1e-6).all()
    # From uniform attention over the t + 1 visible positions, t = 11 ... 20, to 1.
    uniform = math.fsum(1 / (t + 1) for t in range(11, 21)) / 10
    height = float(window.sel(interval="estimate", measure="height"))
    assert height == pytest.approx(1 - uniform, abs=1e-9)
    assert list(change.provenance["no_change"]) == ["L1H0"]
