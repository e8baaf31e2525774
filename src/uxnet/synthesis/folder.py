"""A folder of label maps -> a dataset of synthetic images with labels, in the layout of the Medical Segmentation Decathlon.

What is complete is not made again, so that an interrupted call can be repeated and a folder can grow. `synthesis.json` says what the
images were made of and how; a call that would make others is refused.
"""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uxnet.dataset.cases import by_name, niftis, person_table, some
from uxnet.dataset.lists import listed_cases
from uxnet.errors import DatasetError, InputError, UsageError, plural
from uxnet.events import Note, Progress, Report, Warn, silent
from uxnet.geometry import axis_order
from uxnet.io import case_name, images_in, read_json, read_labels, sha256, unread_message, write_image, write_json, write_labels
from uxnet.io.checked import as_kind
from uxnet.io.schemas import SynthesisRecord
from uxnet.jobs import work
from uxnet.synthesis.images import EDITION, Scheme, Synthesis, anatomy, synthetic
from uxnet.synthesis.merging import Merge, brain_values, choose_merge, freesurfer_pairs, named_pairs, one_sided

SCHEMA = "uxnet synthesis"
_AT_A_TIME = 4  # images that a unit makes of a map, which is read once for them
_MOST = 999

_Unit = tuple[Path, str, Sequence[int]]  # a label map's file and name, and the numbers of images to make of it


@dataclass(frozen=True)
class LabelMap:
    """A label map as it was found: its hash, and of each value the voxels and the mean position to the right in mm."""

    name: str
    path: Path
    sha256: str
    voxels: Mapping[int, int]
    rightwards_mm: Mapping[int, float]


@dataclass(frozen=True)
class Made:
    """What a call came to: images that it made, images that were there; and label maps, or parts of their images, that failed, and why."""

    images: int
    already: int
    failures: tuple[tuple[str, str], ...]


def synthesise(
    folder: str | Path,
    out: str | Path,
    *,
    images_per_map: int = 8,
    merge: str | None = None,
    words: Sequence[str] = (),
    spacing_mm: float | None = None,
    seed: int = 0,
    settings: Synthesis | None = None,
    mirror: bool | None = None,
    name: str | None = None,
    workers: int = 1,
    report: Report = silent,
) -> Made:
    """Writes `images_per_map` synthetic images of each label map, with their labels.

    A label map that cannot be read is reported, and the rest goes on.

    Args:
        folder: of label maps: those that its dataset.json lists, else the NIfTI files in labelsTr, labels, or the folder itself.
        out: gets imagesTr, labelsTr, dataset.json, subjects.json (all images of a map are one person's, or of the person that the source's
            subjects.json names) and synthesis.json.
        merge, words: which labels come of which values, see `merging.choose_merge`.
        spacing_mm: of the images; None for that of each map.
        mirror: whether images may be mirrored, left and right values trading places. None decides: where the values are FreeSurfer's.
        name: of the dataset.
        workers: processes.

    Raises:
        InputError: if there are no label maps, none can be read, the table is wrong or leaves nothing but background, or mirroring is
            asked for where it would put labels on the wrong side.
        DatasetError: if `out` holds another dataset, or images made otherwise; or the source's subjects.json leaves a label map out.
        Cancelled: out of `report`.
    """
    folder, out, settings = Path(folder), Path(out), settings or Synthesis()
    if not 1 <= images_per_map <= _MOST:
        raise UsageError(f"{images_per_map} images a label map: between 1 and {_MOST} can be made")
    if seed < 0 or (spacing_mm is not None and not 0 < spacing_mm < float("inf")):
        raise UsageError(f"the seed must be at least 0 and the spacing above 0 mm, not {seed} and {spacing_mm}")
    paths = find_label_maps(folder, report)
    if out.resolve() == folder.resolve():
        raise InputError(f"{out}: the images need a folder of their own, not that of the label maps")
    maps, failures = _survey(paths, workers, report)
    if not maps:
        raise InputError(f"{folder}: none of its {len(paths)} label maps can be used; the first: {failures[0][1]}")
    values = sorted(set[int]().union(*(one.voxels for one in maps)))
    chosen = choose_merge(folder, merge, words, values)
    _check(chosen, values, report)
    scheme, numbered = _scheme(chosen, maps, values, mirror)
    report(Note(_sides(values, numbered, scheme)))
    source = _source(folder, {one.name: one.path for one in maps})
    said = {
        "schema": SCHEMA,
        "edition": EDITION,
        "source": source["name"],
        "seed": seed,
        "spacing_mm": spacing_mm,
        "settings": asdict(settings),
        "merge": chosen.to_dict(),
        "freesurfer": numbered,
        "mirrored": scheme.mirrored,
        "stripped": scheme.brain is not None,
        "maps": {one.name: one.sha256 for one in maps},
    }
    said["maps"] = _claim(out, said)
    described = functools.partial(_describe, out, source, name, chosen, list(said["maps"]))
    described()
    lacking = {one.name: _missing(out, one.name, images_per_map) for one in maps}
    asked = sum(map(len, lacking.values()))
    todo = [(one.path, one.name, part) for one in maps for part in _parts(lacking[one.name])]
    try:
        failures += _produce(functools.partial(_make, out, scheme, settings, seed, spacing_mm), todo, workers, report)
    finally:
        described()
    lost = sum(len(_missing(out, one.name, images_per_map)) for one in maps)
    return Made(asked - lost, len(maps) * images_per_map - asked, tuple(failures))


