"""One scan of a cohort, in whichever process: what is done already is known by its content, the rest is read, segmented and written.

Outputs are written beside their places. They take them in the process that began the cohort (`cohort.py`), once it has recorded what
they were made from: it alone writes records.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from uxnet.cohort.ledger import Making, described, is_done, read_ledger
from uxnet.cohort.scans import Scan
from uxnet.errors import Cancelled, InputError, UxnetError, VolumeError
from uxnet.events import Event, Kept, Progress, Report, Spent
from uxnet.inference.segment import Ready
from uxnet.io import sha256, write_labels
from uxnet.io.records import Record
from uxnet.machine import reset_peak, take_peak
from uxnet.volume import Volume


class Segments(Protocol):
    """What a scan is given to: a `Segmenter`, or a `LocatedSegmenter`."""

    def prepare(self, scan: Sequence[Path], report: Report) -> Ready:
        """The scan, read and prepared."""

    def segment(self, scan: Ready, report: Report, *, probabilities: Path | None) -> Volume:
        """Its label map."""


Load = Callable[[Report], Segments]


@dataclass(frozen=True)
class Outcome:
    """What became of a scan.

    status: "done", "already" (its output was made from the same content before; the figures are those of that time) or "failed".
    output, probabilities: what was written; None where nothing was.
    error: empty unless it failed.
    seconds: that it took, without waiting for its turn.
    peak_memory_mb: the process's largest memory meanwhile, in MB (10^6 bytes), where the system tells.
    windows: that were computed.
    threads: that computed; None where an earlier version did not say.
    keep: where what later windows add to was kept: "memory", "half" (in half precision, which a limit of memory may ask for) or
        "file"; several with commas between them, empty where nobody planned.
    timings: seconds of each part of the work ("read", "prepare", "network", "stitch", "restore", "write").
    """

    name: str
    files: tuple[str, ...]
    status: Literal["done", "already", "failed"]
    output: str | None = None
    probabilities: str | None = None
    error: str = ""
    seconds: float = 0.0
    peak_memory_mb: int | None = None
    windows: int | None = None
    threads: int | None = None
    keep: str = ""
    timings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """A scan to be done, and all that another process has to know for it.

    outputs: the label map and, if asked for, the probabilities, where they are to be; parts: where they are written.
    known: the latest record of this name.
    overwrite: replace what stands there and was made from something else.
    problem: why it cannot be done, known before anything is read; empty for most.
    """

    scan: Scan
    outputs: tuple[Path, ...]
    parts: tuple[Path, ...]
    making: Making
    known: Record | None
    overwrite: bool
    problem: str = ""


@dataclass(frozen=True)
class Written:
    """What a unit gives: its outcome, and the record to be kept before its parts take their places (None if nothing was written)."""

    outcome: Outcome
    record: Record | None = None


class CannotLoadError(Exception):
    """The model cannot be loaded; its one argument is the error that says why. No scan can be done without it."""


class Desk:
    """What a process needs for its scans: the model, loaded when the first scan needs it, and whose turn it is.

    Args:
        load: loads the model.
        abreast: whether two scans are in hand at a time, one being read or written while the other is segmented.
    """

    def __init__(self, load: Load, abreast: bool) -> None:
        self.load = load
        self.abreast = abreast
        self.turn = threading.Lock()
        self.loading = threading.Lock()
        self.loaded: Segments | None = None
        self.measured = reset_peak()

    def segmenter(self, report: Report) -> Segments:
        """The model, loaded.

        Raises:
            CannotLoadError: if it cannot be.
        """
        # Not the turn: whoever computes has it, and the next is to be read meanwhile.
        with self.loading:
            if self.loaded is None:
                try:
                    self.loaded = self.load(report)
                except Cancelled:
                    raise
                except (UxnetError, OSError) as error:
                    raise CannotLoadError(error) from error
            return self.loaded


def do_scan(desk: Desk, unit: Unit, report: Report) -> Written:
    """Does one scan. What is wrong with it is in the outcome; only a cancellation and defects are raised.

    Raises:
        Cancelled: out of `report`.
        CannotLoadError: if the model cannot be loaded.
    """
    if not desk.abreast:
        desk.measured = reset_peak()
    started = time.perf_counter()
    failed = Outcome(unit.scan.name, tuple(map(str, unit.scan.files)), "failed")
    try:
        return _done(desk, unit, report)
    except Cancelled:
        raise
    except (UxnetError, OSError, MemoryError) as problem:
        error = str(problem) or type(problem).__name__
        # Too little memory and a full disk do not say over which scan.
        if not any(str(path) in error for path in (*unit.scan.files, *unit.outputs, *unit.parts)):
            error = f"{unit.scan.files[0]}: {error}"
        # Parts have other names than what they are parts of.
        for part, output in zip(unit.parts, unit.outputs, strict=True):
            error = error.replace(str(part), str(output))
            with contextlib.suppress(OSError):
                part.unlink()
        return Written(replace(failed, error=error, seconds=round(time.perf_counter() - started, 3)))


def _done(desk: Desk, unit: Unit, report: Report) -> Written:
    """The straight line of a scan: is it done, read, segment, write."""
    if unit.problem:
        raise InputError(unit.problem)
    inputs = [_content(file) for file in unit.scan.files]
    key, known = unit.making.key(inputs), _latest(unit)
    if is_done(unit.outputs, known, key, unit.scan.files[0], unit.overwrite) and known is not None:
        return Written(_outcome(unit, "already", known["figures"]))

    watch, peak = _Watch(report), None
    segmenter = desk.segmenter(report)
    started = time.perf_counter()
    ready = segmenter.prepare(unit.scan.files, watch)
    seconds = time.perf_counter() - started
    with desk.turn:
        started = time.perf_counter()
        labels = segmenter.segment(ready, watch, probabilities=unit.parts[1] if len(unit.parts) > 1 else None)
        # With two scans in hand, the memory of reading and writing counts to the one that is computed at the time.
        peak = take_peak() if desk.measured and desk.abreast else None
        seconds += time.perf_counter() - started
    del ready
    started = time.perf_counter()
    write_labels(unit.parts[0], labels)
    watch(Spent("write", time.perf_counter() - started))
    seconds += time.perf_counter() - started
    peak = take_peak() if desk.measured and not desk.abreast else peak
    figures = {
        "seconds": round(seconds, 3),
        "peak_memory_mb": peak,
        "windows": watch.windows,
        "threads": unit.making.threads or None,
        "keep": ", ".join(watch.keeps),
        "timings": watch.rounded(),
    }
    return Written(_outcome(unit, "done", figures), _record(unit, key, inputs, figures))


def _latest(unit: Unit) -> Record | None:
    """The latest record of the scan, read again where it does not speak of what stands there: another call may have made that since."""
    told = unit.known["outputs"] if unit.known else {}
    for path in unit.outputs:
        if path.is_file() and told.get(path.name, {}).get("bytes") != path.stat().st_size:
            return read_ledger(path.parent).get(unit.scan.name, unit.known)
    return unit.known


def _outcome(unit: Unit, status: Literal["done", "already"], figures: Mapping[str, Any]) -> Outcome:
    outputs = [str(path) for path in unit.outputs]
    files = tuple(map(str, unit.scan.files))
    return Outcome(unit.scan.name, files, status, outputs[0], outputs[1] if len(outputs) > 1 else None, **figures)


def _record(unit: Unit, key: str, inputs: Sequence[str], figures: Mapping[str, Any]) -> Record:
    return {
        "name": unit.scan.name,
        "key": key,
        "finished": time.time(),
        "inputs": {str(file): content for file, content in zip(unit.scan.files, inputs, strict=True)},
        "outputs": {output.name: described(part) for output, part in zip(unit.outputs, unit.parts, strict=True)},
        "figures": dict(figures),
        **unit.making.record(),
    }


def _content(file: Path) -> str:
    if file.is_dir():
        raise VolumeError(f"{file}: is a folder; name the file in it")
    if not file.is_file():
        raise VolumeError(f"{file}: there is no such file")
    return sha256(file)


class _Watch:
    """A `report` that adds up what is to be recorded of a scan, and passes everything on but that alone."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.timings: dict[str, float] = {}
        self.windows = 0
        self.keeps: list[str] = []  # of a localiser and crops there are several

    def __call__(self, event: Event) -> None:
        if isinstance(event, Spent):
            self.timings[event.part] = self.timings.get(event.part, 0.0) + event.seconds
            return
        if isinstance(event, Kept):
            self.keeps += [event.where] if event.where not in self.keeps else []
            return
        if isinstance(event, Progress) and event.task == "windows" and event.done >= event.total:
            self.windows += event.total
        self.report(event)

    def rounded(self) -> dict[str, float]:
        return {part: round(spent, 3) for part, spent in self.timings.items()}
