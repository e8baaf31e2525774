"""Files that are whole or not there, and folders that are in one hand at a time."""

import subprocess
import sys

import pytest

from uxnet.errors import CheckpointError, DatasetError, UxnetError
from uxnet.io import alone, misfit, read_json

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
