"""A network's grid for a patch: strides and kernels by spacing, and the patches to choose from.

nnU-Net's rules (Isensee et al., Nature Methods 18 (2021), methods and supplementary note 2), with the 3D UX-Net's large kernels: feature
maps of at least four voxels, no halving of an axis that is more than twice as coarse as the finest, patches of the median case's
proportions. All axes are (R, A, S).
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uxnet.geometry import Shape
from uxnet.planning.rules import Choice, Three, numbers


@dataclass(frozen=True)
class Grid:
    """A patch, and how a network goes down from it: one stride a stage, the stem's first."""

    patch: Shape
    strides: tuple[Shape, ...]

    @property
    def sides(self) -> list[Shape]:
        """Voxels of the image's level and of every stage."""
        sides = [self.patch]
        for stride in self.strides:
            i, j, k = (n // s for n, s in zip(sides[-1], stride, strict=True))
            sides.append((i, j, k))
        return sides


def strides_for(shape: Sequence[float], spacing_mm: Three, stages: int) -> tuple[Shape, ...]:
    """The strides from an image of `shape` down.

    An axis is halved while that leaves it four voxels, and not while its spacing is more than twice that of the finest axis that can
    be halved.
    """
    sides, spaces = np.array(shape, float), np.array(spacing_mm)
    strides: list[Shape] = []
    while len(strides) < stages and (sides >= 8).any():
        finest = spaces[sides >= 8].min()
        stride = np.where((sides >= 8) & (spaces <= 2 * finest), 2, 1)
        strides.append((int(stride[0]), int(stride[1]), int(stride[2])))
        sides, spaces = sides / stride, spaces * stride
    return tuple(strides) or ((1, 1, 1),)


def grids(median: Three, spacing_mm: Three, total_stride: Shape | None = None, stages: int = 4) -> list[Grid]:
    """The patches that may be chosen, from the least to the whole median case, of its proportions.

    Args:
        median: prepared size of the median case, in voxels.
        total_stride: what the sides must be multiples of; None for a network whose strides follow the spacing.
    """
    least = [min(m, max(8.0, 32 * min(spacing_mm) / s)) for m, s in zip(median, spacing_mm, strict=True)]
    found: dict[Shape, Grid] = {}
    for share in np.geomspace(1, 0.02, 120):
        wanted = [max(low, share * m) for low, m in zip(least, median, strict=True)]
        strides = (total_stride,) if total_stride else strides_for(wanted, spacing_mm, stages)
        whole = np.prod(strides, axis=0)
        up, down = np.ceil(np.array(wanted) / whole) * whole, np.maximum(1, np.array(wanted) // whole) * whole
        # Padding a case by more than a quarter costs more than what is cut off.
        i, j, k = (int(n) for n in np.where(up <= 1.25 * np.array(wanted), up, down))
        found.setdefault((i, j, k), Grid((i, j, k), strides if total_stride else strides_for((i, j, k), spacing_mm, stages)))
    return sorted(found.values(), key=lambda grid: math.prod(grid.patch))


def largest(grids: Sequence[Grid], cost: Callable[[Grid], float], limit: float) -> tuple[Grid, float] | None:
    """The last grid whose cost is within the limit, with its cost: looked for as if costs were proportional to voxels."""
    voxels = [math.prod(grid.patch) for grid in grids]
    low, high, guess, found = 0, len(grids), len(grids) - 1, None  # what is below `low` fits, what is from `high` on does not
    for tries in itertools.count():
        here = cost(grids[guess])
        if here <= limit:
            low, found = guess + 1, (grids[guess], here)
        else:
            high = guess
        if low >= high:
            return found
        near = bisect.bisect_right(voxels, voxels[guess] * limit / here) - 1
        guess = min(max(near, low), high - 1) if tries < 4 else (low + high) // 2
    return found


def uxnet_settings(grid: Grid, spacing_mm: Three, width: int) -> tuple[Choice, ...]:
    """Widths, strides and kernels of a 3D UX-Net for a grid: what differs from the paper's, with the reasons."""
    n = len(grid.strides)
    spaces = [np.array(spacing_mm) * np.prod(grid.strides[:level], axis=0) for level in range(n + 1)]
    key = "network.settings."
    count = "The paper's 4 stages" if n == 4 else f"{n} of the paper's 4 stages, since one more would leave fewer than 4 voxels an axis"
    deepest = times(grid.sides[-1])
    choices = [
        Choice(
            f"{key}widths",
            [width * 2**stage for stage in range(n)],
            f"{count}: from a patch of {times(grid.patch)} they end at {deepest} voxels.",
        ),
        Choice(f"{key}hidden", width * 2**n, "Twice the last stage's channels, as in the paper."),
    ]
    if n != 4:
        choices.append(Choice(f"{key}depths", [2] * n, "Two blocks a stage, as in the paper."))
    large = _kernels(7, spaces, grid.sides)
    small = _kernels(3, spaces, grid.sides)
    halved = "an axis is halved while that leaves it 4 voxels, and once the others have come within twice its spacing"
    if any(stride != (2, 2, 2) for stride in grid.strides):
        choices.append(Choice(f"{key}stem_stride", list(grid.strides[0]), f"At {numbers(spacing_mm)} mm: {halved}."))
        choices += [Choice(f"{key}strides", [list(s) for s in grid.strides[1:]], f"From stage to stage, likewise; the last is {deepest}.")]
    if large[0] != [7, 7, 7]:
        choices.append(Choice(f"{key}stem_kernel", large[0], "7 voxels of the finest axis, and about as many mm along the others."))
    if any(kernel != [7, 7, 7] for kernel in large[1:]):
        choices.append(Choice(f"{key}kernel", large[1:], "Of each stage, likewise at its own spacing, and no wider than its grid can use."))
    if any(kernel != [3, 3, 3] for kernel in small):
        reason = "Of the image's level and each stage: 1 along an axis that is more than twice as coarse as the finest, until it is not."
        choices.append(Choice(f"{key}decoder_kernel", small, reason))
    return tuple(choices)


def _kernels(most: int, spaces: Sequence[NDArray[np.float64]], sides: Sequence[Shape]) -> list[list[int]]:
    """Of each level: `most` voxels, along an axis more than twice as coarse as the finest about as many mm.

    As in nnU-Net an axis that had a wide kernel keeps it when the others, which are longer, go on being halved and become the coarse ones.
    """
    kernels: list[list[int]] = []
    for space, grid in zip(spaces, sides, strict=True):
        ratios = [float(s / space.min()) for s in space]
        fine = [most if ratio <= 2 else max(1, 2 * round((most / ratio - 1) / 2) + 1) for ratio in ratios]
        above = kernels[-1] if kernels else fine
        # Beyond twice the side a kernel sees nothing but padding.
        kernels.append([min(max(k, before), 2 * side - 1) for k, before, side in zip(fine, above, grid, strict=True)])
    return kernels


def times(values: Sequence[int]) -> str:
    """Sides, readable."""
    return " x ".join(map(str, values))