def _missing(out: Path, name: str, most: int) -> list[int]:
    """The numbers of a map's images that are not complete."""
    return [n for n in range(1, most + 1) if not all(path.is_file() for path in _files(out, name, n))]


def _parts(numbers: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(numbers[n : n + _AT_A_TIME]) for n in range(0, len(numbers), _AT_A_TIME)]


def _produce(unit: Callable[[_Unit], None], todo: Sequence[_Unit], workers: int, report: Report) -> list[tuple[str, str]]:
    """Does the units; returns those that failed, by the names of their maps, and why."""
    failures, done, asked = [], 0, sum(len(numbers) for _, _, numbers in todo)
    with contextlib.closing(work(unit, todo, workers)) as finished:
        for end in finished:
            _, name, numbers = end.item
            done += len(numbers)
            if end.error is not None:
                failures.append((name, str(end.error)))
                report(Warn(f"{name}: {end.error}"))
            report(Progress("images", done, asked))
    return failures


def find_label_maps(folder: Path, report: Report = silent) -> dict[str, Path]:
    """Name -> file of each label map of a folder, by name. Warns of those in formats that are not read.

    Raises:
        InputError: if there are none, or two have one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; name the one that holds the label maps, or their labelsTr")
    description = folder / "dataset.json"
    data = read_json(description, DatasetError) if description.is_file() else {}
    if "training" in data:
        found = [case.labels for case in listed_cases(folder, data) if case.labels is not None]
    else:
        inside = next((folder / part for part in ("labelsTr", "labels") if (folder / part).is_dir()), folder)
        found, unread = niftis(inside), images_in(inside).unread
        if unread and not found:
            raise InputError(f"{inside}: there are no label maps; {unread_message(unread)}")
        if unread:
            report(Warn(f"{inside}: left out: {plural(len(unread), 'file')}; {unread_message(unread)}"))
    if not found:
        raise InputError(f"{folder}: there are no label maps; expected .nii or .nii.gz files in labelsTr, labels, or the folder itself")
    return dict(sorted(by_name(found, "a label map").items()))


def _survey(paths: Mapping[str, Path], workers: int, report: Report) -> tuple[list[LabelMap], list[tuple[str, str]]]:
    """Every label map, read once; and those that cannot be used."""
    maps, failures = [], []
    with contextlib.closing(work(_look, list(paths.items()), workers)) as finished:
        for done, end in enumerate(finished, start=1):
            if end.result is None:
                failures.append((end.item[0], str(end.error)))
                report(Warn(f"{end.item[0]} is left out: {end.error}"))
            else:
                maps.append(end.result)
            report(Progress("label maps", done, len(paths)))
    return sorted(maps, key=lambda one: one.name), sorted(failures)


def _look(item: tuple[str, Path]) -> LabelMap:
    name, path = item
    volume = read_labels(path)
    order = axis_order(volume.geometry, "RAS")
    array, step = order.apply(volume.array[0]), order.apply_to(volume.geometry).spacing_mm[0]
    voxels, sums = Counter[int](), Counter[int]()
    for i, plane in enumerate(array):
        for value, count in zip(*(found.tolist() for found in np.unique(plane, return_counts=True)), strict=True):
            voxels[value] += count
            sums[value] += count * i
    if not set(voxels) - {0}:
        raise InputError(f"{path}: it holds nothing but 0, so there is nothing to draw; remove it")
    return LabelMap(name, path, sha256(path), dict(voxels), {value: sums[value] / count * step for value, count in voxels.items()})


def _check(merge: Merge, values: Sequence[int], report: Report) -> None:
    """Warns of what occurs nowhere; refuses a table that leaves no foreground."""
    unknown = [value for value, _ in merge.table if value not in values]
    if unknown:
        report(Warn(f"the table names {', '.join(map(str, unknown))}, which no label map shows"))
    shown = {output for value, output in merge.table if value in values} - {0}
    if not shown:
        raise InputError("the table leaves nothing but background: none of the values that become labels occurs in any label map")
    missing = [label.name for label in merge.labels.foreground if label.value not in shown]
    if missing:
        report(Warn(f"no label map shows {', '.join(missing)}"))


def _scheme(merge: Merge, maps: Sequence[LabelMap], values: Sequence[int], mirror: bool | None) -> tuple[Scheme, bool]:
    """What the values mean, and what mirroring and stripping may do so that labels stay true; and whether they are FreeSurfer's."""
    pairs = freesurfer_pairs([one.rightwards_mm for one in maps])
    numbered = bool(pairs)
    pairs = pairs or named_pairs(merge)
    wrong = one_sided(merge, pairs)
    if mirror and wrong:
        raise InputError(
            f"mirrored images would have {', '.join(wrong)} on the wrong side: which values are their counterparts is not known "
            "(they are where the values are FreeSurfer's, or a label of each side comes of one value); leave mirroring out"
        )
    becomes = {value: output for value, output in merge.table if output}
    brain = set(becomes) | (brain_values(values) if numbered else set())
    counts = {value: sum(one.voxels.get(value, 0) for one in maps) for value in values if value != 0}
    share = sum(n for value, n in counts.items() if value in brain) / sum(counts.values())
    # Two small organs alone are no stripped scan; and where nothing else is there, nothing can be stripped.
    strips = share < 1 and (numbered or share >= 0.5)
    mirrored = bool(numbered and not wrong) if mirror is None else mirror
    return Scheme(becomes, pairs, mirrored, frozenset(brain) if strips else None), numbered


