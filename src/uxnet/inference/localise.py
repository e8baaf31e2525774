"""Structures on both sides of a whole scan, by a model that knows crops of one side.

    localise   a coarse network labels both sides in the scan
    find       the largest component of each gives a centroid; what is implausible is refused
    cut        around each centroid, a box of the size that the model knows; the other side mirrored
    segment    as any scan, and its labels mirrored back; then cut and segment once more, around what was found
    paste      on the scan's own grid, under names that say the side

Which models, which side and what is plausible is data: the table `[whole]` of the card of a model in the box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import ModelError, VolumeError
from uxnet.events import Event, Note, Report, Warn, as_warnings, silent
from uxnet.geometry import AxisOrder, Box, Geometry, axis_order, full_box
from uxnet.inference.domain import Limits, extent_mm
from uxnet.inference.segment import Ready
from uxnet.inference.segmenter import Segmenter, load_segmenter
from uxnet.inference.settings import PLAIN, Located, Settings
from uxnet.labels import Label, Labels
from uxnet.model.catalogue import Whole
from uxnet.prepare.way_out import Trail
from uxnet.volume import Source, Volume

SIDES = ("left", "right")
_CUT_OFF = 0.1  # the share of a crop that may lie outside the scan without a word
LARGEST_MM = 5000.0
"""Nobody is that large."""

_UNEQUAL = 2.0  # one side so many times as large as the other is worth a look


@dataclass(frozen=True, eq=False)
class Site:
    """Where one side's structure lies: its centroid in RAS+ mm, and its volume, as the localiser sees it."""

    centroid_mm: NDArray[np.float64]
    volume_ml: float


@dataclass(frozen=True, eq=False)
class Crop:
    """A part of a scan as the model knows it.

    volume: mirrored, where the model knows the other side.
    order: brings the scan's axes to RAS; `box` is in that order's indices.
    geometry: of the box, as it lies in the scan.
    """

    volume: Volume
    order: AxisOrder
    box: Box
    geometry: Geometry
    mirrored: bool


