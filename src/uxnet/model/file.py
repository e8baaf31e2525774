"""The portable model: one zip of JSON and safetensors, every part declared and hashed, nothing that can run code.

NAME.uxnet
|-- model.json               schema version, recipe, labels, channels, stages, provenance, engine variants
|-- weights/STAGE.safetensors
`-- variants/STAGE-PRECISION.xml, .bin    a stage's network in another form: an OpenVINO graph, quantised to int8

A variant's graph is OpenVINO's IR: XML that names operations, and a block of numbers. What it can do: compute with any of OpenVINO's own
operations, so a malicious one may take memory and time without end, and whatever errors OpenVINO's C++ reader has, it can reach. What it
cannot: bring code along (operations outside OpenVINO's own sets come from extension libraries, which nobody here loads) or name other
files (its numbers are offsets into the block that is handed over with it). The hashes notice damage and parts that were swapped, before
OpenVINO sees a byte; they do not vouch for whoever wrote the file. Without `--precision int8` no variant is read.

Parts are stored as they are, and one that is compressed, or says that it is larger than the file, is refused: reading a model never takes
more memory than a few times its file's size.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

import uxnet
from uxnet.errors import LabelsError, ModelError, RecipeError, shortened, shown
from uxnet.events import Report, Warn
from uxnet.io import as_json, atomic, json_value
from uxnet.io.checked import as_kind
from uxnet.io.model_json import ModelDescription, Variant
from uxnet.labels import Labels, labels_from_dict
from uxnet.recipe import Recipe, recipe_from_dict, recipe_to_dict

SCHEMA = 1
_DIGEST = 16  # hexadecimal digits: by chance no two of a billion label maps share them
_ENGINE = "openvino"  # the only one that has variants
Weights = Mapping[str, NDArray[Any]]

# What zipfile raises over damaged bytes, RuntimeError for a part that calls itself encrypted, or JSON that is nested too deeply.
_DAMAGE = (OSError, EOFError, KeyError, TypeError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error)


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
        _add(archive, "model.json", _as_json(description))
        for name, blob in blobs.items():
            _add(archive, name, blob)


def read_model(path: Path) -> Model:
    """What a model is; its tensors are read by `read_weights`.

    Raises:
        ModelError: if the file is missing, damaged, no model, or of a newer schema.
    """
    description = _description(path)
    try:
        as_kind(description, ModelDescription)
        recipe, labels = recipe_from_dict(description["recipe"]), labels_from_dict(description["labels"])
    except (ValueError, RecipeError, LabelsError) as error:
        raise ModelError(f"{path}: its model.json is not as expected ({error})") from error
    if contradiction := _contradiction(description, recipe, labels):
        raise ModelError(f"{path}: its model.json contradicts itself ({contradiction}); copy the file anew, or make the model again")
    return Model(recipe, labels, tuple(description["channels"]), description["provenance"], description, path)


def _contradiction(description: Mapping[str, Any], recipe: Recipe, labels: Labels) -> str:
    """Where the parts of a model.json do not fit together, in words; empty where they do."""
    channels, declared = len(description["channels"]), description["stages"]
    if not channels:
        return "it names no channels"
    if len(declared) != len(recipe.stages):
        return f"it has {len(declared)} stages, and its recipe {len(recipe.stages)}"
    for number, (said, stage) in enumerate(zip(declared, recipe.stages, strict=True)):
        wanted = {
            "network": stage.network.name,
            "in_channels": stage.in_channels(channels),
            "out_channels": stage.out_channels(labels.out_channels),
        }
        for key, value in wanted.items():
            if key not in said:
                return f"stages[{number}].{key} is missing"
            if type(said[key]) is not type(value) or said[key] != value:
                return f"stages[{number}].{key} is {shown(said[key])}, and by its recipe, channels and labels it is {value!r}"
        if len(stage.prepare.intensity) not in (1, channels):
            return f"stages[{number}] prepares {len(stage.prepare.intensity)} channels, and it names {channels}"
    return ""


def reordered(theirs: Sequence[str], ours: Sequence[str]) -> bool:
    """Whether two lists of channels are the same names in another order: one name for another is one thing (MR, T1), this another image."""
    return list(theirs) != list(ours) and sorted(theirs) == sorted(ours)


def seen_by(models: Iterable[Model]) -> list[dict[str, Any]]:
    """The cases whose labels had a part in models' weights, their own and those of what they began with or learnt from, by dataset.

    Cases that only validated have none. Each dataset has its name, the fingerprint of what it holds, the names of the cases and, where
    the model knows them, digests of their label maps (`label_map_digests`).
    """
    found: dict[tuple[str | None, str | None], tuple[set[str], set[str]]] = {}
    for model in models:
        dataset, split = model.provenance.get("dataset", {}), model.provenance.get("split", {})
        own = {
            "dataset": dataset.get("name"),
            "fingerprint": dataset.get("fingerprint", {}).get("sha256"),
            "cases": split.get("train", ()),
            "label_maps": model.provenance.get("train_label_maps", ()),
        }
        for part in (own, *model.provenance.get("seen", ())):
            cases, label_maps = found.setdefault((part["dataset"], part["fingerprint"]), (set(), set()))
            cases.update(part["cases"])
            label_maps.update(part.get("label_maps", ()))
    return [
        {"dataset": name, "fingerprint": sha256, "cases": sorted(cases), **({"label_maps": sorted(label_maps)} if label_maps else {})}
        for (name, sha256), (cases, label_maps) in found.items()
        if cases
    ]


def label_map_digests(hashes: Iterable[str]) -> list[str]:
    """What a model remembers of its cases' label maps, so that they are known under other names: the beginnings of their sha256."""
    return sorted({sha256[:_DIGEST] for sha256 in hashes if sha256})


