"""Prepared cases on disk, made once: training reads patches from them. `store.py` knows their files.

A case is known by the content of the files that it was made from and by what was asked for, not by paths or dates. Every run reads the
cache once, from end to end, before it trains on it: a case that is not what was written is said and made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.manifest import Case, some
from uxnet.dataset.store import (
    VERSION,
    CachedCase,
    Content,
    Cut,
    Description,
    keep_files,
    open_case,
    pack,
    packed_bytes,
    read_description,
    stem,
    stems,
    write_case,
)
from uxnet.errors import DatasetError, LabelsError, UxnetError, VolumeError
from uxnet.events import Note, Progress, Report, Warn, silent
from uxnet.geometry import axis_order, full_box, resampled
from uxnet.io import clear_parts, read_geometry, read_image, read_labels, sha256
from uxnet.jobs import work
from uxnet.labels import Labels
from uxnet.prepare.way_out import Trail, covered, prepare, prepare_labels
from uxnet.recipe import Preparation

__all__ = ["CachedCase", "build_cache", "open_case"]

_PLACES = 20_000


@dataclass(frozen=True)
class _Wanted:
    """A case as it is to be in the cache.

    guide: the label map of the stage before.
    key: hashes all that it depends on.
    others: what the files are called that hold it as it was prepared otherwise, or from other content.
    """

    case: Case
    guide: Path | None
    key: str
    files: tuple[Content, ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    """What a case's file is to hold, how many places each structure has in it, the share of voxels that each fills, and what was cut."""

    arrays: dict[str, NDArray[Any]]
    places: list[int]
    shares: NDArray[np.float64]
    cut: Cut


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
    """Prepares every case that is not in the cache yet, or is damaged there, and opens all of them.

    A build that breaks off is gone on with by calling this again.

    Args:
        folder: where the cache lies; made if missing. Cases that were prepared otherwise stay there, beside these: another run may use
            them.
        priors: the label map of the stage before of each case, by its name, on the case's own grid.
        workers: processes to prepare in, and threads to check with what is there.
        report: hears beforehand what the cache will take, and which cases are made again since they were damaged; at the end what
            `crop_above` cut off labelled structures, with a Warn for each structure of which it left nothing.

    Returns:
        The cases in the order given.

    Raises:
        DatasetError: before anything is written, if the disk has too little room; or, naming every case that could not be prepared
            (the others stay in the cache).
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_parts(folder)
    todo, ready, others = [], {}, list[str]()
    there = stems(folder)
    look = functools.partial(_look, preparation=preparation, labels=labels, folder=folder, there=there, priors=priors or {})
    anything = any(_name(case) in there for case in cases)
    for done, (wanted, cached, damage) in enumerate(_on_threads(look, cases, workers), start=1):
        others += wanted.others
        if cached is None:
            todo.append(wanted)
        else:
            ready[cached.name] = cached
        if damage:
            report(Warn(f"{wanted.case.name}: its cached file is damaged and is made again ({damage})"))
        if anything:
            report(Progress("checking the cache", done, len(cases)))
    failures = _make_all(todo, preparation, labels, folder, workers, report) if todo else []
    if failures:
        raise DatasetError(f"{len(failures)} of {_cases(len(cases))} could not be prepared:\n  " + "\n  ".join(failures))
    ready |= {wanted.case.name: open_case(folder, stem(wanted.case.name, wanted.key), wanted.case.name) for wanted in todo}
    made = [ready[case.name] for case in cases]
    _tell_cut(made, labels, folder, report)
    if others:
        report(
            Note(
                f"{folder} also holds {_size(_bytes_of(folder, others))} of these cases, prepared otherwise or of other content; "
                "if no run uses them, delete the folder: what is needed is made again"
            )
        )
    return made


def _look(
    case: Case,
    *,
    preparation: Preparation,
    labels: Labels,
    folder: Path,
    there: Mapping[str, Sequence[str]],
    priors: Mapping[str, Path],
) -> tuple[_Wanted, CachedCase | None, str]:
    """What is wanted, the case if it is there and whole, and what is wrong with it if it is there and not whole."""
    known, damaged = {}, {}
    for called in there.get(_name(case), ()):
        try:
            described = read_description(folder, called)
        except DatasetError as error:
            damaged[called] = str(error)
            continue
        if described is not None:
            known[called] = described
    wanted = _want(case, priors.get(case.name), preparation, labels, known)
    own = stem(case.name, wanted.key)
    # As this version calls it, or as earlier ones did.
    found = next((called for called in (own, case.name) if called in known and known[called].key == wanted.key), None)
    if found is None:
        return wanted, None, damaged.get(own, "")
    try:
        cached = open_case(folder, found, case.name)
    except DatasetError as error:
        return wanted, None, str(error)
    if known[found].files != wanted.files:
        keep_files(folder, found, known[found], wanted.files)
    return wanted, cached, ""


def _name(case: Case) -> str:
    """The case's name as its files have it."""
    return stem(case.name, "").removesuffix(".")


