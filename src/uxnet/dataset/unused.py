"""What lies beside a dataset's files and is in no case: other formats, files that no list names, folders below; so that it is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from uxnet.dataset.cases import Found, niftis
from uxnet.dataset.layouts import FOLDERS
from uxnet.dataset.lists import every_listed
from uxnet.errors import plural, shortened
from uxnet.io import images_in, is_nifti, unread_message


def unused_files(root: Path, data: Mapping[str, Any], found: Found, where: Path) -> Iterator[str]:
    """Sentences on images and label maps that are in no case, and on a count in dataset.json that is another."""
    yield from _counted_otherwise(data, found, where)
    paths = {path for case in found.cases for path in (*case.images, *([case.labels] if case.labels else []))}
    taken = {path.resolve() for path in paths}
    usual = [root / name for name in FOLDERS if (root / name).is_dir()]
    folders = sorted({*usual, *(path.parent for path in paths)})
    unread: list[Path] = []
    lone: list[Path] = []
    for folder in folders:
        if folder.is_dir():
            images = images_in(folder)
            unread += images.unread
            lone += [path for path in images.read if path.resolve() not in taken]
    if unread:
        yield f"in {_folders(root, unread)}, left out: {plural(len(unread), 'file')}; {unread_message(unread)}"
    if found.layout not in ("bids", "feta"):  # of those the sentence on what is left out speaks
        known = {path.resolve() for path in every_listed(root, data)}
        lone = [path for path in lone if path.resolve() not in known]
        told = f"not listed in {where.name}" if data else "of no case"
        if lone:
            left = "it is left out" if len(lone) == 1 else "they are left out"
            yield f"in {_folders(root, lone)}, and {told}: {shortened((path.name for path in lone), 3)}; {left}"
        below = [path for folder in usual for path in sorted(folder.iterdir()) if path not in folders and _holds_images(path)]
        if below:
            names = shortened((path.relative_to(root).as_posix() for path in below), 3)
            yield f"left out: the images in {names}; move them up beside the others, or list the pairs in a dataset.json"


def _counted_otherwise(data: Mapping[str, Any], found: Found, where: Path) -> Iterator[str]:
    cases = data["training"] if found.layout == "amos" else found.cases
    with contextlib.suppress(TypeError, ValueError):
        told = int(data.get("numTraining", len(cases)))
        if told != len(cases):
            here = f"{len(cases)} {'is' if len(cases) == 1 else 'are'} here"
            yield f"{where.name} counts {plural(told, 'training case')} (numTraining), and {here}; is the copy whole?"


def _holds_images(path: Path) -> bool:
    return path.is_dir() and not is_nifti(path) and not path.name.startswith(".") and bool(niftis(path))


def _folders(root: Path, files: Iterable[Path]) -> str:
    parents = dict.fromkeys(path.parent for path in files)
    return shortened((parent.relative_to(root).as_posix() if parent.is_relative_to(root) else str(parent) for parent in parents), 2)
