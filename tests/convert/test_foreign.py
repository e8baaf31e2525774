import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import UNETR, SegResNet, SwinUNETR

from uxnet.convert.foreign import KINDS, WRAPPERS, recognised, renamed, stated_monai, unwrapped, without_prefixes
from uxnet.errors import ModelError, RecipeError
from uxnet.networks.build import architecture, build
from uxnet.networks.weights import rename

FINGERPRINTS = Path(__file__).parents[1] / "networks" / "fingerprints"
# The first stage has the released network's 48 channels, since its last convolution takes them.
SMALL = {"widths": [48, 8, 8, 12], "depths": [1, 2, 1, 1], "hidden": 8, "kernel": 3}
SWIN = {"feature_size": 12, "depths": (1, 2, 1, 1), "num_heads": (2, 4, 6, 8), "window_size": 5}
VIT = {"feature_size": 4, "hidden_size": 64, "mlp_dim": 48, "num_heads": 4, "img_size": (32, 32, 32)}


def small(settings=None, in_channels=1, out_channels=3):
    torch.manual_seed(0)
    return build("uxnet", in_channels, out_channels, settings={**SMALL, **(settings or {})}).eval()


def released(network):
    """A network's weights under the names of the authors' checkpoints."""
    return {rename(key, architecture("uxnet").key_maps[0]): weight for key, weight in network.state_dict().items()}


def listed(name):
    """The names and shapes of a reference, without values."""
    data = json.loads((FINGERPRINTS / f"{name}.json").read_text())
    kinds = {"float32": torch.float32, "int64": torch.int64}
    return {key: torch.empty(shape, dtype=kinds[kind], device="meta") for key, shape, kind in data["state_dict"]}


def converted(weights, **more):
    """The network that weights make."""
    found = recognised(weights, **more)
    network = build(found.network, found.in_channels, found.out_channels, found.patch or 96, found.settings)
    network.load_state_dict({**network.state_dict(), **renamed(weights, found)})
    return network.eval()


def same(network, original, shape=(32, 32, 32)):
    torch.manual_seed(1)
    image = torch.randn(1, network.in_channels, *shape)
    with torch.inference_mode():
        np.testing.assert_allclose(network(image).numpy(), original.eval()(image).numpy(), atol=1e-5)


# ---- what lies around the weights


TENSOR = torch.zeros(2)


@pytest.mark.parametrize("key", WRAPPERS)
def test_wrappers_come_off(key):
    inside = {"a.weight": TENSOR, "steps": 3}
    beside = {"epoch": 4, "best": None, "optimizer": {"state": {0: {"exp_avg": TENSOR}}}, "lr": TENSOR}
    assert unwrapped({key: inside, **beside}) == ({"a.weight": TENSOR}, (key,))


def test_wrappers_in_each_other_and_under_a_name_of_ones_own():
    assert unwrapped({"model": {"state_dict": {"a": TENSOR}}}) == ({"a": TENSOR}, ("model", "state_dict"))
    assert unwrapped({"mine": {"a": TENSOR}, "epoch": 1}) == ({"a": TENSOR}, ("mine",))
    assert unwrapped({"model": {"name": "UNETR"}, "state_dict": {"a": TENSOR}})[1] == ("state_dict",)
    assert unwrapped({"a": TENSOR}) == ({"a": TENSOR}, ())


@pytest.mark.parametrize(
    "loaded", [TENSOR, [TENSOR], {}, {"epoch": 1}, {"one": {"a": TENSOR}, "two": {"b": TENSOR}}, None, {"state_dict": {}}]
)
def test_what_holds_no_weights_is_refused(loaded):
    with pytest.raises(ModelError, match="table of weights"):
        unwrapped(loaded)


def test_a_table_in_itself_is_refused():
    table = {}
    table["model"] = table
    table["x"] = {"model": table}
    with pytest.raises(ModelError):
        unwrapped(table)