def cases_seen(model: Model, dataset: str | None, fingerprint: str | None = None) -> set[str]:
    """The cases of a dataset, known by its name or by what it holds, that had a part in a model's weights, as far as the model says."""
    return cases_among(seen_by([model]), dataset, fingerprint)


def cases_among(
    seen: Iterable[Mapping[str, Any]], dataset: str | None, fingerprint: str | None = None, label_maps: Mapping[str, str] | None = None
) -> set[str]:
    """The cases of a dataset that are among those that `seen_by` gave.

    Args:
        dataset, fingerprint: the dataset's name, and the hash of what it holds; either is enough.
        label_maps: case -> sha256 of its label map's voxels: these cases are known whatever they and their dataset are called.
    """
    parts = list(seen)
    same = (p for p in parts if (dataset and p["dataset"] == dataset) or (fingerprint and p["fingerprint"] == fingerprint))
    known = {digest for part in parts for digest in part.get("label_maps", ())}
    renamed = {case for case, sha256 in (label_maps or {}).items() if sha256[:_DIGEST] in known}
    return {name for part in same for name in part["cases"]} | renamed


def warn_of_leaks(
    models: Iterable[Model],
    held_out: Iterable[str],
    dataset: str,
    fingerprint: str,
    report: Report,
    label_maps: Mapping[str, str] | None = None,
) -> None:
    """Warns of models to begin with or to learn from that have seen cases by which the outcome is judged.

    Args:
        held_out: the cases by which it is judged.
        dataset, fingerprint: the name of their dataset and the hash of what it holds.
        label_maps: case -> sha256 of its label map's voxels.
    """
    judged = set(held_out)
    for model in models:
        if seen := sorted(judged & cases_among(seen_by([model]), dataset, fingerprint, label_maps)):
            which = f"{len(seen)} of the {len(judged)} cases that are held out here ({shortened(seen, 3)})"
            report(Warn(f"{model.path.name} was trained on {which}: what it learnt of them goes on, and the scores will be too good"))


def read_weights(model: Model, stage: int = 0) -> dict[str, NDArray[Any]]:
    """The tensors of one stage, checked against the declared hash.

    Raises:
        ModelError: if they are missing or damaged.
    """
    try:
        declared = model.description["stages"][stage]
        with _opened(model.path) as archive:
            blob = archive.read(declared["weights"])
        intact = hashlib.sha256(blob).hexdigest() == declared["sha256"]
        tensors = load_safetensors(blob) if intact else {}
    except (IndexError, SafetensorError, *_DAMAGE) as error:
        raise ModelError(f"{model.path}: the weights of stage {stage} cannot be read, the file is damaged ({_what(error)})") from error
    if not intact:
        raise ModelError(f"{model.path}: the weights of stage {stage} are not those that were written (sha256 differs); copy the file anew")
    return tensors


def variants(model: Model) -> list[Mapping[str, Any]]:
    """The other forms of its networks that a model file holds, as model.json declares them.

    Each has `engine`, `precision`, `stage`, `window`, `files` (xml and bin, each a name and its sha256), `weights_sha256` (of the
    weights it was made from), `made_with` (versions), `calibration` and `dice` (what it costs).

    Raises:
        ModelError: if they are not declared as they should be.
    """
    declared: list[Mapping[str, Any]] = model.description.get("variants", [])
    try:
        as_kind(declared, list[Variant], "variants")
    except ValueError as wrong:
        raise ModelError(f"{model.path}: its model.json does not declare its variants as expected ({wrong}); copy the file anew") from wrong
    return declared


