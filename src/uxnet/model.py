"""The portable model: one zip of JSON and safetensors, every part declared and hashed, nothing that can run code.

NAME.uxnet
|-- model.json               schema version, recipe, labels, channels, stages, provenance, engine variants
`-- weights/STAGE.safetensors
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

import uxnet
from uxnet.errors import LabelsError, ModelError, RecipeError
from uxnet.io import atomic
from uxnet.labels import Labels, labels_from_dict
from uxnet.recipe import Recipe, recipe_from_dict, recipe_to_dict

SCHEMA = 1
Weights = Mapping[str, NDArray[Any]]

# What zipfile raises over damaged bytes, RuntimeError for a part that calls itself encrypted or oddly compressed.
_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model without its tensors: what they are, what they mean, and where they came from.

    recipe: as trained; its stages name networks and preparation.
    labels: what the outputs mean.
    channels: names of the input channels, in order.
    provenance: versions, data fingerprint, split, scores; plain JSON.
    description: the whole of model.json, as read.
    path: of the file.
    """

    recipe: Recipe
    labels: Labels
    channels: tuple[str, ...]
    provenance: Mapping[str, Any]
    description: Mapping[str, Any]
    path: Path


def write_model(
    path: Path,
    weights: Sequence[Weights],
    *,
    recipe: Recipe,
    labels: Labels,
    channels: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Writes a model, whole or not at all.

    Args:
        weights: the state of each stage's network, names -> arrays.
        channels: names of the input channels.
        provenance: anything worth knowing later, as plain JSON values.
    """
    stages, blobs = [], {}
    for index, (stage, tensors) in enumerate(zip(recipe.stages, weights, strict=True)):
        blob = save_safetensors({name: np.asarray(array, order="C") for name, array in tensors.items()})
        name = f"weights/{index}.safetensors"
        blobs[name] = blob
        stages.append(
            {
                "network": stage.network.name,
                "in_channels": stage.in_channels(len(channels)),
                "out_channels": stage.out_channels(labels.out_channels),
                "weights": name,
                "sha256": hashlib.sha256(blob).hexdigest(),
                "parameters": sum(int(array.size) for key, array in tensors.items() if _is_parameter(key, array)),
            }
        )
    description = {
        "schema": SCHEMA,
        "uxnet": uxnet.__version__,
        "name": recipe.name,
        "channels": list(channels),
        "labels": labels.to_dict(),
        "stages": stages,
        "recipe": recipe_to_dict(recipe),
        "provenance": dict(provenance),
        "variants": [],
    }
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "model.json", json.dumps(description, indent=1, ensure_ascii=False).encode())
        for name, blob in blobs.items():
            _add(archive, name, blob)


def read_model(path: Path) -> Model:
    """What a model is; its tensors are read by `read_weights`.

    Raises:
        ModelError: if the file is missing, damaged, no model, or of a newer schema.
    """
    description = _description(path)
    try:
        return Model(
            recipe=recipe_from_dict(description["recipe"]),
            labels=labels_from_dict(description["labels"]),
            channels=tuple(map(str, description["channels"])),
            provenance=dict(description["provenance"]),
            description=description,
            path=path,
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecipeError, LabelsError) as error:
        raise ModelError(f"{path}: its model.json is not as expected ({error})") from error


def read_weights(model: Model, stage: int = 0) -> dict[str, NDArray[Any]]:
    """The tensors of one stage, checked against the declared hash.

    Raises:
        ModelError: if they are missing or damaged.
    """
    try:
        declared = model.description["stages"][stage]
        with zipfile.ZipFile(model.path) as archive:
            blob = archive.read(declared["weights"])
        intact = hashlib.sha256(blob).hexdigest() == declared["sha256"]
        tensors = load_safetensors(blob) if intact else {}
    except (IndexError, SafetensorError, *_DAMAGE) as error:
        raise ModelError(f"{model.path}: the weights of stage {stage} cannot be read, the file is damaged ({error})") from error
    if not intact:
        raise ModelError(f"{model.path}: the weights of stage {stage} are not those that were written (sha256 differs); copy the file anew")
    return tensors


def _description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such model file")
    try:
        with zipfile.ZipFile(path) as archive:
            description = json.loads(archive.read("model.json"))
    except _DAMAGE as error:
        raise ModelError(f"{path}: not a uxnet model, or damaged ({error})") from error
    if not isinstance(description, dict) or not isinstance(description.get("schema"), int):
        raise ModelError(f"{path}: not a uxnet model: model.json gives no schema version")
    if description["schema"] > SCHEMA:
        raise ModelError(f"{path}: written by a newer uxnet (schema {description['schema']}, this one reads {SCHEMA}); update uxnet")
    return description


def _is_parameter(key: str, array: NDArray[Any]) -> bool:
    """Whether an entry of a state is learnt: indices and counters are whole numbers, and a batch norm's statistics are named so."""
    return bool(array.dtype.kind == "f" and not key.endswith(("running_mean", "running_var")))


def _add(archive: zipfile.ZipFile, name: str, blob: bytes) -> None:
    # A fixed date: the same training gives the same file, byte for byte.
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), blob)
