"""Units on a Ray cluster: a local one, begun once for all tests here but the last."""

import functools
import os
import subprocess
import sys

import job_units
import pytest
from job_units import count, plain, unit, unmakeable

from uxnet.errors import UxnetError
from uxnet.events import Note, Progress
from uxnet.jobs import Cluster, work

ray = pytest.importorskip("ray", reason="Ray is not installed; pip install 'uxnet[ray]'")

ONE = Cluster("local")


def test_where_there_is_no_cluster():
    with pytest.raises(UxnetError, match=r"no Ray cluster .*127\.0\.0\.1:1"):
        list(work(plain, [1], 1, start=functools.partial(count, "."), cluster=Cluster("127.0.0.1:1")))


def test_where_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UxnetError, match=r"pip install 'uxnet\[ray\]'"):
        list(work(unit, [1], 1, start=unmakeable, cluster=ONE))


@pytest.fixture(scope="module")
def cluster():
    """Two places, whatever the machine has."""
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    # The workers have another search path than pytest.
    ray.cloudpickle.register_pickle_by_value(job_units)
    try:
        yield ONE
        assert ray.is_initialized()  # a connection that was there is left
    finally:
        ray.cloudpickle.unregister_pickle_by_value(job_units)
        ray.shutdown()
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]


def test_a_worker_that_is_killed_is_replaced_and_its_unit_done(cluster, tmp_path):
    (tmp_path / "states").mkdir()
    items = [*"abc", f"die-once {tmp_path / 'mark'}", "bad luck", *"de"]
    heard = []
    start = functools.partial(count, tmp_path / "states")
    finished = {f.item: f for f in work(unit, items, 2, start=start, report=heard.append, abreast=2, cluster=cluster)}
    assert set(finished) == set(items)
    assert {i for i, f in finished.items() if f.error} == {"bad luck"}
    assert finished[items[3]].result[1] == "survived"
    assert all(finished[c].result[1] == c for c in "abcde")
    pids = {path.name.split(".")[1] for path in (tmp_path / "states").iterdir()}
    assert len(pids) >= 2  # the one that died, and another
    assert str(os.getpid()) not in pids
    assert not [e for e in heard if isinstance(e, Progress)]
    assert {e.message for e in heard if isinstance(e, Note)} >= {f"doing {c}" for c in "abcde"}


def test_a_unit_that_always_kills_is_an_error_and_more_workers_than_places_do_not_wait(cluster, tmp_path):
    finished = {f.item: f for f in work(unit, ["a", "die", "b", "c"], 4, start=functools.partial(count, tmp_path), cluster=cluster)}
    assert {i for i, f in finished.items() if f.error} == {"die"}
    assert "died twice" in str(finished["die"].error)


def test_defects_are_raised(cluster, tmp_path):
    with pytest.raises(KeyError) as raised:
        list(work(unit, ["a", "defect x"], 2, start=functools.partial(count, tmp_path), cluster=cluster))
    assert "In a worker process:" in raised.value.__notes__[0]
    with pytest.raises(UxnetError, match="no state can be made"):
        list(work(unit, ["a"], 0, start=unmakeable, cluster=cluster))


def test_a_cluster_of_its_own_is_begun_quietly_and_ended(tmp_path):
    """From a process of its own, and with functions of its main script, which the workers cannot import."""
    script = tmp_path / "script.py"
    script.write_text("""
import os, sys
from uxnet.jobs import Cluster, work

def start(report):
    return os.getpid()

def unit(state, item, report):
    # The processes that might report to Ray's makers have inherited this.
    return state, os.environ.get("RAY_USAGE_STATS_ENABLED"), item

finished = [f.result for f in work(unit, [1, 2], 0, start=start, cluster=Cluster("local", cpus=1000))]
import ray
assert not ray.is_initialized()
assert "RAY_USAGE_STATS_ENABLED" not in os.environ
assert sorted(item for _, _, item in finished) == [1, 2]
assert all(pid != os.getpid() and usage == "0" for pid, usage, _ in finished), finished
""")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr == ""
