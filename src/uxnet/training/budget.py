"""A budget of time, turned into a number of steps before the first one."""

from __future__ import annotations

import contextlib
import copy
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uxnet.dataset.cache import CachedCase
from uxnet.errors import Preempted, plural
from uxnet.events import Note, Report, silent
from uxnet.io import write_json
from uxnet.io.checked import read_as
from uxnet.io.schemas import TimeBudget
from uxnet.recipe import Stage
from uxnet.training.engine import TrainingEngine
from uxnet.training.loop import Hooks, RunFiles, fit
from uxnet.training.validate import Validation

# So many steps are measured, or as many as fit into so many seconds; the first ones warm up and are left out.
_STEPS, _SECONDS, _WARMING = 12, 60.0, 3
# What is kept for the checkpoints, the curves and the machine's moods.
_SHARE = 0.95


def within_budget(
    stage: Stage,
    network: nn.Module,
    cases: Sequence[CachedCase],
    validation_seconds: Callable[[], float],
    *,
    engine: TrainingEngine,
    files: RunFiles,
    report: Report,
    **more: Any,
) -> Stage:
    """The stage with as many steps as its `training.hours` allow, validations included; a stage without a budget as it is.

    The number is measured once and kept in `budget.json`; a run that is resumed reads it. Every process calls it.

    Args:
        network: with the weights to begin with; a copy of it is trained to measure.
        validation_seconds: measures how long a validation takes.
        more: what else `fit` wants.
    """
    hours, kept = stage.training.hours, files.folder / "budget.json"
    if not hours:
        return stage
    if not kept.exists():
        a_step = _seconds_a_step(stage, network, cases, engine, files, more)
        a_validation = engine.mean([validation_seconds()])[0]
        steps = steps_within(hours * 3600 * _SHARE, a_step, a_validation, stage.training.validate_every)
        measured = {"hours": hours, "steps": steps, "seconds_a_step": a_step, "seconds_a_validation": a_validation}
        engine.first(lambda: write_json(kept, measured))
    # Every process reads what the first one measured.
    budget = read_as(kept, TimeBudget, otherwise="put the file back as it was, or train into another folder")
    steps = budget.steps
    report(
        Note(
            f"{budget.hours:g} h are {plural(steps, 'step')}: {budget.seconds_a_step:.3g} s a step and {budget.seconds_a_validation:.3g} s "
            f"for each validation, every {plural(stage.training.validate_every, 'step')}"
        )
    )
    return replace(stage, training=replace(stage.training, steps=steps))


def steps_within(seconds: float, a_step: float, a_validation: float, validate_every: int) -> int:
    """The most steps, at least one, that fit with their validations: one every so many steps, and one after the last."""

    def needed(steps: int) -> float:
        return steps * a_step + -(-steps // validate_every) * a_validation

    steps = max(1, int(seconds / (a_step + a_validation / validate_every)))
    while steps > 1 and needed(steps) > seconds:
        steps -= 1
    return steps


def _seconds_a_step(
    stage: Stage, network: nn.Module, cases: Sequence[CachedCase], engine: TrainingEngine, files: RunFiles, more: Mapping[str, Any]
) -> float:
    """The median of some real steps: data, augmentation, network, optimiser and records."""
    training = replace(stage.training, steps=_STEPS, hours=0.0, validate_every=_STEPS, checkpoint_every=_STEPS)
    files.folder.mkdir(parents=True, exist_ok=True)
    scaler = engine.scaler_state()  # a run must begin with its own, not with what measuring made of it
    scratch = RunFiles(Path(engine.first(lambda: tempfile.mkdtemp(prefix=".budget.", dir=files.folder))))
    began, now = time.monotonic(), clock(engine)
    ends = [now()]
    try:
        with contextlib.suppress(Preempted):
            fit(
                copy.deepcopy(network),
                cases,
                lambda: Validation({}),
                stage=replace(stage, training=training),
                engine=engine,
                files=scratch,
                hooks=Hooks(silent, lambda: time.monotonic() - began > _SECONDS, lambda _: ends.append(now())),
                **{**more, "identity": "budget"},
            )
    finally:
        if scaler:
            engine.load_scaler_state(scaler)
        if engine.rank == 0:
            shutil.rmtree(scratch.folder, ignore_errors=True)
    times = [b - a for a, b in itertools.pairwise(ends)][:_STEPS]  # what follows is the validation
    return engine.first(lambda: max(1e-3, float(statistics.median(times[_WARMING:] or times))))


def clock(engine: TrainingEngine) -> Callable[[], float]:
    """Seconds that count: on the wall; of one thread on a CPU the processor's, which other processes do not make longer."""
    return time.process_time if engine.device.type == "cpu" and torch.get_num_threads() == 1 else time.monotonic
