"""From logits on the prepared grid to labels on the scan's own grid, piece by piece as the pieces are finished.

Every voxel of the scan is decided from logits that are interpolated linearly to its centre: labels are never resampled. Where all the
logits that a voxel is interpolated from agree on their label, so does every mean of them, and nothing needs to be interpolated; only
where they differ, which is along the borders of structures, the channels are. The result is the same as if all were.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.events import Report, Spent, silent
from uxnet.geometry import Box
from uxnet.labels import Labels
from uxnet.prepare.resample import each, mapping
from uxnet.prepare.way_out import Trail, covered
from uxnet.volume import Volume

Logits = NDArray[np.float32]
Piece = tuple[Box, Logits]
"""Finished logits, (C, *box.shape), of a box of the prepared grid. Neighbouring pieces have one plane of voxels in common, so that what
lies between them can be interpolated; together they cover the grid."""

_WORK = 2_000_000  # numbers that are in work at once on each thread
_SURE = 30.0
_SPARSE = 0.15  # a share of voxels to interpolate beyond which whole slabs are quicker


@dataclass(frozen=True)
class _Lines:
    """One axis: for each of the scan's voxels, the prepared voxel below its centre and how far above it the centre lies (0..1).

    between: whether any centre lies between two prepared voxels.
    """

    low: NDArray[np.int64]
    fraction: NDArray[np.float32]
    between: bool


def restore_logits(
    pieces: Iterable[Piece],
    trail: Trail,
    labels: Labels,
    *,
    probabilities: NDArray[np.uint8] | None = None,
    threads: int = 1,
    report: Report = silent,
) -> Volume:
    """The labels that logits mean, decided on the scan's own grid.

    Softmax labels take the strongest channel, the first of equals; regions are written in their order wherever their logit is above 0.

    Args:
        pieces: logits of `labels.out_channels` channels on the grid `trail.prepared`; each is used before the next is asked for.
        probabilities: filled with each channel's probability times 255 (softmax, or sigmoid for regions), (C, I, J, K) on the scan's
            own grid.
        threads: that decide slabs of a piece side by side.

    Returns:
        A label map (1, I, J, K) of the smallest integer type, in Fortran order as NIfTI stores it, on exactly the original geometry.

    Raises:
        VolumeError: if a piece does not lie on the prepared grid, or the pieces do not cover it.
    """
    where = covered(trail)
    lines = _lines(trail, where)
    values = np.full(trail.geometry.shape, labels.background, dtype=labels.dtype, order="F")
    oriented = trail.order.apply(values)[where.slices]
    probs = None
    if probabilities is not None:
        _everywhere_background(probabilities, labels)
        probs = trail.order.apply(probabilities)[(slice(None), *where.slices)]
    meaning = _meaning(labels)
    seconds, decided = 0.0, 0
    for box, logits in pieces:
        started = time.perf_counter()
        _expect(box, logits, trail)
        slabs = _slabs(box, trail.box.shape, lines, len(logits), probs is not None)

        def decide_slab(slab: _Slab, box: Box = box, logits: Logits = logits) -> None:
            part = logits[(slice(None), *slab.source(box))]
            oriented[slab.target] = meaning[_decide_between(part, slab, labels)]
            if probs is not None:
                probs[(slice(None), *slab.target)] = _probabilities(_interpolated(part, slab), labels)

        each(decide_slab, [(slab,) for slab in slabs], threads)
        decided += sum(slab.size for slab in slabs)
        seconds += time.perf_counter() - started
    if decided != oriented.size:
        raise VolumeError(
            f"the logits decide {decided} of {oriented.size} voxels: they do not cover the prepared grid of {trail.box.shape}"
        )
    report(Spent("restore", seconds))
    return Volume(values[np.newaxis], trail.geometry, trail.source)


def background_logits(labels: Labels) -> Logits:
    """Logits that say background beyond doubt, (out_channels,)."""
    logits = np.full(labels.out_channels, -_SURE, dtype=np.float32)
    if not labels.regions:
        logits[0] = _SURE
    return logits


def decide(logits: NDArray[Any], labels: Labels) -> NDArray[np.unsignedinteger[Any]]:
    """What logits say, (C, ...) -> (...): 0 the background, else the place of a label or region, from 1."""
    decided = np.zeros(logits.shape[1:], dtype=np.uint8 if len(logits) < 256 else np.uint16)
    if labels.regions:
        for place, channel in enumerate(logits, start=1):
            decided[channel > 0] = place
        return decided
    strongest = logits[0].copy()
    for index, channel in enumerate(logits[1:], start=1):
        above = channel > strongest
        decided[above] = index
        np.copyto(strongest, channel, where=above)
    return decided


@dataclass(frozen=True)
class _Slab:
    """Voxels of the scan that one piece decides: where they are, and the lines from which they are interpolated."""

    target: tuple[slice, slice, slice]
    lines: tuple[_Lines, _Lines, _Lines]

    @property
    def size(self) -> int:
        """How many voxels it decides."""
        return math.prod(len(line.low) for line in self.lines)

    def source(self, box: Box) -> tuple[slice, slice, slice]:
        """The part of the piece over `box` that they need."""
        ends = [(int(line.low[0]), int(line.low[-1]) + 1 + line.between) for line in self.lines]
        i, j, k = (slice(a - start, b - start) for (a, b), start in zip(ends, box.start, strict=True))
        return i, j, k

    def places(self) -> list[NDArray[np.int64]]:
        """Along each axis, the prepared voxel below each centre, counted from the first that is needed."""
        return [line.low - line.low[0] for line in self.lines]


def _lines(trail: Trail, where: Box) -> list[_Lines]:
    scale, shift = mapping(trail.prepared, where.apply_to(trail.oriented))
    lines = []
    for a, b, side, sources in zip(scale, shift, where.shape, trail.box.shape, strict=True):
        at = np.clip(a * np.arange(side) + b, 0, sources - 1)
        between = bool((at != np.rint(at)).any())
        low = np.minimum(np.floor(at).astype(np.int64), max(0, sources - 2)) if between else np.rint(at).astype(np.int64)
        lines.append(_Lines(low, (at - low).astype(np.float32), between))
    return lines


def _slabs(box: Box, grid: tuple[int, ...], lines: list[_Lines], channels: int, all_channels: bool) -> list[_Slab]:
    """What a piece decides: every centre between two of its voxels, and none twice, though pieces share a plane."""
    ends = []
    for line, start, stop, side in zip(lines, box.start, box.stop, grid, strict=True):
        last = stop if stop == side else stop - 1
        ends.append(tuple(np.searchsorted(line.low, (start, last))))
    if any(a >= b for a, b in ends):
        return []
    voxels = math.prod(int(b - a) for a, b in ends[1:])
    # A prepared voxel counts with all its channels, whatever the spacing: they are what is copied where a slab is interpolated.
    density = len(lines[0].low) / grid[0]
    sources = channels * math.prod(box.shape[1:]) / density
    step = max(1, int(_WORK / max(voxels * (channels if all_channels else 1), sources)))
    slabs = []
    for first in range(int(ends[0][0]), int(ends[0][1]), step):
        target = (slice(first, min(first + step, int(ends[0][1]))), *(slice(int(a), int(b)) for a, b in ends[1:]))
        i, j, k = (_Lines(line.low[part], line.fraction[part], line.between) for line, part in zip(lines, target, strict=True))
        slabs.append(_Slab((target[0], target[1], target[2]), (i, j, k)))
    return slabs


def _decide_between(logits: Logits, slab: _Slab, labels: Labels) -> NDArray[Any]:
    """What is decided at the slab's centres, from the logits around them."""
    lowest = highest = decide(logits, labels)
    for axis, line in enumerate(slab.lines):
        if line.between:
            below, above = _but_last(axis), _but_first(axis)
            lowest, highest = np.minimum(lowest[below], lowest[above]), np.maximum(highest[below], highest[above])
    places = np.ix_(*slab.places())
    decided = lowest[places]
    if lowest is highest:
        return decided
    mixed = (lowest != highest)[places]
    count = int(np.count_nonzero(mixed))
    if count > _SPARSE * mixed.size:
        return decide(_interpolated(logits, slab), labels) if len(logits) * mixed.size <= _WORK else _decide_planes(logits, slab, labels)
    if count:
        decided[mixed] = _decide_points(logits, slab, np.nonzero(mixed), labels)
    return decided


