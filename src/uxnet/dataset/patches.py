"""Patches for training: where they lie is a function of (seed, step, sample), and they are read without the rest of the case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.cache import CachedCase
from uxnet.geometry import Shape
from uxnet.recipe import Sampling

Start = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where a patch lies: the case's number and the patch's first voxel, below 0 where the patch reaches out of the case."""

    case: int
    start: Start


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
    places = [draw_place(cases, sampling, seed, step, sample) for sample in range(batch)]
    patches = [read_patch(cases[place.case], place.start, sampling.patch) for place in places]
    return np.stack([image for image, _ in patches]), np.stack([indices for _, indices in patches])
