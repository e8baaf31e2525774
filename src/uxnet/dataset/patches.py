"""Patches for training: where they lie is a function of (seed, step, sample), and they are read without the rest of the case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.store import CachedCase, opened
from uxnet.errors import DatasetError
from uxnet.geometry import Shape
from uxnet.recipe import Sampling

Start = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where a patch lies: the case's number and the patch's first voxel, below 0 where the patch reaches out of the case.

    structure: the index of the one that a guided stage is asked about; 0 elsewhere.
    """

    case: int
    start: Start
    structure: int = 0


@dataclass(frozen=True)
class Shown:
    """Which case shows which structures, looked up once for all draws.

    by_case: of each case the indices of the structures that it shows.
    cases: the numbers of the cases that show anything.
    structures: the indices that any case shows.
    by_structure: of each of `structures` the numbers of the cases that show it.
    """

    by_case: tuple[tuple[int, ...], ...]
    cases: tuple[int, ...]
    structures: tuple[int, ...]
    by_structure: tuple[tuple[int, ...], ...]


def what_is_shown(cases: Sequence[CachedCase]) -> Shown:
    """Which case shows which structures."""
    by_case = tuple(tuple(index for index, places in enumerate(case.places, start=1) if len(places)) for case in cases)
    showing: dict[int, list[int]] = {}
    for number, structures in enumerate(by_case):
        for index in structures:
            showing.setdefault(index, []).append(number)
    found = tuple(sorted(showing))
    return Shown(by_case, tuple(n for n, s in enumerate(by_case) if s), found, tuple(tuple(showing[index]) for index in found))


