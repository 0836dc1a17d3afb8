"""Phase changes: curves that were planted, and the window by brute force."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.analysis import Result, phase_change
from interp.analysis.development.windows import SHARE
from tests.analysis.development.growth import DECADES, curve, found, reason

RISE = [0, 0, 0.1, 0.9, 1.0, 1.0]


# --------------------------------------------------------------------------------- planted curves


@pytest.mark.parametrize("sign", [1, -1])
def test_a_jump_lies_between_the_checkpoints_around_it(sign):
    change = found(curve([0, 0, 0, sign, sign, sign]))
    # Straight between 100 and 1000: 80 % of the way, from either end, is 0.8 of a decade.
    assert change["width"] == pytest.approx(0.8)
    assert 100 <= change["start"] < change["end"] <= 1000 * (1 + 1e-12)
    assert change["height"] == sign


@pytest.mark.parametrize(("steepness", "middle"), [(3.0, 2.5), (8.0, 4.0)])
def test_a_logistic_has_its_window_from_a_tenth_to_nine(steepness, middle):
    steps = np.unique(np.geomspace(1, 1e7, 400).round().astype(int)).tolist()
    values = 0.9 / (1 + np.exp(-steepness * (np.log10(steps) - middle)))
    change = found(curve(values, steps))
    # 1 / (1 + exp(-k x)) is a tenth at x = -ln(9) / k and nine tenths at ln(9) / k.
    assert change["width"] == pytest.approx(2 * math.log(9) / steepness, rel=2e-3)
    half = math.log(9) / steepness
    assert math.log10(change["start"]) == pytest.approx(middle - half, abs=0.03)
    assert math.log10(change["end"]) == pytest.approx(middle + half, abs=0.03)
    assert change["height"] == pytest.approx(0.9, rel=2e-3)


def test_a_straight_line_takes_four_fifths_of_its_length():
    change = found(curve([0, 1, 2, 3, 4, 5]))
    assert change["width"] == pytest.approx(0.8 * 5)


def test_a_steep_part_is_found_in_a_slow_rise():
    # Of 10, four fifths are 8: the 7 of the steep decade, and 1 more at half a unit a decade.
    change = found(curve([0, 0.5, 1.0, 8.0, 8.5, 10.0]))
    assert change["height"] == 10
    assert change["width"] == pytest.approx(1 + 1 + 0.5 / 1.5)
    assert (change["start"], change["end"]) == pytest.approx((100, 10 ** (4 + 0.5 / 1.5)))


def test_a_peak_is_credited_with_all_of_its_rise():
    rise = found(curve([0, 0, 0.1, 0.9, 1.0, 1.0]))
    for fallen in (0.6, 0.0):
        assert found(curve([0, 0, 0.1, 0.9, 1.0, fallen])) == pytest.approx(rise)
    assert rise["height"] == 1


def test_a_fall_below_the_beginning_counts_where_it_is_farther():
    change = found(curve([0, 0.3, 0.3, -1.0, -1.0, -0.2]))
    assert change["height"] == -1
    # 80 % of the fall is 0.8, on the decade that falls by 1.3.
    assert change["width"] == pytest.approx(0.8 / 1.3)


def test_tokens_scale_the_window_and_leave_its_width():
    values, steps = [0, 0, 0.1, 0.9, 1.0, 1.0], found(curve([0, 0, 0.1, 0.9, 1.0, 1.0]))
    result = phase_change(curve(values, provenance={"tokens_per_step": 2048}))
    tokens = found(curve(values, provenance={"tokens_per_step": 2048}))
    assert tokens["start"] == pytest.approx(2048 * steps["start"])
    assert tokens["end"] == pytest.approx(2048 * steps["end"])
    assert tokens["width"] == pytest.approx(steps["width"])
    assert dict(result.unit) == {
        "start": "tokens", "end": "tokens", "width": "decades", "height": "",
    }  # fmt: skip
    assert phase_change(curve(values)).unit["start"] == "steps"


def test_step_0_begins_the_change_but_not_the_window():
    steps = (0, *DECADES)
    late = found(curve([0, 0, 0, 0, 1, 1, 1], steps))
    assert late == pytest.approx(found(curve([0, 0, 0, 1, 1, 1])))
    # Of a change of 1, 0.1 came before the first checkpoint: 0.8 of the rest are still there.
    assert found(curve([0, 0.1, 0.1, 0.1, 1, 1, 1], steps))["height"] == 1
    why = reason(curve([0, 0.3, 0.3, 0.3, 1, 1, 1], steps))
    assert why == "too much of the change lies before the first checkpoint, at 1 tokens"


def test_every_head_has_its_own():
    values = np.array([[0, 0], [0, 0], [0, 0.1], [1, 0.1], [1, 0.1], [1, 0.5]])
    labels = {"step": DECADES, "head": ("L0H0", "L1H0")}
    each = phase_change(Result("score", values, ("step", "head"), labels))
    assert each.axes == ("head", "interval", "measure")
    for head, column in zip(labels["head"], values.T, strict=True):
        alone = phase_change(curve(column))
        np.testing.assert_array_equal(each.sel(head=head).values, alone.values)


def test_a_single_measure_needs_no_choosing_and_several_do():
    labels = {"step": DECADES, "measure": ("in_context_learning_score",)}
    values = np.array([[0.0], [0], [0], [-0.5], [-0.5], [-0.5]])
    one = Result("icl", values, ("step", "measure"), labels, unit="nats")
    assert found(one)["height"] == -0.5
    assert phase_change(one).unit["height"] == "nats"
    labels = {"step": DECADES, "measure": ("a", "b")}
    with pytest.raises(ValueError, match=r"holds \('a', 'b'\); choose one"):
        phase_change(Result("loss", np.hstack([values, values]), ("step", "measure"), labels))


# ------------------------------------------------------------------------------------- brute force


def brute_force(values: list[float], logs: list[float]) -> float:
    """The width of the shortest window, with one of its ends at each checkpoint in turn."""
    height = max((v - values[0] for v in values), key=abs)
    sign = 1 if height > 0 else -1
    goal = SHARE * abs(height)
    widths = []
    for fixed, value in zip(logs, values, strict=True):
        for i in range(len(logs) - 1):
            left, right = values[i], values[i + 1]
            for wanted in (value + sign * goal, value - sign * goal):
                if left != right and 0 <= (wanted - left) / (right - left) <= 1:
                    other = logs[i] + (wanted - left) / (right - left) * (logs[i + 1] - logs[i])
                    is_later = wanted == value + sign * goal
                    if (other > fixed) == is_later:
                        widths.append(abs(other - fixed))
    return min(widths)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), n=st.integers(3, 12))
def test_the_window_is_that_of_a_search_by_brute_force(seed, n):
    rng = np.random.default_rng(seed)
    steps = np.cumsum(rng.integers(1, 200, n)).tolist()
    values = rng.normal(size=n).tolist()
    change = found(curve(values, steps))
    logs = [math.log10(step) for step in steps]
    assert change["width"] == pytest.approx(brute_force(values, logs), rel=1e-9)
    start, end = np.log10([change["start"], change["end"]])
    assert end - start == pytest.approx(change["width"], rel=1e-9)
    held = np.interp(end, logs, values) - np.interp(start, logs, values)
    assert held == pytest.approx(SHARE * change["height"], rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_no_window_on_a_fine_grid_is_shorter(seed):
    rng = np.random.default_rng(seed)
    values, logs = rng.normal(size=6), np.log10(DECADES)
    change = found(curve(values))
    # With the checkpoints: a window may end at the very tip of a peak.
    grid = np.union1d(np.linspace(logs[0], logs[-1], 400), logs)
    fine = np.interp(grid, logs, values) * np.sign(change["height"])
    gains = fine[None, :] - fine[:, None] - SHARE * abs(change["height"])
    widths = (grid[None, :] - grid[:, None])[(gains >= -1e-12) & (grid[None, :] > grid[:, None])]
    assert widths.min() >= change["width"] - 1e-9
    assert widths.min() <= change["width"] + 2 * np.diff(grid).max()


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("result", "options", "message"),
    [
        (curve([0, 1], (1, 2)), {}, r"2 steps on axes \('step',\)"),
        (Result("x", np.zeros(3), ("head",), {"head": ("a", "b", "c")}), {}, "has 0 steps"),
        (curve([0, 1, np.nan, 1, 1, 1]), {}, r"NaN at steps \[100\]"),
        (curve([0, 1, 2], (1, 3, 2)), {}, "step 2 comes after step 3"),
        (curve(RISE), {"least": -0.1}, "least=-0.1 must be at least 0"),
        (curve(RISE), {"resamples": 0}, "resamples=0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(result, options, message):
    with pytest.raises(ValueError, match=message):
        phase_change(result, **options)
