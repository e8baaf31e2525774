"""A folder of cases -> a Manifest: which files make up each case, what the labels mean, and who is who.

These layouts are known, told apart by `dataset.json` and by names:

    decathlon   dataset.json lists image and label files under "training" (Medical Segmentation Decathlon)
    nnunet      dataset.json has "channel_names" and "file_ending"; imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz (nnU-Net v2, raw)
    folders     no dataset.json: `images` or `imagesTr`, `labels` or `labelsTr`, matched by name
    feta, flare, amos
                as these challenges hand out their data (`challenges.py`)

Reading a manifest looks at names, not at voxels (but for `folders` without a labels.json, whose labels are the values that are
found). What is wrong with single files is for `check.check_dataset` to say.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from uxnet.dataset.cases import Case, by_name, listed_cases, listed_paths, niftis, person_table, some
from uxnet.dataset.challenges import Challenge, challenge_in
from uxnet.errors import DatasetError, LabelsError, VolumeError, shortened
from uxnet.io import CHANNEL_NAME, case_name, read_image, read_json, read_labels
from uxnet.labels import Label, Labels, labels_from_dataset_json, labels_from_json

__all__ = ["Case", "Manifest", "read_dataset", "some"]

_ENDINGS = (".nii.gz", ".nii")
_ASKED = 5  # images that are read to see how many channels there are


@dataclass(frozen=True)
class Manifest:
    """A dataset: its cases by name, its labels and channels.

    `layout` is "decathlon", "nnunet", "folders", "feta", "flare" or "amos"; `grouped_by` is "person" where the layout, subjects.json
    or a pattern says who is who, else "case". `left_out` is a sentence on cases that the folder has and the layout's rule leaves out;
    `doubts` are sentences on cases that may be missing.
    """

    root: Path
    name: str
    layout: str
    cases: tuple[Case, ...]
    labels: Labels
    channel_names: tuple[str, ...]
    grouped_by: str = "case"
    licence: str = ""
    reference: str = ""
    left_out: str = ""
    doubts: tuple[str, ...] = ()

    @property
    def persons(self) -> tuple[str, ...]:
        """Each person once, sorted."""
        return tuple(sorted({case.person for case in self.cases}))

    def case(self, name: str) -> Case:
        """The case of that name.

        Raises:
            DatasetError: if there is none.
        """
        for case in self.cases:
            if case.name == name:
                return case
        raise DatasetError(f"{self.root}: there is no case {name!r} among its {len(self.cases)} cases")


def read_dataset(root: str | Path, *, group_by: str | None = None) -> Manifest:
    """The manifest of a dataset's folder, its cases sorted by name.

    Args:
        root: the folder that holds dataset.json, or an images and a labels folder, or a challenge's own folders.
        group_by: a regular expression that is searched in each case's name; its first group (the whole match where there is none)
            is the person. It goes before subjects.json.

    A `labels.json` in the folder ({"labels": {"liver": 1}} or the form of `Labels.to_dict`) goes before the labels of dataset.json and
    of a challenge.
    A `subjects.json` ({case: person}, alone or under the key "subject") says which cases are of one person.

    Raises:
        DatasetError: if the folder's layout is not known, its JSON files are wrong, there are no cases, images or label maps, two
            cases have one name, or it is not known of each case whose it is.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such folder; name the folder that holds dataset.json, or images and labels")
    description = root / "dataset.json"
    data = read_json(description, DatasetError) if description.is_file() else {}
    challenge = challenge_in(root, data)
    if challenge is not None:
        layout, found = challenge.layout, list(challenge.cases)
    elif not description.is_file():
        layout, found = "folders", _folder_cases(root)
    elif _is_nnunet(root, data):
        layout, found = "nnunet", _nnunet_cases(root, data)
    elif "training" in data:
        layout, found = "decathlon", listed_cases(root, data)
    else:
        raise DatasetError(
            f'{description}: it has neither a "training" list (Medical Segmentation Decathlon) nor "channel_names" and "file_ending" '
            "(nnU-Net v2), so its layout is not known; add one, or remove the file to match images and labels by name"
        )
    where = description if data else root
    _refuse_unusable(found, where)
    known = "person" if challenge is not None and challenge.persons else "case"
    cases, grouped_by = _with_persons(sorted(found, key=lambda case: case.name), root, group_by, known)
    named = _channel_names(where, data) if challenge is None else (challenge.channel,)
    return Manifest(
        root=root,
        name=str(data.get("name") or data.get("dataset_name") or (challenge and challenge.name) or root.resolve().name),
        layout=layout,
        cases=cases,
        labels=_labels(root, data, cases, challenge),
        channel_names=named or tuple(f"channel {c}" for c in range(_count_channels(cases))),
        grouped_by=grouped_by,
        licence=str(data.get("licence") or data.get("license") or ""),
        reference=str(data.get("reference") or (challenge and challenge.reference) or ""),
        left_out=challenge.left_out if challenge is not None else "",
        doubts=_missing(root, data, cases),
    )


