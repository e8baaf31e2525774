"""A checkpoint from elsewhere -> a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uxnet
from uxnet.convert.untrusted import Checkpoint, read_checkpoint
from uxnet.errors import InputError, LabelsError, ModelError, RecipeError, UxnetError
from uxnet.events import Note, Report, Warn, silent
from uxnet.io import read_json, read_labels_file, sha256
from uxnet.labels import Label, Labels, Region
from uxnet.model.file import write_model
from uxnet.recipe import Network, Recipe, Stage

if TYPE_CHECKING:
    from torch import nn

    from uxnet.convert.shapes import Recognised

_TRIAL = (32, 32, 32)
_LARGEST_TRIAL = 160**3


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    recipe: Recipe,
    labels: str | Path | None = None,
    network: str | None = None,
    settings: Mapping[str, Any] | None = None,
    channels: Sequence[str] | None = None,
    overwrite: bool = False,
    report: Report = silent,
) -> Path:
    """Weights from elsewhere as a model that segments.

    Args:
        checkpoint: a state dict as torch or safetensors save it, of any network of this package, of the authors' 3D UX-Net, or of MONAI's
            SwinUNETR, UNETR, SegResNet or UNet.
        out: the model to write.
        recipe: of one stage; what of it is taken is the preparation, patches and inference, which weights do not show.
        labels: a dataset.json or labels.json with the names of the classes and, perhaps, of the channels; None numbers them.
        network: the network's name, where it is not to be found by the names of the weights.
        settings: of the network; they go before what the weights show. For networks that are tied to a patch `patch`, too. What neither
            shows is assumed, reported and kept in the model's provenance.
        channels: names of the image's channels; they go before those in `labels`.
        overwrite: whether a file at `out` may be replaced.

    Returns:
        `out`.

    Raises:
        InputError: if a file is missing or `out` is there already.
        ModelError: if the checkpoint cannot be trusted, or is not the whole of a network that is known; names what is missing or unknown.
        LabelsError: if the labels are others in number than the classes of the weights.
        RecipeError: if the recipe or the settings do not fit the network.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    _refuse_taken(out, checkpoint, overwrite)
    if len(recipe.stages) != 1:
        raise RecipeError(
            f"the recipe {recipe.name} has {len(recipe.stages)} stages; weights from elsewhere are one network, take one stage"
        )
    report(Note(f"reading {checkpoint.name} in a process of its own"))
    source = read_checkpoint(checkpoint)
    found, prefix, net = _recognised(checkpoint, source, network, settings, recipe.stages[0].sampling.patch)
    for assumed in found.assumed:
        report(Warn(f"assumed: {assumed}"))
    stage = _stage(recipe, found)
    chosen = _labels(labels, found.out_channels, report)
    named = _channels(labels, channels, found.in_channels, report)
    _try(net, found, checkpoint, report)
    provenance = {
        "dataset": {"name": f"not known: weights from elsewhere, {checkpoint.name}"},
        "converted": {
            "file": checkpoint.name,
            "sha256": sha256(checkpoint),
            "network": found.network,
            "settings": dict(found.settings),
            "under": list(source.path),
            "prefix": prefix,
            "monai": source.monai,
            "assumed": list(found.assumed),
            "preparation": recipe.name,
            "by": f"uxnet {uxnet.__version__}",
        },
        "versions": {"uxnet": uxnet.__version__},
    }
    described = f"{found.network} with the weights of {checkpoint.name}, prepared as the recipe {recipe.name} says"
    weights = {key: weight.numpy() for key, weight in net.state_dict().items()}
    write_model(
        out,
        [weights],
        recipe=replace(recipe, name=checkpoint.stem, description=described, stages=(stage,)),
        labels=chosen,
        channels=named,
        provenance=provenance,
    )
    return out


