"""A training run: a dataset and a recipe in, a folder with checkpoints, records, curves and a model out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from uxnet.dataset.cache import CachedCase, build_cache
from uxnet.dataset.check import Inspection, check_dataset, same_scans, warn_and_refuse
from uxnet.dataset.folds import Fold, split_for, write_split
from uxnet.dataset.manifest import Case, Manifest, read_dataset
from uxnet.dataset.sides import check_trained_sides
from uxnet.devices import computing_with
from uxnet.errors import Cancelled, CheckpointError, InputError, RecipeError, UsageError, UxnetError, plural
from uxnet.events import Note, Progress, Report, Warn, silent
from uxnet.inference.engines.torch import TorchEngine, stage_network
from uxnet.inference.segment import segment
from uxnet.io import alone, read_geometry, read_image, write_json, write_labels
from uxnet.io.checked import read_as
from uxnet.io.schemas import Transfer
from uxnet.labels import Label, Labels
from uxnet.model.catalogue import recipe_of
from uxnet.model.file import read_model, warn_of_leaks
from uxnet.recipe import Recipe, Stage
from uxnet.training.begin import begin_from
from uxnet.training.board import require_tensorboard
from uxnet.training.budget import clock, within_budget
from uxnet.training.checkpoint import Progressed, load_weights_file, same_run, weights_header
from uxnet.training.content import refuse_changed_cases, weights_hash
from uxnet.training.distil import Teachers, teachers_from
from uxnet.training.engine import Strategy, TrainingEngine
from uxnet.training.export import Trained, hand_over
from uxnet.training.failures import plain_errors
from uxnet.training.identity import run_identity, weights_of
from uxnet.training.loop import Hooks, RunFiles, fit
from uxnet.training.losses import SegmentationLoss
from uxnet.training.progress import Showing
from uxnet.training.resume import as_begun, begin_or_tidy, refuse_another_run
from uxnet.training.validate import Validation, joined, validate


def train(
    dataset: str | Path | Manifest,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    fold: int | Literal["all"] = 0,
    split: str | Path | None = None,
    protocol: str | None = None,
    group_by: str | None = None,
    init_from: str | Path | None = None,
    init_kernels: Literal["trilinear", "centred"] = "trilinear",
    teachers: Sequence[str | Path] = (),
    resume: bool = False,
    device: str = "auto",
    strategy: Strategy = "auto",
    cache: str | Path | None = None,
    workers: int = 1,
    threads: int = 0,
    inspection: Inspection | None = None,
    tensorboard: bool = False,
    stopping: Callable[[], bool] = lambda: False,
    report: Report = silent,
) -> Path:
    """Trains one fold and writes a model.

    Started in several processes (by `torchrun` or `srun`) they work together, each on a part of every batch; all of them call this.

    Args:
        dataset: a folder that `read_dataset` knows, or what it gave.
        recipe: a name in the box, a TOML file, a model, whose own is taken (see `shipped.recipe_of`), or a Recipe. The stages of a recipe
            with two are trained one after the other.
        out: the run's folder: recipe, split, inspection, metrics, curves, checkpoints and `model.uxnet` go there; what belongs to one
            of two stages lies in `stage_0` and `stage_1`.
        fold: of the split, from 0; or "all": every case trains, none validates, the last weights are kept and no split is made.
        split: a file with the folds; by default `split.json` in the run's folder, made if it is not there,
            by `protocol` ("5x80-20" unless said otherwise, or "5x80-10-10").
        group_by: a pattern whose match in a case's name is its person.
        init_from: a model whose weights to begin with, wherever they fit; `transfer.json` says what became of each.
        init_kernels: how its kernels grow where this network's are larger, see `networks.transfer`.
        teachers: models of the same labels and preparation whose mean answer is learnt beside the labels, as far as `loss.taught` says.
        resume: go on with a run that was interrupted, or that is to have more steps than it had, where its learning rates so far would
            have been the same; a folder without one is started.
        device: "auto", "cpu", "cuda", "cuda:N", "mps".
        strategy: of several processes: "ddp" keeps a whole network in each, "fsdp" shares it out; "auto" is "ddp".
        cache: folder of the prepared cases, by default `cache` in the run's folder; runs of one dataset and recipe may share it.
        workers: processes to check and prepare cases in. With more than one, a script that calls this needs Python's usual
            `if __name__ == "__main__":`, since the others start by importing it.
        threads: that compute on a CPU; 0 takes torch's own number, and no more than the cores that this process may use. A run that is
            resumed with another number ends with weights whose last bits may differ.
        inspection: what `check_dataset` found of this dataset, if it was checked already.
        tensorboard: also write `tensorboard/` for TensorBoard.
        stopping: asked after every step; when it says so, the run is saved and left by `Preempted`.

    Returns:
        The path of the model.

    Raises:
        DatasetError: if the dataset has errors (all are named) or no such fold.
        RecipeError: if the recipe asks for what cannot be done, or a teacher does not fit.
        ModelError: if less than a tenth of an encoder's parameters fits from the model to begin with.
        CheckpointError: if the folder holds a run and `resume` is off, or holds another run, or one whose cases had another content
            (they are named), or another process trains there.
        TrainingError: if the training cannot go on.
        InputError: if a case can no longer be read, or a record not be written.
        UxnetError: whatever stops the training, those above among them: if it had a good validation by then, `last_good.uxnet` holds the
            weights of the best.
        Preempted: if `stopping` said so; with `resume` the run goes on.
    """
    recipe, out = recipe if isinstance(recipe, Recipe) else recipe_of(recipe), Path(out)
    if threads < 0:
        raise UsageError(f"threads={threads}: give at least 1, or 0 for one a core")
    if tensorboard:
        require_tensorboard()
    engines = [TrainingEngine(device, stage.training.precision, strategy) for stage in recipe.stages]
    one = engines[0]
    report = report if one.rank == 0 else silent
    for engine, stage in zip(engines, recipe.stages, strict=True):
        engine.share(stage.training.batch)  # refuses what cannot be shared out
    one.first(lambda: refuse_another_run(out, recipe, resume))

    manifest = dataset if isinstance(dataset, Manifest) else read_dataset(dataset, group_by=group_by)
    report(Note(manifest.summary))
    if len(recipe.stages) > 1 and manifest.labels.regions:
        raise RecipeError(f"stages: {recipe.name} asks for one structure at a time, so the labels of {manifest.name} may not be regions")
    check_trained_sides(recipe.stages, manifest.labels, report)
    known = inspection
    inspection = one.first(lambda: known or check_dataset(manifest, workers=workers, report=report))
    warn_and_refuse(inspection, report)
    networks = [_fresh_network(stage, manifest, engine) for stage, engine in zip(recipe.stages, engines, strict=True)]
    origin = begin_from(networks, recipe, manifest, Path(init_from), init_kernels, report) if init_from else None
    taught = teachers_from([Path(path) for path in teachers], recipe, manifest, report).on(one) if teachers else None

    everyone = one.first(lambda: _every_case(recipe, manifest, report)) if fold == "all" else None
    seed, file = recipe.stages[0].training.seed, Path(split or out / "split.json")
    if everyone is None:  # refused before there is a folder with a lock in it
        one.first(lambda: _fold(manifest, inspection, file, protocol, seed, int(fold), silent, False))

    def begin() -> Fold:
        held.enter_context(alone(out / "train.lock", CheckpointError(f"{out}: another process trains there; wait for it, or stop it")))
        refuse_another_run(out, recipe, resume)  # again: it may have begun while this process read the dataset
        _refuse_another_beginning(out, origin)
        chosen = everyone or _fold(manifest, inspection, file, protocol, seed, int(fold), report)
        for doubt in same_scans(inspection, {"train": chosen.train, "validation": chosen.validation, "test": chosen.test}):
            report(Warn(f"{manifest.root}: {doubt}"))
        others = [*(taught.models if taught else ()), *([read_model(Path(init_from))] if init_from else ())]
        known = inspection.fingerprint
        warn_of_leaks(others, (*chosen.validation, *chosen.test), manifest.name, known.sha256, report, known.label_maps)
        # Until a checkpoint is there, a case that could not be prepared may be mended.
        if any(RunFiles(folder).last.exists() for folder in (out, *(out / f"stage_{n}" for n in range(len(recipe.stages))))):
            refuse_changed_cases(out / "inspection.json", inspection, (*chosen.train, *chosen.validation))
        if origin is not None:
            write_json(out / "transfer.json", origin)  # before the run counts as begun: a run that is there says what it began with
        begin_or_tidy(out, recipe, resume, report)
        write_json(out / "inspection.json", inspection.to_dict())
        return chosen

    def model(path: Path, stages: Sequence[Trained]) -> None:
        hand_over(path, recipe, inspection, chosen, fold, stages, engines[-1], origin, taught)

    with contextlib.ExitStack() as held:
        held.enter_context(computing_with(threads))
        chosen = one.first(begin)
        identity = one.first(lambda: run_identity(out, as_begun(out), inspection, chosen, origin, taught))
        digests = {facts.name: facts.image_sha256 for facts in inspection.fingerprint.cases}
        folder = Path(cache or out / "cache")
        run = _Run(recipe, manifest, chosen, digests, out, folder, workers, tensorboard, stopping, identity, taught, report)
        trained: list[Trained] = []
        for network, engine in zip(networks, engines, strict=True):
            try:
                trained.append(_train_stage(run, network, engine, trained))
            except Cancelled:
                raise
            except UxnetError as error:
                kept = _keep_last_good(run, network, engine, trained, model)
                if not kept:
                    raise
                raise type(error)(f"{error}. {kept}") from error
        one.first(lambda: model(out / "model.uxnet", trained))
    return out / "model.uxnet"


@dataclass(frozen=True)
class _Run:
    """What all stages of a run have in common; `digests` are of the cases' images."""

    recipe: Recipe
    manifest: Manifest
    chosen: Fold
    digests: Mapping[str, str]
    out: Path
    cache: Path
    workers: int
    tensorboard: bool
    stopping: Callable[[], bool]
    identity: str
    teachers: Teachers | None
    report: Report

    def files(self, number: int) -> RunFiles:
        return RunFiles(self.out if len(self.recipe.stages) == 1 else self.out / f"stage_{number}")

    def cache_of(self, number: int) -> Path:
        return self.cache if len(self.recipe.stages) == 1 else self.cache / f"stage_{number}"

    def cases(self, names: Sequence[str]) -> list[Case]:
        by_name = {case.name: case for case in self.manifest.cases}
        return [by_name[name] for name in names]


