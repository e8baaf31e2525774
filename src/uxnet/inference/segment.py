"""The straight line: a scan in, its label map out. Prediction, validation while training, and cohorts all go through here."""

from __future__ import annotations

from collections.abc import Sequence

from uxnet.events import Report, silent
from uxnet.inference.prior import refine
from uxnet.inference.stitch import Engine, stitch
from uxnet.labels import Labels
from uxnet.prepare import prepare, restore_logits
from uxnet.recipe import Stage
from uxnet.volume import Volume


def segment(volume: Volume, engines: Sequence[Engine], stages: Sequence[Stage], labels: Labels, report: Report = silent) -> Volume:
    """The label map of a scan, on the scan's own grid.

    Args:
        volume: an image, (C, I, J, K).
        engines: compute the stages' networks.
        stages: preparation, patch and windows of each; every stage after the first is guided by the labels of the one before.
        labels: what the networks' channels mean.

    Returns:
        (1, I, J, K) values of the smallest integer type, on exactly the scan's geometry.

    Raises:
        VolumeError: if the scan's channels do not fit the recipe.
    """
    image, trail = prepare(volume, stages[0].prepare)
    logits = stitch(image, engines[0], stages[0].window, stages[0].inference, report)
    found = restore_logits(logits, trail, labels)
    for stage, engine in zip(stages[1:], engines[1:], strict=True):
        found = refine(volume, found, engine, stage, labels, report)
    return found