def test_prefixes_come_off_where_all_names_share_them():
    assert without_prefixes({"module.model.a": TENSOR, "module.model.b": TENSOR})[1] == "module.model."
    assert list(without_prefixes({"module.a": TENSOR, "b": TENSOR})[0]) == ["module.a", "b"]
    assert without_prefixes({"_orig_mod.module.net.a": TENSOR}) == ({"a": TENSOR}, "_orig_mod.module.net.")


def test_the_version_of_monai_is_found_where_it_is_stated():
    assert stated_monai({"state_dict": {}, "monai_version": "1.3.2"}) == "1.3.2"
    assert stated_monai({"metadata": {"monai_version": "1.5.0+7"}}) == "1.5.0+7"
    assert stated_monai({"monai": "yes", "epoch": 3}) is None
    assert stated_monai([1]) is None


# ---- the settings that shapes show


@pytest.mark.parametrize(
    ("reference", "network", "outputs", "patch", "given"),
    [
        ("uxnet_default_out5", "uxnet", 5, None, {}),
        ("swinunetr_fs48_out5", "swinunetr", 5, None, {"merging": "corrected"}),
        ("swinunetr_fs48_out5.monai090", "swinunetr", 5, None, {"merging": "old"}),
        ("unetr_img96_out5", "unetr", 5, (96, 96, 96), {}),
        ("unetr_img32_out5.monai090", "unetr", 5, (32, 32, 32), {}),
        ("segresnet_f8_out5", "segresnet", 5, None, {}),
    ],
)
def test_the_published_networks_are_recognised_by_names_and_shapes(reference, network, outputs, patch, given):
    weights = listed(reference)
    found = recognised(weights, given=given)
    assert (found.network, found.in_channels, found.out_channels, found.patch) == (network, 1, outputs, patch)
    with torch.device("meta"):
        paper = build(network, 1, outputs, patch or 96, given).state_dict()
    ours = renamed(weights, found)
    assert all(ours[name].shape == paper[name].shape for name in ours)
    lacking = {name for name, weight in paper.items() if weight.is_floating_point()} - set(ours)
    assert all("norm_cross_attn" in name for name in lacking)
    assert sum(w.numel() for w in ours.values()) == sum(w.numel() for w in weights.values() if w.is_floating_point())


def test_every_setting_of_the_default_network_is_read():
    found = recognised(listed("uxnet_default_out5"))
    assert found.settings == {
        "widths": [48, 96, 192, 384],
        "depths": [2, 2, 2, 2],
        "hidden": 768,
        "stem_kernel": 7,
        "stem_stride": 2,
        "convolution": "depthwise",
        "kernel": 7,
        "strides": 2,
        "decoder_kernel": 3,
        "scaling": "dcs",
        "expansion": 4,
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"kernel": [3, 5, 3, 7]},
        {"kernel": [[3, 3, 1], [5, 3, 3], [3, 3, 3], [3, 3, 3]], "stem_kernel": [5, 5, 3], "stem_stride": [2, 2, 1]},
        {"convolution": "standard"},
        {"scaling": "mlp", "expansion": 2},
        {"scaling": "none"},
        {"layer_scale": False},
        {"strides": [[2, 2, 1], [2, 2, 2], [1, 2, 2]], "decoder_kernel": [1, 3, 1, 3, 3]},
    ],
)
def test_a_released_network_comes_back(settings):
    original = small(settings, in_channels=2, out_channels=4)
    network = converted(released(original))
    assert list(network.state_dict()) == list(original.state_dict())
    assert all(torch.equal(weight, original.state_dict()[name]) for name, weight in network.state_dict().items())
    same(network, original, (16, 16, 32))


def test_the_dense_linear_layers_of_older_checkpoints():
    original = small({"scaling": "mlp"})
    weights = released(original)
    linear = {key: w.reshape(w.shape[:2]) if "pwconv" in key and key.endswith("weight") else w for key, w in weights.items()}
    assert linear["uxnet_3d.stages.0.0.pwconv1.weight"].shape == (192, 48)
    assert recognised(linear).settings["scaling"] == "mlp"
    same(converted(linear), original)


