"""Which prediction belongs to which reference, and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uxnet.errors import InputError, LabelsError
from uxnet.io import case_name, is_nifti, read_labels, read_labels_file
from uxnet.labels import Label, Labels

Pair = tuple[str, Path, Path]


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why."""

    name: str
    message: str


@dataclass(frozen=True)
class Pairs:
    """What `find_pairs` found.

    Args:
        pairs: (case name, prediction, reference), by name.
        failures: references without a prediction, and names that two files lay claim to.
        unused: predictions without a reference.
    """

    pairs: tuple[Pair, ...]
    failures: tuple[Failure, ...] = ()
    unused: tuple[Path, ...] = ()


def find_pairs(predicted: Path, reference: Path) -> Pairs:
    """Matches predictions with references by case name (the file's name without .nii or .nii.gz).

    Two folders: every reference needs its prediction. Two files: they are a pair, whatever their names. A file and a folder: that
    case alone.

    Raises:
        InputError: if a path does not exist, or there is no NIfTI file in it, or no file of the wanted name.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder")
    if predicted.is_file() and reference.is_file():
        return Pairs(((case_name(reference), predicted, reference),))
    predictions, references = _by_name(predicted), _by_name(reference)
    wanted = sorted(predictions if predicted.is_file() else references)
    for single, others, folder in ((predicted, references, reference), (reference, predictions, predicted)):
        if single.is_file() and case_name(single) not in others:
            raise InputError(f"{folder}: it has no file of the name {case_name(single)} (.nii.gz or .nii) to go with {single}")
    pairs, failures = [], []
    for name in wanted:
        here, there = predictions.get(name, []), references[name]
        if not here:
            failures.append(Failure(name, f"{there[0]}: there is no prediction for this reference in {predicted}"))
        elif len(here) > 1 or len(there) > 1:
            several = here if len(here) > 1 else there
            failures.append(Failure(name, f"{' and '.join(map(str, several))} are the same case by name; keep one of them"))
        else:
            pairs.append((name, here[0], there[0]))
    lone = [] if reference.is_file() else [p for name in sorted(predictions.keys() - references.keys()) for p in predictions[name]]
    return Pairs(tuple(pairs), tuple(failures), tuple(lone))


def find_labels_file(predicted: Path, reference: Path) -> Path | None:
    """The file that says what the values mean: `labels.json`, else `dataset.json`, in the references' folder, else in the one above;
    else `labels.json` in the predictions' folder, else None."""
    references = folder_of(reference)
    places = [folder / name for folder in (references, references.parent) for name in ("labels.json", "dataset.json")]
    return next((place for place in (*places, predictions_labels_file(predicted)) if place.is_file()), None)


def predictions_labels_file(predicted: Path) -> Path:
    """Where `uxnet predict` says what the values of the predictions mean."""
    return folder_of(predicted) / "labels.json"


def refuse_other_names(labels: Labels, file: Path, predicted: Path) -> None:
    """Holds the references' labels against those that lie beside the predictions, if any do.

    Names may be written differently ("Left_Kidney", "left kidney"), and what is only called after its value has no name.

    Raises:
        LabelsError: if the same values have other names there; naming both files.
    """
    own = predictions_labels_file(predicted)
    if not own.is_file() or own.samefile(file):
        return
    ours, theirs = _names(labels), _names(read_labels_file(own))
    differ = [(ours[values], theirs[values]) for values in ours.keys() & theirs.keys() if _plain(ours[values]) != _plain(theirs[values])]
    if differ:
        here, there = min(differ)
        raise LabelsError(
            f"{file}: what is {here!r} there is {there!r} in {own} ({len(differ)} such names), so predictions and references may not "
            "mean the same by their values; correct one of the files, or say by --labels which counts"
        )


def labels_from_values(references: Iterable[Path]) -> Labels:
    """Labels made of the values in the references, "label 1", "label 2", ...; files that cannot be read have no say.

    Raises:
        LabelsError: if they show nothing but background (0).
    """
    values: set[int] = set()
    for path in references:
        try:
            values.update(int(v) for v in np.unique(read_labels(path).array))
        except InputError:
            continue  # Its own evaluation will fail and say why.
    if not values - {0}:
        raise LabelsError("the references show no label but the background, so there is nothing to evaluate; give the labels' file")
    return Labels(tuple(Label(f"label {v}", v) for v in sorted(values - {0})))


def _by_name(path: Path) -> dict[str, list[Path]]:
    files: Sequence[Path] = [path] if path.is_file() else sorted(p for p in path.iterdir() if is_nifti(p) and not p.is_dir())
    if not files:
        raise InputError(f"{path}: there is no NIfTI file (.nii.gz or .nii) in this folder")
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(case_name(file), []).append(file)
    return named


def _names(labels: Labels) -> dict[tuple[int, ...], str]:
    """Values -> the name of what they make up, but for names that are made of the value."""
    named = {(label.value,): label.name for label in labels.foreground} | {tuple(sorted(r.values)): r.name for r in labels.regions}
    return {values: name for values, name in named.items() if _plain(name) not in {f"{word} {values[0]}" for word in ("label", "class")}}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().lower()


def folder_of(path: Path) -> Path:
    """The folder that label maps lie in: of a folder itself, of a file the one it is in."""
    return (path if path.is_dir() else path.parent).resolve()
