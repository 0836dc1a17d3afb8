"""Phase changes: when a score changes during training, within how many tokens, and by how much."""

import math
from collections.abc import Sequence
from itertools import product
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from interp.analysis.development.windows import (
    Curve,
    Curves,
    farthest_step,
    largest_change,
    shortest_windows,
)
from interp.results.intervals import student_t
from interp.results.result import Label, Result, clock, over_samples, rounded, tokens_at
from interp.results.sampling import Sampling
from interp.views.revisions import check_steps

CONFIDENCE, NULL = 0.95, 0.99
INTERVAL = ("estimate", "low", "high")
MEASURES = ("start", "end", "width", "height")


def phase_change(
    result: Result, *, least: float | None = None, resamples: int = 1000, seed: int = 0
) -> Result:
    """When does a score change, and how suddenly? The shortest window with 80 % of its change.

    The curve is the score against the logarithm of the tokens, straight between checkpoints. Its
    total change goes from the first checkpoint to the one where the score is farthest from where
    it began. For a score that only rises, or only falls, that is the last value minus the first. A
    score that peaks and falls again, as induction scores do in long runs, is credited with all of
    its rise: the fall tells how long the heads last, not when they form. The window is the
    shortest stretch of log-tokens over which the score changes by 80 % of the total, its way.

    A straight line has a window of 80 % of its length: a phase change is much shorter. A window
    between two neighbouring checkpoints is as short as they let it be, whatever training did. Step
    0 has no logarithm: it can begin the total change, but not the window.

    Intervals are the middle 95 % of bootstrap draws, in which the total change goes between the
    same two checkpoints; that of the height is corrected for the luck of the farthest one. Draws of
    few samples are widened to Student's interval. Of 800 simulated curves each, with 3, 4, 8 and 40
    samples, the height's held in 93 to 96 %, the width's and the times' in 93 to 100 % from 4
    samples on and in 90 to 96 % with 3; two samples have no interval. With an axis "sample" (see
    `development`) it is the samples that are drawn, the same at every step.
    Without, each value is moved by a normal error of the size of its standard error, independently
    at each step: as the same sequences are measured at every step their errors are alike, which
    makes these intervals rather too wide. The provenance says which it was. Without standard errors
    there are no intervals.

    There is no phase change where the total change is no larger than `least`, or than what errors
    alone give in 99 % of draws, which is reported as the height's chance level. Start, end and
    width are then NaN, and the provenance has the reason under `no_change`.

    Args:
        result: a score over "step" and perhaps "sample"; other axes are gone through one by one.
            Where the provenance has no "tokens_per_step", tokens are steps.
        least: the smallest total change that counts. By default twice the chance level where the
            unit is probability (from chance to three times chance, below which an attention score
            is no finding), else 0. Errors are over sequences only: a change that random weights
            show too is told apart by giving the range over some random initialisations.
        resamples: bootstrap draws.
        seed: of the draws.

    Returns:
        A Result over the other axes, "interval" (`estimate`, `low`, `high`) and "measure": `start`
        and `end` of the window in tokens, its `width` in decades (factors of ten), and `height`,
        the total change, negative for a fall.

    Raises:
        ValueError: no axis "step" or fewer than three steps, a value that is NaN, `least` below 0.

    Source: Olsson et al. 2022 describe the phase change; the window is this project's measure.

    >>> steps = (1, 10, 100, 1000, 10_000)
    >>> score = Result("score", np.array([0, 0, 0.1, 0.9, 1.0]), ("step",), {"step": steps})
    >>> change = phase_change(score).sel(interval="estimate")
    >>> [round(float(change.sel(measure=name)), 6) for name in ("start", "end", "height")]
    [100.0, 1000.0, 1.0]
    """
    result = _one_measure(result)
    _check(result, least, resamples)
    others = [axis for axis in result.axes if axis not in ("step", "sample")]
    cells = list(product(*(result.labels[axis] for axis in others)))
    parts = [result.sel(**dict(zip(others, cell, strict=True))) for cell in cells]
    changes = [_change(part, least, resamples, seed) for part in parts]
    shape = (*(len(result.labels[axis]) for axis in others), len(INTERVAL), len(MEASURES))
    chance = np.full(shape, np.nan).reshape(len(cells), len(INTERVAL), len(MEASURES))
    chance[:, :, -1] = np.array([[change.null] for change in changes])
    unit = clock(result)
    return Result(
        "phase_change",
        np.reshape([change.rows for change in changes], shape),
        (*others, "interval", "measure"),
        labels={axis: result.labels[axis] for axis in others}
        | {"interval": INTERVAL, "measure": MEASURES},
        chance=chance.reshape(shape),
        unit=dict(zip(MEASURES, (unit, unit, "decades", str(result.unit)), strict=True)),
        provenance={
            **result.provenance,
            **_drawn(result, resamples, seed),
            **_reasons(cells, changes),
        },
    )


class _Change(NamedTuple):
    """One curve's: estimate, low and high; the height that errors alone give; why there is none."""

    rows: Float64[np.ndarray, "interval measure"]
    null: float
    reason: str


