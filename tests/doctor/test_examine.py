"""The doctor: what is compared with is right, what is wrong is found, and the verdict follows from both."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from uxnet.doctor import examine as doctor
from uxnet.doctor import layers
from uxnet.doctor.examine import Examined, Way, examine, machine, one_of_each
from uxnet.doctor.layers import Call, Check, check_layer, layers_of
from uxnet.errors import DeviceError, UsageError
from uxnet.events import Progress
from uxnet.networks.blocks import DepthwiseConv3d
from uxnet.networks.build import NETWORKS, build

CPU = torch.device("cpu")
LAST, PLAIN = ("float32", "channels last"), ("float32", "contiguous")


def call_of(module, shape):
    (call,) = layers_of(nn.Sequential(module), shape)
    return call


LAYERS = [
    (nn.Conv3d(4, 6, 3, padding=1), (2, 4, 5, 6, 7)),
    (nn.Conv3d(4, 8, (3, 1, 5), stride=(2, 1, 3), padding=(1, 0, 2), groups=2, dilation=(1, 1, 2)), (2, 4, 9, 6, 17)),
    (nn.Conv3d(1, 5, 3, stride=2, bias=False), (1, 1, 6, 7, 8)),
    (nn.Conv3d(6, 12, 1, groups=6), (1, 6, 4, 4, 4)),
    (DepthwiseConv3d(8, (5, 3, 3)), (2, 8, 2, 6, 5)),
    (nn.ConvTranspose3d(6, 4, 2, stride=2), (2, 6, 3, 4, 5)),
    (nn.ConvTranspose3d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2), (2, 6, 3, 4, 5)),
    (nn.Linear(12, 7), (2, 5, 6, 12)),
    (nn.Linear(12, 7, bias=False), (2, 3, 2, 5, 12)),
]


# ---- the reference


@pytest.mark.parametrize("budget", [10**12, 1])
@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=repr)
def test_the_reference_is_float64s_result_whole_or_sampled(module, shape, budget, monkeypatch):
    """torch's own float64, which is slow and right, on shapes where that does not matter."""
    exact, x = copy.deepcopy(module).double(), torch.randn(shape)
    exact.load_state_dict({key: value.double() for key, value in module.state_dict().items()})
    x64 = x.double().requires_grad_()
    y = exact(x64)
    upstream = torch.randn(y.shape)
    y.backward(upstream.double())
    results = {"output": y.detach(), "input": x64.grad} | {name: p.grad for name, p in exact.named_parameters()}
    definition = layers._Definition.of(call_of(module, shape))
    wanted = layers._reference(definition, module, x, upstream, budget, torch.Generator().manual_seed(0))
    assert list(wanted) == list(results)
    for what, want in wanted.items():
        torch.testing.assert_close(want.sampled(results[what]), want.values, rtol=1e-11, atol=1e-11)
        if budget > 1:
            assert want.values.numel() == results[what].numel(), what
    if budget == 1:
        assert wanted["weight"].values.numel() == math.prod(definition.weight[3:])


def test_samples_hold_the_ends():
    definition = layers._Definition.of(call_of(nn.Conv3d(40, 40, 3, padding=1), (2, 40, 12, 12, 12)))
    positions = definition.positions(True, 1, torch.Generator().manual_seed(0))
    assert {0, 2 * 12**3 - 1} <= set(positions.tolist())
    assert len(positions) < 200
    _, a, b = definition.channels(27 * 2 * 12**3 * 2000, torch.Generator().manual_seed(0))
    assert 1 < len(a) < 40
    assert {int(a[0]), int(a[-1]), int(b[0]), int(b[-1])} == {0, 39}


def test_padding_that_it_does_not_know_is_refused():
    with pytest.raises(ValueError, match="padding"):
        check_layer(call_of(nn.Conv3d(1, 1, 3, padding="same"), (1, 1, 4, 4, 4)), [LAST], CPU)


# ---- what is called


def test_equal_calls_are_one_and_counted():
    first, second = nn.Conv3d(2, 2, 3, padding=1), nn.Conv3d(2, 2, 3, padding=1)
    calls = layers_of(nn.Sequential(first, second, nn.Conv3d(2, 2, 1), first), (1, 2, 4, 4, 4))
    assert [(call.name, call.times) for call in calls] == [("0", 3), ("2", 1)]
    assert all(p.is_meta for call in calls for p in call.module.parameters())
    assert not any(p.is_meta for p in first.parameters())
    assert not first._forward_hooks