def _bytes_of(folder: Path, called: Sequence[str]) -> int:
    files = [folder / f"{one}.case" for one in called]
    return sum(file.stat().st_size for file in files if file.exists())


def _want(case: Case, guide: Path | None, preparation: Preparation, labels: Labels, known: Mapping[str, Description]) -> _Wanted:
    paths = [*case.images, *([] if case.labels is None else [case.labels]), *([] if guide is None else [guide])]
    before = {(file.path, file.size, file.changed): file for described in known.values() for file in described.files}
    files = tuple(_content(path, before) for path in paths)
    # Names and colours of labels may change: the cache holds indices.
    values = [labels.background, [label.value for label in labels.foreground], labels.ignore]
    roles = [len(case.images), case.labels is not None, guide is not None]
    text = json.dumps([VERSION, repr(preparation), values, roles, [file.sha256 for file in files]])
    key = hashlib.sha256(text.encode()).hexdigest()
    return _Wanted(case, guide, key, files, tuple(called for called, described in known.items() if described.key != key))


def _content(path: Path, before: Mapping[tuple[str, int, tuple[int, int]], Content]) -> Content:
    """A file's content; read only if it is not the one that was read before. What cannot be read says so when it is prepared."""
    try:
        stat = path.stat()
        what = (str(path.resolve()), stat.st_size, (stat.st_mtime_ns, stat.st_ctime_ns))
        return before.get(what) or Content(*what, sha256(path))
    except OSError:
        return Content(str(path), 0, (0, 0), "")


