"""Every convolution of every network, forwards and backwards in bfloat16, against float64.

On processors with bfloat16 instructions, torch's weight gradient of some convolutions is uninitialised memory (see
`kernels_cpu.hazardous`). So each convolution runs as training runs it, alone, with freed memory poisoned, at the shapes of the recipes.
Processors without such instructions do not have that fault, and take seconds for one large convolution: there, sides that are longer
than the kernel by more than 3 are cut.
"""

import copy
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uxnet.devices import cpu_computes_bfloat16
from uxnet.doctor.layers import Call, check_layer, layers_of
from uxnet.networks.blocks import CarefulConv3d, CarefulConvTranspose3d, CarefulGroupNorm, DenseConv3d, DepthwiseConv3d
from uxnet.networks.build import NETWORKS, build
from uxnet.networks.cpu.kernels import hazardous
from uxnet.recipe import load_recipe, recipe_names

SETTINGS = {
    "uxnet": {"widths": [12, 24, 48, 96], "hidden": 192},
    "unet": {"widths": [4, 8, 16, 32, 64]},
    "segresnet": {},
    "rapnet": {"width": 8},
    "nnunet": {"widths": [8, 16, 32, 64, 80, 80]},
    "transbts": {"widths": [8, 16, 32, 64], "embedding": 128},
    "unetr": {"width": 8, "hidden": 192, "mlp": 768},
    "nnformer": {"widths": [48, 96, 192, 384], "heads": [3, 6, 12, 24]},
    "swinunetr": {"width": 12},
}
"""Of each network at the paper's patch, 96^3: the default's kernels and depths, a quarter of its widths. A new network needs a line."""

DEEPEST = 12
"""At 96^3 only grids of at most this side run: they are what can be smaller than a kernel, and the rest takes too long here."""


BUDGET = 200_000_000
"""Of each reference, see `check_layer`: a twentieth of what `uxnet doctor` spends, since there are many."""


def convolutions(name, in_channels, out_channels, network_settings, patch):
    """Each different convolution as a training step calls it; taken from a network without memory, at no cost."""
    with torch.device("meta"):
        network = build(name, in_channels, out_channels, patch, network_settings)
    return [call for call in layers_of(network, (1, in_channels, *patch)) if not call.linear]


