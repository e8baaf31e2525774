"""Checkpoints that anyone may have made, opened in a process of their own (`child.py`)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uxnet
from uxnet.convert.child import seconds_for
from uxnet.errors import InputError, ModelError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What is in a checkpoint.

    weights: name -> float32 tensor on the CPU.
    path: the keys under which they lay in it.
    monai: the version of MONAI that it states, None where it states none.
    """

    weights: Mapping[str, Tensor]
    path: tuple[str, ...]
    monai: str | None


def read_checkpoint(source: Path) -> Checkpoint:
    """The weights in a file of torch or of safetensors.

    The file is opened by another process, by torch's reader that makes nothing but tensors and plain containers, with limits on memory,
    processor time and what it may write; this one reads only what that one has written.

    Raises:
        InputError: if there is no such file.
        ModelError: if it holds no weights, anything that would run code, more than its size can hold, or is damaged.
    """
    if not source.is_file():
        raise InputError(f"{source}: there is no such file" if not source.is_dir() else f"{source}: a folder; name a checkpoint's file")
    with tempfile.TemporaryDirectory(prefix="uxnet-convert-") as name:
        folder = Path(name)
        about = _opened(source, folder)
        if "refused" in about:
            raise ModelError(f"{source}: {about['refused']}")
        from safetensors.torch import load_file

        # Copies: the file behind the tensors goes with the folder.
        weights = {key: weight.clone() for key, weight in load_file(folder / "weights.safetensors").items()}
    if not weights:
        raise ModelError(f"{source}: it holds no floating-point weights")
    return Checkpoint(weights, tuple(about["path"]), about["monai"])


def _opened(source: Path, folder: Path) -> dict[str, Any]:
    seconds = 2 * seconds_for(source.stat().st_size) + 120
    # -P and an empty working folder: a torch.py beside the checkpoint is nobody's torch.
    command = [sys.executable, "-P", "-m", "uxnet.convert.child", str(source.resolve()), str(folder)]
    errors = folder / "errors.txt"
    try:
        with errors.open("wb") as file:
            ended = subprocess.run(
                command,
                cwd=folder,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                timeout=seconds,
                check=False,
            )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{source}: reading it took more than {seconds} s and was stopped; it is damaged, or made to do harm") from error
    about = folder / "about.json"
    if ended.returncode == 0 and about.is_file():
        found: dict[str, Any] = json.loads(about.read_text(encoding="utf-8"))
        return found
    if ended.returncode < 0:
        raise ModelError(
            f"{source}: reading it was stopped (signal {-ended.returncode}): it takes more memory or processor time than a checkpoint of "
            "its size can need, or is damaged"
        )
    if lacks := re.search(
        r"^(ImportError|ModuleNotFoundError): (.{,120})", errors.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
    ):
        raise InputError(f"{source}: the process that should read it did not start ({lacks[2]}); repair the installation")
    raise ModelError(f"{source}: it cannot be read as a checkpoint: it is truncated, damaged, or another kind of file")


def _environment() -> dict[str, str]:
    """Ours, with this very package first, and without the switches that turn torch's careful reader off."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("TORCH_FORCE")}
    paths = [str(Path(uxnet.__file__).resolve().parents[1]), kept.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
