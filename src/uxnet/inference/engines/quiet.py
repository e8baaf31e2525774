"""OpenVINO, imported and used so that it calls nobody.

Importing openvino reports itself to its makers, and so does converting a network, unless its telemetry package is missing; it then takes
a stub of its own. So that package is missing while openvino is imported, and the stub stands in its place while a network is converted
in a process that had imported openvino before. The process's modules are then as they were: nothing is written to the user's home, no
setting of the user's is touched, and other libraries find the package where it is.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from uxnet.errors import DeviceError

_PACKAGE = "openvino_telemetry"
_REPORTING = ("openvino.tools.ovc.convert_impl", "openvino.tools.ovc.telemetry_utils", "openvino.tools.ovc.utils")


def quiet_openvino() -> Any:
    """The module `openvino`.

    Raises:
        DeviceError: if it is not installed, or cannot be loaded on this system.
    """
    try:
        with contextlib.nullcontext() if "openvino" in sys.modules else without_telemetry():
            import openvino
    except ImportError as error:
        raise DeviceError(f"openvino cannot be used here ({error}); `pip install openvino`, or choose the engine torch") from error
    return openvino


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Modules that are imported in the block do not find the telemetry package, as if it were not installed."""
    missing = object()
    before: Any = sys.modules.get(_PACKAGE, missing)
    sys.modules[_PACKAGE] = None  # type: ignore[assignment]  # makes its import fail
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[_PACKAGE]
        else:
            sys.modules[_PACKAGE] = before


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """What OpenVINO converts in the block is reported to nobody, whoever imported it."""
    stub = importlib.import_module("openvino.tools.ovc.telemetry_stub")
    reporting = [sys.modules[name] for name in _REPORTING if hasattr(sys.modules.get(name), "tm")]
    before = [vars(module)["tm"] for module in reporting]
    for module in reporting:
        vars(module)["tm"] = stub
    try:
        yield
    finally:
        for module, own in zip(reporting, before, strict=True):
            vars(module)["tm"] = own


def bfloat16_here() -> bool:
    """Whether the processor computes in bfloat16; without, OpenVINO would emulate it."""
    capabilities = quiet_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities
