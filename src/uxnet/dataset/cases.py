"""What every layout of a dataset has in common: cases, files by name, and lists of files in a dataset.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uxnet.errors import DatasetError, shortened
from uxnet.io import CHANNEL_NAME, case_name, is_nifti, read_json


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


def listed_cases(root: Path, data: Mapping[str, Any]) -> list[Case]:
    """The cases of the "training" list of a dataset.json, as the Decathlon and AMOS have it.

    Raises:
        DatasetError: if it is no list of {"image": ..., "label": ...}.
    """
    where, entries = root / "dataset.json", data["training"]
    if not isinstance(entries, list):
        raise DatasetError(f'{where}: "training" must be a list of {{"image": ..., "label": ...}}, not {type(entries).__name__}')
    cases = []
    for n, entry in enumerate(entries):
        images = listed_paths(entry.get("image") if isinstance(entry, dict) else None, root)
        labels = listed_paths(entry.get("label") if isinstance(entry, dict) else None, root)
        if images is None or labels is None or len(labels) > 1 or not images + labels:
            raise DatasetError(f'{where}: entry {n} of "training" is not of the form {{"image": "FILE", "label": "FILE"}}: {entry!r}')
        first = (images + labels)[0]
        # macOS leaves ._NAME beside NAME in archives, and some descriptions list them.
        if first.name.startswith("."):
            continue
        channel = CHANNEL_NAME.fullmatch(case_name(first)) if len(images) > 1 else None
        name = channel[1] if channel else case_name(first)
        cases.append(Case(name, images, labels[0] if labels else None, name))
    return cases


def listed_paths(value: Any, root: Path) -> tuple[Path, ...] | None:
    """The paths under an entry's key: none, one or several; None if it is neither a path nor a list of paths."""
    items = [] if value is None else value if isinstance(value, list) else [value]
    return tuple(root / item for item in items) if all(isinstance(item, str) and item for item in items) else None


def person_table(path: Path) -> dict[str, Any]:
    """What a subjects.json says, {case: person}, alone or under the key "subject"; nothing of it is checked.

    Raises:
        DatasetError: if it cannot be read.
    """
    data = read_json(path, DatasetError)
    return data["subject"] if isinstance(data.get("subject"), dict) else data


def niftis(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted; none where there is no such folder."""
    return sorted(path for path in folder.iterdir() if is_nifti(path)) if folder.is_dir() else []


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
