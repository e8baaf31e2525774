"""Checkpoints: everything that a run needs to go on, in one safetensors file with JSON in its header. Never pickle.

A checkpoint is written beside its place, synced and renamed, so that whoever dies while writing leaves the one before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from uxnet.errors import CheckpointError
from uxnet.io import atomic

_SCHEMA = 1


@dataclass
class Progressed:
    """How far a run has come.

    step: optimiser steps done, skipped ones included.
    scores: mean validation Dice of each validation so far; None where no class was there to be scored.
    best: the best of them, and the step it was reached at.
    skipped: steps skipped for an absurd gradient, in all and lately in a row.
    seconds: spent training.
    """

    step: int = 0
    scores: list[float | None] = field(default_factory=list)
    best: float = -1.0
    best_step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: Path, network: nn.Module, optimiser: Optimizer, average: Mapping[str, Tensor], progressed: Progressed, identity: str
) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        average: the running average of the weights, empty where there is none.
        identity: what the run is, so that a checkpoint of another one is not taken for it.
    """
    tensors = {f"network.{key}": value for key, value in network.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    header = {"schema": _SCHEMA, "identity": identity, "progressed": asdict(progressed)}
    _save(path, tensors, header)


def load_checkpoint(path: Path, network: nn.Module, optimiser: Optimizer, average: dict[str, Tensor], identity: str) -> Progressed:
    """Puts a checkpoint back into network, optimiser and average, and says how far it was.

    Raises:
        CheckpointError: if the file is missing, damaged, or of a run with another identity.
    """
    tensors, header = _load(path)
    if header.get("schema") != _SCHEMA or header.get("identity") != identity:
        raise CheckpointError(f"{path}: a checkpoint of another run (its recipe, labels or fold differ); train into another folder")
    try:
        network.load_state_dict(_part(tensors, "network."))
        for key, value in _part(tensors, "average.").items():
            average[key].copy_(value)  # not replaced: it lies on the device, the file's does not
        state = optimiser.state_dict()
        state["state"] = {}
        for key, value in _part(tensors, "optimiser.").items():
            number, name = key.split(".", 1)
            state["state"].setdefault(int(number), {})[name] = value
        optimiser.load_state_dict(state)
        _like_their_parameters(optimiser)
        return Progressed(**header["progressed"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the checkpoint does not fit the network ({error})") from error


def save_weights(path: Path, weights: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Writes a network's weights alone, with some JSON beside them, whole or not at all."""
    _save(path, weights, header)


def load_weights_file(path: Path) -> dict[str, Tensor]:
    """The weights that `save_weights` wrote.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    return _load(path)[0]


def _save(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    contiguous = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    try:
        with atomic(path) as temporary:
            save_file(contiguous, temporary, metadata={"uxnet": json.dumps(header)})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written ({error}); the one before it is untouched") from error


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            header = dict(json.loads(file.metadata()["uxnet"]))
            return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({error})") from error


def _like_their_parameters(optimiser: Optimizer) -> None:
    """Gives the moments their parameters' memory layout again: sums taken in another order would differ in the last bit."""
    for parameter, state in optimiser.state.items():
        for key, value in state.items():
            if value.shape == parameter.shape and value.ndim:
                state[key] = torch.empty_like(parameter).copy_(value)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
