"""Files that a command is to write, looked at before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from uxnet.errors import UsageError

# They say what a dataset or a folder of predictions is.
_TAKEN = ("dataset.json", "labels.json", "subjects.json", "split.json", "predict.json")


def refuse_outputs(*outputs: tuple[Path | None, str], inputs: Iterable[Path | None] = ()) -> None:
    """Refuses what would replace something that is no output, and one file for two outputs.

    Args:
        outputs: each a file, None if nobody asked for it, and the endings that its kind has: ".json", or ".png or .svg".
        inputs: files that the command reads.

    Raises:
        UsageError: naming it: a folder, a file without such an ending or with a name that describes datasets, an input, or one of two
            outputs that are the same file.
    """
    seen: set[Path] = set()
    read = {path.resolve() for path in inputs if path}
    for path, endings in outputs:
        if path is None:
            continue
        usual = endings.split(" or ")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file to write, for example {path / ('results' + usual[0])}")
        if path.suffix.lower() not in usual:
            raise UsageError(f"{path}: what is written there is named {endings}; name it {path.name}{usual[0]}, for example")
        if path.name.lower() in _TAKEN:
            raise UsageError(f"{path}: is the name of a file that describes a folder of scans; choose another")
        if path.resolve() in read:
            raise UsageError(f"{path}: would be replaced, and it is read; choose another file to write")
        if path.resolve() in seen:
            raise UsageError(f"{path}: two outputs would be written to this file; give each one of its own")
        seen.add(path.resolve())
