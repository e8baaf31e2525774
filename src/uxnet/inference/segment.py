"""The straight line: a scan in, its label map out. Prediction, validation while training, and cohorts all go through here."""

from __future__ import annotations

from uxnet.events import Report, silent
from uxnet.inference.stitch import Engine, stitch
from uxnet.labels import Labels
from uxnet.prepare import prepare, restore_logits
from uxnet.recipe import Stage
from uxnet.volume import Volume


def segment(volume: Volume, engine: Engine, stage: Stage, labels: Labels, report: Report = silent) -> Volume:
    """The label map of a scan, on the scan's own grid.

    Args:
        volume: an image, (C, I, J, K).
        engine: computes the stage's network.
        stage: preparation, patch and windows.
        labels: what the network's channels mean.

    Returns:
        (1, I, J, K) values of the smallest integer type, on exactly the scan's geometry.

    Raises:
        VolumeError: if the scan's channels do not fit the recipe.
    """
    image, trail = prepare(volume, stage.prepare)
    logits = stitch(image, engine, stage.window, stage.inference, report)
    return restore_logits(logits, trail, labels)
