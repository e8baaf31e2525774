"""The sliding window: an image in, finished pieces of its logits out, as soon as no later window lies over them.

The windows are visited in their order along three axes, `slow`, `middle` and `quick`. What later windows will add to is carried over to
them, and nothing else is kept: along the quick axis the overlap of one window with the next, along the middle axis that of one row of
windows with the next, along the slow axis that of one layer with the next. So the memory is that of the overlap of two layers (classes x
section x overlap) and of little more, however many slices the scan has.
"""

from __future__ import annotations

import itertools
import math
import mmap
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import ModelError
from uxnet.events import Progress, Report, Spent, silent
from uxnet.geometry import Box, Shape
from uxnet.inference.decide import Piece
from uxnet.inference.tiles import Tiling, blend_shares, tile
from uxnet.io import mapped_array
from uxnet.recipe import Inference
from uxnet.volume import Image

Keep = Literal["memory", "half", "file"]
"""Where the overlap of layers is kept: float32 in memory, float16 in memory, or float32 in a file that is mapped."""


class Engine(Protocol):
    """What computes a network."""

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, I, J, K) -> logits (N, out_channels, I, J, K)."""
        ...


@dataclass(frozen=True)
class Room:
    """How many windows are computed at a time, and where the overlap of layers is kept."""

    batch: int
    keep: Keep


@dataclass(frozen=True)
class Sweep:
    """The order in which windows are visited, and what that keeps in memory.

    axes: slow, middle, quick.
    channels: of the logits, and one for the share of each voxel that was answered where windows are left out.
    """

    tiling: Tiling
    axes: tuple[int, int, int]
    channels: int

    @property
    def layers(self) -> Shape:
        """The overlap of one layer with the next, and the plane before it."""
        slow, _, _ = self.axes
        return self._shape({slow: self.tiling.overlap(slow) + 1, **{a: self.tiling.shape[a] for a in self.axes[1:]}})

    @property
    def rows(self) -> Shape:
        """The overlap of one row of windows with the next, and the plane before it."""
        slow, middle, quick = self.axes
        sides = {slow: self.tiling.patch[slow] + 1, middle: self.tiling.overlap(middle) + 1, quick: self.tiling.shape[quick]}
        return self._shape(sides)

    @property
    def window(self) -> Shape:
        """A window, and the planes before it."""
        return self._shape({a: self.tiling.patch[a] + 1 for a in self.axes})

    def carried(self, axis: int) -> Shape:
        """What is carried along one axis: `layers` along the slow one, `rows` along the middle one, else a window's overlap."""
        if axis == self.axes[0]:
            return self.layers
        return self.rows if axis == self.axes[1] else self._shape({**dict(enumerate(self.window)), axis: self.tiling.overlap(axis) + 1})

    def nbytes(self, keep: Keep = "memory") -> int:
        """Bytes in memory: what is carried, the window itself, and the logits of one window as they come from the engine."""
        numbers = sum(math.prod(self.carried(axis)) for axis in self.axes[1:]) + math.prod(self.window) + math.prod(self.tiling.patch)
        one_window_of_layers = math.prod(min(a, b) for a, b in zip(self.layers, self.window, strict=True))
        layers = {"memory": 4 * math.prod(self.layers), "half": 2 * math.prod(self.layers), "file": 4 * one_window_of_layers}[keep]
        return self.channels * (4 * numbers + layers)

    def _shape(self, sides: dict[int, int]) -> Shape:
        return (sides[0], sides[1], sides[2])


def plan_sweep(shape: Shape, patch: Shape, overlap: float, channels: int) -> Sweep:
    """The order of the axes that takes least memory: the slow axis is across the smallest section, usually along the body.

    Args:
        shape: of the prepared image.
        patch: of a window.
        overlap: the least share of a side that neighbours have in common.
        channels: of the logits.
    """
    tiling = tile(shape, patch, overlap)
    orders = [Sweep(tiling, (a, b, c), channels) for a, b, c in itertools.permutations(range(3))]
    return min(orders, key=lambda sweep: (sweep.nbytes(), sweep.axes))


