"""Slices of the ground truth and of each network, with a box around where the networks differ most: the paper's figure 4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uxnet.draw.comparison import panel
from uxnet.draw.frame import draw_frame, frame_of
from uxnet.draw.page import INK, blank_figure
from uxnet.draw.slices import Limits, Picture, Plane, edge_letters, one_slice, plane_axis, robust_limits, slice_picture
from uxnet.errors import InputError
from uxnet.geometry import Box, axis_order
from uxnet.labels import Labels
from uxnet.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 1 / 3
"""Of each side of a slice that the box takes."""

RULE = (
    "Box: a third of each side of the slice; of all places in slices that show at least half as much of the ground truth as any, the one "
    "that holds most voxels, each counted once for every pair of networks that disagree on it."
)
_LEAST = 0.5  # of the largest slice of the reference: a slice without it, or with its tip, shows no reader what is right
_BOX = "#ffffff"


@dataclass(frozen=True)
class Spot:
    """A box in a slice: the slice's index along the patient's axis, and [start, stop) along the two other axes of a RAS array."""

    index: int
    start: tuple[int, int]
    stop: tuple[int, int]


@dataclass(frozen=True)
class ZoomedRow:
    """One case of `zoomed_figure`.

    name: written at the left.
    image: (C, I, J, K); its first channel is shown.
    maps: label maps (1, I, J, K) on the image's grid, the ground truth first; None leaves a panel dark.
    texts: what is written under each map; may be empty.
    spot: the slice and the box; by default `most_different` of the maps.
    """

    name: str
    image: Volume
    maps: tuple[Volume | None, ...]
    texts: tuple[str, ...] = ()
    plane: Plane = "axial"
    spot: Spot | None = None


def most_different(reference: Volume, maps: Sequence[Volume], plane: Plane = "axial", share: float = SHARE, background: int = 0) -> Spot:
    """The slice and box where label maps differ most.

    A voxel weighs as many as there are pairs of maps with different labels there; of one map alone, whether it differs from the
    reference. Of the slices that show at least half as many labelled voxels of the reference as any, and all boxes of `share` of a
    slice's sides, the one with the most weight; of several with the same weight the first slice, and in it the box nearest to the centre
    of its weight. Where nothing differs there, the box lies around the middle of the reference's largest labelled slice.

    Raises:
        InputError: if there is no map, or the maps' grids are not the reference's.
    """
    if not maps:
        raise InputError("there is no label map to compare")
    for one in maps:
        if one.geometry.shape != reference.geometry.shape:
            raise InputError(f"{one.name}: its grid {one.geometry.shape} is not that of {reference.name}, {reference.geometry.shape}")
    axis = plane_axis(plane)
    planes = [np.moveaxis(_ras(one), axis, 0) for one in maps]
    truth = np.moveaxis(_ras(reference), axis, 0)
    pairs = list(combinations(planes, 2)) or [(planes[0], truth)]
    weight = np.zeros(truth.shape, dtype=np.int32)
    for left, right in pairs:
        weight += left != right
    marked = truth != background
    labelled = marked.sum(axis=(1, 2))
    weight[labelled < labelled.max() * _LEAST] = 0
    if not weight.any():
        weight = (marked * (np.arange(len(truth)) == int(labelled.argmax()))[:, None, None]).astype(np.int32)
    if not weight.any():
        weight[len(weight) // 2] = 1
    sides = (max(1, round(truth.shape[1] * share)), max(1, round(truth.shape[2] * share)))
    sums = np.stack([_window_sums(flat, sides) for flat in weight])
    index = int(np.unravel_index(int(sums.argmax()), sums.shape)[0])
    best = np.argwhere(sums[index] == sums[index].max())
    a, b = (int(n) for n in best[0])
    inside = weight[index, a : a + sides[0], b : b + sides[1]]
    middle = np.average(np.argwhere(inside), axis=0, weights=inside[inside > 0]) + np.array((a, b))
    nearest = np.square(best + (np.array(sides) - 1) / 2 - middle).sum(axis=1)
    start = best[int(nearest.argmin())]
    return Spot(index, (int(start[0]), int(start[1])), (int(start[0]) + sides[0], int(start[1]) + sides[1]))


def zoomed_figure(
    path: Path,
    rows: Sequence[ZoomedRow],
    labels: Labels,
    *,
    columns: Sequence[str],
    title: str = "",
    note: str = "",
    limits: Limits | None = None,
    fill: float = 0.35,
    dpi: int = 150,
) -> None:
    """A page: for each case a row of slices with their box, and under it the row of the boxes, enlarged.

    Args:
        path: ends in .png or .svg (the writing and boxes are then vectors, the slices pictures).
        columns: titles, one a map of the rows: the ground truth, then the networks.
        note: a sentence for the foot of the page.
        limits, fill: as for `slice_picture`.
        dpi: dots an inch of a .png.

    Raises:
        InputError: if there are no rows, a row has another number of maps than there are columns or none at all, grids differ, or the
            file cannot be written.
    """
    if not rows:
        raise InputError(f"{path}: there are no cases to draw")
    for row in rows:
        if len(row.maps) != len(columns) or row.maps[0] is None:
            raise InputError(f"{path}: the case {row.name} needs a ground truth and {len(columns) - 1} label maps beside it")
    width, gap, under = 1.9, 0.05, 0.3
    spots = [row.spot or _default_spot(row, labels.background) for row in rows]
    drawn = [_pictures(row, spot, labels, limits, fill, dpi, width) for row, spot in zip(rows, spots, strict=True)]
    heights = [min(1.15, whole[0].shape[0] / whole[0].shape[1]) * width for whole, _ in drawn]
    names, both, each = [row.name for row in rows], [2 * h + gap for h in heights], width + gap
    frame = frame_of(labels, title=title, columns=columns, names=names, heights=both, note=note, column_inch=each, points=9.0)
    total_w, total_h = frame.width, frame.head + sum(h + under for h in both) + frame.foot
    with blank_figure(path, (total_w, total_h), dpi) as figure:
        top, middles = total_h - frame.head, []
        for row, spot, (whole, near), h in zip(rows, spots, drawn, heights, strict=True):
            top -= 2 * h + gap
            middles.append(top + h)
            for n in range(len(columns)):
                x = frame.left + n * each
                above = (x / total_w, (top + h + gap) / total_h, width / total_w, h / total_h)
                below = (x / total_w, top / total_h, width / total_w, h / total_h)
                axes = figure.add_axes(above)
                panel(axes, whole[n], edge_letters(row.plane) if n == 0 else None)
                shown = row.maps[n] is not None
                if shown:
                    _mark(axes, row, spot, whole[n].shape)
                _near(figure, below, near[n], framed=shown)
                if n < len(row.texts):
                    middle = (x + width / 2) / total_w
                    figure.text(middle, (top - 0.05) / total_h, row.texts[n], ha="center", va="top", fontsize=8.5, color=INK)
            top -= under
        draw_frame(figure, frame, labels, column_inch=each, panel_inch=width, middles=middles)


def _default_spot(row: ZoomedRow, background: int) -> Spot:
    truth, others = row.maps[0], [one for one in row.maps[1:] if one is not None]
    if truth is None or not others:
        raise InputError(f"the case {row.name} has no label map of a network; say where to look by `spot`")
    return most_different(truth, others, row.plane, background=background)


def _pictures(
    row: ZoomedRow, spot: Spot, labels: Labels, limits: Limits | None, fill: float, dpi: int, width_inch: float
) -> tuple[list[Picture], list[Picture]]:
    """Every column's slice, and its box enlarged."""
    window = limits or robust_limits(row.image)
    side, outline = round(width_inch * dpi * 1.3), max(1, round(dpi / 120))
    image = one_slice(row.image, row.plane, spot.index)
    whole: list[Picture] = []
    near: list[Picture] = []
    for one in row.maps:
        cut = None if one is None else one_slice(one, row.plane, spot.index)
        pairs = ((image, cut), (_boxed(image, row.plane, spot), None if cut is None else _boxed(cut, row.plane, spot)))
        for kept, (grey, drawn) in zip((whole, near), pairs, strict=True):
            picture = slice_picture(
                grey, row.plane, 0, label_map=drawn, labels=labels, limits=window, side_px=side, outline_px=outline, fill=fill
            )
            kept.append(picture if drawn is not None else np.zeros_like(picture))
    return whole, near


