"""Geometry: where a grid of voxels lies in the patient. No pixels here.

Indices are (i, j, k); `affine_ras` takes them to millimetres in RAS+ (x to the right, y to the front, z to the top of the patient).
An integer index is a voxel's centre, so a grid of n voxels reaches from -0.5 to n - 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
Affine = NDArray[np.float64]

_POSITIVE, _NEGATIVE = "RAS", "LPI"


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid: its shape in voxels and the (4, 4) affine from indices to RAS+ millimetres.

    Raises:
        ValueError: if the shape is not three positive numbers, or the affine is not finite, has no inverse, or a last row other
            than 0 0 0 1.
    """

    shape: Shape
    affine_ras: Affine

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        affine = np.array(self.affine_ras, dtype=np.float64)
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"a grid has three sides of at least one voxel, not {self.shape}")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise ValueError("the affine must be a 4 x 4 matrix of finite numbers")
        if not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise ValueError(f"the affine's last row must be 0 0 0 1, not {affine[3]}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        # Relative to the voxel's own box: a determinant alone would call very small voxels singular.
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
            raise ValueError("the affine has no inverse: its axes have no length or lie in one plane")
        affine.setflags(write=False)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine_ras", affine)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Geometry) and self.shape == other.shape and np.array_equal(self.affine_ras, other.affine_ras)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine_ras.tobytes()))

    @property
    def spacing_mm(self) -> Spacing:
        """The distance between neighbouring voxel centres along (i, j, k), in mm."""
        a, b, c = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return (float(a), float(b), float(c))

    @property
    def voxel_mm3(self) -> float:
        """The volume of a voxel in cubic millimetres (right for sheared grids, too)."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3])))

    @property
    def orientation(self) -> str:
        """The patient axis that each of (i, j, k) runs along most nearly, as letters: "RAS", "LPS", "AIL", ..."""
        axes, signs = closest_axes(self.affine_ras)
        return "".join((_POSITIVE if sign > 0 else _NEGATIVE)[axis] for axis, sign in zip(axes, signs, strict=True))

    def to_mm(self, ijk: ArrayLike) -> NDArray[np.float64]:
        """Indices (..., 3) -> RAS+ millimetres (..., 3)."""
        mm: NDArray[np.float64] = np.asarray(ijk, dtype=np.float64) @ self.affine_ras[:3, :3].T + self.affine_ras[:3, 3]
        return mm

    def to_ijk(self, mm: ArrayLike) -> NDArray[np.float64]:
        """RAS+ millimetres (..., 3) -> fractional indices (..., 3)."""
        inverse = np.linalg.inv(self.affine_ras)
        ijk: NDArray[np.float64] = np.asarray(mm, dtype=np.float64) @ inverse[:3, :3].T + inverse[:3, 3]
        return ijk

    def same_grid(self, other: Geometry, tolerance_mm: float = 1e-2) -> bool:
        """Whether both have the same shape and every corner lies within `tolerance_mm`, or a tenth of a small voxel, of the other's."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*((0, n - 1) for n in self.shape), indexing="ij")).reshape(3, -1).T
        return float(np.abs(self.to_mm(corners) - other.to_mm(corners)).max()) <= min(tolerance_mm, 0.1 * min(self.spacing_mm))


@dataclass(frozen=True)
class AxisOrder:
    """A reorientation: axis a of the result is axis `axes[a]` of the source, reversed where `flips[a]`."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array (..., I, J, K) in the new order: a view, no copy."""
        lead = array.ndim - 3
        moved = array.transpose(*range(lead), *(lead + a for a in self.axes))
        return moved[(..., *(slice(None, None, -1) if flip else slice(None) for flip in self.flips))]

    def apply_to(self, geometry: Geometry) -> Geometry:
        """The same voxels' geometry in the new order; positions in space stay where they are."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for a, (axis, flip) in enumerate(zip(self.axes, self.flips, strict=True)):
            matrix[axis, a] = -1 if flip else 1
            if flip:
                matrix[axis, 3] = geometry.shape[axis] - 1
        i, j, k = (geometry.shape[axis] for axis in self.axes)
        return Geometry((i, j, k), geometry.affine_ras @ matrix)


def axis_order(geometry: Geometry, orientation: str) -> AxisOrder:
    """The reorientation that brings `geometry` as near to `orientation` ("RAS", "LPS", ...) as whole axes can.

    Raises:
        ValueError: if `orientation` does not name each patient axis once.
    """
    wanted = [_letter(c, orientation) for c in orientation]
    if sorted(axis for axis, _ in wanted) != [0, 1, 2]:
        raise ValueError(f"{orientation!r} is no orientation: name each of R/L, A/P and S/I once, for example RAS")
    has, signs = closest_axes(geometry.affine_ras)
    axes = [has.index(axis) for axis, _ in wanted]
    flips = [signs[a] != sign for a, (_, sign) in zip(axes, wanted, strict=True)]
    return AxisOrder((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def closest_axes(affine_ras: Affine) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """For each of (i, j, k) the patient axis (0 x, 1 y, 2 z) it runs along most nearly, and the sign.

    Obliques are judged by the rotation nearest to the affine (its polar factor), so that shear and spacing have no say; each
    patient axis is given once.
    """
    matrix = affine_ras[:3, :3] / np.linalg.norm(affine_ras[:3, :3], axis=0)
    u, _, vt = np.linalg.svd(matrix)
    rotation = u @ vt
    axes, signs = [0, 0, 0], [1, 1, 1]
    left = np.abs(rotation)
    for _ in range(3):
        axis, column = np.unravel_index(int(np.argmax(left)), (3, 3))
        axes[column] = int(axis)
        signs[column] = 1 if rotation[axis, column] > 0 else -1
        left[axis, :] = -1
        left[:, column] = -1
    return (axes[0], axes[1], axes[2]), (signs[0], signs[1], signs[2])


def resampled(geometry: Geometry, spacing_mm: Sequence[float]) -> Geometry:
    """The grid of the given spacing over the same field of view, centred on it; its sides are rounded to whole voxels.

    An axis whose spacing is already the wanted one (to 1e-6 of it) keeps it exactly.
    """
    old = np.array(geometry.spacing_mm)
    new = np.array(spacing_mm, dtype=np.float64)
    if new.shape != (3,) or not np.isfinite(new).all() or new.min() <= 0:
        raise ValueError(f"spacing_mm must be three positive numbers, not {spacing_mm}")
    new = np.where(np.isclose(old, new, rtol=1e-6, atol=0), old, new)
    sides = np.maximum(1, np.rint(np.array(geometry.shape) * old / new)).astype(int)
    scale = new / old
    # Centre on centre: index c_new of the new grid is index c_old of the old one.
    shift = (np.array(geometry.shape) - 1) / 2 - scale * (sides - 1) / 2
    matrix = np.eye(4)
    matrix[:3, :3] = np.diag(scale)
    matrix[:3, 3] = shift
    return Geometry((int(sides[0]), int(sides[1]), int(sides[2])), geometry.affine_ras @ matrix)


@dataclass(frozen=True)
class Box:
    """A box of voxels: `start` inside, `stop` outside, in indices of some grid."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> Shape:
        """Voxels along each axis."""
        i, j, k = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return (i, j, k)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """For indexing the last three axes of an array."""
        i, j, k = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return (i, j, k)

    def apply_to(self, geometry: Geometry) -> Geometry:
        """The geometry of the voxels inside."""
        affine = geometry.affine_ras.copy()
        affine[:3, 3] = geometry.to_mm(self.start)
        return Geometry(self.shape, affine)


def full_box(shape: Shape) -> Box:
    """The box of a whole grid."""
    return Box((0, 0, 0), shape)


def _letter(letter: str, orientation: str) -> tuple[int, int]:
    if letter in _POSITIVE:
        return _POSITIVE.index(letter), 1
    if letter in _NEGATIVE:
        return _NEGATIVE.index(letter), -1
    raise ValueError(f"{orientation!r} is no orientation: {letter!r} is none of R, L, A, P, S, I")
