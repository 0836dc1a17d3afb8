"""Curves over the steps of a run that nobody trained, and what `phase_change` finds in them."""

import numpy as np

from interp.analysis import Result, phase_change

DECADES = (1, 10, 100, 1000, 10_000, 100_000)


def curve(values, steps=DECADES, **details) -> Result:
    """A score over "step"."""
    return Result("score", np.array(values, float), ("step",), {"step": tuple(steps)}, **details)


def of_samples(samples, steps=DECADES, **details) -> Result:
    """A score over "step" and "sample"."""
    samples = np.array(samples, dtype=float)
    labels = {"step": tuple(steps), "sample": tuple(range(samples.shape[1]))}
    return Result("score", samples, ("step", "sample"), labels, **details)


def found(result: Result, **options) -> dict[str, float]:
    """The estimates, by measure."""
    change = phase_change(result, **options).sel(interval="estimate")
    return {str(name): float(change.sel(measure=name)) for name in change.labels["measure"]}


def reason(result: Result, **options) -> str:
    """Why there is no phase change."""
    change = phase_change(result, **options)
    assert np.isnan(change.sel(measure=["start", "end", "width"]).values).all()
    return change.provenance["no_change"]
