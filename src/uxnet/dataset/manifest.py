"""A folder of cases -> a Manifest: which files make up each case, what the labels mean, and who is who.

These layouts are known, told apart by `dataset.json` and by names:

    decathlon   dataset.json lists image and label files under "training" (Medical Segmentation Decathlon)
    datalist    the same as MONAI writes it: with "fold", or without labels and channels, and perhaps in a file of another name
    nnunet_v1   the same, while the images that lie there have a channel's number (nnU-Net v1, raw)
    nnunet      dataset.json has "channel_names" and "file_ending"; imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz (nnU-Net v2, raw)
    folders     no dataset.json: `images` or `imagesTr`, `labels` or `labelsTr`, matched by name
    bids        no dataset.json: sub-*/anat, and label maps (*_dseg) there or in derivatives (`bids.py`)
    feta, flare, amos
                as these challenges hand out their data (`challenges.py`)

Reading a manifest looks at names, not at voxels, but where nothing names the labels (they are then the values that are found) and
where names look like a challenge's (some label maps then have to bear it out). What is wrong with single files is for
`check.check_dataset` to say.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uxnet.dataset.bids import bids_in
from uxnet.dataset.cases import Case, Found, channel_names, label_maps, person_table, some, values_of
from uxnet.dataset.challenges import challenge_in
from uxnet.dataset.layouts import FOLDERS, folders, is_nnunet, nnunet, usual_folders
from uxnet.dataset.lists import description_in, listed
from uxnet.dataset.unused import unused_files
from uxnet.errors import DatasetError, LabelsError, VolumeError, plural, shortened
from uxnet.io import images_in, read_image, read_json, unread_message
from uxnet.labels import Labels, labels_from_dataset_json, labels_from_json

__all__ = ["Case", "Manifest", "read_dataset", "some"]

_ASKED = 5  # images that are read to see how many channels there are

_LAYOUTS = {
    "decathlon": "Medical Segmentation Decathlon",
    "datalist": "MONAI datalist",
    "nnunet_v1": "nnU-Net v1",
    "nnunet": "nnU-Net v2",
    "folders": "files matched by name",
    "bids": "BIDS",
    "feta": "FeTA 2021 as downloaded",
    "flare": "FLARE 2021 as downloaded",
    "amos": "AMOS 2022 as downloaded",
}


@dataclass(frozen=True)
class Manifest:
    """A dataset: its cases by name, its labels and channels.

    `layout` is one of those above, and `guessed` what it was guessed from where no dataset.json says it; `grouped_by` is "person" where
    the layout, subjects.json or a pattern says who is who, else "case". `left_out` is a sentence on cases that the folder has and the
    layout's rule leaves out; `doubts` are sentences on what a person should look at, such as cases that may be missing.
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
    guessed: str = ""

    @property
    def summary(self) -> str:
        """A line that says what was read: "Tiny: 10 cases, 2 classes; layout: nnU-Net v2"."""
        whose = f" of {plural(len(self.persons), 'person')}" if self.grouped_by == "person" else ""
        layout = _LAYOUTS[self.layout] + (f" (guessed from {self.guessed})" if self.guessed else "")
        classes = plural(len(self.labels.classes), "class", "classes")
        return f"{self.name}: {plural(len(self.cases), 'case')}{whose}, {classes}; layout: {layout}"

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
        raise DatasetError(f"{self.root}: there is no case {name!r} among its {plural(len(self.cases), 'case')}")


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
    if root.is_file():
        raise DatasetError(f"{root}: is a file; name the folder of the dataset, {root.parent} for example")
    if not root.is_dir():
        raise DatasetError(f"{root}: there is no such folder; name the folder that holds dataset.json, or images and labels")
    where = description_in(root)
    data = read_json(where, DatasetError) if where.is_file() else {}
    found = _found(root, data, where)
    where = where if data else root
    _refuse_unusable(found.cases, where, root)
    known = "person" if found.persons else "case"
    cases, grouped_by = _with_persons(sorted(found.cases, key=lambda case: case.name), root, group_by, known)
    named = found.channels or channel_names(where, data)
    return Manifest(
        root=root,
        name=str(data.get("name") or data.get("dataset_name") or found.name or root.resolve().name),
        layout=found.layout,
        cases=cases,
        labels=_labels(root, data, cases, found, where),
        channel_names=named or tuple(f"channel {c}" for c in range(_count_channels(cases))),
        grouped_by=grouped_by,
        licence=str(data.get("licence") or data.get("license") or ""),
        reference=str(data.get("reference") or found.reference),
        left_out=found.left_out,
        doubts=(*found.doubts, *unused_files(root, data, found, where)),
        guessed=found.guessed,
    )


