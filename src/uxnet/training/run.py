"""A training run: a dataset and a recipe in, a folder with checkpoints, records, curves and a model out."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

import uxnet
from uxnet.dataset.cache import build_cache
from uxnet.dataset.check import Inspection, check_dataset, refuse_errors
from uxnet.dataset.folds import Fold, split_for
from uxnet.dataset.manifest import Manifest, read_dataset
from uxnet.draw import curves
from uxnet.errors import CheckpointError, DatasetError, RecipeError
from uxnet.events import Note, Report, silent
from uxnet.inference.engine_torch import TorchEngine
from uxnet.io import atomic, write_json
from uxnet.model import write_model
from uxnet.networks.build import build
from uxnet.recipe import Recipe, load_recipe, recipe_to_toml
from uxnet.records import read_records
from uxnet.training.checkpoint import Progressed, load_weights_file
from uxnet.training.engine import TrainingEngine
from uxnet.training.loop import RunFiles, fit
from uxnet.training.losses import SegmentationLoss
from uxnet.training.validate import Validation, validate


def train(
    dataset: str | Path | Manifest,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    fold: int = 0,
    split: str | Path | None = None,
    protocol: str | None = None,
    group_by: str | None = None,
    resume: bool = False,
    device: str = "auto",
    cache: str | Path | None = None,
    workers: int = 1,
    report: Report = silent,
) -> Path:
    """Trains one fold and writes a model.

    Args:
        dataset: a folder that `read_dataset` knows, or what it gave.
        recipe: a name in the box, a TOML file, or a Recipe.
        out: the run's folder: recipe, split, inspection, metrics, curves, checkpoints and `model.uxnet` go there.
        fold: of the split, from 0.
        split: a file with the folds; by default `split.json` in the run's folder, made if it is not there,
            by `protocol` ("5x80-20" unless said otherwise, or "5x80-10-10").
        group_by: a pattern whose match in a case's name is its person.
        resume: go on with a run that was interrupted; a folder without one is started.
        device: "auto", "cpu", "cuda", "cuda:N", "mps".
        cache: folder of the prepared cases, by default `cache` in the run's folder; runs of one dataset and recipe may share it.
        workers: processes to check and prepare cases in. With more than one, a script that calls this needs Python's usual
            `if __name__ == "__main__":`, since the others start by importing it.

    Returns:
        The path of the model.

    Raises:
        DatasetError: if the dataset has errors (all are named) or no such fold.
        RecipeError: if the recipe asks for what this version cannot do.
        CheckpointError: if the folder holds a run and `resume` is off, or holds another run.
        TrainingError: if the training cannot go on.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if len(recipe.stages) != 1:
        raise RecipeError(f"stages: {recipe.name} has {len(recipe.stages)}; this version of uxnet trains recipes with one")
    stage, out = recipe.stages[0], Path(out)
    engine = TrainingEngine(device, stage.training.precision)
    _refuse_another_run(out, recipe, resume)

    manifest = dataset if isinstance(dataset, Manifest) else read_dataset(dataset, group_by=group_by)
    inspection = check_dataset(manifest, workers=workers, report=report)
    refuse_errors(inspection)
    torch.manual_seed(stage.training.seed)
    network = build(stage.network.name, len(manifest.channel_names), manifest.labels.out_channels, stage.network.settings)
    chosen = _fold(manifest, inspection, Path(split or out / "split.json"), protocol, stage.training.seed, fold, report)
    _begin(out, recipe, resume, report)
    write_json(out / "inspection.json", inspection.to_dict())
    cases = {case.name: case for case in manifest.cases}
    cached = build_cache(
        [cases[name] for name in chosen.train], stage.prepare, manifest.labels, Path(cache or out / "cache"), workers=workers, report=report
    )

    files = RunFiles(out)
    report(Note(_opening(manifest, recipe, network, chosen, engine)))
    validating = TorchEngine(network, str(engine.device), engine.precision)
    held_out = [cases[name] for name in chosen.validation]

    def score(_: nn.Module) -> Validation:
        return validate(held_out, validating, stage, manifest.labels, report)

    done, last = fit(
        network,
        cached,
        score,
        stage=stage,
        loss_of=SegmentationLoss(stage.loss, manifest.labels).to(engine.device),
        engine=engine,
        files=files,
        identity=_identity(recipe, manifest, chosen),
        report=report,
        on_validation=lambda: draw_curves(out, recipe.name),
    )
    model = out / "model.uxnet"
    best = stage.training.keep == "best" and files.best.exists()
    weights = load_weights_file(files.best) if best else last
    write_model(
        model,
        [{key: value.detach().cpu().contiguous().numpy() for key, value in weights.items()}],
        recipe=recipe,
        labels=manifest.labels,
        channels=manifest.channel_names,
        provenance=_provenance(inspection, chosen, fold, files, done, done.best_step if best else done.step, engine),
    )
    return model