def _missing(root: Path, data: Mapping[str, Any], cases: tuple[Case, ...]) -> tuple[str, ...]:
    """Whether dataset.json counts other cases than there are, and whether images lie in its folder that it does not list."""
    doubts = []
    told = data.get("numTraining")
    if isinstance(told, int) and told != len(cases):
        doubts.append(f"dataset.json counts {told} training cases (numTraining), and {len(cases)} are here; is the copy whole?")
    if "training" in data and (root / "imagesTr").is_dir():
        listed = {image.resolve() for case in cases for image in case.images}
        lone = [path.name for path in niftis(root / "imagesTr") if path.resolve() not in listed]
        if lone:
            doubts.append(f"in imagesTr, and not listed in dataset.json: {shortened(lone, 3)}; they are left out")
    return tuple(doubts)


def _is_nnunet(root: Path, data: Mapping[str, Any]) -> bool:
    if "channel_names" not in data or "file_ending" not in data:
        return False
    # Converted datasets may keep the Decathlon's list beside nnU-Net's keys: then the files' names decide.
    return "training" not in data or any((root / "imagesTr").glob(f"*_0000{data['file_ending']}"))


def _nnunet_cases(root: Path, data: Mapping[str, Any]) -> list[Case]:
    where, ending, table = root / "dataset.json", data["file_ending"], data.get("dataset")
    if ending not in _ENDINGS:
        raise DatasetError(f'{where}: "file_ending" is {ending!r}, but only .nii.gz and .nii can be read; convert the files')
    if table is not None:
        return _explicit_cases(root, table)
    channels = len(_channel_names(where, data))
    highest: dict[str, int] = {}
    for path in niftis(root / "imagesTr"):
        match = CHANNEL_NAME.fullmatch(case_name(path))
        if match is None or not path.name.endswith(ending):
            raise DatasetError(f"{path}: in nnU-Net's layout an image is named CASE_0000{ending}, a channel a file; rename it")
        highest[match[1]] = max(highest.get(match[1], 0), int(match[2]))
    names = {*highest, *(case_name(path) for path in niftis(root / "labelsTr"))}
    # Expected names rather than found ones, so that a missing channel or label map is reported by its name.
    return [
        Case(
            name,
            tuple(root / "imagesTr" / f"{name}_{c:04d}{ending}" for c in range(max(channels, highest.get(name, 0) + 1))),
            root / "labelsTr" / f"{name}{ending}",
            name,
        )
        for name in names
    ]


def _explicit_cases(root: Path, table: Any) -> list[Case]:
    where, cases = root / "dataset.json", []
    if not isinstance(table, dict):
        raise DatasetError(f'{where}: "dataset" must be a table of cases, not {type(table).__name__}')
    for name, entry in table.items():
        images = listed_paths(entry.get("images") if isinstance(entry, dict) else None, root)
        labels = listed_paths(entry.get("label") if isinstance(entry, dict) else None, root)
        if not images or not labels or len(labels) > 1:
            raise DatasetError(f'{where}: case {name!r} of "dataset" is not of the form {{"images": ["FILE", ...], "label": "FILE"}}')
        cases.append(Case(str(name), images, labels[0], str(name)))
    return cases


def _folder_cases(root: Path) -> list[Case]:
    images = next((root / name for name in ("images", "imagesTr") if (root / name).is_dir()), None)
    labels = next((root / name for name in ("labels", "labelsTr") if (root / name).is_dir()), None)
    if images is None or labels is None:
        lacks = "image folder (images or imagesTr)" if images is None else "label folder (labels or labelsTr)"
        raise DatasetError(f"{root}: it has no dataset.json and no {lacks}, so there are no pairs of image and label map to find")
    label_of = by_name(niftis(labels), "a label map")
    files: dict[str, dict[int, Path]] = {}
    numbered: set[str] = set()
    for path in niftis(images):
        name, channel = case_name(path), 0
        match = CHANNEL_NAME.fullmatch(name)
        # Four digits are a channel only where the label map goes without them: "scan_0042" may be a name of its own.
        if match and match[1] in label_of and name not in label_of:
            name, channel = match[1], int(match[2])
            numbered.add(name)
        if channel in files.setdefault(name, {}):
            raise DatasetError(f"{path}: {files[name][channel].name} is an image of the same case {name!r}; remove one of them")
        files[name][channel] = path
    if files and label_of and not set(files) & set(label_of):
        raise DatasetError(
            f"{root}: no label map has the name of an image (the first of each: {min(files)!r} and {min(label_of)!r}); "
            "give both the same name, or list the pairs in a dataset.json"
        )
    # As in nnU-Net's layout, expected names: what is missing in one case would else shift its other channels.
    highest = max((channel for name in numbered for channel in files[name]), default=0)
    for name in numbered:
        there, one = files[name], min(files[name].values())
        ending = one.name.removeprefix(case_name(one))
        files[name] = {c: there.get(c, images / f"{name}_{c:04d}{ending}") for c in range(highest + 1)}
    return [Case(name, tuple(files.get(name, {}).values()), label_of.get(name), name) for name in {*files, *label_of}]


