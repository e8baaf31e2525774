import errno
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from job_units import count, make_meeting, meet, plain, unit, unmakeable

from uxnet.errors import Cancelled, InputError, UsageError, UxnetError, VolumeError
from uxnet.events import Note, Progress
from uxnet.geometry import Geometry
from uxnet.io import read_geometry
from uxnet.io.records import append_record, keep_records, read_records
from uxnet.io.schemas import MetricsLine
from uxnet.jobs import shard, work

# Records


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "run.jsonl"
    records = [{"step": n, "loss": 0.1 * n, "who": "é\u2028\x85\n\x1c", "deep": {"a": [1, None, True]}} for n in range(5)]
    for record in records:
        append_record(path, record)
    assert read_records(path) == records
    assert read_records(tmp_path / "none.jsonl") == []


def test_a_line_that_a_crash_cut_off_is_left_out_whatever_byte_it_ends_at(tmp_path):
    path = tmp_path / "run.jsonl"
    append_record(path, {"step": 1})
    whole = path.stat().st_size
    append_record(path, {"step": 2, "who": "é"})
    blob = path.read_bytes()
    for end in range(whole, len(blob) - 1):
        path.write_bytes(blob[:end])
        assert read_records(path)[0] == {"step": 1}
        assert len(read_records(path)) == 1
        append_record(path, {"step": 3})  # and what comes after the crash is not lost with it
        assert read_records(path) == [{"step": 1}, {"step": 3}]


def test_what_is_no_record_is_left_out(tmp_path):
    path = tmp_path / "run.jsonl"
    path.write_text('{"step": 1}\n\n[1]\n3\nnull\nnonsense\n{"step": 2}\n')
    assert read_records(path) == [{"step": 1}, {"step": 2}]


def test_lines_that_do_not_fit_count_as_not_there_and_are_said_once(tmp_path):
    path, heard = tmp_path / "metrics.jsonl", []
    step = {"kind": "step", "step": 1, "loss": "nan", "learning_rate": 0.1, "seconds": 0.5}
    validation = {"kind": "validation", "step": 1, "dice": None, "classes": {"a": None, "b": 0.5}}
    odd = [
        {**step, "step": "1"},
        {**step, "loss": "low"},
        {"step": 1},
        {**validation, "classes": {"a": float("inf")}},
        {**validation, "dice": 2},
    ]
    for record in (step, *odd, validation, {"kind": "of a later version", "step": 2}):
        append_record(path, record)
    assert [r["kind"] for r in read_records(path, MetricsLine, heard.append)] == ["step", "validation", "of a later version"]
    (said,) = heard
    assert said.message.endswith(
        "metrics.jsonl: 5 lines are not as expected and count as not there (line 2: step: expected a whole number, got text)"
    )
    keep_records(path, lambda record: record["step"] == 1, MetricsLine)
    assert read_records(path) == [step, validation]


def test_records_that_cannot_be_read_are_said_by_their_file(tmp_path):
    with pytest.raises(InputError, match=rf"{tmp_path.name}: cannot be read"):
        read_records(tmp_path)


def test_records_are_kept_by_what_they_say(tmp_path):
    path = tmp_path / "run.jsonl"
    keep_records(path, lambda record: True)
    assert not path.exists()
    for n in range(5):
        append_record(path, {"step": n, "who": "é"})
    keep_records(path, lambda record: record["step"] <= 2)
    assert [record["step"] for record in read_records(path)] == [0, 1, 2]
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()] == [0, 1, 2]
    before = path.read_bytes()
    with pytest.raises(KeyError):
        keep_records(path, lambda record: record["epoch"] > 0)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file on a full disk")
def test_a_full_disk_is_said(tmp_path):
    path = tmp_path / "run.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"run\.jsonl: a record cannot be written \(No space left on device\).*go on"):
        append_record(path, {"step": 1})


