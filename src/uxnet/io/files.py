"""Files that are either whole or not there, hashed, and read and written as JSON."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.io.parts import clear_parts, part

_DEEPEST = 64
_TOO_DEEP = f"it is nested more than {_DEEPEST} levels deep"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving it is synced to disk and takes the place of `path`.

    Whoever reads `path` sees the old file or the new one, never a part, whatever moment the process dies at. If the block raises,
    the temporary file is removed and `path` stays as it was. What processes that died left in the folder is removed (`clear_parts`).
    The block writes to the path and does not put another file in its place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_parts(path.parent)
    # The suffixes are kept: writers choose format and compression by them.
    suffix = path.name[-len(".nii.gz") :] if path.name.lower().endswith(".nii.gz") else path.suffix
    with contextlib.ExitStack() as held:
        try:
            with contextlib.suppress(FileNotFoundError):
                path.lstat()  # a name that is too long is said before anything is written
            temporary, file = held.enter_context(part(path.parent, suffix))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error  # whoever reads it knows nothing of the temporary file
        try:
            yield temporary
            os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """The hash of a file, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_value(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: if it is no JSON, or is nested so deeply that whoever walks through it may not come back.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [v for part in level if isinstance(part, dict | list) for v in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


def read_json(path: Path, kind: type[InputError] = InputError) -> dict[str, Any]:
    """The JSON object in a file, with or without a byte order mark.

    Raises:
        InputError: of the `kind` asked for, if it cannot be read or is no object.
    """
    try:
        data = json_value(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise kind(f"{path}: cannot be read as JSON ({error}); correct the file") from error
    if not isinstance(data, dict):
        raise kind(f"{path}: a JSON object {{...}} was expected, not {type(data).__name__}")
    return data


def write_json(path: Path, data: Any) -> None:
    """`data` as JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
