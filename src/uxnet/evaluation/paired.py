"""What differences between two networks on the same cases say: Wilcoxon's signed-rank test, its effect size, Holm's correction.

Differences of zero are left out, as Wilcoxon has it. Those of one size are ties and share the mean of their ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

EXACT = 200
"""Up to so many differences that are not zero, p values are exact; above, the normal distribution is as good."""

# Differences of the same size are ties whatever their last bits are. Scores have 6 digits, and finer is a mean of them: at 6 digits, a mean
# over two classes would often lie half way between two numbers, and its last bits would decide.
_DIGITS = 9


def signed_rank_p(differences: ArrayLike) -> float:
    """The p value of Wilcoxon's signed-rank test, two-sided; 1 where no difference is other than zero.

    Up to `EXACT` differences, every choice of signs counts the same, ties or none: exact, where `scipy.stats.wilcoxon` takes ties for
    none, draws choices at random, or approximates. Above, the normal distribution, corrected for ties and for continuity.
    """
    found = unequal(differences)
    if found.size > EXACT:
        return float(stats.wilcoxon(found, zero_method="wilcox", correction=True, method="asymptotic").pvalue)
    doubled = np.rint(2 * stats.rankdata(np.abs(found))).astype(np.int64)  # whole numbers, with ties as well
    up = int(doubled[found > 0].sum())
    least = min(up, int(doubled.sum()) - up)
    # The share of choices in which the ranks of one sign come to 0, 1, ... halves, as far as the smaller sum: rank by rank.
    share = np.zeros(least + 1)
    share[0] = 1.0
    for rank in doubled:
        above = share[: max(0, least + 1 - rank)] / 2
        share /= 2
        share[rank:] += above
    return min(1.0, 2 * math.fsum(share))


def rank_biserial(differences: ArrayLike) -> float | None:
    """Matched-pairs rank-biserial correlation: the ranks (of absolute differences) in favour, less those against, as a share of all.

    None where no difference is other than zero.
    """
    found = unequal(differences)
    if not found.size:
        return None
    ranks = stats.rankdata(np.abs(found))
    return float((ranks * np.sign(found)).sum() / ranks.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """p values by Holm's step-down correction, in the order given: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, n in enumerate(order):
        highest = max(highest, min(1.0, float(p_values[n]) * (len(p_values) - place)))
        corrected[n] = highest
    return corrected


def side_by_side(values: Sequence[float | None]) -> list[float | None]:
    """Dice or NSD of several networks in one structure of one case, as they are held against each other.

    Where the structure is not there and some find it, these have 0, and the others, which are right, None: it becomes 1. Where none finds
    it, nothing counts.
    """
    if all(value is None for value in values):
        return list(values)
    return [1.0 if value is None else value for value in values]


def to_digits(values: ArrayLike) -> NDArray[np.float64]:
    """Values as they are ranked: equal ones are equal to the last bit."""
    rounded: NDArray[np.float64] = np.asarray(values, dtype=np.float64).round(_DIGITS)
    return rounded


def unequal(differences: ArrayLike) -> NDArray[np.float64]:
    """The differences that are not zero, as they are ranked."""
    found = to_digits(differences)
    kept: NDArray[np.float64] = found[found != 0]
    return kept