@pytest.mark.parametrize("merging", ["old", "corrected"])
def test_swinunetr_comes_back(merging):
    torch.manual_seed(0)
    # MONAI's own "merging" is, of the installed version, whichever it is: the one that is asked for is put there.
    from uxnet.networks.baselines.swinunetr import MERGINGS

    original = SwinUNETR(2, 3, downsample=MERGINGS[merging], **SWIN)
    network = converted(original.state_dict(), given={"merging": merging})
    same(network, original, (32, 32, 64))
    found = recognised(original.state_dict(), given={"merging": merging})
    assert found.settings == {"width": 12, "depths": [1, 2, 1, 1], "heads": [2, 4, 6, 8], "window": 5, "merging": merging}


def test_the_two_mergings_answer_differently():
    torch.manual_seed(0)
    weights = SwinUNETR(1, 3, **SWIN).state_dict()
    image = torch.randn(1, 1, 32, 32, 64)
    with torch.inference_mode():
        old, corrected = (converted(weights, given={"merging": m})(image) for m in ("old", "corrected"))
    assert (old - corrected).abs().max() > 0.01


def test_swinunetr_does_not_choose_its_merging():
    weights = SwinUNETR(1, 3, **SWIN).state_dict()
    with pytest.raises(ModelError, match=r"merging=old .*1\.4.*merging=corrected .*1\.5"):
        recognised(weights)
    for version, merging in (("0.9.0", "old"), ("1.4.0", "old"), ("1.5.0", "corrected"), ("1.10.1", "corrected")):
        found = recognised(weights, monai=version)
        assert found.settings["merging"] == merging
        assert version in found.assumed[0]
    assert recognised(weights, monai="1.3.0", given={"merging": "corrected"}).settings["merging"] == "corrected"
    with pytest.raises(RecipeError, match="merging"):
        converted(weights, given={"merging": "odd"})


@pytest.mark.parametrize("projection", ["perceptron", "conv"])
def test_unetr_comes_back(projection):
    torch.manual_seed(0)
    original = UNETR(2, 3, proj_type=projection, **VIT)
    network = converted(original.state_dict(), given={"heads": 4})
    assert network.fixed_patch == (32, 32, 32)
    same(network, original)


def test_what_unetr_does_not_show_is_assumed_and_said_or_asked_for():
    weights = UNETR(1, 3, proj_type="perceptron", **VIT).state_dict()
    found = recognised(weights)
    assert (found.settings["heads"], found.patch) == (1, (32, 32, 32))
    assert ["heads" in found.assumed[0], "patches of 32" in found.assumed[1]] == [True, True]
    given = recognised(weights, given={"heads": 4, "patch": [16, 64, 32]})
    assert (given.settings["heads"], given.patch, given.assumed) == (4, (16, 64, 32), ())
    assert recognised(weights, given={"patch": 32}).patch == (32, 32, 32)
    with pytest.raises(ModelError, match="position_embeddings"):
        renamed(weights, recognised(weights, given={"patch": 48}))
    with pytest.raises(ModelError, match="patch"):
        recognised(weights, given={"patch": "large"})
    flat = UNETR(1, 3, proj_type="perceptron", **{**VIT, "img_size": (32, 32, 48), "hidden_size": 48}).state_dict()
    with pytest.raises(ModelError, match="divisor of 48"):
        recognised(flat)
    with pytest.raises(ModelError, match="12 tokens"):
        recognised(flat, given={"heads": 3})
    assert recognised(flat, given={"heads": 3, "patch": [32, 32, 48]}).patch == (32, 32, 48)


def test_segresnet_comes_back():
    torch.manual_seed(0)
    original = SegResNet(init_filters=8, in_channels=2, out_channels=4, blocks_down=(1, 2, 1), blocks_up=(2, 1))
    network = converted(original.state_dict())
    assert recognised(original.state_dict()).settings == {"width": 8, "blocks_down": [1, 2, 1], "blocks_up": [2, 1]}
    same(network, original, (16, 16, 16))


