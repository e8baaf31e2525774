"""What a run's folder holds of a run, whether that is this one, and how many steps it may still be given."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uxnet.errors import CheckpointError
from uxnet.events import Note, Report
from uxnet.io import atomic, write_json
from uxnet.io.checked import read_as
from uxnet.io.schemas import Begun
from uxnet.recipe import Recipe, complete_toml, load_recipe, other_keys, recipe_to_toml
from uxnet.training.checkpoint import weights_header
from uxnet.training.schedule import learning_rate


def refuse_another_run(out: Path, recipe: Recipe, resume: bool) -> None:
    """A run that is there is this one, or differs from it in a number of steps that it may be given.

    Raises:
        CheckpointError: if it is another, may not have so many steps, or is there at all and `resume` is off.
    """
    file = out / "recipe.toml"
    if not file.exists():
        return
    if not resume:
        raise CheckpointError(f"{out}: there is a run already; go on with it by resume=True, or choose another folder")
    there = load_recipe(file)
    if other_keys(_with_steps(there, _steps(recipe)), recipe):
        differ = other_keys(there, recipe)
        raise CheckpointError(
            f"{out}: the run there has another recipe ({differ}; {file}); resume it with that one, or begin another run, with this one's "
            "weights (init_from)"
        )
    for number, (before, now) in enumerate(zip(_steps(there), _steps(recipe), strict=True)):
        if before != now and (why := _why_no_other_steps(out, there, number, now)):
            raise CheckpointError(
                f"{out}: the run there cannot go on to {now} steps instead of {before}: {why}; resume it with training.steps={before}, or "
                "begin another run in another folder, with its weights (init_from)"
            )


def begin_or_tidy(out: Path, recipe: Recipe, resume: bool, report: Report) -> None:
    """Makes the run's folder, once it is known that there is something to train on; or tidies the one that is there."""
    file = out / "recipe.toml"
    if file.exists():
        # What was being written when an earlier process was killed. What is in the cache may be another run's, and is for `build_cache`.
        for folder in (out, *(out / f"stage_{number}" for number in range(len(recipe.stages)))):
            for own in (".*.part*", "checkpoints/.*.part*", "pictures/.*.part*", "labels/.*.part*"):
                for part in folder.glob(own):
                    part.unlink(missing_ok=True)
            for scratch in folder.glob(".budget.*"):
                shutil.rmtree(scratch, ignore_errors=True)
        there = load_recipe(file)
        before, now = _steps(there), _steps(recipe)
        if before == now:
            return
        if not _begun_file(out).exists():
            write_json(_begun_file(out), {"steps": before})  # before it is forgotten: checkpoints know the run by it
        report(Note(f"{out}: the run there goes on to {_said(now)} steps instead of {_said(before)}"))
        # As it was written, by this version or an earlier one: it is known by that.
        write = recipe_to_toml if file.read_text(encoding="utf-8") == recipe_to_toml(there) else complete_toml
        text = write(_with_steps(there, now))
    else:
        if resume:
            report(Note(f"{out}: nothing to resume there, a new run is started"))
        text = complete_toml(recipe)
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_begun(out: Path) -> Recipe:
    """The recipe as the run's folder has it, with as many steps as the run began with: what its checkpoints know it by.

    One that means the same may leave defaults out, so that of the folder counts.

    Raises:
        InputError: if the file that says how many steps it began with is damaged.
    """
    recipe, file = load_recipe(out / "recipe.toml"), _begun_file(out)
    return _with_steps(recipe, read_as(file, Begun).steps) if file.exists() else recipe


def _why_no_other_steps(out: Path, recipe: Recipe, number: int, steps: int) -> str:
    """Why a stage of the run that is there may not have so many steps; empty if it may.

    It may where every step that it has taken would have been the same: the weights are then those of a run that had so many from its
    beginning.
    """
    stage, folders = recipe.stages[number], [out] if len(recipe.stages) == 1 else [out / f"stage_{n}" for n in range(len(recipe.stages))]
    if stage.training.hours:
        return "their number was made of training.hours"
    if any((folder / "checkpoints" / "last.safetensors").exists() for folder in folders[number + 1 :]):
        return f"stage {number + 1} is being trained on what stage {number} found"
    last = folders[number] / "checkpoints" / "last.safetensors"
    progressed: dict[str, Any] = weights_header(last)["progressed"] if last.exists() else {"step": 0, "scores": []}
    done = int(progressed["step"])
    if done > steps:
        return f"it has taken {done} already"

    def rates(steps: int) -> list[float]:
        peak, scores = stage.optimiser.learning_rate, progressed["scores"]
        return [learning_rate(stage.schedule, peak, step, steps, scores) for step in range(done)]

    if rates(steps) != rates(stage.training.steps):
        kind, planned = stage.schedule.kind, stage.training.steps
        return (
            f'its learning rate (schedule.kind = "{kind}") has been falling towards step {planned} since step '
            f"{stage.schedule.warmup_steps}, and would have been another in a run of {steps} steps"
        )
    return ""


def _steps(recipe: Recipe) -> list[int]:
    return [stage.training.steps for stage in recipe.stages]


def _with_steps(recipe: Recipe, steps: Sequence[int]) -> Recipe:
    pairs = zip(recipe.stages, steps, strict=False)  # of a recipe with more stages, all else differs, too
    stages = tuple(replace(stage, training=replace(stage.training, steps=each)) for stage, each in pairs)
    return replace(recipe, stages=stages + recipe.stages[len(stages) :])


def _said(steps: Sequence[int]) -> str:
    return " and ".join(map(str, steps))


def _begun_file(out: Path) -> Path:
    return out / "begun.json"
