"""Intensities brought to the range that networks like, in bounded memory.

What decides (percentiles, mean, deviation) is taken of the whole channel first; it is then applied to any part of it. Padding, the value
that programs write where nothing was measured, is left out of it: a fifth of a scan at -32768 would decide everything. It is found by its
value alone, in training, prediction and inspection alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.recipe import Intensity
from uxnet.volume import LOWEST, NOT_FINITE, Image

_PIECE = 1 << 20  # voxels counted at once
_FEW = 1 << 16  # voxels that tell most channels without padding from those that may have some
_FLOAT = np.finfo(np.float32)
_ORDINARY = 40  # powers of 2: beyond, squares and differences leave what float32 holds

# Padding is a single value at an end, so many times the range of the rest away from it, and of more than so many voxels. Dark values are
# bounded by air or nothing, and what lies far below them was not measured. Bright ones may have been: metal, contrast, what saturates.
_EXTREME = 0.99 * -LOWEST  # some write 3.4e38
_LOW_ENDS = tuple(-(2.0**bits) for bits in (15, 31, 63))  # of types of whole numbers: nobody measures them
_HIGH_ENDS = tuple(2.0**bits - less for bits in (15, 16, 31, 32) for less in (0, 1))  # as they are, or rounded to float32
_SATURATED = tuple(2.0**bits - 1 for bits in range(1, 15))
_NOTHING = (0.0, -1000.0, -1024.0)  # masked images and air in HU: known, and meant
_SHARE = 0.01
_BELOW, _BELOW_END, _ABOVE, _ABOVE_END = 3.0, 1.0, 10.0, 3.0
_VALUES = 64  # fewer different ones are of a mask or of labels, where a far value is one more of them
_KINDS = 4  # of padding in one channel


@dataclass(frozen=True)
class Padding:
    """A value that stands where nothing was measured, and its share of the channel's voxels, 0..1."""

    value: float
    share: float


@dataclass(frozen=True)
class Measured:
    """The least and the largest value of a channel but for its padding."""

    low: float
    high: float
    padding: tuple[Padding, ...]

    @property
    def flat(self) -> bool:
        """Whether all that was measured is one value."""
        return self.low >= self.high

    def told(self) -> Iterator[str]:
        """A sentence on each padding, without the channel's name. Of what was not finite the reader of the file has told."""
        for one in self.padding:
            if one.value != NOT_FINITE:
                yield (
                    f"{100 * one.share:.3g} % of the voxels are {one.value:.6g}, far from the others ({self.low:.6g} to {self.high:.6g}); "
                    "they are taken for padding: left out of the statistics, and as dark as the darkest of the rest"
                )


@dataclass(frozen=True)
class Normaliser:
    """What brings parts of a channel to the range that the whole of it asks for.

    apply: any shape of the channel's type -> the same shape, float32.
    empty: why nothing is left to be seen, where the channel is not constant by itself; else "".
    """

    apply: Callable[[NDArray[Any]], Image]
    measured: Measured
    empty: str = ""


def normalise(image: NDArray[Any], intensity: Sequence[Intensity], name: str = "image") -> Image:
    """Each channel brought to the range that its entry of `intensity` asks for.

    Args:
        image: (C, I, J, K).
        intensity: one entry for all channels, or one a channel.
        name: of the scan, for the message.

    Returns:
        (C, I, J, K) float32; a constant channel becomes 0, padding the least of what was measured (0 where that is above 0). Where both
        percentiles are the same value (a mask, a channel that shows something in very few voxels), those of the whole channel count: its
        least and largest.

    Raises:
        VolumeError: if there are neither one nor C entries, or values are not finite.
    """
    entries = one_each(image.shape[0], intensity, name)
    return np.stack([normaliser(channel, entry, name).apply(channel) for channel, entry in zip(image, entries, strict=True)])


def one_each(channels: int, intensity: Sequence[Intensity], name: str) -> list[Intensity]:
    """An entry for every channel.

    Raises:
        VolumeError: if there are neither one nor so many.
    """
    if len(intensity) not in (1, channels):
        raise VolumeError(f"{name}: it has {channels} channels, the recipe gives intensities for {len(intensity)}")
    return list(intensity) * (channels if len(intensity) == 1 else 1)


def measure(channel: NDArray[Any]) -> Measured:
    """What a channel's values are, and which of them are padding.

    Padding is a type's extreme value (float32's or float64's, or the least of a type of whole numbers, well apart from the rest), or a
    single value far off the others in more than a hundredth of the voxels. Zero, air in HU, what saturates, masks and labels are none.

    Args:
        channel: (I, J, K) of any type of numbers; where some are NaN, `low` and `high` are.
    """
    low, high = float(channel.min()), float(channel.max())
    found: list[Padding] = []
    few = _few(channel)
    while low < high and len(found) < _KINDS:
        inside = few[(few > low) & (few < high)]
        if _may_be_below(low, inside) and (share := _share_below(channel, low, high)):
            found.append(Padding(low, share))
            low = float(channel.min(where=channel > low, initial=high))
        elif _may_be_above(high, inside) and (share := _share_above(channel, low, high)):
            found.append(Padding(high, share))
            high = float(channel.max(where=channel < high, initial=low))
        else:
            break
    return Measured(low, high, tuple(found))