def test_what_segresnet_does_not_show_is_assumed_and_said_or_set():
    torch.manual_seed(0)
    act = ("leakyrelu", {"negative_slope": 0.2, "inplace": True})
    original = SegResNet(
        init_filters=4, in_channels=1, out_channels=2, blocks_down=(1, 1), blocks_up=(1,), norm=("group", {"num_groups": 2}), act=act
    )
    weights = original.state_dict()
    assert ["groups" in recognised(weights).assumed[0], "activation" in recognised(weights).assumed[1]] == [True, True]
    assert "slope" in recognised(weights, given={"groups": 2, "activation": "leaky_relu"}).assumed[0]
    told = {"groups": 2, "activation": "leaky_relu", "slope": 0.2}
    assert recognised(weights, given=told).assumed == ()
    same(converted(weights, given=told), original, (16, 16, 16))
    with pytest.raises(RecipeError, match="set groups"):
        converted(weights)
    for wrong in ({"groups": 0}, {"groups": 2, "activation": "step"}, {"groups": 2, "slope": float("nan")}):
        with pytest.raises(RecipeError, match=r"network\.settings"):
            converted(weights, given=wrong)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "elu", "gelu", "silu"])
def test_every_activation_of_segresnet_is_the_one_of_its_name(activation):
    wanted = {"relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.3), "elu": F.elu, "gelu": F.gelu, "silu": F.silu}[activation]
    network = build("segresnet", 1, 2, settings={"activation": activation, "slope": 0.3}).network
    x = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(network.act_mod(x.clone()), wanted(x))


# ---- what was saved of our own networks


OWN = [
    ("uxnet", {"widths": [4, 8, 12], "depths": [1, 2, 0], "hidden": 8, "kernel": [3, 5, 3], "layer_scale": 0.5, "deep_supervision": True}),
    ("uxnet", {"widths": [4, 8], "depths": [1, 1], "hidden": 8, "block": "paper", "scaling": "mlp", "expansion": 2, "stem_kernel": 3}),
    ("uxnet", {"widths": [4], "depths": [1], "hidden": 8, "layer_scale": False, "convolution": "standard", "kernel": 3, "scaling": "none"}),
    ("uxnet", {"widths": [4, 8], "depths": [1, 1], "hidden": 8, "block": "paper", "layer_scale": 0.1, "strides": [1, 2, 2], "kernel": 3}),
    ("unet", {"widths": [4, 8, 16]}),
    ("unet", {"widths": [4, 8], "residual_units": 0}),
    ("segresnet", {"blocks_down": [1, 1], "blocks_up": [1]}),
    ("rapnet", {"width": 2}),
    ("nnunet", {"widths": [4, 8, 12], "kernel": [[3, 3, 1], [3, 3, 3], [3, 3, 3]], "strides": [[2, 2, 1], [2, 2, 2]]}),
    ("nnunet", {"widths": [4, 8], "convolutions": 1, "deep_supervision": False, "bias": False, "up_bias": True, "head_bias": True}),
    ("transbts", {"size": "narrow"}),
    ("transbts", {"widths": [8, 16], "depths": [1, 0], "embedding": 64, "heads": 1, "layers": 1, "mlp": 8}),
    ("unetr", {"size": "narrow"}),
    ("nnformer", {"widths": [8, 16], "depths": [2, 1], "heads": [2, 4], "windows": [3, 2], "patch_stride": [1, 2, 2], "mlp_ratio": 2.0}),
    ("nnformer", {"size": "narrow", "deep_supervision": True}),
    ("swinunetr", {"width": 12, "window": 3, "depths": [1, 1, 1, 1], "heads": [2, 2, 2, 2]}),
]


@pytest.mark.parametrize(("name", "settings"), OWN, ids=str)
def test_what_was_saved_of_our_own_networks_comes_back(name, settings):
    """By names and shapes alone, whatever frameworks wrote before the names; what shapes do not show is right here by its defaults."""
    torch.manual_seed(0)
    original = build(name, 2, 3, 32, settings)
    for module in original.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_()
    given = {"merging": "corrected"} if name == "swinunetr" else {}
    weights = {key: weight for key, weight in original.state_dict().items() if weight.is_floating_point()}
    for prefix in ("", "module.", "_orig_mod.module.", "net."):
        loaded, _ = unwrapped({"model": {prefix + key: weight for key, weight in weights.items()}, "epoch": 3})
        bare, _ = without_prefixes(loaded)
        found = recognised(bare, given=given)
        assert (found.network, found.in_channels, found.out_channels, found.patch in (None, (32, 32, 32))) == (name, 2, 3, True)
        network = build(name, 2, 3, 32, found.settings)
        network.load_state_dict({**network.state_dict(), **renamed(bare, found, 32)})
    assert all(torch.equal(weight, weights[key]) for key, weight in network.state_dict().items() if weight.is_floating_point())
    assert not [key for key in weights if key not in network.state_dict() and not key.startswith(("supervision_heads", "heads."))]
    same(network.eval(), original)
    assert recognised(bare, name, given=given).settings == found.settings


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [("rapnet", {"width": 2}, "output_relu"), ("transbts", {"size": "narrow"}, "4 heads"), ("unet", {"widths": [4, 8]}, "grids halved")],
)
def test_what_our_own_weights_do_not_show_is_said(name, settings, said):
    weights, _ = without_prefixes(build(name, 1, 3, 32, settings).state_dict())
    assert said in recognised(weights).assumed[0]


