"""Whether this machine trains right, and in which precision it trains fastest.

Each layer of a network is held against float64 (`doctor/layers.py`), and whole training steps are timed, in every precision that the
device computes in and both memory layouts. What training would choose is then right or wrong, and the fastest or not.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import math
import platform
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uxnet
from uxnet.doctor.layers import Call, Check, Memory, Shape, autocast, check_layer, in_memory, layers_of
from uxnet.errors import DeviceError
from uxnet.events import Progress, Report, silent
from uxnet.inference.engines.cache import default_cache
from uxnet.inference.engines.quiet import quiet_openvino
from uxnet.machine import free_memory

# torch is imported where it is used: the command line does without.
if TYPE_CHECKING:
    import torch
    from torch import nn

WORTH = 0.95
"""Another precision is proposed where it takes less than this share of the time; less is noise."""


@dataclass(frozen=True)
class Way:
    """A precision in a memory layout: its checks, and a training step's time.

    seconds: median of a step.
    ratio: median of a step's time by that of float32 in training's layout in the same round.
    """

    precision: str
    memory: Memory
    checks: tuple[Check, ...]
    seconds: float
    ratio: float

    @property
    def wrong(self) -> list[Check]:
        """The layers that are wrong."""
        return [check for check in self.checks if not check.right]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "precision": self.precision,
            "memory": self.memory,
            "right": not self.wrong,
            "seconds": self.seconds,
            "ratio": self.ratio,
            "layers": [_check_dict(check) for check in self.checks],
        }


def _check_dict(check: Check) -> dict[str, Any]:
    # JSON knows no infinity.
    errors = {what: error if math.isfinite(error) else "not finite" for what, error in check.errors.items()}
    call = check.call
    return {
        "name": call.name,
        "layer": repr(call.module),
        "input": list(call.shape),
        "times": call.times,
        "right": check.right,
        "same_bits": check.same,
        "errors_by_tolerance": errors,
    }


@dataclass(frozen=True)
class Examined:
    """What was found about a network.

    shape: of a step's images, (N, C, I, J, K).
    asked: the precision that the recipe names, "auto" included.
    chosen: the one that training takes for it here.
    memory: the layout that training takes here.
    """

    title: str
    shape: Shape
    asked: str
    chosen: str
    memory: Memory
    ways: tuple[Way, ...]

    @property
    def way(self) -> Way:
        """The one that training takes."""
        return next(way for way in self.ways if (way.precision, way.memory) == (self.chosen, self.memory))

    @property
    def best(self) -> Way | None:
        """The fastest of the right ones, in the layout that training takes."""
        right = [way for way in self.ways if way.memory == self.memory and not way.wrong]
        return min(right, key=lambda way: way.ratio, default=None)

    @property
    def right(self) -> bool:
        """Whether what training takes is right."""
        return not self.way.wrong

    @property
    def sentence(self) -> str:
        """What training takes, whether that is right and the fastest, and what to do if not."""
        best, takes = (
            self.best,
            f'precision "{self.asked}" takes {self.chosen}' if self.asked != self.chosen else f"the recipe names {self.chosen}",
        )
        if best is None:
            return f"{takes}, which is wrong here, and so is everything else; install another version of torch"
        advice = f'set training.precision = "{best.precision}"'
        if not self.right:
            return f"{takes}, which is wrong here; {advice}"
        if best.precision != self.chosen and best.ratio < WORTH * self.way.ratio:
            return f"{takes}: right, but {best.precision} is right, too, and takes {best.ratio / self.way.ratio:.2f} of the time; {advice}"
        return f"{takes}: right, and the fastest precision here"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "network": self.title,
            "image": list(self.shape),
            "asked": self.asked,
            "chosen": self.chosen,
            "memory": self.memory,
            "right": self.right,
            "sentence": self.sentence,
            "ways": [way.to_dict() for way in self.ways],
        }


def examine(
    network: nn.Module,
    shape: Shape,
    *,
    title: str,
    asked: str = "auto",
    device: str = "auto",
    precisions: Sequence[str] = (),
    quick: bool = False,
    rounds: int = 3,
    report: Report = silent,
) -> Examined:
    """A network's layers against float64, and the time of its steps, in every way that this machine could train it.

    Args:
        network: fresh; it is copied.
        shape: of a step's images, (N, C, I, J, K).
        asked: the precision of the recipe.
        device: as for training.
        precisions: to examine beside those that the device computes in (`precisions_of`) and the one that training takes.
        quick: one layer of each kind, see `one_of_each`.
        rounds: that steps are timed in.

    Raises:
        DeviceError: if there is no such device, or it does not train in one of the precisions.
    """
    from uxnet.devices import choose_device, choose_precision

    there = choose_device(device)
    chosen = choose_precision(asked, there)
    memory = memory_of(there)
    named = [choose_precision(precision, there) for precision in precisions]
    tried = [p for p in ("float32", "bfloat16", "float16") if p in {*precisions_of(there), chosen, *named}]
    layouts = [memory, *(m for m in _LAYOUTS if m != memory and there.type != "mps")]
    ways = [(precision, layout) for layout in layouts for precision in tried]
    calls = layers_of(network, shape)
    checks = _checks(one_of_each(calls) if quick else calls, ways, there, title, report)
    seconds = time_steps(network, shape, ways, there, rounds, report, title)
    base = seconds[ways.index(("float32", memory))]

    def way(precision: str, layout: Memory, times: list[float]) -> Way:
        # A linear layer knows no layout.
        own = [c for c in checks if c.precision == precision and (c.memory == layout or c.call.linear)]
        ratio = statistics.median(t / b for t, b in zip(times, base, strict=True))
        return Way(precision, layout, tuple(own), statistics.median(times), ratio)

    return Examined(title, shape, asked, chosen, memory, tuple(way(*one, times) for one, times in zip(ways, seconds, strict=True)))


_LAYOUTS: tuple[Memory, ...] = ("channels last", "contiguous")


def precisions_of(device: torch.device) -> list[str]:
    """Those that the device computes in. Processors without bfloat16 instructions emulate it, at twenty times the time."""
    from uxnet.devices import choose_precision

    return list(dict.fromkeys(["float32", choose_precision("auto", device), *(["float16"] if device.type != "cpu" else [])]))


def memory_of(device: torch.device) -> Memory:
    """The layout in which training keeps kernels on the device."""
    import torch
    from torch import nn

    from uxnet.devices import in_fast_memory

    kernels: Any = in_fast_memory(nn.Conv3d(2, 2, 2), device)
    return "channels last" if kernels.weight.is_contiguous(memory_format=torch.channels_last_3d) else "contiguous"


def one_of_each(calls: Sequence[Call]) -> list[Call]:
    """Of the calls that differ in channels or grid alone the cheapest: one of each kind.

    Kinds differ in class, kernel, stride, padding, dilation, whether they are grouped or depthwise, and whether a side is smaller than
    the kernel.
    """
    found: dict[Any, Call] = {}
    for call in sorted(calls, key=lambda call: call.cost):
        settings = tuple(str(getattr(call.module, name, "")) for name in ("kernel_size", "stride", "padding", "dilation"))
        groups = getattr(call.module, "groups", 1)
        grouped = groups > 1, groups == getattr(call.module, "in_channels", 0)
        found.setdefault((type(call.module), settings, grouped, call.smaller_than_kernel), call)
    return [call for call in calls if call in found.values()]


def _checks(calls: Sequence[Call], ways: Sequence[tuple[str, Memory]], device: torch.device, title: str, report: Report) -> list[Check]:
    task, started, checks = f"{title}: layers", time.monotonic(), []
    # A layer takes some time however small it is.
    work = [50_000_000 + call.cost for call in calls]
    for number, call in enumerate(calls):
        done = sum(work[:number])
        left = (time.monotonic() - started) / max(done, 1) * (sum(work) - done)
        # The first layers wake libraries up and tell little.
        report(Progress(task, number, len(calls), {"seconds_left": left} if done > sum(work) / 10 else {}))
        own = [way for way in ways if way[1] == "contiguous"] if call.linear else ways
        own = own or [(precision, "contiguous") for precision, _ in ways]
        checks += check_layer(call, own, device)
    report(Progress(task, len(calls), len(calls)))
    return checks


def time_steps(
    network: nn.Module, shape: Shape, ways: Sequence[tuple[str, Memory]], device: torch.device, rounds: int, report: Report, title: str
) -> list[list[float]]:
    """Seconds of a training step, forwards and backwards, in each of the ways: a list a way, an entry a round.

    The ways take turns, so that whatever else the machine does meets them alike; a round before the first warms up.
    """
    import torch

    networks = {memory: in_memory(copy.deepcopy(network).to(device).train(), memory) for _, memory in ways}
    image = torch.randn(shape, device=device)
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(rounds + 1):
        for number, (precision, memory) in enumerate(ways):
            report(Progress(f"{title}: steps", turn * len(ways) + number, (rounds + 1) * len(ways)))
            started = time.perf_counter()
            with autocast(device, precision):
                outputs = networks[memory](image)
            sum(level.float().square().mean() for level in (outputs if isinstance(outputs, list) else [outputs])).backward()
            networks[memory].zero_grad(set_to_none=True)
            if device.type != "cpu":
                getattr(torch, device.type).synchronize()
            if turn:
                seconds[number].append(time.perf_counter() - started)
    report(Progress(f"{title}: steps", (rounds + 1) * len(ways), (rounds + 1) * len(ways)))
    return seconds


# ---- the machine


def machine(device: str = "auto") -> dict[str, Any]:
    """What computes here: versions, processor, memory, devices, and what is installed beside.

    Raises:
        DeviceError: if there is no such device.
    """
    import torch

    from uxnet.devices import choose_device

    cache = default_cache()
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "versions": {"uxnet": uxnet.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "openvino", "numpy")},
        "system": platform.platform(terse=True),
        "device": str(choose_device(device)),
        "processor": _processor(),
        "instructions": _instructions(),
        "threads": torch.get_num_threads(),
        "free_memory_gb": round(free_memory() / 1e9, 1),
        "gpus": gpus + (["mps"] if torch.backends.mps.is_available() else []),
        # torch.compile writes C++ on a CPU, and on CUDA what launches its kernels.
        "compiler": next((name for name in ("c++", "g++", "clang++", "cl") if shutil.which(name)), None),
        "extras": {name: importlib.util.find_spec(name) is not None for name in ("ray", "nncf", "tensorboard")},
        "cache": {"folder": str(cache), "free_gb": round(shutil.disk_usage(there).free / 1e9, 1)},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        return str(quiet_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME")).strip()
    except (DeviceError, RuntimeError):
        return platform.processor() or platform.machine()


def _instructions() -> list[str]:
    """Those that decide how fast layers are, as torch sees them; a torch that does not tell gives none."""
    import torch

    names = {"AVX2": "avx2", "AVX-512": "avx512", "VNNI": "vnni", "AVX-512 BF16": "avx512_bf16", "AMX": "amx_tile", "AMX FP16": "amx_fp16"}
    return [name for name, short in names.items() if getattr(torch.cpu, f"_is_{short}_supported", bool)()]
