import functools
import json
import os
import signal
from collections.abc import Iterator

import nibabel as nib
import numpy as np
import pytest

from uxnet.errors import UxnetError, VolumeError
from uxnet.geometry import Geometry
from uxnet.io import read_geometry
from uxnet.jobs import work
from uxnet.records import append_record, keep_records, read_records

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


# Jobs. Other processes find their functions by import, so the functions are uxnet's own and the standard library's.


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
