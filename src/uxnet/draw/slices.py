"""Slices of scans as pictures, with the outlines of their labels.

Slices are shown as radiologists look at them, whatever the axes of the file: axial from below (the patient's right on the left of the
picture, front at the top), coronal from the front, sagittal from the patient's left (front on the left of the picture). Voxels keep
their true proportions. Oblique grids are shown along their own axes, under the names of the nearest patient axes.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uxnet.errors import InputError
from uxnet.geometry import Box, axis_order
from uxnet.labels import Labels
from uxnet.prepare.intensity import measure, without_padding
from uxnet.volume import Volume

Plane = Literal["axial", "coronal", "sagittal"]
Picture = NDArray[np.uint8]
Limits = tuple[float, float]

# The axis of a RAS array that a plane cuts, and the letters at the left, right, top and bottom of its picture.
_CUTS: dict[str, tuple[int, tuple[str, str, str, str]]] = {
    "axial": (2, ("R", "L", "A", "P")),
    "coronal": (1, ("R", "L", "S", "I")),
    "sagittal": (0, ("A", "P", "S", "I")),
}


def edge_letters(plane: Plane) -> tuple[str, str, str, str]:
    """The patient's sides at the left, right, top and bottom of a picture of this plane: R, L, A, P, S, I."""
    return _CUTS[plane][1]


def plane_axis(plane: Plane) -> int:
    """The axis of a RAS array that a plane cuts."""
    return _CUTS[plane][0]


def best_slice(volume: Volume, plane: Plane, background: int = 0) -> int:
    """The slice of a label map with the most different labels and, among those, the most labelled voxels.

    Counted along the patient's axis, as `slice_picture` takes it. The middle one where nothing is labelled.
    """
    planes = np.moveaxis(_ras(volume), _CUTS[plane][0], 0)
    values = [v for v in np.unique(planes) if v != background]
    if not values:
        return int(planes.shape[0]) // 2
    counts = np.array([(planes == v).sum(axis=(1, 2)) for v in values])
    kinds, voxels = (counts > 0).sum(axis=0), counts.sum(axis=0)
    return int(np.lexsort((voxels, kinds))[-1])


def robust_limits(volume: Volume, channel: int = 0) -> Limits:
    """An intensity window (low, high): the 0.5th and 99.5th percentile of what is no padding."""
    values = volume.array[channel]
    values = without_padding(values, measure(values))
    low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def one_slice(volume: Volume, plane: Plane, index: int, channel: int = 0) -> Volume:
    """One slice of a volume, as a volume (1, R, A, S) along the patient's axes with one voxel across: all that a picture of it needs.

    Args:
        index: counted along the patient's axis, as `slice_picture` takes it.

    Raises:
        InputError: if the index lies outside.
    """
    order, axis = axis_order(volume.geometry, "RAS"), _CUTS[plane][0]
    geometry = order.apply_to(volume.geometry)
    _check_index(volume, plane, index, geometry.shape[axis])
    start = tuple(index if a == axis else 0 for a in range(3))
    stop = tuple(index + 1 if a == axis else n for a, n in enumerate(geometry.shape))
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return Volume(_ras(volume, channel)[box.slices][None].copy(), box.apply_to(geometry), volume.source)