def stitch(
    image: Image,
    engine: Engine,
    patch: Shape,
    inference: Inference,
    channels: int,
    *,
    keep: Keep = "memory",
    plan: Callable[[Sweep], Room] | None = None,
    needed: Callable[[Box], bool] | None = None,
    nothing: NDArray[np.float32] | None = None,
    report: Report = silent,
) -> Iterator[Piece]:
    """The logits of a prepared image, window by window, overlapping windows blended, piece by piece as they are finished.

    Args:
        image: (C, I, J, K) float32. Sides smaller than the patch's are padded with zeros on both ends, as in training.
        engine: computes a batch of windows.
        patch: the size of a window, (I, J, K).
        channels: of the logits.
        keep: where the overlap of layers is kept.
        plan: asked, when the first window is computed and nothing else has been made, where it is kept and how many windows are
            computed at a time; else `keep` and the recipe's.
        needed: whether a box of the image must be computed.
        nothing: the logits of the background, (channels,), which windows that need not be computed get.

    Yields:
        A box of the image and its logits (channels, *box.shape) float32. Neighbouring boxes share a plane of voxels; together they
        cover the image. The array is used again for the next piece.

    Raises:
        ModelError: if the network gives NaN or infinity, or another number of channels.
        InputError: if the overlap is to be kept in a file, and there is no room for it on the disk.
    """
    sweep = plan_sweep(image.shape[1:], patch, inference.overlap, channels)
    before = tuple((a - b) // 2 for a, b in zip(sweep.tiling.shape, image.shape[1:], strict=True))

    def computed(places: tuple[int, int, int]) -> bool:
        return needed is None or needed(_inside(sweep.tiling.box(places), before, image.shape[1:])[0])

    windows: Sequence[_Window] = [_Window(places, computed(places)) for places in _visits(sweep)]
    leaves_out = not all(window.needed for window in windows)
    if leaves_out:
        sweep = Sweep(sweep.tiling, sweep.axes, channels + 1)
    shares = blend_shares(sweep.tiling, inference.blending)
    clock, done, total = _Clock(), 0, sum(window.needed for window in windows)
    room, frontier = Room(inference.batch if plan is None else 1, keep), None
    try:
        while windows:
            group, windows = _next_group(windows, room.batch)
            cuts = [_cut_window(image, sweep.tiling.box(window.places), before) for window in group if window.needed]
            clock.stop("stitch")
            answers = iter(_checked(engine.infer(np.stack(cuts)), channels) if cuts else ())
            clock.stop("network")
            if frontier is None:
                room = room if plan is None else plan(sweep)
                frontier = _Frontier(sweep, room.keep)
            for window in group:
                share = _outer([shares[axis][place] for axis, place in enumerate(window.places)])
                box, summed = frontier.add(window.places, next(answers) if window.needed else None, share)
                inside, cut = _inside(box, before, image.shape[1:])
                piece = summed[(slice(None), *cut)]
                clock.stop("stitch")
                yield inside, _whole(piece, nothing) if leaves_out else piece
                clock.start()
            done += len(cuts)
            if cuts:
                report(Progress("windows", done, total))
    finally:
        if frontier is not None:
            frontier.close()
    for part, seconds in clock.spent.items():
        report(Spent(part, seconds))


def finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits, if all of them are finite.

    Raises:
        ModelError: if not.
    """
    if not np.isfinite(logits).all():
        raise ModelError("the network gave values that are not finite, so nothing can be decided; try the precision float32")
    return logits


def pad_to(image: NDArray[np.float32], patch: Shape) -> tuple[NDArray[np.float32], tuple[slice, slice, slice]]:
    """(C, I, J, K) with zeros on both ends until no side is smaller than the patch's; and where the image lies in it."""
    lack = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    if not any(lack):
        return image, (slice(None), slice(None), slice(None))
    padded = np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in lack)])
    i, j, k = (slice(n // 2, n // 2 + side) for n, side in zip(lack, image.shape[1:], strict=True))
    return padded, (i, j, k)


@dataclass(frozen=True)
class _Window:
    """Which of the starts along each axis (i, j, k) it has, and whether it must be computed."""

    places: tuple[int, int, int]
    needed: bool


class _Clock:
    """Seconds by part of the work; the time between `stop` and `start` is someone else's."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {"network": 0.0, "stitch": 0.0}
        self.start()

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self, part: str) -> None:
        now = time.perf_counter()
        self.spent[part] += now - self._since
        self._since = now


def _visits(sweep: Sweep) -> list[tuple[int, int, int]]:
    """The windows in the order of the sweep, as places along (i, j, k)."""
    visits = []
    for in_order in itertools.product(*(range(len(sweep.tiling.starts[axis])) for axis in sweep.axes)):
        at = dict(zip(sweep.axes, in_order, strict=True))
        visits.append((at[0], at[1], at[2]))
    return visits


def _next_group(windows: Sequence[_Window], batch: int) -> tuple[Sequence[_Window], Sequence[_Window]]:
    """The windows up to the one that fills a batch, and those after it."""
    wanted = 0
    for number, window in enumerate(windows, start=1):
        wanted += window.needed
        if wanted == batch:
            return windows[:number], windows[number:]
    return windows, ()


def _checked(logits: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    if logits.shape[1] != channels:
        raise ModelError(f"the network gave {logits.shape[1]} channels, the labels need {channels}")
    return finite(logits)


class _Frontier:
    """What later windows will add to. The arrays hold shares of logits, (channels, I, J, K); a "local" place counts from the plane
    before the window, which an earlier window finished and which the next piece begins with."""

    def __init__(self, sweep: Sweep, keep: Keep) -> None:
        self.sweep = sweep
        self._file: Any = None
        shapes = [(sweep.channels, *sweep.carried(axis)) for axis in sweep.axes]
        self._carried = {axis: np.zeros(shape, np.float32) for axis, shape in zip(sweep.axes[1:], shapes[1:], strict=True)}
        self._carried[sweep.axes[0]] = self._array(shapes[0], keep)
        self._sum = np.zeros((sweep.channels, *sweep.window), dtype=np.float32)

    def add(self, places: tuple[int, int, int], logits: NDArray[np.float32] | None, share: NDArray[np.float32]) -> Piece:
        """Adds one window; returns what no later window lies over, with the planes before it. `logits` is used up."""
        tiling, total = self.sweep.tiling, self._sum
        starts = [tiling.starts[axis][place] for axis, place in enumerate(places)]
        nexts = [tiling.starts[axis][place + 1] if place + 1 < len(tiling.starts[axis]) else None for axis, place in enumerate(places)]
        # How much of the window is finished along each axis.
        done = [(side if after is None else after) - start for side, after, start in zip(tiling.shape, nexts, starts, strict=True)]
        total[...] = 0
        if logits is not None:
            window = total[:, 1:, 1:, 1:]
            count = len(logits)
            np.multiply(logits, share, out=window[:count])
            window[count:] = share
        # Quick axis first: what was carried along a slower one is added once, where the quicker ones are finished.
        order = self.sweep.axes[::-1]
        for turn, axis in enumerate(order):
            if places[axis]:
                held = starts[axis] - tiling.starts[axis][places[axis] - 1]  # from the last window's start to this one's
                depth = tiling.patch[axis] - held + 1
                local = self._local(axis, slice(0, depth), order[:turn], done)
                total[local] += self._carried[axis][self._stored(axis, slice(0, depth), order[:turn], starts, done)]
        for turn, axis in enumerate(order):
            if nexts[axis] is not None:
                depth = tiling.patch[axis] - done[axis] + 1
                local = self._local(axis, slice(done[axis], done[axis] + depth), order[:turn], done)
                self._carried[axis][self._stored(axis, slice(0, depth), order[:turn], starts, done)] = total[local]
        self._release()
        cut = [slice(0 if place else 1, 1 + end) for place, end in zip(places, done, strict=True)]
        i, j, k = (start - (place > 0) for start, place in zip(starts, places, strict=True))
        return Box((i, j, k), (starts[0] + done[0], starts[1] + done[1], starts[2] + done[2])), total[(slice(None), *cut)]

    def close(self) -> None:
        """Gives back the file, if there is one."""
        if self._file is not None:
            self._carried.clear()
            self._file.close()

    def _local(self, axis: int, depth: slice, quicker: Sequence[int], done: Sequence[int]) -> tuple[slice, ...]:
        """Of the window's own array: `depth` along the axis, what is finished along quicker axes, all along slower ones."""
        sides = {a: slice(1, 1 + done[a]) for a in quicker} | {axis: depth}
        return (slice(None), *(sides.get(a, slice(None)) for a in range(3)))

    def _stored(self, axis: int, depth: slice, quicker: Sequence[int], starts: Sequence[int], done: Sequence[int]) -> tuple[slice, ...]:
        """The same voxels in what is carried along the axis."""
        sides = {a: slice(starts[a], starts[a] + done[a]) for a in quicker} | {axis: depth}
        return (slice(None), *(sides.get(a, slice(None)) for a in range(3)))

    def _array(self, shape: tuple[int, ...], keep: Keep) -> NDArray[Any]:
        if keep == "file":
            array, self._file = mapped_array(shape, np.float32, Path(tempfile.gettempdir()), "logits that do not fit into memory")
            return array
        return np.zeros(shape, dtype=np.float16 if keep == "half" else np.float32)

    def _release(self) -> None:
        """Lets the system have the memory of the mapped file; its content stays, in the system's own cache or on disk."""
        mapped = getattr(self._carried[self.sweep.axes[0]], "_mmap", None)
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            mapped.madvise(mmap.MADV_DONTNEED)


def _inside(box: Box, before: Sequence[int], shape: Sequence[int]) -> tuple[Box, tuple[slice, slice, slice]]:
    """The part of a box of the padded grid that lies in the image, in the image's own voxels; and where it lies in the box."""
    start = [max(a - lead, 0) for a, lead in zip(box.start, before, strict=True)]
    stop = [min(b - lead, side) for b, lead, side in zip(box.stop, before, shape, strict=True)]
    i, j, k = (slice(a + lead - first, b + lead - first) for a, b, lead, first in zip(start, stop, before, box.start, strict=True))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2])), (i, j, k)


def _cut_window(image: Image, box: Box, before: Sequence[int]) -> Image:
    """The image in a box of the padded grid, zero where the image has ended."""
    inside, cut = _inside(box, before, image.shape[1:])
    part = image[(slice(None), *inside.slices)]
    if inside.shape == box.shape:
        return part
    window = np.zeros((len(image), *box.shape), dtype=np.float32)
    window[(slice(None), *cut)] = part
    return window


def _outer(sides: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    i, j, k = sides
    return i[:, None, None] * j[:, None] * k


def _whole(piece: NDArray[np.float32], nothing: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Logits of which only some windows gave their share (the last channel), as if those had been all; `nothing` where none did."""
    logits, share = piece[:-1], piece[-1]
    answered = share > 0
    np.divide(logits, share, out=logits, where=answered)
    if nothing is not None:
        np.copyto(logits, nothing[:, None, None, None], where=~answered)
    return logits
