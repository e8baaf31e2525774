"""Windows over a grid and the weights they are blended with."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from uxnet.geometry import Box, Shape


def tiles(shape: Shape, patch: Shape, overlap: float) -> list[Box]:
    """Windows of the size `patch` that cover a grid, in the order of their position, the first axis slowest.

    Args:
        shape: of the grid, no side smaller than the patch's.
        patch: of a window.
        overlap: the least share of a side that neighbours have in common.

    Returns:
        Boxes inside the grid; along each axis they are spread evenly from its first voxel to its last.
    """
    starts = (_starts(side, window, overlap) for side, window in zip(shape, patch, strict=True))
    return [Box((i, j, k), (i + patch[0], j + patch[1], k + patch[2])) for i, j, k in itertools.product(*starts)]


def blend_weight(patch: Shape, blending: str) -> NDArray[np.float32]:
    """How much each voxel of a window counts, (I, J, K), the largest 1.

    "constant" counts all alike; "gaussian" falls off from the centre with a deviation of an eighth of each side and never below a
    thousandth, so that every voxel is decided by something.
    """
    if blending == "constant":
        return np.ones(patch, dtype=np.float32)
    weight = np.ones((1, 1, 1))
    for axis, side in enumerate(patch):
        x = np.arange(side) - (side - 1) / 2
        profile = np.exp(-0.5 * (x / (side / 8)) ** 2)
        weight = weight * profile.reshape([-1 if a == axis else 1 for a in range(3)])
    clamped: NDArray[np.float32] = np.maximum(weight / weight.max(), 1e-3).astype(np.float32)
    return clamped


def _starts(side: int, window: int, overlap: float) -> list[int]:
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((side - window) / step) + 1
    return [round(n * (side - window) / max(count - 1, 1)) for n in range(count)]
