"""What a network costs: multiply-accumulates of one forward pass, counted right and counted as the paper counted.

Source: the 3D UX-Net's paper (arXiv:2209.15076), Table 1. Its column "FLOPs" holds multiply-accumulates, not twice as many, as version
0.6.8 or 0.6.9 of ptflops counts them. That count charges a transposed convolution for every voxel of its *output* (eight times too much
at stride 2), adds what norms, activations and biases touch, and is blind to matrix products outside `nn.Linear`, so to attention. Both
counts are needed: one to say what a network costs, one to stand beside the table. One GMac is 1e9 MACs.

Everything is counted below the modules, where torch dispatches operations: so it does not matter whether a network calls `nn.GELU`,
`F.gelu` or `torch.nn.functional.conv3d`. Nothing is computed: the network runs as a copy on the meta device, which has shapes alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass, of the whole batch.

    true: those that run, in convolutions, transposed convolutions (one kernel a voxel of their *input*), linear layers, matrix
        products and attention. Biases, norms, activations, softmax and elementwise products count nothing.
    paper: by the convention of the paper's Table 1, which was made with a batch of one; see `PAPER`.
    """

    true: int
    paper: int


def count_macs(network: nn.Module, shape: Sequence[int]) -> Macs:
    """The multiply-accumulates of one forward pass, in the mode (training or evaluation) that the network is in.

    The network itself is neither run nor changed, and takes no memory a second time: what runs is a copy whose parameters and buffers
    are on the meta device. Tensors that a network keeps otherwise are not moved there, and values cannot steer what runs.

    Args:
        network: on any device, meta included; called with one image.
        shape: of the image, (N, C, I, J, K). Its dtype is that of the network's first floating-point parameter, else float32.

    Raises:
        ValueError: or whatever else the network raises for an image of this shape.
    """
    twin = on_meta(network)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    image = torch.empty(tuple(shape), dtype=dtype, device="meta")
    # Inference mode lets whole operations (a linear layer, a batch norm) reach the counters before autograd takes them apart.
    # Forked generators: a network that draws its own random numbers while training must not disturb the caller's.
    flops, paper = FlopCounterMode(display=False, custom_mapping=dict(VECTORS)), _PaperCount()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(), flops, paper:
        twin(image)
    return Macs(true=flops.get_total_flops() // 2, paper=paper.macs)


def on_meta(network: nn.Module) -> nn.Module:
    """A copy of the network that shares nothing with it and holds no memory; modes and hooks are kept."""
    # deepcopy looks here first, and so never copies a weight; a weight that is tied to another stays tied.
    instead: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in network.parameters()}
    instead |= {id(b): torch.empty_like(b, device="meta") for b in network.buffers()}
    return copy.deepcopy(network, instead)


# ---- the true count: torch's own, and the products with vectors that it leaves out


def _vectors(a: Sequence[int], b: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs, so 2 a MAC, of a matrix or vector times a vector."""
    return 2 * torch.Size(a).numel()


VECTORS: Mapping[Any, Callable[..., int]] = {
    aten.mv: _vectors,
    aten.dot: _vectors,
    aten.addmv: lambda _, a, b, *__, **___: _vectors(a, b),
    aten.addbmm: lambda _, a, b, *__, **___: 2 * torch.Size(a).numel() * b[2],
}
"""What `FlopCounterMode` of torch 2.13 does not know, from the operands' shapes. (`nn.Bilinear` stays unknown to it.)"""


# ---- the paper's count


def _convolution(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> int:
    # One expression for both directions, since the whole kernel is charged for every voxel of the output either way: for a
    # convolution that is right, for a transposed one too much by the product of its strides.
    return out.numel() // out.shape[1] * weight.numel() + (0 if bias is None else out.numel())


def _linear(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
    # The bias is added once, however many positions there are.
    return x.numel() * weight.shape[0] + (0 if bias is None else weight.shape[0])


def _norm(out: Tensor, x: Tensor, weight: Tensor | None, *_: Any) -> int:
    return x.numel() * (1 if weight is None else 2)


def _group_norm(out: Tensor, x: Tensor, groups: int, weight: Tensor | None = None, *_: Any) -> int:
    return _norm(out, x, weight)


def _inputs(out: Any, x: Tensor, *_: Any) -> int:
    return x.numel()


def _outputs(out: Tensor, *_: Any) -> int:
    return out.numel()


_ACTIVATIONS = ("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "gelu", "gelu_", "hardtanh", "hardtanh_")
_POOLINGS = tuple(
    f"{kind}_pool{axes}d{more}"
    for axes in (1, 2, 3)
    for kind, more in (("max", ""), ("max", "_with_indices"), ("avg", ""), ("adaptive_avg", ""), ("adaptive_max", ""))
)
_UPSAMPLINGS = (
    *(f"{kind}{axes}d" for axes in (1, 2, 3) for kind in ("upsample_nearest", "_upsample_nearest_exact")),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
)

PAPER: Mapping[Any, Callable[..., int]] = {
    aten.convolution: _convolution,
    aten.linear: _linear,
    aten.batch_norm: _norm,
    aten.instance_norm: _norm,
    aten.group_norm: _group_norm,
    **{getattr(aten, name): _outputs for name in (*_ACTIVATIONS, *_UPSAMPLINGS)},
    **{getattr(aten, name): _inputs for name in _POOLINGS},
}
"""Operation -> its cost by the paper's convention, from its output and arguments; what is not named costs nothing.

- convolutions and transposed convolutions: the kernel's weights for every voxel of the output, and the bias there;
- linear layers: inputs times output channels, and the bias once;
- batch, instance and group norm: an element of the input 1, with affine weights 2; layer norm nothing;
- ReLU, ReLU6, leaky, parametric and exponential ReLU, GELU: an element of the output 1; softmax, sigmoid and others nothing;
- pooling: an element of the input 1; upsampling: an element of the output 1;
- matrix products, einsum and attention: nothing.

ptflops looks at modules, this at operations, so it makes no difference how a network is written. Over table 1's networks, at 1x1x96x96x96
with 5 and 8 classes, the two agree to the last MAC where there is a reference to run, and to the digits of its record elsewhere, but for

- nnFormer, here 0.003 % (6,967,296 MACs) more: its authors call GELU as a function before downsampling, where ptflops misses it;
- SegResNet, here 0.045 % (7,077,888 MACs) less: MONAI registers its last ReLU in two places, and ptflops adds it up in both.

Elsewhere they differ for `nn.MultiheadAttention` and recurrent layers, for which ptflops has formulas of its own (here: their linear
layers alone), for subclasses of torch's layers, which it does not see, and for SELU and Hardtanh, which run as an ELU and a ReLU6.
"""


class _PaperCount(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the modes' own methods without types
    """Adds up `PAPER` over all operations that run inside it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        cost = PAPER.get(func.overloadpacket)
        if cost is None:
            # Not one that is priced as a whole: its parts may be.
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.macs += cost(out, *args)
        return out
