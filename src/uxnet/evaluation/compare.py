"""Networks compared on the same test cases: means with intervals, ranks, and a paired test of one network against each other.

The test is Wilcoxon's signed-rank test, two-sided, as in the paper (arXiv:2209.15076, Table 1); differences of zero are left out, as
Wilcoxon has it. Its p values are corrected by Holm's step-down method (Scand. J. Statist. 6, 1979). Beside each stands how large the
difference is: the matched-pairs rank-biserial correlation (Kerby 2014), and the median difference with a bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from uxnet.errors import InputError, UsageError
from uxnet.evaluation.evaluate import CONFIDENCE, RESAMPLES, SEED
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.scores import COMMON, Scores, differences
from uxnet.evaluation.statistics import Interval, bootstrap_mean, mean_of_counted

MEAN = "mean"
"""The mean over a case's classes, which stands among the classes."""

ALPHA = 0.05
USUAL = "uxnet"
"""The network that the others are held against, where it is there and nobody names another."""

# Differences of the same size are ties whatever their last bits are: records hold 6 digits.
_DIGITS = 9
# Resamples are drawn in blocks of about this many numbers.
_BLOCK = 1_000_000

By = Literal["case", "person"]
Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Standing:
    """One network in one metric and class, over the cases that all networks have.

    interval: mean, and its bootstrap interval.
    n: cases that count.
    rank: by the mean; 1 is the best, equal means (to 6 digits) share the better rank. None without a mean.
    mean_rank: the mean of its ranks within each case, where ties share the mean of their ranks; over cases that count for all.
    """

    name: str
    metric: str
    class_name: str
    interval: Interval
    n: int
    rank: int | None
    mean_rank: float | None


@dataclass(frozen=True)
class PairedTest:
    """The reference network against another in one metric and class, over the cases that both have and that count in both.

    n: such cases; unequal: those where the two differ.
    p, p_holm: two-sided, before and after correction; None where there is no case.
    effect: matched-pairs rank-biserial correlation, -1..1; above 0 where the reference network is the better one, also in HD95.
    difference: median of reference - other, in the metric's unit, and its bootstrap interval.
    """

    metric: str
    class_name: str
    other: str
    n: int
    unequal: int
    p: float | None
    p_holm: float | None
    effect: float | None
    difference: Interval

    def favours(self, alpha: float) -> int:
        """1 if the reference network is significantly better, -1 if the other is, else 0."""
        if self.p_holm is None or self.effect is None or self.p_holm >= alpha:
            return 0
        return int(np.sign(self.effect))


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    reference: the network that the others are held against.
    by: what is counted: cases, or persons (each the mean of its cases).
    n: of them that all networks have; tolerance_mm, empty, alpha: settings.
    notes: sentences that a reader must know.
    """

    reference: str
    classes: tuple[str, ...]
    by: By
    n: int
    tolerance_mm: float
    empty: str
    alpha: float
    standings: tuple[Standing, ...]
    tests: tuple[PairedTest, ...]
    notes: tuple[str, ...]

    def standing(self, name: str, metric: str = "dice", class_name: str = MEAN) -> Standing:
        """Of one network."""
        return next(s for s in self.standings if (s.name, s.metric, s.class_name) == (name, metric, class_name))

    def ranked(self, metric: str = "dice", class_name: str = MEAN) -> list[Standing]:
        """All networks, the best first."""
        rows = [s for s in self.standings if (s.metric, s.class_name) == (metric, class_name)]
        return sorted(rows, key=lambda s: (s.rank is None, s.rank or 0, s.name))

    def against(self, other: str, metric: str = "dice", class_name: str = MEAN) -> PairedTest:
        """The reference network's test against another."""
        return next(t for t in self.tests if (t.other, t.metric, t.class_name) == (other, metric, class_name))


