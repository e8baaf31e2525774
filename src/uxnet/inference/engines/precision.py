"""Lower precision is trusted once it has been checked: on the scan's own window with most in it, against the one that it is to replace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from uxnet.events import Note, Report, Warn, silent
from uxnet.inference.decide import decide
from uxnet.inference.stitch import Engine
from uxnet.inference.tiles import tile
from uxnet.labels import Labels
from uxnet.recipe import Stage
from uxnet.volume import Image

LIMIT = 0.02
"""The largest share of labels that may differ, counted against the voxels of structures (at least a hundredth of the window's)."""

_LEAST = 0.01


class Cautious:
    """An engine of lower precision that is not yet trusted, and the exact one to check it against.

    Args:
        lower: computes the windows if it is right.
        exact: makes the engine that computes in float32 what `lower` does not.
        labels: what the logits' channels mean.
        known: the share that an earlier check found; None if there was none.
        keep: keeps what a check finds.
        guided: whether the channels are "not it" and "it" rather than the labels'. Where such a stage looks is known only when it
            does: it is checked on the first window that it computes.
        report: hears what that check finds.
    """

    def __init__(
        self,
        lower: Engine,
        exact: Callable[[], Engine],
        labels: Labels,
        known: float | None = None,
        keep: Callable[[float], None] = lambda share: None,
        guided: bool = False,
        report: Report = silent,
    ) -> None:
        self.lower, self.exact, self.labels, self.known, self.keep = lower, exact, labels, known, keep
        self.guided, self.report = guided, report
        self.chosen: Engine | None = None

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, I, J, K) float32 -> logits, by the engine that was found right; by the lower one if nothing was checked."""
        if self.guided:
            check(self, batch[0], self.report)
        return (self.chosen or self.lower).infer(batch)


def check(engine: Cautious, window: Image, report: Report) -> None:
    """Decides which of the two engines is taken, once; a warning says when it is the slower one.

    Args:
        window: (C, I, J, K), of the size that the engine computes.
    """
    if engine.chosen is not None:
        return
    share, exact = engine.known, None
    if share is None:
        exact = engine.exact()
        share = differing(engine.lower.infer(window[np.newaxis])[0], exact.infer(window[np.newaxis])[0], engine.labels, engine.guided)
        engine.keep(share)
        report(Note(f"self-check of the lower precision: {share:.2%} of the labels differ from those without it (at most {LIMIT:.0%} may)"))
    if share <= LIMIT:
        engine.chosen = engine.lower
        return
    engine.chosen = exact or engine.exact()
    report(
        Warn(
            f"in the lower precision {share:.1%} of the labels differ from those without it, more than {LIMIT:.0%}: "
            "it is not taken, which is slower"
        )
    )


def differing(lower: NDArray[np.float32], exact: NDArray[np.float32], labels: Labels, guided: bool = False) -> float:
    """The share of labels that differ between logits (channels, I, J, K), against the voxels that float32 calls a structure."""
    if not np.isfinite(lower).all():
        return 1.0
    said, true = ((one[1] > one[0] if guided else decide(one, labels)) for one in (lower, exact))
    return int(np.count_nonzero(said != true)) / max(float(np.count_nonzero(true)), _LEAST * true.size)


def trusted(engines: Sequence[Engine], image: Image, stage: Stage, report: Report) -> None:
    """Checks those engines of a stage that are not yet trusted, on the window of the image with most in it.

    What is looked for is what the recipe calls foreground, and what it does not define: the prepared image's brighter half of the range
    of intensities, of which air and padding have none.
    """
    waiting = [engine for engine in engines if isinstance(engine, Cautious) and engine.chosen is None]
    if waiting:
        window = fullest_window(image, stage)
        for engine in waiting:
            check(engine, window, report)


def fullest_window(image: Image, stage: Stage) -> Image:
    """The window (C, I, J, K) with most voxels above the middle between the image's lowest value and its mean."""
    patch = stage.window
    above = image[0] > (float(image[0].min()) + float(image[0].mean(dtype=np.float64))) / 2
    boxes = tile(image.shape[1:], patch, 0.0).boxes
    fullest = max(boxes, key=lambda box: int(np.count_nonzero(above[box.slices])))
    window = image[(slice(None), *fullest.slices)]
    lack = [a - b for a, b in zip(patch, window.shape[1:], strict=True)]
    return np.pad(window, [(0, 0), *((n // 2, n - n // 2) for n in lack)])
