"""What every layout of a dataset has in common: cases, files by name, and the labels and channels that a dataset.json names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from uxnet.errors import DatasetError, VolumeError, shortened
from uxnet.io import case_name, is_nifti, read_json, read_labels
from uxnet.labels import Labels
from uxnet.volume import Volume

ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One case: an image of one file (whose fourth axis may be channels) or one file a channel, with its label map.

    `images` is empty where a label map has no image, `labels` None where an image has no label map; files may be missing on disk.
    `person` is the case's own name where nothing says who is who.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path | None
    person: str


@dataclass(frozen=True)
class Found:
    """What the reader of a layout found in a folder.

    layout: "decathlon", "datalist", "nnunet_v1", "nnunet", "folders", "bids", "feta", "flare" or "amos".
    guessed: what the layout was guessed from; empty where dataset.json says it.
    labels: None where dataset.json or the label maps say what they are.
    label_names: names of label values, where a table in the folder has some.
    channels: their names; empty where dataset.json or the images say what they are.
    name, reference: of the dataset; empty where they are not known.
    persons: whether `Case.person` says who is who.
    left_out: a sentence on cases that are there but are not read; empty where all are.
    doubts: sentences on what a person should look at.
    """

    layout: str
    cases: tuple[Case, ...]
    guessed: str = ""
    labels: Labels | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    name: str = ""
    reference: str = ""
    persons: bool = False
    left_out: str = ""
    doubts: tuple[str, ...] = ()


def channel_names(where: Path, data: Mapping[str, Any]) -> tuple[str, ...]:
    """From nnU-Net's "channel_names" or the Decathlon's "modality"; none where neither is there.

    Raises:
        DatasetError: if it is no table from 0, 1, 2, ... to names.
    """
    key = "channel_names" if "channel_names" in data else "modality"
    table = data.get(key) or {}
    if isinstance(table, str):
        table = [table]
    if isinstance(table, list):
        table = dict(enumerate(table))
    try:
        named = {int(c): str(name) for c, name in table.items()}
    except (AttributeError, ValueError) as error:
        raise DatasetError(f'{where}: "{key}" must be a table from channel numbers to names, such as {{"0": "CT"}}') from error
    if sorted(named) != list(range(len(named))):
        raise DatasetError(f'{where}: "{key}" must count the channels 0, 1, 2, ... without gaps, not {sorted(named)}')
    return tuple(named[c] for c in range(len(named)))


def label_maps(cases: Iterable[Case]) -> Iterator[Volume]:
    """The label maps of cases, read one after another; without those that cannot be read, which are for the check to report."""
    for case in cases:
        if case.labels is not None:
            with contextlib.suppress(VolumeError):
                yield read_labels(case.labels)


def values_of(labels: Volume) -> dict[int, int]:
    """Value -> voxels of it in a label map."""
    values, voxels = np.unique(labels.array, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, voxels, strict=True)}


def person_table(path: Path) -> dict[str, Any]:
    """What a subjects.json says, {case: person}, alone or under the key "subject"; nothing of it is checked.

    Raises:
        DatasetError: if it cannot be read.
    """
    data = read_json(path, DatasetError)
    return data["subject"] if isinstance(data.get("subject"), dict) else data


def niftis(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted; none where there is no such folder. Folders that are called like files are none."""
    return sorted(path for path in folder.iterdir() if is_nifti(path) and not path.is_dir()) if folder.is_dir() else []


def by_name(paths: Iterable[Path], what: str, name_of: Callable[[Path], str] = case_name) -> dict[str, Path]:
    """Case -> its file.

    Raises:
        DatasetError: if two files are of one case; `what` says what they are.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = name_of(path)
        if name in found:
            raise DatasetError(f"{path}: {found[name].name} is {what} for the same case {name!r}; remove one of them")
        found[name] = path
    return found


def some(names: Iterable[str], most: int = 8) -> str:
    """Names for a message: "case a", "the cases a, b and 12 more"."""
    items = list(names)
    return f"{'case' if len(items) == 1 else 'the cases'} {shortened(items, most)}"
