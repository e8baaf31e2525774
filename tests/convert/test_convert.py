import gc
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import UNETR, SegResNet, SwinUNETR
from safetensors.torch import save_file

import uxnet
from uxnet.convert import child
from uxnet.convert import convert as room
from uxnet.convert.convert import convert
from uxnet.convert.untrusted import Checkpoint, read_checkpoint
from uxnet.errors import InputError, LabelsError, ModelError, RecipeError
from uxnet.events import Warn
from uxnet.model.file import read_model, read_weights
from uxnet.networks.baselines.swinunetr import MERGINGS
from uxnet.networks.build import architecture, build
from uxnet.networks.weights import rename
from uxnet.recipe import Inference, Intensity, load_recipe

RECIPE = load_recipe("hippocampus")
SMALL = {"widths": [48, 8, 8, 8], "depths": [1, 1, 1, 1], "hidden": 8, "kernel": 3}


def uxnet_like(classes=3, in_channels=1, **settings):
    """A small network of the authors' and its weights under their names."""
    torch.manual_seed(0)
    network = build("uxnet", in_channels, classes, settings={**SMALL, **settings}).eval()
    return network, {rename(key, architecture("uxnet").key_maps[0]): weight for key, weight in network.state_dict().items()}


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch, tmp_path_factory):
    """No temporary file outlives a conversion."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.glob("uxnet*")) == []  # torch has caches of its own there


def pieces(path, **more):
    """A conversion with what it reported."""
    events = []
    out = convert(path, path.parent / "out.uxnet", recipe=RECIPE, report=events.append, **more)
    return read_model(out), [event.message for event in events if isinstance(event, Warn)]


def held(out, original, shape):
    """Asserts that a model's network answers as the original does."""
    engine = uxnet.load_model(out, device="cpu", precision="float32", engine="torch").engines[0]
    torch.manual_seed(1)
    image = torch.randn(shape)
    with torch.inference_mode():
        np.testing.assert_allclose(engine.infer(image.numpy()), original.eval()(image).numpy(), atol=1e-5)


# ---- there and back, through a file and another process


def test_an_authors_checkpoint(tmp_path):
    original, weights = uxnet_like()
    torch.save(weights, tmp_path / "FLARE.pth")
    model, warnings = pieces(tmp_path / "FLARE.pth")
    written = read_weights(model)
    assert written.keys() == original.state_dict().keys()
    assert all(np.array_equal(written[name], weight) for name, weight in original.state_dict().items())
    held(model.path, original, (1, 1, 16, 16, 32))
    assert (model.labels.classes, model.channels) == (("class 1", "class 2"), ("channel 0",))
    assert len(warnings) == 1
    assert "numbered" in warnings[0]
    (stage,), (base,) = model.recipe.stages, RECIPE.stages
    assert (stage.prepare, stage.sampling, stage.inference) == (base.prepare, base.sampling, base.inference)
    assert stage.network.settings["widths"] == [48, 8, 8, 8]
    said = model.provenance["converted"]
    assert (said["file"], said["network"], said["under"], said["prefix"]) == ("FLARE.pth", "uxnet", [], "")
    assert (len(said["sha256"]), said["preparation"], said["by"]) == (64, "hippocampus", f"uxnet {uxnet.__version__}")


def test_swinunetr_from_a_training_checkpoint(tmp_path):
    torch.manual_seed(0)
    settings = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 4, 6, 8), "window_size": 3}
    original = SwinUNETR(1, 2, downsample=MERGINGS["old"], **settings)
    junk = {"epoch": 5000, "best_acc": np.float64(0.81), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "lr": [1e-4]}}
    weights = {f"module.{key}": weight for key, weight in original.state_dict().items()}
    torch.save({**junk, "state_dict": weights, "monai_version": "0.9.0"}, tmp_path / "swin.pt")
    model, warnings = pieces(tmp_path / "swin.pt")
    assert any("MONAI 0.9.0" in warning for warning in warnings)
    assert model.recipe.stages[0].network.settings["merging"] == "old"
    assert (model.provenance["converted"]["under"], model.provenance["converted"]["prefix"]) == (["state_dict"], "module.")
    held(model.path, original, (1, 1, 32, 32, 64))


