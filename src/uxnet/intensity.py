"""Intensities brought to the range that networks like, in bounded memory.

What decides (percentiles, mean, deviation) is taken of the whole channel first; it is then applied to any part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.recipe import Intensity
from uxnet.volume import Image

_PIECE = 1 << 20  # voxels counted at once


def normalise(image: NDArray[Any], intensity: Sequence[Intensity], name: str = "image") -> Image:
    """Each channel brought to the range that its entry of `intensity` asks for.

    Args:
        image: (C, I, J, K).
        intensity: one entry for all channels, or one a channel.
        name: of the scan, for the message.

    Returns:
        (C, I, J, K) float32; a constant channel becomes 0. Where both percentiles are the same value (a mask, a channel that shows
        something in very few voxels), those of the whole channel count: its least and largest.

    Raises:
        VolumeError: if there are neither one nor C entries.
    """
    entries = one_each(image.shape[0], intensity, name)
    return np.stack([normaliser(channel, entry)(channel) for channel, entry in zip(image, entries, strict=True)])


def one_each(channels: int, intensity: Sequence[Intensity], name: str) -> list[Intensity]:
    """An entry for every channel.

    Raises:
        VolumeError: if there are neither one nor so many.
    """
    if len(intensity) not in (1, channels):
        raise VolumeError(f"{name}: it has {channels} channels, the recipe gives intensities for {len(intensity)}")
    return list(intensity) * (channels if len(intensity) == 1 else 1)


def normaliser(channel: NDArray[Any], intensity: Intensity) -> Callable[[NDArray[Any]], Image]:
    """The function that ranges parts of a channel as the whole of it asks for: any shape of its type -> the same shape, float32."""

    def clipped(part: NDArray[Any]) -> Image:
        x = part.astype(np.float32)
        return np.clip(x, intensity.clip[0], intensity.clip[1], out=x) if intensity.clip else x

    if intensity.scale == "none":
        return clipped
    if intensity.scale == "range":
        low, high = intensity.clip
        return lambda part: _ranged(clipped(part), low, high)
    values, counts = _counted(channel, intensity)
    if not len(values):
        return lambda part: np.zeros(part.shape, dtype=np.float32)
    low, high = (_percentile(values, counts, share) for share in (intensity.low, intensity.high))
    if low >= high:
        # A mask, or a channel that shows something in very few voxels: between these percentiles it is empty, and would become 0.
        values, counts = _counted(channel, replace(intensity, nonzero=False))
        low, high = float(values.min()), float(values.max())
    if intensity.scale == "percentile":
        return lambda part: _ranged(clipped(part), low, high)
    np.clip(values, low, high, out=values)
    mean = _mean(values, counts)
    values -= np.float32(mean)
    deviation = float(np.sqrt(_mean(np.square(values, out=values), counts)))

    def standard(part: NDArray[Any]) -> Image:
        x = clipped(part)
        if deviation <= 0:
            return np.zeros_like(x)
        np.clip(x, low, high, out=x)
        x -= np.float32(mean)
        x /= np.float32(deviation)
        return x

    return standard


def _ranged(x: Image, low: float, high: float) -> Image:
    if high <= low:
        return np.zeros_like(x)
    x -= np.float32(low)
    x /= np.float32(high - low)
    return np.clip(x, 0, 1, out=x)


def _counted(channel: NDArray[Any], intensity: Intensity) -> tuple[Image, NDArray[np.int64] | None]:
    """The clipped intensities that count, and how often each occurs (None: once each, unsorted).

    Whole numbers of up to 16 bits are counted exactly in a table, piece by piece; others are copied, 4 bytes a voxel.
    """
    if channel.dtype.kind in "iu" and channel.dtype.itemsize <= 2:
        kind = np.iinfo(channel.dtype)
        counts = np.zeros(int(kind.max) - int(kind.min) + 1, dtype=np.int64)
        flat = np.nditer(channel, flags=["external_loop", "buffered"], order="K", buffersize=_PIECE)
        for piece in flat:
            counts += np.bincount(np.asarray(piece).astype(np.int64) - int(kind.min), minlength=len(counts))
        if intensity.nonzero:
            counts[-int(kind.min)] = 0
        found = np.flatnonzero(counts)
        values = (found + int(kind.min)).astype(np.float32)
        counts = counts[found]
    else:
        values = (channel[channel != 0] if intensity.nonzero else channel.ravel(order="K")).astype(np.float32)
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
