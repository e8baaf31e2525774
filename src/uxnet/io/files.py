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
_LONGEST = 308  # digits of a whole number that a float can hold


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
        ValueError: if it is no JSON, is nested so deeply that whoever walks through it may not come back, holds a whole number that cannot
            be computed with, or says two things under one key.
    """
    try:
        value = _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [v for part in level if isinstance(part, dict | list) for v in (part.values() if isinstance(part, dict) else part)]
        if not level:
            return value
    raise ValueError(_TOO_DEEP)


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        for key, value in pairs:
            if repr(table[key]) != repr(value):
                raise ValueError(f"two different values under the key {key!r}")
    return table


_DECODER = json.JSONDecoder(object_pairs_hook=_table, parse_int=_whole)


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


def as_json(data: Any, indent: int | None = None) -> bytes:
    """`data` as JSON in UTF-8; what is no text in it, as in file names of other encodings, stands there escaped and is read back."""
    return json.dumps(data, indent=indent, ensure_ascii=False).encode("utf-8", "backslashreplace")


def write_json(path: Path, data: Any) -> None:
    """`data` as JSON, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_bytes(as_json(data, indent=1) + b"\n")