def test_unetr_brings_its_patch(tmp_path):
    torch.manual_seed(0)
    original = UNETR(1, 2, (16, 32, 32), feature_size=4, hidden_size=48, mlp_dim=32, num_heads=4, proj_type="conv")
    torch.save({"net": original.half().state_dict()}, tmp_path / "unetr.pth")
    (stage,) = RECIPE.stages
    recipe = replace(RECIPE, stages=(replace(stage, inference=Inference(patch=(64, 64, 64), overlap=0.25)),))
    out = convert(tmp_path / "unetr.pth", tmp_path / "out.uxnet", recipe=recipe, settings={"heads": 4, "patch": [16, 32, 32]})
    (stage,) = read_model(out).recipe.stages
    assert (stage.sampling.patch, stage.inference.patch, stage.window) == ((16, 32, 32), (), (16, 32, 32))
    assert stage.inference.overlap == 0.25
    held(out, original.float(), (1, 1, 16, 32, 32))


def test_segresnet_from_safetensors(tmp_path):
    torch.manual_seed(0)
    original = SegResNet(init_filters=8, in_channels=2, out_channels=1, blocks_down=(1, 1), blocks_up=(1,))
    save_file({f"model.{key}": weight for key, weight in original.state_dict().items()}, tmp_path / "seg.safetensors")
    model, _ = pieces(tmp_path / "seg.safetensors", channels=["T1", "FLAIR"])
    assert (model.labels.out_channels, model.labels.classes, model.channels) == (1, ("class 1",), ("T1", "FLAIR"))
    held(model.path, original, (1, 2, 16, 16, 16))


def test_what_was_saved_of_our_own_network(tmp_path):
    original = build("uxnet", 2, 3, settings={"widths": [4, 8], "depths": [1, 1], "hidden": 8, "kernel": 3, "layer_scale": 0.5})
    torch.save({"epoch": 3, "model": {f"_orig_mod.{key}": weight for key, weight in original.state_dict().items()}}, tmp_path / "mine.pt")
    model, warnings = pieces(tmp_path / "mine.pt")
    assert not [warning for warning in warnings if "assumed" in warning]  # everything is in the weights
    assert all(np.array_equal(read_weights(model)[name], weight) for name, weight in original.state_dict().items())
    held(model.path, original, (1, 2, 16, 16, 32))


def test_what_is_assumed_is_reported_and_stays_in_the_model(tmp_path):
    torch.manual_seed(0)
    settings = {"width": 8, "blocks_down": [1, 1], "blocks_up": [1], "groups": 2, "activation": "leaky_relu", "slope": 0.3}
    original = build("segresnet", 1, 2, settings=settings)
    torch.save(original.state_dict(), tmp_path / "seg.pt")
    model, warnings = pieces(tmp_path / "seg.pt")
    assumed = model.provenance["converted"]["assumed"]
    assert [f"assumed: {one}" for one in assumed] == warnings[:2]
    assert ["set groups" in assumed[0], "set activation" in assumed[1]] == [True, True]
    told, warnings = pieces(tmp_path / "seg.pt", settings={key: settings[key] for key in ("groups", "activation", "slope")}, overwrite=True)
    assert told.provenance["converted"]["assumed"] == []
    assert not [warning for warning in warnings if "assumed" in warning]
    held(told.path, original, (1, 1, 16, 16, 16))


# ---- files that cannot be trusted, and files that are something else


