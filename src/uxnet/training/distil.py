"""Teachers: models whose answers a network learns beside the labels (knowledge distillation, Hinton et al. 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from uxnet.dataset.manifest import Manifest
from uxnet.errors import RecipeError
from uxnet.events import Note, Report
from uxnet.inference.engines.torch import trained_network
from uxnet.io import sha256
from uxnet.model.file import Model, read_model, reordered
from uxnet.recipe import Recipe, Stage
from uxnet.training.engine import TrainingEngine


@dataclass(frozen=True, eq=False)
class Teachers:
    """Trained networks that are asked about every batch. Their weights stay as they are.

    models: where the networks are from; all have the student's labels.
    networks: each gives logits of its classes.
    origin: what they are, as plain JSON values: file, its hash, and that of the weights.
    """

    models: Sequence[Model]
    networks: Sequence[nn.Module]
    origin: Sequence[dict[str, str]]

    def on(self, engine: TrainingEngine) -> Teachers:
        """The same on an engine's device, ready to be asked."""
        return replace(self, networks=[network.to(engine.device).requires_grad_(False) for network in self.networks])

    def answers(self, images: Tensor, engine: TrainingEngine) -> Tensor:
        """The mean of their probabilities: (N, out_channels, I, J, K) float32, for images (N, channels, I, J, K)."""
        regions = self.models[0].labels.regions  # each channel by itself, where classes exclude each other
        with torch.no_grad(), engine.autocast():
            logits = (network(images).float() for network in self.networks)
            total: Tensor = sum(each.sigmoid() if regions else each.softmax(1) for each in logits)
        return total / len(self.networks)


def teachers_from(paths: Sequence[Path], recipe: Recipe, manifest: Manifest, report: Report) -> Teachers:
    """Reads the models to learn from.

    They see what the student sees, so they need its channels, its labels and its preparation; networks, patches and settings of their
    training may be others.

    Raises:
        ModelError: if one is damaged.
        RecipeError: if the recipe has two stages or one that asks about single structures, or one of the models has another number of
            channels, other labels or another preparation, or its network cannot take the recipe's patches.
    """
    (stage, *more) = recipe.stages
    if more or stage.prior:
        raise RecipeError(f"stages: {recipe.name} works in two stages, and a teacher answers for one; train it by the labels alone")
    models = [read_model(path) for path in paths]
    networks = [_teacher(model, stage, manifest) for model in models]
    origin = [
        {"model": model.path.name, "sha256": sha256(model.path), "weights_sha256": str(model.description["stages"][0]["sha256"])}
        for model in models
    ]
    names = ", ".join(model.path.name for model in models)
    report(Note(f"taught by {names}: {stage.loss.taught:g} of the cross-entropy's target is what they answer, the rest the labels"))
    return Teachers(models, networks, origin)


def _teacher(model: Model, stage: Stage, manifest: Manifest) -> nn.Module:
    (theirs, *more) = model.recipe.stages
    if more or theirs.prior:
        raise RecipeError(f"{model.path}: works in two stages; a teacher answers for the whole in one")
    a, b = model.channels, manifest.channel_names
    if len(a) != len(b) or reordered(a, b):
        raise RecipeError(f"{model.path}: takes the channels {', '.join(a)}, {manifest.name} has {', '.join(b)}")
    if (model.labels.classes, bool(model.labels.regions)) != (manifest.labels.classes, bool(manifest.labels.regions)):
        raise RecipeError(f"{model.path}: has other labels than {manifest.name}; a teacher must answer in the same")
    for key in ("orientation", "spacing_mm", "intensity"):
        there, here = getattr(theirs.prepare, key), getattr(stage.prepare, key)
        if there != here:
            why = "a teacher must see images as the student does"
            raise RecipeError(f"{model.path}: prepare.{key} is {there} there and {here} here; {why}")
    network = trained_network(model, 0).eval()
    size = "x".join(map(str, stage.sampling.patch))
    try:
        with torch.no_grad():
            answer = network(torch.zeros(1, len(model.channels), *stage.sampling.patch))
    except (RuntimeError, ValueError) as error:
        raise RecipeError(f"{model.path}: its {theirs.network.name} takes no patches of {size} voxels ({error})") from error
    if tuple(answer.shape[2:]) != tuple(stage.sampling.patch):
        raise RecipeError(f"{model.path}: its {theirs.network.name} does not answer for every voxel of a patch of {size}")
    return network
