"""What a run leaves behind, one JSON object a line: training writes it, curves, comparisons and reports read it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.events import Report, Warn, silent
from uxnet.io import as_json, atomic, json_value, lock

Record = dict[str, Any]


def append_record(path: Path, record: Mapping[str, Any], *, sync: bool = True) -> None:
    """Adds a line.

    Args:
        sync: wait until the disk has it; else `sync_records` does so later, for all of them.

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


def read_records(path: Path, kind: Any = dict, report: Report = silent) -> list[Record]:
    """Every whole line, in order; a line that was cut off by a crash, or is no record, is left out. No file gives no records.

    Args:
        kind: a type of `io.schemas`: lines that do not fit it are left out, too.
        report: is warned once of those.

    Raises:
        InputError: if the file cannot be read.
    """
    from uxnet.io.checked import as_kind

    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); see to its rights, or move it elsewhere") from error
    records, unfit = [], []
    for number, line in enumerate(lines, start=1):
        try:
            record = json_value(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            try:
                as_kind(record, kind)
                records.append(record)
            except ValueError as error:
                unfit.append(f"line {number}: {error}")
    if unfit:
        report(Warn(f"{path}: {_unusable(len(unfit))} ({unfit[0]})"))
    return records


def _unusable(lines: int) -> str:
    if lines == 1:
        return "a line is not as expected and counts as not there"
    return f"{lines} lines are not as expected and count as not there"


def keep_records(path: Path, keep: Callable[[Record], bool], kind: Any = dict, report: Report = silent) -> None:
    """Rewrites the file with only the records for which `keep` holds, whole or not at all.

    Args:
        kind, report: as in `read_records`; what does not fit is not kept.

    Raises:
        InputError: if it cannot be read or written; it stays as it was.
    """
    if not path.exists():
        return
    kept = [r for r in read_records(path, kind, report) if keep(r)]
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
