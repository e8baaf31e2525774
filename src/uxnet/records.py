"""What a run leaves behind, one JSON object a line: training writes it, curves, comparisons and reports read it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.io import as_json, atomic, json_value, lock

Record = dict[str, Any]


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line and hands it to the disk.

    Raises:
        InputError: if it cannot be written; what was recorded before stays.
    """
    line = as_json(record) + b"\n"
    try:
        with path.open("ab+") as file:
            lock(file, wait=True)  # another process's line is not to begin within this one
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a crash cut off must not take this one with it.
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _not_written(path, error) from error


def read_records(path: Path) -> list[Record]:
    """Every whole line, in order; a line that was cut off by a crash is left out. No file gives no records."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json_value(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def keep_records(path: Path, keep: Callable[[Record], bool]) -> None:
    """Rewrites the file with only the records for which `keep` holds, whole or not at all.

    Raises:
        InputError: if it cannot be written; it stays as it was.
    """
    if not path.exists():
        return
    kept = [r for r in read_records(path) if keep(r)]
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(b"".join(as_json(r) + b"\n" for r in kept))
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: a record cannot be written ({error.strerror or error}); those before it are kept: see to the disk (its room, the rights "
        "to write there), and go on with what was interrupted"
    )
