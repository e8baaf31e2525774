"""The engine for CPUs: the same answers as torch, no torch once converted, no calls home, a cache that cannot harm."""

import importlib
import json
import os
import subprocess
import sys
import textwrap
import types

import numpy as np
import pytest
import torch

from uxnet.errors import DeviceError, ModelError
from uxnet.events import Warn
from uxnet.geometry import Geometry
from uxnet.inference.engines import choose as choice
from uxnet.inference.engines.cache import Cache
from uxnet.inference.engines.choose import load_engines
from uxnet.inference.engines.graph import compose, to_openvino
from uxnet.inference.engines.openvino import OpenVINOEngine, key, open_engine
from uxnet.inference.engines.precision import Cautious
from uxnet.inference.engines.quiet import quiet_openvino, without_telemetry
from uxnet.inference.segmenter import load_model
from uxnet.inference.settings import Settings
from uxnet.labels import Label, Labels
from uxnet.model.file import read_model, write_model
from uxnet.networks.build import NETWORKS, build
from uxnet.recipe import recipe_from_dict
from uxnet.volume import Volume

PATCH = (16, 24, 16)
LABELS = Labels((Label("one", 1), Label("two", 2)))


def seeded_state(name, patch, settings):
    torch.manual_seed(0)
    return build(name, 1, 3, patch, settings)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A tiny 3D UX-Net with random weights, in a model file."""
    settings = {"widths": [4, 8, 8, 16], "hidden": 16}
    path = tmp_path_factory.mktemp("model") / "tiny.uxnet"
    stage = {"network": {"name": "uxnet", "settings": settings}, "sampling": {"patch": list(PATCH)}}
    weights = {name: tensor.numpy() for name, tensor in seeded_state("uxnet", PATCH, settings).state_dict().items()}
    recipe = recipe_from_dict({"name": "tiny", "stages": [stage]})
    write_model(path, [weights], recipe=recipe, labels=LABELS, channels=["MR"], provenance={})
    return path


@pytest.fixture
def window():
    return np.random.default_rng(0).normal(size=(1, 1, *PATCH)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_answers_as_in_torch(name):
    patch = (32, 32, 32)
    network = seeded_state(name, patch, {"size": "narrow"}).eval()
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 1, *patch)).astype(np.float32))
    with torch.no_grad():
        exact = network.double()(image.double()).numpy()
    graph = to_openvino(network.float(), 1, patch)
    kinds = [node.get_type_name() for node in graph.get_ops()]
    if name in ("uxnet", "nnunet"):  # their skips are all joined to what a stride of 2 has raised
        assert "Concat" not in kinds
        assert "GroupNormalization" not in kinds
    core = quiet_openvino().Core()
    engine = OpenVINOEngine(core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), "float32")
    made = engine.infer(image.numpy())
    assert made.dtype == np.float32
    assert np.abs(made - exact).max() < 2e-3 * exact.std()
    assert (made.argmax(1) == exact.argmax(1)).mean() > 0.999


@pytest.mark.parametrize("kernel", [1, 3])
def test_two_convolutions_become_one(kernel):
    rng = np.random.default_rng(0)
    up, weights = rng.normal(size=(3, 4, 2, 2, 2)).astype(np.float32), rng.normal(size=(5, 4, kernel, kernel, kernel)).astype(np.float32)
    low = torch.from_numpy(rng.normal(size=(1, 3, 5, 4, 6))).double()
    two = torch.nn.functional.conv_transpose3d(low, torch.from_numpy(up).double(), stride=2)
    two = torch.nn.functional.conv3d(two, torch.from_numpy(weights).double(), padding=(kernel - 1) // 2)
    one = torch.from_numpy(compose(up, weights)).double()
    one = torch.nn.functional.conv_transpose3d(low, one, stride=2, padding=(kernel - 1) // 2)
    np.testing.assert_allclose(one.numpy(), two.numpy(), atol=1e-5)


def test_a_model_is_converted_once_and_then_needs_no_torch(model_file, window, tmp_path):
    cache = tmp_path / "cache"
    model = load_model(model_file, device="cpu", cache=cache)
    first = model.engines[0].infer(window).copy()
    # Where there is bfloat16, a scan is what it is checked on, against float32.
    model.segment(Volume(window[0], Geometry(window.shape[2:], np.diag([-1.0, 1, 1, 1]))))
    names = sorted(path.name for path in cache.iterdir())
    assert [name.split(".")[-1] for name in names].count("graph") == 1
    np.save(tmp_path / "window.npy", window)
    script = f"""
        import sys, numpy as np, uxnet
        from uxnet.geometry import Geometry
        model = uxnet.load_model({str(model_file)!r}, device="auto", cache={str(cache)!r})
        window = np.load({str(tmp_path / "window.npy")!r})
        np.save({str(tmp_path / "answer.npy")!r}, model.engines[0].infer(window))
        labels = model.segment(uxnet.Volume(window[0], Geometry(window.shape[2:], np.diag([-1.0, 1, 1, 1]))))
        assert labels.array.shape == window.shape[1:]
        assert "torch" not in sys.modules and "monai" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), first, atol=1e-5)
    assert sorted(path.name for path in cache.iterdir()) == names


