"""Mean and standard error do not depend on how the samples come in."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.results.sampling import RunningMean

sizes = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(sizes, st.floats(-1e6, 1e6), st.integers(0, 2**31))
def test_batches_of_any_size_give_the_mean_and_error_of_all(batches, offset, seed):
    random = np.random.default_rng(seed)
    samples = random.normal(offset, 1.0, (sum(batches), 3, 2))
    running, start = RunningMean(), 0
    for size in batches:
        running.add(samples[start : start + size])
        start += size
    n = len(samples)
    assert running.n == n
    np.testing.assert_allclose(running.mean, samples.mean(0), rtol=1e-12, atol=1e-9)
    if n > 1:
        expected = samples.std(0, ddof=1) / np.sqrt(n)
        np.testing.assert_allclose(running.standard_error, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1])
def test_one_sequence_has_no_known_error(n):
    running = RunningMean()
    for _ in range(n):
        running.add(np.ones((1, 2)))
    assert np.isnan(running.standard_error).all()
