"""Multiply-accumulates: every kind of operation counted by hand, and the figures of the paper's table 1."""

import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uxnet.networks.build import NETWORKS, build
from uxnet.networks.macs import Macs, count_macs
from uxnet.networks.uxnet import UXNet


class Run(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# ---- by hand

SIDES = 4 * 5 * 6
"""Voxels of the images (1, 4, 4, 5, 6)."""

CONVOLUTIONS = {
    # true, paper without the bias, values of the output
    "plain": (nn.Conv3d(4, 6, 3, padding=1), SIDES * 4 * 6 * 27, SIDES * 4 * 6 * 27, 6 * SIDES),
    "per axis": (nn.Conv3d(4, 6, (1, 3, 5), padding=(0, 1, 2)), SIDES * 4 * 6 * 15, SIDES * 4 * 6 * 15, 6 * SIDES),
    "padded by name": (nn.Conv3d(4, 6, 3, padding="same"), SIDES * 4 * 6 * 27, SIDES * 4 * 6 * 27, 6 * SIDES),
    "unpadded": (nn.Conv3d(4, 6, 3), 2 * 3 * 4 * 4 * 6 * 27, 2 * 3 * 4 * 4 * 6 * 27, 6 * 2 * 3 * 4),
    "grouped": (nn.Conv3d(4, 6, 3, padding=1, groups=2), SIDES * 2 * 6 * 27, SIDES * 2 * 6 * 27, 6 * SIDES),
    "depthwise": (nn.Conv3d(4, 4, 7, padding=3, groups=4), SIDES * 4 * 343, SIDES * 4 * 343, 4 * SIDES),
    "widening": (nn.Conv3d(4, 16, 1, groups=4), SIDES * 16, SIDES * 16, 16 * SIDES),
    "strided": (nn.Conv3d(4, 6, 3, stride=(2, 1, 3), padding=1), 2 * 5 * 2 * 4 * 6 * 27, 2 * 5 * 2 * 4 * 6 * 27, 6 * 2 * 5 * 2),
    "dilated": (nn.Conv3d(4, 6, 3, padding=2, dilation=2), SIDES * 4 * 6 * 27, SIDES * 4 * 6 * 27, 6 * SIDES),
    # Transposed: one kernel a voxel of the input; in the paper's count, of the output.
    "transposed": (nn.ConvTranspose3d(4, 6, 2, stride=2), SIDES * 4 * 6 * 8, 8 * SIDES * 4 * 6 * 8, 6 * 8 * SIDES),
    "transposed per axis": (nn.ConvTranspose3d(4, 6, (1, 2, 2), (1, 2, 2)), SIDES * 4 * 6 * 4, 4 * SIDES * 4 * 6 * 4, 6 * 4 * SIDES),
    "transposed and grouped": (nn.ConvTranspose3d(4, 6, 2, 2, groups=2), SIDES * 2 * 6 * 8, 8 * SIDES * 2 * 6 * 8, 6 * 8 * SIDES),
    "transposed, overlapping": (nn.ConvTranspose3d(4, 6, 3, 2, 1, 1), SIDES * 4 * 6 * 27, 8 * SIDES * 4 * 6 * 27, 6 * 8 * SIDES),
    "transposed at stride 1": (nn.ConvTranspose3d(4, 6, 3, padding=1), SIDES * 4 * 6 * 27, SIDES * 4 * 6 * 27, 6 * SIDES),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind, batch, biased):
    conv, true, paper, outputs = CONVOLUTIONS[kind]
    conv = copy.deepcopy(conv)
    if not biased:
        conv.bias = None
    assert count_macs(conv, (batch, 4, 4, 5, 6)) == Macs(batch * true, batch * (paper + (outputs if biased else 0)))


@pytest.mark.parametrize(
    ("linear", "macs"),
    [
        (nn.Linear(8, 5), Macs(3 * 7 * 8 * 5, 3 * 7 * 8 * 5 + 5)),  # the bias once, as ptflops has it
        (nn.Linear(8, 5, bias=False), Macs(3 * 7 * 8 * 5, 3 * 7 * 8 * 5)),
        (Run(lambda x: F.linear(x, x.new_empty(5, 8))), Macs(3 * 7 * 8 * 5, 3 * 7 * 8 * 5)),
    ],
)
def test_linear_layers(linear, macs):
    assert count_macs(linear, (3, 7, 8)) == macs
    assert count_macs(linear, (3, 1, 7, 8)) == macs


PRODUCTS = {
    # from an input (2, 3, 4, 5)
    "matrices": (lambda x: x[0, 0] @ x.new_empty(5, 7), 4 * 5 * 7),
    "matrices, in full": (lambda x: torch.mm(x[0, 0], x.new_empty(5, 7)), 4 * 5 * 7),
    "added to": (lambda x: torch.addmm(x.new_empty(4, 7), x[0, 0], x.new_empty(5, 7)), 4 * 5 * 7),
    "batches": (lambda x: torch.bmm(x[0], x.new_empty(3, 5, 7)), 3 * 4 * 5 * 7),
    "batches added to": (lambda x: torch.baddbmm(x.new_empty(3, 4, 7), x[0], x.new_empty(3, 5, 7)), 3 * 4 * 5 * 7),
    "batches added up": (lambda x: torch.addbmm(x.new_empty(4, 7), x[0], x.new_empty(3, 5, 7)), 3 * 4 * 5 * 7),
    "batches of batches": (lambda x: x @ x.transpose(-1, -2), 2 * 3 * 4 * 4 * 5),
    "one matrix for all": (lambda x: x @ x.new_empty(5, 7), 2 * 3 * 4 * 5 * 7),
    "a vector": (lambda x: x[0, 0] @ x.new_empty(5), 4 * 5),
    "a vector for all": (lambda x: x @ x.new_empty(5), 2 * 3 * 4 * 5),
    "a vector added to": (lambda x: torch.addmv(x.new_empty(4), x[0, 0], x.new_empty(5)), 4 * 5),
    "two vectors": (lambda x: x[0, 0, 0] @ x.new_empty(5), 5),
    "einsum of scores": (lambda x: torch.einsum("bhxd,bhyd->bhxy", x, x.new_empty(2, 3, 6, 5)), 2 * 3 * 4 * 6 * 5),
    "einsum of values": (lambda x: torch.einsum("bhxy,bhyd->bhxd", x, x.new_empty(2, 3, 5, 7)), 2 * 3 * 4 * 5 * 7),
    "einsum over channels": (lambda x: torch.einsum("bcij,oc->boij", x, x.new_empty(8, 3)), 2 * 8 * 3 * 4 * 5),
    # queries of 4 tokens, keys and values of 6, of 5 and 7 channels: scores, then values
    "attention": (
        lambda x: F.scaled_dot_product_attention(x, x.new_empty(2, 3, 6, 5), x.new_empty(2, 3, 6, 7)),
        2 * 3 * (4 * 6 * 5 + 4 * 6 * 7),
    ),
    "attention with a mask": (
        lambda x: F.scaled_dot_product_attention(x, x, x, attn_mask=x.new_empty(4, 4)),
        2 * 3 * (4 * 4 * 5 + 4 * 4 * 5),
    ),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_matrix_products_and_attention_which_the_papers_count_does_not_see(kind):
    function, macs = PRODUCTS[kind]
    assert count_macs(Run(function), (2, 3, 4, 5)) == Macs(macs, 0)


class SelfAttention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(training, need_weights):
    network = SelfAttention(need_weights).train(training)
    projections, attention = 3 * 6 * (8 * 24 + 8 * 8), 3 * 2 * (6 * 6 * 4 + 6 * 6 * 4)
    macs = count_macs(network, (3, 6, 8))
    assert macs == Macs(projections + attention, projections + 24 + 8)


VALUES = 4 * 4 * 5 * 6

FREE = {
    # what is no multiply-accumulate, with the paper's price of a value of the input
    "batch norm": (nn.BatchNorm3d(4), 2),
    "batch norm, plain": (nn.BatchNorm3d(4, affine=False), 1),
    "instance norm": (nn.InstanceNorm3d(4), 1),
    "instance norm, affine": (nn.InstanceNorm3d(4, affine=True), 2),
    "group norm": (nn.GroupNorm(2, 4), 2),
    "group norm, plain": (nn.GroupNorm(2, 4, affine=False), 1),
    "instance norm as a group norm": (Run(lambda x: F.group_norm(x, 4)), 1),
    "layer norm": (nn.LayerNorm(6), 0),
    "ReLU": (nn.ReLU(), 1),
    "ReLU in place": (nn.ReLU(inplace=True), 1),
    "ReLU as a method": (Run(lambda x: x.relu()), 1),
    "ReLU6": (nn.ReLU6(), 1),
    "leaky ReLU": (nn.LeakyReLU(), 1),
    "leaky ReLU in place": (nn.LeakyReLU(inplace=True), 1),
    "leaky ReLU as a function": (Run(F.leaky_relu), 1),
    "PReLU": (nn.PReLU(4), 1),
    "ELU": (nn.ELU(), 1),
    "GELU": (nn.GELU(), 1),
    "GELU as a function": (Run(F.gelu), 1),
    "sigmoid": (nn.Sigmoid(), 0),
    "softmax": (nn.Softmax(1), 0),
    "SiLU": (nn.SiLU(), 0),
    "dropout": (nn.Dropout(0.5), 0),
    "max pooling": (nn.MaxPool3d(2), 1),
    "max pooling with indices": (nn.MaxPool3d(2, return_indices=True), 1),
    "average pooling": (nn.AvgPool3d(2), 1),
    "adaptive average pooling": (nn.AdaptiveAvgPool3d(1), 1),
    "adaptive max pooling": (nn.AdaptiveMaxPool3d(1), 1),
    "mean": (Run(lambda x: x.mean((2, 3, 4))), 0),
    "upsampling": (nn.Upsample(scale_factor=2), 8),
    "trilinear upsampling": (nn.Upsample(scale_factor=2, mode="trilinear"), 8),
    "interpolation": (Run(lambda x: F.interpolate(x, (8, 10, 12), mode="trilinear")), 8),
    "sums, products, views": (Run(lambda x: torch.cat((x + x, x * 2.0, F.pad(x, (1, 1)).narrow(-1, 0, 6)), 1).movedim(1, -1)), 0),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", FREE)
def test_norms_activations_and_the_like_are_free_but_by_the_papers_convention(kind, training):
    network, price = FREE[kind]
    assert count_macs(network.train(training), (1, 4, 4, 5, 6)) == Macs(0, price * VALUES)


class Composite(nn.Module):
    """A block down, attention over its tokens, a block up and a head, written as one may."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv3d(1, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU(inplace=True))
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, image):
        x = self.down(image)
        q, k, v = self.qkv(self.norm(x.flatten(2).transpose(1, 2))).chunk(3, -1)
        y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        x = F.leaky_relu(self.up(x + y.transpose(1, 2).reshape(x.shape)))
        return self.head(F.group_norm(x, 4))


def test_a_network_of_several_parts():
    voxels, tokens = 8 * 6 * 4, 4 * 3 * 2
    down, qkv, attention, up, head = tokens * 8 * 27, tokens * 8 * 24, 2 * tokens * tokens * 8, tokens * 8 * 4 * 8, voxels * 4 * 2
    elements = tokens * 8 * 2 + tokens * 8 + voxels * 4 + voxels * 4  # batch norm and ReLU, leaky ReLU and instance norm
    biases = voxels * 4 + voxels * 2
    paper = down + qkv + 8 * up + head + elements + biases
    assert count_macs(Composite(), (1, 1, 8, 6, 4)) == Macs(down + qkv + attention + up + head, paper)


def test_what_runs_twice_counts_twice():
    conv = nn.Conv3d(4, 4, 1, bias=False)
    assert count_macs(nn.Sequential(conv, conv), (1, 4, 4, 5, 6)).true == 2 * SIDES * 16


def test_the_mode_decides_what_runs():
    with torch.device("meta"):
        network = UXNet(1, 3, widths=(4, 8), depths=(1, 1), hidden=8, deep_supervision=True)
    training, evaluating = (count_macs(network.train(mode), (1, 1, 16, 16, 16)).true for mode in (True, False))
    assert training - evaluating == 8**3 * 8 * 3  # the head of the one coarser level


def test_recomputing_activations_is_no_part_of_the_forward_pass():
    with torch.device("meta"):
        plain, saving = (UXNet(1, 2, widths=(4, 8), depths=(1, 1), hidden=8, checkpointing=c).train() for c in (False, True))
    assert count_macs(saving, (1, 1, 16, 16, 16)) == count_macs(plain, (1, 1, 16, 16, 16))


# ---- the network is left alone


class Random(nn.Module):
    """Draws numbers on the CPU while it runs."""

    def forward(self, x):
        return x * float(torch.rand(()))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training):
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Dropout(0.5), Random(), nn.Conv3d(2, 2, 1)).train(training)
    network[4].weight.requires_grad_(False)
    network[0].weight.grad = torch.ones_like(network[0].weight)
    gradient = network[0].weight.grad
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    values = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    generator = torch.get_rng_state()

    count_macs(network, (1, 1, 8, 8, 8))

    assert all(module.training == training and not module._forward_hooks for module in network.modules())
    after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert all(after[name] is tensor and tensor.device.type == "cpu" for name, tensor in tensors.items())
    assert all(torch.equal(tensor, values[name]) for name, tensor in tensors.items())
    assert network[0].weight.requires_grad
    assert not network[4].weight.requires_grad
    assert network[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert network(torch.ones(1, 1, 8, 8, 8)).requires_grad


def test_no_weight_is_copied_and_no_activation_is_made():
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8), nn.ReLU())
    untouchable = mock.Mock(side_effect=AssertionError("a tensor was copied"))
    with mock.patch.object(torch.Tensor, "__deepcopy__", untouchable), mock.patch.object(nn.Parameter, "__deepcopy__", untouchable):
        # One channel of this image alone would be 256 GiB.
        assert count_macs(network, (1, 1, 4096, 4096, 4096)).true == 4096**3 * 8 * 27


def test_tied_weights_other_dtypes_and_weights_on_meta():
    dtypes = set()
    network = nn.Sequential(Run(lambda x: dtypes.add(x.dtype) or x), nn.Linear(8, 8), nn.Linear(8, 8)).to(torch.bfloat16)
    network[2].weight = network[1].weight
    want = Macs(2 * 5 * 64, 2 * (5 * 64 + 8))
    assert count_macs(network, (5, 8)) == want
    assert network[2].weight is network[1].weight
    assert count_macs(network.to("meta"), (5, 8)) == want
    assert dtypes == {torch.bfloat16}


def test_what_the_network_raises_is_passed_on_and_spoils_nothing():
    with torch.device("meta"):
        network = UXNet(1, 2, widths=(4, 8), depths=(1, 1), hidden=8)
    with pytest.raises(ValueError, match="shape"):
        count_macs(network, (1, 3, 16, 16, 16))
    assert not torch.is_inference_mode_enabled()
    assert count_macs(nn.Linear(2, 2), (1, 2)).true == 4


# ---- table 1: GMac at 1x1x96x96x96, with 5 and with 8 output channels

TRUE = {
    "unet": (5.9074, 7.1257),
    "segresnet": (15.4440, 15.4652),
    "rapnet": (824.4607, 824.6306),
    "nnunet": (201.4638, 201.5768),
    "transbts": (119.3898, 119.4323),
    "unetr": (73.0969, 73.1394),
    "nnformer": (176.4076, 176.9172),
    "swinunetr": (318.1425, 318.2699),
    "uxnet": (577.4035, 577.5309),
}

PTFLOPS = {
    # of the reference networks, by ptflops 0.6.9
    "unet": (14.3166, 17.5521),
    "segresnet": (15.6134, 15.6373),
    "rapnet": (1003.1597, 1003.3349),
    "nnunet": (225.4086, 225.5216),
    "transbts": (110.3696, 110.4147),
    "unetr": (82.5408, 82.5860),
    "nnformer": (223.9122, 240.2223),
    "swinunetr": (328.2204, 328.3505),
    "uxnet": (631.7996, 631.9296),
}

DIFFERENCE = {
    # what is counted here and not there: see the end of `PAPER`'s docstring
    "nnformer": 48 * 24 * 24 * 192 + 24 * 12 * 12 * 384 + 12 * 6 * 6 * 768,  # GELU, called as a function
    "segresnet": -8 * 96**3,  # a ReLU in two places
}


BUILT_ON = {"swinunetr": "cpu"}
"""MONAI's constructor reads a tensor's values, which nothing on meta has."""


@pytest.mark.parametrize("out_channels", [5, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_networks_have_the_figures_of_table_1(name, out_channels):
    with torch.device(BUILT_ON.get(name, "meta")):
        network = build(name, 1, out_channels)
    macs = count_macs(network.train(), (1, 1, 96, 96, 96))  # nnU-Net's other heads run while training only; the table has them
    column = (5, 8).index(out_channels)
    # Half of the figures' last digit, and a little for the rounding of a half.
    assert abs(macs.true / 1e9 - TRUE[name][column]) < 5.1e-5
    assert abs((macs.paper - DIFFERENCE.get(name, 0)) / 1e9 - PTFLOPS[name][column]) < 5.1e-5
