"""Windows over a grid and the weights they are blended with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uxnet.geometry import Box, Shape

_LEAST = 1e-3  # of the largest weight along an axis, so that every voxel is decided by something


@dataclass(frozen=True)
class Tiling:
    """Windows of one size that cover a grid: all combinations of their starts along the three axes.

    shape: of the grid, no side smaller than the patch's.
    patch: of a window.
    starts: along each axis, spread evenly from the grid's first voxel to its last.
    """

    shape: Shape
    patch: Shape
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def boxes(self) -> list[Box]:
        """The windows in the order of their position, the first axis slowest."""
        i, j, k = (range(len(starts)) for starts in self.starts)
        return [self.box(places) for places in itertools.product(i, j, k)]

    def box(self, places: tuple[int, int, int]) -> Box:
        """The window that begins at these of the starts along (i, j, k), counted from 0."""
        i, j, k = (starts[place] for starts, place in zip(self.starts, places, strict=True))
        return Box((i, j, k), (i + self.patch[0], j + self.patch[1], k + self.patch[2]))

    def overlap(self, axis: int) -> int:
        """The most voxels that a window shares with the next one along an axis."""
        starts = self.starts[axis]
        return max((a + self.patch[axis] - b for a, b in itertools.pairwise(starts)), default=0)


def tile(shape: Shape, patch: Shape, overlap: float) -> Tiling:
    """Windows of the size `patch` that cover a grid.

    Args:
        shape: of the grid; sides smaller than the patch's count as the patch's.
        patch: of a window.
        overlap: the least share of a side that neighbours have in common.
    """
    sides = (max(shape[0], patch[0]), max(shape[1], patch[1]), max(shape[2], patch[2]))
    i, j, k = (_starts(side, window, overlap) for side, window in zip(sides, patch, strict=True))
    return Tiling(sides, patch, (i, j, k))


def blend_shares(tiling: Tiling, blending: str) -> list[list[NDArray[np.float32]]]:
    """How much of the answer each window gives, along each axis and for each of its starts: (patch side,) float32.

    A voxel's share in a window is the product of the three; the shares of all windows over a voxel add up to 1. "constant" counts
    all windows alike; "gaussian" by a bell around the window's centre, its deviation an eighth of each side.
    """
    return [[profile / total[start : start + len(profile)] for start in starts] for profile, total, starts in _summed(tiling, blending)]


def blend_profile(side: int, blending: str) -> NDArray[np.float32]:
    """The weight along one side of a window, (side,), the largest 1."""
    if blending == "constant":
        return np.ones(side, dtype=np.float32)
    x = np.arange(side) - (side - 1) / 2
    bell = np.exp(-0.5 * (x / (side / 8)) ** 2)
    clamped: NDArray[np.float32] = np.maximum(bell / bell.max(), _LEAST).astype(np.float32)
    return clamped


def _summed(tiling: Tiling, blending: str) -> list[tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, ...]]]:
    """Along each axis: the profile of a window, and the sum of all windows' profiles over the grid."""
    found = []
    for side, window, starts in zip(tiling.shape, tiling.patch, tiling.starts, strict=True):
        profile, total = blend_profile(window, blending), np.zeros(side, dtype=np.float32)
        for start in starts:
            total[start : start + window] += profile
        found.append((profile, total, starts))
    return found


def _starts(side: int, window: int, overlap: float) -> tuple[int, ...]:
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((side - window) / step) + 1
    return tuple(round(n * (side - window) / max(count - 1, 1)) for n in range(count))
