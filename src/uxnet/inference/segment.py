"""The straight line: a scan in, its label map out. Prediction, validation while training, and cohorts all go through here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import RecipeError
from uxnet.events import Report, Spent, silent
from uxnet.inference.cascade import refine
from uxnet.inference.decide import background_logits, restore_logits
from uxnet.inference.stitch import Engine, Room, Sweep, stitch
from uxnet.labels import Labels
from uxnet.prepare.way_out import Trail, prepare, rule_of_air
from uxnet.recipe import Inference, Stage
from uxnet.volume import Image, Volume


@dataclass(frozen=True, eq=False)
class Ready:
    """A scan and what its first network sees of it: the prepared image (C, I, J, K) float32 and the trail back."""

    volume: Volume
    image: Image
    trail: Trail


def make_ready(volume: Volume, stage: Stage, threads: int = 1, report: Report = silent) -> Ready:
    """A scan, prepared as the first stage asks.

    Raises:
        VolumeError: as `prepare`.
    """
    started = time.perf_counter()
    image, trail = prepare(volume, stage.prepare, threads, report)
    report(Spent("prepare", time.perf_counter() - started))
    return Ready(volume, image, trail)


def segment(
    scan: Volume | Ready,
    engines: Sequence[Engine],
    stages: Sequence[Stage],
    labels: Labels,
    report: Report = silent,
    *,
    threads: int = 1,
    plan: Callable[[Sweep], Room] | None = None,
    probabilities: NDArray[np.uint8] | None = None,
) -> Volume:
    """The label map of a scan, on the scan's own grid.

    There is never an array of all classes at the size of the scan: pieces of logits are decided as they are finished.

    Args:
        scan: an image, (C, I, J, K), or one that is prepared already.
        engines: compute the stages' networks.
        stages: preparation, patch and windows of each; every stage after the first is guided by the labels of the one before.
        labels: what the networks' channels mean.
        threads: for what surrounds the engines.
        plan: decides, when the first window is computed, how much memory is taken (see stitch).
        probabilities: filled with the first stage's probabilities times 255, (out_channels, I, J, K) on the scan's own grid.

    Returns:
        (1, I, J, K) values of the smallest integer type, on exactly the scan's geometry.

    Raises:
        VolumeError: if the scan's channels do not fit the recipe.
    """
    stage = stages[0]
    ready = scan if isinstance(scan, Ready) else make_ready(scan, stage, threads, report)
    needed = rule_of_air(ready.volume, ready.trail, stage.prepare) if stage.inference.skip_air else None
    pieces = stitch(
        ready.image,
        engines[0],
        stage.window,
        stage.inference,
        stage.out_channels(labels.out_channels),
        plan=plan,
        needed=needed,
        nothing=background_logits(labels),
        report=report,
    )
    found = restore_logits(pieces, ready.trail, labels, probabilities=probabilities, threads=threads, report=report)
    for following, engine in zip(stages[1:], engines[1:], strict=True):
        found = refine(ready.volume, found, engine, following, labels, report)
    return found


def with_inference(stages: Sequence[Stage], *, overlap: float | None = None, skip_air: bool | None = None) -> tuple[Stage, ...]:
    """The stages with what a caller wants otherwise than the recipe; None leaves the recipe's.

    Raises:
        RecipeError: if the overlap is not within 0..1, or air is to be left out and the recipe does not say what air is.
    """
    if skip_air and stages[0].prepare.crop_above is None:
        raise RecipeError("skip_air: the recipe has no prepare.crop_above, so nothing says which windows hold only air; leave it out")

    def changed(inference: Inference) -> Inference:
        return replace(
            inference,
            overlap=inference.overlap if overlap is None else overlap,
            skip_air=inference.skip_air if skip_air is None else skip_air,
        )

    return tuple(replace(stage, inference=changed(stage.inference)) for stage in stages)
