"""What holds for each of the nine networks, in their narrow settings."""

import copy
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from uxnet.errors import RecipeError
from uxnet.networks.build import NETWORKS, architecture, build

EVERY = pytest.mark.parametrize("name", NETWORKS)
PATCH = (33, 47, 29)
"""Odd along every axis."""


def narrow(name, in_channels=1, out_channels=3, patch=PATCH, **more):
    torch.manual_seed(0)
    return build(name, in_channels, out_channels, patch, {"size": "narrow", **more})


def image(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def every(outputs):
    return outputs if isinstance(outputs, list) else [outputs]


def test_they_are_the_nine_of_table_1():
    nine = {"uxnet", "unet", "segresnet", "rapnet", "nnunet", "transbts", "unetr", "nnformer", "swinunetr"}
    assert set(NETWORKS) == nine


@EVERY
@pytest.mark.parametrize("patch", [PATCH, (16, 16, 16), (40, 24, 9)])
def test_any_patch_is_taken_and_given_back(name, patch):
    network = narrow(name, 2, 3, patch).eval()
    with torch.inference_mode():
        logits = network(image(1, 2, *patch))
    assert logits.shape == (1, 3, *patch)
    assert logits.isfinite().all()


@EVERY
def test_other_sizes_are_taken_or_refused_in_a_sentence(name):
    network = narrow(name).eval()
    with torch.inference_mode():
        if network.fixed_patch is None:
            assert network(image(1, 1, 24, 17, 40)).shape == (1, 3, 24, 17, 40)
        else:
            assert network.fixed_patch == PATCH
            with pytest.raises(ValueError, match=r"built for patches of \(33, 47, 29\) and takes no other"):
                network(image(1, 1, 24, 17, 40))
        with pytest.raises(ValueError, match="expected an image of shape"):
            network(image(1, 2, *PATCH))
        with pytest.raises(ValueError, match="expected an image of shape"):
            network(image(1, *PATCH))


@EVERY
def test_a_backward_pass_reaches_every_parameter(name):
    network = narrow(name, 2, 3)
    for output in every(network(image(2, 2, *PATCH))):
        (output * image(*output.shape, seed=1)).sum().backward(retain_graph=True)
    untrained = [re.compile(pattern) for pattern in architecture(name).untrained]
    still = set()
    for key, parameter in network.named_parameters():
        if any(pattern.fullmatch(key) for pattern in untrained):
            assert parameter.grad is None, f"{key} is exempted, but a gradient reaches it"
        elif parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any():
            still.add(key)
    assert not still


@EVERY
def test_the_exempted_parameters_exist(name):
    names = [key for key, _ in narrow(name).named_parameters()]
    for pattern in architecture(name).untrained:
        assert [key for key in names if re.fullmatch(pattern, key)], pattern


@EVERY
def test_nothing_is_random_in_evaluation_and_samples_do_not_touch(name):
    settings = {"transbts": {"stem_dropout": 0.5, "dropout": 0.5}, "nnformer": {"drop_path": 0.5}, "unetr": {"dropout": 0.5}}
    more = settings.get(
        name, {"swinunetr": {"dropout": 0.5, "drop_path": 0.5}, "segresnet": {"dropout": 0.5}, "unet": {"dropout": 0.5}}.get(name, {})
    )
    network = narrow(name, **more).eval()
    x = image(2, 1, *PATCH)
    with torch.inference_mode():
        first, second = network(x), network(x)
        assert torch.equal(first, second)
        torch.testing.assert_close(network(x[1:]), first[1:], rtol=1e-3, atol=1e-4)


@EVERY
def test_training_is_deterministic(name):
    def gradients():
        network = narrow(name)
        torch.manual_seed(5)
        outputs = every(network(image(2, 1, 16, 32, 16) if network.fixed_patch is None else image(2, 1, *PATCH)))
        sum(o.square().mean() for o in outputs).backward()
        return [p.grad for p in network.parameters() if p.grad is not None]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


@EVERY
def test_the_state_dict_goes_round(name):
    network, other = narrow(name), narrow(name)
    with torch.no_grad():
        for weight in other.state_dict().values():
            if weight.is_floating_point():
                weight.normal_()
    other.load_state_dict(copy.deepcopy(network.state_dict()))
    x = image(1, 1, *PATCH)
    with torch.inference_mode():
        assert torch.equal(network.eval()(x), other.eval()(x))


@EVERY
def test_torch_export(name):
    network = narrow(name).eval()
    x = image(1, 1, *PATCH)
    exported = torch.export.export(network, (x,), strict=False)
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(x), network(x), rtol=1e-4, atol=1e-5)


@EVERY
def test_a_training_step_lowers_the_loss(name):
    patch = (32, 32, 16)
    network = narrow(name, 1, 3, patch)
    x = image(2, 1, *patch)
    target = (F.avg_pool3d(x, 5, 1, 2)[:, 0] > 0).long() + (x[:, 0] > 1.5).long()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)

    def loss():
        torch.manual_seed(2)  # the same dropout before and after
        return F.cross_entropy(every(network(x))[0], target)

    before = loss()
    before.backward()
    optimiser.step()
    assert float(loss().detach()) < float(before.detach())


