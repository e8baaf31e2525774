"""What a run hands over: a model, with where it came from."""

from __future__ import annotations

import inspect
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import uxnet
from uxnet.dataset.check import Inspection
from uxnet.dataset.folds import Fold
from uxnet.inference.engines.torch import TorchEngine, stage_network
from uxnet.io.records import read_records
from uxnet.io.schemas import MetricsLine
from uxnet.model.file import label_map_digests, seen_by, write_model
from uxnet.networks.build import architecture, with_size
from uxnet.recipe import Network, Recipe, Stage
from uxnet.training.checkpoint import Progressed
from uxnet.training.distil import Teachers
from uxnet.training.engine import TrainingEngine


@dataclass(frozen=True)
class Trained:
    """A stage that is trained.

    Args:
        stage: as it was trained: with the number of steps that a budget of time came to.
        done: how far it came.
        step: the step of the weights that are kept.
        weights: those.
        metrics: its records.
        engine: what computes them, for the stage that follows.
    """

    stage: Stage
    done: Progressed
    step: int
    weights: Mapping[str, Tensor]
    metrics: Path
    engine: TorchEngine


def hand_over(
    path: Path,
    recipe: Recipe,
    inspection: Inspection,
    split: Fold,
    fold: int | Literal["all"],
    trained: Sequence[Trained],
    engine: TrainingEngine,
    origin: Mapping[str, Any] | None,
    teachers: Teachers | None,
) -> None:
    """Writes the model of a run whose stages are trained, without the heads that only deep supervision needs.

    Args:
        split: the fold's cases.
        origin: what it began with, see `begin_from`.
        teachers: what it learnt from beside the labels.
    """
    manifest = inspection.manifest
    channels, classes = len(manifest.channel_names), manifest.labels.out_channels
    exported = [without_supervision(t.stage, t.weights, channels, classes) for t in trained]
    write_model(
        path,
        [{key: value.detach().cpu().contiguous().numpy() for key, value in weights.items()} for _, weights in exported],
        recipe=replace(recipe, stages=tuple(stage for stage, _ in exported)),
        labels=manifest.labels,
        channels=manifest.channel_names,
        provenance=_provenance(inspection, split, fold, trained, engine, origin, teachers),
    )


def without_supervision(stage: Stage, weights: Mapping[str, Tensor], channels: int, classes: int) -> tuple[Stage, dict[str, Tensor]]:
    """A stage and its weights without the heads for deep supervision, which are used while training only."""
    settings = with_size(stage.network.name, stage.network.settings)
    asked = inspect.signature(architecture(stage.network.name).network).parameters.get("deep_supervision")
    if asked is None or not settings.get("deep_supervision", asked.default):
        return stage, dict(weights)
    bare = replace(stage, network=Network(stage.network.name, {**stage.network.settings, "deep_supervision": False}))
    with torch.device("meta"):
        kept = stage_network(bare, channels, classes).state_dict().keys()
    return bare, {key: weights[key] for key in kept}


def _provenance(
    inspection: Inspection,
    split: Fold,
    fold: int | Literal["all"],
    trained: Sequence[Trained],
    engine: TrainingEngine,
    origin: Mapping[str, Any] | None,
    teachers: Teachers | None,
) -> dict[str, Any]:
    """Where a model came from: versions, data, split, and how the weights that were kept scored (the last stage's: the whole)."""
    stages = []
    for stage in trained:
        records = read_records(stage.metrics, MetricsLine)
        validations = [r for r in records if r["kind"] == "validation" and r["step"] == stage.step]
        done = {"step": stage.step, "steps": stage.done.step, "skipped": stage.done.skipped, "seconds": round(stage.done.seconds, 1)}
        scores = {key: validations[-1][key] for key in ("dice", "classes")} if validations and split.validation else {}
        stages.append({"training": done, "validation": scores})
    fingerprint, label_maps = inspection.fingerprint.to_dict(), inspection.fingerprint.label_maps
    before = [*(origin or {}).get("seen", ()), *(seen_by(teachers.models) if teachers else ())]
    return {
        "versions": {"uxnet": uxnet.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(engine.device),
        "precision": engine.precision,
        **({"processes": engine.world, "strategy": engine.strategy} if engine.world > 1 else {}),
        "dataset": {
            "name": inspection.manifest.name,
            "cases": len(inspection.manifest.cases),
            "licence": inspection.manifest.licence,
            "reference": inspection.manifest.reference,
            "fingerprint": {key: value for key, value in fingerprint.items() if key != "cases"},
        },
        "split": {
            "fold": fold,
            "train": list(split.train),
            "validation": list(split.validation),
            "test": list(split.test),
        },
        "train_label_maps": label_map_digests(label_maps[name] for name in split.train if name in label_maps),
        **stages[-1],
        **({"stages": stages} if len(stages) > 1 else {}),
        **({"init_from": {key: origin[key] for key in ("model", "sha256", "summary")}} if origin else {}),
        **({"teachers": list(teachers.origin)} if teachers else {}),
        **({"seen": before} if before else {}),
    }