class Calls:
    """Becomes, when it is unpickled, a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def malicious(folder):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Calls(os.system, f"touch {folder / 'executed'}")}, folder / "x.pth")


def plainly_malicious(folder):
    (folder / "x.pth").write_bytes(pickle.dumps(Calls(exec, f"open({str(folder / 'executed')!r}, 'w')"), protocol=2))


def repeated(folder):
    """A tensor of 10^13 values that is one value with strides of 0."""
    torch.save({"uxnet_3d.a": torch.zeros(1).expand(10**13)}, folder / "x.pth")


def views(folder):
    """Many views of one storage."""
    storage = torch.zeros(10**5)
    torch.save({f"uxnet_3d.{n}": storage.view(-1) for n in range(10**3)}, folder / "x.pth")


def compressed(folder):
    file = io.BytesIO()
    torch.save({"uxnet_3d.a": torch.zeros(10**7)}, file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(folder / "x.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    assert (folder / "x.pth").stat().st_size < 10**6


def promised(folder):
    """The older format, whose storages are as large as the file says they will be."""
    file = io.BytesIO()
    torch.save({"uxnet_3d.a": torch.zeros(1234567)}, file, _use_new_zipfile_serialization=False)
    small, large = b"J" + (1234567).to_bytes(4, "little"), b"\x8a\x06" + (10**13).to_bytes(6, "little")
    blob = file.getvalue()[:4096]
    assert small in blob
    (folder / "x.pth").write_bytes(blob.replace(small, large))


def laughing(folder):
    """Tables in tables, each ten times the one before."""
    table = {"a": 1}
    for _ in range(12):
        table = {str(n): table for n in range(10)}
    torch.save(table, folder / "x.pth")


def truncated(folder):
    torch.save(uxnet_like()[1], folder / "x.pth")
    (folder / "x.pth").write_bytes((folder / "x.pth").read_bytes()[:100_000])


def truncated_safetensors(folder):
    save_file({"a": torch.zeros(1000)}, folder / "x.safetensors")
    (folder / "x.safetensors").write_bytes((folder / "x.safetensors").read_bytes()[:2000])


def something_else(folder):
    (folder / "x.pth").write_text("<html>404: not found</html>")


def nothing(folder):
    (folder / "x.pth").touch()


def endless(folder):
    """One of the few functions that the careful reader does call, with a large number."""
    (folder / "x.pth").write_bytes(b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + (10**13).to_bytes(6, "little") + b"\x85R.")


def a_terminal_command(folder):
    torch.save({"uxnet_3d.\x1b[2J": torch.zeros(3)}, folder / "x.pth")


def complex_numbers(folder):
    torch.save({"uxnet_3d.a": torch.zeros(3, dtype=torch.complex64)}, folder / "x.pth")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (malicious, "system.*code that runs"),
        (plainly_malicious, r"\(exec\).*code that runs"),
        (repeated, "more values than it holds"),
        (views, "more values than it holds"),
        (compressed, "more values than it holds"),
        (promised, "more memory than a checkpoint of its size"),
        (laughing, "no table of weights"),
        (truncated, "truncated"),
        (truncated_safetensors, "truncated"),
        (something_else, "another kind of file"),
        (nothing, "another kind of file"),
        (endless, "more memory than a checkpoint of its size"),
        (a_terminal_command, "a name that is no text"),
        (complex_numbers, "complex"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are Linux's")
def test_a_hostile_or_wrong_file_is_one_clear_error(tmp_path, make, message):
    make(tmp_path)
    gc.collect()
    (path,) = tmp_path.iterdir()
    with pytest.raises(ModelError, match=message) as error:
        convert(path, tmp_path / "out.uxnet", recipe=RECIPE)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_not_there(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            convert(path, tmp_path / "out.uxnet", recipe=RECIPE)


def run_instead(monkeypatch, result):
    def run(*arguments, **more):
        if isinstance(result, Exception):
            raise result
        more["stderr"].write(result[1])
        return subprocess.CompletedProcess(arguments[0], result[0])

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (subprocess.TimeoutExpired("python", 1), "was stopped"),
        ((-24, b""), "signal 24"),
        ((1, b"Traceback\nModuleNotFoundError: No module named 'torch'\n"), "did not start .*'torch'"),
        ((1, b"Traceback\nKeyError: 3\n"), "truncated"),
        ((0, b""), "truncated"),
    ],
)
def test_however_the_process_ends(tmp_path, monkeypatch, result, message):
    (tmp_path / "x.pth").write_bytes(b"x")
    run_instead(monkeypatch, result)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "x.pth")


def test_torchs_careless_reader_cannot_be_switched_on_from_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    malicious(tmp_path)
    with pytest.raises(ModelError, match="code that runs"):
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "executed").exists()


def test_limits_are_only_ever_lowered():
    pytest.importorskip("resource")
    script = (
        "import resource\nfrom uxnet.convert.child import _limit\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (9, 9))\n_limit(1)\nprint(resource.getrlimit(resource.RLIMIT_CPU))\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out == "(9, 9)\n(0, 0)\n"
    assert child.seconds_for(100 << 20) > child.seconds_for(0) == child.SECONDS


# ---- what a conversion is given besides; the process is left out for speed


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    """Puts weights where the other process would have: loaded(weights) gives a path to convert."""

    def put(weights):
        monkeypatch.setattr(room, "read_checkpoint", lambda path: Checkpoint(weights, (), None))
        (tmp_path / "x.pth").write_bytes(b"weights")
        return tmp_path / "x.pth"

    return put


def written(path, data):
    path.write_text(json.dumps(data))
    return path


def test_names_come_from_a_labels_file(loaded, tmp_path):
    path = loaded(uxnet_like(classes=3, in_channels=2)[1])
    decathlon = {"labels": {"0": "background", "1": "liver", "2": "tumour"}, "modality": {"0": "CT", "1": "PET"}}
    nnunet = {"labels": {"background": 0, "liver": 1, "tumour": 4}, "channel_names": {"0": "CT", "1": "PET"}}
    for data in (decathlon, nnunet):
        model, warnings = pieces(path, labels=written(tmp_path / "dataset.json", data), overwrite=True)
        assert (model.labels.classes, model.channels, warnings) == (("liver", "tumour"), ("CT", "PET"), [])
    again, _ = pieces(path, labels=written(tmp_path / "labels.json", model.labels.to_dict()), overwrite=True)
    assert (again.labels, again.channels) == (model.labels, ("channel 0", "channel 1"))


def test_regions_fit_networks_without_a_background_channel(loaded, tmp_path):
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": [2]}, "regions_class_order": [1, 2]}
    path = loaded(uxnet_like(classes=2)[1])
    model, _ = pieces(path, labels=written(tmp_path / "dataset.json", regions))
    assert model.labels.classes == ("whole", "core")


def test_channel_names_that_do_not_fit_are_numbers(loaded, tmp_path):
    data = {"labels": {"0": "background", "1": "a", "2": "b"}, "modality": {"0": "T1", "1": "T2"}}
    model, warnings = pieces(loaded(uxnet_like()[1]), labels=written(tmp_path / "dataset.json", data))
    assert model.channels == ("channel 0",)
    assert "names 2 channels" in warnings[0]


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"labels": {"0": "background", "1": "liver"}}, LabelsError, r"need 2 output channels \(liver\), the weights have 3"),
        ({"labels": {}}, LabelsError, "labels"),
        ({"other": 1}, LabelsError, 'there is no "labels" table'),
        ([1], InputError, "JSON object"),
    ],
)
def test_labels_that_do_not_fit(loaded, tmp_path, data, kind, message):
    path = loaded(uxnet_like()[1])
    labels = written(tmp_path / "labels.json", data)
    with pytest.raises(kind, match=message) as error:
        pieces(path, labels=labels)
    assert str(labels) in str(error.value)
    assert not (tmp_path / "out.uxnet").exists()
    with pytest.raises(InputError, match="cannot be read as JSON"):
        pieces(path, labels=tmp_path / "none.json")


def test_recipes_that_do_not_fit(loaded, tmp_path):
    path = loaded(uxnet_like()[1])
    (stage,) = RECIPE.stages
    two = replace(RECIPE, stages=(replace(stage, prepare=replace(stage.prepare, intensity=(Intensity(), Intensity()))),))
    with pytest.raises(RecipeError, match="intensities for 2 channels"):
        convert(path, tmp_path / "out.uxnet", recipe=two)
    with pytest.raises(RecipeError, match=r"x\.pth: .*windows"):
        convert(path, tmp_path / "out.uxnet", recipe=RECIPE, settings={"windows": 1})
    with pytest.raises(ModelError, match="2 channel names"):
        convert(path, tmp_path / "out.uxnet", recipe=RECIPE, channels=["a", "b"])


def test_weights_that_do_not_fit_name_the_file(loaded):
    weights = uxnet_like()[1]
    del weights["encoder2.layer.conv1.conv.weight"]
    with pytest.raises(ModelError, match=r"x\.pth: .*encoder2\.layer\.conv1"):
        pieces(loaded(weights))


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite, the first is"), (3e38, "answer to noise is not finite")])
def test_weights_that_are_not_usable(loaded, value, message):
    weights = uxnet_like()[1]
    weights["out.conv.conv.weight"] = torch.full_like(weights["out.conv.conv.weight"], value)
    weights["uxnet_3d.norm0.weight"] = torch.full_like(weights["uxnet_3d.norm0.weight"], 3.0)
    with pytest.raises(ModelError, match=message):
        pieces(loaded(weights))


def test_nothing_is_overwritten_unasked(loaded, tmp_path):
    path = loaded(uxnet_like()[1])
    taken = tmp_path / "out.uxnet"
    taken.write_bytes(b"mine")
    with pytest.raises(InputError, match=r"is there already"):
        pieces(path)
    assert taken.read_bytes() == b"mine"
    assert pieces(path, overwrite=True)
    with pytest.raises(InputError, match="the checkpoint itself"):
        convert(path, Path(f"{tmp_path}/../{tmp_path.name}/x.pth"), recipe=RECIPE, overwrite=True)
    with pytest.raises(InputError, match="a folder"):
        convert(path, tmp_path, recipe=RECIPE, overwrite=True)
