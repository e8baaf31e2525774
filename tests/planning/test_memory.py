"""The memory of a training step, predicted, against real ones in processes of their own; and what the prediction must follow."""

import ctypes
import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from uxnet.devices import cpu_computes_bfloat16
from uxnet.machine import Load
from uxnet.networks.build import NETWORKS
from uxnet.planning import memory
from uxnet.planning.memory import Ledger, predicted_memory, step_seconds, traced_step
from uxnet.recipe import Network, Sampling, Stage, Training, load_recipe

SMALL = {"widths": [8, 16], "depths": [1, 1], "hidden": 32}


def stage(patch=(24, 24, 24), batch=2, name="uxnet", settings=SMALL, **training):
    return Stage(network=Network(name, settings), sampling=Sampling(patch=patch), training=Training(batch=batch, **training))


def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "plan_memory.py"
    spec = importlib.util.spec_from_file_location("plan_memory", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_memory"] = module  # the process that is spawned looks for it
    spec.loader.exec_module(module)
    return module


def glibc():
    try:
        return sys.platform == "linux" and bool(ctypes.CDLL("libc.so.6").gnu_get_libc_version)
    except (OSError, AttributeError):
        return False


@pytest.mark.skipif(not glibc(), reason="the heap that is predicted is glibc's")
@pytest.mark.parametrize(
    ("name", "classes", "precision"), [("hippocampus", 3, "float32"), ("nnunet", 4, "float32"), ("nnunet", 4, "bfloat16")]
)
def test_within_a_fifth_of_what_a_step_takes(name, classes, precision, monkeypatch):
    if precision == "bfloat16" and not cpu_computes_bfloat16():
        pytest.skip("this processor emulates bfloat16")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    one = load_recipe("hippocampus").stages[0]
    if name != "hippocampus":
        one = replace(one, network=Network(name, {"size": "narrow"}), sampling=replace(one.sampling, patch=(48, 48, 48)))
    predicted = predicted_memory(one, 1, classes, precision=precision)
    # The same steps take up to a seventh more in one process than in another, by how the heap falls to pieces: the least is what they need.
    found: list[int] = []
    while len(found) < 3 and not 0.8 < predicted / min(found, default=1) < 1.2:
        found.append(benchmark().measured(one, 1, classes, steps=3, precision=precision)[0])
    assert 0.8 < predicted / min(found) < 1.2, (predicted, found)


def test_a_ledger_counts_what_is_alive_and_the_most_of_each_size():
    ledger = Ledger()
    for size in (10, 10, 5):
        ledger.take(size)
    ledger.give(10)
    ledger.give(10)
    ledger.take(20)
    assert (ledger.now, ledger.peak, ledger.heap) == (25, 25, 45)


def test_it_follows_what_takes_memory():
    base = traced_step(stage(), 1, 3)
    assert traced_step(stage(), 1, 3).most == base.most  # nothing is left to chance
    assert traced_step(stage(batch=4), 1, 3).peak > 1.7 * base.peak
    assert traced_step(stage(patch=(48, 24, 24)), 1, 3).peak > 1.7 * base.peak
    assert traced_step(stage(batch=4, accumulate=2), 1, 3).peak < 1.2 * base.peak
    assert traced_step(stage(), 1, 30).peak > 1.2 * base.peak
    assert traced_step(stage(), 4, 3).peak > base.peak
    assert traced_step(stage(ema=0.9), 1, 3).now == base.now
    assert traced_step(stage(settings={**SMALL, "checkpointing": True}), 1, 3).peak < base.peak
    assert traced_step(stage(), 1, 3, "cpu", "bfloat16").peak < 0.8 * base.peak
    weights = sum(p.numel() * 4 for p in torch.nn.ModuleList([_network()]).parameters())
    assert traced_step(stage(ema=0.9), 1, 3).peak - base.peak == pytest.approx(weights, rel=0.05)


def _network():
    from uxnet.networks.build import build

    with torch.device("meta"):
        return build("uxnet", 1, 3, (24, 24, 24), SMALL)


def test_a_gpu_keeps_norms_in_float32():
    there = predicted_memory(stage(patch=(64, 64, 64)), 1, 3, "cuda", "bfloat16")
    ledgers = {device: traced_step(stage(patch=(64, 64, 64)), 1, 3, device, "bfloat16").peak for device in ("cpu", "cuda")}
    assert ledgers["cpu"] < ledgers["cuda"] < there


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_told_without_its_memory(name):
    settings = {} if name == "segresnet" else {"size": "narrow"}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert predicted_memory(stage((32, 32, 32), 1, name, settings), 1, 3) > 10_000_000
    assert torch.equal(torch.get_rng_state(), before)


def test_a_patch_that_no_machine_could_hold():
    assert predicted_memory(stage(patch=(1024, 1024, 1024), settings={}), 1, 5) > 1e12


def test_time_goes_with_the_arithmetic(monkeypatch):
    monkeypatch.setattr(memory, "_MOST", 2)
    monkeypatch.setattr(memory, "_LEAST", 2)
    one = step_seconds(stage(batch=1), 1, 3).seconds
    assert 0 < one < 60
    assert step_seconds(stage((1024, 1024, 1024), batch=1), 1, 3).seconds > 100 * one


def test_of_several_measurements_the_fastest_counts(monkeypatch):
    """The clock is read before and after each; the first warms up."""
    ticks = iter([0.0, 0.1, 0, 9, 0, 2, 0, 5])
    monkeypatch.setattr(memory, "time", SimpleNamespace(perf_counter=lambda: next(ticks), monotonic=lambda: math.inf))
    loads = iter([Load(0, 0, 0), Load(30, 10, 10)])
    monkeypatch.setattr(memory, "load", lambda: next(loads))
    found = step_seconds(stage((16, 16, 16), batch=3), 1, 3)
    assert found.seconds == pytest.approx(3 * 2)
    assert (found.measured, found.others, found.threads) == (3, 2.0, torch.get_num_threads())
