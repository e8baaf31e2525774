"""Validation: whole cases, on their own grids, foreground only, through the same `segment` as prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uxnet.dataset.manifest import Case
from uxnet.errors import DatasetError
from uxnet.evaluation.metrics import dice_scores, shown_classes
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.events import Progress, Report, silent
from uxnet.inference.segment import segment
from uxnet.inference.stitch import Engine
from uxnet.io import read_image, read_labels
from uxnet.labels import Labels
from uxnet.recipe import Stage
from uxnet.volume import Volume


@dataclass(frozen=True)
class Validation:
    """Dice of every case and class.

    A class that no case's reference shows has no score, as in `uxnet evaluate`: its Dice would be of false positives alone.

    Args:
        cases: case -> class -> Dice; None where neither reference nor prediction shows the class.
        unreferenced: classes that no case's reference shows.
    """

    cases: Mapping[str, Mapping[str, float | None]]
    unreferenced: frozenset[str] = frozenset()

    @property
    def scores(self) -> dict[str, dict[str, float | None]]:
        """Case -> class -> Dice; None where it does not count."""
        return {
            case: {name: None if name in self.unreferenced else dice for name, dice in dices.items()} for case, dices in self.cases.items()
        }

    @property
    def classes(self) -> dict[str, float | None]:
        """The mean of each class over the cases where it counts."""
        scores = list(self.scores.values())
        return {name: mean_of_counted([dices[name] for dices in scores]) for name in (scores[0] if scores else ())}

    @property
    def mean(self) -> float | None:
        """The mean over cases of each case's mean over its classes, as `uxnet evaluate` gives it."""
        return mean_of_counted([mean_of_counted(dices.values()) for dices in self.scores.values()])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"dice": self.mean, "classes": self.classes, "cases": self.scores}


def joined(parts: Sequence[Validation], names: Sequence[str]) -> Validation:
    """The validation of cases that several processes segmented, in the order of their names."""
    dices = {name: scores for part in parts for name, scores in part.cases.items()}
    return Validation({name: dices[name] for name in names}, frozenset.intersection(*(part.unreferenced for part in parts)))


Show = Callable[[str, Volume, Volume, Volume, Mapping[str, float | None]], None]
"""Hears of a case: its name, image, reference, prediction and Dice by class."""


def validate(
    cases: Sequence[Case],
    engines: Sequence[Engine],
    stages: Sequence[Stage],
    labels: Labels,
    report: Report = silent,
    show: Show | None = None,
) -> Validation:
    """Segments every case and scores it against its label map.

    Raises:
        VolumeError, DatasetError: if a case cannot be read.
    """
    scores, unreferenced = {}, set(labels.classes)
    for done, case in enumerate(cases, start=1):
        if case.labels is None:
            raise DatasetError(f"{case.name}: it has no label map; validation needs one")
        image, reference = read_image(*case.images), read_labels(case.labels)
        predicted = segment(image, engines, stages, labels)
        scores[case.name] = dice_scores(predicted.array, reference.array, labels)
        unreferenced -= shown_classes(reference.array, labels)
        if show is not None:
            show(case.name, image, reference, predicted, scores[case.name])
        report(Progress("validating", done, len(cases)))
    return Validation(scores, frozenset(unreferenced))