def compare(scores: Sequence[Scores], against: str | None = None, *, by: By = "case", alpha: float = ALPHA) -> Comparison:
    """Compares networks on the cases that they have in common.

    Holm's correction goes over the other networks for the mean over classes, and over networks and classes together for the classes; each
    metric by itself.

    Args:
        scores: of networks that are scored in the same classes and ways; of one alone there are means and no tests.
        against: the reference network; by default uxnet, or the first where there is none of that name.
        by: "case", as the paper has it; or "person", where each is the mean of its cases: cases of one person are not independent.
        alpha: the level of significance.

    Raises:
        InputError: if they cannot be compared: none at all, other classes or settings, no case in common, no such reference, or persons
            that are not known.
    """
    reference = _checked(scores, against, alpha)
    tables = {s.name: _rows(s) for s in scores}
    shared = set.intersection(*(set(s.cases) for s in scores))
    if not shared:
        raise InputError(f"{', '.join(tables)}: they have no test case in common, so there is nothing to compare")
    persons = {name: person for s in scores for name, person in s.persons.items()}
    if by == "person" and (unknown := sorted(set.union(*(set(s.cases) for s in scores)) - persons.keys())):
        raise InputError(f"{unknown[0]}: no record says whose case this is; compare by case")
    groups = {case: persons[case] if by == "person" else case for case in sorted(set.union(*(set(s.cases) for s in scores)))}
    standings: list[Standing] = []
    tests: list[PairedTest] = []
    for metric in METRICS:
        several: list[PairedTest] = []
        for name in (MEAN, *scores[0].classes):
            columns = {s.name: _column(tables[s.name], shared, groups, metric, name) for s in scores}
            whole = [case for case in shared if all(tables[s.name][metric][case][name] is not None for s in scores)]
            standings += _standings(columns, {s.name: _column(tables[s.name], whole, groups, metric, name) for s in scores}, metric, name)
            own = []
            for other in (s for s in scores if s.name != reference.name):
                pairing = (reference, other)
                both = reference.cases.keys() & other.cases.keys()
                # Before persons are put together: the means of a pair have to be over the same cases.
                counted = [case for case in both if all(tables[s.name][metric][case][name] is not None for s in pairing)]
                pair = [_column(tables[s.name], counted, groups, metric, name) for s in pairing]
                own.append(_test(pair[0], pair[1], metric, name, other.name))
            if name == MEAN:
                tests += _corrected(own)
            else:
                several += own
        tests += _corrected(several)
    n = len({groups[case] for case in shared})
    first = scores[0]
    return Comparison(
        reference=reference.name,
        classes=first.classes,
        by=by,
        n=n,
        tolerance_mm=first.tolerance_mm,
        empty=first.empty,
        alpha=alpha,
        standings=tuple(standings),
        tests=tuple(tests),
        notes=(*_notes(scores, shared, persons, by), *_too_few(tests, alpha)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values by Holm's step-down correction, in the order given: the k-th smallest of m times m - k + 1, never falling, at most 1."""
    order = np.argsort(p_values, kind="stable")
    corrected, highest = [0.0] * len(p_values), 0.0
    for place, n in enumerate(order):
        highest = max(highest, min(1.0, float(p_values[n]) * (len(p_values) - place)))
        corrected[n] = highest
    return corrected


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Matched-pairs rank-biserial correlation: the ranks (of absolute differences) in favour, less those against, as a share of all.

    Differences of zero are left out; None where no other is there.
    """
    found = np.round(np.asarray(differences, dtype=np.float64), _DIGITS)
    found = found[found != 0]
    if not found.size:
        return None
    ranks = stats.rankdata(np.abs(found))
    return float((ranks * np.sign(found)).sum() / ranks.sum())


def bootstrap_median(values: Sequence[float], *, seed: int = SEED, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Interval:
    """The median, with the percentile bootstrap's interval. Its first field is the median; of one value there is no interval."""
    found = np.asarray(values, dtype=np.float64)
    if not found.size:
        return Interval(None, None, None)
    median = float(np.median(found))
    if found.size == 1:
        return Interval(median, None, None)
    rng, rows = np.random.default_rng(seed), max(1, _BLOCK // found.size)
    blocks = [
        np.median(found[rng.integers(0, found.size, size=(min(rows, resamples - done), found.size))], axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(blocks), ((1 - confidence) / 2, (1 + confidence) / 2))
    return Interval(median, float(low), float(high))


# ---- reading the tables


def _checked(scores: Sequence[Scores], against: str | None, alpha: float) -> Scores:
    """The reference network, where all can be compared."""
    names = [s.name for s in scores]
    if not scores:
        raise InputError("there is no network to compare")
    if len(set(names)) < len(names):
        raise InputError(f"{', '.join(names)}: two networks have the same name")
    if not 0 < alpha < 1:
        raise UsageError(f"the level of significance is {alpha:g}; give a number between 0 and 1")
    first = scores[0]
    for s in scores[1:]:
        if set(s.classes) != set(first.classes):
            raise InputError(
                f"{s.name}: it is scored in other classes ({', '.join(s.classes)}) than {first.name} ({', '.join(first.classes)})"
            )
        if (s.tolerance_mm, s.empty) != (first.tolerance_mm, first.empty):
            raise InputError(
                f"{s.name}: it is scored with a tolerance of {s.tolerance_mm:g} mm and empty = {s.empty}, {first.name} with "
                f"{first.tolerance_mm:g} mm and {first.empty}; evaluate them alike"
            )
    chosen = against or (USUAL if USUAL in names else names[0])
    if chosen not in names:
        raise InputError(f"there is no network {chosen!r} to hold the others against; there are {', '.join(names)}")
    return scores[names.index(chosen)]


def _rows(scores: Scores) -> dict[str, dict[str, Row]]:
    """Metric -> case -> value of each class and of their mean."""
    return {
        m: {
            case: {**{c: values[c][m] for c in scores.classes}, MEAN: mean_of_counted(values[c][m] for c in scores.classes)}
            for case, values in scores.cases.items()
        }
        for m in METRICS
    }


def _column(table: Mapping[str, Mapping[str, Row]], cases: Any, groups: Mapping[str, str], metric: str, name: str) -> Row:
    """One value a case, or a person: the mean of its cases that count."""
    gathered: dict[str, list[float | None]] = {}
    for case in sorted(cases):
        gathered.setdefault(groups[case], []).append(table[metric][case][name])
    return {group: values[0] if len(values) == 1 else mean_of_counted(values) for group, values in gathered.items()}


def _notes(scores: Sequence[Scores], shared: set[str], persons: Mapping[str, str], by: By) -> list[str]:
    notes = []
    more = [f"{s.name} ({len(s.cases)})" for s in scores if len(s.cases) > len(shared)]
    if more:
        notes.append(f"Means and ranks are over the {len(shared)} cases that all networks have; more have {', '.join(more)}.")
    known = {persons.get(case, case) for case in shared}
    if by == "case" and len(known) < len(shared):
        notes.append(
            f"The {len(shared)} cases are of {len(known)} persons and are counted as if they were independent, so intervals and p values "
            "are too small; comparing by person is stricter."
        )
    first = {key: [_of(s, key) for s in scores] for key in COMMON}
    differing = [key.removesuffix("_sha256") for key, values in first.items() if any(v != values[0] for v in values)]
    if differing:
        notes.append(f"The networks differ in {', '.join(differing)}, too, not in their architecture alone.")
    begun = {s.name: _beginning(s) for s in scores if s.records}
    if len(set(begun.values())) > 1:
        each = ", ".join(f"{name} with {weights}" for name, weights in begun.items())
        notes.append(f"The networks do not begin with the same weights: {each}.")
    return [*notes, *differences(scores)]


def _too_few(tests: Sequence[PairedTest], alpha: float) -> list[str]:
    """What must be said where no difference, however clear, could have been significant: of n the test gives no p below 2^(1 - n)."""
    own = [t for t in tests if (t.metric, t.class_name) == ("dice", MEAN)]
    least = min((2 ** (1 - t.n) for t in own), default=0.0) * len(own)
    return [f"There are too few cases for any difference to be significant at {alpha:g}."] if least >= alpha else []


def _beginning(scores: Scores) -> str:
    init = _of(scores, "init")
    return f"those of {init['model']} ({init['weights_sha256'][0][:12]})" if init else "fresh ones"


def _of(scores: Scores, key: str) -> Any:
    return scores.records[0].get(key) if scores.records else None


# ---- statistics


def _standings(columns: Mapping[str, Row], whole: Mapping[str, Row], metric: str, class_name: str) -> list[Standing]:
    """Of all networks; `whole` are their columns of the cases alone that count for each of them, within which they are ranked."""
    sign = 1 if metric == "hd95_mm" else -1
    intervals = {
        name: bootstrap_mean(column.values(), seed=SEED, resamples=RESAMPLES, confidence=CONFIDENCE) for name, column in columns.items()
    }
    means = {name: sign * round(i.mean, 6) for name, i in intervals.items() if i.mean is not None}
    ranks = {name: 1 + sum(m < mean for m in means.values()) for name, mean in means.items()}
    rows = list(zip(*(column.values() for column in whole.values()), strict=True))
    values = sign * np.round(np.array(rows, dtype=np.float64), _DIGITS)
    within: NDArray[np.float64] | None = stats.rankdata(values, axis=1).mean(axis=0) if values.size else None
    return [
        Standing(
            name,
            metric,
            class_name,
            intervals[name],
            sum(v is not None for v in column.values()),
            ranks.get(name),
            None if within is None else float(within[n]),
        )
        for n, (name, column) in enumerate(columns.items())
    ]


def _test(own: Row, other: Row, metric: str, class_name: str, name: str) -> PairedTest:
    pairs = [(a, b) for a, b in ((own[key], other[key]) for key in sorted(own)) if a is not None and b is not None]
    differences = np.round(np.array([a - b for a, b in pairs], dtype=np.float64), _DIGITS)
    unequal = differences[differences != 0]
    p = None if not pairs else float(stats.wilcoxon(unequal, zero_method="wilcox").pvalue) if unequal.size else 1.0
    better = -differences if metric == "hd95_mm" else differences
    effect = rank_biserial(better.tolist())
    return PairedTest(metric, class_name, name, len(pairs), int(unequal.size), p, None, effect, bootstrap_median(differences.tolist()))


def _corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests of one family, with their corrected p values; those without a case are no part of it."""
    known = [t.p for t in tests if t.p is not None]
    corrected = iter(holm(known))
    return [t if t.p is None else replace(t, p_holm=next(corrected)) for t in tests]
