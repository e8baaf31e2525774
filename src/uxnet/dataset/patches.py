"""Patches for training: where they lie is a function of (seed, step, sample), and they are read without the rest of the case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.cache import CachedCase
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


def draw_place(cases: Sequence[CachedCase], sampling: Sampling, seed: int, step: int, sample: int) -> Place:
    """Where the patch number `sample` of the step `step` lies; equal arguments give equal places, whatever came before.

    With probability `sampling.foreground` a label of the case is chosen, each alike, then one of its voxels, then the voxel's place
    within the patch, anywhere: structures are seen away from the centre, too. Otherwise the patch lies anywhere inside the case.
    """
    rng = np.random.default_rng((seed, step, sample))
    number = int(rng.integers(len(cases)))
    case = cases[number]
    shape = case.indices.shape
    present = [places for places in case.places if len(places)]
    low = np.zeros(3, dtype=np.int64)
    high = np.array([n - p for n, p in zip(shape, sampling.patch, strict=True)], dtype=np.int64)
    if present and rng.random() < sampling.foreground:
        voxels = present[int(rng.integers(len(present)))]
        voxel = voxels[int(rng.integers(len(voxels)))]
        first = voxel - np.array(sampling.patch) + 1  # the patch that ends at the voxel
        low, high = np.maximum(low, first), np.minimum(high, voxel)
    # Where the case is smaller than the patch, the patch is centred on it, as the sliding window does it.
    i, j, k = (
        int(rng.integers(lo, hi + 1)) if n >= p else -((p - n) // 2) for lo, hi, n, p in zip(low, high, shape, sampling.patch, strict=True)
    )
    return Place(number, (i, j, k))


def draw_guided_place(cases: Sequence[CachedCase], sampling: Sampling, seed: int, step: int, sample: int) -> Place:
    """The same for a stage that is guided by the one before it (`recipe.Prior`).

    A case is chosen whose prior shows anything, then one of the structures that it shows, each alike, then a voxel of its mask; the
    patch lies around that voxel, moved inwards where it would reach out of the case. In prediction it is the same.

    Raises:
        DatasetError: if the stage before found nothing in any case.
    """
    rng = np.random.default_rng((seed, step, sample))
    shown = [number for number, case in enumerate(cases) if any(len(places) for places in case.places)]
    if not shown:
        raise DatasetError("the first stage found no structure in any training case, so nothing guides the second; train it for longer")
    number = shown[int(rng.integers(len(shown)))]
    case = cases[number]
    structures = [index for index, places in enumerate(case.places, start=1) if len(places)]
    structure = structures[int(rng.integers(len(structures)))]
    voxels = case.places[structure - 1]
    voxel = voxels[int(rng.integers(len(voxels)))]
    return Place(number, start_around(voxel, case.indices.shape, sampling.patch), structure)


def start_around(voxel: Sequence[int] | NDArray[np.integer[Any]], shape: Sequence[int], patch: Shape) -> Start:
    """The first voxel of the patch around a voxel, inside the grid; centred on the grid along sides smaller than the patch's."""
    i, j, k = (min(max(int(v) - p // 2, 0), n - p) if n >= p else -((p - n) // 2) for v, n, p in zip(voxel, shape, patch, strict=True))
    return (i, j, k)


def read_guided_patch(case: CachedCase, place: Place, patch: Shape) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """A patch for a guided stage: the image with the structure's mask as its last channel, and 1 where the structure is.

    Voxels to ignore, whose index is above all structures', become 2.
    """
    if case.prior is None:
        raise DatasetError(f"{case.name}: it was cached without the labels of the stage before; delete the cache")
    image, indices = read_patch(case, place.start, patch)
    prior, _ = read_patch(replace(case, image=case.prior[np.newaxis]), place.start, patch)
    target = (indices == place.structure).astype(indices.dtype)
    target[indices > len(case.places)] = 2
    return np.concatenate((image, (prior == place.structure).astype(np.float32))), target


def read_patch(case: CachedCase, start: Start, patch: Shape) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """A patch of the image, (C, I, J, K) float32, and of the label indices, (I, J, K); outside the case both are 0."""
    inside, into = [], []
    for first, side, window in zip(start, case.indices.shape, patch, strict=True):
        lo, hi = max(first, 0), min(first + window, side)
        inside.append(slice(lo, hi))
        into.append(slice(lo - first, hi - first))
    image = np.zeros((case.image.shape[0], *patch), dtype=np.float32)
    indices = np.zeros(patch, dtype=case.indices.dtype)
    image[(slice(None), *into)] = case.image[(slice(None), *inside)]
    indices[tuple(into)] = case.indices[tuple(inside)]
    return image, indices


def read_batch(
    cases: Sequence[CachedCase], sampling: Sampling, batch: int, seed: int, step: int
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """The batch of a step: images (N, C, I, J, K) float32 and label indices (N, I, J, K)."""
    if cases[0].prior is not None:
        guided = [draw_guided_place(cases, sampling, seed, step, sample) for sample in range(batch)]
        patches = [read_guided_patch(cases[place.case], place, sampling.patch) for place in guided]
    else:
        places = [draw_place(cases, sampling, seed, step, sample) for sample in range(batch)]
        patches = [read_patch(cases[place.case], place.start, sampling.patch) for place in places]
    return np.stack([image for image, _ in patches]), np.stack([indices for _, indices in patches])
