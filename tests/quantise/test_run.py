"""int8 by quantisation: which cases, which windows, which layers, what it costs, and that nothing is written where it costs too much."""

import dataclasses
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from uxnet.dataset.manifest import Case, read_dataset
from uxnet.errors import DatasetError, DeviceError, InputError, ModelError
from uxnet.events import Note
from uxnet.inference.segmenter import load_model
from uxnet.labels import Label, Labels
from uxnet.model.file import read_model, read_variant, variants, write_model
from uxnet.quantise import run as module
from uxnet.quantise.calibration import calibration_windows, choose_cases
from uxnet.quantise.cost import Compared, Cost, cost_of
from uxnet.quantise.run import LADDER, left_out, quantise, quiet_nncf
from uxnet.recipe import load_recipe, with_overrides


def needs_nncf():
    try:
        quiet_nncf()
    except DeviceError as error:
        pytest.skip(str(error))


def write_untrained(path, recipe, split):
    """A model of the tiny dataset's labels, its weights at random."""
    import torch

    from uxnet.inference.engines.torch import stage_network

    labels = Labels((Label("bright", 1), Label("dark", 2)))
    torch.manual_seed(0)
    networks = [stage_network(stage, 1, labels.out_channels) for stage in recipe.stages]
    weights = [{key: value.numpy() for key, value in network.state_dict().items()} for network in networks]
    provenance = {"dataset": {"name": "Tiny"}, "split": split} if split else {}
    write_model(path, weights, recipe=recipe, labels=labels, channels=["MRI"], provenance=provenance)
    return path


SPLIT = {"train": [f"case_{n:02d}" for n in range(6)], "validation": ["case_06", "case_07"], "test": ["case_08", "case_09"]}


@pytest.fixture
def model(tmp_path, tiny_recipe):
    return write_untrained(tmp_path / "a.uxnet", tiny_recipe, SPLIT)


@pytest.fixture(scope="module")
def manifest(tiny_dataset):
    return read_dataset(tiny_dataset)


def names(cases):
    return [case.name for case in cases]


def test_the_validation_cases_are_scored_and_training_cases_calibrate(model, manifest):
    chosen = choose_cases(read_model(model), manifest, most=4)
    assert (names(chosen.scored), chosen.origin) == (SPLIT["validation"], "validation")
    assert len(chosen.calibration) == 4
    assert set(names(chosen.calibration)) <= set(SPLIT["train"])
    assert chosen == choose_cases(read_model(model), manifest, most=4)
    assert names(choose_cases(read_model(model), manifest, most=100, scored=1).scored)[0] in SPLIT["validation"]
    assert names(choose_cases(read_model(model), manifest, most=100, scored=1).calibration) == SPLIT["train"]


def test_another_datasets_cases_of_the_same_names_are_others(model, manifest):
    chosen = choose_cases(read_model(model), dataclasses.replace(manifest, name="Other"), most=4)
    assert chosen.origin == "held out"
    assert "it may have been trained on them" in chosen.sentence


def test_nobody_is_on_both_sides(tmp_path, tiny_recipe, manifest):
    path = write_untrained(tmp_path / "elsewhere.uxnet", tiny_recipe, None)
    persons = dataclasses.replace(manifest, cases=tuple(dataclasses.replace(c, person=f"p{n // 2}") for n, c in enumerate(manifest.cases)))
    for seed in range(5):
        chosen = choose_cases(read_model(path), persons, most=20, seed=seed)
        assert chosen.origin == "held out"
        assert {c.person for c in chosen.calibration} & {c.person for c in chosen.scored} == set()
        assert (len(chosen.scored), len(chosen.calibration)) == (2, 8)
    # Nor where the model's split puts two scans of one person on two sides.
    split = {"train": ["case_00", "case_02"], "validation": ["case_01"]}
    chosen = choose_cases(read_model(write_untrained(path, tiny_recipe, split)), persons, most=20)
    assert "case_00" not in names(chosen.calibration)