def affordable(call):
    """The call itself where the processor computes in bfloat16, else with its long sides cut."""
    if cpu_computes_bfloat16():
        return call
    sides = (min(side, 2 * ((kernel + 4) // 2)) for side, kernel in zip(call.shape[2:], call.module.kernel_size, strict=True))
    return replace(call, shape=(*call.shape[:2], *sides))


def recipes_of(name):
    return [stage for recipe in recipe_names() for stage in load_recipe(recipe).stages if stage.network.name == name]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_in_bfloat16_at_the_shapes_of_training(name):
    assert name in SETTINGS, f"say in SETTINGS how wide {name} shall be here"
    small = convolutions(name, 1, 5, SETTINGS[name], (96, 96, 96))
    found = [call for call in small if max(call.shape[2:]) <= DEEPEST]
    for stage in recipes_of(name):
        calls, large = convolutions(name, 1, 3, stage.network.settings, stage.sampling.patch), max(stage.sampling.patch) >= 96
        found += [call for call in calls if not large or max(call.shape[2:]) <= DEEPEST]
    wrong = []
    for call in {(repr(c.module), c.shape): c for c in map(affordable, found)}.values():
        repeats = 4 if cpu_computes_bfloat16() or call.smaller_than_kernel else 1
        checks = check_layer(call, [("bfloat16", "channels last")], torch.device("cpu"), BUDGET, repeats)
        # Emulated, torch's input gradient adds up the kernel's offsets in bfloat16 itself; uninitialised memory is off by far more.
        room = math.sqrt(math.prod(call.module.kernel_size))
        wrong += [check.sentence for check in checks if max(check.errors.values()) > room]
    assert not wrong, "\n".join(wrong)


# ---- the way out


SMALL = [
    (CarefulConv3d(16, 16, 3, padding=1), (2, 2, 2)),
    (CarefulConv3d(3, 16, 5, padding=2), (2, 3, 4)),
    (CarefulConv3d(16, 32, 3, stride=2, padding=1), (1, 1, 1)),
    (CarefulConvTranspose3d(32, 8, 3, padding=1), (2, 3, 2)),
    (DenseConv3d(16, 16, 3), (3, 2, 5)),
    (DepthwiseConv3d(16, 7), (6, 6, 6)),
    (DepthwiseConv3d(16, 7), (12, 6, 12)),
]
"""Where torch's own are wrong on processors with bfloat16 instructions, and the process may die of it."""


@pytest.mark.parametrize("memory", ["channels last", "contiguous"])
@pytest.mark.parametrize(("module", "sides"), SMALL)
def test_a_side_smaller_than_the_kernel_is_no_danger(module, sides, memory):
    call = Call("one", copy.deepcopy(module).to("meta"), (2, module.in_channels, *sides))
    assert call.smaller_than_kernel
    for check in check_layer(call, [("bfloat16", memory)], torch.device("cpu"), BUDGET, 4):
        assert max(check.errors.values()) < 3, check.sentence


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_has_a_convolution_that_is_not_careful(name):
    with torch.device("meta"):
        modules = list(build(name, 1, 3, (64, 64, 64), {"size": "narrow"}).modules())
    assert not [module for module in modules if type(module) in (nn.Conv3d, nn.ConvTranspose3d, nn.GroupNorm)]
    assert any(isinstance(module, CarefulConv3d) for module in modules)


@pytest.mark.parametrize("memory", [torch.channels_last_3d, torch.contiguous_format])
def test_a_group_norm_in_bfloat16_computes_in_float32(memory):
    norm = CarefulGroupNorm(2, 6)
    x = (100 + torch.randn(2, 6, 5, 7, 6)).to(torch.bfloat16, memory_format=memory).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=memory)
    assert torch.equal(y, F.group_norm(x.float(), 2, norm.weight, norm.bias).bfloat16())
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16


class Spy:
    """Stands for a function of torch and notes how it is called."""

    def __init__(self, real):
        self.calls, self.real = [], real

    def __call__(self, x, weight, *more, **named):
        autocast = torch.is_autocast_enabled("cpu")
        self.calls.append((x.dtype, weight.dtype, autocast))
        return self.real(x, weight, *more, **named)


SAFE = (torch.float32, torch.float32, False)


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3),
    sides=st.tuples(*[st.integers(1, 9)] * 3),
    kind=st.sampled_from(["dense", "depthwise", "transposed"]),
    how=st.sampled_from(["float32", "autocast", "bfloat16 in autocast", "all bfloat16"]),
)
def test_the_safe_way_is_taken_exactly_where_it_is_needed(kernel, sides, kind, how):
    padding = [k // 2 for k in kernel]
    conv = (
        CarefulConvTranspose3d(4, 4, kernel, stride=2, padding=padding)
        if kind == "transposed"
        else CarefulConv3d(4, 4, kernel, padding=padding, groups=4 if kind == "depthwise" else 1)
    ).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 4, *sides).contiguous(memory_format=torch.channels_last_3d)
    x = x.to(torch.bfloat16) if "bfloat16" in how else x
    conv = conv.to(torch.bfloat16) if how == "all bfloat16" else conv
    function = "conv_transpose3d" if kind == "transposed" else "conv3d"
    spy = Spy(getattr(F, function))
    with mock.patch.object(F, function, spy), torch.autocast("cpu", torch.bfloat16, enabled="autocast" in how):
        y = conv(x)
    (call,) = spy.calls
    assert y.dtype == (torch.float32 if how == "float32" else torch.bfloat16)
    needed = how != "float32" and any(side < k for side, k in zip(sides, kernel, strict=True))
    # On a handful of voxels torch itself now and then answers in the other layout; where the safe way is taken, it is as in float32.
    assert not needed or y.stride() == conv.float()(x.float()).stride()
    assert (call == SAFE) == (needed or how == "float32")
    assert call[2] == ("autocast" in how and not needed)


def test_float32_is_the_same_convolution():
    conv = DepthwiseConv3d(6, 7).to(memory_format=torch.channels_last_3d)
    plain = nn.Conv3d(6, 6, 7, padding=3, groups=6).to(memory_format=torch.channels_last_3d)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 3, 4, 9).contiguous(memory_format=torch.channels_last_3d)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    conv(a).square().sum().backward()
    plain(b).square().sum().backward()
    assert torch.equal(conv(x), plain(x))
    # Its gradients are summed up in another order, see test_kernels_cpu.py.
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(conv.bias.grad, plain.bias.grad)


def test_float64_and_other_devices_are_left_alone():
    with torch.autocast("cpu", torch.bfloat16):
        assert hazardous(torch.zeros(1, 2, 3, 3, 3), (7, 1, 1))
        assert not hazardous(torch.zeros(1, 2, 3, 3, 3, dtype=torch.float64), (7, 1, 1))
    assert not hazardous(torch.zeros(1, 2, 3, 3, 3), (7, 1, 1))
    assert not hazardous(torch.zeros(1, 2, 3, 3, 3, device="meta", dtype=torch.bfloat16), (7, 1, 1))
