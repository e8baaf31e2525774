"""Tensors into a file of safetensors, one after the other.

The library writes into a file of its own beside the one that it is given, which stays there for good if the process is killed meanwhile;
and it wants all tensors in memory side by side.

Format: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGN = 8


def save_file(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes tensors, from whatever device, and texts beside them; as safetensors' own function of this name does.

    Raises:
        OSError: if the file cannot be written.
        KeyError: for a type of numbers that the format does not have.
    """
    # Wide numbers first, as the library writes them: every tensor is aligned then.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": _NAMES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    blob = json.dumps(header).encode()
    blob += b" " * (-len(blob) % _ALIGN)
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        for name in names:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
