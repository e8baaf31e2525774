"""What library code tells while it works. It calls `report(event)`; the command line and the server render, tests collect.

There is no global state: whoever wants to hear passes a `report`. To cancel, `report` raises `errors.Cancelled`; work stops at that
point and leaves everything that it had finished in order.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """A step of a counted task: `done` of `total`, with figures to show beside it (losses, scores, times)."""

    task: str
    done: int
    total: int
    values: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """Something worth a line, once."""

    message: str


@dataclass(frozen=True)
class Warn:
    """Something that went on but deserves attention; a sentence that says what and what to do."""

    message: str


@dataclass(frozen=True)
class Spent:
    """Time that a part of the work took ("read", "prepare", "network", "stitch", "restore", "write"), in seconds."""

    part: str
    seconds: float


@dataclass(frozen=True)
class Kept:
    """Where a prediction keeps what later windows will add to ("memory", "half", "file"), decided by the memory that there is."""

    where: str


Event = Progress | Note | Warn | Spent | Kept
Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """The `report` of those who do not want to hear."""


def as_warnings(event: Event) -> None:
    """The `report` of those who said nothing about it: warnings become Python's own, which are shown unless someone turned that off."""
    if isinstance(event, Warn):
        warnings.warn(event.message, stacklevel=2)
