"""Results over the steps of runs, and what a figure draws of them."""

import numpy as np
import plotly.graph_objects as go

from interp.analysis import Result

STEPS = (0, 1, 10, 100, 1000)


def over_steps(values, steps=STEPS, axes=(), labels=None, **details) -> Result:
    """A score over "step" and more."""
    labels = {"step": steps, **(labels or {})}
    return Result("score", np.array(values, float), ("step", *axes), labels, **details)


def run(kind, values, seed=0, steps=STEPS, **details) -> Result:
    """One run's score, of a kind of model."""
    origin = {"run": f"{kind}-{seed}", "member": kind, "tokens_per_step": 10}
    return over_steps(values, steps, provenance=origin, unit="probability", **details)


def lines(drawn: go.Figure, **wanted: object) -> list[go.Scatter]:
    """The curves that have these attributes; no bands."""
    curves = [t for t in drawn.data if t.type == "scatter" and t.fill is None]
    return [t for t in curves if all(t[key] == value for key, value in wanted.items())]
