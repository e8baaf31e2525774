"""Damaged files of every kind are accepted, or refused by an error of the package's own: a short run of benchmarks/fuzz.py."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def fuzz():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("fuzz")
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(("part", "cases"), [("nifti", 50), ("models", 30), ("recipes", 50), ("json", 100)])
def test_damaged_files_are_refused_by_name_or_read(fuzz, tmp_path, part, cases):
    found = list(fuzz.run_part(part, range(cases), 0, tmp_path))
    assert len(found) == cases
    # How long a case takes on a busy machine is for the benchmark to say.
    assert [case for case in found if case.end == "crashed"] == []
    assert {case.end for case in found} >= {"accepted", "refused"}
