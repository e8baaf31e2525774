"""What this machine gives this process: cores, memory, and how much of its processors others take.

A cluster or a container limits a process by the control group that it is in, or by one of those around that (Linux, both versions).
Functions that read the system's files take the folder that these begin in, `root`.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """How many cores this process may use: those it is bound to, or what the processor quota of a control group comes to; at least 1.

    A quota of 2.5 cores gives 2: a third thread would be stopped half of the time, and the others wait for it.
    """
    cores = len(bound_to())
    for group in _groups("cpu", root):
        with contextlib.suppress(OSError, ValueError):  # no limit is set there: there is no such file, or it says "max"
            if (group / "cpu.max").exists():
                quota, period = map(int, (group / "cpu.max").read_text().split())
            else:
                quota, period = int((group / "cpu.cfs_quota_us").read_text()), int((group / "cpu.cfs_period_us").read_text())
            if quota > 0 and period > 0:  # -1 is none
                cores = min(cores, quota // period)
    return max(1, cores)


def bound_to() -> list[int]:
    """The numbers of the cores that this process is bound to."""
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return list(range(os.cpu_count() or 1))


def bind_to(cores: Sequence[int]) -> None:
    """Binds this process to these cores, where the system can; none leaves it as it is."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        return
    # It belongs to threads: those that are there are told, those that follow inherit it.
    for thread in os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else ["0"]:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(thread), cores)


def free_memory(root: Path = _ROOT) -> int:
    """Bytes that this process could still take: what the machine has free, or what the limit of a control group leaves.

    What a group counts as used holds the files that were read and written, which the system gives up as soon as memory is asked for: of
    these, the ones not used lately (`inactive_file`) count as free, as they do for the machine.
    """
    available = int(psutil.virtual_memory().available)
    for group in _groups("memory", root):
        for limit, used, key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.high", "memory.current", "inactive_file"),  # above it processes are held up until they give some back
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                left = int((group / limit).read_text()) - int((group / used).read_text())
                files = re.search(rf"^{key} (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
                available = min(available, left + (int(files.group(1)) if files else 0))
    return max(available, 0)


def held() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def most_held() -> int | None:
    """The most bytes that this process has held since its start, or the last `reset_peak`; None where nothing tells."""
    try:
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def reset_peak() -> bool:
    """Starts a new reading of `most_held`, where the system can (Linux); returns whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def take_peak() -> int | None:
    """The largest resident memory of this process since the last reading, in MB (10^6 bytes); the next reading begins."""
    largest = most_held()
    reset_peak()
    return None if largest is None else round(largest / 1e6)


@dataclass(frozen=True)
class Load:
    """Processor time so far, in seconds: of everything on the cores that this process may use, and of it and its children.

    at: when, on a clock that only counts.
    """

    busy: float
    own: float
    at: float


def load() -> Load:
    """What the processors have done so far; two of these give `others_cores`."""
    cores, times = bound_to(), psutil.cpu_times(percpu=True)
    times = [times[n] for n in cores] if max(cores) < len(times) else times  # some may be switched off
    # What is nice counts, too: it gives way within its session or its control group only.
    fields = ("user", "nice", "system", "irq", "softirq", "steal")
    busy = sum(getattr(core, name, 0.0) for core in times for name in fields)
    me, own = psutil.Process(), 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended: who waited for it counts its time
            own += sum(process.cpu_times()[:4])  # its own, and of its children that have ended
    return Load(busy, own, time.monotonic())


def others_cores(before: Load, after: Load) -> float:
    """How many of this process's cores others have kept busy in between, on average."""
    return max(0.0, (after.busy - before.busy) - (after.own - before.own)) / max(1e-3, after.at - before.at)


def free_cores(before: Load, after: Load) -> float:
    """How many cores others have left to this process in between, on average."""
    return min(usable_cores(), max(0.0, len(bound_to()) - others_cores(before, after)))


def _groups(controller: str, root: Path) -> list[Path]:
    """The folders of the control groups of this process that a controller ("cpu", "memory") limits: its own, and those around it."""
    own = {name: path for _, names, path in (line.split(":", 2) for line in _lines(root / "proc/self/cgroup")) for name in names.split(",")}
    groups = []
    for line in _lines(root / "proc/self/mountinfo"):
        where, _, what = line.partition(" - ")
        kind, _, options = (what.split() + [""] * 3)[:3]
        version = {"cgroup": controller if controller in options.split(",") else None, "cgroup2": ""}.get(kind)
        if version not in own:
            continue
        # A container is shown its own group, or one around it, as if there were none outside.
        shown, mounted = where.split()[3:5]
        path = PurePosixPath(own[version])
        inside = path.relative_to(shown) if path.is_relative_to(shown) and ".." not in path.parts else PurePosixPath()
        folder = root / mounted.lstrip("/")
        groups += [folder / inside, *(folder / outer for outer in inside.parents)]
    return groups


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
