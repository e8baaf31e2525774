"""Files that are whole or not there, and folders that are in one hand at a time."""

import os
import subprocess
import sys
import time

import pytest

from uxnet.errors import CheckpointError, DatasetError, UxnetError
from uxnet.io import alone, atomic, claimed, clear_parts, misfit, read_json, write_json
from uxnet.io import parts as parts_module

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
    ("value", "form", "said"),
    [
        ({"a": 1, "more": {}}, {"a": int, "b?": str}, ""),
        ({"a": 1, "b": 2}, {"a": int, "b?": str}, "b should be text, and is a whole number"),
        ({"a": {}}, {"a": {"b": int}}, "a.b is missing"),
        ([[1.5, 2], []], [[float]], ""),
        ([[1.5, "2"]], [[float]], "[0][1] should be a number, and is text"),
        (10**400, float, "it should be a number, and is a whole number"),
        (True, int, "it should be a whole number, and is true or false"),
        ({"x": None, "y": 1}, {str: (None, int)}, ""),
        ({"x": []}, {str: (None, int)}, "['x'] should be a whole number, and is a list [...]"),
        (None, {}, "it should be an object {...}, and is null"),
        ({"a": [None, "b"]}, {"a": object}, ""),
    ],
)
def test_what_has_another_form_is_named_with_its_place(value, form, said):
    assert misfit(value, form) == said


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
        monkeypatch.setattr(parts_module, "_locked", lambda *_: None)
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
