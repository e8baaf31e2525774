"""Gradients of convolutions that torch computes slowly or wrongly on CPUs, in another order: the same sums, for channels-last memory in
float32, or in bfloat16 by autocast. Those of norms are in `norms_cpu`.

What torch 2.13.0 does on a CPU, and what is done here instead:

- The gradients of a depthwise convolution take ten times as long as the convolution. But both are depthwise convolutions themselves, and
  those are fast forwards: of the upstream gradient with the kernel turned round, and of the input with the upstream gradient as kernel.
- The weight gradient of a convolution in bfloat16 is read from and written to memory that is not its own wherever a side is smaller than
  the kernel: see `hazardous`.
- A convolution with a kernel of 1 is a matrix product, and torch computes it as anything but.
- The gradient of a dense kernel takes three convolutions' time with AVX2. As matrix products over shifted inputs it takes one and a half.

Where a gradient is not asked for, nothing here is called: see `pays`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WIDE = 48
"""Rows and columns that a matrix product must have to be faster than torch's."""

SMALL = 1 << 15
"""Elements of a product up to which several are computed beside each other."""

COLUMNS = 1 << 20
"""Elements that are laid side by side at a time for a matrix product."""

_BLOCK = (2, 4)
"""Planes and rows of an upstream gradient that are taken as a kernel at once: longer sums are faster and less exact."""


def pays(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether what comes of `x` shall be computed here: while training on a CPU, in channels-last memory.

    Args:
        x: (N, C, I, J, K), float32, or where autocast computes in bfloat16 either of the two. One channel alone lies the same in both
            layouts, and is left to torch.
        weight: that it meets, where there is one; float32.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    wanted = x.requires_grad or (weight is not None and weight.requires_grad)
    # Not what only looks like memory of this machine: `training.memory` traces a step with such tensors, of a GPU or of this processor.
    plain = all(type(t) in (Tensor, nn.Parameter) for t in (x, weight) if t is not None)
    lower = _autocast()
    return (
        wanted
        and plain
        and x.device.type == "cpu"
        and (x.dtype == torch.float32 if lower is None else lower == torch.bfloat16 and x.dtype in (torch.float32, lower))
        and (weight is None or weight.dtype == torch.float32)
        and x.shape[1] > 1
        and x.is_contiguous(memory_format=torch.channels_last_3d)
    )


def hazardous(x: Tensor, kernel: Sequence[int]) -> bool:
    """Whether torch's weight gradient of a convolution of `x` is garbage: on a CPU, in bfloat16, with a side smaller than the kernel.

    There oneDNN's gradient is partly uninitialised memory, in either memory layout, with groups and without, and now and then it
    damages memory beside its own, of which the process dies (torch 2.13.0, AVX-512 BF16; found by comparison with float64).

    Args:
        x: (N, C, I, J, K).
        kernel: (3,), its sides.
    """
    if x.device.type != "cpu":
        return False
    in_bfloat16 = x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and _autocast() == torch.bfloat16)
    return in_bfloat16 and any(side < k for side, k in zip(x.shape[2:], kernel, strict=True))


