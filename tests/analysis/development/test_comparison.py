"""Tokens to reach a score: by hand, with intervals from tables, and runs that never get there."""

import math
import statistics

import numpy as np
import pytest

from interp.analysis import Result, tokens_to_reach
from interp.results.intervals import mean_interval, median_interval, student_t

STEPS = (1, 10, 100, 1000)


def run(values, kind="attn", steps=STEPS, **provenance) -> Result:
    origin = {"architecture": kind, "tokens_per_step": 8, **provenance}
    return Result("score", np.array(values, float), ("step",), {"step": steps}, provenance=origin)


def time(values, score, **options) -> float:
    steps = options.pop("steps", STEPS)
    found = tokens_to_reach([run(values, steps=steps)], score, **options)
    return float(found.sel(architecture="attn", interval="estimate"))


def test_between_checkpoints_the_logarithm_of_the_tokens_counts():
    assert time([0, 0, 1, 1], 0.5) == pytest.approx(8 * 10**1.5)
    assert time([0, 0.2, 1.0, 1], 0.4) == pytest.approx(8 * 10 ** (1 + 0.2 / 0.8))
    assert time([0, 0, 1, 1], 1.0) == pytest.approx(8 * 100)


def test_the_first_time_counts():
    assert time([0, 0.5, 0.1, 1], 0.5) == pytest.approx(8 * 10)
    assert time([0, 0.5, 0.1, 0.2], 0.25) == pytest.approx(8 * 10**0.5)


def test_losses_fall():
    assert time([9, 9, 5, 5], 7, falling=True) == pytest.approx(8 * 10**1.5)
    assert time([-0.1, -0.1, -0.7, -0.7], -0.4, falling=True) == pytest.approx(8 * 10**1.5)


def test_after_step_0_the_next_checkpoint_counts():
    assert time([0, 1, 1, 1], 0.5, steps=(0, 10, 100, 1000)) == pytest.approx(80)


def test_without_tokens_steps_count():
    bare = Result(
        "score", np.array([0.0, 1]), ("step",), {"step": (1, 100)}, provenance={"architecture": "a"}
    )
    found = tokens_to_reach([bare], 0.5)
    assert found.unit == "steps"
    assert float(found.sel(architecture="a", interval="estimate")) == pytest.approx(10)
    assert tokens_to_reach([run([0, 0, 1, 1])], 0.5).unit == "tokens"


def reached_at(step, **provenance):
    """A run that is at 1 from this step on, and at 0 at the one before."""
    return run([0, 1, 1], steps=(step - 1, step, 5000), **provenance)


def test_the_estimate_is_a_geometric_mean_in_students_interval():
    times = [100, 200, 400]
    found = tokens_to_reach([reached_at(step) for step in times], 1.0)
    estimate, low, high = found.sel(architecture="attn").values
    assert estimate == pytest.approx(8 * 200)
    # The logarithms are ln 2 apart, which is their deviation; t(0.975, 2) = 4.303.
    reach = math.exp(4.30265 * math.log(2) / math.sqrt(3))
    assert (low, high) == pytest.approx((8 * 200 / reach, 8 * 200 * reach), rel=1e-5)
    assert found.provenance["method"]["attn"] == "geometric mean, t interval"
    assert found.provenance["coverage"] == {"attn": 0.95}


def test_runs_that_never_get_there_are_counted_and_not_dropped():
    runs = [reached_at(100), reached_at(400), run([0, 0, 0.2, 0.9])]
    found = tokens_to_reach(runs, 1.0)
    assert found.sel(architecture="attn").values.tolist() == [3200, 800, math.inf]
    assert found.provenance["runs"] == {"attn": 3}
    assert found.provenance["never"] == {"attn": 1}
    assert found.provenance["method"] == {"attn": "median, between order statistics"}
    assert found.provenance["coverage"] == {"attn": 0.75}  # and not 95 %
    assert set(found.provenance["last"]["attn"].values()) == {8 * 5000, 8 * 1000}
    assert list(found.provenance["each"]["attn"].values()) == [800, 3200, None]


def test_half_of_the_runs_are_not_most_of_them():
    found = tokens_to_reach([reached_at(100), run([0, 0, 0, 0])], 1.0)
    assert found.sel(architecture="attn").values.tolist() == [math.inf, 800, math.inf]
    assert found.provenance["coverage"] == {"attn": 0.5}


def test_what_never_got_there_is_later_than_its_last_checkpoint():
    never = tokens_to_reach([run([0, 0, 0, 0])] * 3, 1.0)
    assert never.sel(architecture="attn").values.tolist() == [math.inf, 8 * 1000, math.inf]
    # A run that stopped early says less than one that arrived late.
    early = run([0, 0, 0], steps=(1, 5, 10))
    found = tokens_to_reach([early, reached_at(100), reached_at(400)], 1.0)
    assert found.sel(architecture="attn").values.tolist() == [3200, 80, math.inf]


