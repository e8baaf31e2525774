"""Every convolution of every network, forwards and backwards in bfloat16, against float64.

On processors with bfloat16 instructions, torch's weight gradient of some depthwise convolutions is uninitialised memory (see
`DepthwiseConv3d`). So each convolution runs as training runs it, alone, with freed memory poisoned, at the shapes of the recipes.
Processors without such instructions do not have that fault, and take seconds for one large convolution: there, sides that are longer
than the kernel by more than 3 are cut.
"""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uxnet.devices import cpu_computes_bfloat16
from uxnet.networks.blocks import DepthwiseConv3d
from uxnet.networks.build import NETWORKS, build
from uxnet.recipe import load_recipe, recipe_names

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)
TOLERANCE = 5e-2
"""Of the largest value; bfloat16 itself has 8 bits."""

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


def convolutions(name, in_channels, out_channels, network_settings, patch):
    """Each different convolution with the shape of its input; taken from a network without memory, at no cost."""
    with torch.device("meta"):
        network = build(name, in_channels, out_channels, patch, network_settings)
        found = {}

        def note(module, inputs, _):
            found.setdefault((repr(module), tuple(inputs[0].shape)), copy.deepcopy(module))

        for module in network.modules():
            if isinstance(module, CONVOLUTIONS):
                module.register_forward_hook(note)
        network(torch.empty(1, in_channels, *patch))
    return [(module, shape) for (_, shape), module in found.items()]


def worst_errors(module, shape, repeats):
    """The largest errors of output and gradients, relative to float64's largest values, over a few runs."""
    module = module.to_empty(device="cpu").to(memory_format=torch.channels_last_3d)
    module._forward_hooks.clear()
    torch.manual_seed(0)
    module.reset_parameters()
    x = torch.randn(shape)
    exact = copy.deepcopy(module).double()
    x64 = x.double().requires_grad_()
    # The plain convolution: what is checked must not check itself.
    y64 = exact._conv_forward(x64, exact.weight, exact.bias) if isinstance(exact, nn.Conv3d) else exact(x64)
    upstream = torch.randn(y64.shape)
    y64.backward(upstream.double())
    want = {"output": y64, "input": x64.grad} | {name: p.grad for name, p in exact.named_parameters()}
    errors = dict.fromkeys(want, 0.0)
    for _ in range(repeats):
        poison = [torch.full((n,), 1e30) for n in (1_000, 30_000, 300_000)]
        del poison
        xx = x.contiguous(memory_format=torch.channels_last_3d).detach().requires_grad_()
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(xx)
        y.backward(upstream.to(y.dtype).contiguous(memory_format=torch.channels_last_3d))
        got = {"output": y, "input": xx.grad} | {name: p.grad for name, p in module.named_parameters()}
        for key, value in got.items():
            error = float((value.detach().double() - want[key].detach()).abs().max() / want[key].detach().abs().max())
            errors[key] = max(errors[key], error if error == error else float("inf"))
    return errors


def affordable(module, shape):
    """The shape itself where the processor computes in bfloat16, else with its long sides cut."""
    if cpu_computes_bfloat16():
        return shape
    return (*shape[:2], *(min(side, 2 * ((kernel + 4) // 2)) for side, kernel in zip(shape[2:], module.kernel_size, strict=True)))


def recipes_of(name):
    return [stage for recipe in recipe_names() for stage in load_recipe(recipe).stages if stage.network.name == name]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_in_bfloat16_at_the_shapes_of_training(name):
    assert name in SETTINGS, f"say in SETTINGS how wide {name} shall be here"
    small = convolutions(name, 1, 5, SETTINGS[name], (96, 96, 96))
    found = [(module, shape) for module, shape in small if max(shape[2:]) <= DEEPEST]
    for stage in recipes_of(name):
        found += convolutions(name, 1, 3, stage.network.settings, stage.sampling.patch)
    # The danger itself must be among those of the one network that has it, or this test has lost its point.
    dangers = [
        isinstance(module, nn.Conv3d) and module.groups == module.in_channels > 1 and min(shape[2:]) < max(module.kernel_size)
        for module, shape in found
    ]
    assert any(dangers) == (name == "uxnet")
    wrong = []
    for module, shape in {(repr(m), affordable(m, s)): (m, affordable(m, s)) for m, s in found}.values():
        endangered = cpu_computes_bfloat16() or any(side < k for side, k in zip(shape[2:], module.kernel_size, strict=True))
        errors = worst_errors(module, shape, repeats=4 if endangered else 1)
        if max(errors.values()) > TOLERANCE:
            wrong.append(f"{module} at {shape}: {errors}")
    assert not wrong, "\n".join(wrong)


# ---- the depthwise convolution's way out


class Spy:
    """Stands for F.conv3d and notes how it is called."""

    def __init__(self):
        self.calls = []
        self.real = F.conv3d

    def __call__(self, x, weight, bias=None, **more):
        autocast = torch.is_autocast_enabled("cpu")
        self.calls.append((x.dtype, weight.dtype, autocast, x.is_contiguous() and weight.is_contiguous()))
        return self.real(x, weight, bias, **more)

    def plain(self, x, weight, bias, stride, padding, dilation, groups):
        return self(x, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def spied(conv, x, autocast):
    spy = Spy()

    def conv3d(*arguments, **more):
        return spy.plain(*arguments) if len(arguments) == 7 else spy(*arguments, **more)

    with mock.patch.object(F, "conv3d", conv3d), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = conv(x)
    assert len(spy.calls) == 1
    return y, spy.calls[0]


SAFE = (torch.float32, torch.float32, False, True)


@settings(max_examples=80, deadline=None)
@given(
    kernel=st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3),
    sides=st.tuples(*[st.integers(1, 9)] * 3),
    how=st.sampled_from(["float32", "autocast", "bfloat16 in autocast", "all bfloat16"]),
)
def test_the_safe_way_is_taken_exactly_where_it_is_needed(kernel, sides, how):
    conv = DepthwiseConv3d(4, kernel).to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 4, *sides).contiguous(memory_format=torch.channels_last_3d)
    if "bfloat16" in how:
        x = x.to(torch.bfloat16)
    if how == "all bfloat16":
        conv = conv.to(torch.bfloat16)
    y, call = spied(conv, x, autocast="autocast" in how)
    assert y.shape == x.shape
    assert y.dtype == (torch.float32 if how == "float32" else torch.bfloat16)
    needed = how != "float32" and any(side < k for side, k in zip(sides, kernel, strict=True))
    assert (call == SAFE) == needed or (how == "float32" and call[:3] == SAFE[:3])
    if not needed:
        assert call[2] == ("autocast" in how)


def test_float32_is_left_exactly_as_it_is():
    conv = DepthwiseConv3d(6, 7).to(memory_format=torch.channels_last_3d)
    plain = nn.Conv3d(6, 6, 7, padding=3, groups=6).to(memory_format=torch.channels_last_3d)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(2, 6, 3, 4, 9).contiguous(memory_format=torch.channels_last_3d)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    conv(a).square().sum().backward()
    plain(b).square().sum().backward()
    assert torch.equal(conv(x), plain(x))
    assert torch.equal(a.grad, b.grad)
    assert torch.equal(conv.weight.grad, plain.weight.grad)


def test_float64_and_other_devices_are_left_alone():
    conv = DepthwiseConv3d(2, 7).double()
    with torch.autocast("cpu", torch.bfloat16):
        assert not conv.unsafe(torch.zeros(1, 2, 3, 3, 3, dtype=torch.float64))
    assert not conv.unsafe(torch.zeros(1, 2, 3, 3, 3, device="meta", dtype=torch.bfloat16))