def test_what_cannot_be_rewritten_stays_and_is_said(tmp_path, monkeypatch):
    path = tmp_path / "run.jsonl"
    append_record(path, {"step": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("uxnet.io.files.os.replace", full)
    with pytest.raises(InputError, match=r"run\.jsonl.*No space left"):
        keep_records(path, lambda record: False)
    assert read_records(path) == [{"step": 1}]


# Jobs. Other processes find their functions by import: they are uxnet's own, the standard library's, and those of support/job_units.py.


@pytest.fixture
def scans(tmp_path):
    paths = [tmp_path / f"{n}.nii" for n in range(4)]
    for n, path in enumerate(paths):
        nib.save(nib.Nifti1Image(np.zeros((2, 3, 4 + n), np.uint8), np.eye(4)), path)
    paths[1].write_text("no scan")
    paths[2].unlink()
    return paths


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_one_bad_unit_does_not_take_the_others_with_it(scans, workers):
    finished = {f.item: f for f in work(read_geometry, scans, workers)}
    assert sorted(finished) == sorted(scans)
    for n in (0, 3):
        assert finished[scans[n]].result == Geometry((2, 3, 4 + n), np.eye(4))
        assert finished[scans[n]].error is None
    for n in (1, 2):
        assert finished[scans[n]].result is None
        assert isinstance(finished[scans[n]].error, VolumeError)
        assert str(scans[n]) in str(finished[scans[n]].error)


def test_in_this_process_units_run_in_order_and_only_when_asked_for(scans):
    seen = []

    def look(path):
        seen.append(path)
        return path.name

    units = work(look, scans, 1)
    assert isinstance(units, Iterator)
    assert seen == []
    assert next(units).result == "0.nii"
    assert seen == scans[:1]
    assert [f.result for f in units] == ["1.nii", "2.nii", "3.nii"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_defect_is_raised_as_itself(workers):
    with pytest.raises(TypeError):
        list(work(functools.partial(int, base=10), [1, 2], workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_no_units_is_no_work(workers):
    assert list(work(read_geometry, [], workers)) == []


def test_a_process_that_dies_is_reported_in_its_unit():
    finished = list(work(os._exit, [7, 7], 2))
    assert [f.item for f in finished] == [7, 7]
    assert all(isinstance(f.error, UxnetError) for f in finished)
    assert all("died" in str(f.error) for f in finished)


def test_a_process_that_dies_does_not_take_the_others_with_it():
    finished = list(work(signal.raise_signal, [0, 0, signal.SIGKILL, 0, 0, 0], 2))  # signal 0 does nothing
    assert sorted(f.item for f in finished) == [0, 0, 0, 0, 0, 9]
    assert [f.item for f in finished if f.error is not None] == [9]


def test_all_who_die_are_named_and_all_others_done(tmp_path):
    marks = [tmp_path / str(n) for n in range(2)]
    items = [*map(str, range(10)), f"die-once {marks[0]}", "die", *map(str, range(10, 20)), f"die-once {marks[1]}", "exit 3"]
    random.Random(0).shuffle(items)
    finished = {f.item: f for f in work(plain, items, 3)}
    assert sorted(finished) == sorted(items)
    assert {i for i, f in finished.items() if f.error} == {"die", "exit 3"}
    assert "exit code 3" in str(finished["exit 3"].error)
    assert "SIGKILL" in str(finished["die"].error)
    assert all(finished[f"die-once {mark}"].result == "survived" for mark in marks)
    assert all(finished[str(n)].result == str(n) for n in range(20))


def test_more_bad_units_than_a_hopeless_beginning_has_are_still_only_bad_units():
    finished = list(work(plain, ["0", *["exit 1"] * 13], 2))
    assert [f.item for f in finished if not f.error] == ["0"]
    assert sum(f.error is not None for f in finished) == 13


def test_when_nothing_but_deaths_comes_it_is_given_up():
    with pytest.raises(UxnetError, match="died over"):
        list(work(plain, ["exit 1"] * 40, 2))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_state_is_made_once_a_worker_and_what_units_tell_is_heard_here(tmp_path, workers):
    heard = []
    finished = list(work(unit, list("abcdef"), workers, start=functools.partial(count, tmp_path), report=heard.append))
    assert sorted(f.result[1] for f in finished) == list("abcdef")
    made = {p.name for p in tmp_path.iterdir()}
    assert {f.result[0] for f in finished} <= made
    assert 1 <= len(made) <= max(1, workers)
    assert {name.split(".")[1] == str(os.getpid()) for name in made} == {workers == 0}
    assert sum(event == Progress("steps", 1, 2) for event in heard) == 6
    assert sorted(e.message for e in heard if isinstance(e, Note)) == [*(f"doing {c}" for c in "abcdef"), *["made"] * len(made)]


def test_after_a_death_the_state_is_made_anew(tmp_path):
    (tmp_path / "states").mkdir()
    start = functools.partial(count, tmp_path / "states")
    finished = list(work(unit, ["a", f"die-once {tmp_path / 'mark'}", "b"], 1, start=start))
    assert sorted(f.result[1] for f in finished) == ["a", "b", "survived"]
    assert len(list((tmp_path / "states").iterdir())) >= 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_that_cannot_be_made_is_raised(workers):
    with pytest.raises(UxnetError, match="no state can be made of this"):
        list(work(unit, ["a", "b"], workers, start=unmakeable))


def test_two_units_abreast_are_in_hand_at_the_same_time():
    finished = list(work(meet, range(4), 1, start=make_meeting, abreast=2))
    assert len({f.result for f in finished}) == 1
    assert all(f.result != os.getpid() for f in finished)


def test_units_that_were_lost_with_a_neighbour_abreast_are_done(tmp_path):
    start = functools.partial(count, tmp_path)
    finished = {f.item: f for f in work(unit, ["a", "die", "b", "bad luck", "c"], 1, start=start, abreast=2)}
    assert {i for i, f in finished.items() if f.error} == {"die", "bad luck"}
    assert "luck is bad" in str(finished["bad luck"].error)


@pytest.mark.parametrize(
    ("item", "kind", "words"),
    [
        ("defect x", KeyError, "x"),
        ("broken x", RuntimeError, "Unsendable: x"),
        ("closure x", Exception, "pickle"),
        ("leave 3", RuntimeError, "SystemExit: 3"),
    ],
)
def test_defects_come_back_with_where_they_were_raised(item, kind, words):
    with pytest.raises(kind, match=words) as raised:
        list(work(plain, ["a", item, "b"], 2))
    assert any("In a worker process:" in note and "Traceback" in note for note in raised.value.__notes__)
    assert not multiprocessing.active_children()


def test_whoever_stops_listening_leaves_no_process(tmp_path):
    units = work(unit, [*"ab", f"wait {tmp_path / 'waiting'}", *"cd"], 2, start=functools.partial(count, tmp_path))
    assert next(units).result[1] in "ab"
    assert multiprocessing.active_children()
    units.close()
    assert not multiprocessing.active_children()


def test_a_cancellation_leaves_no_process(tmp_path):
    def stop(event):
        if event == Note(f"doing wait {tmp_path / 'waiting'}"):
            raise Cancelled

    units = work(unit, ["a", f"wait {tmp_path / 'waiting'}", "b"], 2, start=functools.partial(count, tmp_path), report=stop)
    with pytest.raises(Cancelled):
        list(units)
    assert not multiprocessing.active_children()


def test_whoever_is_killed_leaves_no_process(tmp_path):
    waiting = [tmp_path / "0", tmp_path / "1"]
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from uxnet.io.schemas import MetricsLine
from uxnet.jobs import shard, work
from job_units import plain
if __name__ == "__main__":
    list(work(plain, {[f"wait {path}" for path in waiting]!r}, 2))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)]) as caller:
        try:
            until(lambda: all(path.exists() and path.read_text() for path in waiting))
            workers = [int(path.read_text()) for path in waiting]
            assert all(map(alive, workers))
        finally:
            caller.kill()
    until(lambda: not any(map(alive, workers)))


def until(condition):
    """Waits for what must come; nothing is said about when."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # A process that has ended and that nobody has asked about is none.
    stat = Path(f"/proc/{process}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# Shards


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 12])
def test_shards_are_disjoint_and_together_everything(parts):
    items = [f"case {n}" for n in range(10)]
    taken = [shard(items, f"{part}/{parts}") for part in range(1, parts + 1)]
    assert sorted(itertools.chain(*taken)) == sorted(items)
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
    assert taken[0] == items[::parts]


@pytest.mark.parametrize("which", ["0/4", "5/4", "a", "", "1", "1/0", "0/0", "-1/4", "1/4/2", "1.5/4", "1/ 4", "1/4\n"])
def test_what_is_no_shard(which):
    with pytest.raises(UsageError, match="is no shard; write i/n"):
        shard(range(10), which)
