import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from uxnet.errors import RecipeError
from uxnet.networks.blocks import DropPath, GroupedPointwiseConv3d, LayerNorm, instance_norm, padded_sides
from uxnet.networks.build import build
from uxnet.networks.uxnet import RELEASED_KEYS, UXNet
from uxnet.networks.weights import rename

TINY = {"widths": (4, 8), "depths": (1, 1), "hidden": 8, "layer_scale": 0.5}


def tiny(in_channels=1, out_channels=2, **more):
    torch.manual_seed(0)
    return UXNet(in_channels, out_channels, **{**TINY, **more})


def image(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rename_refuses_what_it_does_not_know():
    assert rename("decoders.3.block.conv1.weight", RELEASED_KEYS) == "decoder5.conv_block.conv1.conv.weight"
    for key in ("supervision_heads.0.weight", "nothing", "a.stem.conv.weight"):
        with pytest.raises(KeyError):
            rename(key, RELEASED_KEYS)


# ---- the two readings of the block, and the ablations


@pytest.mark.parametrize("scaling", ["dcs", "mlp", "none"])
def test_the_papers_block_is_its_first_equation(scaling):
    block = tiny(block="paper", scaling=scaling, layer_scale="auto").stages[1][0]
    x = image(2, 8, 5, 4, 6)
    with torch.no_grad():
        z = block.depthwise(block.norm1(x)) + x
        torch.testing.assert_close(block(x), block.channel_scaling(block.norm2(z)) + z, rtol=0, atol=0)
    assert not [name for name, _ in block.named_parameters() if "layer_scale" in name]


def test_the_papers_block_takes_a_layer_scale_for_each_of_its_branches():
    block = tiny(block="paper", layer_scale=0.0).stages[0][0]
    x = image(1, 4, 4, 4, 4)
    assert torch.equal(block(x), x)
    assert [name for name, _ in block.named_parameters() if "layer_scale" in name] == ["layer_scale1", "layer_scale2"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, 0.1), ({"block": "released"}, 0.1), ({"block": "paper"}, None), ({"block": "paper", "layer_scale": 0.5}, 0.5)],
)
def test_narrow_has_a_layer_scale_with_the_released_block_unless_it_is_given(more, expected):
    network = build("uxnet", 1, 3, (32, 32, 32), {"size": "narrow", **more})
    found = {float(value) for name, p in network.named_parameters() if "layer_scale" in name for value in p.detach()}
    assert found == (set() if expected is None else {float(torch.tensor(expected))})


def test_the_layer_scale_is_that_of_the_reading_unless_it_is_given():
    assert tiny(layer_scale="auto").stages[0][0].layer_scale.tolist() == pytest.approx([1e-6] * 4)
    assert tiny(layer_scale=False).stages[0][0].layer_scale is None


def test_channels_mix_only_where_they_should():
    def reached(**more):
        block = tiny(widths=(4, 8), **more).stages[1][0]
        x = image(1, 8, 7, 7, 7).requires_grad_()
        block.norm = nn.Identity()  # the layer norm sees all channels by definition
        (block(x) - x)[:, 0].sum().backward()
        return int((x.grad.flatten(2).abs().sum(2) > 0).sum())

    assert reached() == 1
    assert reached(scaling="none") == 1
    assert reached(scaling="mlp") == 8
    assert reached(convolution="standard") == 8


def test_a_kernel_for_each_stage_may_be_numbers_or_triples():
    assert [s[0].depthwise.kernel_size for s in tiny(kernel=[3, (5, 3, 1)]).stages] == [(3, 3, 3), (5, 3, 1)]
    four = tiny(widths=(2, 2, 2, 2), depths=(1, 1, 1, 1), kernel=[7, 9, 11, 13])
    assert [s[0].depthwise.kernel_size[0] for s in four.stages] == [7, 9, 11, 13]
    # Three numbers are the three axes, also where there are three stages.
    three = tiny(widths=(2, 2, 2), depths=(1, 1, 1), kernel=(3, 5, 7))
    assert {s[0].depthwise.kernel_size for s in three.stages} == {(3, 5, 7)}