def draw_curves(run: Path, title: str) -> None:
    """Draws `curves.png` of a run from its records."""
    records = read_records(run / "metrics.jsonl")
    losses = [(r["step"], float(r["loss"])) for r in records if r["kind"] == "step" and r["loss"] != "nan"]
    validations = [r for r in records if r["kind"] == "validation"]
    scores: dict[str, list[tuple[int, float]]] = {}
    for record in validations:
        for name, value in {"mean": record["dice"], **record["classes"]}.items():
            if value is not None:
                scores.setdefault(name, []).append((record["step"], value))
    curves(run / "curves.png", losses=losses, scores=scores, title=title)


def _refuse_another_run(out: Path, recipe: Recipe, resume: bool) -> None:
    file = out / "recipe.toml"
    if not file.exists():
        return
    if not resume:
        raise CheckpointError(f"{out}: there is a run already; go on with it by --resume, or choose another folder")
    if load_recipe(file) != recipe:
        raise CheckpointError(f"{out}: the run there has another recipe ({file}); resume it with that one, or choose another folder")


def _begin(out: Path, recipe: Recipe, resume: bool, report: Report) -> None:
    """Makes the run's folder, once it is known that there is something to train on; or tidies the one that is there."""
    file = out / "recipe.toml"
    if file.exists():
        # What was being written when an earlier process was killed.
        for part in out.glob("**/.*.part*"):
            part.unlink(missing_ok=True)
        return
    if resume:
        report(Note(f"{out}: nothing to resume there, a new run is started"))
    out.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        temporary.write_text(recipe_to_toml(recipe), encoding="utf-8")


def _fold(manifest: Manifest, inspection: Inspection, file: Path, protocol: str | None, seed: int, fold: int, report: Report) -> Fold:
    split = split_for(manifest, file, inspection.class_presence(), protocol=protocol, seed=seed, report=report)
    if not 0 <= fold < len(split.folds):
        raise DatasetError(f"{file}: it has the folds 0 to {len(split.folds) - 1}, not {fold}")
    return split.folds[fold]


def _identity(recipe: Recipe, manifest: Manifest, fold: Fold) -> str:
    """A hash of what decides the weights: the recipe, the labels, and the cases on each side."""
    text = json.dumps([recipe_to_toml(recipe), manifest.labels.to_dict(), fold.train, fold.validation])
    return hashlib.sha256(text.encode()).hexdigest()


def _opening(manifest: Manifest, recipe: Recipe, network: nn.Module, fold: Fold, engine: TrainingEngine) -> str:
    parameters = sum(p.numel() for p in network.parameters())
    return (
        f"{manifest.name}: {len(fold.train)} training and {len(fold.validation)} validation cases; recipe {recipe.name}, "
        f"{recipe.stages[0].network.name} of {parameters:,} parameters on {engine.device} in {engine.precision}"
    )


def _provenance(
    inspection: Inspection, chosen: Fold, fold: int, files: RunFiles, done: Progressed, step: int, engine: TrainingEngine
) -> dict[str, Any]:
    """Where a model came from: versions, data, split, and how the weights that were kept scored."""
    validations = [r for r in read_records(files.metrics) if r["kind"] == "validation" and r["step"] == step]
    fingerprint = inspection.fingerprint.to_dict()
    return {
        "versions": {"uxnet": uxnet.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(engine.device),
        "precision": engine.precision,
        "dataset": {
            "name": inspection.manifest.name,
            "cases": len(inspection.manifest.cases),
            "licence": inspection.manifest.licence,
            "reference": inspection.manifest.reference,
            "fingerprint": {key: value for key, value in fingerprint.items() if key != "cases"},
        },
        "split": {"fold": fold, "train": list(chosen.train), "validation": list(chosen.validation), "test": list(chosen.test)},
        "training": {"step": step, "steps": done.step, "skipped": done.skipped, "seconds": round(done.seconds, 1)},
        "validation": {key: validations[-1][key] for key in ("dice", "classes")} if validations else {},
    }