def _refuse_taken(out: Path, checkpoint: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise InputError(f"{out}: a folder; name the model's file, such as {out / 'model.uxnet'}")
    if out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise InputError(f"{out}: the checkpoint itself; give the model another name")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; give another name, or overwrite=True to replace it")


def _recognised(
    path: Path, source: Checkpoint, network: str | None, settings: Mapping[str, Any] | None, patch: tuple[int, int, int]
) -> tuple[Recognised, str, nn.Module]:
    from uxnet.convert.foreign import recognised, renamed, without_prefixes
    from uxnet.networks.build import build

    try:
        weights, prefix = without_prefixes(source.weights)
        found = recognised(weights, network, settings, source.monai)
        ours = renamed(weights, found, patch)
        net = build(found.network, found.in_channels, found.out_channels, found.patch or patch, found.settings)
    except UxnetError as error:
        raise type(error)(f"{path}: {error}") from error
    # What is left as it was made: indices, and weights that nothing reads.
    net.load_state_dict({**net.state_dict(), **ours})
    return found, prefix, net


def _stage(recipe: Recipe, found: Recognised) -> Stage:
    """The recipe's stage with the network in its place and, where that is tied to a patch, with that patch."""
    stage = replace(recipe.stages[0], network=Network(found.network, dict(found.settings)))
    count = len(stage.prepare.intensity)
    if count not in (1, found.in_channels):
        raise RecipeError(f"the recipe {recipe.name} gives intensities for {count} channels, the network takes {found.in_channels}")
    if found.patch is None:
        return stage
    windows = stage.inference if stage.inference.patch == found.patch else replace(stage.inference, patch=())
    return replace(stage, sampling=replace(stage.sampling, patch=found.patch), inference=windows)


def _labels(path: str | Path | None, outputs: int, report: Report) -> Labels:
    if path is None:
        report(Warn(f"the classes of {outputs} output channels have no names: they are numbered; give a labels file to name them"))
        if outputs == 1:
            return Labels((Label("class 1", 1),), regions=(Region("class 1", (1,), 1),))
        return Labels(tuple(Label(f"class {n}", n) for n in range(1, outputs)))
    labels = read_labels_file(Path(path))
    if labels.out_channels != outputs:
        kind = "regions" if labels.regions else "labels and the background"
        raise LabelsError(
            f"{path}: its {kind} need {labels.out_channels} output channels ({', '.join(labels.classes)}), the weights have {outputs}; "
            "give the labels that the network was trained with"
        )
    return labels


def _channels(path: str | Path | None, given: Sequence[str] | None, count: int, report: Report) -> tuple[str, ...]:
    if given is not None:
        if len(given) != count:
            raise ModelError(f"{len(given)} channel names are given ({', '.join(given)}), the network takes {count} channels")
        return tuple(given)
    data = read_json(Path(path)) if path else {}
    table = data.get("channel_names") or data.get("modality") or {}
    names = list(table.values()) if isinstance(table, dict) else table if isinstance(table, list) else []
    if len(names) == count:
        return tuple(map(str, names))
    if names:
        report(Warn(f"{path} names {len(names)} channels, the network takes {count}: they are numbered"))
    return tuple(f"channel {n}" for n in range(count))


def _try(net: nn.Module, found: Recognised, path: Path, report: Report) -> None:
    """Refuses weights, or an answer to noise, that are not finite."""
    import torch

    bad = [key for key, weight in net.state_dict().items() if weight.is_floating_point() and not bool(torch.isfinite(weight).all())]
    if bad:
        raise ModelError(f"{path}: {len(bad)} weights are not finite, the first is {bad[0]}; the training that made them had failed")
    sides = found.patch or _TRIAL
    if sides[0] * sides[1] * sides[2] > _LARGEST_TRIAL:
        report(Note(f"the network was not tried: its patch of {list(sides)} is too large for that"))
        return
    noise = torch.randn((1, found.in_channels, *sides), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = net.eval()(noise)
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(f"{path}: the network's answer to noise is not finite; the weights are not usable")
