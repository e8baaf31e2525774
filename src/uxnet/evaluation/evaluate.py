"""A cohort of predictions against its references: every case, every class, and what the whole says."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uxnet.errors import InputError, UxnetError, plural, shortened
from uxnet.evaluation.metrics import METRICS, ClassMetrics, Empty, Outcome, case_metrics, check_settings
from uxnet.evaluation.pairs import Failure, Pair, find_labels_file, find_pairs, labels_from_values, refuse_other_names
from uxnet.evaluation.seen import warn_of_seen
from uxnet.evaluation.statistics import CONFIDENCE, RESAMPLES, SEED, Interval, bootstrap_mean, mean_of_counted
from uxnet.events import Note, Progress, Report, Warn, silent
from uxnet.io import atomic, read_labels, read_labels_file, unread_message, write_json
from uxnet.labels import Labels

_COLUMNS = ("case", "class", *METRICS, "predicted_ml", "reference_ml", "outcome")


@dataclass(frozen=True)
class CaseMetrics:
    """One evaluated case.

    Args:
        label_map: sha256 of the reference's voxels, by which a case is known under another name; empty where it shows no class.
    """

    name: str
    predicted: Path
    reference: Path
    classes: tuple[ClassMetrics, ...]
    label_map: str = ""

    def mean(self, metric: str) -> float | None:
        """The mean of "dice", "hd95_mm" or "nsd" over the classes that count; None where none does."""
        return mean_of_counted(getattr(c, metric) for c in self.classes)


@dataclass(frozen=True)
class Score:
    """A metric over the cases that count: mean, confidence interval, and how many they are."""

    interval: Interval
    n: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"mean": self.interval.mean, "low": self.interval.low, "high": self.interval.high, "n": self.n}


@dataclass(frozen=True)
class Summary:
    """One class (or the mean over classes) over all evaluated cases. The counts of the mean are sums over classes."""

    name: str
    dice: Score
    hd95_mm: Score
    nsd: Score
    found: int
    missed: int
    false_positives: int
    absent: int

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, without the name."""
        scores = {metric: getattr(self, metric).to_dict() for metric in METRICS}
        counts = {"found": self.found, "missed": self.missed, "false_positives": self.false_positives, "absent": self.absent}
        return scores | counts


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate_pairs` found.

    Args:
        labels: whose classes were scored; `labels_from` says where they came from.
        cases: the cases that could be evaluated.
        failures: those that could not, or had no prediction; no mean includes them.
        unused: predictions without a reference.
        left_out: cases that were not to be evaluated, since they have no prediction.
        seen: cases that a model of the predictions was trained on, as far as is known.
    """

    labels: Labels
    tolerance_mm: float
    empty: Empty
    cases: tuple[CaseMetrics, ...]
    failures: tuple[Failure, ...] = ()
    unused: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    labels_from: str = "given"
    seen: tuple[str, ...] = ()

    def classes(self) -> tuple[Summary, ...]:
        """One summary a class, in the labels' order."""
        columns = zip(*(case.classes for case in self.cases), strict=True) if self.cases else ((),) * len(self.labels.classes)
        return tuple(
            _summary(name, column, {m: [getattr(c, m) for c in column] for m in METRICS})
            for name, column in zip(self.labels.classes, columns, strict=True)
        )

    def overall(self) -> Summary:
        """The mean over classes: first within each case, over its classes that count, then over cases."""
        everything = [c for case in self.cases for c in case.classes]
        return _summary("mean", everything, {m: [case.mean(m) for case in self.cases] for m in METRICS})

    def worst(self, n: int = 3) -> tuple[CaseMetrics, ...]:
        """The cases of lowest mean Dice, lowest first."""
        scored = [(dice, case.name, case) for case in self.cases if (dice := case.mean("dice")) is not None]
        return tuple(case for _, _, case in sorted(scored, key=lambda x: x[:2])[:n])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; None where something does not count."""
        return {
            "settings": {
                "tolerance_mm": self.tolerance_mm,
                "empty": self.empty,
                "confidence": CONFIDENCE,
                "resamples": RESAMPLES,
                "seed": SEED,
            },
            "labels": self.labels.to_dict(),
            "labels_from": self.labels_from,
            "n_cases": len(self.cases),
            "n_failures": len(self.failures),
            "mean": self.overall().to_dict(),
            "classes": {s.name: s.to_dict() for s in self.classes()},
            "cases": [_case_dict(case) for case in self.cases],
            "failures": [{"case": f.name, "message": f.message} for f in self.failures],
            "predictions_without_reference": [str(path) for path in self.unused],
            "references_left_out": list(self.left_out),
            "cases_seen_in_training": list(self.seen),
        }


def evaluate_pairs(
    pairs: Sequence[Pair], labels: Labels, *, tolerance_mm: float = 1.0, empty: Empty = "skip", report: Report = silent
) -> Evaluation:
    """Evaluates (case name, prediction, reference) one by one. A case that cannot be is among the failures; the rest goes on.

    With "skip", a class that no reference shows has no score in any case: it would be of false positives alone, which are counted.

    Raises:
        UsageError: if the tolerance is negative or not finite, or `empty` is neither "skip" nor "one".
        Cancelled: if `report` says so.
    """
    check_settings(tolerance_mm, empty)
    cases, failures = [], []
    for done, (name, predicted, reference) in enumerate(pairs, 1):
        try:
            maps = (read_labels(predicted), read_labels(reference, report))
            classes = case_metrics(*maps, labels, tolerance_mm=tolerance_mm, empty=empty)
            known = maps[1].sha256() if any(c.reference_ml for c in classes) else ""
            cases.append(case := CaseMetrics(name, predicted, reference, classes, known))
            dice = case.mean("dice")
            values: dict[str, float | int | str] = {} if dice is None else {"dice": dice}
        except UxnetError as error:
            failures.append(Failure(name, str(error)))
            values = {"failed": name}
        except MemoryError:
            failures.append(Failure(name, f"{predicted}: there is not enough memory to evaluate this case"))
            values = {"failed": name}
        report(Progress("evaluate", done, len(pairs), values))
    scored = cases if empty == "one" else _without_unreferenced(cases, report)
    return Evaluation(labels, tolerance_mm, empty, tuple(scored), tuple(failures))


def _without_unreferenced(cases: Sequence[CaseMetrics], report: Report) -> list[CaseMetrics]:
    """The cases, without scores of classes that none of their references shows."""
    shown = {c.name for case in cases for c in case.classes if c.reference_ml > 0}
    false_positives = Counter(c.name for case in cases for c in case.classes if c.name not in shown and c.outcome is Outcome.FALSE_POSITIVE)
    for name, count in false_positives.items():
        report(Warn(f"{name}: no reference shows it, so it has no score; it is predicted in {plural(count, 'case')}"))

    def counted(c: ClassMetrics) -> ClassMetrics:
        return c if c.name in shown else replace(c, dice=None, hd95_mm=None, nsd=None)

    return [replace(case, classes=tuple(map(counted, case.classes))) for case in cases]


def evaluate_files(
    predicted: Path,
    reference: Path,
    *,
    labels: Path | None = None,
    tolerance_mm: float = 1.0,
    empty: Empty = "skip",
    only_predicted: bool = False,
    cases: Collection[str] | None = None,
    report: Report = silent,
) -> Evaluation:
    """Finds pairs and labels, then evaluates: what `uxnet evaluate` does. A reference without a prediction is a failure.

    Args:
        predicted: a label map or a folder of them.
        reference: the same; cases are matched by name.
        labels: the file that says what values mean; by default `find_labels_file`, and where there is none, the references' values.
        only_predicted, cases: which cases of two folders are evaluated, see `find_pairs`.

    Raises:
        InputError, LabelsError, UsageError: as `find_pairs`, `read_labels_file`, `refuse_other_names`, `labels_from_values`,
            `evaluate_pairs`.
    """
    check_settings(tolerance_mm, empty)
    found = find_pairs(predicted, reference, only_predicted=only_predicted, cases=cases)
    file = labels or find_labels_file(predicted, reference)
    if file:
        names, source = read_labels_file(file), str(file)
        if labels is None:
            refuse_other_names(names, file, predicted)
        report(Note(f"labels: {plural(len(names.classes), 'class', 'classes')} from {file}"))
    else:
        names, source = labels_from_values(path for _, _, path in found.pairs), "the values in the references"
        report(Note("labels: no labels.json or dataset.json was found, so the classes are named after the values in the references"))
    if predicted.resolve() == reference.resolve():
        report(Warn(f"{predicted}: predictions and references are the same files, so every score is perfect; check the two paths"))
    if found.unused:
        which = shortened((path.name for path in found.unused), 3)
        report(Warn(f"{predicted}: {plural(len(found.unused), 'prediction')} without a reference left out: {which}"))
    for folder in dict.fromkeys(path.parent for path in found.unread):
        report(Warn(f"{folder}: {unread_message([path for path in found.unread if path.parent == folder])}"))
    result = evaluate_pairs(found.pairs, names, tolerance_mm=tolerance_mm, empty=empty, report=report)
    seen = warn_of_seen(predicted, reference, {case.name: case.label_map for case in result.cases}, report)
    failures = sorted((*found.failures, *result.failures), key=lambda f: f.name)
    return replace(result, failures=tuple(failures), unused=found.unused, left_out=found.left_out, labels_from=source, seen=seen)


def write_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Everything, as JSON.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        write_json(path, evaluation.to_dict())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def is_another_file(path: Path) -> bool:
    """Whether a file is there that `write_evaluation_csv` did not write."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(200).strip() != ",".join(_COLUMNS)
    except OSError:
        return path.exists()


def write_evaluation_csv(path: Path, evaluation: Evaluation) -> None:
    """One row a case and class; a cell is empty where nothing counts. A failed case has one row, so that it is not overlooked.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for case in evaluation.cases:
                for c in case.classes:
                    numbers = (c.dice, c.hd95_mm, c.nsd, c.predicted_ml, c.reference_ml)
                    writer.writerow((case.name, c.name, *("" if x is None else x for x in numbers), c.outcome.value))
            writer.writerows((failure.name, "", "", "", "", "", "", "failed") for failure in evaluation.failures)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def _summary(name: str, scored: Iterable[ClassMetrics], values: dict[str, list[float | None]]) -> Summary:
    outcomes = [c.outcome for c in scored]
    dice, hd95_mm, nsd = (Score(bootstrap_mean(values[m]), sum(v is not None for v in values[m])) for m in METRICS)
    counts = [outcomes.count(o) for o in (Outcome.FOUND, Outcome.MISSED, Outcome.FALSE_POSITIVE, Outcome.ABSENT)]
    return Summary(name, dice, hd95_mm, nsd, *counts)


def _case_dict(case: CaseMetrics) -> dict[str, Any]:
    return {
        "case": case.name,
        "predicted": str(case.predicted),
        "reference": str(case.reference),
        "mean": {metric: case.mean(metric) for metric in METRICS},
        "classes": {
            c.name: {m: getattr(c, m) for m in METRICS}
            | {"predicted_ml": c.predicted_ml, "reference_ml": c.reference_ml, "outcome": c.outcome.value}
            for c in case.classes
        },
    }