class LocatedSegmenter:
    """A localiser and a segmenter of crops, that answer together like a `Segmenter` of whole scans.

    Args:
        localiser: of labels `whole.sides`.
        crops: of one side's structure.
        whole: how they work together.

    Raises:
        ModelError: if they do not fit together.
    """

    def __init__(self, localiser: Segmenter, crops: Segmenter, whole: Whole) -> None:
        missing = [side for side in whole.sides if side not in localiser.labels.classes]
        if missing or localiser.labels.regions:
            raise ModelError(f"{localiser.model.path}: it does not find {' and '.join(missing or whole.sides)} as labels of their own")
        if len(localiser.model.channels) != len(crops.model.channels):
            raise ModelError(f"{localiser.model.path}: it takes another number of channels than {crops.model.path}")
        # The crops are cut as their model knows them: it is the localiser that whole scans are compared with.
        limits = replace(localiser.limits, otherwise='if it is a crop, choose the region "crop"')
        self.localiser = Segmenter(localiser.model, localiser.engines, localiser.settings, limits)
        self.crops, self.whole = Segmenter(crops.model, crops.engines, crops.settings, Limits()), whole
        self.model, self.settings = crops.model, crops.settings
        self.labels = labels_of(crops.labels, whole)
        # Messages name what the model of crops takes: the localiser calls its channel after what it was trained on.
        self.localiser.model = replace(self.localiser.model, channels=crops.model.channels)

    def prepare(self, scan: str | Path | Sequence[str | Path] | Volume, report: Report = as_warnings) -> Ready:
        """A whole scan, read, and prepared for the localiser; `segment` takes it.

        Raises:
            VolumeError, ModelError, MemoryLimitError: as `Segmenter.prepare`.
        """
        return self.localiser.prepare(scan, report)

    def segment(
        self,
        scan: str | Path | Sequence[str | Path] | Volume | Ready,
        report: Report = as_warnings,
        *,
        probabilities: str | Path | None = None,
    ) -> Volume:
        """The label map of a whole scan, on its own grid: both sides, or an error that says what is wrong.

        Args:
            scan: a file, one file a channel in the model's order, a Volume, or what `prepare` gave.
            probabilities: only there to be refused.

        Returns:
            (1, I, J, K) values of `labels`.

        Raises:
            VolumeError: if a file cannot be used, or one of the sides is not found, or what is found is implausible.
            ModelError: if the scan has another number of channels than the models, or probabilities are asked for.
            MemoryLimitError: if it would take more memory than it may.
        """
        if probabilities is not None:
            raise ModelError(f"{self.model.path}: of whole scans there are no probabilities; leave them out")
        ready = scan if isinstance(scan, Ready) else self.prepare(scan, report)
        volume = ready.volume
        coarse = self.localiser.segment(on_own_grid(ready), report)
        sites = find_sites(coarse, self.localiser.labels, self.whole, volume.name)

        values = np.zeros(volume.geometry.shape, dtype=self.labels.dtype)
        ends: dict[str, Site | None] = {}
        for number, side in enumerate(SIDES):
            crop, found = self._segment_side(volume, sites[side], side, report)
            ends[side] = _largest(found != self.crops.labels.background, crop.geometry)
            paste(values, found, crop, self.crops.labels, first=1 + number * len(self.crops.labels.foreground))
        both = _plausible(ends, self.whole, volume.name)
        small, large = sorted(both.values(), key=lambda site: site.volume_ml)
        if large.volume_ml > _UNEQUAL * small.volume_ml:
            sizes = " and ".join(
                f"{both[side].volume_ml:.1f} ml of the {label}" for side, label in zip(SIDES, self.whole.sides, strict=True)
            )
            report(Warn(f"{volume.name}: {sizes} are found, one of them over {_UNEQUAL:g} times as much; look at both"))
        return Volume(values[np.newaxis], volume.geometry, volume.source, self.labels)

    def _segment_side(self, volume: Volume, site: Site, side: str, report: Report) -> tuple[Crop, NDArray[np.integer]]:
        """The crop around one side's structure, and the values of the crops' labels in it as they lie in the scan."""
        # The model's crops were cut around structures that people had outlined: a coarse centroid a few millimetres off costs more than
        # a second look does.
        first = cut(volume, site, self.whole, side)
        seen = _unmirrored(self.crops.segment(first.volume, _without_words(report)), first)
        crop = cut(volume, _largest(seen != self.crops.labels.background, first.geometry) or site, self.whole, side, report)
        return crop, _unmirrored(self.crops.segment(crop.volume, report), crop)


def load_located(models: Sequence[str | Path], settings: Settings, report: Report = silent) -> LocatedSegmenter:
    """The localiser and one model of crops (or several whose logits are averaged), ready to segment whole scans.

    Args:
        models: of crops.
        settings: with `located`. The localiser is computed where and how precisely the others are, but otherwise as its recipe says.

    Raises:
        ModelError, DeviceError, RecipeError: as `load_segmenter`.
    """
    localiser = load_localiser(settings, report)
    return LocatedSegmenter(localiser, load_segmenter(models, settings, report), localiser_of(settings).whole)


def load_localiser(settings: Settings, report: Report = silent) -> Segmenter:
    """The localiser that the settings name, ready to segment.

    Raises:
        ModelError, DeviceError: as `load_segmenter`.
    """
    asked = {key: getattr(settings, key) for key in ("device", "engine", "precision", "threads", "cache", "memory_limit", "sharing")}
    # int8 is made and scored for a model by itself; the localiser has none.
    asked["precision"] = "auto" if settings.precision == "int8" else settings.precision
    return load_segmenter([localiser_of(settings).localiser], replace(PLAIN, **asked), report)


