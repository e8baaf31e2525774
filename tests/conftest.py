"""Shared fixtures. Real data is third-party and lives outside the repository: `pytest --data DIR` says where."""

from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption("--data", default=None, help="folder with the real datasets (hippocampus, abdomen_ct, ...)")


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
    """The folder of real datasets; tests that need it are skipped where it is not given."""
    given = request.config.getoption("--data")
    if not given or not Path(given).is_dir():
        pytest.skip("real data not given: run pytest --data DIR")
    return Path(given)
