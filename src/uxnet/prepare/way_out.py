"""The way out and the way back: from a scan to the network's grid and range, and from the network's labels to the scan's grid.

    prepare:  orient -> normalise -> resample -> crop         (in that order, in one function)
    restore:  paste  -> resample  -> orient back          (decide.py does the same with logits, piece by piece)

What happened on the way out is kept in a `Trail`, a small value that the way back reads; nothing else is consulted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.events import Report, Warn, silent
from uxnet.geometry import AxisOrder, Box, Geometry, axis_order, full_box, resampled
from uxnet.labels import Labels
from uxnet.prepare.intensity import Normaliser, normaliser, one_each
from uxnet.prepare.resample import mapping, resample, resample_labels
from uxnet.recipe import Preparation
from uxnet.volume import Image, Source, Volume

Indices = NDArray[np.unsignedinteger[Any]]

# So many times the spacing of the network no scan has: the finest specimens have 0.05 mm, the coarsest grids are of 4 mm.
_ABSURD = 100


@dataclass(frozen=True)
class Trail:
    """What `prepare` did, enough to undo it.

    geometry, source: of the scan as it came.
    order: the reorientation.
    grid: the whole resampled grid, oriented; `box` is the part of it that was kept.
    """

    geometry: Geometry
    source: Source | None
    order: AxisOrder
    grid: Geometry
    box: Box

    @property
    def oriented(self) -> Geometry:
        """The scan's own voxels in the network's axis order."""
        return self.order.apply_to(self.geometry)

    @property
    def prepared(self) -> Geometry:
        """The grid of the array that the network sees."""
        return self.box.apply_to(self.grid)


def prepare(volume: Volume, preparation: Preparation, threads: int = 1, report: Report = silent) -> tuple[Image, Trail]:
    """A scan as the network wants it.

    Beside the scan and the result, only slabs are in memory; but for intensities that ask for percentiles or deviations of other
    voxels than whole numbers of up to 16 bits, which take 4 bytes a voxel for a moment.

    Args:
        volume: an image, (C, I, J, K), of any type of numbers.
        preparation: orientation, spacing, intensity and crop.
        threads: that work on slabs side by side.
        report: hears a Warn of padding (see intensity.py), and of a channel beside others of which nothing is left to be seen.

    Returns:
        The image, (C, I', J', K') float32, on the grid `trail.prepared`; and the trail back.

    Raises:
        VolumeError: if the number of channels and of intensity entries do not fit, or the scan's spacing is absurd beside the one asked
            for, or values are not finite, or a scan that is not constant has no spread but for its padding and within the window.
    """
    entries = one_each(volume.channels, preparation.intensity, volume.name)
    order = axis_order(volume.geometry, preparation.orientation)
    oriented = order.apply(volume.array)
    grid = _grid(order.apply_to(volume.geometry), preparation, volume.name)
    box = _crop_box(oriented, order.apply_to(volume.geometry), grid, preparation.crop_above)
    trail = Trail(volume.geometry, volume.source, order, grid, box)
    normalisers = [normaliser(channel, entry, volume.name) for channel, entry in zip(oriented, entries, strict=True)]
    _judge(normalisers, volume.name, report)

    spline = 3 if preparation.interpolation == "cubic" else 1
    image = np.empty((volume.channels, *trail.prepared.shape), dtype=np.float32)
    for into, channel, one in zip(image, oriented, normalisers, strict=True):
        resample(channel, trail.oriented, trail.prepared, spline, ranged=one.apply, out=into, threads=threads)
    return image, trail


def prepare_labels(indices: Indices, trail: Trail, interpolation: str) -> Indices:
    """A label map's indices on the grid of the prepared image.

    Args:
        indices: (I, J, K) on the scan's own grid.
        trail: of the image.
        interpolation: "nearest" or "by_class".

    Returns:
        (I', J', K'), of the same type.
    """
    oriented = trail.order.apply(indices)
    return np.ascontiguousarray(resample_labels(oriented, trail.oriented, trail.prepared, interpolation))


def restore(indices: Indices, trail: Trail, labels: Labels, interpolation: str = "by_class") -> Volume:
    """The network's labels on the scan's own grid, as values; background where the crop had cut off.

    Args:
        indices: (I', J', K') on the grid `trail.prepared`.
        interpolation: "nearest" or "by_class"; where the spacing was kept both give the labels voxel for voxel.

    Returns:
        A label map (1, I, J, K) of the smallest integer type, on exactly the original geometry.
    """
    _expect(indices.shape, trail)
    where = covered(trail)
    part = resample_labels(indices, trail.prepared, where.apply_to(trail.oriented), interpolation)
    return _finish(labels.decode(part), where, trail, labels)


def _judge(normalisers: Sequence[Normaliser], name: str, report: Report) -> None:
    """Warns of padding; refuses a scan of which nothing is left to be seen, and warns where that is one channel of several."""
    several = len(normalisers) > 1
    for number, one in enumerate(normalisers):
        for told in one.measured.told():
            report(Warn(f"{name}: {f'of channel {number}, ' if several else ''}{told}"))
    empty = {number: one.empty for number, one in enumerate(normalisers) if one.empty}
    if empty and all(one.empty or one.measured.flat for one in normalisers):
        raise VolumeError(f"{name}: {next(iter(empty.values()))}")
    for number, why in empty.items():
        report(Warn(f"{name}: channel {number}: {why}"))


def _grid(oriented: Geometry, preparation: Preparation, name: str) -> Geometry:
    if not preparation.spacing_mm:
        return oriented
    ratios = [has / wanted for has, wanted in zip(oriented.spacing_mm, preparation.spacing_mm, strict=True)]
    # Not left to the resampling: it would give a grid that no memory holds, or one of a single voxel.
    if max(ratios) > _ABSURD or min(ratios) < 1 / _ABSURD:
        here, there = (" x ".join(f"{mm:g}" for mm in spacing) for spacing in (oriented.spacing_mm, preparation.spacing_mm))
        raise VolumeError(
            f"{name}: its spacing is {here} mm ({preparation.orientation}), and {there} mm are asked for: over {_ABSURD} times as much or "
            "as little; correct its affine, which may be in another unit than mm"
        )
    return resampled(oriented, preparation.spacing_mm)


def _crop_box(image: NDArray[Any], oriented: Geometry, grid: Geometry, above: float | None) -> Box:
    """The box of `grid` that holds every voxel of `image` above the threshold; all of it where there is none."""
    if above is None:
        return full_box(grid.shape)
    hits = _rows_above(image, above)
    if not hits[0].any():
        return full_box(grid.shape)
    scale, shift = mapping(grid, oriented)  # an index of `oriented` -> of `grid`
    start, stop = [], []
    for axis in range(3):
        hit = np.flatnonzero(hits[axis])
        start.append(max(0, int(np.floor(scale[axis] * hit[0] + shift[axis]))))
        stop.append(min(grid.shape[axis], int(np.ceil(scale[axis] * hit[-1] + shift[axis])) + 1))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _rows_above(image: NDArray[Any], above: float) -> list[NDArray[np.bool_]]:
    """Along each axis, which slices hold a voxel above the threshold; slice by slice, since a mask would be as large as the scan."""
    hits = [np.zeros(side, dtype=bool) for side in image.shape[1:]]
    axis = int(np.argmax([abs(stride) for stride in image.strides[1:]]))
    first, second = (hits[a] for a in range(3) if a != axis)
    for channel in image:
        for n, one in enumerate(np.moveaxis(channel, axis, 0)):
            inside = one > above
            rows = inside.any(axis=1)
            hits[axis][n] |= rows.any()
            first |= rows
            second |= inside.any(axis=0)
    return hits


def rule_of_air(volume: Volume, trail: Trail, preparation: Preparation) -> Callable[[Box], bool] | None:
    """Whether a box of the prepared image holds anything above the recipe's `crop_above`; None where the recipe has no such rule.

    What is asked about is the scan's own voxels, all those that the box was resampled from.
    """
    above = preparation.crop_above
    if above is None:
        return None
    image = trail.order.apply(volume.array)
    scale, shift = mapping(trail.oriented, trail.prepared)
    reach = 3 if preparation.interpolation == "cubic" else 1

    def holds(box: Box) -> bool:
        parts = []
        for axis in range(3):
            first = int(np.floor(scale[axis] * box.start[axis] + shift[axis])) - reach
            last = int(np.ceil(scale[axis] * (box.stop[axis] - 1) + shift[axis])) + reach
            parts.append(slice(max(first, 0), max(last + 1, 1)))
        part = image[(slice(None), *parts)]
        return bool(part.size) and float(part.max()) > above

    return holds


def covered(trail: Trail) -> Box:
    """The box of the scan's own (oriented) voxels whose centres lie inside the prepared grid.

    Where nothing was cropped it reaches to the scan's edge: a grid of whole voxels may end a little before the scan does.
    """
    oriented = trail.oriented
    scale, shift = mapping(oriented, trail.prepared)  # an index of the prepared grid -> of the scan's
    start, stop = [], []
    for axis in range(3):
        low, high = scale[axis] * -0.5 + shift[axis], scale[axis] * (trail.box.shape[axis] - 0.5) + shift[axis]
        side = oriented.shape[axis]
        start.append(0 if trail.box.start[axis] == 0 else max(0, int(np.ceil(low - 1e-6))))
        last = max(start[-1], int(np.floor(high + 1e-6)))
        stop.append(side if trail.box.stop[axis] == trail.grid.shape[axis] else min(side, last + 1))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _finish(values: NDArray[Any], where: Box, trail: Trail, labels: Labels) -> Volume:
    array = np.full(trail.geometry.shape, labels.background, dtype=labels.dtype)
    trail.order.apply(array)[where.slices] = values
    return Volume(array[np.newaxis], trail.geometry, trail.source)


def _expect(shape: tuple[int, ...], trail: Trail) -> None:
    if shape != trail.box.shape:
        raise VolumeError(f"labels of shape {shape} do not lie on the prepared grid of shape {trail.box.shape}")
