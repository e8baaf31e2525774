"""The process that opens a checkpoint: it reads a file that anyone may have made, under limits, and leaves nothing but weights.

    python -m uxnet.convert.child CHECKPOINT FOLDER

FOLDER then holds about.json ({"refused": sentence}, or what lay around the weights) and weights.safetensors (float32). A process that
ends in any other way says by that alone that the file is damaged.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uxnet.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

BASE = 512 << 20
"""Bytes of address space on top of what torch takes once it is imported, whatever the file's size."""

TIMES = 6
"""And so many times the file's size: what was read, as float32, and as it is written."""

SECONDS = 60
"""Processor time, and a second more for each `BYTES_A_SECOND`."""

BYTES_A_SECOND = 4 << 20

_LONGEST_NAME = 300


def seconds_for(size: int) -> int:
    """Processor time that a file of so many bytes may take."""
    return SECONDS + size // BYTES_A_SECOND


def main(source: Path, folder: Path) -> None:
    """Reads `source` and writes what is described above into `folder`."""
    # All imports first: what they need is not the file's doing, so the limits begin behind them.
    import safetensors.torch
    import torch

    from uxnet.convert.foreign import stated_monai, unwrapped

    torch.set_num_threads(1)
    size = source.stat().st_size
    _limit(size)
    try:
        loaded = safetensors.torch.load_file(source) if source.suffix == ".safetensors" else _unpickled(source, size)
        weights, path = unwrapped(loaded)
        about = {"path": path, "monai": stated_monai(loaded) or _stated_in_header(source)}
        del loaded
        safetensors.torch.save_file(_plain(weights, size), folder / "weights.safetensors")
    except ModelError as error:
        about = {"refused": str(error)}
    except MemoryError:
        about = {"refused": _TOO_LARGE}
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        about = {"refused": _TOO_LARGE}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


_TOO_LARGE = "it asks for more memory than a checkpoint of its size can need; it is damaged, or made to do harm"
_MORE_THAN_IT_HOLDS = "it declares more values than it holds; it is damaged, or made to do harm"


def _limit(size: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has none; the checks of declared sizes remain
        return
    with contextlib.suppress(OSError, ValueError):  # no such file beside Linux, and macOS keeps no limit on address space
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + BASE + TIMES * size)
    _lower(resource.RLIMIT_CPU, int(time.process_time()) + seconds_for(size))
    _lower(resource.RLIMIT_FSIZE, 4 * size + (16 << 20))
    _lower(resource.RLIMIT_CORE, 0)


def _lower(kind: int, most: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


class _Number:
    """Stands for the numpy numbers that training scripts save as their best score: read past, never made."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _unpickled(source: Path, size: int) -> Any:
    import torch

    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            # torch never compresses: an archive larger than its file is a bomb.
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise ModelError(_MORE_THAN_IT_HOLDS)
    names = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    torch.serialization.add_safe_globals([(_Number, name) for name in names])
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise
        raise ModelError(
            f"it holds objects besides weights ({found[1][:80]}), which are code that runs when they are read, and nothing was read; ask "
            "whoever made it for the state_dict alone, or for safetensors"
        ) from error


def _stated_in_header(source: Path) -> str | None:
    if source.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    from uxnet.convert.foreign import stated_monai

    with safe_open(source, framework="pt") as file:
        return stated_monai(file.metadata())


def _plain(weights: Mapping[Any, Tensor], size: int) -> dict[str, Tensor]:
    """The floating-point weights as float32, each with memory of its own."""
    import torch

    plain, total = {}, 0
    for name, weight in weights.items():
        # Names are printed in messages: none may steer a terminal.
        if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ModelError("a weight has a name that is no text of one line")
        if weight.layout != torch.strided or weight.device.type != "cpu" or weight.is_quantized or weight.is_complex():
            raise ModelError(f"the weight {name} is sparse, quantised, complex or without values; only plain numbers are read")
        if not weight.is_floating_point():
            continue  # indices and counters, which networks make themselves
        total += weight.numel() * weight.element_size()
        # Strides of 0 repeat one value as often as they like, and views may share what they show.
        if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes() or total > 2 * size:
            raise ModelError(_MORE_THAN_IT_HOLDS)
        plain[name] = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return plain


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