def _change(part: Result, least: float | None, resamples: int, seed: int) -> _Change:
    mean = over_samples(part)
    with np.errstate(divide="ignore"):  # no window can begin at step 0, infinitely far away
        logs = np.log10(tokens_at(part))
    curve = mean.values[None]
    farthest = int(farthest_step(curve)[0])
    rows = np.full((len(INTERVAL), len(MEASURES)), np.nan)
    rows[0], null = shortest_windows(curve, logs, farthest)[0], math.nan
    errors = _errors(part, resamples, np.random.default_rng(seed))
    if errors is not None:
        draws = shortest_windows(curve + errors, logs, farthest)
        # Of many noisy checkpoints the farthest is so by luck, too. Draws show by how much.
        draws[:, -1] -= (largest_change(curve + errors) - draws[:, -1]).mean()
        if _enough(part):
            rows[1:] = np.transpose([_middle(column) for column in draws.T])
        null = float(np.quantile(abs(largest_change(errors)), NULL))
    reason = _why_not(mean, rows[0], null, least)
    if reason:
        rows[:, :3] = np.nan
    return _Change(rows, null, reason)


def _middle(draws: Float64[np.ndarray, " curve"]) -> tuple[float, float]:
    """Between what most draws lie; NaN where none has a window."""
    known = draws[np.isfinite(draws)]
    if not known.size:
        return math.nan, math.nan
    low, high = np.quantile(known, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _errors(part: Result, resamples: int, rng: np.random.Generator) -> Curves | None:
    """How far each bootstrap draw lies from the curve; None where nothing is known of errors.

    Of few samples, draws lie too close: their variance is short by (n - 1) / n, and 95 % of a
    normal distribution is less than Student's. By so much the draws are drawn apart, as an expanded
    percentile interval is (Hesterberg 2015): of 3 samples 2.69 times.
    """
    if "sample" in part.axes:
        samples = np.moveaxis(part.values, part.axes.index("sample"), 0)
        sampling = Sampling.of(part.provenance.get("sample_groups"), len(samples))
        n = sampling.n_groups
        counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples) @ sampling.shares
        shares = counts / counts.sum(axis=1, keepdims=True)
        apart = _of_student(n) * math.sqrt(n / (n - 1)) if n > 1 else 0.0
        return apart * (shares @ (samples - samples.mean(axis=0)))
    if part.standard_error is None or np.isnan(part.standard_error).any():
        return None
    known = {"n_groups", "n_sequences"} & set(part.provenance)
    apart = _of_student(part.degrees_of_freedom + 1) if known else 1.0
    return apart * part.standard_error * rng.standard_normal((resamples, part.values.size))


def _of_student(n: int) -> float:
    """How much farther the limits of Student's interval reach than those of the normal one."""
    probability = (1 + CONFIDENCE) / 2
    return student_t(probability, n - 1) / NormalDist().inv_cdf(probability)


def _enough(result: Result) -> bool:
    """Two samples have 4 draws, between which lies no 95 %."""
    if "sample" not in result.axes:
        return True
    n = len(result.labels["sample"])
    return Sampling.of(result.provenance.get("sample_groups"), n).n_groups > 2


def _why_not(mean: Result, estimate: Curve, null: float, least: float | None) -> str:
    """Why there is no phase change; empty where there is one."""
    height = abs(estimate[-1])
    if least is None:
        attention = mean.unit == "probability" and mean.chance is not None
        least = 2 * float(np.max(np.asarray(mean.chance))) if attention else 0.0
    if height <= least:
        return f"the score changes by {rounded(height)}, not above least={rounded(least)}"
    if height <= null:
        return (
            f"the score changes by {rounded(height)}, and errors alone make as much as "
            f"{rounded(null)}"
        )
    if np.isnan(estimate[0]):
        first = tokens_at(mean)[1]
        return f"too much of the change lies before the first checkpoint, at {first:,.0f} tokens"
    return ""


def _one_measure(result: Result) -> Result:
    """The result without an axis "measure", whose name is taken by what is found."""
    measures = result.labels.get("measure", ())
    if len(measures) > 1:
        raise ValueError(f"{result.name} holds {measures}; choose one with sel(measure=...)")
    return result.sel(measure=measures[0]) if measures else result


def _check(result: Result, least: float | None, resamples: int) -> None:
    steps = result.labels.get("step", ())
    if len(steps) < 3:
        raise ValueError(
            f"{result.name} has {len(steps)} steps on axes {result.axes}; a phase change needs an "
            'axis "step" with at least 3: see development'
        )
    check_steps(int(step) for step in steps)
    unknown = np.isnan(np.moveaxis(result.values, result.axes.index("step"), 0))
    missing = [step for step, cell in zip(steps, unknown, strict=True) if cell.any()]
    if missing:
        raise ValueError(
            f"{result.name} is NaN at steps {missing[:8]}; choose the others with sel(step=...)"
        )
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be at least 1")
    if least is not None and not least >= 0:
        raise ValueError(f"least={least} must be at least 0")


def _drawn(result: Result, resamples: int, seed: int) -> dict[str, Any]:
    """How the intervals were made, for the provenance."""
    if not _enough(result):
        how = "none: fewer than 3 independent samples"
    elif "sample" in result.axes:
        how = f"bootstrap over {len(result.labels['sample'])} samples"
        if "sample_groups" in result.provenance:
            how = f"bootstrap over {result.provenance['n_groups']} groups of samples"
    elif result.standard_error is not None and not np.isnan(result.standard_error).all():
        how = "normal errors of the standard errors' size, independent at each step"
    else:
        return {"interval": "none: no standard errors"}
    return {"interval": how, "resamples": resamples, "bootstrap_seed": seed}


def _reasons(cells: Sequence[tuple[Label, ...]], changes: Sequence[_Change]) -> dict[str, Any]:
    """Why there is no phase change: one reason, or one for each cell that has one."""
    found = {
        ", ".join(map(str, cell)): change.reason
        for cell, change in zip(cells, changes, strict=True)
        if change.reason
    }
    if not found:
        return {}
    return {"no_change": found if cells != [()] else found[""]}