def test_our_own_weights_lacking_one_or_built_for_another_patch():
    weights = build("nnformer", 1, 3, 64, {"size": "narrow"}).state_dict()
    assert recognised(weights).settings["windows"] == [4, 4, 4]
    with pytest.raises(ModelError, match="give the patch that it was trained with"):
        renamed(weights, recognised(weights), 16)
    lacking = small().state_dict()
    del lacking["skips.1.conv2.weight"]
    with pytest.raises(ModelError, match=r"1 missing: skips\.1\.conv2\.weight"):
        renamed(lacking, recognised(lacking))
    with pytest.raises(ModelError, match=r"41 levels|50 levels"):
        recognised({f"stage_norms.{n}.weight": torch.zeros(1) for n in range(50)} | {"stem.conv.weight": torch.zeros(1, 1, 1, 1, 1)})


def test_weights_that_older_versions_own_and_nothing_reads_are_left_out():
    """The released UNETR has a class token and idle shortcuts (MONAI 0.7), later ones cross attention that nobody asked for."""
    weights = UNETR(1, 3, proj_type="perceptron", **VIT).state_dict()
    weights |= {
        "vit.patch_embedding.cls_token": torch.zeros(1, 1, 64),
        "encoder2.blocks.0.1.conv3.conv.weight": torch.ones(8, 8, 1, 1, 1),
        "vit.blocks.3.cross_attn.to_q.weight": torch.ones(64, 64),
    }
    assert renamed(weights, recognised(weights))
    ours = released(small()) | {"decoder1.layer.conv3.conv.weight": torch.ones(48, 48, 1, 1, 1)}
    assert renamed(ours, recognised(ours))
    read = released(small()) | {"decoder1.layer.conv3.conv.weight": torch.ones(48, 24, 1, 1, 1)}
    with pytest.raises(ModelError, match=r"1 unknown: decoder1\.layer\.conv3"):
        renamed(read, recognised(read))


# ---- what cannot be taken