def _sides(values: Sequence[int], numbered: bool, scheme: Scheme) -> str:
    told = f"{len(values)} values, {'numbered as FreeSurfer does' if numbered else 'not in the numbers of FreeSurfer'}; images are "
    told += ("mirrored, too" if scheme.mirrored else "not mirrored") + (
        ", and some show the brain alone"
        if scheme.brain and numbered
        else ", and some show the labelled structures alone"
        if scheme.brain
        else ""
    )
    return told


# ---- the folder


def _make(
    out: Path, scheme: Scheme, settings: Synthesis, seed: int, spacing_mm: float | None, unit: tuple[Path, str, Sequence[int]]
) -> None:
    path, name, numbers = unit
    source = anatomy(read_labels(path), scheme)
    for number in numbers:
        image, labels = synthetic(source, scheme, settings, seed=seed, name=name, number=number, spacing_mm=spacing_mm)
        image_path, labels_path = _files(out, name, number)
        write_image(image_path, image)
        write_labels(labels_path, labels)


def _files(out: Path, name: str, number: int) -> tuple[Path, Path]:
    file = f"{name}_s{number:03d}.nii.gz"
    return out / "imagesTr" / file, out / "labelsTr" / file


def _claim(out: Path, said: dict[str, Any]) -> dict[str, str]:
    """Writes what the folder's images are made of and how; returns the label maps that have images there, now or from earlier calls."""
    path = out / "synthesis.json"
    maps: dict[str, str] = {}
    if path.is_file():
        there = read_json(path, DatasetError)
        try:
            known = as_kind(there, SynthesisRecord).maps
        except ValueError as wrong:
            raise DatasetError(f"{path}: {wrong}; put the file back as it was, or choose another folder") from wrong
        for key in said:
            # Later maps may join; those that are there must be what they were.
            differs = there.get(key) != said[key] if key != "maps" else any(known.get(n, h) != h for n, h in said[key].items())
            if differs:
                raise DatasetError(
                    f"{path}: the images there were made otherwise ({_difference(key, there.get(key), said[key])}); repeat the call as it "
                    "was, or choose another folder"
                )
        maps = known
    elif (out / "dataset.json").exists() or any(niftis(out / part) for part in ("imagesTr", "labelsTr")):
        raise DatasetError(f"{out}: this folder holds another dataset; choose another folder for the synthetic images")
    maps = dict(sorted({**maps, **said["maps"]}.items()))
    write_json(path, said | {"maps": maps})
    return maps