# ---- any settings


@pytest.mark.parametrize(
    ("more", "total"),
    [
        ({}, (4, 4, 4)),
        ({"widths": (4,), "depths": (1,)}, (2, 2, 2)),
        ({"widths": (3, 5, 7, 9, 11), "depths": (1, 0, 2, 1, 1), "hidden": 5}, (32, 32, 32)),
        ({"stem_stride": (2, 2, 1), "strides": (2, 1, 1)}, (4, 2, 1)),
        ({"stem_stride": 1, "strides": [[3, 2, 1]]}, (3, 2, 1)),
        ({"kernel": (7, 5, 1), "stem_kernel": (3, 7, 1), "decoder_kernel": (3, 3, 1)}, (4, 4, 4)),
        ({"kernel": [[3, 3, 3], [5, 5, 1]], "decoder_kernel": [[3, 3, 1], [1, 1, 1], [3, 3, 3]]}, (4, 4, 4)),
        ({"expansion": 1, "layer_scale": None}, (4, 4, 4)),
    ],
)
def test_any_widths_depths_channels_kernels_and_strides(more, total):
    network = tiny(3, 4, **more).eval()
    assert network.total_stride == total
    x = image(2, 3, 9, 12, 5)
    with torch.inference_mode():
        logits = network(x)
    assert logits.shape == (2, 4, 9, 12, 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("widths", ()),
        ("widths", (4, 8, 16)),
        ("widths", (4, 0)),
        ("widths", (4, 8.5)),
        ("widths", 48),
        ("widths", "48"),
        ("depths", (1, -1)),
        ("depths", (1, 1.5)),
        ("depths", 2),
        ("hidden", 0),
        ("hidden", "many"),
        ("hidden", 8.0),
        ("expansion", 0),
        ("kernel", 4),
        ("kernel", (7, 7, 7, 7)),
        ("kernel", (7, 7, 0)),
        ("kernel", 7.0),
        ("kernel", "7"),
        ("kernel", [[7, 7, 7]] * 3),
        ("stem_kernel", 6),
        ("stem_stride", 0),
        ("stem_stride", (2, 2)),
        ("strides", [[2, 2, 2]] * 2),
        ("strides", -2),
        ("strides", 2.5),
        ("decoder_kernel", 2),
        ("decoder_kernel", [[3, 3, 3]] * 2),
        ("drop_path", 1.0),
        ("drop_path", -0.1),
        ("drop_path", "often"),
        ("layer_scale", "small"),
        ("layer_scale", True),
        ("block", "other"),
        ("convolution", "depth"),
        ("scaling", "none at all"),
        ("layer_scale", float("nan")),
    ],
)
def test_wrong_settings_are_refused_by_name(setting, value):
    with pytest.raises(ValueError, match=setting):
        tiny(**{setting: value})
    with pytest.raises(RecipeError, match=rf"network\.settings.*{setting}"):
        build("uxnet", 1, 2, settings={**TINY, setting: value})


def test_build_refuses_unknown_networks_and_settings():
    with pytest.raises(RecipeError, match="unet9000"):
        build("unet9000", 1, 2)
    with pytest.raises(RecipeError, match=r"network\.settings\.feature_size"):
        build("uxnet", 1, 2, settings={"feature_size": 48})
    with pytest.raises(RecipeError, match=r"network\.settings\.in_channels"):
        build("uxnet", 1, 2, settings={"in_channels": 3})
    assert isinstance(build("uxnet", 1, 2, settings=TINY), UXNet)