def test_unknown_weights_say_their_names_and_what_is_known():
    with pytest.raises(ModelError) as error:
        recognised({f"backbone.{n}.weight": TENSOR for n in range(9)})
    assert all(word in str(error.value) for word in ("9 weights", "backbone.0.weight", "4 more", *KINDS))
    with pytest.raises(ModelError, match="several"):
        recognised({"swinViT.a": TENSOR, "vit.b": TENSOR})
    with pytest.raises(ModelError, match=r"'resnet'.*uxnet, swinunetr, unetr, segresnet"):
        recognised(released(small()), "resnet")
    with pytest.raises(ModelError, match=r"convInit\.conv\.weight of segresnet is missing"):
        recognised(released(small()), "segresnet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder3.layer.conv2.conv.weight"), r"1 missing: encoder3\.layer\.conv2\.conv\.weight"),
        (lambda w: w.update({"extra.weight": TENSOR}), r"1 unknown: extra\.weight"),
        (lambda w: w.update({f"extra.{n}": TENSOR for n in range(20)}), r"20 unknown: extra\.0.* and 15 more"),
        (lambda w: w.update({"uxnet_3d.norm0.weight": torch.zeros(7)}), r"1 of another shape: uxnet_3d\.norm0\.weight \(7,\) .*\(48,\)"),
        (lambda w: w.pop("uxnet_3d.downsample_layers.0.0.weight"), r"uxnet_3d\.downsample_layers\.0\.0\.weight of uxnet is missing"),
        (lambda w: w.pop("out.conv.conv.weight"), r"out\.conv\.conv\.weight of uxnet is missing"),
        (lambda w: w.update({"out.conv.conv.weight": torch.zeros(3, 48)}), "5 axes are needed"),
        (lambda w: w.update({"uxnet_3d.downsample_layers.4.1.weight": TENSOR}), "5 stages"),
        (lambda w: w.update({"uxnet_3d.stages.0.0.dwconv.weight": torch.zeros(48, 1, 2, 2, 2)}), "odd"),
    ],
)
def test_what_is_missing_unknown_or_misshapen_is_named(change, message):
    weights = released(small())
    change(weights)
    with pytest.raises((ModelError, RecipeError), match=message):
        renamed(weights, recognised(weights))


def test_integers_are_not_weights():
    weights = released(small()) | {"uxnet_3d.steps": torch.tensor(3)}
    assert renamed(weights, recognised(weights))


def test_the_released_narrow_network_with_48_channels_in_its_last_convolution():
    weights = released(small({"widths": [12, 8, 8, 12]}))
    assert renamed(weights, recognised(weights))
    weights["out.conv.conv.weight"] = torch.zeros(3, 48, 1, 1, 1)
    with pytest.raises(ModelError, match=r"12 channels .* takes 48.* cannot be represented"):
        recognised(weights)


def test_given_settings_go_before_what_is_read():
    weights = released(small())
    assert recognised(weights, given={"drop_path": 0.1}).settings["drop_path"] == 0.1
    with pytest.raises(RecipeError, match=r"network\.settings\.windows"):
        renamed(weights, recognised(weights, given={"windows": 3}))
    with pytest.raises(ModelError, match="another shape"):
        renamed(weights, recognised(weights, given={"hidden": 16}))
    with pytest.raises(ModelError, match="no setting patch"):
        recognised(weights, given={"patch": 96})


def test_shapes_made_to_fill_the_memory_make_nothing():
    begun = time.monotonic()
    swin = SwinUNETR(1, 3, **SWIN).state_dict() | {"swinViT.patch_embed.proj.weight": torch.zeros(1_200_000, 1, 1, 1, 1)}
    with pytest.raises(ModelError, match="qkv"):
        recognised(swin, given={"merging": "old"})
    large = released(small()) | {"encoder5.layer.conv1.conv.weight": torch.zeros(10**7, 1, 1, 1, 1)}
    with pytest.raises(ModelError, match="shape"):
        renamed(large, recognised(large))
    deep = SegResNet(init_filters=8).state_dict() | {f"down_layers.{n}.1.conv1.x": TENSOR for n in range(80)}
    deep |= {f"up_layers.{n}.0.conv1.x": TENSOR for n in range(79)}
    with pytest.raises(ModelError):
        renamed(deep, recognised(deep))
    assert time.monotonic() - begun < 60


def test_nothing_out_of_a_checkpoint_steers_a_terminal():
    with pytest.raises(ModelError) as refused:
        unwrapped({"\x1b]0;title\x07": 1, "\u202e" + "k" * 1000: 2})
    assert str(refused.value).isprintable()
    assert r"\u001b]0;title\u0007" in str(refused.value)
    assert len(str(refused.value)) < 500
    assert stated_monai({"monai_version": "1.4.0rc1+2\x1b[31m"}) == "1.4.0rc1+2"