def depthwise(call):
    return getattr(call.module, "groups", 1) > 1


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_layers_and_quick_leaves_no_kind_out(name):
    calls = layers_of(build(name, 1, 3, (32, 48, 32), {"size": "narrow"}), (2, 1, 32, 48, 32))
    some = one_of_each(calls)
    assert 0 < len(some) <= len(calls)
    for kind in (lambda c: type(c.module), depthwise, lambda c: c.smaller_than_kernel):
        assert {kind(call) for call in some} == {kind(call) for call in calls}
    assert (name == "uxnet") == any(depthwise(call) and call.smaller_than_kernel for call in some)


# ---- right and wrong


@pytest.mark.parametrize("budget", [10**12, 1])
@pytest.mark.parametrize(("module", "shape"), LAYERS, ids=repr)
def test_right_layers_are_right(module, shape, budget):
    call = call_of(module, shape)
    ways = [
        (p, memory) for p in ("float32", "bfloat16") for memory in ("channels last", "contiguous") if not call.linear or memory[1] == "o"
    ]
    for check in check_layer(call, ways, CPU, budget):
        assert check.right, check.sentence
        assert check.same
        # Not by a tolerance so wide that nothing could fail: rounding is a tenth of it and more.
        assert max(check.errors.values()) > 0.02


class Fault(torch.autograd.Function):
    """The identity, but that the gradient is spoiled."""

    @staticmethod
    def forward(ctx, tensor, spoil):
        ctx.spoil = spoil
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.spoil(gradient.clone()), None


def one_nan(gradient):
    gradient[(-1,) * gradient.ndim] = math.nan
    return gradient


def garbage_now_and_then(gradient):
    garbage_now_and_then.calls += 1
    if garbage_now_and_then.calls % layers.REPEATS == 0:
        gradient[tuple(n // 2 for n in gradient.shape)] += 1e4
    return gradient


garbage_now_and_then.calls = 0


class Faulty(nn.Conv3d):
    """A convolution whose weight gradient (or input gradient, or output) is spoiled."""

    def __init__(self, *arguments, spoil, what="weight", **more):
        super().__init__(*arguments, **more)
        self.spoil, self.what = spoil, what

    def forward(self, x):
        weight = Fault.apply(self.weight, self.spoil) if self.what == "weight" else self.weight
        x = Fault.apply(x, self.spoil) if self.what == "input" else x
        y = self._conv_forward(x, weight, self.bias)
        if self.what != "output" or y.is_meta:
            return y
        return y + (self.spoil(y.detach().clone()) - y.detach())  # the gradients stay right


@pytest.mark.parametrize("what", ["weight", "input", "output"])
@pytest.mark.parametrize("spoil", [one_nan, garbage_now_and_then, lambda g: g * 1.01, lambda g: g.roll(1, 0)])
@pytest.mark.parametrize("budget", [10**12, 1])
def test_a_wrong_layer_is_found_and_named(spoil, what, budget):
    garbage_now_and_then.calls = 0
    call = call_of(Faulty(6, 6, 3, padding=1, groups=6, spoil=spoil, what=what), (3, 6, 4, 4, 4))
    (check,) = check_layer(call, [LAST], CPU, budget)
    assert not check.right
    assert [name for name, error in check.errors.items() if error > 1] == [what]
    assert check.same == (spoil is not garbage_now_and_then)
    assert what in check.sentence
    assert "Faulty(6, 6" in check.sentence
    assert (check.errors[what] == math.inf) == (spoil is one_nan)


def test_bits_that_differ_by_rounding_are_told_apart_from_garbage():
    turns = iter(range(10))
    call = call_of(Faulty(2, 2, 3, spoil=lambda g: g * (1 + next(turns) * 2e-7)), (1, 2, 5, 5, 5))
    call = replace(call, module=copy.copy(call.module))
    (check,) = check_layer(call, [LAST], CPU)
    assert (check.right, check.same) == (True, False)


# ---- the verdict


def test_a_network_is_examined_in_every_way():
    events = []
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), DepthwiseConv3d(4, 7), nn.Conv3d(4, 2, 1))
    before = copy.deepcopy(network.state_dict())
    one = examine(network, (1, 1, 5, 5, 5), title="tiny", device="cpu", precisions=["bfloat16"], rounds=1, report=events.append)
    assert [(way.precision, way.memory) for way in one.ways] == [
        (precision, memory) for memory in ("channels last", "contiguous") for precision in ("float32", "bfloat16")
    ]
    assert all(len(way.checks) == 3 and not way.wrong and way.seconds > 0 for way in one.ways)
    assert one.ways[0].ratio == 1
    assert (one.asked, one.memory, one.right) == ("auto", "channels last", True)
    assert "right" in one.sentence
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    for task in ("tiny: layers", "tiny: steps"):
        counts = [(event.done, event.total) for event in events if isinstance(event, Progress) and event.task == task]
        assert counts[0][0] == 0
        assert counts[-1][0] == counts[-1][1]