def _autocast() -> torch.dtype | None:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def without_autocast(of: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function's forward whose tensors are in the precision already that they shall be in."""

    @functools.wraps(of)
    def forward(*arguments: Any, **settings: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return of(*arguments, **settings)

    return forward


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with a kernel of 1: x (N, C, I, J, K), weight (O, C, 1, 1, 1), bias (O,) -> (N, O, I, J, K), channels last."""
    return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise convolution, stride 1, "same" padding: x (N, C, I, J, K), weight (C, 1, odd, odd, odd), bias (C,) -> as x."""
    out: Tensor = _Depthwise.apply(*_cast(x, weight, bias))  # type: ignore[no-untyped-call]
    return out


def _cast(*tensors: Tensor | None) -> list[Tensor | None]:
    """As a convolution in autocast takes them."""
    lower = _autocast()
    return list(tensors) if lower is None else [None if t is None else t.to(lower) for t in tensors]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _same(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        upstream = upstream.contiguous(memory_format=torch.channels_last_3d)
        wanted = ctx.needs_input_grad
        return (
            _same(upstream, weight.flip(2, 3, 4), None) if wanted[0] else None,
            _depthwise_weight(x, upstream, weight) if wanted[1] else None,
            upstream.sum((0, 2, 3, 4)) if wanted[2] else None,
        )


def _same(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv3d(x, weight, bias, padding=_half(weight), groups=weight.shape[0])


def _depthwise_weight(x: Tensor, upstream: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a depthwise kernel: x convolved with the upstream gradient, each sample's channels as channels of their own.

    What one convolution sums up is kept short, since it sums naively.
    """
    n, c, *sides = x.shape
    kernel = weight.shape[2:]
    wide = x.new_zeros(*(side + k - 1 for side, k in zip(sides, kernel, strict=True)), n * c)
    inside = tuple(slice(k // 2, k // 2 + side) for side, k in zip(sides, kernel, strict=True))
    wide[inside].view(*sides, n, c).copy_(x.permute(2, 3, 4, 0, 1))
    taps = upstream.permute(2, 3, 4, 0, 1).flatten(3)
    total = x.new_zeros(n * c, *kernel, dtype=torch.float64)
    for j in range(0, sides[1], _BLOCK[1]):
        strip = taps[:, j : j + _BLOCK[1]].contiguous()
        image = wide[:, j : j + strip.shape[1] + kernel[1] - 1].contiguous()
        for i in range(0, sides[0], _BLOCK[0]):
            block = strip[i : i + _BLOCK[0]]
            met = image[i : i + len(block) + kernel[0] - 1]
            total += F.conv3d(met.movedim(3, 0)[None], block.movedim(3, 0)[:, None], groups=n * c)[0]
    return total.view(n, *weight.shape).sum(0).to(x.dtype)


def dense_pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `dense` is faster than torch: as `pays`, but with AVX2 alone, in float32, and where channels are many enough."""
    o, c, *kernel = weight.shape
    wide = min(kernel[0] * o, kernel[2] * c) >= WIDE
    return wide and _autocast() is None and torch.backends.cpu.get_cpu_capability() == "AVX2" and pays(x, weight)


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution without groups, stride 1, "same" padding: x (N, C, I, J, K), weight (O, C, odd, odd, odd) -> (N, O, I, J, K)."""
    out: Tensor = _Dense.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Dense(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv3d(x, weight, bias, padding=_half(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        upstream = upstream.contiguous(memory_format=torch.channels_last_3d)
        gradient = None
        if ctx.needs_input_grad[0]:
            once, none = [1] * 3, [0] * 3
            gradient = torch.ops.aten.convolution_backward(
                upstream, x, weight, None, once, _half(weight), once, False, none, 1, [True, False, False]
            )[0]
        return (
            gradient,
            _dense_weight(x, upstream, weight) if ctx.needs_input_grad[1] else None,
            upstream.sum((0, 2, 3, 4)) if ctx.needs_input_grad[2] else None,
        )


def _dense_weight(x: Tensor, upstream: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a dense kernel, as matrix products: for each offset along the second axis one, of the upstream gradient beside
    itself at all offsets along the first axis, and of the input beside itself at all offsets along the last: so they are large enough.
    """
    x, upstream = x.movedim(1, -1), upstream.movedim(1, -1)
    (n, *sides, c), o, kernel, half = x.shape, weight.shape[0], weight.shape[2:], _half(weight)
    room = COLUMNS // (sides[1] * sides[2] * kernel[2] * max(c, o))
    many = n if n * sides[0] <= room else 1
    planes = max(p for p in range(1, sides[0] + 1) if sides[0] % p == 0 and (p == 1 or many * p <= room))
    # Rows lie in the order (j, sample, i, k): then an offset along j is another first row. What lies outside stays zero.
    left = x.new_zeros(sides[1], many, planes, sides[2], kernel[0], o)
    right = x.new_zeros(sides[1] + 2 * half[1], many, planes, sides[2], kernel[2], c)
    rows, wide, step = left.flatten(0, 3).flatten(1), right.flatten(0, 3).flatten(1), many * planes * sides[2]
    # A small product has no work for several threads; four beside each other do.
    beside = math.gcd(4, len(rows)) if kernel[0] * o * kernel[2] * c <= SMALL else 1
    total = x.new_zeros(kernel[1], beside, kernel[0] * o, kernel[2] * c)
    for s, first in itertools.product(range(0, n, many), range(0, sides[0], planes)):
        for a in range(kernel[0]):
            shift = half[0] - a
            low, high = _within(first, first + planes, -shift, sides[0] - shift)
            met = left[..., a, :].movedim(0, 2)
            met[:, : low - first], met[:, high - first :] = 0, 0
            met[:, low - first : high - first] = upstream[s : s + many, low + shift : high + shift]
        for a in range(kernel[2]):
            shift = half[2] - a
            low, high = _within(0, sides[2], shift, sides[2] + shift)
            met = right[half[1] : half[1] + sides[1], ..., a, :].movedim(0, 2)
            met[..., low:high, :] = x[s : s + many, first : first + planes, :, low - shift : high - shift]
        for b in range(kernel[1]):
            part = wide[b * step : b * step + len(rows)].view(beside, -1, wide.shape[1])
            total[b].baddbmm_(rows.view(beside, -1, rows.shape[1]).transpose(1, 2), part)
    total = total.sum(1).view(kernel[1], kernel[0], o, kernel[2], c).permute(2, 4, 1, 0, 3)
    return total.contiguous(memory_format=torch.channels_last_3d)


def _within(first: int, last: int, low: int, high: int) -> tuple[int, int]:
    """The part of low..high that lies in first..last, empty where there is none."""
    low = min(max(first, low), last)
    return low, max(low, min(high, last))


def _half(weight: Tensor) -> list[int]:
    return [k // 2 for k in weight.shape[2:]]
