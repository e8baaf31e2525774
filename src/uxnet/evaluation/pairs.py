"""Which prediction belongs to which reference, and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uxnet.errors import InputError, LabelsError, shortened
from uxnet.io import ImagesFound, case_name, images_in, read_labels, read_labels_file, unread_message
from uxnet.labels import Label, Labels

Pair = tuple[str, Path, Path]

_INNER = (".nii", ".img", ".hdr", ".mgh", ".mnc", ".gipl", ".brik")  # of formats that are packed a second time


@dataclass(frozen=True)
class Failure:
    """A case that could not be evaluated, and why; `missing` where all that is wrong is that it has no prediction."""

    name: str
    message: str
    missing: bool = False


@dataclass(frozen=True)
class Pairs:
    """What `find_pairs` found.

    Args:
        pairs: (case name, prediction, reference), by name.
        failures: cases without a prediction or a reference, with files of formats that are not read, or with two files of one name.
        unused: predictions without a reference.
        left_out: names of cases that were not to be evaluated, since they have no prediction.
        unread: images of formats that are not read, and of no case by their names.
    """

    pairs: tuple[Pair, ...]
    failures: tuple[Failure, ...] = ()
    unused: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    unread: tuple[Path, ...] = ()


def find_pairs(predicted: Path, reference: Path, *, only_predicted: bool = False, cases: Collection[str] | None = None) -> Pairs:
    """Matches predictions with references by case name (the file's name without .nii or .nii.gz).

    Two folders: every reference needs its prediction. Two files: they are a pair, whatever their names. A file and a folder: that
    case alone.

    Args:
        only_predicted: leave out cases without a prediction.
        cases: the names of those that are to be evaluated, of two folders, such as the cases of a fold; by default all references.

    Raises:
        InputError: if a path does not exist, there is no NIfTI file in it, no file of the wanted name, or no two names match.
    """
    for path in (predicted, reference):
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder")
    if predicted.is_file() and reference.is_file():
        return Pairs(((case_name(reference), predicted, reference),))
    ours, theirs = _images(predicted), _images(reference)
    for single, others in ((predicted, theirs), (reference, ours)):
        if single.is_file() and case_name(single) not in others.read:
            there = f"it has {shortened(others.read, 3)}"
            raise InputError(
                f"{others.path}: it has no file of the name {case_name(single)} (.nii.gz or .nii) to go with {single}; {there}"
            )
    alone = next((path for path in (predicted, reference) if path.is_file()), None)
    if alone:
        wanted = {case_name(alone)}
    else:
        # A reference of another format counts where a prediction says that it is a case, and no picture of something else.
        other = theirs.unread.keys() & (ours.read.keys() | ours.unread.keys())
        wanted = {*theirs.read, *other} if cases is None else set(cases)
    found = [_pair(name, ours, theirs) for name in sorted(wanted)]
    pairs = tuple(one for one in found if not isinstance(one, Failure))
    failures = tuple(one for one in found if isinstance(one, Failure) and not (only_predicted and one.missing))
    if not pairs and all(f.missing for f in failures):
        raise InputError(_no_match(ours, theirs, cases))
    left_out = tuple(one.name for one in found if isinstance(one, Failure) and only_predicted and one.missing)
    # What is of no case that was asked for is neither unused nor unread.
    strange = [] if alone or cases is not None else [name for name in sorted(ours.read) if name not in wanted]
    unread = [] if alone else [f for side in (ours, theirs) for name, files in side.unread.items() if name not in wanted for f in files]
    return Pairs(pairs, failures, tuple(path for name in strange for path in ours.read[name]), left_out, tuple(unread))


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
            "mean the same by their values; correct one of the files, or name the file that counts"
        )


def labels_from_values(references: Iterable[Path]) -> Labels:
    """Labels made of the values in the references, "label 1", "label 2", ...; files that cannot be read have no say.

    Raises:
        LabelsError: if they show nothing but background (0), or none of them can be read.
    """
    values: set[int] = set()
    wrong: list[InputError] = []
    for path in references:
        try:
            values.update(int(v) for v in np.unique(read_labels(path).array))
        except InputError as error:
            wrong.append(error)  # its own evaluation will fail and say why
    if not values and wrong:
        raise LabelsError(f"no reference can be read, so there is nothing to evaluate; the first: {wrong[0]}")
    if not values - {0}:
        raise LabelsError("the references show no label but the background, so there is nothing to evaluate; give the labels' file")
    return Labels(tuple(Label(f"label {v}", v) for v in sorted(values - {0})))


@dataclass(frozen=True)
class _Images:
    """The images at a path, by case name: those that are read, and those of other formats."""

    path: Path
    read: dict[str, list[Path]]
    unread: dict[str, list[Path]]


def _images(path: Path) -> _Images:
    found = ImagesFound((path,), ()) if path.is_file() else images_in(path)
    if not found.read:
        said = f"; {unread_message(found.unread)}" if found.unread else ""
        raise InputError(f"{path}: there is no NIfTI file (.nii.gz or .nii) in this folder{said}")
    return _Images(path, _by_name(found.read, case_name), _by_name(found.unread, _unread_name))


def _by_name(files: Iterable[Path], name_of: Callable[[Path], str]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(name_of(file), []).append(file)
    return named


def _unread_name(path: Path) -> str:
    """The case's name of c1.nrrd, and of c1.nii.bz2 and c1.img.gz."""
    name = case_name(path)
    return Path(name).stem if Path(name).suffix.lower() in _INNER else name


def _pair(name: str, ours: _Images, theirs: _Images) -> Pair | Failure:
    here, there = ours.read.get(name, []), theirs.read.get(name, [])
    if len(here) > 1 or len(there) > 1:
        several = here if len(here) > 1 else there
        return Failure(name, f"{' and '.join(map(str, several))} are the same case by name; keep one of them")
    for files, unread in ((there, theirs.unread.get(name)), (here, ours.unread.get(name))):
        if not files and unread:
            return Failure(name, f"{unread[0]}: {unread_message(unread)}")
    if here and there:
        return (name, here[0], there[0])
    if here:
        return Failure(name, f"{here[0]}: there is no reference for this prediction in {theirs.path}")
    if there:
        return Failure(name, f"{there[0]}: there is no prediction for this reference in {ours.path}", missing=True)
    return Failure(name, f"{name}: there is neither a prediction in {ours.path} nor a reference in {theirs.path}", missing=True)


def _no_match(ours: _Images, theirs: _Images, cases: Collection[str] | None) -> str:
    """That no names match, with the first of both sides, and what one side has at the end or the beginning of its names, if that is all."""
    here, there = sorted(ours.read), sorted(theirs.read)
    said = f"{ours.path} has {shortened(here, 3)}; {theirs.path} has {shortened(there, 3)}"
    if cases is not None:
        return f"no case to be evaluated has a prediction of its name: they are {shortened(sorted(cases), 3)}, {said}"
    more = _added(here, there) or _added(there, here)
    side = "references" if _added(here, there) else "predictions"
    remedy = f"rename the {side}: without {more!r} the names match" if more else "a prediction and its reference need the same name"
    return f"no prediction has the name of a reference: {said}; {remedy}"


def _added(names: Sequence[str], others: Sequence[str]) -> str:
    """What stands before or behind all these names among the others; empty where it is not one and the same, or nothing."""
    for name in names:
        before, found, behind = others[0].partition(name)
        if (
            found
            and bool(before) != bool(behind)
            and len({f"{before}{n}{behind}" for n in names}.intersection(others)) == min(len(names), len(others))
        ):
            return before or behind
    return ""


def _names(labels: Labels) -> dict[tuple[int, ...], str]:
    """Values -> the name of what they make up, but for names that are made of the value."""
    named = {(label.value,): label.name for label in labels.foreground} | {tuple(sorted(r.values)): r.name for r in labels.regions}
    return {values: name for values, name in named.items() if _plain(name) not in {f"{word} {values[0]}" for word in ("label", "class")}}


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().lower()


def folder_of(path: Path) -> Path:
    """The folder that label maps lie in: of a folder itself, of a file the one it is in."""
    return (path if path.is_dir() else path.parent).resolve()
