"""How well one predicted label map agrees with its reference, class by class, with a declared answer where a class is missing.

The surface of a mask is its voxels that touch the outside through a face (mask XOR its erosion; beyond the image is outside), as
in MONAI and in Maier-Hein and Reinke et al., "Metrics reloaded" (Nature Methods 2024). Distances run between voxel centres, in mm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

from uxnet.errors import LabelsError, UsageError, VolumeError
from uxnet.geometry import Geometry
from uxnet.labels import IntArray, Labels
from uxnet.volume import Volume

Empty = Literal["skip", "one"]
METRICS = ("dice", "hd95_mm", "nsd")

Mask = NDArray[np.bool_]
Slices = tuple[slice, slice, slice]

# A spacing from a header is rounded in float32, and an oblique one is a square root: 1 mm may read 1.0000001 mm. Distances that
# equal the tolerance but for that rounding must count as within it.
_ROUNDING = 1e-5


class Outcome(StrEnum):
    """Where a class is present: in both maps, only in the reference, only in the prediction, in neither."""

    FOUND = "found"
    MISSED = "missed"
    FALSE_POSITIVE = "false positive"
    ABSENT = "absent"


@dataclass(frozen=True)
class ClassMetrics:
    """How one class of one case agrees. None means "does not count" (see `missing_scores`), never "failed".

    Args:
        name: the class (a label or region).
        dice: 2 |P and R| / (|P| + |R|), 0..1.
        hd95_mm: the larger of the two directed 95th percentiles of the surface distances.
        nsd: surface Dice: the share of both surfaces' voxels that lie within the tolerance of the other surface, 0..1.
        predicted_ml: the class's volume in the prediction.
        reference_ml: and in the reference.
    """

    name: str
    dice: float | None
    hd95_mm: float | None
    nsd: float | None
    predicted_ml: float
    reference_ml: float

    @property
    def outcome(self) -> Outcome:
        """Found, missed, false positive or absent."""
        return _outcome(self.predicted_ml > 0, self.reference_ml > 0)


def case_metrics(
    predicted: Volume, reference: Volume, labels: Labels, *, tolerance_mm: float = 1.0, empty: Empty = "skip"
) -> tuple[ClassMetrics, ...]:
    """The metrics of every class of `labels` for one case.

    Args:
        predicted: a label map (1, I, J, K) of integer values.
        reference: another on the same grid. Where it shows `labels.ignore`, both count as background, in volumes too.
        tolerance_mm: how far apart two surfaces may lie and still agree in the surface Dice.
        empty: what a class counts that is in neither map: "skip" nothing, "one" as perfect.

    Raises:
        VolumeError: if the grids differ (naming both files), or a map is no single channel of integers.
        LabelsError: if a map holds values that are no labels (naming file and values).
        UsageError: if the tolerance is negative or not finite, or `empty` is neither word.
    """
    check_settings(tolerance_mm, empty)
    if not predicted.geometry.same_grid(reference.geometry):
        raise VolumeError(
            f"{predicted.name}: its grid ({_grid(predicted.geometry)}) is not that of the reference {reference.name} "
            f"({_grid(reference.geometry)}); bring the prediction back onto the reference's grid, then evaluate again"
        )
    geometry = reference.geometry
    p, boxes_p = _values(predicted, labels)
    r, boxes_r = _values(reference, labels)
    if labels.ignore is not None:
        ignored = r == labels.ignore
        p, r = np.where(ignored, labels.background, p), np.where(ignored, labels.background, r)
    results = []
    for name in labels.classes:
        box = _union([boxes[value] for value in labels.members(name) for boxes in (boxes_p, boxes_r) if value in boxes])
        masks = (labels.mask(p[box], name), labels.mask(r[box], name))
        results.append(_class_metrics(name, *masks, geometry, tolerance_mm, empty))
    return tuple(results)


def dice_scores(predicted: IntArray, reference: IntArray, labels: Labels) -> dict[str, float | None]:
    """Dice of every class of two label maps of values; None where neither shows it. Ignored voxels count in neither."""
    counted = True if labels.ignore is None else reference != labels.ignore
    scores: dict[str, float | None] = {}
    for name in labels.classes:
        a, b = labels.mask(predicted, name) & counted, labels.mask(reference, name) & counted
        both = int(a.sum()) + int(b.sum())
        scores[name] = 2 * int((a & b).sum()) / both if both else None
    return scores


def shown_classes(reference: IntArray, labels: Labels) -> set[str]:
    """The classes that a label map of values shows, ignored voxels left out."""
    counted = True if labels.ignore is None else reference != labels.ignore
    return {name for name in labels.classes if (labels.mask(reference, name) & counted).any()}


def missing_scores(outcome: Outcome, diagonal_mm: float, empty: Empty = "skip") -> tuple[float | None, float | None, float | None]:
    """The policy for a class that is missing in one map or both: (dice, hd95_mm, nsd); the table in docs/evaluation.md.

    A miss costs the image's diagonal, the longest distance it has room for: any answer scores better than none. With "skip", HD95
    is averaged over the cases that show the class, with "one" over all cases: either way the prediction has no say in which count.

    Raises:
        ValueError: for a class that is in both maps.
    """
    if outcome is Outcome.MISSED:
        return 0.0, diagonal_mm, 0.0
    if outcome is Outcome.FALSE_POSITIVE:
        return 0.0, None if empty == "skip" else diagonal_mm, 0.0
    if outcome is Outcome.ABSENT:
        return (None, None, None) if empty == "skip" else (1.0, 0.0, 1.0)
    raise ValueError("a class that is in both maps is measured, not declared")


def surface_distances(a: Mask, b: Mask, geometry: Geometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each surface voxel of `a` to the nearest of `b`, and back, in mm; of whole images or crops (I, J, K), not empty.

    Voxel centres are placed by the affine, so that sheared grids are measured rightly, too. In an image of one slice the surface is the
    contour in its plane: beyond the only slice is nothing, or every voxel would lie on the surface.

    Args:
        geometry: of the whole image.
    """
    to_mm = geometry.affine_ras[:3, :3].T
    neighbours = ndimage.generate_binary_structure(3, 1)
    for axis in range(3):
        if geometry.shape[axis] == 1 < max(geometry.shape):
            neighbours &= np.moveaxis(np.array([False, True, False])[:, None, None], 0, axis)
    points_a, points_b = (np.argwhere(mask ^ ndimage.binary_erosion(mask, neighbours)) @ to_mm for mask in (a, b))
    # Trees, not distance transforms: surfaces are small beside the box that one stray voxel can blow up.
    there, _ = KDTree(points_b, leafsize=32).query(points_a)
    back, _ = KDTree(points_a, leafsize=32).query(points_b)
    return np.asarray(there, dtype=np.float64), np.asarray(back, dtype=np.float64)


