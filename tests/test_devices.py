"""What training sets on a device."""

import ctypes
import subprocess
import sys

import pytest
import torch

from uxnet import devices
from uxnet.devices import computing_with, keep_freed_memory

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")

TAKES_AND_FREES = """
import resource, sys, torch
from uxnet.training.engine import TrainingEngine
if sys.argv[1] == "engine":
    TrainingEngine("cpu", "float32")
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(1 << 20) for _ in range(20)]  # 4 MiB each
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(not GLIBC, reason="another C library than glibc")
def test_a_training_process_keeps_what_a_step_frees():
    def faults(how):
        done = subprocess.run([sys.executable, "-c", TAKES_AND_FREES, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    without = max(faults("nothing") for _ in range(3))
    if without < 2_000:  # of 20,480 pages: larger pages, or some small block above that holds all of it
        pytest.skip("nothing was given back this time")
    assert faults("engine") < without / 10


@pytest.mark.parametrize("environ", [{"MALLOC_ARENA_MAX": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"}])
def test_a_user_who_has_set_it_is_left_alone(environ):
    assert keep_freed_memory(environ) is False


def test_threads_are_no_more_than_usable_cores_and_as_they_were_afterwards(monkeypatch):
    torch.set_num_threads(3)
    for asked, cores, taken in ((0, 2, 2), (0, 8, 3), (5, 2, 5), (1, 8, 1)):
        monkeypatch.setattr(devices, "usable_cores", lambda cores=cores: cores)
        with computing_with(asked):
            assert torch.get_num_threads() == taken
        assert torch.get_num_threads() == 3
