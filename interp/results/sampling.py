"""What was sampled: which sequences belong together, and the error of a mean over them.

Neighbouring blocks of one text are alike, so a hundred of them tell less than a hundred texts
would. Sequences that carry a label of the text that they come from are counted by these groups.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

Groups = Iterable[Any]
"""A label for each sequence, of the text that it comes from: a list, an array, a column."""

STRETCHES = 20
"""Between 10 and 30 batch means estimate the error of a mean well (Schmeiser 1982)."""


@dataclass(frozen=True, eq=False)
class Sampling:
    """Which sequences were drawn together.

    Attributes:
        codes: the number of each sequence's group, from 0.
        grouped: whether the groups were given; else every sequence is one of its own.

    >>> mean, error = Sampling.of(["a", "a", "b"], 3).mean_and_error(np.array([1.0, 3.0, 5.0]))
    >>> float(mean), round(float(error), 3)
    (3.0, 1.333)
    """

    codes: Int64[np.ndarray, " sequence"]
    grouped: bool

    @classmethod
    def of(cls, groups: "Groups | Sampling | None", n_sequences: int) -> "Sampling":
        """The sampling of so many sequences with these labels; None takes each as independent.

        Raises:
            TypeError: the labels are no list of texts or whole numbers.
            ValueError: there are more or fewer labels than sequences, or one of them is missing.
        """
        if isinstance(groups, Sampling):
            _check_number(len(groups.codes), n_sequences)
            return groups
        if groups is None:
            return cls(np.arange(n_sequences), grouped=False)
        labels = _labels(groups)
        _check_number(len(labels), n_sequences)
        return cls(pd.factorize(np.array(labels, dtype=object))[0], grouped=True)

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return int(self.codes.max(initial=-1)) + 1

    @property
    def shares(self) -> Float64[np.ndarray, "group sequence"]:
        """Which sequences each group holds: 1 or 0."""
        return np.eye(self.n_groups)[:, self.codes]

    def merged(self, most: int) -> "Sampling":
        """Whole groups put together, in their order and as equally as may be, to at most so many.

        >>> Sampling.of(["a", "a", "b", "c"], 4).merged(2).codes
        array([0, 0, 1, 1])
        """
        sizes = np.bincount(self.codes)
        middles = (np.cumsum(sizes) - sizes / 2) / len(self.codes)
        parts = np.minimum(middles * most, most - 1).astype(int)
        return Sampling(np.unique(parts, return_inverse=True)[1][self.codes], grouped=True)

    @property
    def origin(self) -> dict[str, Any]:
        """What a provenance says of it."""
        if not self.grouped:
            return {"n_sequences": len(self.codes)}
        return {
            "n_sequences": len(self.codes),
            "n_groups": self.n_groups,
            "errors": "over group means",
        }

    def mean_and_error(
        self, samples: Float64[np.ndarray, "sequence *measured"]
    ) -> tuple[Float64[np.ndarray, "*measured"], Float64[np.ndarray, "*measured"]]:
        """Mean over sequences, and its standard error; see `RunningMean`."""
        running = RunningMean(self)
        running.add(samples)
        return np.asarray(running.mean), running.standard_error


class RunningMean:
    """Mean over sequences and its standard error, without holding the sequences.

    The mean weighs every sequence alike. With G groups, of n_g sequences and means m_g, its error
    is that of a ratio estimator, robust to whatever correlation there is inside a group:

        se² = G / (G - 1) · Σ_g (n_g (m_g - m) / n)²

    For groups of one size it is the deviation of their means over the root of G; where every
    sequence is its own group, the sample deviation (ddof = 1) over the root of n. Of one group
    alone it is NaN, never 0.

    Without groups, batches are merged as in Chan, Golub and LeVeque (1983), which loses no digits
    to a large mean; with groups, each one's sum is kept.

    Args:
        sampling: which sequences belong together; None: each is independent.

    Source: Cochran, Sampling Techniques (1977), chapter 9; Liang and Zeger (1986).

    >>> mean = RunningMean()
    >>> mean.add(np.array([[1.0], [2.0]]))
    >>> mean.add(np.array([[3.0]]))
    >>> float(mean.mean[0]), round(float(mean.standard_error[0]), 3), mean.n
    (2.0, 0.577, 3)
    """

    def __init__(self, sampling: Sampling | None = None) -> None:
        self.n = 0
        self.mean = np.zeros(())
        self._squares = np.zeros(())
        self._codes = sampling.codes if sampling is not None and sampling.grouped else None
        self._n_groups = 0 if self._codes is None or sampling is None else sampling.n_groups
        self._shift = self._sums = np.zeros(())

    def add(self, samples: np.ndarray) -> None:
        """Count in samples, the first dimension running over sequences."""
        batch = np.asarray(samples, dtype=np.float64)
        n, mean = len(batch), batch.mean(axis=0)
        if self._codes is not None:
            if self.n == 0:
                self._shift = mean
                self._sums = np.zeros((self._n_groups, *mean.shape))
            np.add.at(self._sums, self._codes[self.n : self.n + n], batch - self._shift)
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
        """Over the groups, or over the sequences where there are none."""
        squares, n_independent = self._squares, self.n
        if self._codes is not None:
            n_independent = self._n_groups
            sizes = np.bincount(self._codes[: self.n], minlength=n_independent)
            expected = sizes.reshape(-1, *[1] * self.mean.ndim) * (self.mean - self._shift)
            # Scaled as the squares of so many independent sequences would be.
            squares = np.square(self._sums - expected).sum(axis=0) * (n_independent / self.n) ** 2
        if n_independent < 2:
            return np.full_like(squares, np.nan)
        return np.asarray(np.sqrt(squares / (n_independent - 1)) / math.sqrt(n_independent))


def stretches(n_sequences: int, n_stretches: int = STRETCHES) -> list[str]:
    """Groups for sequences of which only the order is known: consecutive ones, cut equally.

    Use it where the sequences follow one another in one text, or in texts whose borders are lost,
    and hand it in as `groups`. The standard error is then that of batch means. It holds if a
    stretch is longer than neighbours are alike.

    Args:
        n_sequences: how many sequences there are, in the order of the text.
        n_stretches: how many stretches; with fewer sequences, each is one of its own.

    Source: Schmeiser, Batch size effects in the analysis of simulation output (1982).

    >>> stretches(5, 2)
    ['stretch 0', 'stretch 0', 'stretch 0', 'stretch 1', 'stretch 1']
    """
    if n_stretches < 2:
        raise ValueError(f"n_stretches={n_stretches} must be at least 2: one tells of no spread")
    parts = np.array_split(np.arange(n_sequences), min(n_stretches, max(n_sequences, 1)))
    return [f"stretch {number}" for number, part in enumerate(parts) for _ in part]


def _labels(groups: object) -> list[Any]:
    remedy = "give a list with one label per sequence, a text or a whole number"
    if isinstance(groups, str | bytes | Mapping) or not isinstance(groups, Iterable):
        raise TypeError(f"groups are {groups!r}; {remedy}")
    tolist = getattr(groups, "tolist", None)
    labels = list(groups) if tolist is None else tolist()
    if not isinstance(labels, list):
        raise TypeError(f"groups are {groups!r}; {remedy}")
    labels = [label.item() if getattr(label, "ndim", None) == 0 else label for label in labels]
    for number, label in enumerate(labels):
        if label is None or (isinstance(label, float) and not math.isfinite(label)):
            raise ValueError(
                f"groups[{number}] is {label!r}; every sequence needs a label: give one of its own "
                "to a sequence that belongs to no group"
            )
    for number, label in enumerate(labels):
        if not isinstance(label, str | int):
            raise TypeError(f"groups[{number}] is {label!r}; {remedy}")
    return labels


def _check_number(n_labels: int, n_sequences: int) -> None:
    if n_labels != n_sequences:
        raise ValueError(
            f"groups has {n_labels} labels for {n_sequences} sequences; give one for each"
        )
