"""TensorBoard shows what the records hold, only when asked for, and never stands in a training's way."""

import math
import sys
from importlib.util import find_spec
from subprocess import run

import numpy as np
import pytest

from uxnet.draw import curves
from uxnet.errors import TrainingError
from uxnet.events import Warn
from uxnet.training.board import open_board, require_tensorboard

needs_tensorboard = pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs the extra [track]")


def step(n, seconds=None, **more):
    return {"kind": "step", "step": n, "loss": 1 / n, "learning_rate": 1e-3, "gradient_norm": 2.0, "seconds": seconds or 0.5 * n, **more}


def validation(n, dice, **classes):
    return {"kind": "validation", "step": n, "dice": dice, "classes": classes, "cases": {}}


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def scalars(folder):
    board = read(folder)
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def disk_is_full(*_, **__):
    raise OSError(28, "No space left on device")


@needs_tensorboard
def test_a_board_shows_what_the_records_hold(tmp_path):
    board = open_board(tmp_path, 0)
    for record in (
        step(1),
        step(2),
        validation(2, 0.5, liver=0.7, spleen=None),
        step(3, 9.0),
        step(4, 9.5, loss="nan"),
        {"kind": "x", "step": 4},
    ):
        board.record(record)
    board.close()
    shown = scalars(tmp_path)
    assert [n for n, _ in shown["loss"]] == [1, 2, 3, 4]
    assert [v for _, v in shown["loss"][:3]] == pytest.approx([1, 1 / 2, 1 / 3])
    assert math.isnan(shown["loss"][3][1])
    assert {tag for tag in shown if tag.startswith("dice/")} == {"dice/mean", "dice/liver"}
    assert shown["dice/liver"] == [(2, pytest.approx(0.7))]
    assert shown["learning_rate"][0] == (1, pytest.approx(1e-3))
    # Neither the first step, whose beginning nobody saw, nor the one that a validation came before.
    assert shown["seconds_per_step"] == [(2, 0.5), (4, 0.5)]


@needs_tensorboard
def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
    first = open_board(tmp_path, 0)
    for n in range(1, 8):
        first.record(step(n, loss=float(n)))
    first.record(validation(6, 0.6))
    first.close()
    second = open_board(tmp_path, 4)
    for n in range(5, 7):
        second.record(step(n, loss=10.0 * n))
    second.close()
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 50.0), (6, 60.0)]
    assert scalars(tmp_path).get("dice/mean", []) == []


@needs_tensorboard
def test_what_was_recorded_up_to_a_validation_is_there_when_the_process_dies(tmp_path):
    board = open_board(tmp_path, 0)
    board.record(step(1))
    board.record(validation(1, 0.5))
    assert set(scalars(tmp_path)) >= {"loss", "dice/mean"}
    board.close()


@needs_tensorboard
def test_a_picture_is_shown_as_it_is(tmp_path):
    curves(tmp_path / "curves.png", losses=[(1, 1.0)], scores={})
    board = open_board(tmp_path / "board", 0)
    board.picture("curves", tmp_path / "curves.png", 7)
    board.close()
    (image,) = read(tmp_path / "board").Images("curves")
    assert image.step == 7
    assert image.encoded_image_string == (tmp_path / "curves.png").read_bytes()
    assert min(image.width, image.height) > 100


@needs_tensorboard
@pytest.mark.parametrize("trouble", ["disk", "record", "picture", "closing"])
def test_trouble_becomes_one_warning_and_the_end_of_the_board(tmp_path, monkeypatch, trouble):
    events = []
    board = open_board(tmp_path, 0, events.append)
    if trouble in ("disk", "closing"):
        monkeypatch.setattr(board._file, "_file", type("Full", (), {"write": disk_is_full, "flush": disk_is_full, "close": disk_is_full})())
        monkeypatch.setattr(board._file._writer, "_writer", board._file._file)
    if trouble == "disk":
        board.record(step(1))
    elif trouble == "record":
        board.record({"kind": "validation", "step": 1})
    elif trouble == "picture":
        board.picture("curves", tmp_path / "missing.png", 1)
    else:
        board.close()
    assert not board.open
    board.record(step(2))
    board.picture("curves", tmp_path / "missing.png", 2)
    board.close()
    assert len(events) == 1
    assert isinstance(events[0], Warn)
    assert "the training goes on" in events[0].message


@needs_tensorboard
def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    events = []
    board = open_board(tmp_path / "file" / "board", 0, events.append)
    assert not board.open
    assert [type(event) for event in events] == [Warn]


def test_without_the_extra_asking_for_it_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("uxnet.training.board.find_spec", lambda _: None)
    with pytest.raises(TrainingError, match=r"pip install uxnet\[track\]"):
        require_tensorboard()
    with pytest.raises(TrainingError, match=r"pip install uxnet\[track\]"):
        open_board(tmp_path, 0)
    assert not open_board(tmp_path, 0, wanted=False).open
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_imported_or_written_unless_it_is_asked_for(tmp_path):
    code = (
        "import sys; from pathlib import Path; from uxnet.training.board import open_board\n"
        f"board = open_board(Path({str(tmp_path / 'board')!r}), 0, wanted=False)\n"
        "board.record({'kind': 'step', 'step': 1, 'loss': 1.0}); board.picture('a', Path('a.png'), 1); board.close()\n"
        "print(any(name.split('.')[0] in ('tensorboard', 'torch') for name in sys.modules), board.open)"
    )
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]
    assert list(tmp_path.iterdir()) == []


@needs_tensorboard
def test_numbers_of_numpy_are_numbers(tmp_path):
    board = open_board(tmp_path, 0)
    board.record(step(np.int64(1), loss=np.float32(0.25)))
    board.close()
    assert scalars(tmp_path)["loss"] == [(1, 0.25)]
