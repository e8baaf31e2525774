"""Networks compared on the same test cases: means with intervals, ranks, and a paired test of one network against each other.

The test is Wilcoxon's signed-rank test, two-sided, as in the paper (arXiv:2209.15076, Table 1); differences of zero are left out, as
Wilcoxon has it. Its p values are corrected by Holm's step-down method (Scand. J. Statist. 6, 1979). Beside each stands how large the
difference is: the matched-pairs rank-biserial correlation (Kerby 2014), and the median difference with a bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from uxnet.errors import InputError, UsageError, plural, shortened
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.paired import holm, rank_biserial, side_by_side, signed_rank_p, to_digits, unequal
from uxnet.evaluation.scores import COMMON, DIGITS, MEAN, Scores, differences
from uxnet.evaluation.statistics import Interval, bootstrap_mean, bootstrap_median, mean_of_counted

ALPHA = 0.05
USUAL = "uxnet"
"""The network that the others are held against, where it is there and nobody names another."""

# Volumes are of one reference if they differ by no more, as a share or in ml: a spacing in a header is rounded, and so are records.
_SAME_VOLUME = 2e-6

By = Literal["case", "person"]


@dataclass(frozen=True)
class Standing:
    """One network in one metric and class, over the cases that all networks have.

    interval: mean, and its bootstrap interval.
    n: cases that count for it.
    rank: by the mean; 1 is the best, equal means (to 6 digits) share the better rank. None without a mean.
    mean_rank: the mean of its ranks within each case that counts, where ties share the mean of their ranks.
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
    """The reference network against another in one metric and class, over the cases that both have and that count.

    Where a structure is not there and one of the two finds it, the other counts as 1 in Dice and NSD.

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
        InputError: if they cannot be compared: none at all, other classes, settings or references, no case in common, or persons that
            are not known.
        UsageError: if there is no such network to hold the others against, or no such level.
    """
    reference = _checked(scores, against, alpha)
    shared = set.intersection(*(set(s.cases) for s in scores))
    if not shared:
        raise InputError(f"{', '.join(s.name for s in scores)}: they have no test case in common, so there is nothing to compare")
    persons = {name: person for s in scores for name, person in s.persons.items()}
    every = sorted(set.union(*(set(s.cases) for s in scores)))
    if by == "person" and (unknown := [case for case in every if case not in persons]):
        raise InputError(f"{unknown[0]}: no record says whose case this is; compare by case")
    groups = {case: persons[case] if by == "person" else case for case in every}
    standings: list[Standing] = []
    tests: list[PairedTest] = []
    for metric in METRICS:
        several: list[PairedTest] = []
        for name in (MEAN, *scores[0].classes):
            standings += _standings(scores, shared, groups, metric, name)
            own = [_test(reference, other, groups, metric, name) for other in scores if other is not reference]
            if name == MEAN:
                tests += _corrected(own)
            else:
                several += own
        tests += _corrected(several)
    first = scores[0]
    return Comparison(
        reference=reference.name,
        classes=first.classes,
        by=by,
        n=len({groups[case] for case in shared}),
        tolerance_mm=first.tolerance_mm,
        empty=first.empty,
        alpha=alpha,
        standings=tuple(standings),
        tests=tuple(tests),
        notes=(*_notes(scores, shared, persons, by), *_too_few(tests, alpha)),
    )


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
    _refuse_other_references(scores)
    chosen = against or (USUAL if USUAL in names else names[0])
    if chosen not in names:
        raise UsageError(f"there is no network {chosen!r} to hold the others against; there are {', '.join(names)}")
    return scores[names.index(chosen)]


def _refuse_other_references(scores: Sequence[Scores]) -> None:
    known: dict[tuple[str, str], tuple[str, float]] = {}
    for s in scores:
        for case, classes in s.references.items():
            for name, ml in classes.items():
                other, theirs = known.setdefault((case, name), (s.name, ml))
                if not math.isclose(ml, theirs, rel_tol=_SAME_VOLUME, abs_tol=_SAME_VOLUME):
                    raise InputError(
                        f"{case}: {s.name} and {other} are scored against different references, in which {name} has {ml:g} and "
                        f"{theirs:g} ml; score both against the same"
                    )


