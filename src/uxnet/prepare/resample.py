"""Arrays between grids whose axes are parallel: linear and cubic, a slab at a time, on several threads.

A slab is what is read, ranged and resampled at once, so that beside the source and the result only a few slabs are in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.geometry import Geometry

Pointwise = Callable[[NDArray[Any]], NDArray[Any]]

_SLAB = 4_000_000  # voxels that are in work at once on each thread
# A cubic spline's coefficients feel voxels that far away by less than 1e-9: 0.268 ** 16.
_REACH = {1: 0, 3: 16}
_TIE = 1e-5  # shares of classes that are no further apart are equal but for rounding


def mapping(to: Geometry, of: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(scale, shift) along each axis that take an index of the grid `of` to one of the grid `to`, whose axes are parallel."""
    matrix = np.linalg.inv(to.affine_ras) @ of.affine_ras
    scale = np.diag(matrix)[:3].copy()
    shift = matrix[:3, 3].copy()
    # Equal spacings must give exactly equal grids: rounding in the inverse would move labels by a voxel at ties.
    scale[np.abs(scale - 1) < 1e-9] = 1.0
    near = np.abs(shift - np.rint(shift)) < 1e-6
    shift[near] = np.rint(shift[near])
    return scale, shift


def resample(
    array: NDArray[Any],
    source: Geometry,
    target: Geometry,
    spline: int,
    *,
    ranged: Pointwise | None = None,
    out: NDArray[Any] | None = None,
    threads: int = 1,
) -> NDArray[Any]:
    """`array` on `source`, read at the voxel centres of `target`; beyond the edge the edge's value counts.

    Args:
        array: (I, J, K) on `source`.
        target: a grid with parallel axes.
        spline: 0 nearest, 1 linear, 3 cubic.
        ranged: applied to each voxel before it is resampled; it decides the type of the result.
        out: where the result goes; made if it is not given.
        threads: that resample slabs side by side.

    Returns:
        (I', J', K') of the type that `ranged` gives, else of `array`'s; a view where nothing is to be done.
    """
    scale, shift = mapping(source, target)
    start = shift.astype(int)
    stop = start + np.array(target.shape)
    plain = bool((scale == 1).all() and (shift == np.rint(shift)).all() and (start >= 0).all() and (stop <= np.array(array.shape)).all())
    part = array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] if plain else array
    if plain and ranged is None and out is None:
        return part
    through: Pointwise = ranged or np.asarray
    made = np.empty(target.shape, dtype=through(array[:1, :1, :1]).dtype) if out is None else out
    axis = int(np.argmax([abs(stride) for stride in array.strides]))  # slabs along it lie together in memory

    def fill(first: int, last: int) -> None:
        into = made[_along(axis, first, last)]
        if plain:
            into[...] = through(part[_along(axis, first, last)])
            return
        from scipy import ndimage  # here, since a scan that has the network's spacing need not wait for its import

        low, high = _needed(first, last, scale[axis], shift[axis], array.shape[axis], _REACH.get(spline, 1))
        slab = through(array[_along(axis, low, high)])
        offset = shift.copy()
        offset[axis] += scale[axis] * first - low
        ndimage.affine_transform(slab, scale, offset=offset, output=into, output_shape=into.shape, order=spline, mode="nearest")

    voxels = max(made.size, math.prod(array.shape))
    slab_size = _SLAB * (4 if spline == 3 else 1)  # its reach is read twice over
    pieces = min(made.shape[axis], max(threads if voxels > _SLAB // 8 else 1, math.ceil(voxels / slab_size)))
    edges = np.linspace(0, made.shape[axis], pieces + 1).astype(int)
    each(fill, list(itertools.pairwise(edges)), threads)
    return made


def resample_labels(indices: NDArray[Any], source: Geometry, target: Geometry, interpolation: str) -> NDArray[Any]:
    """A label map's indices (I, J, K) on `source` at the voxel centres of `target`.

    "nearest", or "by_class": each class linearly, and the strongest wins; of equals the one that is nearest.
    """
    nearest = resample(indices, source, target, 0)
    if interpolation == "nearest" or (mapping(source, target)[0] == 1).all():
        return nearest
    best, own = np.zeros(target.shape, dtype=np.float32), np.zeros(target.shape, dtype=np.float32)
    strongest = np.zeros_like(nearest)
    for index in np.unique(indices):
        share = resample((indices == index).astype(np.float32), source, target, 1)
        np.copyto(own, share, where=nearest == index)
        ahead = share > best
        strongest[ahead] = index
        best[ahead] = share[ahead]
    # Not the lowest index of equals: halfway between two voxels that is the background, and structures would lose their rims.
    own += _TIE
    np.copyto(nearest, strongest, where=best > own)
    return nearest


def each(function: Callable[..., None], items: list[tuple[Any, ...]], threads: int) -> None:
    """`function(*item)` for every item, on so many threads; the first exception is raised."""
    if threads <= 1 or len(items) <= 1:
        for item in items:
            function(*item)
        return
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        for done in [pool.submit(function, *item) for item in items]:
            done.result()


def _along(axis: int, first: int, last: int) -> tuple[slice, slice, slice]:
    i, j, k = (slice(first, last) if a == axis else slice(None) for a in range(3))
    return i, j, k


def _needed(first: int, last: int, scale: float, shift: float, side: int, reach: int) -> tuple[int, int]:
    """The slices of the source from which the slices [first, last) of the target are computed."""
    low = math.floor(scale * first + shift) - reach
    high = math.floor(scale * (last - 1) + shift) + 2 + reach
    low = min(max(low, 0), side - 1)
    return low, max(min(high, side), low + 1)
