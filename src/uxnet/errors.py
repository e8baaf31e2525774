"""Every error that uxnet raises on purpose.

    UxnetError
    |-- InputError           a file or folder that someone handed over; names it
    |   |-- VolumeError      an image or label map that cannot be read, written or trusted
    |   |-- DatasetError     a dataset whose cases or description do not fit
    |   |-- ModelError       a model file that is damaged, of another version, or does not fit the input
    |   `-- UsageError       arguments that are wrong by themselves or contradict each other; the command line exits with 2
    |-- LabelsError          a set of labels that contradicts itself, or values outside it
    |-- RecipeError          a recipe with a wrong key or value; names the key
    |-- DeviceError          a device or precision that this machine does not have
    |-- MemoryLimitError     a limit of memory within which the work cannot be done; says what would do
    |-- TrainingError        a run that cannot go on; says at which step and why
    |   `-- CheckpointError  a checkpoint that is missing, damaged or of another run
    `-- Cancelled            someone asked to stop
        `-- Preempted        the system asked a training run to make room; everything is saved

Each message is a sentence that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from typing import Any

_LONGEST_VALUE = 80


class UxnetError(Exception):
    """The root of all errors that uxnet raises on purpose."""


class InputError(UxnetError):
    """A file or folder that someone handed over cannot be used."""


class VolumeError(InputError):
    """An image or label map cannot be read, written or trusted."""


class DatasetError(InputError):
    """A dataset's cases or its description do not fit."""


class ModelError(InputError):
    """A model file is damaged, of another version, or does not fit the input."""


class UsageError(InputError):
    """Arguments are wrong by themselves, whatever files and machine they are given for, or contradict each other."""


class LabelsError(UxnetError):
    """A set of labels contradicts itself, or a label map holds values outside it."""


class RecipeError(UxnetError):
    """A recipe has a wrong key or value; the message names the key."""


class DeviceError(UxnetError):
    """A device or precision was asked for that this machine does not have."""


class MemoryLimitError(UxnetError):
    """Work cannot be done within the memory that it may take; the message says what would do."""


class TrainingError(UxnetError):
    """A training run cannot go on; the message says at which step and why."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, damaged or of another run."""


class Cancelled(UxnetError):
    """Someone asked to stop; raised out of a `report` call."""


class Preempted(Cancelled):
    """A training run was asked to make room; everything that it needs to go on is saved."""


def shortened(names: Iterable[object], most: int = 5) -> str:
    """Names for a message: "a, b and 12 more"."""
    items = list(map(str, names))
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def plural(n: int, one: str, many: str | None = None) -> str:
    """A count with its noun: "1 case", "2 cases", "3 classes" (many: where an s is not enough)."""
    return f"{n} {one if n == 1 else many or one + 's'}"


def shown(value: Any) -> str:
    """A value of someone else's file in a message, of any size."""
    if isinstance(value, int) and abs(value) >= 2**64:
        return f"a whole number of {value.bit_length()} bits"  # whose digits Python may refuse to write
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def printable(text: str) -> str:
    """A text of someone else's file, for a message or a terminal: what steers a terminal, or hides, stands there as JSON writes it.

    Lines stay lines. Of JSON it leaves the meaning as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" else json.dumps(c)[1:-1] for c in text)