def _found(root: Path, data: Mapping[str, Any], where: Path) -> Found:
    challenge = challenge_in(root, data, where)
    if challenge is not None:
        return challenge
    if data:
        if is_nnunet(root, data):
            return nnunet(root, data, where)
        if "training" in data:
            return listed(root, data, where)
        raise DatasetError(
            f'{where}: it has neither a "training" list (Medical Segmentation Decathlon) nor "channel_names" and "file_ending" '
            "(nnU-Net v2), so its layout is not known; add one, or remove the file to match images and labels by name"
        )
    # A folder of this name goes before subjects' folders that may lie beside it.
    bids = None if any((root / name).is_dir() for name in FOLDERS) else bids_in(root)
    return bids or folders(root, *usual_folders(root))


def _refuse_unusable(cases: Sequence[Case], where: Path, root: Path) -> None:
    if not cases:
        folders = [root / name for name in FOLDERS if (root / name).is_dir()]
        unread = [path for folder in folders for path in images_in(folder).unread]
        why = unread_message(unread) if unread else "expected .nii or .nii.gz images with label maps, in imagesTr and labelsTr for example"
        raise DatasetError(f"{where}: there are no cases; {why}")
    its = "its one case has" if len(cases) == 1 else f"its {len(cases)} cases have"
    if not any(case.images for case in cases):
        raise DatasetError(f"{where}: {its} label maps but no images, and both are needed; add the images")
    if not any(case.labels for case in cases):
        raise DatasetError(f"{where}: {its} images but no label maps, and both are needed; add the label maps")
    twice = sorted(name for name, n in Counter(case.name for case in cases).items() if n > 1)
    if twice:
        files = {path for case in cases if case.name == twice[0] for path in case.images[:1]}
        way_out = "give each image a file name of its own" if len(files) > 1 else "list it once"
        raise DatasetError(f"{where}: found more than once: {some(twice)}; {way_out}")
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


def _labels(root: Path, data: Mapping[str, Any], cases: tuple[Case, ...], found: Found, description: Path) -> Labels:
    own = root / "labels.json"
    where = own if own.is_file() else description
    try:
        if own.is_file():
            said = read_json(own, DatasetError)
            if "model" in said and "labels" in data:
                raise DatasetError(f"{own}: was written by a prediction, and {description} says what the labels are; remove one")
            return labels_from_json(said)
        if found.labels is not None:
            return found.labels
        # A MONAI datalist lists files alone.
        if data.get("labels") or found.layout == "nnunet":
            return labels_from_dataset_json(data)
        return _seen_labels(root, cases, found.label_names)
    except LabelsError as error:
        raise DatasetError(f"{where}: {error}") from error


def _seen_labels(root: Path, cases: tuple[Case, ...], names: Mapping[int, str]) -> Labels:
    """The labels that the label maps hold, called as `names` says, else after their values."""
    values = {value for labelled in label_maps(cases) for value in values_of(labelled)} - {0}
    if not values:
        raise DatasetError(f"{root}: no label map can be read and has values other than 0, so there are no labels to learn")
    named = {value: names.get(value, f"label {value}") for value in sorted(values)}
    if twice := [value for value, name in named.items() if list(named.values()).count(name) > 1 or name.lower() == "background"]:
        raise DatasetError(
            f"{root}: the name {named[twice[0]]!r} is not one label's alone (values {shortened(twice)}); correct the *_dseg.tsv"
        )
    return labels_from_dataset_json({"labels": {"background": 0, **{name: value for value, name in named.items()}}})


def _count_channels(cases: tuple[Case, ...]) -> int:
    """What most cases have; of one-file cases some are read, so that one odd file does not make the others wrong."""
    usual = Counter(len(case.images) for case in cases if case.images).most_common(1)[0][0]
    found: list[int] = []
    for case in cases if usual == 1 else ():
        if len(case.images) == 1 and len(found) < _ASKED:
            with contextlib.suppress(VolumeError):
                found.append(read_image(*case.images).channels)
    return Counter(found).most_common(1)[0][0] if found else usual
