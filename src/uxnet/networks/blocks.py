"""The small parts that the networks share: per-axis settings, channel-first layer norm, convolutions that are right in every
precision, and the residual convolution block of the decoder.

Shapes are (N, C, I, J, K) throughout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uxnet.networks.cpu import kernels as kernels_cpu
from uxnet.networks.cpu import norms as norms_cpu

Triple = tuple[int, int, int]
PerAxis = int | Sequence[int]
"""One number for all axes, or one for each of (i, j, k)."""


PerStage = PerAxis | Sequence[PerAxis]
"""One number for all, three (one an axis), or one number or triple a stage."""


def triple(value: PerAxis, name: str = "value") -> Triple:
    """`value` for each of the three axes.

    Raises:
        ValueError: if `value` is neither one nor three positive whole numbers.
    """
    values = (value,) * 3 if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != 3 or not all(isinstance(v, int) and v >= 1 for v in values):
        raise ValueError(f"{name} must be one positive whole number or three of them (one an axis), not {value!r}")
    return (values[0], values[1], values[2])


def odd_triple(value: PerAxis, name: str = "kernel") -> Triple:
    """Like `triple`, for kernels: even sizes are refused, since they would shift the grid.

    Raises:
        ValueError: if a size is even, too.
    """
    values = triple(value, name)
    if any(v % 2 == 0 for v in values):
        raise ValueError(f"{name} must be odd along every axis, not {value!r}")
    return values


def wholes(values: Any, least: int, name: str) -> tuple[int, ...]:
    """`values`, if they are whole numbers of at least `least`.

    Raises:
        ValueError: if they are not; the message names the setting.
    """
    if not isinstance(values, Sequence) or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"{name} must be whole numbers of at least {least}, not {values!r}")
    return tuple(values)


def share(value: Any, name: str) -> float:
    """`value`, if it is a number of at least 0 and below 1, as rates of dropout are.

    Raises:
        ValueError: if it is not; the message names the setting.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, not {value!r}")
    return value


def per_stage(value: Any, count: int, name: str) -> list[PerAxis]:
    """`value` once a stage: a number or a triple for all of them, or a sequence of numbers or triples, one for each.

    Raises:
        ValueError: if the sequence has another length; the message names the setting.
    """
    for_all = not isinstance(value, Sequence) or (len(value) == 3 and all(isinstance(v, int) for v in value))
    if for_all or isinstance(value, str):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} gives {len(value)} settings where {count} are needed: {value!r}")
    return list(value)


Choice = TypeVar("Choice", bound=str)


def one_of(value: Choice, choices: Iterable[str], name: str) -> Choice:
    """`value`, if it is one of `choices`.

    Raises:
        ValueError: if it is not; the message names the setting.
    """
    if value not in (known := list(choices)):
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
    return value


def same_padding(kernel: Triple) -> Triple:
    """The padding on each side that keeps the grid's shape at stride 1."""
    return (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)


def sides_of(image: Tensor, in_channels: int, patch: Triple | None = None) -> Triple:
    """The sides (I, J, K) of an image (N, in_channels, I, J, K).

    Args:
        patch: the sides that the image must have, for networks whose weights are tied to them; None takes any.

    Raises:
        ValueError: if the image has another shape.
    """
    if image.ndim != 5 or image.shape[1] != in_channels:
        raise ValueError(f"expected an image of shape (N, {in_channels}, I, J, K), got {tuple(image.shape)}")
    sides = (int(image.shape[2]), int(image.shape[3]), int(image.shape[4]))
    if patch is not None and sides != patch:
        raise ValueError(f"this network was built for patches of {patch} and takes no other, got {sides}")
    return sides


def padded_sides(sides: Triple, stride: Triple, *, alone: bool = False) -> Triple:
    """The sides rounded up to multiples of `stride`, with at least two positions on one axis at the deepest level.

    Instance norm has no meaning over a single position, so a grid that would end at 1x1x1 is doubled along its longest axis; but
    for networks without such a norm there (`alone`).
    """
    up = [math.ceil(side / s) * s for side, s in zip(sides, stride, strict=True)]
    if not alone and all(u == s for u, s in zip(up, stride, strict=True)):
        longest = max(range(3), key=lambda a: (sides[a], a))
        up[longest] += stride[longest]
    return (up[0], up[1], up[2])


def padded_behind(image: Tensor, padded: Triple) -> Tensor:
    """(N, C, I, J, K) -> (N, C, *padded): zeros behind the end of each axis."""
    sides = (int(image.shape[2]), int(image.shape[3]), int(image.shape[4]))
    if sides == padded:
        return image
    return F.pad(image, [p for a in (2, 1, 0) for p in (0, padded[a] - sides[a])])


