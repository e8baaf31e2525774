"""The engine that every machine has: torch on a CPU, CUDA or MPS."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uxnet.devices import choose_device, choose_precision, first_sentence, in_fast_memory, lacks_memory
from uxnet.errors import DeviceError, ModelError
from uxnet.model import Model, read_weights
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
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            windows = f"{len(batch)} windows" if len(batch) > 1 else "a window"
            window = "x".join(map(str, batch.shape[2:]))
            raise DeviceError(f"{self.device} has not the memory for {windows} of {window} voxels ({first_sentence(error)})") from error
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


def trained_network(model: Model, stage: int) -> nn.Module:
    """The network of a model's stage, with its weights; every name and shape must fit.

    Raises:
        ModelError: if the weights are damaged or there is no such network; or naming the first that is missing, unknown or of another
            shape.
        RecipeError: if the recipe's settings contradict each other.
    """
    weights, settings = read_weights(model, stage), model.recipe.stages[stage]
    build_one = partial(stage_network, settings, len(model.channels), model.labels.out_channels)
    try:
        # Without memory at first: weights are no larger than their file, but the settings in it may ask for a network of any size.
        with torch.device("meta"):
            own = build_one().state_dict()
    except (RuntimeError, OverflowError) as error:
        raise ModelError(f"{model.path}: the network that its recipe asks for cannot be built ({error})") from error
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [k for k in own.keys() & weights.keys() if tuple(own[k].shape) != weights[k].shape]
    for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", sorted(shapes))):
        if keys:
            raise ModelError(f"{model.path}: the weights do not fit the network: {len(keys)} {what}, the first is {keys[0]}")
    network = build_one()
    # safetensors hands out arrays that may not be written to; torch wants its own.
    network.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in weights.items()})
    return network