def test_datasets_that_say_nothing_about_the_model_are_refused(model, manifest):
    other = dataclasses.replace(manifest, labels=Labels((Label("kidney", 1), Label("dark", 2))))
    with pytest.raises(DatasetError, match=r"kidney, dark.*not those of.*a\.uxnet"):
        choose_cases(read_model(model), other, most=4)
    one = dataclasses.replace(manifest, cases=manifest.cases[:1])
    with pytest.raises(DatasetError, match="two persons"):
        choose_cases(read_model(model), one, most=4)


def test_windows_are_the_networks_own_and_the_same_every_time(tmp_path, model, manifest):
    cases = manifest.cases[:3]
    drawn = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        drawn.append(calibration_windows(read_model(model), cases, [], tmp_path / name, windows=7, seed=3)[0])
    assert [len(files) for files in drawn] == [7, 7]
    for a, b in zip(*drawn, strict=True):
        assert np.load(a).shape == (1, 1, 16, 16, 16)
        assert np.load(a).dtype == np.float32
        np.testing.assert_array_equal(np.load(a), np.load(b))
    assert len({np.load(path).tobytes() for path in drawn[0]}) > 3  # of every case, though they are hardly larger than a window
    assert sorted(p.suffix for p in (tmp_path / "a").iterdir()) == [".npy"] * 7  # no prepared case is left


def test_what_it_costs_counts_every_class_that_is_somewhere(tmp_path, manifest):
    labels = Labels((Label("bright", 1), Label("dark", 2), Label("nowhere", 3)))
    from uxnet.io import read_labels

    case = manifest.cases[0]
    truth = read_labels(case.labels).array
    np.save(tmp_path / "a.npy", np.where(truth == 2, 0, truth))
    np.save(tmp_path / "b.npy", truth)
    cost = cost_of([case], [tmp_path / "a.npy"], [tmp_path / "b.npy"], labels)
    assert dict(cost.classes) == {"bright": Compared(1.0, 1.0, 1), "dark": Compared(0.0, 1.0, 1)}
    assert (cost.float32, cost.int8, cost.cases) == (0.5, 1.0, 1)
    assert cost.differ == np.mean(truth == 2)
    assert cost.worst == 0.0
    # A structure that int8 alone sees where there is none is a loss.
    stray = truth.copy()
    stray[0, 0, 0, 0] = 3
    np.save(tmp_path / "a.npy", stray)
    found = cost_of([case], [tmp_path / "b.npy"], [tmp_path / "a.npy"], labels)
    assert found.classes["nowhere"] == Compared(1.0, 0.0, 1)
    assert found.worst == 1.0
    assert found.to_dict()["classes"]["nowhere"]["difference"] == -1.0


def test_a_scan_without_a_reference_is_refused(tmp_path, manifest):
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 2, 2), np.uint8))
    case = Case("x", manifest.cases[0].images, None, "x")
    with pytest.raises(DatasetError, match="x: it has no label map"):
        cost_of([case], [tmp_path / "a.npy"], [tmp_path / "a.npy"], manifest.labels)
    with pytest.raises(DatasetError, match="grid differs"):
        cost_of(manifest.cases[:1], [tmp_path / "a.npy"], [tmp_path / "a.npy"], manifest.labels)


def quantised_types(xml, numbers):
    """Types of the layers whose inputs are quantised, of a graph."""
    from uxnet.inference.engines.quiet import quiet_openvino

    openvino = quiet_openvino()
    graph = openvino.Core().read_model(xml, openvino.Tensor(np.frombuffer(numbers, np.uint8).copy()))
    return {
        reader.get_node().get_type_name()
        for node in graph.get_ops()
        if node.get_type_name() == "FakeQuantize"
        for reader in node.output(0).get_target_inputs()
    }


