"""The engine that every machine has: torch on a CPU, CUDA or MPS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uxnet.devices import choose_device, choose_precision, in_fast_memory
from uxnet.errors import DeviceError, ModelError
from uxnet.networks.build import build
from uxnet.recipe import Stage

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchEngine:
    """Computes windows with a torch network.

    Args:
        network: any module (N, C, I, J, K) -> (N, out, I, J, K); put into evaluation mode for each batch and left as it was.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "auto", "float32", "bfloat16" or "float16". "float32" is exact on CUDA, too: without TF32, which rounds to 10 bits.

    Raises:
        DeviceError: if the machine has no such device.
    """

    def __init__(self, network: nn.Module, device: str = "auto", precision: str = "float32") -> None:
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.network = in_fast_memory(network.to(self.device), self.device)

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, I, J, K) float32 -> logits (N, out_channels, I, J, K) float32.

        Raises:
            DeviceError: if the device has not the memory for it.
        """
        training = self.network.training
        self.network.eval()
        lower = self.precision in _TYPES
        context = torch.autocast(self.device.type, _TYPES[self.precision]) if lower else _without_tf32()
        try:
            with torch.inference_mode(), context:
                logits = self.network(torch.from_numpy(np.ascontiguousarray(batch)).to(self.device))
            result: NDArray[np.float32] = logits.float().cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise DeviceError(f"not enough memory on {self.device} for {len(batch)} windows of {batch.shape[2:]}: {error}") from error
        finally:
            self.network.train(training)
        return result


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """CUDA's convolutions and products in float32 proper; torch lets cuDNN take TF32 by default."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def set_threads(threads: int) -> None:
    """How many threads torch computes with, in this process."""
    torch.set_num_threads(threads)


def stage_network(stage: Stage, channels: int, classes: int) -> nn.Module:
    """The network of a recipe's stage with fresh weights, for scans of so many channels and labels of so many output channels.

    Raises:
        RecipeError: if there is no such network or its settings contradict each other.
    """
    settings = stage.network
    return build(settings.name, stage.in_channels(channels), stage.out_channels(classes), stage.sampling.patch, settings.settings)


def load_weights(network: nn.Module, weights: Mapping[str, NDArray[Any]], name: str) -> None:
    """Puts weights into a network; every name and shape must fit.

    Raises:
        ModelError: naming the first keys that are missing, unknown or of another shape.
    """
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [k for k in own.keys() & weights.keys() if tuple(own[k].shape) != weights[k].shape]
    for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", sorted(shapes))):
        if keys:
            raise ModelError(f"{name}: the weights do not fit the network: {len(keys)} {what}, the first is {keys[0]}")
    # safetensors hands out arrays that may not be written to; torch wants its own.
    network.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in weights.items()})
