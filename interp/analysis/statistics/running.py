"""Mean and standard error of samples that come a few at a time, none of which is kept."""

import math

import numpy as np


class RunningMean:
    """Mean over sequences and its standard error, without holding the sequences.

    Batches are merged as in Chan, Golub and LeVeque (1983), which loses no digits to a large mean.

    >>> mean = RunningMean()
    >>> mean.add(np.array([[1.0], [2.0]]))
    >>> mean.add(np.array([[3.0]]))
    >>> float(mean.mean[0]), round(float(mean.standard_error[0]), 3), mean.n
    (2.0, 0.577, 3)
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = np.zeros(())
        self._squares = np.zeros(())

    def add(self, samples: np.ndarray) -> None:
        """Count in samples, the first dimension running over sequences."""
        batch = np.asarray(samples, dtype=np.float64)
        n, mean = len(batch), batch.mean(axis=0)
        shift = mean - self.mean
        together = self.n + n
        self._squares = (
            self._squares
            + np.square(batch - mean).sum(axis=0)
            + np.square(shift) * (self.n * n / together)
        )
        self.mean = self.mean + shift * (n / together)
        self.n = together

    @property
    def standard_error(self) -> np.ndarray:
        """The sample deviation (ddof = 1) over the root of n; of one sequence NaN, never 0."""
        if self.n < 2:
            return np.full_like(self._squares, np.nan)
        return np.sqrt(self._squares / (self.n - 1)) / math.sqrt(self.n)
