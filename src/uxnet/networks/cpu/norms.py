"""Instance norms with the leaky ReLU behind them, and their gradients, on CPUs: faster and more exact than torch's, where
`kernels_cpu.pays` says so.

torch 2.13.0 subtracts the square of a mean from a mean of squares, both summed naively, and its gradient walks through memory several
times; in bfloat16 it takes as long as all the rest of a training step. Here each of the two passes of either stays in the processor's
cache, chunk by chunk, takes the leaky ReLU along, computes in float32, and sums up chunks in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from uxnet.networks.cpu.kernels import without_autocast

EPS = 1e-5
CHUNK = 1 << 19
"""Elements that are worked on at a time: 2 MiB of float32."""

Normal = Callable[[slice], Tensor]
"""Gives a norm's output at some voxels, (N, voxels, C) float32."""


def norm_activation(x: Tensor, slope: float) -> Tensor:
    """leaky_relu(instance_norm(x), slope): (N, C, I, J, K) -> the same shape, channels last. Keeps no input, only what it returns."""
    out: Tensor = _NormActivation.apply(x, slope)  # type: ignore[no-untyped-call]
    return out


def affine_norm_activation(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """leaky_relu(instance_norm(x) * weight + bias, slope): (N, C, I, J, K) and (C,) twice -> as x, channels last."""
    out: Tensor = _AffineNormActivation.apply(x, weight, bias, slope)  # type: ignore[no-untyped-call]
    return out


def norm_sum_activation(x: Tensor, residual: Tensor, slope: float, *, norm_residual: bool) -> Tensor:
    """leaky_relu(instance_norm(x) + residual, slope): (N, C, I, J, K) each -> the same shape, channels last.

    Args:
        norm_residual: take the instance norm of the residual, too.
    """
    out: Tensor = (_NormNormActivation if norm_residual else _NormSumActivation).apply(x, residual, slope)  # type: ignore[no-untyped-call]
    return out


class _NormActivation(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, slope: float) -> Tensor:
        out, scale = _normalised(x, slope=slope)
        ctx.save_for_backward(out, scale)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        out, scale = ctx.saved_tensors
        rows = _rows(out)

        def normal(part: slice) -> Tensor:
            # A leaky ReLU can be undone, so its output is all that has to be kept.
            return F.leaky_relu(_wide(rows[:, part]), 1 / ctx.slope)

        (gradient,), _ = _through_norms(upstream, out, ctx.slope, [(normal, scale)])
        return gradient, None


class _AffineNormActivation(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
        out, rows = torch.empty_like(x, memory_format=torch.channels_last_3d), _rows(x)
        to = _rows(out)
        shift, scale = _moments(rows)
        tilt, level = (scale * weight).to(weight.dtype), (shift * weight + bias).to(weight.dtype)
        for part in _parts(rows):
            _into(to[:, part], F.leaky_relu_(torch.addcmul(level, _wide(rows[:, part]), tilt, out=_room(to[:, part])), slope))
        ctx.save_for_backward(x, out, weight, shift, scale)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, out, weight, shift, scale = ctx.saved_tensors
        # A weight may be zero, so what was normalised cannot be had from what came of it.
        rows, move, stretch = _rows(x), shift.to(weight.dtype), scale.to(weight.dtype)
        norms = [(lambda part: torch.addcmul(move, _wide(rows[:, part]), stretch), (scale * weight).to(weight.dtype))]
        (gradient,), sums = _through_norms(upstream, out, ctx.slope, norms)
        for_bias, for_weight = sums.sum((1, 2)).to(weight.dtype)
        return gradient, for_weight, for_bias, None


class _NormSumActivation(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, residual: Tensor, slope: float) -> Tensor:
        normal, scale = _normalised(x)
        out = F.leaky_relu_(normal + residual, slope)
        ctx.save_for_backward(out, normal, scale)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        out, normal, scale = ctx.saved_tensors
        rows = _rows(normal)
        (gradient, through), _ = _through_norms(upstream, out, ctx.slope, [(lambda part: _wide(rows[:, part]), scale), None])
        return gradient, through, None


class _NormNormActivation(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, x: Tensor, y: Tensor, slope: float) -> Tensor:
        other, other_scale = _normalised(y)
        out, scale = _normalised(x, other, slope)
        ctx.save_for_backward(out, scale, other, other_scale)
        ctx.slope = slope
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        out, scale, other, other_scale = ctx.saved_tensors
        rows, others = _rows(out), _rows(other)

        def normal(part: slice) -> Tensor:
            # Both are of the size of 1, so their sum without one of them is the other to rounding.
            return F.leaky_relu(_wide(rows[:, part]), 1 / ctx.slope).sub_(others[:, part])

        norms = [(normal, scale), (lambda part: _wide(others[:, part]), other_scale)]
        (first, second), _ = _through_norms(upstream, out, ctx.slope, norms)
        return first, second, None


def _normalised(x: Tensor, plus: Tensor | None = None, slope: float = 1.0) -> tuple[Tensor, Tensor]:
    """leaky_relu(instance_norm(x) + plus, slope), (N, C, I, J, K) as x in new memory, and what x was multiplied by, (N, 1, C) float32."""
    out = torch.empty_like(x, memory_format=torch.channels_last_3d)
    rows, to, others = _rows(x), _rows(out), None if plus is None else _rows(plus)
    shift, scale = (moment.to(_wide(rows[:0]).dtype) for moment in _moments(rows))
    for part in _parts(rows):
        y = torch.addcmul(shift, _wide(rows[:, part]), scale, out=_room(to[:, part]))
        if others is not None:
            y += others[:, part]
        if slope != 1.0:
            F.leaky_relu_(y, slope)
        _into(to[:, part], y)
    return out, scale


def _wide(x: Tensor) -> Tensor:
    """What is in bfloat16 in float32, where it is computed with."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _room(to: Tensor) -> Tensor:
    """Where to compute what shall be in `to`: there itself, unless it is bfloat16."""
    return torch.empty_like(to, dtype=torch.float32) if to.dtype == torch.bfloat16 else to


def _into(to: Tensor, computed: Tensor) -> None:
    if computed.dtype != to.dtype:
        to.copy_(computed)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale), float64 (N, 1, C) each: shift + scale * rows is the instance norm of (N, voxels, C)."""
    # Moments about one of the values: a channel far from zero loses nothing.
    first = _wide(rows[:, :1])
    sums = rows.new_zeros(2, *first.shape, dtype=torch.float64)
    for part in _parts(rows):
        away = rows[:, part] - first
        sums[0] += away.sum(1, keepdim=True)
        sums[1] += away.square_().sum(1, keepdim=True)
    mean, square = sums / rows.shape[1]
    scale = (square - mean.square()).clamp_min(0).add(EPS).rsqrt()
    return -scale * (mean + first), scale


def _parts(rows: Tensor) -> list[slice]:
    """Of the voxels of (N, voxels, C), what fits into the cache."""
    n, voxels, c = rows.shape
    step = max(1, CHUNK // (n * c))
    return [slice(first, first + step) for first in range(0, voxels, step)]


def _rows(x: Tensor) -> Tensor:
    """(N, C, I, J, K) -> (N, voxels, C), a view where channels lie last, be they part of a wider array."""
    return x.movedim(1, -1).flatten(1, 3)


def _through_norms(
    upstream: Tensor, out: Tensor, slope: float, norms: Sequence[tuple[Normal, Tensor] | None]
) -> tuple[list[Tensor], Tensor]:
    """The gradients of the terms of `out` = leaky_relu(sum of terms), each an instance norm or, None, something else.

    Of an instance norm's input that is scale * (g - mean(g) - n * mean(g n)), the means over the voxels of each channel.

    Args:
        upstream: the gradient of `out`, (N, C, I, J, K).
        norms: what gives a norm's output n, and its scale (N, 1, C).

    Returns:
        (N, C, I, J, K) each, channels last; and sums over voxels (1 + norms, N, 1, C), float64: of what comes through the leaky ReLU, and
        of its products with each n.
    """
    gradients = [torch.empty_like(out, memory_format=torch.channels_last_3d) for _ in norms]
    to = [gradient.movedim(1, -1).view(len(out), -1, out.shape[1]) for gradient in gradients]
    # What goes through the leaky ReLU waits where the last gradient will be.
    arriving, through, given = _rows(upstream), to[-1], _rows(out)
    (n, voxels, c), parts = through.shape, _parts(through)
    sums = torch.zeros(1 + len(norms), n, 1, c, dtype=torch.float64)
    for part in parts:
        g = through[:, part]
        torch.ops.aten.leaky_relu_backward.grad_input(arriving[:, part], given[:, part], slope, True, grad_input=g)
        g = _wide(g)
        sums[0] += g.sum(1, keepdim=True)
        for total, norm in zip(sums[1:], norms, strict=True):
            if norm:
                total += (g * norm[0](part)).sum(1, keepdim=True)
    means = sums / voxels
    for part in parts:
        g = _wide(through[:, part])
        for mean, norm, into in zip(means[1:], norms, to, strict=True):
            if norm:
                normal, scale = norm[0](part), norm[1]
                shift, tilt = (-scale * means[0]).to(g.dtype), (-scale * mean).to(g.dtype)
                _into(into[:, part], torch.addcmul(torch.addcmul(shift, normal, tilt), g, scale, out=_room(into[:, part])))
    return gradients, sums