def cropped(logits: Tensor, sides: Triple, padded: Triple) -> Tensor:
    """Logits of any decoder level without what belongs to the padding from `sides` to `padded`."""
    if padded == sides:
        return logits
    strides = [p // int(n) for p, n in zip(padded, logits.shape[2:], strict=True)]
    i, j, k = (math.ceil(side / s) for side, s in zip(sides, strides, strict=True))
    return logits[:, :, :i, :j, :k]


class LayerNorm(nn.Module):
    """Layer norm over the channels of every voxel (Ba et al. 2016), channels first, eps 1e-6 as in ConvNeXt."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, I, J, K) -> the same shape; the statistics are taken in float32 or better."""
        y = F.layer_norm(x.movedim(1, -1), (x.shape[1],), self.weight, self.bias, self.eps).movedim(-1, 1)
        # Voxels-first is how it was computed; cuDNN would then take its own kernels for the convolutions behind it, many times as slow.
        return y.contiguous() if x.is_cuda and x.is_contiguous() else y


class CarefulConv3d(nn.Conv3d):
    """A convolution whose weight gradient is right in bfloat16 on CPUs, too.

    Where torch's is not (`kernels_cpu.hazardous`; kernel 7 on 6^3 is the paper's own fourth stage) it computes in float32. These grids
    are tiny, so it costs nothing that can be measured; every other call is left as it is.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not kernels_cpu.hazardous(input, self.kernel_size):
            return cast(Tensor, super()._conv_forward(input, weight, bias))
        with torch.autocast("cpu", enabled=False):
            y: Tensor = super()._conv_forward(input.float(), weight.float(), None if bias is None else bias.float())
        return y.to(torch.bfloat16)


class CarefulConvTranspose3d(nn.ConvTranspose3d):
    """The same for a transposed convolution; where kernel and stride are equal torch's is right."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, ...), as `nn.ConvTranspose3d`."""
        if self.kernel_size == self.stride or not kernels_cpu.hazardous(input, self.kernel_size):
            return super().forward(input, output_size)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.float()
            padding: Any = self.padding
            rest = self._output_padding(input, output_size, self.stride, padding, self.kernel_size, 3, self.dilation)  # type: ignore[arg-type]
            y = F.conv_transpose3d(input.float(), self.weight.float(), bias, self.stride, padding, rest, self.groups, self.dilation)
        return y.to(torch.bfloat16)


class CarefulGroupNorm(nn.GroupNorm):
    """A group norm that computes in float32 what comes in bfloat16 on a CPU.

    It is more exact, and with torch's own a training step of SegResNet takes 1.8 times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) -> the same shape."""
        if input.device.type != "cpu" or input.dtype != torch.bfloat16 or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return super().forward(input.float()).to(torch.bfloat16)


def made_careful(network: nn.Module) -> nn.Module:
    """The same network, whose plain convolutions and group norms are careful ones now; keys and weights stay as they are."""
    careful: dict[type, type] = {nn.Conv3d: CarefulConv3d, nn.ConvTranspose3d: CarefulConvTranspose3d, nn.GroupNorm: CarefulGroupNorm}
    for module in network.modules():
        if type(module) in careful:
            module.__class__ = careful[type(module)]
    return network


class DepthwiseConv3d(CarefulConv3d):
    """A depthwise convolution with "same" padding."""

    def __init__(self, channels: int, kernel: PerAxis) -> None:
        k = odd_triple(kernel)
        super().__init__(channels, channels, k, padding=same_padding(k), groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, I, J, K) -> the same shape."""
        return kernels_cpu.depthwise(x, self.weight, self.bias) if kernels_cpu.pays(x, self.weight) else super().forward(x)


class DenseConv3d(CarefulConv3d):
    """A convolution with "same" padding, without groups."""

    def __init__(self, in_channels: int, out_channels: int, kernel: PerAxis, bias: bool = False) -> None:
        k = odd_triple(kernel)
        super().__init__(in_channels, out_channels, k, padding=same_padding(k), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I, J, K)."""
        return kernels_cpu.dense(x, self.weight, self.bias) if kernels_cpu.dense_pays(x, self.weight) else super().forward(x)


class PointwiseConv3d(nn.Conv3d):
    """A convolution with a kernel of 1, which is a matrix product over the channels of every voxel; without groups."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I, J, K)."""
        return kernels_cpu.pointwise(x, self.weight, self.bias) if kernels_cpu.pays(x, self.weight) else super().forward(x)


class GroupedPointwiseConv3d(nn.Conv3d):
    """A convolution with a kernel of 1 in groups with one channel each on one side: channels are widened, or summed up again, apart.

    On CUDA it is a product, and a sum over a group: cuDNN's grouped convolutions take many times as long, their gradients above all.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I, J, K)."""
        if not x.is_cuda or self.groups not in (self.in_channels, self.out_channels):
            return super().forward(x)
        return self.apart(x)

    def apart(self, x: Tensor) -> Tensor:
        """The same without a convolution, on any device."""
        weight, bias = self.weight, cast(Tensor, self.bias)
        if torch.is_autocast_enabled("cuda"):
            x, weight, bias = (t.to(torch.get_autocast_dtype("cuda")) for t in (x, weight, bias))
        products: Tensor = x.reshape(len(x), self.groups, -1, *x.shape[2:]) * weight.view(self.groups, -1, 1, 1, 1)
        y = products.flatten(1, 2) if self.groups == self.in_channels else products.sum(2)
        return y + bias.view(-1, 1, 1, 1)


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training (stochastic depth, Huang et al. 2016); the identity otherwise."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"drop_path must be at least 0 and below 1, not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> the same shape."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(1.0 - self.rate)
        return x * keep / (1.0 - self.rate)


def instance_norm(x: Tensor) -> Tensor:
    """Instance norm without affine, eps 1e-5: (N, C, I, J, K) -> the same shape.

    Said as a group norm with one channel a group, which is the same sum and, unlike torch's instance norm, keeps channels-last
    memory instead of copying every activation there and back.
    """
    return F.group_norm(x, x.shape[1], eps=1e-5)


class ResidualConvBlock(nn.Module):
    """conv - norm - LeakyReLU - conv - norm, plus the input (projected where the channels differ), LeakyReLU.

    Convolutions carry no bias; instance norm without affine, eps 1e-5; LeakyReLU slope 0.01: the block of UNETR's and SwinUNETR's
    decoders, which the 3D UX-Net shares (paper section 4.2).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: PerAxis = 3) -> None:
        super().__init__()
        self.conv1 = DenseConv3d(in_channels, out_channels, kernel)
        self.conv2 = DenseConv3d(out_channels, out_channels, kernel)
        self.shortcut = PointwiseConv3d(in_channels, out_channels, bias=False) if in_channels != out_channels else None
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> (N, out_channels, I, J, K)."""
        y = self.conv2(self._normalised(self.conv1(x)))
        residual = x if self.shortcut is None else self.shortcut(x)
        slope, projected = self.activation.negative_slope, self.shortcut is not None
        if kernels_cpu.pays(y):
            return norms_cpu.norm_sum_activation(y, residual, slope, norm_residual=projected)
        out: Tensor = self.activation(instance_norm(y) + (instance_norm(residual) if projected else residual))
        return out

    def _normalised(self, x: Tensor) -> Tensor:
        if kernels_cpu.pays(x):
            return norms_cpu.norm_activation(x, self.activation.negative_slope)
        y: Tensor = self.activation(instance_norm(x))
        return y


class PaddedNetwork(nn.Module):
    """A network from elsewhere that takes whole multiples of its stride only, made to take any sides: padded, computed, cropped.

    Args:
        network: (N, in_channels, I, J, K) -> (N, out_channels, I, J, K). Its weights are called as it calls them, after "network.".
        stride: what the sides must be multiples of.
        alone: whether it may see a single position at its deepest level, see `padded_sides`.
        patch: the sides that it was built for, where its weights are tied to them.
    """

    def __init__(
        self, network: nn.Module, in_channels: int, out_channels: int, stride: Triple, *, alone: bool = False, patch: Triple | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.in_channels, self.out_channels = in_channels, out_channels
        self.total_stride, self.alone, self.fixed_patch = stride, alone, patch

    def forward(self, image: Tensor) -> Tensor:
        """(N, in_channels, I, J, K) -> logits (N, out_channels, I, J, K).

        Raises:
            ValueError: if the image's shape or number of channels is another.
        """
        sides = sides_of(image, self.in_channels, self.fixed_patch)
        padded = padded_sides(sides, self.total_stride, alone=self.alone)
        return cropped(self.network(padded_behind(image, padded)), sides, padded)


INNER_KEYS = ((r"^network\.", ""),)
"""The key map of a `PaddedNetwork`: the inner network's own names."""
