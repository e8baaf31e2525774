"""Files that are whole or not there, and folders that are in one hand at a time."""

import os
import re
import subprocess
import sys
import time
from typing import Annotated

import pytest
from msgspec import Meta, Struct

from uxnet.errors import CheckpointError, DatasetError, UxnetError
from uxnet.io import alone, atomic, claimed, clear_parts, read_json, write_json
from uxnet.io import parts as parts_module
from uxnet.io.checked import as_kind, read_as
from uxnet.io.records import append_record, keep_records, read_records
from uxnet.io.schemas import Number, Whole

TAKEN = CheckpointError("taken")


def test_what_someone_holds_is_refused_until_they_let_go(tmp_path):
    lock = tmp_path / "new" / "lock"
    with alone(lock, TAKEN):
        with pytest.raises(CheckpointError, match="taken"), alone(lock, TAKEN):
            pass
        with alone(lock.with_name("other"), TAKEN):
            pass
    with pytest.raises(UxnetError, match="own"), alone(lock, TAKEN):
        raise UxnetError("own")
    with alone(lock, TAKEN):
        pass


@pytest.mark.parametrize("depth", [100, 100_000])
def test_json_that_is_nested_too_deeply_is_refused_by_name(tmp_path, depth):
    path = tmp_path / "deep.json"
    path.write_text('{"a": ' + "[" * depth + "]" * depth + "}")
    with pytest.raises(DatasetError, match=r"deep\.json: .*nested more than 64 levels deep"):
        read_json(path, DatasetError)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1' + "0" * 400 + "}", "a whole number of 401 digits"),
        ('{"a": 1' + "0" * 100_000 + "}", "a whole number of 100001 digits"),
        ('{"liver": 1, "liver": 2}', "two different values under the key 'liver'"),
        ('{"a": {"b": [1], "b": [true]}}', "two different values under the key 'b'"),
        ("[]", "a JSON object {...} was expected, not list"),
        ('{"a": "\udcff"}', "utf-8"),
        ('{"a": 1', "cannot be read as JSON"),
    ],
)
def test_json_that_is_not_what_it_seems_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "odd.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=r"odd\.json: ") as found:
        read_json(path, DatasetError)
    assert said in str(found.value)


def test_json_may_have_a_byte_order_mark_and_say_a_thing_twice(tmp_path):
    path = tmp_path / "same.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"a": [1, null], "a": [1, null]}')
    assert read_json(path) == {"a": [1, None]}


class Inner(Struct):
    whole: Whole
    number: Number | None = None
    more: dict[str, list[int]] = {}


class Outer(Struct):
    rows: Annotated[list[Inner], Meta(min_length=1)]
    table: dict[str, Inner] = {}


