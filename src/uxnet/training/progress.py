"""What a run shows of itself while it goes on: curves, pictures, TensorBoard, and a word where a class is not learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from uxnet.draw import curves, line_colour
from uxnet.errors import InputError
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.events import Report, Warn
from uxnet.io.records import Record, read_records
from uxnet.io.schemas import MetricsLine
from uxnet.labels import Labels
from uxnet.recipe import Training
from uxnet.training.board import Board, open_board
from uxnet.training.pictures import Shown, choose_cases, keep_slice, picture, picture_due
from uxnet.training.watch import never_found, never_found_message, stops_early
from uxnet.volume import Volume


class Showing:
    """Shows a stage's run in its folder: `curves.png`, `pictures/` and, if it is wanted, `tensorboard/`. A context.

    Args:
        folder: of the run or stage; its `metrics.jsonl` is read.
        title: of the curves and pictures.
        names: of the validation cases that this process segments; some of them are on the pictures.
    """

    def __init__(
        self, folder: Path, title: str, training: Training, labels: Labels, names: Sequence[str], tensorboard: bool, report: Report
    ) -> None:
        self._folder, self._title, self._training, self._labels = folder, title, training, labels
        self._tensorboard, self._report = tensorboard, report
        self._chosen = choose_cases(names)
        self._kept: dict[str, Shown] = {}
        self._board: Board | None = None

    def __enter__(self) -> Showing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board is not None:
            self._board.close()

    def case(self, name: str, image: Volume, reference: Volume, predicted: Volume, dices: Mapping[str, float | None]) -> None:
        """Hears of a validation case that was segmented, with its Dice by class."""
        if name in self._chosen:
            self._kept[name] = keep_slice(Shown(name, image, reference, predicted, mean_of_counted(list(dices.values()))), self._labels)

    def record(self, record: Mapping[str, Any]) -> None:
        """Hears of a record of `metrics.jsonl`."""
        if self._board is None:
            self._board = open_board(self._folder / "tensorboard", int(record["step"]) - 1, self._report, wanted=self._tensorboard)
        self._board.record(record)
        if record["kind"] == "validation":
            self._validation(int(record["step"]))

    def _validation(self, step: int) -> None:
        records = read_records(self._folder / "metrics.jsonl", MetricsLine)
        scored = [r for r in records if r["kind"] == "validation"]
        if lacking := never_found([r["classes"] for r in scored], step / self._training.steps):
            self._report(Warn(never_found_message(lacking)))
        validations = -(-self._training.steps // self._training.validate_every)
        last = stops_early([r["dice"] for r in scored], self._training.stop_after)
        try:
            draw_curves(self._folder / "curves.png", records, self._title, self._labels)
            if self._kept and (last or picture_due(len(scored), validations)):
                path = self._folder / "pictures" / f"step_{step:07d}.png"
                kept = [_as_recorded(self._kept[name], scored[-1]) for name in self._chosen if name in self._kept]
                picture(path, kept, self._labels, f"{self._title}, step {step}")
                if self._board is not None:
                    self._board.picture("validation", path, step)
        except InputError as error:
            # A full disk stops the training where it matters, in the checkpoint.
            self._report(Warn(f"step {step}: not drawn ({error})"))


def _as_recorded(case: Shown, record: Mapping[str, Any]) -> Shown:
    """The case with the Dice that its record gives: which classes count is known once all cases are segmented."""
    dices = record.get("cases", {}).get(case.name)
    return case if dices is None else replace(case, dice=mean_of_counted(dices.values()))


def draw_curves(path: Path, records: Sequence[Record], title: str, labels: Labels | None = None) -> None:
    """Draws a run's curves from its records, in the colours that `labels` have in pictures."""
    steps = [r for r in records if r["kind"] == "step"]
    losses = [(r["step"], float(r["loss"])) for r in steps]
    rates = [(r["step"], float(r["learning_rate"])) for r in steps]
    seconds = [(r["step"], float(r["seconds"])) for r in steps]
    scores: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record["kind"] == "validation":
            for name, value in {"mean": record["dice"], **record["classes"]}.items():
                if value is not None:
                    scores.setdefault(name, []).append((record["step"], value))
    colours = {} if labels is None else {name: line_colour(labels.colour(name)) for name in labels.classes}
    curves(path, losses=losses, scores=scores, rates=rates, seconds=seconds, title=title, colours=colours)
