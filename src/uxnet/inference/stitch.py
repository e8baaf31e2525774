"""The sliding window: an image in, the logits of its whole grid out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import ModelError
from uxnet.events import Progress, Report, silent
from uxnet.geometry import Shape
from uxnet.inference.tiles import blend_weight, tiles
from uxnet.recipe import Inference
from uxnet.volume import Image


class Engine(Protocol):
    """What computes a network."""

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, I, J, K) -> logits (N, out_channels, I, J, K)."""
        ...


def stitch(image: Image, engine: Engine, patch: Shape, inference: Inference, report: Report = silent) -> NDArray[np.float32]:
    """The logits of a prepared image, window by window, overlapping windows blended.

    Args:
        image: (C, I, J, K) float32. Sides smaller than the patch's are padded with zeros on both ends, as in training.
        engine: computes a batch of windows.
        patch: the size of a window, (I, J, K).

    Returns:
        (out_channels, I, J, K) float32.

    Raises:
        ModelError: if the network gives NaN or infinity.
    """
    padded, inside = pad_to(image, patch)
    shape: Shape = (padded.shape[1], padded.shape[2], padded.shape[3])
    weight = blend_weight(patch, inference.blending)
    windows = tiles(shape, patch, inference.overlap)
    total = np.zeros((0, *shape), dtype=np.float32)  # its channels are known after the first windows
    weights = np.zeros(shape, dtype=np.float32)
    for first in range(0, len(windows), inference.batch):
        group = windows[first : first + inference.batch]
        logits = finite(engine.infer(np.stack([padded[(slice(None), *box.slices)] for box in group])))
        if not len(total):
            total = np.zeros((logits.shape[1], *shape), dtype=np.float32)
        for box, one in zip(group, logits, strict=True):
            total[(slice(None), *box.slices)] += one * weight
            weights[box.slices] += weight
        report(Progress("windows", first + len(group), len(windows)))
    total /= weights
    return total[(slice(None), *inside)]


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