@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (1, 2, 8, 8, 8), (1, 8, 8), ()])
def test_wrong_input_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected an image of shape \(N, 1"):
        tiny()(torch.zeros(shape))


def test_layer_scale_is_as_asked_for():
    assert not [name for name, _ in tiny(layer_scale=None).named_parameters() if "layer_scale" in name]
    block = tiny(layer_scale=0.25).stages[1][0]
    assert block.layer_scale.tolist() == [0.25] * 8
    # A block whose layer scale is 0 is the identity; one without any is the bare sum.
    x = image(1, 8, 4, 4, 4)
    with torch.no_grad():
        branch = block.channel_scaling(block.norm(block.depthwise(x)))
        torch.testing.assert_close(block(x), x + 0.25 * branch)
        block.layer_scale.zero_()
        assert torch.equal(block(x), x)
        torch.testing.assert_close(tiny(layer_scale=None).stages[1][0](x) - x, branch, rtol=1e-4, atol=1e-5)


# ---- any sides


@pytest.fixture(scope="module")
def any_side_networks():
    narrow = {"widths": (2, 3), "hidden": 3, "kernel": 5, "stem_kernel": 3}
    deep = {**narrow, "widths": (1, 2, 2, 2), "depths": (1, 1, 1, 1)}
    return [tiny(**narrow).eval(), tiny(**deep).eval(), tiny(**narrow, stem_stride=(1, 2, 3), strides=(3, 1, 2)).eval()]


@settings(max_examples=40, deadline=None)
@given(sides=st.tuples(*[st.integers(1, 40)] * 3), which=st.integers(0, 2))
def test_any_sides_are_taken_and_given_back(any_side_networks, sides, which):
    with torch.inference_mode():
        logits = any_side_networks[which](image(1, 1, *sides))
    assert logits.shape == (1, 2, *sides)
    assert logits.isfinite().all()


@settings(max_examples=300, deadline=None)
@given(sides=st.tuples(*[st.integers(1, 70)] * 3), stride=st.tuples(*[st.integers(1, 16)] * 3))
def test_the_padding_is_the_least_that_fits(sides, stride):
    padded = padded_sides(sides, stride)
    cells = [p // s for p, s in zip(padded, stride, strict=True)]
    assert [p % s for p, s in zip(padded, stride, strict=True)] == [0, 0, 0]
    assert math.prod(cells) >= 2
    least = [-(-n // s) for n, s in zip(sides, stride, strict=True)]
    assert cells == least or (least == [1, 1, 1] and sorted(cells) == [1, 1, 2])


def test_what_needs_no_padding_is_not_padded():
    network = tiny().eval()
    x = image(1, 1, 8, 12, 16)
    with torch.inference_mode():
        ((head, y),) = network.decode(x, network.encode(x))
        assert torch.equal(network(x), head(y))


@pytest.mark.parametrize("sides", [(9, 12, 5), (1, 1, 1), (4, 4, 4), (7, 8, 3)])
def test_padding_is_zeros_behind_the_end(sides):
    network = tiny().eval()
    x = image(1, 1, *sides)
    by_hand = torch.zeros(1, 1, *padded_sides(sides, network.total_stride))
    by_hand[..., : sides[0], : sides[1], : sides[2]] = x
    with torch.inference_mode():
        assert torch.equal(network(x), network(by_hand)[..., : sides[0], : sides[1], : sides[2]])


def test_16_cubed_works_with_the_papers_strides():
    # The released network refuses it: its instance norm meets a single position.
    network = UXNet(1, 3, widths=(4, 4, 4, 4), depths=(1, 1, 1, 1), hidden=4)
    logits = network(image(1, 1, 16, 16, 16))
    logits.square().mean().backward()
    assert logits.shape == (1, 3, 16, 16, 16)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_samples_of_a_batch_do_not_touch_each_other():
    network = tiny().eval()
    x = image(3, 1, 8, 8, 12)
    with torch.inference_mode():
        together = network(x)
        for n in range(3):
            torch.testing.assert_close(network(x[n : n + 1]), together[n : n + 1], rtol=1e-4, atol=1e-5)


# ---- training


@pytest.mark.parametrize("sides", [(16, 16, 16), (13, 9, 6), (1, 5, 17)])
def test_deep_supervision_gives_a_list_while_training_only(sides):
    network = tiny(widths=(4, 4, 4), depths=(1, 1, 1), strides=[[2, 2, 1], [2, 2, 2]], deep_supervision=True)
    x = image(2, 1, *sides)
    levels = network(x)
    strides = [(1, 1, 1), (2, 2, 2), (4, 4, 2)]
    assert isinstance(levels, list)
    assert [tuple(level.shape) for level in levels] == [
        (2, 2, *(math.ceil(n / s) for n, s in zip(sides, stride, strict=True))) for stride in strides
    ]
    logits = network.eval()(x)
    torch.testing.assert_close(logits, levels[0])


@pytest.mark.parametrize("more", [{}, {"deep_supervision": True}, {"layer_scale": 1e-6}, {"checkpointing": True, "depths": (2, 0)}])
def test_a_backward_pass_reaches_every_parameter(more):
    network = tiny(2, 3, **more)
    outputs = network(image(2, 2, 8, 11, 9))
    for output in outputs if isinstance(outputs, list) else [outputs]:
        (output * image(*output.shape, seed=1)).sum().backward(retain_graph=True)
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not still


def test_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing):
        network = tiny(depths=(2, 2), checkpointing=checkpointing, drop_path=0.5, deep_supervision=True)
        torch.manual_seed(3)  # for the drop path: what is recomputed must drop the same branches again
        levels = network(image(2, 1, 8, 8, 12))
        sum((level * image(*level.shape, seed=1)).sum() for level in levels).backward()
        return levels[0].detach(), {name: p.grad for name, p in network.named_parameters()}

    (plain, want), (recomputed, got) = gradients(False), gradients(True)
    assert torch.equal(plain, recomputed)
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_drop_path_is_the_identity_in_evaluation_and_unbiased_in_training():
    x = torch.ones(20_000, 2, 1, 1, 1)
    drop = DropPath(0.3)
    assert drop.eval()(x) is x
    torch.manual_seed(0)
    y = drop.train()(x)
    assert set(np.round(y.unique().tolist(), 4)) == {0.0, round(1 / 0.7, 4)}
    assert torch.equal(y[:, 0], y[:, 1])  # whole samples
    assert abs(float(y.mean()) - 1) < 0.02
    rates = [block.drop_path.rate for stage in tiny(depths=(2, 3), drop_path=0.4).stages for block in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_norms_are_those_of_torch():
    x = image(2, 6, 3, 4, 5) * 3 + 1
    norm = LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    want = nn.functional.layer_norm(x.permute(0, 2, 3, 4, 1), (6,), norm.weight, norm.bias, 1e-6).permute(0, 4, 1, 2, 3)
    assert torch.equal(norm(x), want)
    torch.testing.assert_close(instance_norm(x), nn.functional.instance_norm(x, eps=1e-5), rtol=1e-5, atol=1e-6)


# ---- leaving torch's eager mode


def test_the_network_needs_no_monai():
    code = (
        "import sys, torch\n"
        "from uxnet.networks.build import build\n"
        "n = build('uxnet', 1, 2, settings={'widths': [4, 8], 'depths': [1, 1], 'hidden': 8})\n"
        "n(torch.zeros(1, 1, 8, 8, 8)).sum().backward()\n"
        "sys.exit(', '.join({m.split('.')[0] for m in sys.modules} & {'monai', 'lightning_fabric', 'matplotlib', 'nibabel'}) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("channels", "wide"), [(6, 24), (24, 6), (5, 5)])
def test_grouped_pointwise_convolutions_are_the_same_without_a_convolution(channels, wide):
    """CUDA takes that way; it is the same on any device."""
    conv = GroupedPointwiseConv3d(channels, wide, min(channels, wide)).double()
    x = torch.randn(2, channels, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(conv.apart(x), conv(x))
    upstream = torch.randn(2, wide, 3, 4, 5, dtype=torch.float64)
    inputs = (x, conv.weight, conv.bias)
    for a, b in zip(torch.autograd.grad(conv.apart(x), inputs, upstream), torch.autograd.grad(conv(x), inputs, upstream), strict=True):
        assert torch.allclose(a, b)