def _refuse_unusable(cases: list[Case], where: Path) -> None:
    if not cases:
        raise DatasetError(f"{where}: there are no cases; expected .nii or .nii.gz images with label maps")
    if not any(case.images for case in cases):
        raise DatasetError(f"{where}: its {len(cases)} cases have label maps but no images, and both are needed; add the images")
    if not any(case.labels for case in cases):
        raise DatasetError(f"{where}: its {len(cases)} cases have images but no label maps, and both are needed; add the label maps")
    twice = sorted(name for name, n in Counter(case.name for case in cases).items() if n > 1)
    if twice:
        raise DatasetError(f"{where}: found more than once: {some(twice)}; each case needs a name of its own")
    # Names become the names of files in caches and results.
    unsafe = sorted(case.name for case in cases if case.name != Path(case.name).name or case.name.startswith("."))
    if unsafe:
        raise DatasetError(f"{where}: {some(unsafe)} cannot be file names; rename the cases")


def _with_persons(cases: list[Case], root: Path, group_by: str | None, known: str) -> tuple[tuple[Case, ...], str]:
    """The cases, each with its person; `known` is how they are grouped where neither a pattern nor a file says who is who."""
    subjects = root / "subjects.json"
    if group_by is not None:
        persons = _persons_by_pattern(cases, root, group_by)
    elif subjects.is_file():
        persons = _persons_by_table(cases, subjects)
    else:
        return tuple(cases), known
    return tuple(replace(case, person=persons[case.name]) for case in cases), "person"


def _persons_by_pattern(cases: list[Case], root: Path, group_by: str) -> dict[str, str]:
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise DatasetError(f"{root}: the pattern {group_by!r} for persons is no regular expression ({error})") from error
    matches = {case.name: pattern.search(case.name) for case in cases}
    # An optional group may match nothing, and an empty name is nobody.
    persons = {name: (m[1] if pattern.groups else m[0]) for name, m in matches.items() if m}
    without = [case.name for case in cases if not persons.get(case.name)]
    if without:
        raise DatasetError(f"{root}: the pattern {group_by!r} finds no person in {some(without)}; change the pattern")
    return persons


def _persons_by_table(cases: list[Case], path: Path) -> dict[str, str]:
    table = person_table(path)
    without = [case.name for case in cases if not isinstance(table.get(case.name), str | int)]
    if without:
        raise DatasetError(f"{path}: it names no person for {some(without)}; add them as text or whole numbers")
    return {case.name: str(table[case.name]) for case in cases}


def _labels(root: Path, data: Mapping[str, Any], cases: tuple[Case, ...], challenge: Challenge | None) -> Labels:
    own = root / "labels.json"
    where = own if own.is_file() else root / "dataset.json"
    try:
        if own.is_file():
            said = read_json(own, DatasetError)
            if "model" in said and "labels" in data:
                raise DatasetError(f"{own}: was written by a prediction, and {root / 'dataset.json'} says what the labels are; remove one")
            return labels_from_json(said)
        if challenge is not None and challenge.labels is not None:
            return challenge.labels
        if data:
            return labels_from_dataset_json(data)
    except LabelsError as error:
        raise DatasetError(f"{where}: {error}") from error
    values: set[int] = set()
    for case in cases:
        if case.labels is not None:
            # Damaged files are for the check to report.
            with contextlib.suppress(VolumeError):
                values |= {int(v) for v in np.unique(read_labels(case.labels).array)}
    values -= {0}
    if not values:
        raise DatasetError(f"{root}: no label map can be read and has values other than 0, so there are no labels to learn")
    return Labels(tuple(Label(f"label {v}", v) for v in sorted(values)))


def _channel_names(where: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
    """From nnU-Net's "channel_names" or the Decathlon's "modality"; none where neither is there."""
    key = "channel_names" if "channel_names" in data else "modality"
    table = data.get(key) or {}
    if isinstance(table, list):
        table = dict(enumerate(table))
    try:
        named = {int(c): str(name) for c, name in table.items()}
    except (AttributeError, ValueError) as error:
        raise DatasetError(f'{where}: "{key}" must be a table from channel numbers to names, such as {{"0": "CT"}}') from error
    if sorted(named) != list(range(len(named))):
        raise DatasetError(f'{where}: "{key}" must count the channels 0, 1, 2, ... without gaps, not {sorted(named)}')
    return tuple(named[c] for c in range(len(named)))


def _count_channels(cases: tuple[Case, ...]) -> int:
    """What most cases have; of one-file cases some are read, so that one odd file does not make the others wrong."""
    usual = Counter(len(case.images) for case in cases if case.images).most_common(1)[0][0]
    found: list[int] = []
    for case in cases if usual == 1 else ():
        if len(case.images) == 1 and len(found) < _ASKED:
            with contextlib.suppress(VolumeError):
                found.append(read_image(*case.images).channels)
    return Counter(found).most_common(1)[0][0] if found else usual
