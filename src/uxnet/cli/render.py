"""Events on a terminal: a bar for each counted task while someone looks, plain lines otherwise; notes and warnings always."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from uxnet.cli.main import in_flags
from uxnet.errors import printable
from uxnet.events import Event, Note, Progress, Report, Warn

_SECONDS_BETWEEN_LINES = 15.0


class Terminal(Console):
    """A console on which no name, label or message out of someone else's file can steer the terminal.

    Args:
        at_least: columns that are written even if the terminal has fewer: its lines break then, where a table that does not know what to
            do with so little room would lose the names in its rows.
    """

    def __init__(self, *, at_least: int = 0, **settings: Any) -> None:
        super().__init__(**settings)
        if self.width < at_least:
            self.width = at_least

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Everything that is printed comes this way, in pieces: the console's own control codes, and text."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


@contextlib.contextmanager
def reporting(console: Console, lines: bool = True) -> Iterator[Report]:
    """A `report` that renders on `console` while the block runs.

    Where the console is no terminal (a log file, a cluster job), long tasks leave a line every quarter of a minute, unless `lines`
    is off.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    last_line: dict[str, float] = {}
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}

        def report(event: Event) -> None:
            if isinstance(event, Progress):
                if event.task not in tasks:
                    tasks[event.task] = bar.add_task(event.task, total=event.total, values="")
                    last_line[event.task] = time.monotonic()
                finished = event.done >= event.total
                bar.update(tasks[event.task], completed=event.done, total=event.total, values=shown(event.values), visible=not finished)
                late = time.monotonic() - last_line[event.task] > _SECONDS_BETWEEN_LINES
                if lines and not console.is_terminal and late:
                    last_line[event.task] = time.monotonic()
                    console.print(f"{event.task} {event.done}/{event.total}  {shown(event.values)}", soft_wrap=True, highlight=False)
            elif isinstance(event, Note):
                console.print(escape(in_flags(event.message)), soft_wrap=True, highlight=False)
            elif isinstance(event, Warn):
                console.print(f"[yellow]warning:[/] {escape(in_flags(event.message))}", soft_wrap=True, highlight=False)

        yield report


def shown(values: Mapping[str, float | int | str]) -> str:
    """The figures of an event in one line; seconds left as time."""
    parts = []
    for name, value in values.items():
        if name == "seconds_left":
            parts.append(f"{duration(float(value))} left")
        else:
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return "  ".join(parts)


def with_interval(values: Sequence[float | None], digits: int, gap: str = " ") -> str:
    """A mean, and (low, high) behind it where they are known: "0.875 (0.865-0.883)"; "-" without a mean."""
    mean, *limits = values or (None,)
    if mean is None:
        return "-"
    low, high = limits or (None, None)
    return f"{mean:.{digits}f}" + (f"{gap}({low:.{digits}f}-{high:.{digits}f})" if low is not None and high is not None else "")


def duration(seconds: float) -> str:
    """4 s, 3:05 min, 2:10 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"