def draw_place(cases: Sequence[CachedCase], sampling: Sampling, seed: int, step: int, sample: int, shown: Shown | None = None) -> Place:
    """Where the patch number `sample` of the step `step` lies; equal arguments give equal places, whatever came before.

    With probability `sampling.foreground` a structure is chosen as `sampling.balance` says, then one of its voxels, then the voxel's
    place within the patch, anywhere: structures are seen away from the centre, too. Otherwise the patch lies anywhere inside the case.
    The case is that of the first of each `sampling.per_case` samples.

    Args:
        shown: what `what_is_shown(cases)` gives; looked up anew if it is not given, which takes long where cases are many.
    """
    rng = np.random.default_rng((seed, step, sample))
    shown = shown or what_is_shown(cases)
    number, structure = _drawn(rng, sampling, shown, len(cases), _leader(rng, seed, step, sample, sampling))
    shape, patch = cases[number].indices.shape, sampling.patch
    bounds = [(0, n - p) for n, p in zip(shape, patch, strict=True)]
    if structure:
        voxel = _voxel(rng, cases[number], structure)
        # From the patch that ends at the voxel to the one that begins there.
        bounds = [(max(low, v - p + 1), min(high, v)) for (low, high), v, p in zip(bounds, voxel, patch, strict=True)]
    # Where the case is smaller than the patch, the patch is centred on it, as the sliding window does it.
    i, j, k = (
        int(rng.integers(low, high + 1)) if n >= p else -((p - n) // 2) for (low, high), n, p in zip(bounds, shape, patch, strict=True)
    )
    return Place(number, (i, j, k))


def draw_guided_place(
    cases: Sequence[CachedCase], sampling: Sampling, seed: int, step: int, sample: int, shown: Shown | None = None
) -> Place:
    """The same for a stage that is guided by the one before it (`recipe.Prior`).

    Of what the priors show, a case and a structure are chosen as `sampling.balance` says, then a voxel of the structure's mask; the
    patch lies around that voxel, moved inwards where it would reach out of the case. In prediction it is the same.

    Raises:
        DatasetError: if the stage before found nothing in any case.
    """
    rng = np.random.default_rng((seed, step, sample))
    shown = shown or what_is_shown(cases)
    if not shown.cases:
        raise DatasetError("the first stage found no structure in any training case, so nothing guides the second; train it for longer")
    if sampling.balance == "class":
        number, structure = _by_class(rng, shown)
    else:
        leader = _leader(rng, seed, step, sample, sampling)
        number = _one_of(leader, shown.cases)
        structure = _one_of(rng, shown.by_case[number])
    case = cases[number]
    return Place(number, start_around(_voxel(rng, case, structure), case.indices.shape, sampling.patch), structure)


def start_around(voxel: Sequence[int] | NDArray[np.integer[Any]], shape: Sequence[int], patch: Shape) -> Start:
    """The first voxel of the patch around a voxel, inside the grid; centred on the grid along sides smaller than the patch's."""
    i, j, k = (min(max(int(v) - p // 2, 0), n - p) if n >= p else -((p - n) // 2) for v, n, p in zip(voxel, shape, patch, strict=True))
    return (i, j, k)


def read_guided_patch(case: CachedCase, place: Place, patch: Shape) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """A patch for a guided stage: the image with the structure's mask as its last channel, and 1 where the structure is.

    Voxels to ignore, whose index is above all structures', become 2.
    """
    case = opened(case)
    if case.prior is None:
        raise DatasetError(f"{case.name}: it was cached without the labels of the stage before; delete the cache")
    image, indices = read_patch(case, place.start, patch)
    inside, into = _overlap(place.start, case.prior.shape, patch)
    mask = np.zeros((1, *patch), dtype=np.float32)
    mask[0][into] = case.prior[inside] == place.structure
    target = (indices == place.structure).astype(indices.dtype)
    target[indices > len(case.places)] = 2
    return np.concatenate((image, mask)), target


def read_patch(case: CachedCase, start: Start, patch: Shape) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """A patch of the image, (C, I, J, K) float32, and of the label indices, (I, J, K); outside the case both are 0."""
    case = opened(case)
    inside, into = _overlap(start, case.indices.shape, patch)
    image = np.zeros((len(case.image), *patch), dtype=np.float32)
    indices = np.zeros(patch, dtype=case.indices.dtype)
    for channel, values in enumerate(case.image):
        table = case.tables[channel] if case.tables else None
        # Every number is one of the table's: "clip" is the way that does not look for others.
        image[channel][into] = values[inside] if table is None else np.take(table[:], values[inside], mode="clip")
    indices[into] = case.indices[inside]
    return image, indices


def read_batch(
    cases: Sequence[CachedCase], sampling: Sampling, samples: Sequence[int], seed: int, step: int, shown: Shown | None = None
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Samples of the batch of a step: images (N, C, I, J, K) float32 and label indices (N, I, J, K).

    Args:
        samples: their numbers in the step's batch. Where processes share a step, each computes as many that follow one another.
        shown: what `what_is_shown(cases)` gives, for many batches; looked up anew if it is not given.
    """
    shown = shown or what_is_shown(cases)
    if cases[0].prior is not None:
        guided = [draw_guided_place(cases, sampling, seed, step, sample, shown) for sample in samples]
        patches = [read_guided_patch(cases[place.case], place, sampling.patch) for place in guided]
    else:
        places = [draw_place(cases, sampling, seed, step, sample, shown) for sample in samples]
        patches = [read_patch(cases[place.case], place.start, sampling.patch) for place in places]
    return np.stack([image for image, _ in patches]), np.stack([indices for _, indices in patches])


def _leader(rng: np.random.Generator, seed: int, step: int, sample: int, sampling: Sampling) -> np.random.Generator:
    """What the case is drawn with: the random numbers of the first sample of those that share it, for that sample its own `rng`."""
    first = sample - sample % sampling.per_case
    return rng if first == sample else np.random.default_rng((seed, step, first))


def _drawn(rng: np.random.Generator, sampling: Sampling, shown: Shown, cases: int, leader: np.random.Generator) -> tuple[int, int]:
    """The case, drawn by `leader`, and the structure that the patch is to hold a voxel of; 0 for none."""
    if sampling.balance == "class":
        if shown.structures and rng.random() < sampling.foreground:
            return _by_class(rng, shown)
        return int(rng.integers(cases)), 0
    number = int(leader.integers(cases))
    present = shown.by_case[number]
    return number, _one_of(rng, present) if present and rng.random() < sampling.foreground else 0


def _by_class(rng: np.random.Generator, shown: Shown) -> tuple[int, int]:
    place = int(rng.integers(len(shown.structures)))
    return _one_of(rng, shown.by_structure[place]), shown.structures[place]


def _one_of(rng: np.random.Generator, numbers: Sequence[int]) -> int:
    return numbers[int(rng.integers(len(numbers)))]


def _voxel(rng: np.random.Generator, case: CachedCase, structure: int) -> tuple[int, int, int]:
    voxels = case.places[structure - 1]
    i, j, k = voxels[int(rng.integers(len(voxels)))].tolist()  # whole numbers of any size: they are stored without a sign
    return i, j, k


def _overlap(start: Start, shape: Sequence[int], patch: Shape) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What of the grid lies in the patch, and where in the patch it lies."""
    inside, into = [], []
    for first, side, window in zip(start, shape, patch, strict=True):
        lo, hi = max(first, 0), min(first + window, side)
        inside.append(slice(lo, hi))
        into.append(slice(lo - first, hi - first))
    return tuple(inside), tuple(into)
