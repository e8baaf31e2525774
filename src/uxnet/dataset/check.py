"""Every case of a dataset, read once: what is wrong with it, and its facts (the fingerprint).

Errors are what training refuses; warnings are what a person should look at.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.cases import ENDINGS
from uxnet.dataset.fingerprint import CaseFacts, Fingerprint, Intensities, intensities_of
from uxnet.dataset.manifest import Case, Manifest
from uxnet.dataset.organs import doubtful_names
from uxnet.errors import DatasetError, VolumeError, plural, shortened
from uxnet.events import Event, Note, Progress, Report, Warn, silent
from uxnet.io import case_name, read_image, read_labels
from uxnet.jobs import work
from uxnet.labels import Labels
from uxnet.prepare.intensity import Measured, measure, without_padding
from uxnet.volume import Volume

Severity = Literal["error", "warning"]

# Beyond this factor from the dataset's median, a spacing is more often a wrong unit or a lost header than a different scanner.
_UNUSUAL_SPACING = 5.0
_ERRORS_SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """Something wrong with a case (`case` is empty where it is about the whole dataset); a sentence, without the path."""

    case: str
    path: Path | None
    severity: Severity
    message: str


@dataclass(frozen=True)
class Inspection:
    """What `check_dataset` found: problems in the order of the cases, and the facts of every case whose image can be read."""

    manifest: Manifest
    problems: tuple[Problem, ...]
    fingerprint: Fingerprint

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that training refuses."""
        return tuple(p for p in self.problems if p.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that a person should look at."""
        return tuple(p for p in self.problems if p.severity == "warning")

    def class_presence(self) -> dict[str, frozenset[str]]:
        """Case -> the classes (labels or regions) that its label map shows, for `folds.make_split`."""
        return {facts.name: frozenset(c for c, n in facts.voxels.items() if n) for facts in self.fingerprint.cases}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values: the dataset, its problems (paths relative to its root), the summary and each case's facts."""
        root = self.manifest.root
        return {
            "dataset": self.manifest.name,
            "root": str(root),
            "layout": self.manifest.layout,
            "cases": len(self.manifest.cases),
            "persons": len(self.manifest.persons),
            "grouped_by": self.manifest.grouped_by,
            "left_out": self.manifest.left_out,
            "channel_names": list(self.manifest.channel_names),
            "labels": self.manifest.labels.to_dict(),
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "problems": [{**asdict(p), "path": None if p.path is None else relative(p.path, root)} for p in self.problems],
            "fingerprint": self.fingerprint.to_dict(),
        }


def check_dataset(manifest: Manifest, *, workers: int = 1, report: Report = silent) -> Inspection:
    """Reads every case and says what is wrong with it.

    Errors: a file that is missing or cannot be read (with values that are not finite, or no affine), an image without a label map
    or the reverse, label values that are no whole numbers or no labels, grids of image and label map that differ, an image that is
    constant (but for padding), another number of channels than the dataset's. Warnings: a header that is doubtful, padding among the
    intensities, labels that were rounded, a label map without foreground, a constant channel beside others that are not, the same
    image under two names, a spacing far from the others', a class that no case shows, organs whose volumes do not fit their names.

    Args:
        workers: processes to read with; 1 reads in this one. A process holds one case in memory at a time.
        report: hears a Progress for each case, a Note of what the layout leaves out, and where nobody says which cases are one
            person's that each counts as a person of its own: a Warn with the pattern to group by where names look otherwise.
    """
    if manifest.left_out:
        report(Note(manifest.left_out))
    if manifest.grouped_by == "case" and len(manifest.cases) > 1:
        report(_whose(manifest))
    check = functools.partial(check_case, labels=manifest.labels, channels=len(manifest.channel_names))
    problems: list[Problem] = []
    facts: list[CaseFacts] = []
    for done, finished in enumerate(work(check, manifest.cases, workers), start=1):
        found, fact = finished.result or ([Problem(finished.item.name, None, "error", str(finished.error))], None)
        problems += found
        facts += [] if fact is None else [fact]
        report(Progress("reading cases", done, len(manifest.cases)))
    facts.sort(key=lambda fact: fact.name)
    fingerprint = Fingerprint(tuple(facts), manifest.labels.classes, manifest.channel_names)
    problems += _twice(manifest, facts)
    problems += _unusual_spacings(manifest, facts)
    order = {case.name: n for n, case in enumerate(manifest.cases)}
    problems.sort(key=lambda p: (order[p.case], p.severity))
    doubts = (Problem("", None, "warning", doubt) for doubt in (*manifest.doubts, *doubtful_names(fingerprint)))
    return Inspection(manifest, (*problems, *_never_seen(manifest, facts), *doubts), fingerprint)


def refuse_errors(inspection: Inspection) -> None:
    """What training calls before it starts.

    Raises:
        DatasetError: if there are errors; the message names the first cases, what is wrong with each, and the file.
    """
    errors, root = inspection.errors, inspection.manifest.root
    if errors:
        shown = [f"  {p.case}: {p.message}" + (f" ({relative(p.path, root)})" if p.path else "") for p in errors[:_ERRORS_SHOWN]]
        more = len(errors) - len(shown)
        shown += [f"  and {more} more; uxnet inspect shows all"] if more else []
        head = f"{root}: {plural(len(errors), 'error')}; correct them, or take the cases out of the dataset"
        raise DatasetError("\n".join([head, *shown]))


def warn_and_refuse(inspection: Inspection, report: Report) -> None:
    """Before a dataset is trained on or planned for: warns of what concerns the whole of it, and refuses errors.

    Raises:
        DatasetError: as `refuse_errors`.
    """
    for warning in inspection.warnings:
        if not warning.case:
            report(Warn(f"{inspection.manifest.root}: {warning.message}"))
    refuse_errors(inspection)


def same_scans(inspection: Inspection, parts: Mapping[str, Sequence[str]]) -> list[str]:
    """What training warns of: images with the same voxels under several names, in different parts of a fold and in one.

    Args:
        parts: the names of the cases of each part.

    Returns:
        A sentence each; none where all images differ.
    """
    part_of = {name: part for part, names in parts.items() for name in names}
    alike: dict[str, list[str]] = {}
    for facts in inspection.fingerprint.cases:
        if facts.name in part_of:
            alike.setdefault(facts.image_sha256, []).append(facts.name)
    twice = [names for names in alike.values() if len(names) > 1]
    across = [names for names in twice if len({part_of[name] for name in names}) > 1]
    within = [names for names in twice if names not in across]
    told = []
    if across:
        what = _together(across, part_of)
        told.append(
            f"the same image lies in several parts of this fold, so its scores are too good: {what}; remove all but one of the cases, or "
            "let subjects.json name one person for them and make a new split"
        )
    if within:
        told.append(f"the same image counts as several cases: {_together(within, part_of)}; remove all but one of them")
    return told


def check_case(case: Case, labels: Labels, channels: int) -> tuple[list[Problem], CaseFacts | None]:
    """The problems of one case, and its facts if its image can be read."""
    problems: list[Problem] = []

    def note(path: Path | None, message: str, severity: Severity = "error") -> None:
        problems.append(Problem(case.name, path, severity, message.removeprefix(f"{path}: ")))

    def warned(event: Event, paths: tuple[Path, ...]) -> None:
        if isinstance(event, Warn):
            note(_named(event.message, paths), event.message, "warning")

    image = label_map = None
    if not case.images:
        note(case.labels, "there is a label map but no image for it; add the image or remove the label map")
    if case.labels is None:
        note(case.images[0] if case.images else None, "there is an image but no label map for it; add it or remove the image")
    try:
        image = read_image(*case.images, report=functools.partial(warned, paths=case.images)) if case.images else None
    except VolumeError as error:
        path = _named(str(error), case.images)
        note(path, str(error) + _near(path))
    try:
        label_map = read_labels(case.labels, functools.partial(warned, paths=(case.labels,))) if case.labels else None
    except VolumeError as error:
        note(case.labels, str(error) + (_near(case.labels) if case.labels else ""))
    measured: list[Measured] = []
    if image is not None:
        measured = [measure(channel) for channel in image.array]
        _check_image(image, measured, case.images[0], channels, note)
    counts: dict[int, int] = {}
    if label_map is not None:
        counts = _check_labels(label_map, case.labels, labels, note)
    same = image is not None and label_map is not None and label_map.geometry.same_grid(image.geometry)
    if image is not None and label_map is not None and not same:
        note(case.labels, _grids_differ(image, label_map))
    if image is None:
        return problems, None
    return problems, _facts(case, image, measured, label_map, counts, labels, same_grid=same)


def relative(path: Path, root: Path) -> str:
    """A path as seen from the dataset's folder, where it lies inside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _check_image(image: Volume, measured: Sequence[Measured], path: Path, channels: int, note: Callable[..., None]) -> None:
    if image.channels != channels:
        note(path, f"the image has {plural(image.channels, 'channel')}, the dataset has {channels}; add or remove channels")
    for number, one in enumerate(measured):
        for told in one.told():
            note(path, told if image.channels == 1 else f"of channel {number}, {told}", "warning")
    flat = [number for number, one in enumerate(measured) if one.flat]
    if len(flat) == image.channels:
        besides = "besides its padding " if measured[0].padding else ""
        note(path, f"{besides}every voxel of the image is {measured[0].low:g}, so it shows nothing; export it again")
    elif flat:
        note(path, f"channel {', '.join(map(str, flat))} of the image is constant; is it missing?", "warning")


def _check_labels(label_map: Volume, path: Path | None, labels: Labels, note: Callable[..., None]) -> dict[int, int]:
    """Voxels of each value; notes values that are no labels and label maps without any."""
    values, voxels = np.unique(label_map.array, return_counts=True)
    counts = {int(v): int(n) for v, n in zip(values, voxels, strict=True)}
    foreground = {label.value for label in labels.foreground}
    known = foreground | {labels.background} | ({labels.ignore} if labels.ignore is not None else set())
    unknown = sorted(set(counts) - known)
    if unknown:
        what = "the value {} is no label" if len(unknown) == 1 else "the values {} are no labels"
        where = plural(sum(counts[v] for v in unknown), "voxel")
        known_shown = ", ".join(map(str, sorted(known)[:40])) + (", ..." if len(known) > 40 else "")
        note(path, f"{what.format(shortened(unknown, 12))} ({where}); labels are {known_shown}")
    if not foreground & set(counts):
        note(path, "the label map has no foreground", "warning")
    return counts


def _grids_differ(image: Volume, label_map: Volume) -> str:
    a, b = image.geometry, label_map.geometry
    if a.shape != b.shape:
        difference = f"the label map has {_times(b.shape)} voxels, the image {_times(a.shape)}"
    elif not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3, atol=1e-3):
        difference = f"the label map's spacing is {_times(b.spacing_mm)} mm, the image's {_times(a.spacing_mm)} mm"
    elif a.orientation != b.orientation:
        difference = f"the label map lies in {b.orientation}, the image in {a.orientation}"
    else:
        corners = np.array([(0, 0, 0), np.array(a.shape) - 1])
        apart = float(np.linalg.norm(a.to_mm(corners) - b.to_mm(corners), axis=1).max())
        difference = f"corners lie up to {apart:.3g} mm apart"
    return f"the grids of label map and image differ: {difference}; resample the label map to the image, or correct the affines"


def _facts(
    case: Case,
    image: Volume,
    measured: Sequence[Measured],
    label_map: Volume | None,
    counts: Mapping[int, int],
    labels: Labels,
    *,
    same_grid: bool,
) -> CaseFacts:
    voxels: dict[str, int] = {}
    millilitres = 0.0
    if label_map is not None:
        voxels = {name: sum(counts.get(v, 0) for v in labels.members(name)) for name in labels.classes}
        millilitres = label_map.geometry.voxel_mm3 / 1000
    foreground: tuple[Any, ...] = ()
    if label_map is not None and same_grid:
        inside = np.isin(label_map.array[0], [label.value for label in labels.foreground])
        if inside.any():
            foreground = tuple(_intensities(channel[inside], one) for channel, one in zip(image.array, measured, strict=True))
    return CaseFacts(
        name=case.name,
        shape=image.geometry.shape,
        spacing_mm=image.geometry.spacing_mm,
        orientation=image.geometry.orientation,
        channels=image.channels,
        intensities=tuple(_intensities(channel, one) for channel, one in zip(image.array, measured, strict=True)),
        foreground=foreground,
        voxels=voxels,
        volumes_ml={name: n * millilitres for name, n in voxels.items()},
        image_sha256=image.sha256(),
        labels_sha256="" if label_map is None else label_map.sha256(),
        affine_ras=tuple(tuple(map(float, row)) for row in image.geometry.affine_ras),
    )


def _intensities(voxels: NDArray[np.floating[Any]], measured: Measured) -> Intensities:
    kept = without_padding(voxels, measured)
    return intensities_of(kept if kept.size else voxels)


def _whose(manifest: Manifest) -> Note | Warn:
    told = f"{manifest.root}: each case counts as a person of its own"
    like = _looks_like_persons([case.name for case in manifest.cases])
    if like is None:
        return Note(f"{told}; if some are of one person, say so by subjects.json or group_by, or folds may share persons")
    pattern, (a, b) = like
    return Warn(f"{told}; if {a} and {b} are of one person, add group_by='{pattern}', or folds may share persons")


def _looks_like_persons(names: Sequence[str]) -> tuple[str, list[str]] | None:
    """A pattern for beginnings with a number that some names share and others do not, and two that share one; None if there is none."""
    for separator in "_-":
        part = f"[^{separator}]+"
        for parts in range(1, max(name.count(separator) for name in names) + 1):
            pattern = "^(" + separator.join([part] * parts) + ")"
            found = [re.search(pattern, name) for name in names]
            groups: dict[str, list[str]] = {}
            for name, match in zip(names, found, strict=True):
                groups.setdefault(match[1] if match else "", []).append(name)
            if 1 < len(groups) < len(names) and all(re.search(r"\d", beginning) for beginning in groups):
                return pattern, next(alike[:2] for alike in groups.values() if len(alike) > 1)
    return None


def _twice(manifest: Manifest, facts: list[CaseFacts]) -> Iterator[Problem]:
    first: dict[str, str] = {}
    for fact in facts:
        original = first.setdefault(fact.image_sha256, fact.name)
        if original == fact.name:
            continue
        case = manifest.case(fact.name)
        leak = "" if case.person == manifest.case(original).person else "; both in different folds would leak, so remove one"
        yield Problem(fact.name, case.images[0], "warning", f"its image has the same voxels as that of case {original!r}{leak}")


def _together(groups: Sequence[Sequence[str]], part_of: Mapping[str, str]) -> str:
    return shortened((" = ".join(f"{name} ({part_of[name]})" for name in names) for names in groups), 8)


def _unusual_spacings(manifest: Manifest, facts: list[CaseFacts]) -> Iterator[Problem]:
    # Sorted within a case: which axis is the coarse one depends on the orientation.
    spacings = [sorted(fact.spacing_mm) for fact in facts]
    usual = np.median(spacings, axis=0) if facts else np.ones(3)
    for fact, spacing in zip(facts, spacings, strict=True):
        if np.abs(np.log(np.array(spacing) / usual)).max() > np.log(_UNUSUAL_SPACING):
            path = manifest.case(fact.name).images[0]
            text = f"its spacing, {_times(fact.spacing_mm)} mm, is far from the dataset's median, {_times(usual)} mm; is the unit right?"
            yield Problem(fact.name, path, "warning", text)


def _never_seen(manifest: Manifest, facts: list[CaseFacts]) -> Iterator[Problem]:
    # While some cases cannot be read, nobody knows what they show.
    if len(facts) < len(manifest.cases) or not all(fact.voxels for fact in facts):
        return
    seen = Counter(name for fact in facts for name, n in fact.voxels.items() if n)
    for name in manifest.labels.classes:
        if not seen[name]:
            yield Problem("", None, "warning", f"no case shows the class {name!r}, so it cannot be learnt")


def _named(message: str, paths: tuple[Path, ...]) -> Path:
    """The one of several files that a message begins with."""
    return next((path for path in paths if message.startswith(f"{path}: ")), paths[0])


def _near(path: Path) -> str:
    """Of a file that is missing: that it is there under the other ending; empty where it is not."""
    other = next((path.with_name(case_name(path) + ending) for ending in ENDINGS if not path.name.endswith(ending)), path)
    return f"; {other.name} is there: correct the name in dataset.json" if other.is_file() and not path.exists() else ""


def _times(numbers: Any) -> str:
    return " x ".join(f"{n:g}" if isinstance(n, int) else f"{n:.4g}" for n in numbers)
