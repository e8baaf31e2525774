"""What a machine gives a process: by its control groups, wherever in their tree it stands, and by what others do."""

import os
import subprocess
import sys
import time

import pytest

from uxnet import machine
from uxnet.machine import Load, free_cores, free_memory, held, load, most_held, others_cores, usable_cores

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it is read from /proc")


def made(root, groups, mounts, files):
    """A folder that looks like the root of a system, with the control groups of "this process"."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in groups))
    lines = [
        f"{n} 1 0:{n} {top} {where} rw,relatime - {kind} {kind} rw,{controllers}"
        for n, (top, where, kind, controllers) in enumerate(mounts)
    ]
    (root / "proc/self/mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + "".join(f"{line}\n" for line in lines))
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


TWO = [("/", "/sys/fs/cgroup", "cgroup2", "nsdelegate")]
ONE = [("/", "/sys/fs/cgroup/memory", "cgroup", "memory"), ("/", "/sys/fs/cgroup/cpu", "cgroup", "cpu,cpuacct")]
JOB = "system.slice/slurmstepd.scope/job_7/step_0"


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(machine, "bound_to", lambda: list(range(8)))


@pytest.mark.parametrize("where", [JOB, "system.slice/slurmstepd.scope/job_7", "system.slice", "."], ids=["own", "job", "slice", "root"])
def test_a_quota_anywhere_above_a_process_counts(where, eight, tmp_path):
    files = {f"{where}/cpu.max": "350000 100000\n", f"{JOB}/pids.max": "5"}
    assert usable_cores(made(tmp_path, [f"0::/{JOB}"], TWO, files)) == 3


def test_the_tightest_of_nested_limits_counts(eight, tmp_path):
    files = {
        f"{JOB}/cpu.max": "max 100000",
        "system.slice/cpu.max": "600000 100000",
        "system.slice/slurmstepd.scope/cpu.max": "20000 10000",
    }
    files |= {f"{JOB}/memory.max": "max", f"{JOB}/memory.current": "5000", f"{JOB}/memory.stat": "anon 5\n"}
    files |= {
        "system.slice/memory.max": "1000000",
        "system.slice/memory.current": "400000",
        "system.slice/memory.stat": "inactive_file 100000\n",
    }
    files |= {"memory.max": "9000000", "memory.current": "400000", "memory.stat": "inactive_file 100000\n"}
    root = made(tmp_path, ["1:name=systemd:/", f"0::/{JOB}"], TWO, files)
    assert (usable_cores(root), free_memory(root)) == (2, 700_000)
    (root / "sys/fs/cgroup/system.slice/memory.high").write_text("500000")
    assert free_memory(root) == 200_000
    (root / "sys/fs/cgroup/system.slice/memory.current").write_text("2000000")
    assert free_memory(root) == 0


def test_the_first_version_of_control_groups(eight, tmp_path):
    files = {"cpu/slurm/uid_1/job_7/cpu.cfs_quota_us": "-1", "cpu/slurm/uid_1/job_7/cpu.cfs_period_us": "100000"}
    files |= {"cpu/slurm/uid_1/cpu.cfs_quota_us": "250000", "cpu/slurm/uid_1/cpu.cfs_period_us": "100000"}
    files |= {"memory/slurm/uid_1/job_7/memory.limit_in_bytes": "1000000", "memory/slurm/uid_1/job_7/memory.usage_in_bytes": "900000"}
    files |= {"memory/slurm/uid_1/job_7/memory.stat": "inactive_file 1\ntotal_inactive_file 700000\nx_total_inactive_file 1\n"}
    files |= {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1", "memory/memory.stat": ""}
    root = made(tmp_path, ["4:memory:/slurm/uid_1/job_7", "2:cpu,cpuacct:/slurm/uid_1/job_7", "0::/"], ONE, files)
    assert (usable_cores(root), free_memory(root)) == (2, 800_000)


@pytest.mark.parametrize(
    ("path", "top", "where"),
    [("/docker/ab", "/docker/ab", "."), ("/docker/ab/sub", "/docker/ab", "sub"), ("/", "/", "."), ("/../cd", "/", ".")],
    ids=["container", "group of its own in a container", "namespace", "outside of a namespace"],
)  # fmt: skip
def test_a_container_shows_its_own_group_as_the_whole_tree(path, top, where, eight, tmp_path):
    files = {
        f"{where}/cpu.max": "200000 100000",
        f"{where}/memory.max": "1000",
        f"{where}/memory.current": "400",
        f"{where}/memory.stat": "",
    }
    root = made(tmp_path, [f"0::{path}"], [(top, "/sys/fs/cgroup", "cgroup2", "")], files)
    assert (usable_cores(root), free_memory(root)) == (2, 600)


@pytest.mark.parametrize("limit", ["", "max", "max 100000", "nonsense", "0 0", "-1 100000"])
def test_no_limit_or_none_that_can_be_read_is_none(limit, eight, tmp_path):
    files = {"cpu.max": limit, "memory.max": limit, "memory.current": "1", "memory.stat": ""}
    root = made(tmp_path, ["0::/"], TWO, files)
    assert usable_cores(root) == 8
    assert free_memory(root) > 10_000_000
    assert usable_cores(tmp_path / "nowhere") == 8


def test_less_than_a_core_is_one(eight, tmp_path):
    assert usable_cores(made(tmp_path, ["0::/"], TWO, {"cpu.max": "50000 100000"})) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes are not bound to cores here")
def test_cores_that_a_process_is_bound_to():
    mine = machine.bound_to()
    try:
        machine.bind_to(mine[:1])
        assert usable_cores() == 1
        machine.bind_to(())
        assert machine.bound_to() == mine[:1]
    finally:
        machine.bind_to(mine)


def test_what_others_take_and_leave(monkeypatch, eight):
    before = Load(busy=100.0, own=10.0, at=5.0)
    assert others_cores(before, Load(busy=140.0, own=30.0, at=15.0)) == 2.0
    assert free_cores(before, Load(busy=140.0, own=30.0, at=15.0)) == 6.0
    assert free_cores(before, Load(busy=110.0, own=30.0, at=15.0)) == 8.0  # clocks are not that exact
    assert free_cores(before, Load(busy=300.0, own=10.0, at=15.0)) == 0.0
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)  # of eight that others have five of
    assert free_cores(before, Load(busy=140.0, own=30.0, at=15.0)) == 3.0


def test_what_a_process_and_its_children_do_is_its_own():
    before = load()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    started = time.process_time()
    while time.process_time() - started < 0.1:
        pass
    after = load()
    assert after.own - before.own >= 0.1
    assert after.at > before.at


@LINUX
def test_the_most_that_was_held_is_at_least_what_is():
    assert most_held() >= 0.99 * held()
