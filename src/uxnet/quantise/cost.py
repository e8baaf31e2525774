"""What a change of precision costs: Dice before and after, on the same cases, and the labels that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uxnet.dataset.manifest import Case
from uxnet.errors import DatasetError
from uxnet.evaluation.metrics import dice_scores
from uxnet.evaluation.paired import side_by_side
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.events import Progress, Report, silent
from uxnet.inference.engines.precision import trusted
from uxnet.inference.segment import make_ready, segment
from uxnet.inference.stitch import Engine
from uxnet.io import read_image, read_labels
from uxnet.labels import Labels
from uxnet.model.file import Model


@dataclass(frozen=True)
class Compared:
    """Dice in float32 and in int8, means over the `cases` where the class counts."""

    float32: float
    int8: float
    cases: int

    @property
    def difference(self) -> float:
        """What int8 gains; below 0 it costs."""
        return self.int8 - self.float32


@dataclass(frozen=True)
class Cost:
    """Dice in float32 and in int8.

    classes: those that count in at least one case.
    float32, int8: means over cases of each case's mean over its classes.
    cases: that were scored.
    differ: the share of all voxels whose labels differ.
    """

    classes: Mapping[str, Compared]
    float32: float
    int8: float
    cases: int
    differ: float

    @property
    def worst(self) -> float:
        """By how much Dice falls, of the class where it falls most, or of the mean; below 0 where it rises everywhere."""
        return max([self.float32 - self.int8, *(-one.difference for one in self.classes.values())])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "float32": self.float32,
            "int8": self.int8,
            "difference": self.int8 - self.float32,
            "cases": self.cases,
            "labels_differ": self.differ,
            "classes": {
                name: {"float32": one.float32, "int8": one.int8, "difference": one.difference, "cases": one.cases}
                for name, one in self.classes.items()
            },
        }


def segment_all(
    cases: Sequence[Case],
    engines: Sequence[Engine],
    model: Model,
    folder: Path,
    *,
    task: str = "segmenting",
    threads: int = 1,
    report: Report = silent,
) -> list[Path]:
    """The label map of every case, (1, I, J, K) values, as .npy files in a folder: many scans need more memory than one has.

    Engines of a lower precision are checked as `Segmenter` checks them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths, stages = [], model.recipe.stages
    for done, case in enumerate(cases, start=1):
        paths.append(folder / f"{case.name}.npy")
        ready = make_ready(read_image(*case.images), stages[0], threads)
        trusted(engines[:1], ready.image, stages[0], report)
        np.save(paths[-1], segment(ready, engines, stages, model.labels, threads=threads).array)
        report(Progress(task, done, len(cases)))
    return paths


def cost_of(cases: Sequence[Case], float32: Sequence[Path], int8: Sequence[Path], labels: Labels) -> Cost:
    """What int8 costs, by the label maps of both.

    A class that is in no reference and in one of the two predictions alone counts as 1 in the other, which was right; a class that
    is nowhere does not count.

    Raises:
        DatasetError: if a case's label map is on another grid than its image, or no class counts in any case.
    """
    rows, differing, voxels = [], 0, 0
    for case, before, after in zip(cases, float32, int8, strict=True):
        a, b = np.load(before, mmap_mode="r"), np.load(after, mmap_mode="r")
        rows.append(_case_scores(case, a, b, labels))
        differing, voxels = differing + int(np.count_nonzero(a != b)), voxels + a.size
    classes = {}
    for name in labels.classes:
        pairs = [row[name] for row in rows if name in row]
        if pairs:
            classes[name] = Compared(sum(a for a, _ in pairs) / len(pairs), sum(b for _, b in pairs) / len(pairs), len(pairs))
    means = [mean_of_counted(mean_of_counted(pair[n] for pair in row.values()) for row in rows) for n in (0, 1)]
    if means[0] is None or means[1] is None:
        raise DatasetError("no structure is shown or found in any of the cases that were to be scored; give others")
    return Cost(classes, means[0], means[1], len(cases), differing / voxels)


def _case_scores(case: Case, before: Any, after: Any, labels: Labels) -> dict[str, tuple[float, float]]:
    """Dice of each class that counts, in float32 and int8."""
    if case.labels is None:
        raise DatasetError(f"{case.name}: it has no label map; scoring needs one")
    reference = read_labels(case.labels).array
    if reference.shape != before.shape:
        raise DatasetError(f"{case.labels}: its grid differs from its image's; run `uxnet inspect` on the dataset")
    both = (dice_scores(before, reference, labels), dice_scores(after, reference, labels))
    scores = {name: side_by_side([score[name] for score in both]) for name in labels.classes}
    return {name: (a, b) for name, (a, b) in scores.items() if a is not None and b is not None}
