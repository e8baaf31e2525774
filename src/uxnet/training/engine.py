"""Devices and precision for training, through Lightning Fabric: the one file that knows it."""

from __future__ import annotations

import math
import warnings
from typing import cast

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from uxnet.devices import choose_device, choose_precision, in_fast_memory

_FABRIC_NAMES = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


class TrainingEngine:
    """Runs a network forwards and backwards on a device in a precision.

    Raises:
        DeviceError: if this machine has no such device or the precision does not suit it.
    """

    def __init__(self, device: str = "auto", precision: str = "auto") -> None:
        chosen = choose_device(device)
        self.precision = choose_precision(precision, chosen)
        devices = 1 if chosen.type == "cpu" else [chosen.index or 0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Fabric's advice on settings that are made here on purpose
            self.fabric = Fabric(accelerator=chosen.type, devices=devices, precision=_FABRIC_NAMES[self.precision])  # type: ignore[arg-type]
        self.device = self.fabric.device

    def setup(self, network: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Both, ready to run: on the device, in channels-last memory where that is faster."""
        wrapped, wrapped_optimiser = self.fabric.setup(in_fast_memory(network, self.device), optimiser)
        return cast(nn.Module, wrapped), cast(Optimizer, wrapped_optimiser)

    def gradient_norm(self, network: nn.Module, optimiser: Optimizer, most: float) -> float:
        """The norm of the whole gradient, after unscaling; the gradient is then shortened to `most` where it is longer (0: never)."""
        norm = self.fabric.clip_gradients(network, optimiser, max_norm=most or math.inf, error_if_nonfinite=False)
        return float(cast(Tensor, norm))

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled (float16): the scaler must then see every step, and skips those that are not finite itself."""
        return self.precision == "float16"

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device."""
        return tensor.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, scaled where the precision needs it."""
        self.fabric.backward(loss)
