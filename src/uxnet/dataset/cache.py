"""Prepared cases on disk, made once: training reads patches from them through memory maps.

A case is four files named after it: the prepared image and labels as .npy, the places of labelled voxels as .npy, and a .json that is
written last and says what the others were made from. A case whose .json is missing or speaks of other inputs is made again. Where the
stage is guided by the labels of the one before it, those are a fifth file, and the places are theirs.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.manifest import Case
from uxnet.errors import DatasetError, LabelsError
from uxnet.events import Progress, Report, silent
from uxnet.io import atomic, read_image, read_labels, write_json
from uxnet.jobs import work
from uxnet.labels import Labels
from uxnet.prepare import prepare, prepare_labels
from uxnet.recipe import Preparation

_VERSION = 1
_PLACES = 20_000


@dataclass(frozen=True)
class CachedCase:
    """A prepared case: memory maps of its image (C, I, J, K) float32 and label indices (I, J, K), and where its labels are.

    places: one array (n, 3) for each foreground index 1..n, of at most 20,000 voxels drawn evenly; empty where it does not occur.
    prior: label indices (I, J, K) of the stage before, where that guides this one; `places` are then taken from it.
    """

    name: str
    image: NDArray[np.float32]
    indices: NDArray[Any]
    places: tuple[NDArray[np.int32], ...]
    prior: NDArray[Any] | None = None


def build_cache(
    cases: Sequence[Case],
    preparation: Preparation,
    labels: Labels,
    folder: Path,
    *,
    priors: Mapping[str, Path] | None = None,
    workers: int = 1,
    report: Report = silent,
) -> list[CachedCase]:
    """Prepares every case that is not in the cache yet, and opens all of them.

    Args:
        folder: where the cache lies; made if missing.
        priors: the label map of the stage before of each case, by its name, on the case's own grid.
        workers: processes to prepare in.

    Returns:
        The cases in the order given.

    Raises:
        DatasetError: naming every case that could not be prepared; the others stay in the cache.
    """
    folder.mkdir(parents=True, exist_ok=True)
    guides = priors or {}
    todo = [case for case in cases if _made_from(folder, case) != _inputs(case, preparation, labels, guides.get(case.name))]
    failures = []
    make = functools.partial(_make, preparation=preparation, labels=labels, folder=folder, priors=guides)
    for done, finished in enumerate(work(make, todo, workers), start=1):
        if finished.error is not None:
            failures.append(f"{finished.item.name}: {finished.error}")
        report(Progress("preparing cases", done, len(todo)))
    if failures:
        raise DatasetError(f"{len(failures)} of {len(cases)} cases could not be prepared:\n  " + "\n  ".join(failures))
    return [open_case(folder, case.name) for case in cases]


def open_case(folder: Path, name: str) -> CachedCase:
    """A prepared case of the cache."""
    description = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    places = np.load(folder / f"{name}.places.npy")
    return CachedCase(
        name=name,
        image=np.load(folder / f"{name}.image.npy", mmap_mode="r"),
        indices=np.load(folder / f"{name}.labels.npy", mmap_mode="r"),
        places=tuple(np.split(places, np.cumsum(description["places"])[:-1])),
        prior=np.load(folder / f"{name}.prior.npy", mmap_mode="r") if description.get("prior") else None,
    )


def _make(case: Case, *, preparation: Preparation, labels: Labels, folder: Path, priors: Mapping[str, Path]) -> None:
    if case.labels is None:
        raise DatasetError(f"{case.name}: it has no label map; training needs one")
    guide = priors.get(case.name)
    made_from = _inputs(case, preparation, labels, guide)  # before reading: a file that changes meanwhile is noticed next time
    volume, reference = read_image(*case.images), read_labels(case.labels)
    if not volume.geometry.same_grid(reference.geometry):
        raise DatasetError(f"{case.labels}: its grid differs from its image's; run `uxnet inspect` on the dataset")
    try:
        encoded = labels.encode(reference.array[0])
    except LabelsError as error:
        raise DatasetError(f"{case.labels}: {error}") from error
    image, trail = prepare(volume, preparation)
    indices = prepare_labels(encoded, trail, preparation.label_interpolation)
    arrays = {"image": image, "labels": indices}
    if guide is not None:
        arrays["prior"] = prepare_labels(labels.encode(read_labels(guide).array[0]), trail, preparation.label_interpolation)
    places = _places(arrays.get("prior", indices), len(labels.foreground))
    arrays["places"] = np.concatenate(places)
    # What an earlier preparation left must not vouch for arrays that are no longer its own, should this one break off.
    (folder / f"{case.name}.json").unlink(missing_ok=True)
    for suffix, array in arrays.items():
        with atomic(folder / f"{case.name}.{suffix}.npy") as temporary:
            np.save(temporary, array)
    written = {"made_from": made_from, "places": [len(p) for p in places], "prior": guide is not None}
    write_json(folder / f"{case.name}.json", written)


def _places(indices: NDArray[Any], count: int) -> list[NDArray[np.int32]]:
    places = []
    for index in range(1, count + 1):
        flat = np.flatnonzero(indices == index)
        if len(flat) > _PLACES:
            flat = flat[np.linspace(0, len(flat) - 1, _PLACES).astype(np.int64)]
        places.append(np.stack(np.unravel_index(flat, indices.shape), axis=1).astype(np.int32))
    return places


def _inputs(case: Case, preparation: Preparation, labels: Labels, prior: Path | None = None) -> str:
    """A hash of everything that the prepared case depends on; files count by path, size and time of change."""
    files = [*case.images, *([] if case.labels is None else [case.labels]), *([] if prior is None else [prior])]
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists()]
    text = json.dumps([_VERSION, repr(preparation), labels.to_dict(), stats], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _made_from(folder: Path, case: Case) -> str | None:
    try:
        made_from = json.loads((folder / f"{case.name}.json").read_text(encoding="utf-8"))["made_from"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return made_from if isinstance(made_from, str) else None
