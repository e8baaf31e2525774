"""Files that are whole or not there, and folders that are in one hand at a time."""

import subprocess
import sys

import pytest

from uxnet.errors import CheckpointError, UxnetError
from uxnet.io import alone

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
