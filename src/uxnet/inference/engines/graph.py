"""From a torch network to an OpenVINO graph, and what is rewritten in it because it is faster there.

Both rewritings are exact in exact arithmetic:

- A group norm with one channel a group is a normalisation over the voxels of each channel. Said so (MVN over the spatial axes), it stays
  in the memory layout in which convolutions are fast; as a group norm it is reshaped, and each time the layout is changed twice.
- A decoder's block convolves [up(x), skip], where up is a transposed convolution with stride 2 and kernel 2. A convolution is linear, so
  conv([up(x), skip]) = conv_a(up(x)) + conv_b(skip), and conv_a of up is one transposed convolution with kernel 4 (1 for 1x1x1: kernel
  2), stride 2. It has 8 taps to each voxel instead of 27, and neither up(x) nor the concatenation is ever made.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from uxnet.errors import ModelError
from uxnet.geometry import Shape
from uxnet.inference.engines.quiet import quiet_openvino, unreported

_TRACED = 64**3  # voxels of a window up to which running the network once is quicker than deriving what it would do


def to_openvino(network: nn.Module, in_channels: int, window: Shape) -> Any:
    """The network as an `openvino.Model`: (1, in_channels, *window) float32 -> logits (1, out_channels, *window) float32.

    Args:
        network: with its weights, on the CPU in contiguous memory; it is put into evaluation mode and left so.
        in_channels: of a window.
        window: its sides.

    Raises:
        ModelError: if OpenVINO cannot express the network.
    """
    openvino = quiet_openvino()
    example = torch.zeros(1, in_channels, *window)
    network = network.eval().requires_grad_(False)
    try:
        with torch.no_grad(), warnings.catch_warnings(), unreported():
            warnings.simplefilter("ignore")  # of tracing: that sides become constants, which is what is wanted
            if math.prod(window) <= _TRACED:
                graph = openvino.convert_model(_traced(network, example), example_input=example)
            else:
                graph = openvino.convert_model(torch.export.export(network, (example,), strict=False))
        graph.reshape([1, in_channels, *window])
    except Exception as error:  # torch and OpenVINO raise all kinds; none of them is the caller's
        raise ModelError(f"{type(network).__name__} cannot be converted for OpenVINO ({error}); choose the engine torch") from error
    _norms_without_reshapes(graph)
    _upsampling_into_convolutions(graph)
    graph.validate_nodes_and_infer_types()
    return graph


def _traced(network: nn.Module, example: torch.Tensor) -> Any:
    return torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]


def _norms_without_reshapes(graph: Any) -> None:
    from openvino import opset13 as op

    for node in [node for node in graph.get_ops() if node.get_type_name() == "GroupNormalization"]:
        data, scale, shift = (node.input_value(n) for n in range(3))
        shape = data.get_partial_shape()
        channels, rank = shape[1].get_length(), len(shape)
        settings = node.get_attributes()
        if settings["num_groups"] != channels:
            continue
        normalised = op.mvn(data, op.constant(np.arange(2, rank)), True, settings["epsilon"], "inside_sqrt")
        a_channel = op.constant([1, channels] + [1] * (rank - 2))
        result = op.add(op.multiply(normalised, op.reshape(scale, a_channel, False)), op.reshape(shift, a_channel, False))
        result.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(result.output(0))


def _upsampling_into_convolutions(graph: Any) -> None:
    from openvino import opset13 as op

    for node in [node for node in graph.get_ordered_ops() if node.get_type_name() == "Convolution"]:
        found = _upsampled_and_skip(node)
        if found is None:
            continue
        low, up, skip, kernel = found
        wide = up.shape[1]
        composed = compose(up, kernel[:, :wide])
        settings = node.get_attributes()
        pads = [(side - 2) // 2 for side in composed.shape[2:]]
        ones = [1, 1, 1]
        first = op.convolution_backprop_data(low, op.constant(composed), [2, 2, 2], None, pads, pads, ones)
        rest = op.constant(np.ascontiguousarray(kernel[:, wide:]))
        second = op.convolution(skip, rest, ones, settings["pads_begin"], settings["pads_end"], ones)
        result = op.add(first, second)
        result.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(result.output(0))


def compose(up: NDArray[np.float32], kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    """The one transposed convolution of stride 2 that does what two do: first one with kernel 2 and stride 2, then a convolution.

    Args:
        up: weights of the first, (in, middle, 2, 2, 2).
        kernel: weights of the second, (out, middle, k, k, k) with k 3 (padding 1) or 1.

    Returns:
        Weights (in, out, k + 1, k + 1, k + 1), for a padding of (k - 1) / 2 on all sides.
    """
    side = kernel.shape[2]
    made = np.zeros((up.shape[0], kernel.shape[0], side + 1, side + 1, side + 1), dtype=np.float64)
    for p, q, r in itertools.product(range(2), repeat=3):
        for x, y, z in itertools.product(range(side), repeat=3):
            # The further right a tap, the further left of what it reads lies its result.
            place = made[:, :, p + side - 1 - x, q + side - 1 - y, r + side - 1 - z]
            place += up[:, :, p, q, r].astype(np.float64) @ kernel[:, :, x, y, z].T
    return made.astype(np.float32)


def _upsampled_and_skip(node: Any) -> tuple[Any, NDArray[np.float32], Any, NDArray[np.float32]] | None:
    """(low, weights of up, skip, weights of the convolution) of a convolution over [up(low), skip] that can be rewritten."""
    settings = node.get_attributes()
    kernel = _constant(node.input_value(1))
    concat = node.input_value(0).get_node()
    if (
        kernel is None
        or concat.get_type_name() != "Concat"
        or concat.get_input_size() != 2
        or concat.get_attributes()["axis"] not in (1, -4)
    ):
        return None
    raised, skip = concat.input_value(0), concat.input_value(1)
    up = raised.get_node()
    if up.get_type_name() != "ConvolutionBackpropData" or up.get_input_size() != 2:
        return None
    weights = _constant(up.input_value(1))
    pads = [(side - 1) // 2 for side in kernel.shape[2:]]
    plain = (
        weights is not None
        and weights.shape[2:] == (2, 2, 2)
        and kernel.shape[2:] in ((1, 1, 1), (3, 3, 3))
        and list(settings["strides"]) == list(settings["dilations"]) == [1, 1, 1]
        and list(settings["pads_begin"]) == list(settings["pads_end"]) == pads
        and list(up.get_attributes()["strides"]) == [2, 2, 2]
        and not any(up.get_attributes()["pads_begin"])
        and not any(up.get_attributes()["pads_end"])
    )
    return (up.input_value(0), weights, skip, kernel) if plain and weights is not None else None


def _constant(output: Any) -> NDArray[np.float32] | None:
    """The numbers behind an output that is constant (weights may be reached through a conversion)."""
    node = output.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return np.asarray(node.get_data(), dtype=np.float32) if node.get_type_name() == "Constant" else None
