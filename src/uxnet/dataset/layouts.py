"""Datasets whose files go by their folders and names: nnU-Net v2's (raw), and plain folders of images and label maps."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uxnet.dataset.cases import ENDINGS, Case, Found, by_name, channel_names, niftis
from uxnet.dataset.lists import listed_paths
from uxnet.errors import DatasetError, VolumeError, plural
from uxnet.io import CHANNEL_NAME, case_name, channels_of

_IMAGES, _LABELS = ("images", "imagesTr"), ("labels", "labelsTr")

FOLDERS = (*_IMAGES, *_LABELS, "TrainingImg", "TrainingMask")
"""Names of folders in which images and label maps of a dataset lie."""


def is_nnunet(root: Path, data: Mapping[str, Any]) -> bool:
    """Whether a dataset.json is nnU-Net v2's."""
    if "training" not in data:
        return "channel_names" in data or "file_ending" in data
    # Converted datasets may keep the Decathlon's list beside nnU-Net's keys: then the files' names decide.
    numbered = any(case_name(path).endswith("_0000") for path in niftis(root / "imagesTr"))
    return "channel_names" in data and "file_ending" in data and numbered


def nnunet(root: Path, data: Mapping[str, Any], where: Path) -> Found:
    """The cases of imagesTr and labelsTr, or of the table "dataset".

    Files are found by their names. What "file_ending" says is only held against them.

    Raises:
        DatasetError: if there are no such files, or one has a name that does not say its case.
    """
    if data.get("dataset") is not None:
        return Found("nnunet", tuple(_explicit_cases(root, data["dataset"], where)))
    images, labels = niftis(root / "imagesTr"), niftis(root / "labelsTr")
    ending, doubts = _ending(where, data, [*images, *labels])
    label_of = by_name(labels, "a label map")
    files, unnumbered = _by_case(images, label_of, ending)
    named = len(channel_names(where, data))
    cases = []
    for name in {*files, *label_of}:
        there = files.get(name, {})
        if name in unnumbered or _holds_all(there, named):
            of_case: tuple[Path, ...] = (there[0],)
        else:  # expected names rather than found ones, so that a missing channel is reported by its name
            count = max(named, max(there, default=0) + 1)
            of_case = tuple(there.get(c, root / "imagesTr" / f"{name}_{c:04d}{ending}") for c in range(count))
        cases.append(Case(name, of_case, label_of.get(name, root / "labelsTr" / f"{name}{ending}"), name))
    if unnumbered:
        first = files[min(unnumbered)][0]
        doubts.append(
            f"imagesTr: {plural(len(unnumbered), 'image')} without a channel's number ({first.name}), read with all channels of the file; "
            f"nnU-Net itself expects a file a channel ({case_name(first)}_0000{ending})"
        )
    return Found("nnunet", tuple(cases), doubts=tuple(doubts))


def folders(root: Path, images: Path, labels: Path) -> Found:
    """Images and label maps of two folders, matched by name.

    Raises:
        DatasetError: if no names match, or two images are of one case.
    """
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
        _file(files, name, channel, path)
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
    cases = [Case(name, tuple(files.get(name, {}).values()), label_of.get(name), name) for name in {*files, *label_of}]
    return Found("folders", tuple(cases), guessed=f"the folders {images.name} and {labels.name}")


def usual_folders(root: Path) -> tuple[Path, Path]:
    """The folders of images and of label maps in a folder without a description.

    Raises:
        DatasetError: if one of them is missing; it says where there is a description, if that is one folder below.
    """
    images = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
    labels = next((root / name for name in _LABELS if (root / name).is_dir()), None)
    if images is None or labels is None:
        lacks = "image folder (images or imagesTr)" if images is None else "label folder (labels or labelsTr)"
        below = sorted(path.parent for name in ("dataset.json", *_IMAGES) for path in root.glob(f"*/{name}"))
        hint = f"; name the folder of a dataset, such as {below[0]}" if below else ""
        raise DatasetError(f"{root}: it has no dataset.json and no {lacks}, so there are no pairs of image and label map to find{hint}")
    return images, labels