def without_padding(values: NDArray[Any], measured: Measured) -> NDArray[Any]:
    """The values that are no padding, (n,); all of them as they are where there is none."""
    if not measured.padding:
        return values
    return values[(values >= measured.low) & (values <= measured.high)]


def normaliser(channel: NDArray[Any], intensity: Intensity, name: str = "image") -> Normaliser:
    """What brings parts of a channel to the range that the whole of it asks for.

    Args:
        channel: (I, J, K).
        name: of the scan, for the message.

    Raises:
        VolumeError: if values are not finite as float32.
    """
    measured = measure(channel)
    low, high = measured.low, measured.high
    if not max(abs(low), abs(high)) <= float(_FLOAT.max):
        raise VolumeError(f"{name}: its values are not finite or do not fit float32 ({low:g} to {high:g}); replace or scale them")
    ends = np.array([low, high], dtype=np.float32)
    if intensity.clip:
        ends = ends.clip(intensity.clip[0], intensity.clip[1])
    dark = min(low, 0.0)

    def clipped(part: NDArray[Any]) -> Image:
        with np.errstate(over="ignore"):  # padding of float64
            x = part.astype(np.float32)
        for one in measured.padding:
            x[part == one.value] = dark
        return np.clip(x, intensity.clip[0], intensity.clip[1], out=x) if intensity.clip else x

    spread = bool(ends[0] < ends[1])
    empty = "" if spread or (measured.flat and not measured.padding) else _nothing_left(measured, intensity)
    if intensity.scale == "none":
        return Normaliser(clipped, measured, empty)
    if intensity.scale == "range":
        return Normaliser(lambda part: _ranged(clipped(part), *intensity.clip), measured, empty)
    if not spread:
        return Normaliser(lambda part: np.zeros(part.shape, dtype=np.float32), measured, empty)
    return Normaliser(_by_statistics(channel, intensity, measured, clipped), measured)


def _by_statistics(
    channel: NDArray[Any], intensity: Intensity, measured: Measured, clipped: Callable[[NDArray[Any]], Image]
) -> Callable[[NDArray[Any]], Image]:
    """For "percentile" and "zscore", of a channel that has some spread.

    Numbers that are very large or small are multiplied by a power of 2, which changes none of their digits: a scan in other units gives
    the same.
    """
    values, counts = _counted(channel, intensity, measured)
    if not len(values):
        return lambda part: np.zeros(part.shape, dtype=np.float32)
    low, high = (_percentile(values, counts, share) for share in (intensity.low, intensity.high))
    if low >= high:
        # A mask, or a channel that shows something in very few voxels: between these percentiles it is empty, and would become 0.
        values, counts = _counted(channel, replace(intensity, nonzero=False), measured)
        low, high = float(values.min()), float(values.max())
    power = math.frexp(max(abs(low), abs(high)))[1]
    power = 0 if abs(power) <= _ORDINARY else -power
    low, high = math.ldexp(low, power), math.ldexp(high, power)

    def scaled(x: Image) -> Image:
        if power:
            with np.errstate(over="ignore"):  # what lies beyond the percentiles is clipped
                np.ldexp(x, power, out=x)
        return x

    if intensity.scale == "percentile":
        return lambda part: _ranged(scaled(clipped(part)), low, high)
    np.clip(scaled(values), low, high, out=values)
    mean = _mean(values, counts)
    values -= np.float32(mean)
    deviation = float(np.sqrt(_mean(np.square(values, out=values), counts)))

    def standard(part: NDArray[Any]) -> Image:
        x = scaled(clipped(part))
        if deviation <= 0:
            return np.zeros_like(x)
        np.clip(x, low, high, out=x)
        x -= np.float32(mean)
        x /= np.float32(deviation)
        return x

    return standard


def _nothing_left(measured: Measured, intensity: Intensity) -> str:
    if measured.flat:
        return f"besides its padding every voxel is {measured.low:.6g}, so it shows nothing; export it again"
    window = " to ".join(f"{limit:g}" for limit in intensity.clip)
    return (
        f"its values ({measured.low:.6g} to {measured.high:.6g}) are all the same once they are clipped to {window}, so nothing of it "
        "can be seen; are they in the units that are expected, HU for CT?"
    )


def _ranged(x: Image, low: float, high: float) -> Image:
    if high <= low:
        return np.zeros_like(x)
    x -= np.float32(low)
    x /= np.float32(high - low)
    return np.clip(x, 0, 1, out=x)