def localiser_of(settings: Settings) -> Located:
    """What the settings say of whole scans.

    Raises:
        ModelError: if they say nothing.
    """
    if settings.located is None:
        raise ModelError("a whole scan needs a localiser, and the settings name none")
    return settings.located


def labels_of(labels: Labels, whole: Whole) -> Labels:
    """The labels of a whole scan: 1, 2, ... on the left, in the order of the crops' labels, then those on the right.

    Raises:
        ModelError: if the crops' labels are regions.
        LabelsError: if the naming gives two labels the same name.
    """
    if labels.regions:
        raise ModelError("of models that predict regions, no whole scans can be segmented")
    names = [whole.naming.replace("{side}", side).replace("{label}", one.name.lower()) for side in SIDES for one in labels.foreground]
    half = len(labels.foreground)
    return Labels(
        foreground=tuple(Label(name, value) for value, name in enumerate(names, start=1)),
        pairs=tuple(zip(names[:half], names[half:], strict=True)),
    )


def is_whole(geometry: Geometry, whole: Whole) -> bool:
    """Whether a scan is a whole one, by its extent."""
    return whole.largest_crop_mm < extent_mm(geometry)[-1] < LARGEST_MM


def on_own_grid(ready: Ready) -> Ready:
    """A prepared scan as if it had come so: its label map will be on the prepared grid, nothing interpolated."""
    grid = ready.trail.prepared
    source = Source(Path(f"{ready.volume.name} (localiser)"))
    trail = Trail(grid, source, AxisOrder((0, 1, 2), (False, False, False)), grid, full_box(grid.shape))
    return Ready(Volume(ready.image, grid, source), ready.image, trail)


def find_sites(found: Volume, labels: Labels, whole: Whole, name: str) -> dict[str, Site]:
    """Where both sides lie, of the localiser's label map (1, I, J, K): of each the largest component.

    Args:
        name: of the scan, for the message.

    Raises:
        VolumeError: if a side is missing, or sizes or places are implausible; it says what.
    """
    masks = {side: labels.mask(found.array[0], label) for side, label in zip(SIDES, whole.sides, strict=True)}
    return _plausible({side: _largest(mask, found.geometry) for side, mask in masks.items()}, whole, name)


def _plausible(sites: Mapping[str, Site | None], whole: Whole, name: str) -> dict[str, Site]:
    """Both sites, if they are there and could be true.

    Raises:
        VolumeError: saying of the scan `name` all that is wrong.
    """
    problems = []
    low, high = whole.volume_ml
    for label, site in zip(whole.sides, (sites[side] for side in SIDES), strict=True):
        if site is None:
            problems.append(f"the {label} is not found")
        elif not low <= site.volume_ml <= high:
            problems.append(f"what looks like the {label} is of {site.volume_ml:.1f} ml, and {low:g} to {high:g} ml are plausible")
    both = {side: site for side, site in sites.items() if site is not None}
    if len(both) == len(SIDES):
        apart = both["right"].centroid_mm - both["left"].centroid_mm
        distance, (least, most) = float(np.linalg.norm(apart)), whole.distance_mm
        if not least <= distance <= most:
            problems.append(f"the {' and the '.join(whole.sides)} lie {distance:.0f} mm apart, and {least:g} to {most:g} mm are plausible")
        # Further to the side than to the front or top: else a head that lies so would have to be turned first.
        if apart[0] <= np.abs(apart[1:]).max():
            problems.append(f"the {whole.sides[0]} does not lie to the left of the {whole.sides[1]}")
    if problems:
        raise VolumeError(f"{name}: not segmented: {'; '.join(problems)}. {_ADVICE}")
    return both


_ADVICE = (
    "Look whether the scan shows what the model's card asks for, and whether its orientation is right; if it is a crop, "
    'choose the region "crop"'
)


