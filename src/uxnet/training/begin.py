"""Beginning with the weights of another model: fine-tuning and transfer (paper section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from uxnet.dataset.manifest import Manifest
from uxnet.errors import ModelError
from uxnet.events import Note, Report, Warn, silent
from uxnet.inference.engines.torch import stage_network
from uxnet.io import sha256
from uxnet.model.file import Model, read_model, read_weights, reordered, seen_by
from uxnet.networks.build import architecture, other_settings
from uxnet.networks.transfer import Transfer, in_percent, init_from, tied_to_channels
from uxnet.recipe import Network, Recipe, recipe_names

LEAST_OF_ENCODER = 0.1
"""The share of an encoder's parameters with which a training begins with a model, and not with a few of its numbers by chance."""


def begin_from(
    networks: Sequence[nn.Module], recipe: Recipe, manifest: Manifest, path: Path, kernels: Literal["trilinear", "centred"], report: Report
) -> dict[str, Any]:
    """Puts a model's weights into fresh networks wherever they fit.

    Heads keep their fresh start wherever the labels are others, even where there are as many of them.

    Args:
        networks: of the recipe's stages; changed in place. The model's stages go into those of the same number.
        path: of the model.
        kernels: how smaller kernels grow.

    Returns:
        What became of every weight, as plain JSON values, with the model's name, the hashes of its file and of each stage's weights, and
        the cases that it has seen (`model.seen_by`).

    Raises:
        ModelError: if the model is damaged, has other networks, or less than a tenth of the parameters of a network's encoder comes from
            it: the message says why, and which recipe would fit.
    """
    model = read_model(path)
    if reordered(model.channels, manifest.channel_names):
        there, here = ", ".join(model.channels), ", ".join(manifest.channel_names)
        report(Warn(f"{path.name} has the channels in another order ({there}) than {manifest.name} ({here}): each begins as another"))
    new_labels = model.labels.classes != manifest.labels.classes
    stages: list[dict[str, Any]] = []
    for number, (network, stage) in enumerate(zip(networks, recipe.stages, strict=False)):
        if number >= len(model.recipe.stages):
            break
        theirs = model.recipe.stages[number]
        if theirs.network.name != stage.network.name:
            raise ModelError(
                f"{path}: its network is {theirs.network.name}, the recipe's is {stage.network.name}; weights do not fit: {_fitting(model)}"
            )
        inputs, outputs = tied_to_channels(
            stage.network.name,
            stage.in_channels(len(manifest.channel_names)),
            stage.out_channels(manifest.labels.out_channels),
            stage.sampling.patch,
            stage.network.settings,
        )
        weights = read_weights(model, number)
        try:
            # A guided stage answers whether a voxel is the structure asked about: that question outlives its labels.
            transfer = init_from(
                network,
                weights,
                inputs=inputs,
                outputs=outputs,
                new_labels=new_labels and stage.prior is None,
                kernels=kernels,
                channels=(theirs.in_channels(len(model.channels)), stage.in_channels(len(manifest.channel_names))),
                masks=1 if stage.prior else 0,
                encoder=architecture(stage.network.name).encoder,
            )
        except ModelError as error:
            raise ModelError(f"{path}: {error}; {_fitting(model)}") from error
        if transfer.of_encoder < LEAST_OF_ENCODER:
            raise ModelError(f"{path}: {_hardly(transfer, stage.network, theirs.network)}; {_fitting(model)}")
        report(Note(f"from {path.name}: {transfer}"))
        if other := other_settings(stage.network.name, theirs.network.settings, stage.network.settings):
            # Some settings leave no mark in names and shapes (SwinUNETR's patch merging), and weights mean another thing under them.
            report(Warn(f"{path.name} has other settings of {stage.network.name}: {other}"))
        stages.append(
            {
                "weights_sha256": str(model.description["stages"][number]["sha256"]),
                "summary": str(transfer),
                "share": round(transfer.share, 6),
                "share_of_encoder": round(transfer.of_encoder, 6),
                "copied": list(transfer.copied),
                "adapted": dict(transfer.adapted),
                "fresh": dict(transfer.fresh),
                "skipped": list(transfer.skipped),
            }
        )
    return {
        "model": path.name,
        "sha256": sha256(path),
        "summary": "; ".join(str(done["summary"]) for done in stages),
        "stages": stages,
        "seen": seen_by([model]),
    }


def check_beginning(recipe: Recipe, manifest: Manifest, path: Path) -> None:
    """Refuses a model to begin with as `begin_from` would, without memory for the networks.

    Raises:
        ModelError: as `begin_from`.
    """
    with torch.device("meta"):
        networks = [stage_network(stage, len(manifest.channel_names), manifest.labels.out_channels) for stage in recipe.stages]
    begin_from(networks, recipe, manifest, path, "trilinear", silent)


def _hardly(transfer: Transfer, ours: Network, theirs: Network) -> str:
    """That next to nothing of a model fits, and why."""
    fits = len(transfer.copied) + len(transfer.adapted)
    why = other_settings(ours.name, theirs.settings, ours.settings) or "; ".join(sorted(set(transfer.fresh.values())))
    return (
        f"only {fits} of {fits + len(transfer.fresh)} weights fit this recipe's {ours.name}, {in_percent(transfer.of_encoder)} of the "
        f"parameters of its encoder ({why}), so the training would not begin with this model"
    )


def _fitting(model: Model) -> str:
    """The recipe that a model's weights fit."""
    named = f"the recipe {model.recipe.name}, by which it was trained" if model.recipe.name in recipe_names() else "its own recipe"
    return f"take {named} (a model in a recipe's place means that model's own), or the settings of its network"