def test_what_is_damaged_in_the_cache_is_made_anew(model_file, window, tmp_path):
    first = load_model(model_file, device="cpu", cache=tmp_path).engines[0].infer(window)
    for damage in (
        lambda blob: blob[: len(blob) // 2],
        lambda blob: b"",
        lambda blob: blob[:-1] + bytes([blob[-1] ^ 1]),
        lambda blob: b"x" * 99,
    ):
        for path in tmp_path.iterdir():
            path.write_bytes(damage(path.read_bytes()))
        again = load_model(model_file, device="cpu", cache=tmp_path).engines[0].infer(window)
        np.testing.assert_allclose(again, first, atol=1e-5)


def test_a_blob_of_another_build_is_compiled_again(model_file, window, tmp_path):
    first = load_model(model_file, device="cpu", cache=tmp_path).engines[0].infer(window)
    cache = Cache(tmp_path)
    for path in tmp_path.glob("*.blob"):
        cache.write(path.name, b"not what OpenVINO of this build wrote")
    np.testing.assert_allclose(load_model(model_file, device="cpu", cache=tmp_path).engines[0].infer(window), first, atol=1e-5)


def test_what_comes_from_the_cache_computes_as_what_was_compiled(model_file, tmp_path):
    for _ in range(2):
        engine = open_engine(read_model(model_file), 0, "float32", threads=1, cache=Cache(tmp_path))
        assert engine.compiled.get_property("INFERENCE_NUM_THREADS") == 1
        assert engine.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"


def test_a_cache_that_cannot_be_written_is_warned_of(model_file, window, tmp_path):
    (tmp_path / "file").write_text("in the way")
    events = []
    engines = load_engines(read_model(model_file), Settings(device="cpu", cache=tmp_path / "file"), events.append)
    assert np.isfinite(engines[0].infer(window)).all()
    assert any(isinstance(event, Warn) and "cannot be kept" in event.message for event in events)


def test_the_key_tells_models_windows_and_precisions_apart(model_file):
    model = read_model(model_file)
    keys = {key(model, 0, "float32"), key(model, 0, "float32", "this machine"), key(model, 0, "bfloat16", "this machine")}
    model.description["stages"][0]["sha256"] = "0" * 64
    keys.add(key(model, 0, "float32"))
    assert len(keys) == 4


def test_nothing_calls_home(model_file, tmp_path):
    script = f"""
        import json, socket, sys
        tried = []
        def refuse(*args, **kwargs):
            tried.append(repr(args))
            raise OSError("no network here")
        socket.socket.connect = socket.socket.connect_ex = refuse
        socket.getaddrinfo = socket.create_connection = socket.gethostbyname = refuse
        import numpy as np, uxnet
        model = uxnet.load_model({str(model_file)!r}, device="cpu", engine="openvino", cache={str(tmp_path / "cache")!r})
        model.engines[0].infer(np.zeros((1, 1, *{PATCH}), np.float32))
        assert sys.modules.get("openvino_telemetry", "not imported") is not None  # others of this process may import it
        import time
        time.sleep(1)  # whatever sends does it from a thread
        print(json.dumps(tried))
    """
    # As on a user's machine: a CI is often left alone.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS", "TF_BUILD", "JENKINS_URL")}
    home = tmp_path / "home"
    home.mkdir()
    environment |= {"HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.strip().splitlines()[-1]) == []
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "onnx"}, "is no engine"),
        ({"precision": "fp8"}, "is no precision"),
        ({"precision": "float16"}, "float16 is not supported"),
        ({"engine": "openvino", "device": "cuda"}, "computes on CPUs"),
        ({"engine": "torch", "precision": "int8"}, "int8 is computed by"),
    ],
)
def test_what_cannot_be_is_refused(model_file, settings, message):
    with pytest.raises(DeviceError, match=message):
        load_engines(read_model(model_file), Settings(**{"device": "cpu", **settings}))


def test_int8_is_a_variant_that_the_model_must_hold(model_file, tmp_path):
    with pytest.raises(ModelError, match="uxnet quantise"):
        load_engines(read_model(model_file), Settings(device="cpu", precision="int8", cache=tmp_path))