def _difference(key: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        differs = [str(k) for k in {**there, **here} if there.get(k) != here.get(k) and (key != "maps" or (k in there and k in here))]
        if key == "settings":
            return ", ".join(f"{k} {there.get(k)} instead of {here.get(k)}" for k in differs)
        return f"other {key}: {', '.join(differs[:5])}"
    return f"{key} {there} instead of {here}" if len(f"{there}{here}") < 60 else f"other {key}"


def _source(folder: Path, paths: Mapping[str, Path]) -> dict[str, Any]:
    """Name, licence, reference and persons of the label maps, as far as their folder says them.

    Raises:
        DatasetError: if there is a subjects.json that names no person for one of them.
    """
    description = folder / "dataset.json"
    data = read_json(description, DatasetError) if description.is_file() else {}
    return {
        "name": str(data.get("name") or folder.resolve().name),
        "licence": str(data.get("licence") or data.get("license") or ""),
        "reference": str(data.get("reference") or ""),
        "persons": _persons(folder, data, paths),
    }


def _persons(folder: Path, data: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, str]:
    """The person of each label map, by its name; none where there is no subjects.json, which knows cases by the names of their images."""
    subjects = folder / "subjects.json"
    if not subjects.is_file():
        return {}
    cases = {case.labels: case.name for case in listed_cases(folder, data)} if "training" in data else {}
    table = person_table(subjects)
    found = {name: table.get(cases.get(path, name)) for name, path in paths.items()}
    without = [cases.get(paths[name], name) for name, person in found.items() if not isinstance(person, str | int)]
    if without:
        raise DatasetError(f"{subjects}: it names no person for {some(without)}; add them as text or whole numbers")
    return {name: str(person) for name, person in found.items()}


def _describe(out: Path, source: Mapping[str, Any], name: str | None, merge: Merge, maps: Sequence[str]) -> None:
    """Writes dataset.json and subjects.json of the images that are complete.

    Maps of earlier calls that the source no longer has keep the persons they had.
    """
    images, labels = ({path.name for path in niftis(out / part)} for part in ("imagesTr", "labelsTr"))
    files = ((one, _files(out, one, number)[0]) for one in maps for number in range(1, _MOST + 1))
    whole = images & labels
    made = {case_name(path): one for one, path in files if path.name in whole}
    subjects, persons = out / "subjects.json", source["persons"]
    before = person_table(subjects) if subjects.is_file() else {}
    cases = {name: persons.get(one, before.get(name, one)) for name, one in made.items()}
    write_json(subjects, cases)
    data = {
        "name": name or f"{source['name']} synthetic",
        "description": f"synthetic images from real label maps ({source['name']}): contrast, noise, artefacts and deformation are random, "
        "by uxnet synthesise; no image was measured. Say so wherever numbers from it are reported.",
        "reference": source["reference"],
        "licence": source["licence"],
        "release": f"{EDITION}.0",
        "tensorImageSize": "3D",
        "modality": {"0": "synthetic"},
        "labels": {"0": "background"} | merge.to_dict()["names"],
        "numTraining": len(cases),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases],
        "test": [],
    }
    write_json(out / "dataset.json", data)
