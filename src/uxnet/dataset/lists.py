"""Cases that a dataset.json lists under "training": the Decathlon's layout, nnU-Net v1's (raw), and MONAI's datalists.

nnU-Net v1 lists imagesTr/CASE.nii.gz where a file a channel lies, imagesTr/CASE_0000.nii.gz. MONAI's lists may name several files an
image, and the fold that an entry validates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from uxnet.dataset.cases import Case, Found, channel_names
from uxnet.errors import DatasetError, plural, shortened
from uxnet.io import CHANNEL_NAME, case_name, json_value

_OTHER_LISTS = ("validation", "val", "test", "testing")


def description_in(root: Path) -> Path:
    """The JSON file that describes a folder: its dataset.json, or where there is none, the one other file with a "training" list.

    The file need not exist.

    Raises:
        DatasetError: if there is no dataset.json, and several files have such a list.
    """
    usual = root / "dataset.json"
    if usual.exists():
        return usual
    lists = [path for path in sorted(root.glob("*.json")) if not path.name.startswith(".") and _has_list(path)]
    if len(lists) > 1:
        names = shortened(path.name for path in lists)
        raise DatasetError(f"{root}: several files list training cases ({names}); copy the one that counts to dataset.json")
    return lists[0] if lists else usual


def _has_list(path: Path) -> bool:
    try:
        data = json_value(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    entries = data.get("training") if isinstance(data, dict) else None
    return isinstance(entries, list) and bool(entries) and all(isinstance(entry, dict) and "image" in entry for entry in entries)


def listed(root: Path, data: Mapping[str, Any], where: Path) -> Found:
    """The cases of a "training" list, and whose kind of list it is.

    Raises:
        DatasetError: as `listed_cases`, or if the list is empty.
    """
    if data["training"] == []:
        raise DatasetError(f'{where}: there are no cases: its "training" list is empty; list the images and label maps there')
    cases = listed_cases(root, data, where)
    folds = any(isinstance(entry, dict) and "fold" in entry for entry in data["training"])
    told = {path for entry in data["training"] if isinstance(entry, dict) for path in listed_paths(entry.get("image"), root) or ()}
    v1 = [case.images[0].name for case in cases if case.images and case.images[0] not in told]
    monai = folds or not {"labels", "modality", "channel_names"} & set(data)
    doubt = f'{where.name}: the "fold" of its entries is not read; to train on these folds, write them to a split file'
    return Found(
        "nnunet_v1" if v1 else "datalist" if monai else "decathlon",
        tuple(cases),
        guessed=f"images listed without a channel's number that lie there with it, {v1[0]}" if v1 else _other_name(where),
        left_out=_other_lists(data, where),
        doubts=(doubt,) if folds else (),
    )


def _other_name(where: Path) -> str:
    return "" if where.name == "dataset.json" else where.name


def listed_cases(root: Path, data: Mapping[str, Any], where: Path | None = None) -> list[Case]:
    """The cases of the "training" list of a dataset.json.

    Args:
        root: what paths are relative to.
        where: the file; by default root/dataset.json.

    Raises:
        DatasetError: if it is no list of {"image": ..., "label": ...}, or its paths are another machine's.
    """
    where, entries = where or root / "dataset.json", data["training"]
    if not isinstance(entries, list):
        raise DatasetError(f'{where}: "training" must be a list of {{"image": ..., "label": ...}}, not {type(entries).__name__}')
    cases, channels = [], len(channel_names(where, data))
    for n, entry in enumerate(entries):
        images = listed_paths(entry.get("image") if isinstance(entry, dict) else None, root)
        labels = listed_paths(entry.get("label") if isinstance(entry, dict) else None, root)
        if images is None or labels is None or len(labels) > 1 or not images + labels:
            raise DatasetError(f'{where}: entry {n} of "training" is not of the form {{"image": "FILE", "label": "FILE"}}: {entry!r}')
        first = (images + labels)[0]
        # macOS leaves ._NAME beside NAME in archives, and some descriptions list them.
        if first.name.startswith("._"):
            continue
        channel = CHANNEL_NAME.fullmatch(case_name(first)) if len(images) > 1 else None
        name = channel[1] if channel else case_name(first)
        cases.append(Case(name, _by_channel(images, channels), labels[0] if labels else None, name))
    _refuse_elsewhere(where, root, cases)
    return cases


def every_listed(root: Path, data: Mapping[str, Any]) -> Iterator[Path]:
    """Every path that any list of a dataset.json names, to train on or not."""
    for key in ("training", *_OTHER_LISTS):
        for entry in data[key] if isinstance(data.get(key), list) else ():
            for value in (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry,):
                yield from listed_paths(value, root) or ()


def listed_paths(value: Any, root: Path) -> tuple[Path, ...] | None:
    """The paths under an entry's key: none, one or several; None if it is neither a path nor a list of paths."""
    items = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(_path(root, item) for item in items) if all(isinstance(item, str) and item for item in items) else None


def _path(root: Path, item: str) -> Path:
    path = root / item
    # A backslash separates folders on Windows, and elsewhere it may be part of a name.
    return root / PureWindowsPath(item).as_posix() if "\\" in item and not path.exists() else path


def _by_channel(images: Sequence[Path], channels: int) -> tuple[Path, ...]:
    """The files of an image: where the one that is listed is not there, but numbered ones are (nnU-Net v1), those."""
    if len(images) != 1 or images[0].exists():
        return tuple(images)
    name = case_name(images[0])
    numbered = (images[0].with_name(f"{name}_{c:04d}{images[0].name.removeprefix(name)}") for c in itertools.count())
    files = [next(numbered) for _ in range(channels)]
    files += itertools.takewhile(Path.exists, numbered)
    return tuple(files if any(file.exists() for file in files) else images)


def _refuse_elsewhere(where: Path, root: Path, cases: Sequence[Case]) -> None:
    """Refuses a list whose paths are all absolute and lead nowhere: it was written on another machine."""
    paths = [path for case in cases for path in (*case.images, *([case.labels] if case.labels else []))]
    inside = [PurePosixPath(path.relative_to(root)) if path.is_relative_to(root) else path for path in paths]
    absolute = [path for path in inside if path.is_absolute() or PureWindowsPath(path).drive]
    if not paths or len(absolute) < len(paths) or any(path.exists() for path in paths):
        return
    first = absolute[0]
    tails = (Path(*first.parts[n:]) for n in range(1, len(first.parts)))
    here = next((tail.as_posix() for tail in tails if (root / tail).exists()), "imagesTr/CASE.nii.gz")
    raise DatasetError(
        f"{where}: its paths are of another machine, and nothing is there (the first is {first}); make them relative to this folder, "
        f"such as {here}"
    )


def _other_lists(data: Mapping[str, Any], where: Path) -> str:
    """A sentence on the lists beside "training" whose cases have label maps; the others are there to be predicted."""
    lists = {key: data[key] for key in _OTHER_LISTS if isinstance(data.get(key), list)}
    labelled = {key: sum(isinstance(entry, dict) and bool(entry.get("label")) for entry in entries) for key, entries in lists.items()}
    said = [f'{plural(n, "case")} of "{key}"' for key, n in labelled.items() if n]
    return f'{where.name}: left out: {", ".join(said)}, label maps and all; read is "training"' if said else ""