def _ending(where: Path, data: Mapping[str, Any], files: Sequence[Path]) -> tuple[str, list[str]]:
    """The ending of a dataset's files, and doubts where dataset.json says another.

    Raises:
        DatasetError: if "file_ending" is not NIfTI's.
    """
    told = data.get("file_ending")
    ending = "." + told.lower().lstrip(".") if isinstance(told, str) else ""
    there = Counter(path.name.removeprefix(case_name(path)) for path in files)
    usual = there.most_common(1)[0][0] if there else ENDINGS[0]
    right = f'set "file_ending" to "{usual}"'
    if told is not None and ending not in ENDINGS:
        end = f"the files here end in {usual}" if there else f"only {' and '.join(ENDINGS)} can be read"
        raise DatasetError(f'{where}: "file_ending" is {told!r}, and {end}; {"" if there else "convert the files, then "}{right}')
    if told is None:
        return usual, [f'{where.name}: there is no "file_ending", which nnU-Net needs; {right}']
    others = [path for path in files if not path.name.endswith(ending)]
    if len({end.lower() for end in there}) > 1:
        other = next(path for path in files if not path.name.lower().endswith(ending))
        said = f"{len(others)} of {len(files)} files end otherwise ({other.name})"
        return ending, [f'{where.name}: "file_ending" is {told!r}, and {said}; all are read']
    if others or told != ending:
        return usual, [f'{where.name}: "file_ending" is {told!r}, and the files end in {usual}; they are read; for nnU-Net, {right}']
    return ending, []


def _by_case(images: Sequence[Path], label_of: Mapping[str, Path], ending: str) -> tuple[dict[str, dict[int, Path]], set[str]]:
    """Case -> channel -> file; and the cases whose image has a name without a channel's number, as its label map has."""
    files: dict[str, dict[int, Path]] = {}
    unnumbered: set[str] = set()
    for path in images:
        name = case_name(path)
        match = CHANNEL_NAME.fullmatch(name)
        if name in label_of and (match is None or match[1] not in label_of):
            unnumbered.add(name)
            _file(files, name, 0, path)
        elif match is not None:
            _file(files, match[1], int(match[2]), path)
        else:
            raise DatasetError(
                f"{path}: in nnU-Net's layout an image is named CASE_0000{ending}, a channel a file, and no label map is called {name}; "
                "rename it, or add its label map"
            )
    return files, unnumbered


def _file(files: dict[str, dict[int, Path]], name: str, channel: int, path: Path) -> None:
    of_case = files.setdefault(name, {})
    if channel in of_case:
        raise DatasetError(f"{path}: {of_case[channel].name} is an image of the same case {name!r}; remove one of them")
    of_case[channel] = path


def _holds_all(there: Mapping[int, Path], channels: int) -> bool:
    """Whether the one file of a case holds all channels along its fourth axis, as the Decathlon's do."""
    if channels < 2 or set(there) != {0}:
        return False
    with contextlib.suppress(VolumeError):
        return channels_of(there[0]) == channels
    return False


def _explicit_cases(root: Path, table: Any, where: Path) -> list[Case]:
    cases = []
    if not isinstance(table, dict):
        raise DatasetError(f'{where}: "dataset" must be a table of cases, not {type(table).__name__}')
    for name, entry in table.items():
        images = listed_paths(entry.get("images") if isinstance(entry, dict) else None, root)
        labels = listed_paths(entry.get("label") if isinstance(entry, dict) else None, root)
        if not images or not labels or len(labels) > 1:
            raise DatasetError(f'{where}: case {name!r} of "dataset" is not of the form {{"images": ["FILE", ...], "label": "FILE"}}')
        cases.append(Case(str(name), images, labels[0], str(name)))
    return cases
