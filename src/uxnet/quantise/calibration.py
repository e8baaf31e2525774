"""What quantisation calibrates with and is judged by: cases, and windows of them as the networks see them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uxnet.dataset.cache import CachedCase, build_cache
from uxnet.dataset.manifest import Case, Manifest
from uxnet.dataset.patches import read_batch
from uxnet.errors import DatasetError
from uxnet.events import Progress, Report, silent
from uxnet.inference.segment import segment
from uxnet.inference.stitch import Engine
from uxnet.io import read_image, write_labels
from uxnet.model.file import Model

_HELD_OUT = 5  # one person in so many, where the model names no split


@dataclass(frozen=True)
class Cases:
    """Which cases calibrate and which are scored; no person is on both sides.

    origin: of the scored ones: "validation" (what the model's training held out) or "held out" (here, since the dataset is another).
    """

    calibration: tuple[Case, ...]
    scored: tuple[Case, ...]
    origin: str

    @property
    def sentence(self) -> str:
        """What was chosen and why."""
        why = (
            "the model's own validation cases"
            if self.origin == "validation"
            else f"held out here, one person in {_HELD_OUT}, since the model names no validation cases that the dataset has; "
            "it may have been trained on them"
        )
        return f"calibrated with windows of {len(self.calibration)} cases, scored on {len(self.scored)} others ({why})"


def choose_cases(model: Model, manifest: Manifest, most: int, scored: int = 0, seed: int = 0) -> Cases:
    """Cases to calibrate with, and others to score.

    The model's validation cases are scored where the dataset has them, and its training cases calibrate; else a fifth of the persons,
    drawn from the seed, is held out.

    Args:
        most: cases to calibrate with.
        scored: cases to score, at most; 0 takes all.

    Raises:
        DatasetError: if the labels are not the model's, or there are not cases of two persons.
    """
    # Dice of structures that the model does not know would say nothing about int8.
    ours, theirs = ({(label.name, label.value) for label in labels.foreground} for labels in (model.labels, manifest.labels))
    if ours != theirs:
        raise DatasetError(
            f"{manifest.root}: its labels ({', '.join(manifest.labels.classes)}) are not those of {model.path} "
            f"({', '.join(model.labels.classes)}); give a dataset like the one that the model was trained on"
        )
    labelled = [case for case in manifest.cases if case.labels is not None and case.images]
    # Names of cases are those of one dataset alone: every second one has a case_1.
    same = dict(model.provenance.get("dataset") or {}).get("name") == manifest.name
    split = dict(model.provenance.get("split") or {}) if same else {}
    known, rng = {case.name for case in labelled}, np.random.default_rng((seed, 0))
    judges = sorted(known & set(split.get("validation") or ()))
    origin = "validation" if judges and known - set(judges) else "held out"
    if origin == "held out":
        persons = sorted({case.person for case in labelled})
        held = set(rng.permutation(persons)[: max(1, len(persons) // _HELD_OUT)].tolist())
        judges = sorted(case.name for case in labelled if case.person in held)
    if scored:
        judges = sorted(rng.permutation(judges)[:scored].tolist())
    judging = tuple(case for case in labelled if case.name in set(judges))
    # Nobody who is held out calibrates, scored or not; nor does who was kept for a test.
    kept = {case.person for case in labelled if case.name in {*judges, *(split.get("validation") or ()), *(split.get("test") or ())}}
    free = [case for case in labelled if case.person not in kept]
    if origin == "held out" and not free:
        free = [case for case in labelled if case.person not in {judge.person for judge in judging}]
    if not judging or not free:
        raise DatasetError(f"{manifest.root}: int8 needs labelled cases of two persons at least, one to calibrate with and one to score")
    picked = sorted(rng.permutation(len(free))[:most].tolist())
    return Cases(tuple(free[n] for n in picked), judging, origin)


def calibration_windows(
    model: Model,
    cases: Sequence[Case],
    engines: Sequence[Engine],
    folder: Path,
    *,
    windows: int,
    seed: int = 0,
    report: Report = silent,
) -> list[list[Path]]:
    """Windows as each stage's network sees them, (1, C, I, J, K) float32, one .npy file each.

    They are drawn from (seed, step, sample), half of them around labelled voxels and half anywhere; a guided stage's lie around what
    the stage before found, as in prediction, with the mask in their last channel.

    Args:
        engines: of the stages, to make the masks.
        folder: for the files; only one prepared case at a time is there.
        windows: of each stage, all cases together.

    Raises:
        DatasetError: if a case cannot be prepared, or a guided stage gets no window since the one before found nothing in any case.
    """
    drawn: list[list[Path]] = [[] for _ in model.recipe.stages]
    counts = [len(part) for part in np.array_split(np.arange(windows), len(cases))]
    for number, (case, count) in enumerate(zip(cases, counts, strict=True)):
        found = None
        for stage, settings in enumerate(model.recipe.stages):
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                if settings.prior is not None:
                    found = Path(cache) / "labels.nii.gz"
                    write_labels(found, segment(read_image(*case.images), engines[:stage], model.recipe.stages[:stage], model.labels))
                priors = None if found is None else {case.name: found}
                cached = build_cache([case], settings.prepare, model.labels, Path(cache), priors=priors)
                if settings.prior is not None and not _shows_anything(cached[0]):
                    continue
                sampling = replace(settings.sampling, patch=settings.window, foreground=0.5)
                for sample in range(count):
                    images, _ = read_batch(cached, sampling, [0], seed, number * windows + sample)
                    path = folder / f"window-{stage}-{number}-{sample}.npy"
                    np.save(path, images)
                    drawn[stage].append(path)
                del cached  # its files are mapped
        report(Progress("drawing windows", number + 1, len(cases)))
    if not all(drawn):
        raise DatasetError("the first stage found no structure in any case, so there is nothing to calibrate the second with")
    return drawn


def _shows_anything(case: CachedCase) -> bool:
    return any(len(places) for places in case.places)