def test_a_quantised_model_holds_int8_variants_and_segments_with_them(tmp_path, model, tiny_dataset):
    needs_nncf()
    out, said, before = tmp_path / "b.uxnet", [], model.read_bytes()
    done = quantise(model, tiny_dataset, out, windows=4, cases=2, max_drop=1.0, threads=1, report=said.append)
    assert (done.path, done.layers, done.windows, len(done.seconds)) == (out, "dense", (4,), 1)
    assert model.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.uxnet", "b.uxnet"]
    written = read_model(out)
    (variant,) = variants(written)
    assert (variant["engine"], variant["precision"], variant["window"]) == ("openvino", "int8", [16, 16, 16])
    assert set(variant["made_with"]) == {"openvino", "nncf", "uxnet"}
    assert set(variant["calibration"]["cases"]) <= set(SPLIT["train"])
    assert variant["calibration"]["scored"] == {"origin": "validation", "cases": SPLIT["validation"]}
    assert variant["dice"] == done.cost.to_dict()
    types = quantised_types(*read_variant(written, "int8"))
    assert "Convolution" in types
    assert not types & {"GroupConvolution", "Add", "MVN", "Multiply"}
    with zipfile.ZipFile(out) as archive:
        # A byte a weight, where float32 has four.
        assert archive.getinfo("variants/0-int8.bin").file_size < archive.getinfo("weights/0.safetensors").file_size

    # What predicts with it is what was scored.
    maps = {}
    for precision in ("float32", "int8"):
        loaded = load_model(out, device="cpu", engine="openvino", precision=precision, threads=1, cache=tmp_path / "cache")
        maps[precision] = [
            loaded.segment(case.images).array for case in read_dataset(tiny_dataset).cases if case.name in SPLIT["validation"]
        ]
    differ = sum(int((a != b).sum()) for a, b in zip(*maps.values(), strict=True)) / sum(a.size for a in maps["int8"])
    assert differ == done.cost.differ
    assert 0 < differ < 0.1


def test_both_stages_of_a_recipe_are_quantised_or_none(tmp_path, tiny_dataset):
    needs_nncf()
    overrides = ["network.settings.width=2", "sampling.patch=[16, 16, 16]", "stages.1.sampling.patch=[8, 8, 8]", "stages.1.prior.patches=2"]
    recipe = with_overrides(load_recipe("hippocampus-rapnet"), [*overrides, "prepare.spacing_mm=[1, 1, 1.5]"])
    path = write_untrained(tmp_path / "a.uxnet", recipe, SPLIT)
    done = quantise(path, tiny_dataset, tmp_path / "b.uxnet", windows=2, cases=1, scored=1, max_drop=1.0, threads=1)
    assert done.windows == (2, 2)
    assert [(v["stage"], v["window"]) for v in variants(read_model(tmp_path / "b.uxnet"))] == [(0, [16, 16, 16]), (1, [8, 8, 8])]
    loaded = load_model(tmp_path / "b.uxnet", device="cpu", precision="int8", threads=1, cache=tmp_path / "cache")
    assert loaded.segment(read_dataset(tiny_dataset).cases[0].images).array.shape[0] == 1


@pytest.fixture
def unchanged(monkeypatch):
    """What is tried is the float32 graph: whether a rung holds does not depend on it."""
    monkeypatch.setattr(module, "_quantised", lambda nncf, graph, files, layers, report: graph)


def test_more_careful_layers_are_tried_until_one_holds(tmp_path, model, tiny_dataset, monkeypatch, unchanged):
    needs_nncf()
    falls, said = iter([0.3, 0.004]), []

    def cost(*_):
        fall = next(falls)
        return Cost({"bright": Compared(0.8, 0.8 - fall, 2)}, 0.8, 0.8 - fall / 2, 2, 0.0)

    monkeypatch.setattr(module, "cost_of", cost)
    done = quantise(model, tiny_dataset, tmp_path / "b.uxnet", windows=2, cases=1, scored=1, threads=1, report=said.append)
    assert done.layers == "inner"
    (variant,) = variants(read_model(tmp_path / "b.uxnet"))
    assert variant["calibration"]["layers"] == "inner"
    assert variant["tried"] == pytest.approx({"dense": 0.3, "inner": 0.004})
    notes = [event.message.split(":")[0] for event in said if isinstance(event, Note)]
    assert [note for note in notes[1:] if not note.startswith("self-check")] == ["dense", "inner"]


