"""Checkpoints: everything that a run needs to go on, in safetensors files with JSON in their headers. Never pickle.

A checkpoint is written beside its place, synced and renamed, so that whoever dies while writing leaves the one before. Where several
processes hold a part of the network each ("fsdp"), each writes its part under a new name first, and the first process's file, which
names the others, then takes the place of the checkpoint before: all of it is there, or none. Any number of processes can read it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from uxnet.errors import CheckpointError
from uxnet.io import atomic
from uxnet.io.checked import as_kind
from uxnet.training.engine import TrainingEngine
from uxnet.training.tensor_file import save_file

_SCHEMA = 2


@dataclass
class Progressed:
    """How far a run has come.

    step: optimiser steps done, skipped ones included.
    validated: the step of the last validation.
    scores: mean validation Dice of each validation so far; None where no class was there to be scored.
    classes: Dice by class of each validation so far.
    best: the best of the scores, and the step it was reached at.
    skipped: steps skipped for an absurd gradient, in all and lately in a row.
    seconds: spent training.
    """

    step: int = 0
    validated: int = 0
    scores: list[float | None] = field(default_factory=list)
    classes: list[dict[str, float | None]] = field(default_factory=list)
    best: float = -1.0
    best_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0


@dataclass
class State:
    """What a run changes as it goes on.

    network: what is trained; its weights are parts of the whole ("fsdp": DTensors) or the whole.
    average: the running average of the weights, empty where there is none.
    """

    network: nn.Module
    optimiser: Optimizer
    average: dict[str, Tensor]
    done: Progressed = field(default_factory=Progressed)


def save_checkpoint(path: Path, state: State, engine: TrainingEngine, identity: str) -> None:
    """Writes a checkpoint, whole or not at all. Every process calls it.

    Args:
        identity: what the run is, so that a checkpoint of another one is not taken for it; after a "+", what its cases hold.

    Raises:
        CheckpointError: if it cannot be written; the one before it is untouched.
    """
    tensors = {f"network.{key}": value for key, value in state.network.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in state.average.items()}
    for name, parameter in state.network.named_parameters():
        moments = state.optimiser.state.get(parameter, {})
        tensors |= {f"optimiser.{name}.{key}": torch.as_tensor(value) for key, value in moments.items()}
    parts = {key: list(value.shape) for key, value in tensors.items() if isinstance(value, DTensor)}
    header = {"schema": _SCHEMA, "identity": identity, "progressed": asdict(state.done), "scaler": engine.scaler_state(), "parts": parts}
    header["threads"] = torch.get_num_threads()  # on a CPU, sums depend on them
    if not parts:
        engine.first(lambda: _save(path, tensors, {**header, "files": []}))
        return
    # The rest of the tensors is the same everywhere and lies in the first file alone.
    token = engine.first(lambda: secrets.token_hex(4))
    others = [f"{path.stem}.{token}.{rank}{path.suffix}" for rank in range(1, engine.world)]
    own = {key: value for key, value in tensors.items() if key in parts}
    engine.every(lambda: _save(path.with_name(others[engine.rank - 1]), own, header) if engine.rank else None)
    # Committed by this one rename.
    engine.first(lambda: _save_first(path, tensors, {**header, "files": others}))


def same_run(found: Any, identity: str) -> bool:
    """Whether a checkpoint's identity is a run's. Earlier versions wrote the first part alone, nothing of what the cases hold."""
    return found in (identity, identity.partition("+")[0])


def load_checkpoint(path: Path, state: State, engine: TrainingEngine, identity: str) -> int | None:
    """Puts a checkpoint back into a state. Every process calls it, and reads all files.

    Returns:
        How many threads computed it; None if an earlier version wrote it, which did not say.

    Raises:
        CheckpointError: if a file is missing, damaged, or of a run with another identity.
    """
    tensors, header = _load_parts(path)
    if header.get("schema") != _SCHEMA or not same_run(header.get("identity"), identity):
        raise CheckpointError(f"{path}: a checkpoint of another run (its recipe, labels, fold or cases differ); train into another folder")
    try:
        _fill(state.network.state_dict(), _part(tensors, "network."), "network")
        _fill(state.average, _part(tensors, "average."), "average")
        _fill_moments(state, _part(tensors, "optimiser."))
        engine.load_scaler_state(header["scaler"])
        state.done = as_kind(header["progressed"], Progressed)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the checkpoint does not fit the network ({error})") from error
    threads = header.get("threads")
    return threads if isinstance(threads, int) else None


def save_weights(path: Path, weights: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes a network's weights alone, with some JSON beside them, whole or not at all.

    Raises:
        CheckpointError: if they cannot be written.
    """
    _save(path, weights, header)


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """The weights that `save_weights` wrote.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    return _load(path)[0]


def weights_header(path: Path) -> dict[str, Any]:
    """The JSON that `save_weights` put beside the weights.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with _opened(path) as (_, header):
        return header


def _fill(into: Mapping[str, Tensor], values: Mapping[str, Tensor], what: str) -> None:
    """Copies values into tensors, which stay where and how they lie in memory: sums taken in another order would differ."""
    if into.keys() != values.keys():
        odd = sorted(into.keys() ^ values.keys())
        raise ValueError(f"{what}: {len(odd)} names differ, the first is {odd[0]}")
    with torch.no_grad():
        for key, tensor in into.items():
            if tensor.shape != values[key].shape:
                raise ValueError(f"{what}: {key} has the shape {tuple(values[key].shape)}, not {tuple(tensor.shape)}")
            tensor.copy_(_like(values[key], tensor))


def _fill_moments(state: State, moments: Mapping[str, Tensor]) -> None:
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, moment = key.rsplit(".", 1)
        by_name.setdefault(name, {})[moment] = value
    for name, parameter in state.network.named_parameters():
        if name not in by_name:
            continue
        moments_of = {}
        for key, value in by_name[name].items():
            # In the parameter's memory layout again; single numbers (the count of steps) stay as they are.
            alike = value.ndim and value.shape == parameter.shape
            moments_of[key] = torch.empty_like(parameter).copy_(_like(value, parameter)).detach() if alike else value
        state.optimiser.state[parameter] = moments_of


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole value as this process's part of it, where `tensor` is such a part."""
    if not isinstance(tensor, DTensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


def _save_first(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    _save(path, tensors, header)
    for old in path.parent.glob(f"{path.stem}.*{path.suffix}"):
        if old.name not in header["files"]:
            old.unlink(missing_ok=True)


def _save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    own = {key: value.to_local() if isinstance(value, DTensor) else value for key, value in tensors.items()}
    try:
        with atomic(path) as temporary:
            save_file(own, temporary, metadata={"uxnet": json.dumps(header)})
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written ({error}); the one before it is untouched") from error


def _load_parts(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole tensors of a checkpoint that may lie in several files."""
    tensors, header = _load(path)
    try:
        others = [_load(path.with_name(name))[0] for name in header.get("files", [])]
        for key, shape in header.get("parts", {}).items():
            # fully_shard cuts along the first axis, in the order of the processes; the last may be left with nothing.
            tensors[key] = torch.cat([tensors[key], *(other[key] for other in others)])
            if list(tensors[key].shape) != shape:
                raise ValueError(f"the parts of {key} make {tuple(tensors[key].shape)}, not {tuple(shape)}")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the checkpoint's parts do not fit together ({error})") from error
    return tensors, header


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with _opened(path) as (file, header):
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118  # not a dict


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file of safetensors and our JSON in it; what turns out to be damaged while it is read is said by its name."""
    try:
        with safe_open(path, "pt") as file:
            yield file, dict(json.loads(file.metadata()["uxnet"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