def _counted(channel: NDArray[Any], intensity: Intensity, measured: Measured) -> tuple[Image, NDArray[np.int64] | None]:
    """The clipped intensities that count, and how often each occurs (None: once each, unsorted).

    Whole numbers of up to 16 bits are counted exactly in a table, piece by piece; others are copied, 4 bytes a voxel.
    """
    if channel.dtype.kind in "iu" and channel.dtype.itemsize <= 2:
        kind = np.iinfo(channel.dtype)
        counts = np.zeros(int(kind.max) - int(kind.min) + 1, dtype=np.int64)
        flat = np.nditer(channel, flags=["external_loop", "buffered"], order="K", buffersize=_PIECE)
        for piece in flat:
            counts += np.bincount(np.asarray(piece).astype(np.int64) - int(kind.min), minlength=len(counts))
        for value in (*([0] if intensity.nonzero else []), *(one.value for one in measured.padding)):
            counts[int(value) - int(kind.min)] = 0
        found = np.flatnonzero(counts)
        values = (found + int(kind.min)).astype(np.float32)
        counts = counts[found]
    else:
        part = without_padding(channel, measured)
        values = (part[part != 0] if intensity.nonzero else part.ravel(order="K")).astype(np.float32)
        counts = None
    if intensity.clip:
        np.clip(values, intensity.clip[0], intensity.clip[1], out=values)
    return values, counts


def _mean(values: Image, counts: NDArray[np.int64] | None) -> float:
    if counts is None:
        return float(values.mean(dtype=np.float64))
    return float(np.dot(values.astype(np.float64), counts) / counts.sum())


def _percentile(values: Image, counts: NDArray[np.int64] | None, percent: float) -> float:
    """As numpy.percentile does it, linear between neighbours; `values` may be put into another order."""
    if counts is None:
        return float(np.percentile(values, percent, overwrite_input=True))
    place = percent / 100 * (int(counts.sum()) - 1)
    below = int(np.floor(place))
    ends = np.cumsum(counts)
    a, b = (float(values[np.searchsorted(ends, min(n, int(ends[-1]) - 1), side="right")]) for n in (below, below + 1))
    return a + (b - a) * (place - below)


def _few(channel: NDArray[Any]) -> NDArray[np.float64]:
    """Voxels from all over the channel, (n,)."""
    step = max(1, math.ceil((channel.size / _FEW) ** (1 / channel.ndim)))
    return channel[(slice(None, None, step),) * channel.ndim].astype(np.float64).ravel()


def _is_extreme(value: float) -> bool:
    """Of a type of floats: no share of the voxels is too small for it to be padding."""
    return _EXTREME <= abs(value) <= -LOWEST or abs(value) == np.finfo(np.float64).max


def _may_be_below(low: float, few: NDArray[np.float64]) -> bool:
    """Whether the least value could be padding, by few voxels between the ends."""
    if low < 0 and _is_extreme(low):
        return True
    if low in _NOTHING:
        return False
    times = _BELOW_END if low in _LOW_ENDS else _BELOW
    return len(few) < _VALUES or _far_below(low, few, times / 2)


def _far_below(low: float, rest: NDArray[Any], times: float) -> bool:
    start, end = (float(value) for value in np.percentile(rest, (0.5, 99.5)))
    return start - low >= times * (end - start)


def _share_below(channel: NDArray[Any], low: float, high: float) -> float:
    """The share of the voxels that are padding, of the least value that might be some; 0 if it is none."""
    share = float(np.count_nonzero(channel == low)) / channel.size
    if low < 0 and _is_extreme(low):
        return share
    if low not in _LOW_ENDS and share <= _SHARE:
        return 0.0
    rest = channel[(channel > low) & (channel <= high)]
    least, times = (2, _BELOW_END) if low in _LOW_ENDS else (_VALUES, _BELOW)
    return share if _different(rest) >= least and _far_below(low, rest, times) else 0.0


def _may_be_above(high: float, few: NDArray[np.float64]) -> bool:
    """Whether the largest value could be padding, by few voxels between the ends."""
    if high > 0 and _is_extreme(high):
        return True
    if high in _NOTHING or high in _SATURATED:
        return False
    times = _ABOVE_END if high in _HIGH_ENDS else _ABOVE
    return len(few) < _VALUES or high - float(few.max()) >= times * float(few.max() - few.min())


def _share_above(channel: NDArray[Any], low: float, high: float) -> float:
    """As `_share_below`; between padding and the rest there is nothing, and it reaches the edge."""
    share = float(np.count_nonzero(channel == high)) / channel.size
    if high > 0 and _is_extreme(high):
        return share
    if share <= _SHARE:
        return 0.0
    rest = channel[(channel >= low) & (channel < high)]
    times = _ABOVE_END if high in _HIGH_ENDS else _ABOVE
    end = float(rest.max())
    far = high - end >= times * (end - float(rest.min()))
    return share if far and _different(rest) >= _VALUES and _at_edge(channel == high) else 0.0


def _different(values: NDArray[Any]) -> int:
    """How many different values there are, or how many of some of them."""
    return len(np.unique(values[:: max(1, len(values) // _FEW)]))


def _at_edge(mask: NDArray[np.bool_]) -> bool:
    return any(bool(plane.any()) for axis in range(mask.ndim) for plane in np.moveaxis(mask, axis, 0)[[0, -1]])
