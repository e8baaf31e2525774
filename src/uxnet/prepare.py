"""The way out and the way back: from a scan to the network's grid and range, and from the network's labels to the scan's grid.

    prepare:  orient -> normalise -> resample -> crop         (in that order, in one function)
    restore:  paste  -> resample  -> orient back

What happened on the way out is kept in a `Trail`, a small value that the way back reads; nothing else is consulted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uxnet.errors import VolumeError
from uxnet.geometry import AxisOrder, Box, Geometry, axis_order, full_box, resampled
from uxnet.labels import Labels
from uxnet.recipe import Intensity, Preparation
from uxnet.volume import Image, Source, Volume

Indices = NDArray[np.unsignedinteger[Any]]


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


def prepare(volume: Volume, preparation: Preparation) -> tuple[Image, Trail]:
    """A scan as the network wants it.

    Args:
        volume: an image, (C, I, J, K).
        preparation: orientation, spacing, intensity and crop.

    Returns:
        The image, (C, I', J', K') float32, on the grid `trail.prepared`; and the trail back.

    Raises:
        VolumeError: if the number of channels and of intensity entries do not fit.
    """
    order = axis_order(volume.geometry, preparation.orientation)
    oriented = order.apply(volume.array)
    grid = _grid(order.apply_to(volume.geometry), preparation)
    box = _crop_box(oriented, order.apply_to(volume.geometry), grid, preparation.crop_above)
    trail = Trail(volume.geometry, volume.source, order, grid, box)

    normalised = normalise(oriented, preparation.intensity, volume.name)
    spline = 3 if preparation.interpolation == "cubic" else 1
    image = np.stack([_resample(channel, trail.oriented, trail.prepared, spline) for channel in normalised])
    return np.ascontiguousarray(image, dtype=np.float32), trail


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
    return np.ascontiguousarray(_resample_labels(oriented, trail.oriented, trail.prepared, interpolation))


def restore(indices: Indices, trail: Trail, labels: Labels, interpolation: str = "by_class") -> Volume:
    """The network's labels on the scan's own grid, as values; background where the crop had cut off.

    Args:
        indices: (I', J', K') on the grid `trail.prepared`.
        interpolation: "nearest" or "by_class"; where the spacing was kept both give the labels voxel for voxel.

    Returns:
        A label map (1, I, J, K) of the smallest integer type, on exactly the original geometry.
    """
    _expect(indices.shape, trail)
    where = _covered(trail)
    part = _resample_labels(indices, trail.prepared, where.apply_to(trail.oriented), interpolation)
    return _finish(labels.decode(part), where, trail, labels)


def restore_logits(logits: Sequence[NDArray[Any]] | NDArray[Any], trail: Trail, labels: Labels) -> Volume:
    """The labels that logits mean, decided on the scan's own grid: each channel is resampled linearly, one at a time.

    Softmax labels take the strongest channel; regions are written in their order wherever their logit is above 0.

    Args:
        logits: `labels.out_channels` arrays of (I', J', K') on the grid `trail.prepared`.

    Returns:
        A label map (1, I, J, K) of the smallest integer type, on exactly the original geometry.
    """
    _expect(logits[0].shape, trail)
    where = _covered(trail)
    target = where.apply_to(trail.oriented)
    channels = (_resample(np.asarray(channel, dtype=np.float32), trail.prepared, target, 1) for channel in logits)
    if labels.regions:
        values = np.full(target.shape, labels.background, dtype=labels.dtype)
        for region, channel in zip(labels.regions, channels, strict=True):
            values[channel > 0] = region.writes
        return _finish(values, where, trail, labels)
    strongest = next(channels).copy()
    indices = np.zeros(target.shape, dtype=np.uint16)
    for index, channel in enumerate(channels, start=1):
        above = channel > strongest
        indices[above] = index
        strongest[above] = channel[above]
    return _finish(labels.decode(indices), where, trail, labels)


def normalise(image: NDArray[Any], intensity: Sequence[Intensity], name: str = "image") -> Image:
    """Each channel brought to the range that its entry of `intensity` asks for.

    Args:
        image: (C, I, J, K).
        intensity: one entry for all channels, or one a channel.
        name: of the scan, for the message.

    Returns:
        (C, I, J, K) float32; a constant channel becomes 0.

    Raises:
        VolumeError: if there are neither one nor C entries.
    """
    if len(intensity) not in (1, image.shape[0]):
        raise VolumeError(f"{name}: it has {image.shape[0]} channels, the recipe gives intensities for {len(intensity)}")
    entries = list(intensity) * (image.shape[0] if len(intensity) == 1 else 1)
    return np.stack([_normalise_channel(channel, entry) for channel, entry in zip(image, entries, strict=True)])


def _normalise_channel(channel: NDArray[Any], intensity: Intensity) -> Image:
    x = channel.astype(np.float32)
    if intensity.clip:
        x = np.clip(x, intensity.clip[0], intensity.clip[1])
    if intensity.scale == "none":
        return x
    if intensity.scale == "range":
        low, high = intensity.clip
    else:
        counted = x[channel != 0] if intensity.nonzero else x
        if not counted.size:
            return np.zeros_like(x)
        low, high = (float(v) for v in np.percentile(counted, (intensity.low, intensity.high)))
        if intensity.scale == "zscore":
            clipped = np.clip(counted, low, high)
            mean, deviation = float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
            return (np.clip(x, low, high) - mean) / deviation if deviation > 0 else np.zeros_like(x)
    return np.clip((x - low) / (high - low), 0, 1) if high > low else np.zeros_like(x)


def _grid(oriented: Geometry, preparation: Preparation) -> Geometry:
    return resampled(oriented, preparation.spacing_mm) if preparation.spacing_mm else oriented


def _crop_box(image: NDArray[Any], oriented: Geometry, grid: Geometry, above: float | None) -> Box:
    """The box of `grid` that holds every voxel of `image` above the threshold; all of it where there is none."""
    if above is None:
        return full_box(grid.shape)
    inside: NDArray[np.bool_] = np.any(image > above, axis=0)
    if not inside.any():
        return full_box(grid.shape)
    scale, shift = _mapping(grid, oriented)  # an index of `oriented` -> of `grid`
    start, stop = [], []
    for axis in range(3):
        hit = np.flatnonzero(inside.any(axis=tuple(a for a in range(3) if a != axis)))
        start.append(max(0, int(np.floor(scale[axis] * hit[0] + shift[axis]))))
        stop.append(min(grid.shape[axis], int(np.ceil(scale[axis] * hit[-1] + shift[axis])) + 1))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _covered(trail: Trail) -> Box:
    """The box of the scan's own (oriented) voxels whose centres lie inside the prepared grid.

    Where nothing was cropped it reaches to the scan's edge: a grid of whole voxels may end a little before the scan does.
    """
    oriented = trail.oriented
    scale, shift = _mapping(oriented, trail.prepared)  # an index of the prepared grid -> of the scan's
    start, stop = [], []
    for axis in range(3):
        low, high = scale[axis] * -0.5 + shift[axis], scale[axis] * (trail.box.shape[axis] - 0.5) + shift[axis]
        side = oriented.shape[axis]
        start.append(0 if trail.box.start[axis] == 0 else max(0, int(np.ceil(low - 1e-6))))
        last = max(start[-1], int(np.floor(high + 1e-6)))
        stop.append(side if trail.box.stop[axis] == trail.grid.shape[axis] else min(side, last + 1))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _mapping(to: Geometry, of: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(scale, shift) along each axis that take an index of the grid `of` to one of the grid `to`, whose axes are parallel."""
    matrix = np.linalg.inv(to.affine_ras) @ of.affine_ras
    scale = np.diag(matrix)[:3].copy()
    shift = matrix[:3, 3].copy()
    # Equal spacings must give exactly equal grids: rounding in the inverse would move labels by a voxel at ties.
    scale[np.abs(scale - 1) < 1e-9] = 1.0
    near = np.abs(shift - np.rint(shift)) < 1e-6
    shift[near] = np.rint(shift[near])
    return scale, shift


def _resample(array: NDArray[Any], source: Geometry, target: Geometry, spline: int) -> NDArray[Any]:
    """`array` (I, J, K) on `source`, read at the voxel centres of `target`; beyond the edge the edge's value counts."""
    scale, shift = _mapping(source, target)
    if (scale == 1).all() and (shift == np.rint(shift)).all():
        start = shift.astype(int)
        stop = start + np.array(target.shape)
        if (start >= 0).all() and (stop <= np.array(array.shape)).all():
            return array[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    resampled_array: NDArray[Any] = ndimage.affine_transform(
        array, scale, offset=shift, output_shape=target.shape, order=spline, mode="nearest"
    )
    return resampled_array


def _resample_labels(indices: Indices, source: Geometry, target: Geometry, interpolation: str) -> Indices:
    if interpolation == "nearest" or (_mapping(source, target)[0] == 1).all():
        return _resample(indices, source, target, 0)
    best = np.zeros(target.shape, dtype=np.float32)
    out = np.zeros(target.shape, dtype=indices.dtype)
    for index in np.unique(indices):
        share = _resample((indices == index).astype(np.float32), source, target, 1)
        ahead = share > best
        out[ahead] = index
        best[ahead] = share[ahead]
    return out


def _finish(values: NDArray[Any], where: Box, trail: Trail, labels: Labels) -> Volume:
    oriented = np.full(trail.oriented.shape, labels.background, dtype=labels.dtype)
    oriented[where.slices] = values
    array = np.ascontiguousarray(trail.order.inverse.apply(oriented))
    return Volume(array[np.newaxis], trail.geometry, trail.source)


def _expect(shape: tuple[int, ...], trail: Trail) -> None:
    if shape != trail.box.shape:
        raise VolumeError(f"labels of shape {shape} do not lie on the prepared grid of shape {trail.box.shape}")
