"""The largest connected component of a class, where anatomy says that there is only one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uxnet.labels import Labels

TOUCHING = ndimage.generate_binary_structure(3, 3)
"""Voxels are connected where they share a face, an edge or a corner (26 neighbours): a thin structure that runs obliquely through the
grid, a vessel or a nerve, stays whole."""

ALL = "all"

Slices = tuple[slice, slice, slice]


def keep_largest(values: NDArray[Any], labels: Labels, names: Sequence[str]) -> NDArray[Any]:
    """Of each named class, every connected component but the largest becomes background.

    Of equally large ones the first is kept, in the order of i, then j, then k. The classes are seen to in the order of their names;
    where classes overlap (regions), those that come later see what the earlier ones left. What a removed voxel would have been
    without the class is not known, so it becomes background, also where it belongs to other regions.

    Beside `values`, memory is taken for one class at a time, 5 bytes for each voxel of the box around it.

    Args:
        values: (I, J, K) of any integer type and memory layout; changed in place.
        labels: what the values mean.
        names: of labels or regions; "all" stands for every class, unless one is called so.

    Returns:
        `values`.

    Raises:
        LabelsError: if a name is no class; nothing is changed then.
    """
    wanted = [labels.members(name) for name in _spelt_out(names, labels)]
    boxes = _boxes(values, sorted({value for members in wanted for value in members})) if wanted else {}
    for members in wanted:
        box = _around([boxes[value] for value in members if value in boxes])
        if box is not None:
            _keep_largest_in(values[box], members, labels.background)
    return values


def _spelt_out(names: Sequence[str], labels: Labels) -> list[str]:
    called_so = ALL in {*labels.classes, *(label.name for label in labels.foreground)}
    spelt = [one for name in names for one in (labels.classes if name == ALL and not called_so else (name,))]
    return list(dict.fromkeys(spelt))


def _keep_largest_in(values: NDArray[Any], members: Sequence[int], background: int) -> None:
    mask = np.empty(values.shape, dtype=bool)
    for part, slab in _slabs(values):
        mask[part] = np.isin(slab, members)
    pieces = np.empty(values.shape, dtype=np.int32)
    count = ndimage.label(mask, TOUCHING, output=pieces)
    if count < 2:
        return
    sizes = np.zeros(count + 1, dtype=np.int64)
    for _, slab in _slabs(pieces):
        sizes += np.bincount(slab.ravel(), minlength=count + 1)
    largest = 1 + int(np.argmax(sizes[1:]))
    for part, slab in _slabs(pieces):
        values[part][(slab != 0) & (slab != largest)] = background


def _boxes(values: NDArray[Any], wanted: Sequence[int]) -> dict[int, Slices]:
    """The box around the voxels of each value that occurs."""
    boxes: dict[int, Slices] = {}
    table = _table(values.dtype, wanted)
    for part, slab in _slabs(values):
        if table is not None:
            places = table[slab]
        else:
            nearest = np.minimum(np.searchsorted(wanted, slab), len(wanted) - 1)
            places = np.where(np.asarray(wanted)[nearest] == slab, nearest + 1, 0)
        for value, found in zip(wanted, ndimage.find_objects(places, len(wanted)), strict=True):
            if found is not None:
                here = tuple(_moved(a, whole.start or 0) for a, whole in zip(found, part, strict=True))
                boxes[value] = _union((here[0], here[1], here[2]), boxes.get(value))
    return boxes


def _table(dtype: np.dtype[Any], wanted: Sequence[int]) -> NDArray[np.int32] | None:
    """Value -> its place among the wanted ones, from 1; 0 for others. Negative values count from the table's end, as indices do."""
    if dtype.itemsize > 2:
        return None
    table = np.zeros(1 << (8 * dtype.itemsize), dtype=np.int32)
    for place, value in enumerate(wanted, start=1):
        if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
            table[value] = place
    return table


def _slabs(array: NDArray[Any], voxels: int = 1 << 20) -> Iterator[tuple[Slices, NDArray[Any]]]:
    """An array in slabs across the axis along which it is stored slowest: where each is, and a view of it."""
    axis = int(np.argmax([abs(stride) for stride in array.strides]))
    step = max(1, voxels * array.shape[axis] // max(array.size, 1))
    for start in range(0, array.shape[axis], step):
        part = [slice(None)] * 3
        part[axis] = slice(start, start + step)
        where = (part[0], part[1], part[2])
        yield where, array[where]


def _around(boxes: Sequence[Slices]) -> Slices | None:
    box: Slices | None = None
    for one in boxes:
        box = _union(one, box)
    return box


def _union(a: Slices, b: Slices | None) -> Slices:
    if b is None:
        return a
    i, j, k = (slice(min(x.start, y.start), max(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return (i, j, k)


def _moved(a: slice, by: int) -> slice:
    return slice(a.start + by, a.stop + by)
