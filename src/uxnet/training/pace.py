"""How a run gets on: its clock, and whether other processes take the cores that it computes on."""

from __future__ import annotations

import time

import torch

from uxnet.events import Report, Warn
from uxnet.machine import free_cores, load, usable_cores

# So long is the load measured, so often in a row it has to be too much (a burst is none), and so many cores too much.
_SECONDS, _TIMES, _MARGIN = 10.0, 2, 0.5


class Clock:
    """Seconds spent, those of earlier parts of the run included, and the time left."""

    def __init__(self, step: int, seconds: float) -> None:
        self.first, self.before, self.started = step, seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def left(self, step: int, steps: int) -> float:
        return (time.monotonic() - self.started) / max(1, step - self.first) * (steps - step)


class Crowding:
    """Warns once, while a run computes on the CPU, if its threads are more than the cores that others leave to it.

    Threads that have no core of their own keep the others waiting: two busy cores were seen to make a step of one second one of 29.
    """

    def __init__(self, device: torch.device, report: Report) -> None:
        self.threads, self.report, self.times = torch.get_num_threads(), report, 0
        self.before = load() if device.type == "cpu" and self.threads > 1 else None

    def look(self) -> None:
        """To be called now and then; it measures between its calls, and does so rarely."""
        if self.before is None or time.monotonic() - self.before.at < _SECONDS:
            return
        now = load()
        free = free_cores(self.before, now)
        self.times = self.times + 1 if self.threads - free > _MARGIN else 0
        self.before = now
        if self.times < _TIMES:
            return
        self.before = None
        self.report(
            Warn(
                f"this machine is busy: other processes leave {free:.1f} of {usable_cores()} cores to this training, whose {self.threads} "
                f"threads then wait for each other, which can make a step many times slower; go on with threads={max(1, round(free))}"
            )
        )