def test_one_run_has_no_interval():
    assert np.isnan(
        tokens_to_reach([reached_at(9)], 1.0).sel(interval=["low", "high"]).values
    ).all()
    one = tokens_to_reach([run([0, 0, 0, 0])], 1.0)
    assert one.sel(architecture="attn", interval="estimate").values == math.inf
    assert np.isnan(one.sel(interval="low").values).all()


def test_runs_are_grouped_by_kind():
    runs = [reached_at(10, kind="conv"), reached_at(90, kind="attn"), reached_at(1000, kind="conv")]
    found = tokens_to_reach(runs, 1.0)
    assert found.labels["architecture"] == ("conv", "attn")
    estimates = found.sel(interval="estimate").values
    np.testing.assert_allclose(estimates, [8 * 100, 8 * 90])
    members = [reached_at(10, member="one-lag", run="a"), reached_at(20, member="whole", run="a")]
    assert tokens_to_reach(members, 1.0).labels["member"] == ("one-lag", "whole")
    assert tokens_to_reach(members, 1.0, by="run").labels["run"] == ("a",)
    assert len(tokens_to_reach(members, 1.0, by="run").provenance["each"]["a"]) == 2


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "there are no runs"),
        ([Result("x", np.zeros((2, 1)), ("step", "head"), {"step": (1, 2), "head": ("a",)},
                 provenance={"architecture": "a"})], r"axes \('step', 'head'\)"),
        ([run([0, np.nan, 1, 1])], "holds NaN"),
        ([run([0.6, 0.7, 0.8, 1])], r"is 0\.6 at its first checkpoint, so it reached 0\.5 before"),
        ([Result("x", np.zeros(2), ("step",), {"step": (1, 2)})], "no 'architecture'.*has nothing"),
        ([run([0, 0, 1, 1]), Result("x", np.zeros(2), ("step",), {"step": (1, 2)},
                                    provenance={"architecture": "a"})], "some runs know"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        tokens_to_reach(runs, 0.5)


# --------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize(
    ("probability", "dof", "quantile"),
    [  # Student's table
        (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776),
        (0.975, 9, 2.262), (0.975, 30, 2.042), (0.95, 5, 2.015), (0.995, 7, 3.499),
        (0.975, 1000, 1.962),
    ],
)  # fmt: skip
def test_students_quantiles_are_those_of_the_table(probability, dof, quantile):
    assert student_t(probability, dof) == pytest.approx(quantile, abs=6e-4)


def test_a_mean_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [
        low <= 0 <= high for low, high in map(mean_interval, rng.normal(size=(2000, 3)).tolist())
    ]
    assert 0.935 < statistics.fmean(held) < 0.965


@pytest.mark.parametrize("n", [2, 3, 5, 6, 9, 25])
def test_a_median_interval_is_the_narrowest_that_coins_allow(n):
    # Every one of 2^n ways in which n values can lie below or above the median; or as many draws.
    rng = np.random.default_rng(n)
    ways = np.indices((2,) * n).reshape(n, -1).T if n < 10 else rng.integers(0, 2, (20_000, n))
    below = ways.sum(axis=1)
    low, high, coverage = median_interval(range(n))
    assert low + high == n - 1  # as far from both ends

    def share(k):
        return np.mean((below >= k) & (below <= n - k))

    k = int(low) + 1
    assert coverage == pytest.approx(share(k), abs=1e-9 if n < 10 else 0.01)
    assert k == 1 if n < 6 else coverage >= 0.95
    if n >= 6 and k < n // 2:
        assert share(k + 1) < 0.955


@pytest.mark.parametrize("n", [3, 6])
@pytest.mark.parametrize("last", [math.inf, 0.4, 2.0])
def test_a_median_interval_holds_the_median_as_often_as_it_says(n, last):
    # Skewed draws of median 1, of runs that end before it, after it, or never.
    rng = np.random.default_rng(1)
    draws = np.exp(rng.normal(size=(400, n)))
    low = np.minimum(draws, last).tolist()
    high = np.where(draws < last, draws, math.inf).tolist()
    found = list(map(median_interval, low, high))
    held = statistics.fmean(one.low <= 1 <= one.high for one in found)
    share = found[0].coverage
    error = math.sqrt(share * (1 - share) / 400)
    assert share == 1 - 2 / 2**n
    assert held > share - 3 * error
    if last == math.inf:
        assert held < share + 3 * error


def test_one_value_has_no_interval():
    assert all(map(math.isnan, (*mean_interval([1.0]), *median_interval([1.0]))))
    one = tokens_to_reach([reached_at(9)], 1.0)
    assert one.provenance["coverage"] == {"attn": None}