def test_a_network_without_convolutions():
    one = examine(nn.Linear(3, 2), (4, 3), title="line", asked="float32", device="cpu", rounds=1)
    # A linear layer has no layout: it counts in both, and runs in one.
    assert [len(way.checks) for way in one.ways if way.precision == "float32"] == [1, 1]
    assert one.right
    assert one_of_each([]) == []


def test_a_wrong_network_is_told():
    network = nn.Sequential(nn.Conv3d(1, 2, 3), Faulty(2, 2, 3, spoil=one_nan))
    one = examine(network, (1, 1, 7, 7, 7), title="tiny", asked="float32", device="cpu", rounds=1)
    assert not one.right
    assert [check.call.name for check in one.way.wrong] == ["1"]
    assert "wrong here" in one.sentence
    told = one.to_dict()
    assert told["right"] is False
    assert told["ways"][0]["layers"][1]["errors_by_tolerance"]["weight"] == "not finite"


def test_devices_and_precisions_that_are_not_here():
    with pytest.raises(DeviceError):
        examine(nn.Conv3d(1, 1, 1), (1, 1, 2, 2, 2), title="", device="cpu", precisions=["float16"])
    with pytest.raises(UsageError):
        machine("abacus")


def made_up(asked, chosen, *ways):
    call = Call("a", nn.Conv3d(1, 1, 1), (1, 1, 2, 2, 2))
    made = [
        Way(precision, memory, (Check(call, precision, memory, {"weight": error}, True),), ratio, ratio)
        for precision, memory, error, ratio in ways
    ]
    return Examined("made up", (1, 1, 2, 2, 2), asked, chosen, "channels last", tuple(made))


@pytest.mark.parametrize(
    ("ways", "right", "words"),
    [
        ([(0.1, 1.0), (0.2, 0.6)], True, "takes bfloat16: right, and the fastest precision here"),
        ([(0.1, 1.0), (0.2, 1.02)], True, "takes bfloat16: right, and the fastest precision here"),
        ([(0.1, 1.0), (0.2, 2.0)], True, 'float32 is right, too, and takes 0.50 of the time; set training.precision = "float32"'),
        ([(0.1, 1.0), (9.0, 0.6)], False, 'takes bfloat16, which is wrong here; set training.precision = "float32"'),
        ([(5.0, 1.0), (math.inf, 0.6)], False, "and so is everything else"),
    ],
)
def test_the_verdict(ways, right, words):
    named = [("float32", "channels last", *ways[0]), ("bfloat16", "channels last", *ways[1]), ("bfloat16", "contiguous", 0.0, 0.1)]
    one = made_up("auto", "bfloat16", *named)
    assert one.right == right
    assert words in one.sentence
    assert 'precision "auto" takes bfloat16' in one.sentence
    assert "the recipe names bfloat16" in replace(one, asked="bfloat16").sentence


def test_the_machine():
    told = machine("cpu")
    assert told["versions"]["torch"] == torch.__version__
    assert told["device"] == "cpu"
    assert told["threads"] == torch.get_num_threads()
    assert set(told["extras"]) == {"ray", "nncf", "tensorboard"}
    assert told["cache"]["free_gb"] > 0
    assert doctor._version("no-such-package") is None


def test_tf32_counts_as_what_it_is():
    cuda = torch.device("cuda")
    for linear, backend in ((False, torch.backends.cudnn), (True, torch.backends.cuda.matmul)):
        assert layers.unit_roundoff("float32", cuda, linear) == (2.0**-11 if backend.allow_tf32 else 2.0**-24)
        assert layers.unit_roundoff("float32", CPU, linear) == 2.0**-24
        assert layers.unit_roundoff("bfloat16", cuda, linear) == 2.0**-8
