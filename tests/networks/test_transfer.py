"""Beginning with the weights of another model."""

import json
import re
import shutil
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import uxnet
from uxnet.crossval.run import cross_validate
from uxnet.errors import CheckpointError, ModelError, UsageError
from uxnet.events import Warn
from uxnet.model.catalogue import model_file, recipe_of
from uxnet.model.file import read_model, read_weights
from uxnet.networks.build import NETWORKS, architecture, build
from uxnet.networks.transfer import init_from, tied_to_channels
from uxnet.recipe import Network, load_recipe, other_keys, with_overrides
from uxnet.training.begin import check_beginning
from uxnet.training.run import train

TINY = {"widths": [6, 8], "depths": [1, 1], "hidden": 8, "kernel": 3, "layer_scale": 0.5}


def tiny(in_channels=1, out_channels=3, seed=0, **more):
    torch.manual_seed(seed)
    return build("uxnet", in_channels, out_channels, 16, {**TINY, **more})


def state(network):
    return {key: value.detach().clone().numpy() for key, value in network.state_dict().items()}


def image(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tied(in_channels=1, out_channels=3, **more):
    return dict(zip(("inputs", "outputs"), tied_to_channels("uxnet", in_channels, out_channels, 16, {**TINY, **more}), strict=True))


def test_equal_networks_are_copied_whole():
    source, target = tiny(seed=1).eval(), tiny(seed=2).eval()
    transfer = init_from(target, state(source), **tied())
    assert sorted(transfer.copied) == sorted(source.state_dict())
    assert not transfer.adapted
    assert not transfer.fresh
    assert not transfer.skipped
    assert torch.equal(source(image(1, 1, 8, 8, 8)), target(image(1, 1, 8, 8, 8)))


def test_another_number_of_classes_gets_a_fresh_head():
    source, target = tiny(seed=1), tiny(1, 6, seed=2)
    before = target.head.weight.detach().clone()
    transfer = init_from(target, state(source), **tied(1, 6))
    assert sorted(transfer.fresh) == ["head.bias", "head.weight"]
    assert set(transfer.fresh.values()) == {"another number of classes"}
    assert torch.equal(target.head.weight, before)
    assert torch.equal(target.stem.conv.weight, source.stem.conv.weight)
    assert "head.bias" in str(transfer)


def test_other_labels_get_a_fresh_head_even_if_there_are_as_many():
    source, target = tiny(seed=1), tiny(seed=2)
    transfer = init_from(target, state(source), new_labels=True, **tied())
    assert sorted(transfer.fresh) == ["head.bias", "head.weight"]
    assert not torch.equal(target.head.weight, source.head.weight)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3), (2, 3), (3, 2), (4, 1), (2, 4)])
def test_equal_image_channels_give_what_they_gave(before, after):
    source, target = tiny(before, seed=1).double().eval(), tiny(after, seed=2).double().eval()
    transfer = init_from(target, state(source), **tied(after))
    assert sorted(transfer.adapted) == ["skips.0.conv1.weight", "skips.0.shortcut.weight", "stem.conv.weight"]
    assert set(transfer.adapted.values()) == {f"image channels {before} to {after}"}
    x = image(1, 1, 8, 8, 8).double()
    torch.testing.assert_close(target(x.expand(1, after, 8, 8, 8)), source(x.expand(1, before, 8, 8, 8)), rtol=1e-5, atol=1e-6)


def test_a_kernel_centred_in_zeros_computes_what_it_did():
    source, target = tiny(seed=1).double().eval(), tiny(seed=2, kernel=[[7, 5, 3], [9, 9, 9]]).double().eval()
    transfer = init_from(target, state(source), kernels="centred", **tied())
    assert set(transfer.adapted.values()) == {"kernel 3x3x3 to 7x5x3, centred", "kernel 3x3x3 to 9x9x9, centred"}
    x = image(1, 1, 16, 16, 16).double()
    torch.testing.assert_close(target(x), source(x), rtol=1e-9, atol=1e-9)