def cut(volume: Volume, site: Site, whole: Whole, side: str, report: Report = silent) -> Crop:
    """The crop around one side's structure, as the model knows it: axes to RAS as nearly as whole axes can, the unknown side mirrored.

    It is mirrored as a body is, in space: its axes still run to the right, to the front and to the top.

    Raises:
        VolumeError: if the site lies outside the scan.
    """
    mirrored = side != whole.known
    order = axis_order(volume.geometry, "RAS")
    oriented = order.apply_to(volume.geometry)
    across, *others = whole.crop_mm
    limits = np.array([(-across[1], -across[0]) if mirrored else across, *others]) / np.array(oriented.spacing_mm)[:, np.newaxis]
    centre = oriented.to_ijk(site.centroid_mm)
    wanted = np.stack([np.ceil(centre + limits[:, 0]), np.floor(centre + limits[:, 1]) + 1], axis=1).astype(int)
    wanted[:, 1] = np.maximum(wanted[:, 1], wanted[:, 0] + 1)  # of voxels larger than the crop, one
    inside = np.clip(wanted, 0, np.array(oriented.shape)[:, np.newaxis])
    label = whole.sides[SIDES.index(side)]
    kept = float(np.prod(inside[:, 1] - inside[:, 0]) / np.prod(wanted[:, 1] - wanted[:, 0]))
    if kept <= 0:
        raise VolumeError(f"{volume.name}: not segmented: the {label} lies outside the scan")
    if kept < 1 - _CUT_OFF:
        report(Warn(f"{volume.name}: the scan ends close to the {label} ({100 * (1 - kept):.0f} % of its crop is outside); look at it"))
    (i, a), (j, b), (k, c) = inside.tolist()
    box = Box((i, j, k), (a, b, c))
    array, geometry = order.apply(volume.array)[(slice(None), *box.slices)], box.apply_to(oriented)
    source = Source(Path(f"{volume.name} ({label})"))
    seen = Volume(array[:, ::-1], _mirrored(geometry), source) if mirrored else Volume(array, geometry, source)
    return Crop(seen, order, box, geometry, mirrored)


def paste(values: NDArray[np.integer], found: NDArray[np.integer], crop: Crop, labels: Labels, first: int) -> None:
    """Writes what was found in a crop into the label map of the scan it was cut from.

    Args:
        values: (I, J, K) of the scan; changed in place, where nothing has been found yet.
        found: (I', J', K') values of `labels`, on the crop's box as it lies in the scan.
        first: the value of the first of `labels` here; the others follow.
    """
    indices = labels.encode(found).astype(values.dtype)
    there = crop.order.apply(values)[crop.box.slices]
    new = (indices > 0) & (there == 0)
    there[new] = indices[new] + (first - 1)


def _unmirrored(found: Volume, crop: Crop) -> NDArray[np.integer]:
    """A label map of a crop as it lies in the scan, oriented as the crop is."""
    return found.array[0, ::-1] if crop.mirrored else found.array[0]


def _without_words(report: Report) -> Report:
    """A `report` that hears times and windows only."""

    def hear(event: Event) -> None:
        if not isinstance(event, Note | Warn):
            report(event)

    return hear


def _mirrored(geometry: Geometry) -> Geometry:
    """The grid of the same voxels with its first axis reversed, in a body whose left and right have changed places."""
    reverse, mirror = np.diag([-1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    reverse[0, 3] = geometry.shape[0] - 1
    return Geometry(geometry.shape, mirror @ geometry.affine_ras @ reverse)


def _largest(mask: NDArray[np.bool_], geometry: Geometry) -> Site | None:
    """The largest component, 26 neighbours connected; None if the mask is empty."""
    from scipy import ndimage  # here, since crops need not wait for its import

    from uxnet.inference.postprocess import TOUCHING

    pieces, count = ndimage.label(mask, TOUCHING)
    if not count:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    places = np.argwhere(pieces == 1 + int(sizes.argmax()))
    return Site(geometry.to_mm(places.mean(axis=0)), len(places) * geometry.voxel_mm3 / 1000)
