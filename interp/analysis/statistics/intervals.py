"""Confidence intervals over a few runs: of a mean, and of a median when some never got there."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

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


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The bootstrap's interval for the upper median, exactly; NaN for a single value.

    Of n values drawn with replacement, k of which are at most x, the median is at most x as often
    as a binomial count of n and k / n is more than half of n. Infinite values count as any other.

    >>> median_interval([1.0, 2.0, math.inf])
    (1.0, inf)
    """
    n, ordered = len(values), sorted(values)
    if n < 2:
        return math.nan, math.nan

    def quantile(probability: float) -> float:
        at_most = (_more_than_half(n, (k + 1) / n) for k in range(n))
        return next(x for x, p in zip(ordered, at_most, strict=True) if p >= probability)

    return quantile((1 - CONFIDENCE) / 2), quantile((1 + CONFIDENCE) / 2)


def _more_than_half(n: int, p: float) -> float:
    counts = range(n // 2 + 1, n + 1)
    return sum(math.comb(n, count) * p**count * (1 - p) ** (n - count) for count in counts)


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
