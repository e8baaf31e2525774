"""The learning rate, as a function of the step and of the validations so far: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Sequence

from uxnet.recipe import Schedule
from uxnet.training.watch import better


def learning_rate(schedule: Schedule, peak: float, step: int, steps: int, scores: Sequence[float | None]) -> float:
    """The rate of the step number `step` (from 0) of `steps`.

    Args:
        peak: the optimiser's rate.
        scores: mean validation Dice of every validation so far; "plateau" reads them (paper, table 4).
    """
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "plateau":
        return peak * schedule.factor ** _drops(scores, schedule.patience)
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    left = (1 - progress) ** schedule.power if schedule.kind == "poly" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.floor + (1 - schedule.floor) * left)


def _drops(scores: Sequence[float | None], patience: int) -> int:
    """How often the rate has been lowered: each time more than `patience` validations in a row brought nothing better."""
    best, waited, drops = -math.inf, 0, 0
    for score in scores:
        if score is not None and better(score, best):
            best, waited = score, 0
        else:
            waited += 1
        if waited > patience:
            drops, waited = drops + 1, 0
    return drops