def _boxed(flat: Volume, plane: Plane, spot: Spot) -> Volume:
    """The box of a slice from `one_slice`."""
    axis = plane_axis(plane)
    start, stop = list(spot.start), list(spot.stop)
    start.insert(axis, 0)
    stop.insert(axis, 1)
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return Volume(flat.array[(slice(None), *box.slices)].copy(), box.apply_to(flat.geometry), flat.source)


def _mark(axes: Any, row: ZoomedRow, spot: Spot, shape: tuple[int, ...]) -> None:
    """The box in a slice: both axes of a RAS slice run against the picture's."""
    from matplotlib.patches import Rectangle

    order = axis_order(row.image.geometry, "RAS")
    sides = [n for a, n in enumerate(order.apply_to(row.image.geometry).shape) if a != plane_axis(row.plane)]
    scale = (shape[1] / sides[0], shape[0] / sides[1])
    x, y = ((sides[a] - spot.stop[a]) * scale[a] - 0.5 for a in (0, 1))
    w, h = ((spot.stop[a] - spot.start[a]) * scale[a] for a in (0, 1))
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="black", linewidth=2.4))
    axes.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=_BOX, linewidth=1.2))


def _near(figure: Figure, place: tuple[float, float, float, float], picture: Picture, *, framed: bool) -> None:
    axes = figure.add_axes(place)
    panel(axes, picture, None)
    for spine in axes.spines.values():
        spine.set_visible(framed)
        spine.set_color("#d0d7de")
        spine.set_linewidth(1.2)


def _ras(volume: Volume) -> NDArray[Any]:
    return axis_order(volume.geometry, "RAS").apply(volume.array[0])


def _window_sums(flat: NDArray[np.int32], sides: tuple[int, int]) -> NDArray[np.int64]:
    """The sum of every window of these sides, by its first corner."""
    total = np.zeros((flat.shape[0] + 1, flat.shape[1] + 1), dtype=np.int64)
    total[1:, 1:] = flat.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    a, b = sides
    sums: NDArray[np.int64] = total[a:, b:] - total[:-a, b:] - total[a:, :-b] + total[:-a, :-b]
    return sums
