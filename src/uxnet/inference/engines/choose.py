"""Which engine computes a model: OpenVINO on a CPU, torch on CUDA and MPS, or what was asked for."""

from __future__ import annotations

import json
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from uxnet.errors import DeviceError, ModelError
from uxnet.events import Report, Warn, silent
from uxnet.inference.engines.cache import Cache, cache_name, default_cache
from uxnet.inference.engines.openvino import key, open_engine, this_machine
from uxnet.inference.engines.precision import Cautious
from uxnet.inference.engines.quiet import bfloat16_here
from uxnet.inference.memory import expect_windows
from uxnet.inference.settings import Settings
from uxnet.inference.stitch import Engine
from uxnet.model.file import Model

ENGINES = ("auto", "openvino", "torch")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
# What OpenVINO computes where there is bfloat16, once it was checked, and what it is checked against and computes where there is none.
_CHECKED = {"auto": ("bfloat16", "float32"), "int8": ("int8 and bfloat16", "int8")}


def load_engines(model: Model, settings: Settings, report: Report = silent) -> list[Engine]:
    """The engines that compute a model's stages.

    torch is imported only where it is needed: for its own engine, to convert a network for the first time, and to look for CUDA or MPS
    where there is a sign of them.

    Raises:
        DeviceError: if the machine does not have what was asked for.
        ModelError: if the file is damaged, its weights do not fit its network, or it has no such variant.
        MemoryLimitError: if its windows alone take more memory than there is.
    """
    for what, value, known in (("engine", settings.engine, ENGINES), ("precision", settings.precision, PRECISIONS)):
        if value not in known:
            raise DeviceError(f"{value!r} is no {what}; write one of {', '.join(known)}")
    expect_windows(model, settings.memory_limit)
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and (settings.engine == "openvino" or not _accelerator()))
    if settings.engine == "torch" or not on_cpu:
        if settings.engine == "openvino":
            raise DeviceError(f"the engine openvino computes on CPUs, not on {settings.device}; choose the device cpu or the engine torch")
        if settings.precision == "int8":
            raise DeviceError("int8 is computed by the engine openvino on CPUs; choose the device cpu, or another precision")
        return [_torch_engine(model, number, settings, report) for number in range(len(model.recipe.stages))]
    if settings.precision == "float16":
        raise DeviceError("float16 is not supported on CPUs; use bfloat16, float32 or auto")
    if settings.precision == "bfloat16" and not bfloat16_here():
        raise DeviceError(
            "this processor does not compute in bfloat16; choose the precision float32 or auto, or the engine torch to emulate it"
        )
    try:
        return [_openvino_engine(model, number, settings, report) for number in range(len(model.recipe.stages))]
    except (DeviceError, ModelError) as error:
        if settings.engine == "openvino" or settings.precision == "int8":
            raise
        report(Warn(f"{model.path}: computed by torch, which is slower, since OpenVINO cannot ({error})"))
        return [_torch_engine(model, number, settings, report) for number in range(len(model.recipe.stages))]


def _openvino_engine(model: Model, stage: int, settings: Settings, report: Report) -> Engine:
    cache = Cache(settings.cache or default_cache(), report)

    def opened(precision: str) -> Engine:
        return open_engine(model, stage, precision, threads=settings.cores, cache=cache)

    if settings.precision not in _CHECKED:
        return opened(settings.precision)
    lower, exact = _CHECKED[settings.precision]
    if not bfloat16_here():
        return opened(exact)
    # Homes are shared by machines whose processors compute bfloat16 differently.
    name = cache_name(model.recipe.name, key(model, stage, lower, "self-check", this_machine()), "json")
    kept = cache.read(name)
    return Cautious(
        opened(lower),
        lambda: opened(exact),
        model.labels,
        known=None if kept is None else float(json.loads(kept)["differ"]),
        keep=lambda share: cache.write(name, json.dumps({"differ": share}).encode()),
        guided=model.recipe.stages[stage].prior is not None,
        report=report,
    )


def _torch_engine(model: Model, stage: int, settings: Settings, report: Report) -> Engine:
    from uxnet.inference.engines.torch import TorchEngine, set_threads, trained_network

    if settings.threads:
        set_threads(settings.threads)

    def opened(precision: str) -> TorchEngine:
        return TorchEngine(trained_network(model, stage), settings.device, precision)

    engine = opened(settings.precision)
    if settings.precision == "auto" and engine.precision != "float32":
        guided = model.recipe.stages[stage].prior is not None
        return Cautious(engine, lambda: opened("float32"), model.labels, guided=guided, report=report)
    return engine


def _accelerator() -> bool:
    """Whether torch finds CUDA or MPS; it is asked only where something speaks for one, since importing it takes seconds."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    # A container may be given any one of a machine's GPUs; AMD's are CUDA devices to torch, too.
    given = any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists() or Path("/dev/kfd").exists() or sys.platform == "win32"
    if not (apple or given) or find_spec("torch") is None:
        return False
    from uxnet.devices import choose_device

    return choose_device("auto").type != "cpu"