def _train_stage(run: _Run, network: nn.Module, engine: TrainingEngine, before: Sequence[Trained]) -> Trained:
    """Trains the stage that comes after those `before` it; a stage that was trained already is only read."""
    number = len(before)
    stage, files, labels = run.recipe.stages[number], run.files(number), run.manifest.labels
    files.folder.mkdir(parents=True, exist_ok=True)
    engines = [trained.engine for trained in before]
    priors = engine.first(lambda: _prior_labels(run, before)) if before else None

    def prepared() -> list[CachedCase]:
        cases, folder = run.cases(run.chosen.train), run.cache_of(number)
        return build_cache(cases, stage.prepare, labels, folder, priors=priors, workers=run.workers, report=run.report)

    cached = engine.first(prepared)
    run.report(Note(_opening(run, number, network, engine)))
    engines.append(TorchEngine(network, str(engine.device), engine.precision))
    held_out = run.cases(run.chosen.validation)

    def score() -> Validation:
        stages = run.recipe.stages[: number + 1]
        own = held_out[engine.rank :: engine.world]
        parts = engine.every(lambda: validate(own, engines, stages, labels, run.report, showing.case))
        return joined(parts, [case.name for case in held_out])

    def validation_seconds() -> float:
        some, now = held_out[engine.rank : engine.rank + 2], clock(engine)
        began = now()
        validate(some, engines, run.recipe.stages[: number + 1], labels)
        return (now() - began) / max(1, len(some)) * -(-len(held_out) // engine.world)

    common: dict[str, Any] = {
        "labels": labels,
        "loss_of": SegmentationLoss(stage.loss, _labels_of(stage, labels)).to(engine.device),
        "engine": engine,
        "files": files,
        "identity": run.identity,
        "teachers": run.teachers,
    }
    stage = within_budget(stage, network, cached, validation_seconds, report=run.report, **common)
    seen = [case.name for case in held_out[:: engine.world]]
    with Showing(files.folder, run.recipe.name, stage.training, labels, seen, run.tensorboard, run.report) as showing:
        hooks = Hooks(run.report, run.stopping, showing.record)
        done, last = fit(network, cached, score, stage=stage, hooks=hooks, **common)
    # What an earlier run left there is not this one's best.
    best = stage.training.keep == "best" and done.best_step > 0 and files.best.exists()
    weights = load_weights_file(files.best) if best else last
    network.load_state_dict(weights)
    return Trained(stage, done, done.best_step if best else done.step, weights, files.metrics, engines[-1])


def _keep_last_good(
    run: _Run, network: nn.Module, engine: TrainingEngine, before: Sequence[Trained], model: Callable[[Path, Sequence[Trained]], None]
) -> str:
    """Writes the weights of the best validation of a run that had to be stopped, and says so; says nothing where there is none.

    The first process does it alone: what stopped it may have stopped no other, and they may be waiting for something else.
    """
    path = run.out / "last_good.uxnet"
    if engine.rank != 0 or len(before) < len(run.recipe.stages) - 1:
        return ""
    try:
        good = _last_good(run, network, engine, len(before))
        if good is None:
            return ""
        model(path, [*before, good])
    except (UxnetError, OSError) as error:
        # On a full disk this fails, too; what stopped the run is what has to be said.
        run.report(Warn(f"{path}: the weights of the best validation could not be written there ({error})"))
        return ""
    return f"The weights of step {good.step}, the best, are in {path}"


def _last_good(run: _Run, network: nn.Module, engine: TrainingEngine, number: int) -> Trained | None:
    """The weights of the best validation of a stage that had to be stopped; None where there was none in this run."""
    files = run.files(number)
    if not files.best.exists() or not same_run((header := weights_header(files.best)).get("identity"), run.identity):
        return None
    weights = load_weights_file(files.best)
    done = Progressed(step=int(header["step"]))
    return Trained(run.recipe.stages[number], done, done.step, weights, files.metrics, TorchEngine(network, str(engine.device)))


def _prior_labels(run: _Run, before: Sequence[Trained]) -> dict[str, Path]:
    """The label maps that the stages so far give the training cases; made once, they guide the next stage (RAP-Net, section 2).

    Beside each is what it was made of: where the image, its grid or the weights are others by now, the case is segmented anew.
    """
    number, folder = len(before), run.files(len(before) - 1).folder / "labels"
    engines, weights = [trained.engine for trained in before], weights_hash([trained.weights for trained in before])
    paths = {name: folder / f"{name}.nii.gz" for name in run.chosen.train}
    for done, case in enumerate(run.cases(run.chosen.train), start=1):
        path, made_of = paths[case.name], {"image_sha256": run.digests[case.name], "weights_sha256": weights}
        if not _made_of(path, made_of, case):
            folder.mkdir(parents=True, exist_ok=True)
            found = segment(read_image(*case.images), engines, run.recipe.stages[:number], run.manifest.labels)
            write_labels(path, found)
            write_json(folder / f"{case.name}.json", made_of)
        run.report(Progress("segmenting training cases", done, len(paths)))
    return paths


def _made_of(path: Path, made_of: Mapping[str, str], case: Case) -> bool:
    told = path.with_name(f"{case.name}.json")
    try:
        there = path.exists() and told.exists() and read_as(told, dict) == made_of
    except InputError:
        return False
    return there and read_geometry(path).same_grid(read_geometry(case.images[0]))


def _labels_of(stage: Stage, labels: Labels) -> Labels:
    """What the channels of a stage's network mean: the labels, or, for a guided stage, whether it is the structure asked about."""
    return Labels((Label("structure", 1),), ignore=None if labels.ignore is None else 2) if stage.prior else labels


def _fresh_network(stage: Stage, manifest: Manifest, engine: TrainingEngine) -> nn.Module:
    torch.manual_seed(stage.training.seed)
    with plain_errors(stage, engine.device, lambda: "before the first step"):
        return stage_network(stage, len(manifest.channel_names), manifest.labels.out_channels)


def _refuse_another_beginning(out: Path, origin: Mapping[str, Any] | None) -> None:
    if not (out / "recipe.toml").exists():
        return
    file = out / "transfer.json"
    otherwise = "put the file back as it was, or train into another folder"
    there = read_as(file, Transfer, otherwise=otherwise) if file.exists() else None
    if [str(stage.weights_sha256) for stage in (there.stages if there else ())] != weights_of(origin or {}):
        began = f"the weights of {there.model}" if there else "fresh weights"
        raise CheckpointError(f"{out}: another run is there, which began with {began}; resume it with the same, or choose another folder")


def _fold(
    manifest: Manifest, inspection: Inspection, file: Path, protocol: str | None, seed: int, fold: int, report: Report, write: bool = True
) -> Fold:
    split = split_for(manifest, file, inspection.class_presence(), protocol=protocol, seed=seed, write=False, report=report)
    if not 0 <= fold < len(split.folds):
        raise UsageError(f"{file}: it has the folds 0 to {len(split.folds) - 1}, not {fold}")
    if write and not file.exists():
        write_split(file, split)
    return split.folds[fold]


def _every_case(recipe: Recipe, manifest: Manifest, report: Report) -> Fold:
    """All cases to train on, as for a model that is shipped once its settings are settled.

    Raises:
        RecipeError: if the recipe asks validations what to do.
    """
    for n, stage in enumerate(recipe.stages):
        for key in stage.asks_validation:
            if key != "training.keep":  # without validations the last weights are kept
                raise RecipeError(
                    f"stages[{n}].{key}: asks the validation cases, and with fold all there are none; change it in the recipe"
                )
    report(Note("all cases train and none validates: the last weights are kept, and nothing here says how good they are"))
    return Fold(tuple(sorted(case.name for case in manifest.cases)), (), ())


def _opening(run: _Run, number: int, network: nn.Module, engine: TrainingEngine) -> str:
    stages, parameters = run.recipe.stages, sum(p.numel() for p in network.parameters())
    which = f", stage {number + 1} of {len(stages)}" if len(stages) > 1 else ""
    return (
        f"{run.manifest.name}: {len(run.chosen.train)} training and {plural(len(run.chosen.validation), 'validation case')}; recipe "
        f"{run.recipe.name}{which}, {stages[number].network.name} of {parameters:,} parameters on {engine.device} in {engine.precision}"
    )