INNER = {"whole": 1}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"rows": [INNER], "unknown": []}, ""),
        ({}, "rows is missing"),
        ([], "it: expected an object {...}, got a list"),
        ({"rows": []}, "rows: expected a list that is not empty"),
        ({"rows": [INNER, {}]}, "rows[1].whole is missing"),
        ({"rows": [INNER, {"whole": "2"}]}, "rows[1].whole: expected a whole number, got text"),
        ({"rows": [{"whole": True}]}, "rows[0].whole: expected a whole number, got true or false"),
        ({"rows": [{"whole": 1.0}]}, "rows[0].whole: expected a whole number, got a number"),
        ({"rows": [{"whole": 2**63}]}, "rows[0].whole: expected a whole number of at most 9223372036854775807, got 9223372036854775808"),
        ({"rows": [{"whole": 1, "number": 10**400}]}, "rows[0].number: expected a finite number"),
        ({"rows": [{"whole": 1, "number": float("nan")}]}, "rows[0].number: expected a finite number"),
        ({"rows": [{"whole": 1, "number": float("inf")}]}, "rows[0].number: expected a finite number"),
        ({"rows": [{"whole": 1, "number": []}]}, "rows[0].number: expected a number or null, got a list"),
        (
            {"rows": [INNER], "table": {"a": INNER, "the liver": {"whole": None}}},
            "table['the liver'].whole: expected a whole number, got null",
        ),
        (
            {"rows": [INNER], "table": {"a": INNER, "b": {"whole": 1, "more": {"x": [1], "y": [1, None]}}}},
            "table.b.more.y[1]: expected a whole number, got null",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(value, said):
    if not said:
        assert as_kind(value, Outer).rows[0].whole == 1
        return
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        as_kind(value, Outer)


def test_a_file_that_does_not_fit_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "some.json"
    path.write_text('{"rows": [{"whole": null}]}')
    with pytest.raises(DatasetError, match=r"some\.json: rows\[0\]\.whole: expected a whole number, got null; burn it$"):
        read_as(path, Outer, DatasetError, "burn it")


def test_a_process_that_dies_lets_go(tmp_path):
    code = (
        "import os, sys, signal; from pathlib import Path; from uxnet.errors import UxnetError; from uxnet.io import alone\n"
        "with alone(Path(sys.argv[1]), UxnetError('taken')):\n    print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointError), alone(tmp_path / "lock", TAKEN):
            pass
    finally:
        other.kill()
        other.communicate()
    with alone(tmp_path / "lock", TAKEN):
        pass


# ---- what those leave who die


KILLED = """
import os, signal, sys
from pathlib import Path
from uxnet.io import atomic, claimed
with claimed(Path(sys.argv[1]) / f".uxnet-{'0' * 16}.lock"), atomic(Path(sys.argv[1]) / "x.nii.gz") as part:
    part.write_bytes(b"half")
    print(part, flush=True)
    THEN
"""


def killed(folder):
    """A process that was killed while it wrote into a folder; the path of what it wrote."""
    code = KILLED.replace("THEN", "os.kill(os.getpid(), signal.SIGKILL)")
    return subprocess.run([sys.executable, "-c", code, str(folder)], check=False, capture_output=True, text=True).stdout.strip()


def test_who_writes_next_removes_what_the_dead_left_and_nothing_else(tmp_path):
    left = killed(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    own = tmp_path / ".uxnet-notes.part.txt"
    own.write_text("of somebody's")
    with atomic(tmp_path / "living.json") as living:
        assert not os.path.exists(left)
        write_json(tmp_path / "y.json", {})
        assert living.exists()
        living.write_text("{}")
    assert {path.name for path in tmp_path.iterdir()} == {"living.json", "y.json", own.name}


def test_what_another_process_writes_is_left(tmp_path):
    code = KILLED.replace("THEN", "sys.stdin.read()")
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        part = other.stdout.readline().strip()
        before = {path.name for path in tmp_path.iterdir()}
        clear_parts(tmp_path)
        with claimed(tmp_path / f".uxnet-{'0' * 16}.lock") as ours:
            assert not ours
        assert {path.name for path in tmp_path.iterdir()} == before
        assert os.path.basename(part) in before
        other.stdin.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii.gz"]


@pytest.mark.parametrize("locks", [True, False])
def test_what_another_machine_writes_is_left_for_a_day(tmp_path, monkeypatch, locks):
    """Its locks may not be seen here; and where there are no locks, this machine's are as little."""
    with monkeypatch.context() as there:
        if locks:
            there.setattr(parts_module, "_machine", lambda: "0" * 8)
        left = parts_module.part_path(tmp_path, "1" * 16, ".json")
        left.write_text("half")
    if not locks:
        monkeypatch.setattr(parts_module, "lock", lambda *_: None)
    clear_parts(tmp_path)
    assert left.exists()
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    clear_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_waits_under_a_lock_is_left_though_nobody_writes_it(tmp_path):
    waiting = parts_module.part_path(tmp_path, "2" * 16, ".nii.gz", "probs")
    waiting.write_bytes(b"whole")
    with claimed(parts_module.lock_path(tmp_path, "2" * 16)) as ours:
        assert ours
        clear_parts(tmp_path)
        assert waiting.exists()
    clear_parts(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_file_may_be_as_long_as_the_disk_allows(tmp_path):
    write_json(tmp_path / f"{'x' * 250}.json", {})
    with pytest.raises(OSError, match="too long") as raised:
        write_json(tmp_path / f"{'x' * 251}.json", {})
    assert "xxx.json" in raised.value.filename
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_what_is_no_text_in_a_file_name_is_read_back_as_it_was(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "x.json", {"name": name, "é": "é"})
    append_record(tmp_path / "x.jsonl", {"name": name})
    keep_records(tmp_path / "x.jsonl", lambda record: True)
    assert read_json(tmp_path / "x.json") == {"name": name, "é": "é"}
    assert read_records(tmp_path / "x.jsonl") == [{"name": name}]
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="other locks there")
def test_processes_that_record_into_one_file_do_not_write_into_each_others_lines(tmp_path):
    code = "import sys; from pathlib import Path; from uxnet.io.records import append_record\n"
    code += "for n in range(50): append_record(Path(sys.argv[1]), {'who': sys.argv[2] * 20_000, 'n': n})"
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.jsonl"), who]) for who in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert len(read_records(tmp_path / "x.jsonl")) == 100
