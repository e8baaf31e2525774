"""Means and medians over cases, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE, RESAMPLES, SEED = 0.95, 2000, 0
"""Of every interval: the share of resampled values that it holds, how often cases are drawn anew, and where the drawing begins."""

# Resamples are drawn in blocks of about this many numbers, so that thousands of cases need no gigabytes.
_BLOCK = 1_000_000


class Interval(NamedTuple):
    """A mean (or median) and its confidence interval; None where there is too little to say."""

    mean: float | None
    low: float | None
    high: float | None


def bootstrap_mean(
    values: Iterable[float | None], *, seed: int = SEED, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """The mean over cases, with the percentile bootstrap's confidence interval (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: one a case; None does not count.
        seed: the same values and seed give the same interval.
        resamples: how often cases are drawn anew, with replacement.
        confidence: the share of resampled means that the interval holds.

    Returns:
        (mean, low, high). One case has a mean and no interval; none has neither.
    """
    return _bootstrap(values, np.mean, seed, resamples, confidence)


def bootstrap_median(
    values: Iterable[float | None], *, seed: int = SEED, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """The median over cases with its interval, as `bootstrap_mean`; the first field is the median."""
    return _bootstrap(values, np.median, seed, resamples, confidence)


def _bootstrap(values: Iterable[float | None], statistic: Callable[..., Any], seed: int, resamples: int, confidence: float) -> Interval:
    counted = np.array([v for v in values if v is not None], dtype=np.float64)
    n = counted.size
    if n == 0:
        return Interval(None, None, None)
    found = float(statistic(counted))
    if n == 1:
        return Interval(found, None, None)
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // n)
    blocks = [statistic(counted[rng.integers(0, n, size=(min(rows, resamples - done), n))], axis=1) for done in range(0, resamples, rows)]
    low, high = np.quantile(np.concatenate(blocks), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(found, float(low), float(high))


def mean_of_counted(values: Iterable[float | None]) -> float | None:
    """The mean of the values that count; None where none does."""
    counted = [v for v in values if v is not None]
    return sum(counted) / len(counted) if counted else None