@EVERY
def test_it_is_built_without_memory(name):
    with torch.device("meta"):
        network = build(name, 1, 4, 96)
        assert every(network(torch.empty(1, 1, 96, 96, 96)))[0].shape == (1, 4, 96, 96, 96)
    assert all(p.device.type == "meta" for p in network.parameters())


@EVERY
def test_asking_for_one_network_imports_no_other(name):
    code = (
        "import sys\n"
        "from uxnet.networks.build import architecture, NETWORKS\n"
        "assert 'monai' not in sys.modules\n"
        f"architecture({name!r})\n"
        "print(*sorted(n for n in NETWORKS if {f'uxnet.networks.{n}', f'uxnet.networks.baselines.{n}'} & set(sys.modules)))\n"
        "print('monai' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    alone, monai = done.stdout.splitlines()
    assert alone == name
    assert (monai == "True") == (name in ("unet", "segresnet", "unetr", "swinunetr"))


@EVERY
@pytest.mark.parametrize(
    ("settings", "named"), [({"size": "large"}, "size"), ({"colour": "red"}, "colour"), ({"out_channels": 3}, "out_channels")]
)
def test_unknown_settings_are_refused_by_name(name, settings, named):
    with pytest.raises(RecipeError, match=named):
        build(name, 1, 2, 32, settings)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("unet", "widths", [16]),
        ("unet", "widths", [16, 0]),
        ("unet", "residual_units", -1),
        ("segresnet", "width", 12),
        ("segresnet", "blocks_up", [1]),
        ("unetr", "heads", 7),
        ("unetr", "hidden", 0),
        ("swinunetr", "width", 20),
        ("swinunetr", "heads", [3, 6, 12]),
        ("swinunetr", "heads", [5, 6, 12, 24]),
        ("swinunetr", "merging", "new"),
        ("swinunetr", "window", 1),
        ("rapnet", "width", 0),
        ("nnunet", "widths", [32]),
        ("nnunet", "kernel", 2),
        ("nnunet", "strides", [[2, 2, 2]]),
        ("nnunet", "convolutions", 0),
        ("transbts", "heads", 7),
        ("nnformer", "widths", [192, 384]),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(name, setting, value):
    with pytest.raises(RecipeError, match=setting):
        build(name, 1, 2, 32, {setting: value})


@EVERY
@pytest.mark.parametrize("patch", [0, (32, 32), (32, 32, -1)])
def test_patches_that_are_none_are_refused(name, patch):
    with pytest.raises(RecipeError, match="patch"):
        build(name, 1, 2, patch)


def test_nnunet_supervises_every_level_but_the_deepest():
    network = narrow("nnunet")
    levels = network(image(1, 1, *PATCH))
    assert [level.shape[2:] for level in levels] == [(33, 47, 29), (17, 24, 15), (9, 12, 8), (5, 6, 4)]
    torch.testing.assert_close(network.eval()(image(1, 1, *PATCH)), levels[0])
    assert isinstance(narrow("nnunet", deep_supervision=False)(image(1, 1, 32, 32, 32)), torch.Tensor)


def test_nnunet_is_monais_dynunet_without_biases_and_auxiliary_heads():
    from monai.networks.nets import DynUNet

    ours = build("nnunet", 1, 2, 32, {"widths": [4, 8, 8], "bias": False, "head_bias": True, "deep_supervision": False}).double().eval()
    options = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}
    theirs = DynUNet(3, 1, 2, norm_name=("INSTANCE", {"affine": True}), **options).double().eval()

    def block(mine, other):
        for n, conv in enumerate(mine, start=1):
            getattr(other, f"conv{n}").conv.weight.copy_(conv.conv.weight)

    with torch.no_grad():
        for mine, other in zip(ours.encoder, [theirs.input_block, *theirs.downsamples, theirs.bottleneck], strict=True):
            block(mine, other)
        for level, up in enumerate(reversed(theirs.upsamples)):
            up.transp_conv.conv.weight.copy_(ours.ups[level].weight)
            block(ours.decoder[level], up.conv_block)
        theirs.output_block.conv.conv.load_state_dict(ours.heads[0].state_dict())
        x = image(1, 1, 16, 16, 32).double()
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_rapnet_says_why_batch_norm_cannot_train_on_one_voxel():
    network = narrow("rapnet", patch=(8, 8, 8))
    with pytest.raises(ValueError, match="single voxel"):
        network(image(1, 1, 8, 8, 8))
    assert network(image(2, 1, 8, 8, 8)).shape == (2, 3, 8, 8, 8)


def test_rapnet_ends_with_a_relu_unless_told_otherwise():
    x = image(1, 1, 16, 16, 16)
    assert float(narrow("rapnet").eval()(x).detach().min()) >= 0
    head = narrow("rapnet", output_relu=False).eval()
    with torch.no_grad():
        head.head.bias.fill_(-9.0)
        assert float(head(x).max()) < 0
