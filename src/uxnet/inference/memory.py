"""How much memory a scan takes, told and kept before it is taken.

    peak = what the process holds once the first window is computed (engine, scan, prepared image, label map)
         + what one more window at a time would take, for windows computed together
         + the frontier: what later windows will add to (see stitch.Sweep), linear in classes, section and overlap
         + scratch, for what decides labels on several threads

There is no term of classes times scan. Where the frontier does not fit, its largest part is kept in a file; within a limit that was asked
for in half precision first, which is quicker and may change a label here and there. What the machine has free at the time never does.

The formula begins with the first window. What loading, preparing and the self-check took before is told beside it; a guided second
stage comes after it and is not told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from uxnet.errors import MemoryLimitError, UsageError
from uxnet.events import Kept, Note, Report, Warn
from uxnet.inference.stitch import Keep, Room, Sweep
from uxnet.io import read_geometry, voxel_bytes
from uxnet.machine import free_memory, held, most_held
from uxnet.model.file import Model

_SCRATCH = 24_000_000  # bytes a thread at most; less where a piece of logits is smaller than what is in work at once
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_SAID = {
    "memory": "in memory",
    "half": "in half precision, since it would not fit otherwise",
    "file": "its largest part in a temporary file, since it would not fit otherwise",
}


@dataclass(frozen=True)
class Plan:
    """What a scan will take.

    room: windows at a time, and where the frontier is kept.
    now: bytes that the process holds with the first window computed.
    more_windows: bytes that the others of a batch take.
    frontier, scratch: bytes.
    """

    room: Room
    now: int
    more_windows: int
    frontier: int
    scratch: int

    @property
    def total(self) -> int:
        """The peak, in bytes."""
        return self.now + self.more_windows + self.frontier + self.scratch


def plan_memory(
    sweep: Sweep,
    *,
    now: int,
    a_window: int,
    batch: int,
    threads: int,
    limit: int,
    strict: bool,
    report: Report,
    name: str,
    before: int | None = None,
) -> Plan:
    """The plan that fits the limit, the most exact and quickest first; it is reported.

    Args:
        sweep: of the scan.
        now: bytes that the process holds with the first window computed.
        a_window: bytes that computing it took.
        batch: windows that the recipe computes at a time.
        threads: that decide labels.
        limit: bytes that the process may take.
        strict: whether the limit was asked for. One that was only guessed is warned of, and nothing is kept in half precision for it:
            labels would depend on what else the machine does.
        name: of the scan, for the message.
        before: the most that the process has held so far, for the message; None where the system does not tell.

    Raises:
        MemoryLimitError: if the limit was asked for and does not suffice; it says what would.
    """

    def plan(windows: int, keep: Keep) -> Plan:
        scratch = min(_SCRATCH * max(1, threads), 4 * sweep.channels * math.prod(sweep.tiling.patch))
        return Plan(Room(windows, keep), now, (windows - 1) * a_window, sweep.nbytes(keep), scratch)

    keeps = [keep for keep in get_args(Keep) if strict or keep != "half"]
    plans = [plan(windows, keep) for keep in keeps for windows in range(batch, 0, -1)]
    chosen = next((one for one in plans if one.total <= limit), None)
    if chosen is None:
        chosen = min(plans, key=lambda one: one.total)
        said = f"{name}: it takes at least {in_gb(chosen.total)} of memory, and {in_gb(limit)} are "
        if strict:
            raise MemoryLimitError(said + "the limit; allow more, or use another machine")
        report(Warn(said + "free on this machine; it is tried nevertheless"))
    earlier = f"; {in_gb(before)} before that, to load, prepare and check" if before is not None and before > chosen.total else ""
    report(Kept(chosen.room.keep))
    report(Note(f"{name}: {told(chosen, sweep)}{earlier}"))
    return chosen


def told(plan: Plan, sweep: Sweep) -> str:
    """The formula, in a line."""
    sides = " x ".join(map(str, sweep.layers))
    window = f" + {in_gb(plan.more_windows)} for {plan.room.batch} windows at a time" if plan.room.batch > 1 else ""
    return (
        f"memory {in_gb(plan.total)} at most = {in_gb(plan.now)} with the scan read and a window computed{window} + "
        f"{in_gb(plan.frontier)} for windows that overlap ({sweep.channels} channels x {sides} voxels between two layers and less "
        f"between rows, {_SAID[plan.room.keep]}) + {in_gb(plan.scratch)} to decide"
    )


def expect_room(files: Sequence[Path], limit: int | None) -> None:
    """Refuses a scan that is too large by itself, before it is read: its voxels as stored, and one byte of label each.

    Raises:
        MemoryLimitError: if that is more than the limit leaves.
        VolumeError: if a file's header cannot be read.
    """
    if limit is None:
        return
    stored = sum(voxel_bytes(file) for file in files) + math.prod(read_geometry(files[0]).shape)
    least = held() + stored
    if least > limit:
        raise MemoryLimitError(
            f"{files[0]}: it takes at least {in_gb(least)} of memory, {in_gb(stored)} of them for its voxels alone, and "
            f"{in_gb(limit)} are the limit; allow more, or use another machine"
        )


def expect_windows(model: Model, limit: int | None) -> None:
    """Refuses a model whose windows are too large by themselves, before a network is built for them: image and logits of one, float32.

    Raises:
        MemoryLimitError: if that is more than the limit, or this machine has free.
    """
    for stage in model.recipe.stages:
        channels = stage.in_channels(len(model.channels)) + stage.out_channels(model.labels.out_channels)
        a_window, left = 4 * math.prod(stage.window) * channels, free_memory() if limit is None else limit - held()
        if a_window > left:
            raise MemoryLimitError(
                f"{model.path}: one of its windows, {list(stage.window)}, takes at least {in_gb(a_window)} of memory, and "
                f"{in_gb(max(left, 0))} are {'free on this machine' if limit is None else 'left within the limit'}; use another machine, "
                "or a model with smaller windows"
            )


def parse_size(text: str) -> int:
    """Bytes, of "4GB", "512 MB", "1.5GiB" or a plain number.

    Raises:
        UsageError: if it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", text.upper())
    if not match or match.group(2) not in _UNITS or float(match.group(1)) <= 0:
        raise UsageError(f"{text!r} is no amount of memory; write for example 4GB, 512MB or 1.5GiB")
    size = int(float(match.group(1)) * _UNITS[match.group(2)])
    if not match.group(2) and size < 1_000_000:
        raise UsageError(f"{text!r} is no amount of memory but {size} bytes; write the unit, for example {match.group(1)}GB")
    return size


def in_gb(size: int) -> str:
    """A number of bytes, readable."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def planner(*, batch: int, threads: int, limit: int | None, report: Report, name: str, sharing: int = 1) -> Callable[[Sweep], Room]:
    """A function to be called when the first window is computed: it measures, plans and reports.

    Args:
        limit: bytes that the process may take; None for its share of what is free.
        sharing: processes that take scans on this machine side by side, this one among them.
    """
    before = held()

    def plan(sweep: Sweep) -> Room:
        now = held()
        allowed = now + free_memory() // sharing if limit is None else limit
        a_window = max(0, now - before)
        return plan_memory(
            sweep,
            now=now,
            a_window=a_window,
            batch=batch,
            threads=threads,
            limit=allowed,
            strict=limit is not None,
            report=report,
            name=name,
            before=most_held(),
        ).room

    return plan
