"""OpenVINO, imported so that it calls nobody.

Importing openvino reports itself to its makers, unless its telemetry package is missing; it then takes a stub of its own. So that
package is made missing, in this process only: nothing is written to the user's home, and no setting of the user's is touched.
"""

from __future__ import annotations

import sys
from typing import Any

from uxnet.errors import DeviceError


def quiet_openvino() -> Any:
    """The module `openvino`.

    Raises:
        DeviceError: if it is not installed, or cannot be loaded on this system.
    """
    # None makes its import fail, as if it were not installed.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise DeviceError(f"openvino cannot be used here ({error}); `pip install openvino`, or use --engine torch") from error
    return openvino


def bfloat16_here() -> bool:
    """Whether the processor computes in bfloat16; without, OpenVINO would emulate it."""
    capabilities = quiet_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "BF16" in capabilities
