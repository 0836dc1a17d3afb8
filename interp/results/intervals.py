"""Intervals over a few runs: of a mean, and of a median when some never got there.

Few runs bound little. An interval says how often such intervals hold the truth, its coverage, and
never claims 95 % where the runs cannot give it.
"""

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import NamedTuple

CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval for the mean of a normal distribution; NaN for a single value.

    >>> [round(bound, 3) for bound in mean_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    reach = student_t((1 + CONFIDENCE) / 2, n - 1) * stdev(values) / math.sqrt(n)
    return fmean(values) - reach, fmean(values) + reach


class MedianInterval(NamedTuple):
    """From `low` to `high`; at least a share `coverage` of such intervals holds the median."""

    low: float
    high: float
    coverage: float


def median_interval(low: Sequence[float], high: Sequence[float] | None = None) -> MedianInterval:
    """Between two order statistics, for the median of any continuous distribution; exact.

    From the k-th smallest to the k-th largest of n values lie 1 - 2 P(B < k) of all medians, where
    B counts the heads of n coins. k is the largest whose interval still holds 95 %; with fewer than
    6 values none does, and there is only the range, whose coverage is 1 - 2 (1/2)^n: 50 % for 2
    values, 75 % for 3, 94 % for 5. A single value has no interval.

    Args:
        low: the values; of one that is only known to lie in an interval, its lower end.
        high: the upper ends, in the same order; by default the values themselves. A run that was
            never observed to arrive lies between its last checkpoint and infinity.

    >>> median_interval([1.0, 2.0, 3.0])
    MedianInterval(low=1.0, high=3.0, coverage=0.75)
    >>> median_interval([1.0, 2.0, 10.0], [1.0, 2.0, math.inf])
    MedianInterval(low=1.0, high=inf, coverage=0.75)
    """
    n, ends = len(low), low if high is None else high
    if n < 2:
        return MedianInterval(math.nan, math.nan, math.nan)

    def coverage(k: int) -> float:
        return 1 - 2 * sum(math.comb(n, heads) for heads in range(k)) / 2**n

    k = max((k for k in range(1, n // 2 + 1) if coverage(k) >= CONFIDENCE), default=1)
    return MedianInterval(sorted(low)[k - 1], sorted(ends)[n - k], coverage(k))


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float]:
    """Fieller's interval for a ratio of two means that are measured on the same samples.

    NaN where the denominator's own interval holds 0: then any ratio is possible.

    >>> low, high = ratio_interval([1.0, 2.1, 2.9, 4.1], [2.0, 4.0, 6.0, 8.0])
    >>> round(low, 3), round(high, 3)
    (0.452, 0.558)
    """
    n = len(numerators)
    if n < 2:
        return math.nan, math.nan
    a, b = fmean(numerators), fmean(denominators)
    t = student_t((1 + CONFIDENCE) / 2, n - 1)
    if not abs(b) > t * stdev(denominators) / math.sqrt(n):
        return math.nan, math.nan
    pairs = list(zip(numerators, denominators, strict=True))
    factor = t**2 / (n * (n - 1) * b**2)
    aa = factor * sum((x - a) ** 2 for x, _ in pairs)
    bb = factor * sum((y - b) ** 2 for _, y in pairs)
    ab = factor * sum((x - a) * (y - b) for x, y in pairs)
    # The ratios r for which mean(x) - r mean(y) is not significant: a quadratic in r.
    ratio = a / b
    middle = (ratio - ab) / (1 - bb)
    reach = math.sqrt(max(middle**2 - (ratio**2 - aa) / (1 - bb), 0.0))
    return middle - reach, middle + reach


def student_t(probability: float, dof: int) -> float:
    """The quantile of Student's t distribution above its median.

    >>> round(student_t(0.975, 2), 3), round(student_t(0.975, 9), 3)
    (4.303, 2.262)
    """
    low, high = 0.0, 1.0
    while _student_cdf(high, dof) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, dof) < probability else (low, middle)
    return high


def _student_cdf(t: float, dof: int) -> float:
    """Abramowitz and Stegun 26.7.3 and 26.7.4: a finite sum for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(dof))
    odd = dof % 2
    term = math.cos(angle) if odd else 1.0
    terms = []
    for power in range(2 + odd, dof, 2):
        terms.append(term)
        term *= (power - 1) / power * math.cos(angle) ** 2
    terms += [term] if dof > 1 else []
    inside = math.sin(angle) * sum(terms)
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return (1 + inside) / 2
