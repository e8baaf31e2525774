import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, SegResNet, SwinUNETR

from uxnet.errors import ModelError, RecipeError
from uxnet.networks.build import architecture, build
from uxnet.networks.foreign import KINDS, WRAPPERS, recognised, renamed, stated_monai, unwrapped, without_prefixes
from uxnet.networks.weights import rename

FINGERPRINTS = Path(__file__).parent / "fingerprints"
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
    from uxnet.networks.swinunetr import MERGINGS

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
