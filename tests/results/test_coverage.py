"""How often the intervals that are reported hold the truth: simulated, each kind of error.

Grouped errors are in tests/analysis/test_groups.py, those of few runs in analysis/development/
test_comparison.py, those of phase changes (a bootstrap) in test_intervals.py beside it.
"""

import numpy as np
import pytest

from interp.analysis import Result
from interp.analysis.interventions.effects import effect_rows, effects
from interp.results.intervals import student_t
from interp.results.sampling import Sampling

TIMES = 2_000


def skewed(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Losses: above 0, with a long tail to the right; of mean 1."""
    return rng.gamma(4.0, 1 / 4.0, shape)


def attention(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Attention of a head to its target: between 0 and 1, mostly high; of mean 0.8."""
    return rng.beta(4.0, 1.0, shape)


@pytest.mark.parametrize(("draw", "truth"), [(skewed, 1.0), (attention, 0.8)])
@pytest.mark.parametrize("n", [20, 100])  # of 10, skewed as these are, 91.8 % hold
def test_independent_sequences(draw, truth, n):
    samples = draw(np.random.default_rng(0), n, TIMES)
    labels = {"time": range(TIMES)}
    result = Result.from_samples("score", samples, ("time",), labels=labels)
    assert result.standard_error is not None
    reach = student_t(0.975, result.degrees_of_freedom) * result.standard_error
    assert 0.92 < (abs(result.values - truth) < reach).mean() < 0.98


@pytest.mark.parametrize("n", [10, 40])
@pytest.mark.parametrize("grouped", [False, True])
def test_effects_are_paired(n, grouped):
    # A sequence that is hard is hard for the ablated model, too: its loss is hardly more, by 0.1.
    rng = np.random.default_rng(1)
    size = 4 if grouped else 1  # sequences of each text, which are alike
    of_text = rng.normal(0, 0.03, (n, TIMES)).repeat(size, axis=0)
    clean = skewed(rng, n * size, TIMES)
    ablated = clean + 0.1 + of_text + rng.normal(0, 0.05, clean.shape)
    sampling = Sampling.of(np.arange(n).repeat(size) if grouped else None, n * size)
    rows = effect_rows(clean, ablated[None], [[]], sampling)
    axes = {"component": ["head"], "time": range(TIMES)}
    result = effects("ablation", rows, axes, "nats", sampling.origin).sel(measure="effect")
    assert result.standard_error is not None
    reach = student_t(0.975, result.degrees_of_freedom) * result.standard_error
    assert 0.92 < (abs(result.values - 0.1) < reach).mean() < 0.98
    # As two independent samples the errors would be many times as large.
    apart = np.sqrt((clean.var(0, ddof=1) + ablated.var(0, ddof=1)) / len(clean))
    assert result.standard_error.mean() < 0.5 * apart.mean()