def _notes(scores: Sequence[Scores], shared: set[str], persons: Mapping[str, str], by: By) -> list[str]:
    notes = []
    more = [f"{s.name} ({len(s.cases)})" for s in scores if len(s.cases) > len(shared)]
    if more:
        notes.append(f"Means and ranks are over the {plural(len(shared), 'case')} that all networks have; more have {', '.join(more)}.")
    known = {persons.get(case, case) for case in shared}
    if by == "case" and len(known) < len(shared):
        notes.append(
            f"The {len(shared)} cases are of {plural(len(known), 'person')} and are counted as if they were independent, so intervals "
            "and p values are too small; comparing by person is stricter."
        )
    for s in scores:
        if s.failed:
            count = plural(len(s.failed), "case")
            notes.append(f"{s.name} failed on {count}, which no mean here and no test of it includes: {shortened(s.failed)}.")
        if trained := sorted(shared.intersection(s.seen)):
            which = f"{len(trained)} of the {plural(len(shared), 'case')} ({shortened(trained, 3)})"
            notes.append(f"{s.name} was trained on {which}: its scores do not say how good it is on others.")
    stated = {key: [value for s in scores if (value := _of(s, key)) is not None] for key in COMMON}
    differing = [key.removesuffix("_sha256") for key, values in stated.items() if any(v != values[0] for v in values)]
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
    """What the first record says that says it."""
    return next((value for record in scores.records if (value := record.get(key)) is not None), None)


# ---- the figures


def _standings(scores: Sequence[Scores], cases: Collection[str], groups: Mapping[str, str], metric: str, class_name: str) -> list[Standing]:
    """Of all networks, over cases that all of them have."""
    sign = 1 if metric == "hd95_mm" else -1
    columns = {s.name: _column(s, cases, groups, metric, class_name) for s in scores}
    intervals = {name: bootstrap_mean(column) for name, column in columns.items()}
    means = {name: sign * round(i.mean, DIGITS) for name, i in intervals.items() if i.mean is not None}
    ranks = {name: 1 + sum(m < mean for m in means.values()) for name, mean in means.items()}
    rows = sign * to_digits(_rows(scores, cases, groups, metric, class_name))
    within: NDArray[np.float64] | None = stats.rankdata(rows, axis=1).mean(axis=0) if rows.size else None
    return [
        Standing(
            name,
            metric,
            class_name,
            intervals[name],
            sum(v is not None for v in column),
            ranks.get(name),
            None if within is None else float(within[n]),
        )
        for n, (name, column) in enumerate(columns.items())
    ]


def _column(scores: Scores, cases: Collection[str], groups: Mapping[str, str], metric: str, class_name: str) -> list[float | None]:
    """One value a case, or a person: the mean of its cases that count."""
    gathered: dict[str, list[float | None]] = {}
    for case in sorted(cases):
        gathered.setdefault(groups[case], []).append(scores.value(case, metric, class_name))
    return [mean_of_counted(values) for values in gathered.values()]


def _test(own: Scores, other: Scores, groups: Mapping[str, str], metric: str, class_name: str) -> PairedTest:
    rows = _rows((own, other), own.cases.keys() & other.cases.keys(), groups, metric, class_name)
    differences = to_digits([a - b for a, b in rows])
    p = signed_rank_p(differences) if rows else None
    effect = rank_biserial(-differences if metric == "hd95_mm" else differences)
    changed = int(unequal(differences).size)
    return PairedTest(metric, class_name, other.name, len(rows), changed, p, None, effect, bootstrap_median(differences.tolist()))


def _rows(
    networks: Sequence[Scores], cases: Collection[str], groups: Mapping[str, str], metric: str, class_name: str
) -> list[tuple[float, ...]]:
    """The values of each network, a row a case that counts for all of them, or a person: the means of such cases, the same for each."""
    gathered: dict[str, list[tuple[float | None, ...]]] = {}
    for case in sorted(cases):
        row = _held_together(networks, case, metric, class_name)
        if None not in row:
            gathered.setdefault(groups[case], []).append(row)
    return [tuple(mean_of_counted(column) or 0.0 for column in zip(*rows, strict=True)) for _, rows in sorted(gathered.items())]


def _held_together(networks: Sequence[Scores], case: str, metric: str, class_name: str) -> tuple[float | None, ...]:
    """What each network has in one case; None where nothing counts."""
    columns = []
    for name in networks[0].classes if class_name == MEAN else (class_name,):
        row = [s.cases[case][name][metric] for s in networks]
        columns.append(row if metric == "hd95_mm" else side_by_side(row))
    return tuple(mean_of_counted(own) for own in zip(*columns, strict=True))


def _corrected(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The tests of one family, with their corrected p values; those without a case are no part of it."""
    known = [t.p for t in tests if t.p is not None]
    corrected = iter(holm(known))
    return [t if t.p is None else replace(t, p_holm=next(corrected)) for t in tests]
