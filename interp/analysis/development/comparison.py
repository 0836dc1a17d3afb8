"""Runs beside each other: how many tokens does each architecture need to reach a score?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median_high
from typing import Any, NamedTuple

import numpy as np

from interp.analysis.development.phases import INTERVAL
from interp.results.intervals import CONFIDENCE, mean_interval, median_interval
from interp.results.result import Result, clock, tokens_at

MEAN, MEDIAN = "geometric mean, t interval", "median, between order statistics"


class _Time(NamedTuple):
    """The tokens at which a run reaches the score, infinity if it does not before its last ones."""

    reached: float
    last: float


def tokens_to_reach(
    runs: Iterable[Result], score: float, *, falling: bool = False, by: str | None = None
) -> Result:
    """How many tokens does it take to reach a score, by kind of model, with intervals over seeds?

    A run reaches the score where its curve first does: between two checkpoints, straight against
    the logarithm of the tokens; at once after step 0, at the next checkpoint.

    The estimate is the geometric mean over a group's runs, between the limits of Student's 95 %
    interval for the mean of the logarithms. A run that ends before it reaches the score is
    censored: its time is only known to be later. It is counted and not dropped. Where there is one
    the estimate is the upper median, with such runs later than any other, and infinite if most did
    not arrive. The limits are then those of the median, whatever the distribution: two order
    statistics, a censored run counting as its last checkpoint for the lower one and as infinity
    for the upper one. The provenance has their `coverage`, the share of such intervals that holds
    the median. With fewer than 6 runs they are the range, which holds it in 1 - 2 (1/2)^n: 75 % for
    three runs, and no method gets more out of them. One run alone has no interval.

    Args:
        runs: one score over "step" for each run, such as what `best_head` gives.
        score: what to reach.
        falling: the score falls as the model learns, as a loss does.
        by: what groups the runs: a key of their provenance. By default "member", what a suite
            calls a kind of model, or else "architecture".

    Returns:
        A Result over "interval" (`estimate`, `low`, `high`) and `by`, in tokens. Its provenance
        tells for each group its `method`, the `coverage` of its interval, the number of `runs`,
        how many `never` reached the score, the tokens at which `each` of them did, and those of its
        `last` checkpoint.

    Raises:
        ValueError: no runs, one with further axes, with NaN or without `by`, or one that is there
            at its first checkpoint already.

    >>> def run(seed, values):
    ...     origin = {"run": f"attn-{seed}", "architecture": "attn"}
    ...     return Result("score", np.array(values), ("step",), {"step": (1, 10, 100)},
    ...         provenance=origin)
    >>> found = tokens_to_reach([run(0, [0, 0.5, 1]), run(1, [0, 0, 0.5])], 0.5)
    >>> round(float(found.sel(architecture="attn", interval="estimate")), 2)
    31.62
    """
    runs = list(runs)
    if not runs:
        raise ValueError("there are no runs to compare; give at least one")
    by, unit = by or _grouping(runs), _clock(runs)
    groups: dict[str, dict[str, _Time]] = {}
    for number, run in enumerate(runs):
        if by not in run.provenance:
            raise ValueError(
                f"{run.name} of run {number} has no {by!r} in its provenance, which has "
                f"{', '.join(run.provenance) or 'nothing'}"
            )
        each = groups.setdefault(str(run.provenance[by]), {})
        name = str(run.provenance.get("run", number))
        time = _Time(_reached(run, score, falling), float(tokens_at(run)[-1]))
        each[name if name not in each else f"{name} ({number})"] = time
    found = {group: _over_runs(list(each.values())) for group, each in groups.items()}
    return Result(
        "tokens_to_reach",
        np.transpose([numbers for numbers, _ in found.values()]),
        ("interval", by),
        labels={"interval": INTERVAL, by: tuple(groups)},
        unit=unit,
        provenance={"measure": runs[0].name, "score": score, **_counts(groups, found)},
    )


def _grouping(runs: Sequence[Result]) -> str:
    return "member" if all("member" in run.provenance for run in runs) else "architecture"


def _clock(runs: Sequence[Result]) -> str:
    clocks = {clock(run) for run in runs}
    if len(clocks) > 1:
        raise ValueError("some runs know their tokens_per_step and some do not; give it to all")
    return clocks.pop()


def _reached(run: Result, score: float, falling: bool) -> float:
    """The tokens at which a run first reaches the score; infinity if it never does."""
    if run.axes != ("step",):
        raise ValueError(
            f"{run.name} has the axes {run.axes}; choose one score over step with sel()"
        )
    if np.isnan(run.values).any():
        raise ValueError(f"{run.name} holds NaN; choose the other steps with sel(step=...)")
    sign = -1 if falling else 1
    values, goal, tokens = sign * run.values, sign * score, tokens_at(run)
    there = int((values >= goal).argmax())
    if values[there] < goal:
        return math.inf
    if there == 0:
        raise ValueError(
            f"{run.name} of {run.provenance.get('run', 'a run')} is {run.values[0]:.3g} at its "
            f"first checkpoint, so it reached {score} before; keep earlier checkpoints, or choose "
            "another score"
        )
    if tokens[there - 1] == 0:
        return float(tokens[there])
    part = (goal - values[there - 1]) / (values[there] - values[there - 1])
    return float(tokens[there - 1] * (tokens[there] / tokens[there - 1]) ** part)


def _over_runs(times: Sequence[_Time]) -> tuple[tuple[float, float, float], float]:
    """Estimate, low and high of a group, and how often such an interval holds the truth."""
    tokens = [time.reached for time in times]
    if math.inf in tokens:
        low, high, coverage = median_interval([min(time) for time in times], tokens)
        return (median_high(tokens), low, high), coverage
    logs = [math.log(count) for count in tokens]
    low, high = mean_interval(logs)
    numbers = math.exp(fmean(logs)), math.exp(low), math.exp(high)
    return numbers, CONFIDENCE if len(logs) > 1 else math.nan


def _counts(
    groups: Mapping[str, Mapping[str, _Time]],
    found: Mapping[str, tuple[tuple[float, float, float], float]],
) -> dict[str, Any]:
    """What a provenance tells of each group. JSON has no infinity: never is null."""
    each = {
        group: {name: _known(time.reached) for name, time in runs.items()}
        for group, runs in groups.items()
    }
    return {
        "runs": {group: len(runs) for group, runs in each.items()},
        "never": {group: list(runs.values()).count(None) for group, runs in each.items()},
        "method": {g: MEDIAN if None in runs.values() else MEAN for g, runs in each.items()},
        "coverage": {group: _known(coverage) for group, (_, coverage) in found.items()},
        "each": each,
        "last": {g: {name: t.last for name, t in runs.items()} for g, runs in groups.items()},
    }


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None
