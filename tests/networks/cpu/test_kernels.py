"""The gradients of `kernels_cpu` and `norms_cpu` against torch's own and against float64, and where they are not called."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from uxnet.networks.baselines.nnunet import NNUNet
from uxnet.networks.baselines.nnunet import _Conv as NNUNetConv
from uxnet.networks.blocks import DenseConv3d, DepthwiseConv3d, PointwiseConv3d, ResidualConvBlock, instance_norm
from uxnet.networks.cpu import kernels as kernels_cpu
from uxnet.networks.cpu import norms as norms_cpu
from uxnet.networks.uxnet import UXNet

LAST = torch.channels_last_3d
SLOPE = 0.01
SHAPES = [(1, 3, 4, 3, 5), (2, 16, 2, 3, 2), (3, 5, 1, 1, 7), (2, 17, 9, 6, 11)]
KERNELS = [(3, 3, 3), (7, 7, 7), (1, 3, 5), (5, 1, 1)]


def some(*shape, dtype=torch.float32, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=LAST) if len(shape) == 5 else x


def gradients(function, inputs, upstream):
    """Of a copy of each input."""
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream.to(out.dtype))]


def affine(of):
    """With weights that are means of a second tensor over voxels, and of its squares."""
    return lambda x, y: of(x, y.mean((0, 2, 3, 4)), y.square().mean((0, 2, 3, 4)))


NORMS = {
    "activated": (lambda x: norms_cpu.norm_activation(x, SLOPE), lambda x: F.leaky_relu(instance_norm(x), SLOPE), 1),
    "with a residual": (
        lambda x, y: norms_cpu.norm_sum_activation(x, y, SLOPE, norm_residual=False),
        lambda x, y: F.leaky_relu(instance_norm(x) + y, SLOPE),
        2,
    ),
    "with a normalised residual": (
        lambda x, y: norms_cpu.norm_sum_activation(x, y, SLOPE, norm_residual=True),
        lambda x, y: F.leaky_relu(instance_norm(x) + instance_norm(y), SLOPE),
        2,
    ),
    "with weights": (
        affine(lambda x, w, b: norms_cpu.affine_norm_activation(x, w, b, SLOPE)),
        affine(lambda x, w, b: F.leaky_relu(F.group_norm(x, len(w), w, b), SLOPE)),
        2,
    ),
}


@pytest.mark.parametrize("axes", [(2, 4), (1, 3), (3, 4)])
def test_a_residual_in_memory_of_another_order_is_normalised_too(axes):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 6, 6, 6).to(memory_format=torch.channels_last_3d)
    y = torch.randn(2, 6, 6, 6, 6).transpose(*axes)
    expected = F.leaky_relu(instance_norm(x) + instance_norm(y), SLOPE)
    torch.testing.assert_close(norms_cpu.norm_sum_activation(x, y, SLOPE, norm_residual=True), expected, rtol=1e-4, atol=1e-5)


def torchs(weight):
    return {"padding": [k // 2 for k in weight.shape[2:]], "groups": weight.shape[0] if weight.shape[1] == 1 else 1}


def convolutions(c, kernel, dtype=torch.float32):
    """Name -> (ours, torch's, weights), all of x and weights, and bias where there is one."""
    return {
        "depthwise": (
            kernels_cpu.depthwise,
            lambda x, w, b: F.conv3d(x, w, b, **torchs(w)),
            [some(c, 1, *kernel, dtype=dtype, seed=1), some(c, dtype=dtype, seed=2)],
        ),
        # Past `dense`, which asks what processor and how many channels there are.
        "dense": (
            lambda x, w: kernels_cpu._Dense.apply(x, w, None),
            lambda x, w: F.conv3d(x, w, None, padding=[k // 2 for k in w.shape[2:]]),
            [some(6, c, *kernel, dtype=dtype, seed=1)],
        ),
        "dense with a bias": (
            kernels_cpu._Dense.apply,
            lambda x, w, b: F.conv3d(x, w, b, padding=[k // 2 for k in w.shape[2:]]),
            [some(6, c, *kernel, dtype=dtype, seed=1), some(6, dtype=dtype, seed=2)],
        ),
        "pointwise": (
            kernels_cpu.pointwise,
            F.conv3d,
            [some(4, c, 1, 1, 1, dtype=dtype, seed=1), some(4, dtype=dtype, seed=2)],
        ),
    }


def held(got, like, exact):
    """Ours is as near to float64 as torch's is, up to a factor for luck, in the largest error and in the mean."""
    for a, b, c in zip(got, like, exact, strict=True):
        assert a.shape == b.shape
        scale = c.square().mean().sqrt().clamp_min(1e-30)
        for of in (torch.amax, torch.mean):
            ours, theirs = (of((z.double() - c).abs()) / scale for z in (a, b))
            assert ours <= 2 * theirs + 1e-6, (ours, theirs)
        assert a.ndim != 5 or a.is_contiguous(memory_format=LAST) or a.stride() == b.stride()


@pytest.mark.parametrize("chunk", [7, 1 << 19])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NORMS)
def test_norms_give_torchs_gradients(name, shape, chunk, monkeypatch):
    monkeypatch.setattr(norms_cpu, "CHUNK", chunk)
    ours, theirs, count = NORMS[name]
    inputs, upstream = [some(*shape, seed=s) for s in range(count)], some(*shape, seed=9)
    exact = gradients(theirs, [x.double() for x in inputs], upstream)
    held(gradients(ours, inputs, upstream), gradients(theirs, inputs, upstream), exact)


@pytest.mark.parametrize("shape", [(2, 16, 5, 6, 7), (1, 3, 8, 8, 9), (2, 5, 2, 7, 3)])
@pytest.mark.parametrize("name", [*NORMS, "depthwise"])
def test_in_bfloat16_they_are_as_exact_as_torchs_in_float32_of_the_same_numbers(name, shape):
    """Up to the rounding of what comes out and of what is kept, by which a sum near zero may change its sign: so the mean counts."""
    ours, theirs, count = NORMS.get(name) or (*convolutions(shape[1], (3, 5, 3))[name][:2], None)
    inputs = [some(*shape, seed=s) for s in range(count)] if count else [some(*shape), *convolutions(shape[1], (3, 5, 3))[name][2]]
    upstream = some(*shape, seed=9).bfloat16()
    lower = [x.bfloat16().float() for x in inputs]
    exact = gradients(theirs, [x.double() for x in lower], upstream)
    with torch.autocast("cpu", torch.bfloat16):
        made = gradients(ours, [x.bfloat16() if x.ndim == 5 and x.shape == shape else x for x in lower], upstream)
    assert made[0].dtype == torch.bfloat16
    for a, b in zip(made, exact, strict=True):
        assert (a.double() - b).abs().mean() < 2**-6 * b.abs().mean() + 1e-9


@pytest.mark.parametrize("columns", [1, 500, 1 << 19])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["depthwise", "dense", "dense with a bias", "pointwise"])
def test_convolutions_give_torchs_gradients(name, shape, kernel, columns, monkeypatch):
    monkeypatch.setattr(kernels_cpu, "COLUMNS", columns)
    ours, theirs, weights = convolutions(shape[1], kernel)[name]
    inputs = [some(*shape), *weights]
    upstream = some(shape[0], weights[0].shape[0], *shape[2:], seed=9)
    exact = gradients(theirs, [x.double() for x in inputs], upstream)
    held(gradients(ours, inputs, upstream), gradients(theirs, inputs, upstream), exact)


@pytest.mark.parametrize("name", [*NORMS, "depthwise", "dense", "dense with a bias", "pointwise"])
def test_gradients_are_derivatives(name):
    if name in NORMS:
        ours, _, count = NORMS[name]
        inputs = [some(2, 3, 3, 2, 3, dtype=torch.float64, seed=s) for s in range(count)]
    else:
        ours, _, weights = convolutions(3, (3, 1, 5), torch.float64)[name]
        inputs = [some(2, 3, 3, 2, 3, dtype=torch.float64), *weights]
    assert torch.autograd.gradcheck(ours, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("name", [*NORMS, "depthwise", "dense", "dense with a bias", "pointwise"])
def test_upstream_gradients_may_lie_anyhow(name):
    """Such as part of a wider array, as behind a concatenation, or one number for all."""
    shape = (2, 16, 4, 5, 3)
    ours, inputs = (
        (NORMS[name][0], [some(*shape, seed=s) for s in range(NORMS[name][2])])
        if name in NORMS
        else (convolutions(16, (3, 3, 3))[name][0], [some(*shape), *convolutions(16, (3, 3, 3))[name][2]])
    )
    out = ours(*inputs).shape
    wide = some(out[0], 2 * out[1], *out[2:], seed=5)
    for upstream in (wide[:, out[1] :], some(*out).contiguous(), torch.ones(()).expand(out)):
        dense = gradients(ours, inputs, upstream.contiguous(memory_format=LAST))
        for a, b in zip(gradients(ours, inputs, upstream), dense, strict=True):
            assert torch.equal(a, b)


def test_only_what_is_asked_for_is_computed():
    x, w = some(2, 3, 4, 4, 4).requires_grad_(), some(3, 1, 3, 3, 3)
    with mock.patch.object(kernels_cpu, "_depthwise_weight", side_effect=AssertionError):
        kernels_cpu.depthwise(x, w, None).sum().backward()
    with mock.patch.object(kernels_cpu, "_dense_weight", side_effect=AssertionError):
        kernels_cpu._Dense.apply(x, some(2, 3, 3, 3, 3), some(2)).sum().backward()
    assert x.grad is not None


# ---- where it is used


def test_it_pays_only_while_training_in_channels_last_memory_on_a_cpu():
    x, w = some(1, 4, 3, 3, 3), some(4, 1, 3, 3, 3).requires_grad_()
    assert kernels_cpu.pays(x, w)
    assert kernels_cpu.pays(x.clone().requires_grad_())
    assert not kernels_cpu.pays(x)
    assert not kernels_cpu.pays(x, w.detach())
    assert not kernels_cpu.pays(x.contiguous(), w)
    assert not kernels_cpu.pays(x[:, :1], w)
    assert not kernels_cpu.pays(x.double(), w)
    assert not kernels_cpu.pays(x, w.double())
    assert not kernels_cpu.pays(x.bfloat16(), w)
    assert not kernels_cpu.pays(x.to("meta"), w)
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels_cpu.pays(x, w)
        assert kernels_cpu.pays(x.bfloat16(), w)
        assert not kernels_cpu.pays(x.double(), w)
    with torch.autocast("cpu", torch.float16):
        assert not kernels_cpu.pays(x, w)
    with torch.no_grad():
        assert not kernels_cpu.pays(x, w)
    with torch.inference_mode():
        assert not kernels_cpu.pays(x, w)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        assert not kernels_cpu.pays(fake.from_tensor(x), w)


def blocks():
    torch.manual_seed(0)
    return {
        "projected": ResidualConvBlock(32, 16),
        "not projected": ResidualConvBlock(16, 16),
        "depthwise": DepthwiseConv3d(16, 7),
        "dense": DenseConv3d(16, 24, 3),
        "biased": DenseConv3d(16, 24, 3, True),
        "nnunet's": NNUNetConv(16, 24, (3, 3, 3), (1, 1, 1), True),
        "pointwise": PointwiseConv3d(16, 3),
    }


@pytest.mark.parametrize("name", blocks())
def test_an_output_is_the_same_whether_it_is_trained_or_not(name):
    block = blocks()[name].to(memory_format=LAST)
    x = some(2, 32 if name == "projected" else 16, 5, 6, 7)
    trained = block(x)
    assert trained.grad_fn is not None
    with torch.no_grad():
        torch.testing.assert_close(block(x), trained, rtol=1e-4, atol=1e-4)  # torch's norm is the less exact one


def step(network, image):
    out = network(image)
    (out * some(*out.shape, seed=7)).sum().backward()
    return out.detach(), {key: p.grad for key, p in network.named_parameters()}


def network(**more):
    torch.manual_seed(0)
    return UXNet(1, 3, widths=(16, 32), depths=(1, 1), hidden=32, layer_scale=0.5, **more)


def plain(**more):
    torch.manual_seed(0)
    return NNUNet(1, 3, widths=(16, 32), deep_supervision=False, **more)


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("network", [network, plain])
def test_a_network_learns_as_exactly_as_with_torchs_kernels(network, lower):
    image = torch.randn(2, 1, 16, 32, 18)
    exact = step(network().double(), image.double())[1]
    with torch.autocast("cpu", torch.bfloat16, enabled=lower):
        ours = step(network().to(memory_format=LAST), image)[1]
        with mock.patch.object(kernels_cpu, "pays", return_value=False):
            theirs = step(network().to(memory_format=LAST), image)[1]
    ratios = []
    for key, wanted in exact.items():
        if wanted.norm() > 1e-9 * wanted.numel():  # what a norm behind it takes away is rounding alone
            ratios.append(((ours[key] - wanted).norm() / (theirs[key] - wanted).norm()).log())
        assert 1 in wanted.shape or ours[key].stride() == theirs[key].stride()
    assert torch.stack(ratios).mean().exp() < 1.1


def test_channels_far_from_zero_are_normalised_exactly():
    x = some(2, 4, 9, 8, 7) + 1000
    exact = F.leaky_relu(F.instance_norm(x.double()), SLOPE)
    torch.testing.assert_close(norms_cpu.norm_activation(x, SLOPE).double(), exact, rtol=0, atol=2e-4)


def test_twice_the_same_gives_the_same_bits():
    image = torch.randn(2, 1, 12, 18, 10)
    one, two = (step(network().to(memory_format=LAST), image)[1] for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_recomputed_blocks_and_copies_learn_the_same():
    image = torch.randn(2, 1, 8, 8, 10)
    plain, again = network().to(memory_format=LAST), network(checkpointing=True).to(memory_format=LAST)
    out, wanted = step(plain, image)
    plain.zero_grad(set_to_none=True)
    for other in (again, copy.deepcopy(plain)):
        result, found = step(other, image)
        assert torch.equal(result, out)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    block, x = blocks()["projected"].to(memory_format=LAST), some(1, 32, 4, 4, 4).requires_grad_()
    assert torch.equal(checkpoint(block, x, use_reentrant=False), block(x))


def test_a_block_keeps_less_for_its_gradients():
    def kept(block, x):
        held = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: held.update({t.untyped_storage().data_ptr(): t}) or t, lambda t: t):
            out = block(x)
        del out
        return sum(t.untyped_storage().nbytes() for t in held.values() if t.shape[2:] == x.shape[2:])

    block, x = ResidualConvBlock(16, 16).to(memory_format=LAST), some(2, 16, 16, 16, 16).requires_grad_()
    ours = kept(block, x)
    with mock.patch.object(kernels_cpu, "pays", return_value=False):
        theirs = kept(block, x)
    assert ours < 0.7 * theirs


def test_frozen_weights_stay_without_gradients():
    block, x = blocks()["projected"].to(memory_format=LAST).requires_grad_(False), some(1, 32, 4, 5, 4).requires_grad_()
    block(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in block.parameters())


def test_weights_of_zero_and_below_are_learnt_from():
    x, weight, bias, upstream = (
        some(2, 3, 4, 5, 3),
        torch.tensor([0.0, -1.0, 2.0]),
        torch.tensor([0.5, 0.0, -1.0]),
        some(2, 3, 4, 5, 3, seed=3),
    )
    exact = gradients(lambda x, w, b: F.leaky_relu(F.group_norm(x, 3, w, b), SLOPE), [t.double() for t in (x, weight, bias)], upstream)
    for ours, wanted in zip(
        gradients(lambda x, w, b: norms_cpu.affine_norm_activation(x, w, b, SLOPE), [x, weight, bias], upstream), exact, strict=True
    ):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-4, atol=1e-5)


def test_a_constant_channel_gives_finite_gradients():
    x = some(1, 4, 3, 3, 3)
    x[:, 1] = 2.0
    upstream = some(*x.shape, seed=3)
    (ours, ours_dx), (wanted, wanted_dx) = (
        gradients(f, [x], upstream)
        for f in (lambda x: norms_cpu.norm_activation(x, SLOPE), lambda x: F.leaky_relu(instance_norm(x), SLOPE))
    )
    torch.testing.assert_close(ours, wanted)
    torch.testing.assert_close(ours_dx[:, [0, 2, 3]], wanted_dx[:, [0, 2, 3]])
    assert ours_dx.isfinite().all()


def test_a_kernel_of_one_is_still_a_convolution():
    assert isinstance(PointwiseConv3d(2, 3), nn.Conv3d)
    assert {key: p.shape for key, p in PointwiseConv3d(2, 3).named_parameters()} == {
        key: p.shape for key, p in nn.Conv3d(2, 3, 1).named_parameters()
    }