def diagonal_mm(geometry: Geometry) -> float:
    """The length of the image's diagonal in mm, outer corner to outer corner (the longest of the four where a grid is sheared)."""
    corners = np.array([(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)]) * geometry.shape
    return float(np.linalg.norm(corners @ geometry.affine_ras[:3, :3].T, axis=1).max())


def check_settings(tolerance_mm: float, empty: str) -> None:
    """Refuses settings that would make every case wrong.

    Raises:
        UsageError: if the tolerance is negative or not finite, or `empty` is neither "skip" nor "one".
    """
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UsageError(f"tolerance_mm is {tolerance_mm}; give a length in mm, 0 or more")
    if empty not in ("skip", "one"):
        raise UsageError(f'empty is {empty!r}; give "skip" or "one"')


def _class_metrics(name: str, p: Mask, r: Mask, geometry: Geometry, tolerance_mm: float, empty: Empty) -> ClassMetrics:
    count_p, count_r = int(p.sum()), int(r.sum())
    volumes = (count_p * geometry.voxel_mm3 / 1000, count_r * geometry.voxel_mm3 / 1000)
    outcome = _outcome(count_p > 0, count_r > 0)
    if outcome is not Outcome.FOUND:
        return ClassMetrics(name, *missing_scores(outcome, diagonal_mm(geometry), empty), *volumes)
    there, back = surface_distances(p, r, geometry)
    within = np.count_nonzero(there <= tolerance_mm * (1 + _ROUNDING)) + np.count_nonzero(back <= tolerance_mm * (1 + _ROUNDING))
    return ClassMetrics(
        name,
        dice=2 * int((p & r).sum()) / (count_p + count_r),
        hd95_mm=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        nsd=within / (there.size + back.size),
        predicted_ml=volumes[0],
        reference_ml=volumes[1],
    )


def _outcome(in_predicted: bool, in_reference: bool) -> Outcome:
    if in_reference:
        return Outcome.FOUND if in_predicted else Outcome.MISSED
    return Outcome.FALSE_POSITIVE if in_predicted else Outcome.ABSENT


def _values(volume: Volume, labels: Labels) -> tuple[IntArray, dict[int, Slices]]:
    """The values (I, J, K), known to be labels, and the box around each that occurs."""
    if volume.channels != 1 or volume.array.dtype.kind not in "iu":
        raise VolumeError(f"{volume.name}: a label map is one channel of integers, not {volume.array.shape} of {volume.array.dtype}")
    array: IntArray = volume.array[0]
    found = np.unique(array)
    try:
        labels.encode(found)
    except LabelsError as error:
        raise LabelsError(f"{volume.name}: {error}") from error
    # find_objects wants 1, 2, ...; its boxes make each class cost its own size, not the image's.
    boxes = ndimage.find_objects(np.searchsorted(found, array).astype(np.int32) + 1, max_label=len(found))
    return array, {int(value): (b[0], b[1], b[2]) for value, b in zip(found, boxes, strict=True)}


def _union(boxes: list[Slices]) -> Slices:
    """The box around boxes; of none, an empty one.

    No margin is needed: the erosion takes what lies beyond a crop for outside, which it is.
    """
    if not boxes:
        return (slice(0, 0), slice(0, 0), slice(0, 0))
    i, j, k = (slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes)) for axis in range(3))
    return (i, j, k)


def _grid(geometry: Geometry) -> str:
    spacing = " x ".join(f"{s:.4g}" for s in geometry.spacing_mm)
    return f"{' x '.join(map(str, geometry.shape))} voxels of {spacing} mm, {geometry.orientation}, origin {_origin(geometry)}"


def _origin(geometry: Geometry) -> str:
    return "(" + ", ".join(f"{x:.4g}" for x in geometry.affine_ras[:3, 3]) + ")"
