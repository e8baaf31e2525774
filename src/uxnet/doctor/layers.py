"""Every layer of a network as training calls it, forwards and backwards, against float64.

Convolutions, transposed convolutions and linear layers run alone, at the shapes and in the memory layout of a training step. What they
are compared with is no convolution of torch's but its definition, summed up over the kernel's offsets. In float64 a large layer would
take minutes, so only sampled positions of output and input gradient (all channels) and sampled channels of the weight gradient (all
positions) are computed; what runs under test is whole. Each layer runs `REPEATS` times, each time in memory that was filled with NaN and
freed before, and every value of every run is held against the first run's: memory that nobody wrote to shows wherever it lies.

The tolerance. Rounding two operands and the result to a type with unit roundoff u leaves errors of about u times s, the root of the sum
of the squared terms, however many terms there are: they are independent. Accumulating n terms in float32, whose unit roundoff is
e = 2^-24, adds about e sqrt(n) s: rounding errors behave as if they were independent (Higham and Mary, A new approach to probabilistic
rounding error analysis, SIAM J. Sci. Comput. 41, 2019). So an error may be 8 (u + e sqrt(n)) times the largest of s, the value itself and
the rms of all values; 8 is what the largest of 1e9 normal deviates is of their rms, and a little more.

Norms, activations and attention are not checked.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

# torch is imported where it is used: the command line does without.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Memory = Literal["channels last", "contiguous"]
Shape = tuple[int, ...]
REPEATS = 3
ROUNDOFF = {"float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
BUDGET = 4_000_000_000  # float64 multiply-accumulates that the reference of a result may cost: a second or two of one core
_MOVE = 40  # what gathering an element costs, in the same unit


# ---- what is called


@dataclass(frozen=True)
class Call:
    """A layer as a training step calls it.

    name: of the first module that is called so.
    module: on the meta device, so without memory.
    shape: of its input; (N, C, I, J, K), or (..., C) of a linear layer.
    times: how often a step calls it so.
    """

    name: str
    module: nn.Module
    shape: Shape
    times: int = 1

    @property
    def sentence(self) -> str:
        """The layer with its settings, and its input."""
        return f"{self.name}: {self.module} on {'x'.join(map(str, self.shape))}"

    @property
    def linear(self) -> bool:
        """Whether it is a linear layer, which knows no memory layout."""
        return not hasattr(self.module, "kernel_size")

    @property
    def cost(self) -> int:
        """Multiply-accumulates of one forward pass."""
        definition = _Definition.of(self)
        return math.prod(definition.weight) * definition.samples * math.prod(definition.small)

    @property
    def smaller_than_kernel(self) -> bool:
        """Whether a side of the input is smaller than the kernel: where faults have been met."""
        return any(side < k for side, k in zip(self.shape[2:], getattr(self.module, "kernel_size", ()), strict=False))


def layers_of(network: nn.Module, shape: Shape) -> list[Call]:
    """Each different call of a layer in one training step, in the order of the first ones.

    Nothing is computed: a copy of the network runs on the meta device. Calls are the same where class, settings, weights' and input's
    shapes are.

    Args:
        network: on any device.
        shape: of the image, (N, C, I, J, K).
    """
    import torch
    from torch import nn

    from uxnet.networks.macs import on_meta

    twin = on_meta(network).train()
    found: dict[tuple[type, str, Shape], Call] = {}
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d, nn.Linear)):
            bare = copy.deepcopy(module)

            def note(_: nn.Module, inputs: Any, __: Any, name: str = name, bare: nn.Module = bare) -> None:
                key = type(bare), repr(bare), tuple(inputs[0].shape)
                before = found.get(key, Call(name, bare, key[2], 0))
                found[key] = replace(before, times=before.times + 1)

            module.register_forward_hook(note)
    # Forked: a network that draws random numbers while training must not disturb the caller's.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        twin(torch.empty(shape, device="meta"))
    return list(found.values())


# ---- the reference


@dataclass(frozen=True)
class _Definition:
    """A layer as sums: small position p meets big position p * stride + k * dilation - padding by the kernel's offset k.

    A convolution's input is big and its output small, a transposed one's the other way round; a linear layer is a kernel of 1 on rows.
    Weights are (groups, small channels a group, big channels a group, *kernel) in both.
    """

    weight: Shape
    stride: Shape
    padding: Shape
    dilation: Shape
    samples: int
    small: Shape
    big: Shape
    transposed: bool

    @classmethod
    def of(cls, call: Call) -> _Definition:
        import torch

        module: Any = call.module
        shape = tuple(module.weight.shape)
        if len(shape) == 2:
            rows = math.prod(call.shape[:-1])
            return cls((1, *shape, 1, 1, 1), (1,) * 3, (0,) * 3, (1,) * 3, 1, (rows, 1, 1), (rows, 1, 1), False)
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            raise ValueError(f"{call.sentence}: only numbers of zeros as padding are known")
        out = tuple(copy.deepcopy(module)(torch.empty(call.shape, device="meta")).shape)
        transposed = bool(module.transposed)
        small, big = (call.shape, out) if transposed else (out, call.shape)
        weight = (module.groups, shape[0] // module.groups, *shape[1:])
        return cls(weight, module.stride, module.padding, module.dilation, call.shape[0], small[2:], big[2:], transposed)

    def terms(self, what: str) -> int:
        """How many products are summed up in a value of "output", "input" (its gradient), "weight" or "bias"."""
        if what in ("weight", "bias"):
            return self.samples * math.prod(self.big if what == "bias" and self.transposed else self.small)
        return math.prod(self.weight[3:]) * self.weight[2 if self.small_side(what) else 1]

    def small_side(self, what: str) -> bool:
        """Whether "output" or "input" is the small side."""
        return (what == "input") == self.transposed

    def positions(self, small: bool, budget: int, generator: torch.Generator) -> Tensor:
        """Flat positions (P,) in (sample, i, j, k) of a side: all of them, or corners and random ones that keep to the budget."""
        import torch

        g, a, b, *kernel = self.weight
        sides = self.small if small else self.big
        total = self.samples * math.prod(sides)
        many = max(64, budget // (math.prod(kernel) * (g * a * b + _MOVE * g * (b if small else a))))
        if many >= total:
            return torch.arange(total)
        corners = torch.cartesian_prod(*(torch.tensor([0, n - 1]) for n in (self.samples, *sides)))
        return torch.cat([_flat(corners, sides), torch.randint(total, (many,), generator=generator)])

    def channels(self, budget: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Groups and small and big channels a group whose weight gradients keep to the budget: all, or first, last and random ones."""
        import torch

        many = list(self.weight[:3])
        each = math.prod(self.weight[3:]) * self.samples * math.prod(self.small)
        while each * many[0] * (many[1] * many[2] + _MOVE * (many[1] + many[2])) > budget and max(many) > 1:
            largest = many.index(max(many))
            many[largest] = (many[largest] + 1) // 2

        def pick(total: int, count: int) -> Tensor:
            order = torch.randperm(total, generator=generator)
            ends = torch.tensor([0, total - 1] if count > 1 else [], dtype=torch.int64)
            return torch.cat([ends, order[~torch.isin(order, ends)]])[:count].sort().values

        picked = [pick(total, count) for total, count in zip(self.weight[:3], many, strict=True)]
        return picked[0], picked[1], picked[2]

    def at(self, what: str, weight: Tensor, other: Tensor, positions: Tensor) -> Tensor:
        """(2, P, C) float64: values of one side at flat positions, and their sums of squared terms, from the other side (N, C, I, J, K)."""
        import torch

        small = self.small_side(what)
        here, there = (self.small, self.big) if small else (self.big, self.small)
        g, a, b = self.weight[:3]
        rows = other.movedim(1, -1).reshape(-1, other.shape[1])
        kernel = weight.detach().reshape(self.weight).double()
        n, p = positions // math.prod(here), torch.stack(torch.unravel_index(positions % math.prod(here), here), dim=1)
        stride, padding, dilation, sides = map(torch.tensor, (self.stride, self.padding, self.dilation, there))
        total = torch.zeros(2, len(positions), g, a if small else b, dtype=torch.float64)
        for i, j, k in itertools.product(*map(range, self.weight[3:])):
            shift = torch.tensor((i, j, k)) * dilation - padding
            q = p * stride + shift if small else torch.div(p - shift, stride, rounding_mode="floor")
            hits = ((q >= 0) & (q < sides)).all(1) & (small or ((p - shift) % stride == 0).all(1))
            met = rows[_flat(torch.cat([n[hits, None], q[hits]], 1), there)].double().reshape(-1, g, b if small else a)
            for power in (1, 2):
                terms = "pgb,gab->pga" if small else "pga,gab->pgb"
                total[power - 1, hits] += torch.einsum(terms, met**power, kernel[..., i, j, k] ** power)
        return total.flatten(2)

    def weights(self, x: Tensor, upstream: Tensor, groups: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Gradients, and sums of squared terms, of the weights between those channels: (2, groups, a, b, *kernel) float64."""
        import torch
        import torch.nn.functional as F

        small, big = (x, upstream) if self.transposed else (upstream, x)
        low, high = (side.reshape(self.samples, self.weight[0], -1, *side.shape[2:])[:, groups].double() for side in (small, big))
        high, low = F.pad(high[:, :, b], [self.padding[axis] for axis in (2, 2, 1, 1, 0, 0)]), low[:, :, a].flatten(3)
        result = torch.empty(2, len(groups), len(a), len(b), *self.weight[3:], dtype=torch.float64)
        for i, j, k in itertools.product(*map(range, self.weight[3:])):
            met = high
            for axis, offset in enumerate((i, j, k)):
                stride, first = self.stride[axis], offset * self.dilation[axis]
                met = met.narrow(axis - 3, first, (self.small[axis] - 1) * stride + 1).movedim(axis - 3, 0)[::stride].movedim(0, axis - 3)
            for power in (1, 2):
                result[power - 1, ..., i, j, k] = torch.einsum("ngav,ngbv->gab", low**power, met.flatten(3) ** power)
        return result


def _flat(positions: Tensor, sides: Shape) -> Tensor:
    """(P, 4) -> (P,)."""
    n, i, j, k = positions.unbind(1)
    return ((n * sides[0] + i) * sides[1] + j) * sides[2] + k


# ---- the check


@dataclass(frozen=True)
class Check:
    """What a layer gave in a precision and a memory layout.

    errors: the largest of "output" and of the gradients of "input", "weight" and "bias", each divided by what it may be: right is at
        most 1. Infinite where a value is not finite.
    same: whether all runs gave the same bits.
    """

    call: Call
    precision: str
    memory: Memory
    errors: Mapping[str, float]
    same: bool

    @property
    def right(self) -> bool:
        """Whether all errors are rounding."""
        return max(self.errors.values()) <= 1

    @property
    def sentence(self) -> str:
        """What is wrong with which layer."""
        wrong = ", ".join(f"{what} by {error:.3g} times" for what, error in self.errors.items() if not error <= 1)
        return f"{self.call.sentence} in {self.precision}, {self.memory}: off {wrong} what rounding explains"


def check_layer(
    call: Call, ways: Sequence[tuple[str, Memory]], device: torch.device, budget: int = BUDGET, repeats: int = REPEATS
) -> list[Check]:
    """A layer alone, in each of the ways (precision, memory), against one float64 reference.

    Args:
        call: of `layers_of`. Weights and input are made here, from seed 0; its own `reset_parameters` makes the weights.
        device: that computes; the reference is computed on the CPU.
        budget: of the reference, see `BUDGET`; large enough, and every value is compared.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: Any = copy.deepcopy(call.module).to_empty(device="cpu")
        module.reset_parameters()
    out = copy.deepcopy(call.module)(torch.empty(call.shape, device="meta")).shape
    # Uniform with rms 1: sums of few terms have no far tails then.
    x, upstream = ((torch.rand(shape, generator=generator) - 0.5) * math.sqrt(12) for shape in (call.shape, out))
    wanted = _reference(_Definition.of(call), module, x, upstream, budget, generator)
    return [_compared(call, wanted, way, device, [_run(module, x, upstream, way, device) for _ in range(repeats)]) for way in ways]


@dataclass(frozen=True)
class _Wanted:
    """What of a result is compared: which values, what they are in float64, the scales of their errors, their rms, terms of each."""

    sampled: Callable[[Tensor], Tensor]
    values: Tensor
    scale: Tensor
    rms: float
    terms: int


def _reference(
    definition: _Definition, module: Any, x: Tensor, upstream: Tensor, budget: int, generator: torch.Generator
) -> dict[str, _Wanted]:
    import torch

    if module.weight.ndim == 2:
        x, upstream = (rows.reshape(1, -1, rows.shape[-1], 1, 1).transpose(1, 2) for rows in (x, upstream))
    found = {}

    def want(what: str, sampled: Callable[[Tensor], Tensor], sums: Tensor) -> None:
        rms = float(sums[0].square().mean().sqrt()) or 1.0
        found[what] = _Wanted(sampled, sums[0], torch.maximum(sums[1].sqrt(), sums[0].abs()).clamp_min(rms), rms, definition.terms(what))

    for what, other in (("output", x), ("input", upstream)):
        positions = definition.positions(definition.small_side(what), budget, generator)
        sums = definition.at(what, module.weight, other, positions)
        if what == "output" and module.bias is not None:
            sums += torch.stack([module.bias.detach().double() ** power for power in (1, 2)])[:, None]

        def at(result: Tensor, positions: Tensor = positions) -> Tensor:
            return (result if module.weight.ndim == 2 else result.movedim(1, -1)).flatten(0, -2)[positions]

        want(what, at, sums)
    g, a, b = definition.channels(budget, generator)
    want("weight", lambda w: w.reshape(definition.weight)[g][:, a][:, :, b], definition.weights(x, upstream, g, a, b))
    if module.bias is not None:
        want("bias", lambda bias: bias, torch.stack([(upstream.double() ** power).sum((0, 2, 3, 4)) for power in (1, 2)]))
    return found


def _compared(
    call: Call, wanted: Mapping[str, _Wanted], way: tuple[str, Memory], device: torch.device, runs: Sequence[Mapping[str, Tensor]]
) -> Check:
    import torch

    unit, same, errors = unit_roundoff(way[0], device, call.linear), True, {}
    for what, want in wanted.items():
        may = 8 * (unit + ROUNDOFF["float32"] * math.sqrt(want.terms))
        first, found = runs[0][what], [0.0]
        for result in (run[what] for run in runs):
            off = (want.sampled(result).double() - want.values).abs() / want.scale
            found.append(float(off.max()) / may if bool(result.isfinite().all()) else math.inf)
            if not torch.equal(result.view(torch.int32), first.view(torch.int32)):
                same = False
                # Each may be off by what is allowed, so two runs by twice that.
                apart = (result - first).abs() / first.abs().clamp_min(want.rms)
                found.append(float(apart.nan_to_num(math.inf).max()) / may / 2)
        errors[what] = max(found)
    return Check(call, *way, errors, same)


def unit_roundoff(precision: str, device: torch.device, linear: bool) -> float:
    """Of the type in which the device rounds operands; CUDA's float32 may be TF32, as torch is set."""
    import torch

    backend: Any = torch.backends.cuda.matmul if linear else torch.backends.cudnn
    return ROUNDOFF["tf32" if precision == "float32" and device.type == "cuda" and backend.allow_tf32 else precision]


def _run(module: nn.Module, x: Tensor, upstream: Tensor, way: tuple[str, Memory], device: torch.device) -> dict[str, Tensor]:
    """Output and gradients in float32 on the CPU, of a fresh copy in memory that held NaN before."""
    import torch

    precision, memory = way
    layout = torch.channels_last_3d if memory == "channels last" else torch.contiguous_format
    own: Any = in_memory(copy.deepcopy(module).to(device), memory)
    here = x.to(device).contiguous(memory_format=layout).detach().requires_grad_()
    sizes = {1_000, 30_000, 300_000, x.numel(), upstream.numel(), own.weight.numel()}

    def poison() -> None:
        _ = [torch.full((n,), math.nan, device=device, dtype=dtype) for n in sizes for dtype in (torch.float32, torch.bfloat16)]

    poison()
    with autocast(device, precision):
        y = own(here)
    above = upstream.to(device, y.dtype).contiguous(memory_format=layout)
    poison()
    y.backward(above)
    results = {"output": y.detach(), "input": here.grad, "weight": own.weight.grad}
    results |= {"bias": own.bias.grad} if own.bias is not None else {}
    return {what: value.float().cpu() for what, value in results.items()}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Around a forward pass, as training computes it in that precision."""
    import torch

    lower = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    return contextlib.nullcontext() if lower is None else torch.autocast(device.type, lower)


def in_memory(network: nn.Module, memory: Memory) -> nn.Module:
    """The network with its kernels in that layout."""
    import torch

    layout = torch.channels_last_3d if memory == "channels last" else torch.contiguous_format
    return network.to(memory_format=layout)  # type: ignore[call-overload,no-any-return]  # torch does not annotate it
