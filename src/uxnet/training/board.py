"""TensorBoard, for those who have it installed (`pip install uxnet[track]`) and ask for it.

It shows what `metrics.jsonl` holds: it is fed the same records, and nothing is read back from it. Its files are written with
TensorBoard's own record format, in this thread: what goes wrong is known at once, and nothing is left behind by a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uxnet.errors import TrainingError
from uxnet.events import Report, Warn, silent

_SECONDS_BETWEEN_FLUSHES = 30.0


class Board:
    """Where records and pictures go; nowhere, once it is closed.

    Writing to it never raises: the first error is told once, as a warning, and closes it.
    """

    def __init__(self, file: _EventFile | None, report: Report = silent) -> None:
        self._file, self._report = file, report
        self._before: tuple[int, float] | None = None

    @property
    def open(self) -> bool:
        """Whether anything is still written."""
        return self._file is not None

    def record(self, record: Mapping[str, Any]) -> None:
        """Shows a record of `metrics.jsonl`: of kind "step" or "validation"; other kinds are left out."""
        if self._file is None:
            return
        try:
            self._file.write(int(record["step"]), self._values(record), flush=record["kind"] != "step")
        except Exception as error:  # noqa: BLE001  # a training is worth more than its board
            self._give_up(error)

    def picture(self, tag: str, path: Path, step: int) -> None:
        """Shows a picture, as it is in its .png file."""
        if self._file is None:
            return
        try:
            self._file.write(step, {tag: path.read_bytes()}, flush=True)
        except Exception as error:  # noqa: BLE001
            self._give_up(error)

    def close(self) -> None:
        """Writes what is still to be written; what comes after it goes nowhere."""
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                self._report(Warn(_failure(file.path, error)))

    def _values(self, record: Mapping[str, Any]) -> dict[str, float | bytes]:
        values: dict[str, Any] = {}
        if record["kind"] == "step":
            values = {key: record.get(key) for key in ("loss", "learning_rate", "gradient_norm")}
            values["seconds_per_step"] = self._seconds_per_step(record["step"], record.get("seconds"))
        elif record["kind"] == "validation":
            values = {"dice/mean": record["dice"], **{f"dice/{name}": dice for name, dice in record["classes"].items()}}
            self._before = None  # the time until the next step is the validation's, not a step's
        # What is not finite is a word in the records, and float knows it.
        return {tag: float(value) for tag, value in values.items() if value is not None}

    def _seconds_per_step(self, step: int, seconds: float | None) -> float | None:
        before, self._before = self._before, None if seconds is None else (step, seconds)
        return None if before is None or seconds is None or step <= before[0] else (seconds - before[1]) / (step - before[0])

    def _give_up(self, error: Exception) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.abandon()
            self._report(Warn(_failure(file.path, error)))


def require_tensorboard() -> None:
    """To be called before a run begins that wants a board: what is missing is better said at once than after the first step.

    Raises:
        TrainingError: if TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise TrainingError("TensorBoard is not installed; pip install uxnet[track], or train without tensorboard=True")


def open_board(folder: Path, resume_step: int, report: Report = silent, *, wanted: bool = True) -> Board:
    """A board that writes to a folder, for `tensorboard --logdir`; one that writes nowhere if it is not `wanted`.

    Args:
        folder: is made. What an earlier part of the run wrote there after `resume_step` is hidden.
        resume_step: the step that the run goes on from; 0 for a new one.
        report: is told if the board has to be given up.

    Raises:
        TrainingError: if it is wanted and TensorBoard is not installed.
    """
    if not wanted:
        return Board(None)
    require_tensorboard()
    try:
        return Board(_EventFile(folder, resume_step), report)
    except Exception as error:  # noqa: BLE001
        report(Warn(_failure(folder, error)))
        return Board(None)


class _EventFile:
    """A file of TensorBoard events. Its name, by the time, comes after those of earlier parts of the run."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"
        self._file = self.path.open("xb")
        self._writer = RecordWriter(self._file)
        self._flushed = time.monotonic()
        self._event(file_version="brain.Event:2")
        # Readers drop the events of this step and of later ones that stand before this one.
        self._event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def write(self, step: int, values: Mapping[str, float | bytes], flush: bool) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if not values:
            return

        def entry(tag: str, value: float | bytes) -> Any:
            if isinstance(value, float):
                return Summary.Value(tag=tag, simple_value=value)
            # A PNG begins with eight bytes, then the length and name of a chunk, then width and height.
            width, height = (int.from_bytes(value[at : at + 4], "big") for at in (16, 20))
            return Summary.Value(tag=tag, image=Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=value))

        self._event(step=step, summary=Summary(value=[entry(*item) for item in values.items()]))
        if flush or time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def abandon(self) -> None:
        """Closes the file, whatever becomes of what is still to be written."""
        try:
            self._file.close()
        except OSError:
            return

    def _event(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **fields).SerializeToString())


def _failure(path: Path, error: Exception) -> str:
    return f"{path}: TensorBoard can no longer be written ({error}); the training goes on without it, metrics.jsonl holds everything"