def test_bfloat16_is_checked_and_the_result_is_kept(model_file, window, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "bfloat16_here", lambda: False)
    with pytest.raises(DeviceError, match="does not compute in bfloat16"):
        load_engines(read_model(model_file), Settings(device="cpu", precision="bfloat16", cache=tmp_path))
    assert isinstance(load_engines(read_model(model_file), Settings(device="cpu", cache=tmp_path))[0], OpenVINOEngine)
    monkeypatch.setattr(choice, "bfloat16_here", lambda: True)
    settings = Settings(device="cpu", cache=tmp_path)
    [engine] = load_engines(read_model(model_file), settings)
    assert isinstance(engine, Cautious)
    assert engine.known is None
    engine.keep(0.5)
    [engine] = load_engines(read_model(model_file), settings)
    assert engine.known == 0.5


def test_the_self_check_counts_for_the_processor_that_made_it(model_file, tmp_path, monkeypatch):
    """Homes are shared, and processors of one architecture compute bfloat16 differently."""
    monkeypatch.setattr(choice, "bfloat16_here", lambda: True)
    monkeypatch.setattr(choice, "open_engine", lambda model, stage, precision, **more: precision)
    settings = Settings(device="cpu", cache=tmp_path)
    known = {}
    for processor, share in (("one", 0.0), ("another", 0.5), ("one", None)):
        monkeypatch.setattr(choice, "this_machine", lambda processor=processor: processor)
        [engine] = load_engines(read_model(model_file), settings)
        known[processor, share] = engine.known
        if share is not None:
            engine.keep(share)
    assert list(known.values()) == [None, None, 0.0]


def test_the_process_finds_its_modules_as_they_were(model_file, tmp_path, monkeypatch):
    assert sys.modules.get("openvino_telemetry", "not imported") is not None
    theirs = types.ModuleType("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    with without_telemetry(), pytest.raises(ImportError):
        importlib.import_module("openvino_telemetry")
    assert sys.modules["openvino_telemetry"] is theirs
    # Of a host that had imported openvino before, whose telemetry works.
    sent = []
    theirs.Telemetry = lambda *args, **more: sent.append(args)
    reporting = importlib.import_module("openvino.tools.ovc.telemetry_utils")
    monkeypatch.setattr(reporting, "tm", theirs)
    monkeypatch.setattr(importlib.import_module("openvino.tools.ovc.convert_impl"), "tm", theirs)
    load_engines(read_model(model_file), Settings(device="cpu", precision="float32", cache=tmp_path))
    assert sent == []
    assert reporting.tm is theirs


def test_torch_takes_over_where_openvino_cannot(model_file, window, tmp_path, monkeypatch):
    def cannot(*args, **kwargs):
        raise ModelError("x.uxnet: cannot be converted")

    monkeypatch.setattr(choice, "open_engine", cannot)
    events = []
    settings = Settings(device="cpu", precision="float32", cache=tmp_path)
    [engine] = load_engines(read_model(model_file), settings, events.append)
    assert type(engine).__name__ == "TorchEngine"
    assert "cannot be converted" in events[0].message
    with pytest.raises(ModelError):
        load_engines(read_model(model_file), Settings(device="cpu", engine="openvino", cache=tmp_path))


def test_several_windows_at_once_are_each_their_own(model_file, tmp_path):
    engine = open_engine(read_model(model_file), 0, "float32", threads=1, cache=Cache(tmp_path))
    batch = np.random.default_rng(0).normal(size=(3, 1, *PATCH)).astype(np.float32)
    together = engine.infer(batch)
    for one, alone in zip(batch, together, strict=True):
        np.testing.assert_allclose(engine.infer(one[np.newaxis])[0], alone, atol=1e-5)


@pytest.mark.parametrize("here", [True, False])
@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_bfloat16_is_checked_against_what_computes_without_it(model_file, tmp_path, monkeypatch, precision, here):
    opened = []
    monkeypatch.setattr(choice, "bfloat16_here", lambda: here)
    monkeypatch.setattr(choice, "open_engine", lambda model, stage, precision, **more: opened.append(precision) or precision)
    [engine] = load_engines(read_model(model_file), Settings(device="cpu", precision=precision, cache=tmp_path))
    exact = {"auto": "float32", "int8": "int8"}[precision]
    if here:
        assert isinstance(engine, Cautious)
        assert (engine.lower, engine.exact()) == ({"auto": "bfloat16", "int8": "int8 and bfloat16"}[precision], exact)
    else:
        assert engine == exact
        assert opened == [exact]