def slice_picture(
    image: Volume,
    plane: Plane = "axial",
    index: int | None = None,
    *,
    label_map: Volume | None = None,
    labels: Labels | None = None,
    limits: Limits | None = None,
    channel: int = 0,
    side_px: int = 512,
    outline_px: int = 2,
    fill: float = 0.0,
) -> Picture:
    """One slice in grey with the outlines of its labels in their colours, as RGB (H, W, 3) uint8.

    Args:
        image: (C, I, J, K) along any axes.
        index: counted along the patient's axis; by default the best slice of `label_map`, or the middle one.
        label_map: (1, I, J, K) values on the image's grid; needs `labels`.
        limits: the window (low, high) that is shown from black to white; robust percentiles by default.
        side_px: the longer side of the picture; the other follows from the true proportions.
        outline_px: the outlines' width; they run inside the labels, so that neighbours both show. 0 for none.
        fill: how much of the labels' colour covers their inside, 0..1.

    Raises:
        InputError: if the index lies outside, or the label map's grid is not the image's.
    """
    axis = _CUTS[plane][0]
    count = _ras(image).shape[axis]
    if index is None:
        background = labels.background if labels else 0
        index = count // 2 if label_map is None else best_slice(label_map, plane, background)
    _check_index(image, plane, index, count)
    low, high = limits or robust_limits(image, channel)
    sides = _display_shape(image, plane, side_px)
    grey = _stretched(_cut(image, plane, index, channel).astype(np.float32), sides)
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    rgb: NDArray[np.float32] = np.repeat(grey[:, :, None], 3, axis=2) * 255
    if label_map is not None and labels is not None:
        if label_map.geometry.shape != image.geometry.shape:
            raise InputError(
                f"{label_map.name}: its grid {label_map.geometry.shape} is not that of {image.name}, {image.geometry.shape}; "
                "only a label map on the image's own grid can be drawn over it"
            )
        shown = _smooth_labels(_cut(label_map, plane, index, 0), sides, labels)
        edge = _edge(shown, outline_px)
        for n, label in enumerate(labels.foreground, start=1):
            colour = np.array(labels.colour(label.name), dtype=np.float32)
            inside = shown == n
            rgb[inside] = (1 - fill) * rgb[inside] + fill * colour
            rgb[inside & edge] = colour
    return np.rint(rgb).astype(np.uint8)


def _check_index(volume: Volume, plane: Plane, index: int, count: int) -> None:
    if not 0 <= index < count:
        raise InputError(f"{volume.name}: there is no {plane} slice {index}; there are {count}, from 0 on")


def _ras(volume: Volume, channel: int = 0) -> NDArray[Any]:
    return axis_order(volume.geometry, "RAS").apply(volume.array[channel])


def _cut(volume: Volume, plane: Plane, index: int, channel: int) -> NDArray[Any]:
    """A slice (rows, columns) the way it is shown: both axes of a RAS slice run against the picture's."""
    flat: NDArray[Any] = np.take(_ras(volume, channel), index, axis=_CUTS[plane][0])
    return flat[::-1, ::-1].T


def _display_shape(volume: Volume, plane: Plane, side_px: int) -> tuple[int, int]:
    geometry = axis_order(volume.geometry, "RAS").apply_to(volume.geometry)
    across, down = (n * s for a, (n, s) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True)) if a != _CUTS[plane][0])
    scale = side_px / max(across, down)
    return max(1, round(down * scale)), max(1, round(across * scale))


def _stretched(flat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Linear, with pixels as areas: the picture's border is the outermost voxels' border, not their centres."""
    rows, columns = (np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in zip(shape, flat.shape, strict=True))
    grid = np.meshgrid(rows, columns, indexing="ij")
    stretched: NDArray[np.float32] = ndimage.map_coordinates(flat, grid, order=1, mode="nearest")
    return stretched


def _smooth_labels(flat: NDArray[Any], shape: tuple[int, int], labels: Labels) -> NDArray[np.int64]:
    """Indices 0..n at the picture's size: each label is stretched linearly and the strongest wins, so outlines show no stairs."""
    values = [label.value for label in labels.foreground]
    present = [n for n, value in enumerate(values, start=1) if (flat == value).any()]
    strength = np.zeros((len(present) + 1, *shape), dtype=np.float32)
    for n, index in enumerate(present, start=1):
        strength[n] = _stretched((flat == values[index - 1]).astype(np.float32), shape)
    strength[0] = 1 - strength[1:].sum(axis=0)
    indices: NDArray[np.int64] = np.array([0, *present])[strength.argmax(axis=0)]
    return indices


def _edge(shown: NDArray[np.int64], width_px: int) -> NDArray[np.bool_]:
    if width_px < 1:
        return np.zeros(shown.shape, dtype=np.bool_)
    size = 2 * width_px + 1
    edge: NDArray[np.bool_] = ndimage.maximum_filter(shown, size) != ndimage.minimum_filter(shown, size)
    return edge
