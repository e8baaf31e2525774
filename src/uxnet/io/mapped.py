"""Arrays that lie in a temporary file instead of memory."""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from uxnet.errors import InputError

_PIECE = 1 << 22  # zeros that are written at a time


def mapped_array(shape: tuple[int, ...], dtype: DTypeLike, folder: Path, what: str) -> tuple[NDArray[Any], Any]:
    """An array of zeros, mapped from a file without a name, which is gone with the process, however that ends.

    All of its space is taken on the disk beforehand: a full disk would otherwise be noticed only when a page of it is written, and
    the system then ends the process (SIGBUS).

    Args:
        folder: that the file is made in.
        what: needs it, for the message: a file, or a scan.

    Returns:
        The array, and the file; whoever has dropped the array closes it.

    Raises:
        InputError: if there is no room for it; it says how much is needed and free.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    file = tempfile.TemporaryFile(dir=folder, prefix=".uxnet-")  # noqa: SIM115 - it lives as long as the array
    try:
        _reserve(file, size)
        return np.memmap(file, dtype=dtype, mode="r+", shape=shape), file
    except OSError as error:
        file.close()
        free = shutil.disk_usage(folder).free
        raise InputError(
            f"{what}: {size / 1e6:.1f} MB are needed for a temporary file in {folder}, on whose disk {free / 1e6:.1f} MB are free "
            f"({error.strerror or error}); make room there"
        ) from error


def _reserve(file: Any, size: int) -> None:
    """Makes a file so many bytes long, and takes them on the disk."""
    if hasattr(os, "posix_fallocate"):  # not on every system
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:  # not on every file system
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
                raise
        else:
            return
    zeros = bytes(_PIECE)
    for start in range(0, size, _PIECE):
        file.write(zeros[: size - start])
    file.flush()