def test_what_costs_too_much_is_not_written(tmp_path, model, tiny_dataset, monkeypatch, unchanged):
    needs_nncf()
    # The mean holds, a class does not.
    monkeypatch.setattr(module, "cost_of", lambda *_: Cost({"dark": Compared(0.8, 0.7, 2)}, 0.8, 0.8, 2, 0.0))
    with pytest.raises(
        ModelError, match=r"a\.uxnet.*more than 0\.005.*dense 0\.1000, inner 0\.1000, convolutions 0\.1000.*nothing was written"
    ):
        quantise(model, tiny_dataset, tmp_path / "b.uxnet", windows=2, cases=1, scored=1, threads=1)
    assert list(tmp_path.iterdir()) == [model]


def test_each_rung_leaves_out_more(model):
    from uxnet.inference.engines.openvino import convert

    graph = convert(read_model(model), 0)
    left = [set(left_out(graph, rung)) for rung in LADDER]
    assert left[0] == set()
    assert left[0] < left[1] < left[2]
    type_of = {node.get_friendly_name(): node.get_type_name() for node in graph.get_ops()}
    assert "ConvolutionBackpropData" in {type_of[name] for name in left[2]}
    chosen = [node.get_friendly_name() for node in graph.get_ordered_ops() if type_of[node.get_friendly_name()] == "Convolution"]
    assert {chosen[0], chosen[-1]} <= left[1]
    assert len(set(chosen) - left[2]) > 2


@pytest.mark.parametrize("wrong", [{"windows": 0}, {"cases": 0}, {"scored": -1}, {"max_drop": -0.1}, {"max_drop": float("nan")}], ids=str)
def test_numbers_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(InputError, match="at least one window"):
        quantise(tmp_path / "a.uxnet", tmp_path, tmp_path / "b.uxnet", **wrong)


def test_without_nncf_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(DeviceError, match=r"pip install 'uxnet\[quantise\]'"):
        quantise(tmp_path / "a.uxnet", tmp_path, tmp_path / "b.uxnet")


SPY = """
import os, socket
def refuse(*args, **kwargs):
    with open(os.environ["SPY"], "a") as file:
        file.write(repr(args))
    raise OSError("no network here")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = refuse
"""

QUANTISE = """
import sys
from uxnet.quantise.run import quantise
quantise(sys.argv[1], sys.argv[2], sys.argv[3], windows=2, cases=1, scored=1, max_drop=1.0, threads=1)
"""


def test_nobody_is_told(tmp_path, model, tiny_dataset):
    """NNCF and OpenVINO report what they are used for; here they must not, nor leave anything in the user's home."""
    needs_nncf()
    home = tmp_path / "home"
    home.mkdir()
    # Without what pytest and continuous integration set, by which NNCF keeps quiet by itself.
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "NNCF_CI", "NNCF_DEV", "GITHUB_ACTIONS")}
    # What is sent is sent by a process of its own, which Python starts with this, too.
    (tmp_path / "sitecustomize.py").write_text(SPY)
    environment |= {"HOME": str(home), "SPY": str(tmp_path / "tried"), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", QUANTISE, str(model), str(tiny_dataset), str(tmp_path / "b.uxnet")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "tried").exists(), (tmp_path / "tried").read_text()
    assert not [path for path in home.rglob("*") if path.name in ("intel", "Intel Corporation")]
    assert Path(tmp_path / "b.uxnet").is_file()
