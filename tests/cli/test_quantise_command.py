import pytest

from uxnet.cli.main import main
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import DeviceError
from uxnet.labels import Label, Labels
from uxnet.model.file import read_model, variants, with_variants, write_model
from uxnet.quantise.calibration import Cases
from uxnet.quantise.cost import Compared, Cost
from uxnet.quantise.run import Quantised


def run(*arguments):
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture
def model(tmp_path, tiny_recipe):
    from uxnet.inference.engines.torch import stage_network

    labels = Labels((Label("bright", 1), Label("dark", 2)))
    network = stage_network(tiny_recipe.stages[0], 1, labels.out_channels)
    weights = {key: value.numpy() for key, value in network.state_dict().items()}
    path = tmp_path / "tiny.uxnet"
    write_model(path, [weights], recipe=tiny_recipe, labels=labels, channels=["MRI"], provenance={})
    return path


@pytest.fixture
def pretended(monkeypatch, tiny_dataset):
    """quantise() without its work: a variant of two bytes, at a known cost."""
    calls = []

    def quantise(path, dataset, out, **options):
        calls.append((path, dataset, out, options))
        described = read_model(path)
        cost = Cost({"bright": Compared(0.9, 0.899, 2), "dark": Compared(0.8, 0.8012, 2)}, 0.85, 0.8501, 2, 0.00123)
        stage = described.recipe.stages[0]
        facts = {"precision": "int8", "stage": 0, "window": list(stage.window), "made_with": {"nncf": "3.4.0"}, "dice": cost.to_dict()}
        facts["weights_sha256"] = described.description["stages"][0]["sha256"]
        with_variants(path, out, [(facts, b"<net/>", b"x")])
        cases = Cases(dataset.cases[:1], dataset.cases[1:3], "validation")
        return Quantised(out, "dense", (4,), cases, cost, ((0.2, 0.1),), (4_000_000, 1_100_000))

    monkeypatch.setattr("uxnet.quantise.run.quantise", quantise)
    return calls


def test_a_model_in_the_box_is_written_here(capsys, tmp_path, model, tiny_dataset, pretended, monkeypatch):
    monkeypatch.setattr("uxnet.model.catalogue.BOX", model.parent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("quantise", "tiny", "--data", tiny_dataset) == 0
    assert pretended[0][0] == model
    assert (tmp_path / "here" / "tiny.int8.uxnet").is_file()


def test_it_prints_what_int8_costs_and_writes_beside_the_model(capsys, tmp_path, model, tiny_dataset, pretended):
    before = model.read_bytes()
    assert run("quantise", model, "--data", tiny_dataset, "--windows", 4, "--max-drop", 0.01, "--layers", "inner") == 0
    out = tmp_path / "tiny.int8.uxnet"
    ((_, dataset, path, options),) = pretended
    assert path == out
    assert (options["windows"], options["max_drop"], options["layers"]) == (4, 0.01, "inner")
    assert dataset.name == "Tiny"
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines()]
    assert ["bright", "0.9000", "0.8990", "-0.0010", "2"] in rows
    assert ["dark", "0.8000", "0.8012", "+0.0012", "2"] in rows
    assert ["mean", "0.8500", "0.8501", "+0.0001", "2"] in rows
    for words in ("0.123%", "0.2 s in float32, 0.1 s in int8 (2.00 times as fast)", "4.0 MB in float32, 1.1 MB", f"written: {out}"):
        assert words in said
    assert model.read_bytes() == before

    assert run("info", out) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "variant int8 for openvino, windows [16, 16, 16] (nncf 3.4.0); mean Dice 0.8501 instead of 0.8500 over 2 cases" in told


def test_nothing_is_overwritten_unasked(capsys, tmp_path, model, tiny_dataset, pretended):
    out = tmp_path / "tiny.int8.uxnet"
    out.write_text("mine")
    assert run("quantise", model, "--data", tiny_dataset) == 1
    assert run("quantise", model, "--data", tiny_dataset, "-o", model) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(error.startswith("uxnet quantise: ") and "--overwrite" in error for error in errors)
    assert (out.read_text(), pretended) == ("mine", [])
    assert run("quantise", model, "--data", tiny_dataset, "-o", model, "--overwrite") == 0
    assert [v["precision"] for v in variants(read_model(model))] == ["int8"]


def test_a_tampered_variant_is_shown_by_info(capsys, tmp_path, model, tiny_dataset, pretended):
    import zipfile

    assert run("quantise", model, "--data", tiny_dataset) == 0
    out = tmp_path / "tiny.int8.uxnet"
    with zipfile.ZipFile(out) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(out, "w") as archive:
        for name, blob in (parts | {"variants/0-int8.xml": b"<other/>"}).items():
            archive.writestr(name, blob)
    capsys.readouterr()
    assert run("info", out) == 1
    assert "sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ((), 2, "--data"),
        (("--data", "{tmp}/none"), 1, "no such folder"),
        (("--data", "{data}", "--windows", "0"), 1, "at least one window"),
        (("--data", "{data}", "--layers", "all"), 2, "convolutions"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, model, tiny_dataset, options, code, words):
    assert run("quantise", model, *(option.format(tmp=tmp_path, data=tiny_dataset) for option in options)) == code
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.out + said.err
    assert list(tmp_path.iterdir()) == [model]


def test_without_nncf_it_says_what_to_install(capsys, monkeypatch, model, tiny_dataset):
    def missing():
        raise DeviceError("quantising needs NNCF; pip install 'uxnet[quantise]'")

    monkeypatch.setattr("uxnet.quantise.run.quiet_nncf", missing)
    assert run("quantise", model, "--data", tiny_dataset) == 1
    assert "pip install 'uxnet[quantise]'" in capsys.readouterr().err


def test_the_dataset_is_read_with_persons(monkeypatch, capsys, model, tiny_dataset, pretended):
    assert run("quantise", model, "--data", tiny_dataset, "--group-by", r"case_\d") == 0
    (call,) = pretended
    assert call[1].grouped_by == "person"
    assert len(call[1].persons) < len(read_dataset(tiny_dataset).persons)
