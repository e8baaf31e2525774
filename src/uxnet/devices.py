"""Which device and which precision, for training and inference alike."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from uxnet.errors import DeviceError, UsageError, plural
from uxnet.machine import usable_cores


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        DeviceError: if this machine has no such device.
        UsageError: if it is the name of none that is supported.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device; write auto, cpu, cuda, cuda:N or mps") from error
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise DeviceError(f"the device {name} was asked for, this machine has {plural(count, 'CUDA device')}; choose auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("the device mps was asked for, this machine has none; choose auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"the device {name} is not supported; write auto, cpu, cuda, cuda:N or mps")
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """ "auto" becomes "bfloat16" where the device computes in it (then it is faster), else "float32"; other names stay.

    Raises:
        DeviceError: if float16 is asked for on a CPU, which would be slow and overflow.
    """
    if name == "float16" and device.type == "cpu":
        raise DeviceError("float16 is not supported on CPUs; use bfloat16, float32 or auto")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and cpu_computes_bfloat16() else "float32"


def cpu_computes_bfloat16() -> bool:
    """Whether the processor has bfloat16 instructions (AVX-512 BF16, AMX); without them bfloat16 is emulated and slower."""
    try:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    except AttributeError:  # a torch that does not tell
        return False


@contextlib.contextmanager
def computing_with(threads: int = 0) -> Iterator[None]:
    """Lets torch compute on CPUs with so many threads in this block; 0: with its own number, but no more than there are usable cores."""
    before = torch.get_num_threads()
    chosen = threads or min(before, usable_cores())
    try:
        if chosen != before:
            torch.set_num_threads(chosen)
        yield
    finally:
        if chosen != before:
            torch.set_num_threads(before)


# What torch has a class for on a GPU, and on a CPU none.
_LACKS_MEMORY = (
    "allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "Storage size calculation overflowed",
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not the memory for something, on whatever device."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in _LACKS_MEMORY)
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def shows_frames(error: BaseException) -> bool:
    """Whether an error's message goes on with a list of places in torch's C++."""
    return "Exception raised from" in str(error) or "frame #0" in str(error)


def first_sentence(error: BaseException) -> str:
    """What an error says, without the places in C++ and the further advice that torch adds."""
    text = re.sub(r"^\[enforce fail at [^]]*\] *(?:err == 0\. *)?", "", str(getattr(error, "strerror", None) or error).strip())
    sentence = re.split(r"\.?\s*(?:\n|Exception raised from)|\.\s", text, maxsplit=1)[0].rstrip(". ")
    return sentence or type(error).__name__


def in_fast_memory(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with its weights in the memory layout in which the device computes it fastest: channels last on CPUs.

    On an H200 (torch 2.11.0, bfloat16, 96^3) a training step in channels-last memory took 1.05 times as long for the 3D UX-Net, 1.3 for
    nnU-Net's network and 1.14 for SwinUNETR: single dense convolutions gain, norms and depthwise convolutions lose more.
    """
    layout = torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]  # torch does not annotate it


# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ALWAYS = (1 << 31) - 1
GIVEN_BACK = 32 << 20
"""Bytes of the largest block that a training process keeps; larger ones go back to the system at once (glibc's largest by itself, too)."""


def keep_freed_memory(environ: Mapping[str, str] = os.environ) -> bool:
    """Lets this process keep the memory that a training step on a CPU frees, for the next step; returns whether it does.

    glibc gives it back to the system and asks for it again, page by page, each step: that was a tenth of a narrow network's time. Blocks
    above 32 MiB, such as a validation's scans, still go back at once. Other C libraries are left as they are, and so is one that the
    environment gives its own settings.
    """
    own = any(name.startswith("MALLOC_") for name in environ) or "malloc" in environ.get("GLIBC_TUNABLES", "")
    mallopt = None if own or os.name != "posix" else getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_THRESHOLD, GIVEN_BACK) and mallopt(_M_TRIM_THRESHOLD, _ALWAYS))