def _make_all(todo: Sequence[_Wanted], preparation: Preparation, labels: Labels, folder: Path, workers: int, report: Report) -> list[str]:
    """Makes them, and returns what went wrong with which.

    One is prepared before anything is written: what others will take is told from it and their headers.
    """
    sides = [_prepared_voxels(wanted.case, preparation) for wanted in todo]
    middle = int(np.argsort(sides)[len(sides) // 2])
    first, failures = todo[middle], []
    try:
        prepared = _prepared(first, preparation, labels)
        like, grid = prepared.arrays, sides[middle] or 1
        needed = sum(_expected(voxels * like["labels"].size / grid, like, prepared.shares) for voxels in sides)
    except (UxnetError, OSError) as error:
        failures.append(f"{first.case.name}: {error}")
        needed = sum(voxels * (4 * len(wanted.case.images) + 1) for voxels, wanted in zip(sides, todo, strict=True))
        prepared = None
    _refuse_full_disk(folder, todo, int(needed), report)
    if prepared:
        _write(folder, first, prepared)
        prepared.arrays.clear()  # the others need the memory
    report(Progress("preparing cases", 1, len(todo)))
    make = functools.partial(_make, preparation=preparation, labels=labels, folder=folder)
    rest = [wanted for wanted in todo if wanted is not first]
    for done, finished in enumerate(work(make, rest, workers), start=2):
        if finished.error is not None:
            failures.append(f"{finished.item.case.name}: {finished.error}")
        report(Progress("preparing cases", done, len(todo)))
    return failures


def _make(wanted: _Wanted, *, preparation: Preparation, labels: Labels, folder: Path) -> None:
    _write(folder, wanted, _prepared(wanted, preparation, labels))


def _write(folder: Path, wanted: _Wanted, prepared: _Prepared) -> None:
    write_case(folder, wanted.case.name, wanted.key, wanted.files, prepared.arrays, prepared.places, prepared.cut)


def _prepared(wanted: _Wanted, preparation: Preparation, labels: Labels) -> _Prepared:
    case, guide = wanted.case, wanted.guide
    if case.labels is None:
        raise DatasetError(f"{case.name}: it has no label map; training needs one")
    volume, reference = read_image(*case.images), read_labels(case.labels)
    if not volume.geometry.same_grid(reference.geometry):
        raise DatasetError(f"{case.labels}: its grid differs from its image's; run `uxnet inspect` on the dataset")
    try:
        encoded = labels.encode(reference.array[0])
    except LabelsError as error:
        raise DatasetError(f"{case.labels}: {error}") from error
    image, trail = prepare(volume, preparation)
    indices, prior = prepare_labels(encoded, trail, preparation.label_interpolation), None
    if guide is not None:
        before = read_labels(guide)
        if not before.geometry.same_grid(volume.geometry):
            raise DatasetError(f"{guide}: its grid differs from its image's; delete it, so that it is made anew")
        prior = prepare_labels(labels.encode(before.array[0]), trail, preparation.label_interpolation)
    where = indices if prior is None else prior
    count = len(labels.foreground)
    places = _places(where, count, seed=int(wanted.key[:16], 16))
    shares = np.bincount(where.reshape(-1), minlength=count + 1)[1 : count + 1] / where.size
    return _Prepared(pack(image, indices, places, prior), [len(p) for p in places], shares, _cut(encoded, trail, count))


def _cut(indices: NDArray[Any], trail: Trail, count: int) -> Cut:
    """What the crop cut off a label map (I, J, K) on the scan's own grid, see `CachedCase`."""
    if trail.box == full_box(trail.grid.shape):
        return ()
    kept = trail.order.apply(indices)[covered(trail).slices]
    voxels = [(int(np.count_nonzero(kept == index)), int(np.count_nonzero(indices == index))) for index in range(1, count + 1)]
    return tuple((there - left, there) for left, there in voxels)


def _tell_cut(cases: Sequence[CachedCase], labels: Labels, folder: Path, report: Report) -> None:
    told: list[str] = []
    gone: dict[str, list[str]] = {label.name: [] for label in labels.foreground}
    for case in cases:
        cut = {name: figures for name, figures in zip(gone, case.cut, strict=False) if figures[0]}
        if cut:
            told.append(f"{case.name} ({', '.join(f'{name} {lost:,} of {voxels:,}' for name, (lost, voxels) in cut.items())})")
        for name, (lost, voxels) in cut.items():
            gone[name] += [case.name] if lost == voxels else []
    if told:
        report(Note(f"prepare.crop_above cuts labelled voxels off {some(told)}; {folder} holds each case's figures (cut in NAME.KEY.json)"))
    for name, names in gone.items():
        if names:
            report(Warn(f"prepare.crop_above leaves nothing of {name!r} in {some(names)}: lower it, or see whether image and labels fit"))


def _places(indices: NDArray[Any], count: int, seed: int) -> list[NDArray[np.int32]]:
    places = []
    for index in range(1, count + 1):
        flat = np.flatnonzero(indices == index)
        if len(flat) > _PLACES:
            # Not every n-th: that falls in step with the rows, and draws the same few columns of all.
            flat = np.sort(np.random.default_rng((seed, index)).choice(flat, _PLACES, replace=False, shuffle=False))
        places.append(np.stack(np.unravel_index(flat, indices.shape), axis=1).astype(np.int32))
    return places


def _prepared_voxels(case: Case, preparation: Preparation) -> int:
    """Voxels of the prepared grid before it is cropped, from the header; 0 if that cannot be read."""
    try:
        geometry = read_geometry(case.images[0])
    except (VolumeError, IndexError):
        return 0
    oriented = axis_order(geometry, preparation.orientation).apply_to(geometry)
    try:
        return int(np.prod(resampled(oriented, preparation.spacing_mm).shape if preparation.spacing_mm else oriented.shape))
    except ValueError:  # an absurd spacing, which `prepare` refuses by the file's name
        return 0


def _expected(voxels: float, like: Mapping[str, NDArray[Any]], shares: NDArray[np.float64]) -> float:
    """Bytes of the file of a case of so many voxels that is otherwise like another."""
    places = 3 * like["places"].dtype.itemsize * np.minimum(shares * voxels, _PLACES).sum()
    others = (a.nbytes if n.startswith("table") else a.dtype.itemsize * voxels for n, a in like.items() if n != "places")
    return float(packed_bytes({}) + places + sum(others))


def _refuse_full_disk(folder: Path, todo: Sequence[_Wanted], needed: int, report: Report) -> None:
    free = shutil.disk_usage(folder).free
    report(Note(f"the cache of {_cases(len(todo))} will take about {_size(needed)} in {folder}; {_size(free)} are free"))
    # What is replaced makes room, but not before the first of the new ones is there.
    replaced = _bytes_of(folder, [stem(wanted.case.name, wanted.key) for wanted in todo])
    short = max(needed - replaced, needed // len(todo)) - free
    if short > 0:
        dead = _bytes_of(folder, [called for wanted in todo for called in wanted.others])
        others = f"; {_size(dead)} in it are of these cases as they were prepared otherwise, which no run may need any more" if dead else ""
        raise DatasetError(
            f"{folder}: the cache will take about {_size(needed)}, and only {_size(free)} are free on its disk; "
            f"make room for {_size(short)} more, or name a folder on another disk{others}"
        )


def _cases(count: int) -> str:
    return f"{count} case{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    for unit, power in (("GB", 9), ("MB", 6)):
        if count >= 10**power:
            return f"{count / 10**power:.3g} {unit}"
    return f"{max(count, 0) / 1000:.3g} kB"


def _on_threads(function: Callable[[Case], Any], cases: Sequence[Case], threads: int) -> Iterator[Any]:
    """In order; hashing lets other threads run."""
    if threads <= 1:
        yield from map(function, cases)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, cases)
    finally:
        pool.shutdown(cancel_futures=True)
