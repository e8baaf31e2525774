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
from uxnet.errors import DeviceError, ModelError, RecipeError
from uxnet.model.file import Model, read_weights
from uxnet.networks.blocks import Triple, padded_sides
from uxnet.networks.build import build
from uxnet.networks.limits import LARGEST, Size
from uxnet.recipe import Stage
from uxnet.recipe.limits import check_patch

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
            DeviceError: if the device has not the memory for it, or the network does not take such windows.
        """
        training = self.network.training
        self.network.eval()
        lower = self.precision in _TYPES
        context = torch.autocast(self.device.type, _TYPES[self.precision]) if lower else _without_tf32()
        try:
            with torch.inference_mode(), context:
                logits = self.network(torch.from_numpy(np.ascontiguousarray(batch)).to(self.device))
            result: NDArray[np.float32] = logits.float().cpu().numpy()
        except (RuntimeError, MemoryError, ValueError) as error:  # also of shapes that the network does not take
            windows = f"{len(batch)} windows" if len(batch) > 1 else "a window"
            window = "x".join(map(str, batch.shape[2:]))
            lacks = "has not the memory for" if lacks_memory(error) else "could not compute"
            raise DeviceError(f"{self.device} {lacks} {windows} of {window} voxels ({first_sentence(error)})") from error
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


def stage_network(stage: Stage, channels: int, classes: int, most: Size = LARGEST) -> nn.Module:
    """The network of a recipe's stage with fresh weights, for scans of so many channels and labels of so many output channels.

    Args:
        most: how large it may become.

    Raises:
        RecipeError: if there is no such network, its settings contradict each other, or it does not take the stage's windows.
    """
    settings, inputs, outputs = stage.network, stage.in_channels(channels), stage.out_channels(classes)
    network = build(settings.name, inputs, outputs, stage.sampling.patch, settings.settings, most=most)
    tied: Triple | None = getattr(network, "fixed_patch", None)
    if tied is not None and stage.window != tied:
        raise RecipeError(
            f"inference.patch: {settings.name} is tied to the patches it is trained with, {list(tied)}, and takes no windows of "
            f"{list(stage.window)}; leave inference.patch empty"
        )
    # Levels that halve again and again pad a small window to a large one.
    padded = padded_sides(stage.window, getattr(network, "total_stride", (1, 1, 1)), alone=True)
    check_patch(padded, "inference.patch, padded to whole strides")
    return network


def trained_network(model: Model, stage: int) -> nn.Module:
    """The network of a model's stage, with its weights; every name and shape must fit.

    Raises:
        ModelError: if the weights are damaged, no network can be built by the settings, or naming the first weight that is missing,
            unknown or of another shape.
    """
    weights, settings = read_weights(model, stage), model.recipe.stages[stage]
    # Weights are no larger than their file, but the settings in it may ask for a network of any size. Twice theirs is room to say what
    # a network that is a little another one lacks.
    most = Size(2 * len(weights) + 16, 2 * sum(array.size for array in weights.values()) + 2**20)
    build_one = partial(stage_network, settings, len(model.channels), model.labels.out_channels, most)
    try:
        with torch.device("meta"):
            own = build_one().state_dict()
    except RecipeError as error:
        raise ModelError(f"{model.path}: the weights do not fit the network that its recipe asks for: {error}") from error
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    shapes = [k for k in own.keys() & weights.keys() if tuple(own[k].shape) != weights[k].shape]
    for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", sorted(shapes))):
        if keys:
            raise ModelError(f"{model.path}: the weights do not fit the network: {len(keys)} {what}, the first is {keys[0]}")
    network = build_one()
    # safetensors hands out arrays that may not be written to; torch wants its own.
    network.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in weights.items()})
    return network