def _decide_planes(logits: Logits, slab: _Slab, labels: Labels) -> NDArray[Any]:
    """As `_decide_between`, every channel interpolated everywhere, a few planes at a time."""
    planes, voxels = len(slab.lines[0].low), math.prod(len(line.low) for line in slab.lines[1:])
    step = max(1, _WORK // (voxels * len(logits)))
    parts = []
    for first in range(0, planes, step):
        line = slab.lines[0]
        cut = _Lines(line.low[first : first + step], line.fraction[first : first + step], line.between)
        from_plane = int(cut.low[0] - line.low[0])
        part = logits[:, from_plane : from_plane + int(cut.low[-1] - cut.low[0]) + 1 + line.between]
        parts.append(decide(_interpolated(part, _Slab(slab.target, (cut, *slab.lines[1:]))), labels))
    return np.concatenate(parts)


def _interpolated(logits: Logits, slab: _Slab) -> Logits:
    """Every channel at every centre of the slab, (C, *slab)."""
    for axis, (line, low) in enumerate(zip(slab.lines, slab.places(), strict=True), start=1):
        if not line.between:
            logits = logits.take(low, axis=axis)
            continue
        below = logits.take(low, axis=axis)
        above = logits.take(low + 1, axis=axis)
        above -= below
        above *= line.fraction.reshape([-1 if a == axis else 1 for a in range(4)])
        below += above
        logits = below
    return logits


def _decide_points(logits: Logits, slab: _Slab, points: tuple[NDArray[Any], ...], labels: Labels) -> NDArray[Any]:
    """As `_decide_between`, at some centres only; the sums are those of `_interpolated`, so that it does not matter which is taken."""
    table = np.ascontiguousarray(np.moveaxis(logits, 0, -1)).reshape(-1, len(logits))
    sides = logits.shape[1:]
    steps = (sides[1] * sides[2], sides[2], 1)
    lows = slab.places()
    decided = np.empty(len(points[0]), dtype=np.uint8 if len(logits) < 256 else np.uint16)
    chunk = max(1, _WORK // (8 * len(logits)))
    for first in range(0, len(decided), chunk):
        at = [axis[first : first + chunk] for axis in points]
        origin = sum(low[a] * step for low, a, step in zip(lows, at, steps, strict=True))
        # All corners first, then axis by axis the two halves become one.
        offsets = [0]
        for axis in reversed(range(3)):
            if slab.lines[axis].between:
                offsets += [offset + steps[axis] for offset in offsets]
        corners = [table[origin + offset] for offset in offsets]
        for axis in range(3):
            if slab.lines[axis].between:
                half = len(corners) // 2
                fraction = slab.lines[axis].fraction[at[axis]][:, np.newaxis]
                corners = [low + (high - low) * fraction for low, high in zip(corners[:half], corners[half:], strict=True)]
        decided[first : first + chunk] = decide(corners[0].T, labels)
    return decided


def _probabilities(logits: Logits, labels: Labels) -> NDArray[np.uint8]:
    if labels.regions:
        probs = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    else:
        probs = np.exp(logits - logits.max(axis=0))
        probs /= probs.sum(axis=0)
    probs *= 255
    return np.rint(probs, out=probs).astype(np.uint8)


def _everywhere_background(probabilities: NDArray[np.uint8], labels: Labels) -> None:
    probabilities[...] = 0
    if not labels.regions:
        probabilities[0] = 255


def _meaning(labels: Labels) -> NDArray[Any]:
    """The value of each thing that `decide` says."""
    if labels.regions:
        return np.array([labels.background, *(region.writes for region in labels.regions)], dtype=labels.dtype)
    return labels.decode(np.arange(len(labels.foreground) + 1 + (labels.ignore is not None)))


def _expect(box: Box, logits: Logits, trail: Trail) -> None:
    if logits.ndim != 4 or logits.shape[1:] != box.shape or any(b > side for b, side in zip(box.stop, trail.box.shape, strict=True)):
        raise VolumeError(f"logits of shape {logits.shape[1:]} at {box.start} do not lie on the prepared grid of shape {trail.box.shape}")


def _but_last(axis: int) -> tuple[slice, ...]:
    return tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))


def _but_first(axis: int) -> tuple[slice, ...]:
    return tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
