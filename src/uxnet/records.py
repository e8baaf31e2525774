"""What a run leaves behind, one JSON object a line: training writes it, curves, comparisons and reports read it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.io import atomic, json_value

Record = dict[str, Any]


def append_record(path: Path, record: Mapping[str, Any], *, sync: bool = True) -> None:
    """Adds a line.

    Args:
        sync: wait until the disk has it; else `sync_records` does so later, for all of them.

    Raises:
        InputError: if it cannot be written; what was recorded before stays.
    """
    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
    try:
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A line that a crash cut off must not take this one with it.
                line = line if file.read() == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            if sync:
                os.fsync(file.fileno())
    except OSError as error:
        raise _not_written(path, error) from error


def sync_records(path: Path) -> None:
    """Waits until the disk has every line; no file is no line.

    Raises:
        InputError: if it cannot take them.
    """
    try:
        with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
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
            temporary.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept), encoding="utf-8")
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: a record cannot be written ({error.strerror or error}); those before it are kept: see to the disk (its room, the rights "
        "to write there), and go on with what was interrupted"
    )
