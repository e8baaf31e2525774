"""Files that a command is to write, looked at before it begins."""

from __future__ import annotations

from pathlib import Path

from uxnet.errors import UsageError


def refuse_outputs(*paths: Path | None, example: str) -> None:
    """Refuses a folder where a file is to be, and one file for two outputs. None is an output that nobody asked for.

    Raises:
        UsageError: naming it.
    """
    seen = set()
    for path in filter(None, paths):
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file to write, for example {path / example}")
        if path.resolve() in seen:
            raise UsageError(f"{path}: two outputs would be written to this file; give each one of its own")
        seen.add(path.resolve())