def read_variant(model: Model, precision: str, stage: int = 0) -> tuple[bytes, bytes]:
    """The OpenVINO graph of a stage in some precision, checked against the declared hashes.

    Args:
        precision: "int8".
        stage: number of the stage, from 0.

    Returns:
        The XML and the block of numbers that go to `openvino.Core().read_model`.

    Raises:
        ModelError: if there is none, it is damaged, is for other windows than the recipe's, or was made from other weights.
    """
    found = [one for one in variants(model) if _identity(one) == (_ENGINE, precision, stage)]
    if not found:
        held = ", ".join(sorted({str(one["precision"]) for one in variants(model) if one["stage"] == stage})) or "none"
        raise ModelError(
            f"{model.path}: it holds no {precision} variant of stage {stage} (there: {held}); make one with "
            f"`uxnet quantise {model.path} --data DATASET`, or take another precision"
        )
    variant, name = found[-1], f"{precision} variant of stage {stage}"
    try:
        weights, window = model.description["stages"][stage]["sha256"], model.recipe.stages[stage].window
        files = [variant["files"][part] for part in ("xml", "bin")]
        with _opened(model.path) as archive:
            xml, numbers = (archive.read(file["name"]) for file in files)
        intact = all(hashlib.sha256(blob).hexdigest() == file["sha256"] for blob, file in zip((xml, numbers), files, strict=True))
    except (IndexError, *_DAMAGE) as error:
        raise ModelError(f"{model.path}: the {name} cannot be read, the file is damaged ({_what(error)}); copy it anew") from error
    if not intact:
        raise ModelError(f"{model.path}: the {name} is not the one that was written (sha256 differs); copy the file anew")
    if variant["weights_sha256"] != weights:
        raise ModelError(f"{model.path}: its {name} was made from other weights; quantise the model again")
    if variant["window"] != list(window):
        raise ModelError(
            f"{model.path}: its {name} computes windows of {variant['window']}, its recipe asks for {list(window)}; "
            "quantise the model again"
        )
    return xml, numbers


def with_variants(path: Path, out: Path, new: Sequence[tuple[Mapping[str, Any], bytes, bytes]]) -> None:
    """Writes a model file with more variants, whole or not at all. Older ones of the same precision and stage are left out.

    All other parts are taken over byte for byte.

    Args:
        path: the model as it is.
        out: the file to write, which may be the same.
        new: of each what it is (plain JSON values, see `variants`; `engine` and `files` are filled in here), and the two files of its
            OpenVINO graph, XML and numbers.

    Raises:
        ModelError: if the model cannot be read.
    """
    model = read_model(path)
    declared, blobs = [], {}
    for variant, xml, numbers in new:
        files = {}
        for part, blob in (("xml", xml), ("bin", numbers)):
            name = f"variants/{variant['stage']}-{variant['precision']}.{part}"
            blobs[name] = blob
            files[part] = {"name": name, "sha256": hashlib.sha256(blob).hexdigest()}
        declared.append({**variant, "engine": _ENGINE, "files": files})
    replaced = [_identity(one) for one in declared]
    kept = [one for one in variants(model) if _identity(one) not in replaced]
    description = {**model.description, "variants": [*kept, *declared]}
    try:
        with _opened(path) as archive:
            parts = {part: archive.read(part) for part in archive.namelist()}
    except _DAMAGE as error:
        raise ModelError(f"{path}: cannot be read to its end, the file is damaged ({_what(error)}); copy it anew") from error
    parts |= {"model.json": _as_json(description), **blobs}
    with atomic(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for part, blob in parts.items():
            _add(archive, part, blob)


def _identity(variant: Mapping[str, Any]) -> tuple[Any, ...]:
    return (variant["engine"], variant["precision"], variant["stage"])


def _as_json(description: Mapping[str, Any]) -> bytes:
    return as_json(description, indent=1)


def _description(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ModelError(f"{path}: there is no such model file")
        with _opened(path) as archive:
            description = json_value(archive.read("model.json"))
    except _DAMAGE as error:
        raise ModelError(f"{path}: not a uxnet model, or damaged ({_what(error)})") from error
    if not isinstance(description, dict) or not isinstance(description.get("schema"), int):
        raise ModelError(f"{path}: not a uxnet model: model.json gives no schema version")
    if description["schema"] > SCHEMA:
        raise ModelError(f"{path}: written by a newer uxnet (schema {description['schema']}, this one reads {SCHEMA}); update uxnet")
    return description


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The zip of a model, whose parts together are no larger than the file: a few bytes of a compressed one can become any number.

    Raises:
        ModelError: if they are not stored as `write_model` stores them.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        packed = [part.filename for part in parts if part.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ModelError(f"{path}: its part {packed[0]} is compressed, and uxnet stores parts as they are; it is no model of uxnet's")
        if sum(part.file_size for part in parts) > path.stat().st_size:
            raise ModelError(f"{path}: its parts are larger than the file itself; it is damaged, or made to do harm")
        yield archive


def _what(error: BaseException) -> str:
    return "it asks for more memory than there is" if isinstance(error, MemoryError) else str(error)


def _is_parameter(key: str, array: NDArray[Any]) -> bool:
    """Whether an entry of a state is learnt: indices and counters are whole numbers, and a batch norm's statistics are named so."""
    return bool(array.dtype.kind == "f" and not key.endswith(("running_mean", "running_var")))


def _add(archive: zipfile.ZipFile, name: str, blob: bytes) -> None:
    # A fixed date: the same training gives the same file, byte for byte.
    archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), blob)