def test_an_upsampled_kernel_keeps_its_sum_and_its_shape():
    source, target = tiny(seed=1, kernel=7), tiny(seed=2, kernel=13)
    init_from(target, state(source), **tied(kernel=13))
    small, large = source.stages[0][0].depthwise.weight.detach(), target.stages[0][0].depthwise.weight.detach()
    torch.testing.assert_close(large.sum((2, 3, 4)), small.sum((2, 3, 4)), rtol=1e-4, atol=1e-5)
    flat = F.interpolate(small, size=(13, 13, 13), mode="trilinear", align_corners=True)
    for one, other in zip(large.flatten(2)[:, 0], flat.flatten(2)[:, 0], strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.95
    # Mirrored kernels become mirrored kernels: nothing is shifted.
    mirrored = {key: np.ascontiguousarray(value[..., ::-1]) if "depthwise.weight" in key else value for key, value in state(source).items()}
    other = tiny(seed=2, kernel=13)
    init_from(other, mirrored, **tied(kernel=13))
    torch.testing.assert_close(other.stages[0][0].depthwise.weight.detach(), large.flip(4), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_left_fresh_and_said():
    source, target = tiny(seed=1, depths=[2, 1], kernel=5), tiny(seed=2, hidden=16, kernel=3)
    before = state(target)
    transfer = init_from(target, state(source), **tied(hidden=16))
    assert "stages.0.1.depthwise.weight" in transfer.skipped
    assert transfer.fresh["bottleneck.conv1.weight"] == "another shape"
    assert transfer.fresh["stages.0.0.depthwise.weight"] == "another shape"  # kernels grow, they do not shrink
    after = state(target)
    assert all(np.array_equal(before[key], after[key]) for key in transfer.fresh)
    everything = {*transfer.copied, *transfer.adapted, *transfer.fresh}
    assert everything == set(after)
    assert "skipped" in str(transfer)


def test_another_network_altogether_is_refused():
    with pytest.raises(ModelError, match="different networks"):
        init_from(tiny(), state(build("segresnet", 1, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_follows_channels_and_classes_is_found_in_every_network(name):
    inputs, outputs = tied_to_channels(name, 1, 3, 32, {"size": "narrow"})
    with torch.device("meta"):
        shapes = {key: tuple(weight.shape) for key, weight in build(name, 1, 3, 32, {"size": "narrow"}).state_dict().items()}
    assert inputs
    assert outputs
    assert not inputs & outputs
    assert all(3 in shapes[key] for key in outputs)
    torch.manual_seed(1)
    source = build(name, 1, 3, 32, {"size": "narrow"})
    target = build(name, 2, 5, 32, {"size": "narrow"})
    transfer = init_from(target, state(source), inputs=inputs, outputs=outputs, channels=(1, 2))
    assert set(transfer.fresh) == outputs
    assert set(transfer.adapted) == inputs


def test_a_matrix_of_patches_is_shared_out_over_channels(tmp_path):
    """UNETR's: two channels alike give what one gave."""
    torch.manual_seed(1)
    nets = [build("unetr", n, 3, 32, {"size": "narrow"}).eval() for n in (1, 2)]
    inputs, outputs = tied_to_channels("unetr", 1, 3, 32, {"size": "narrow"})
    transfer = init_from(nets[1], state(nets[0]), inputs=inputs, outputs=outputs, channels=(1, 2))
    (matrix,) = (name for name in transfer.adapted if state(nets[0])[name].ndim == 2)
    x = torch.randn(1, 1, 32, 32, 32)
    seen = []
    for network, image in zip(nets, (x, x.repeat(1, 2, 1, 1, 1)), strict=True):
        module = network.get_submodule(matrix.rpartition(".")[0])
        hook = module.register_forward_hook(lambda _module, _given, answer: seen.append(answer))
        with torch.no_grad():
            network(image)
        hook.remove()
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-5)


def test_a_mask_stays_a_mask_whatever_the_images():
    """(image, mask) to (image, image, mask) and back: a guided stage's last channel is no image."""
    torch.manual_seed(1)
    two, three = (build("rapnet", n, 2, 32, {"size": "narrow"}) for n in (2, 3))
    inputs, outputs = tied_to_channels("rapnet", 2, 2, 32, {"size": "narrow"})
    before = {name: torch.as_tensor(state(two)[name]) for name in inputs}
    transfer = init_from(three, state(two), inputs=inputs, outputs=outputs, channels=(2, 3), masks=1)
    assert set(transfer.adapted.values()) == {"image channels 1 to 2"}
    for name, source in before.items():
        weight = three.state_dict()[name]
        torch.testing.assert_close(weight[:, 2], source[:, 1])
        torch.testing.assert_close(weight[:, :2].sum(1), source[:, 0])
        assert not torch.equal(weight[:, 1], source[:, 1])
    init_from(two, state(three), inputs=inputs, outputs=outputs, channels=(3, 2), masks=1)
    for name, source in before.items():
        torch.testing.assert_close(two.state_dict()[name], source)


# ---- in a run


def go(dataset, recipe, out, **more):
    return train(dataset, recipe, out, device="cpu", workers=1, **more)


@pytest.fixture(scope="module")
def first(tiny_dataset, tiny_recipe, tmp_path_factory):
    return go(tiny_dataset, tiny_recipe, tmp_path_factory.mktemp("first") / "run")


def test_a_run_begins_with_a_models_weights_and_says_so(first, tiny_dataset, tiny_recipe, tmp_path):
    recipe = with_overrides(tiny_recipe, ["training.steps=1", "optimiser.learning_rate=1e-12", "training.ema=0", "training.keep=last"])
    model = read_model(go(tiny_dataset, recipe, tmp_path / "run", init_from=first))
    want, got = read_weights(read_model(first)), read_weights(model)
    assert all(np.allclose(want[key], got[key], atol=1e-6) for key in want)
    told = json.loads((tmp_path / "run" / "transfer.json").read_text())
    assert told["model"] == "model.uxnet"
    assert len(told["stages"][0]["copied"]) == len(want)
    assert model.provenance["init_from"]["sha256"] == told["sha256"]


def test_a_larger_kernel_and_other_labels(first, tiny_dataset, tiny_recipe, tmp_path):
    recipe = with_overrides(
        tiny_recipe, ["network.settings.kernel=5", "training.steps=1", "optimiser.learning_rate=1e-12", "training.ema=0"]
    )
    manifest = uxnet.read_dataset(tiny_dataset)
    labels = replace(manifest.labels, foreground=tuple(replace(label, name=label.name + " new") for label in manifest.labels.foreground))
    events = []
    go(replace(manifest, labels=labels), recipe, tmp_path / "run", init_from=first, init_kernels="centred", report=events.append)
    (warned,) = [event.message for event in events if isinstance(event, Warn)]
    assert "kernel 3 there, 5 here" in warned
    told = json.loads((tmp_path / "run" / "transfer.json").read_text())["stages"][0]
    assert set(told["adapted"].values()) == {"kernel 3x3x3 to 5x5x5, centred"}
    assert {"head.weight", "head.bias"} <= set(told["fresh"])
    assert "copied" in told["summary"]


def test_a_resumed_run_needs_the_same_beginning(first, tiny_dataset, tiny_recipe, tmp_path):
    go(tiny_dataset, tiny_recipe, tmp_path / "run", init_from=first)
    told = (tmp_path / "run" / "transfer.json").read_bytes()
    with pytest.raises(CheckpointError, match=r"another run.*model\.uxnet"):
        go(tiny_dataset, tiny_recipe, tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match=r"another run.*model\.uxnet"):
        go(tiny_dataset, tiny_recipe, tmp_path / "run", resume=True, init_from=tmp_path / "run" / "model.uxnet")
    assert (tmp_path / "run" / "transfer.json").read_bytes() == told
    # It is the weights that count: their file may have got another name, and other things into it.
    other = shutil.copy(first, tmp_path / "other.uxnet")
    with zipfile.ZipFile(other, "a") as archive:
        archive.comment = b"another file"
    go(tiny_dataset, tiny_recipe, tmp_path / "run", resume=True, init_from=other)
    go(tiny_dataset, tiny_recipe, tmp_path / "fresh")
    with pytest.raises(CheckpointError, match=r"another run.*fresh weights"):
        go(tiny_dataset, tiny_recipe, tmp_path / "fresh", resume=True, init_from=first)
    assert not (tmp_path / "fresh" / "transfer.json").exists()


def test_hardly_anything_is_no_beginning(first, tiny_dataset, tiny_recipe, tmp_path):
    """Of other widths nothing fits but a head's bias, or a layer by chance: that is said, and what would fit."""
    wide = with_overrides(tiny_recipe, ["network.settings.widths=[6, 12]"])
    some = r"model\.uxnet: only [1-9]\d* of \d+ weights fit this recipe's uxnet, (0|\d\.\d|less than 0\.1) % of the parameters of its"
    for word in (some, r"widths \[4, 8\] there, \[6, 12\] here", "take its own recipe"):
        with pytest.raises(ModelError, match=word):
            go(tiny_dataset, wide, tmp_path / "run", init_from=first)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ModelError, match=r"^uxnet: .*only \d+ of"):
        cross_validate(tiny_dataset, wide, tmp_path / "cv", init_from=first, jobs=1)
    assert not (tmp_path / "cv").exists()
    # In a recipe's place, the model itself means the recipe that fits, and a run's folder the one that it was trained by.
    own = recipe_of(first)
    assert own.stages[0].network.settings["widths"] == [4, 8]
    assert own == read_model(first).recipe
    assert other_keys(recipe_of(first.parent), tiny_recipe) == ""
    with pytest.raises(UsageError, match=r"there is no recipe 'nothing'.*or a model"):
        recipe_of("nothing")


def test_the_bundled_model_and_its_recipe_fit():
    """The recipe of the same name is another; the message names the one that the model was trained by."""
    model = model_file("hippocampus")
    manifest = SimpleNamespace(channel_names=("MR",), labels=read_model(model).labels, name="x")
    with pytest.raises(ModelError, match=r"only 1 of 131 weights .* 0 % of the parameters .*take the recipe hippocampus-shipped"):
        check_beginning(load_recipe("hippocampus"), manifest, model)
    check_beginning(load_recipe("hippocampus-shipped"), manifest, model)
    check_beginning(recipe_of("hippocampus_localiser"), manifest, model_file("hippocampus_localiser"))
    theirs, ours = read_model(model).recipe, load_recipe("hippocampus-shipped")
    assert other_keys(theirs, ours) == "stages.0.network.settings.deep_supervision is false there and true here"


@pytest.mark.parametrize("name", NETWORKS)
def test_the_share_of_an_encoder(name):
    settings = {"size": "narrow"}
    torch.manual_seed(1)
    source, encoder = state(build(name, 1, 3, 32, settings)), architecture(name).encoder
    inside = {key for key in source if re.match(encoder, key)}
    assert inside
    assert inside < set(source)
    whole = init_from(build(name, 1, 3, 32, settings), source, encoder=encoder)
    assert (whole.share, whole.of_encoder) == (1.0, 1.0)
    assert "100 % of all parameters, 100 % of the encoder's" in str(whole)
    decoder = init_from(build(name, 1, 3, 32, settings), {k: v for k, v in source.items() if k not in inside}, encoder=encoder)
    assert decoder.of_encoder == 0
    assert 0 < decoder.share < 1


def test_models_that_do_not_fit_are_refused_before_anything_begins(first, tiny_dataset, tiny_recipe, tmp_path):
    other = replace(tiny_recipe, stages=(replace(tiny_recipe.stages[0], network=Network("segresnet")),))
    with pytest.raises(ModelError, match=r"model\.uxnet: its network is uxnet, the recipe's is segresnet"):
        go(tiny_dataset, other, tmp_path / "run", init_from=first)
    with pytest.raises(ModelError, match="no such model"):
        go(tiny_dataset, tiny_recipe, tmp_path / "run", init_from=tmp_path / "nothing.uxnet")
    assert not (tmp_path / "run").exists()
