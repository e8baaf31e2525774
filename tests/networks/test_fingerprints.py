"""The networks against their references: every parameter count of the paper's Tables 1 and 3, every reference output to 1e-9."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fingerprints import Fingerprint, Misfit, deviation, seeded_image, worst_deviation

from uxnet.networks.build import build

FOLDER = Path(__file__).parent / "fingerprints"
TOOL = Path(__file__).parents[1] / "check_fingerprint.py"

REFERENCES = [
    ("uxnet_default_out5", "uxnet", {}),
    ("uxnet_narrow12_hidden192_out5", "uxnet", {"widths": [12, 24, 48, 96], "hidden": 192}),
    ("unet16_256_res2_out5", "unet", {}),
    ("segresnet_f8_out5", "segresnet", {}),
    ("rapnet_coarse_in1_out14", "rapnet", {}),
    ("nnunet_v1_iso6_out5", "nnunet", {}),
    ("transbts_feta_out8", "transbts", {}),
    ("unetr_img32_out5", "unetr", {}),
    ("unetr_img32_out5.monai090", "unetr", {}),
    ("unetr_img96_out5", "unetr", {}),
    ("nnformer_crop96_out8", "nnformer", {}),
    ("swinunetr_fs48_out5", "swinunetr", {}),
    ("swinunetr_fs48_out5.monai090", "swinunetr", {"merging": "old"}),
]

# (network, classes, channels, settings) -> parameters, counted on the networks that the tables mean.
PARAMETERS = [
    # Table 1, at 5 and 8 classes; RAP-Net's two phases are a coarse and a fine network
    ("unet", 5, 1, {}, 4_809_646),
    ("unet", 8, 1, {}, 4_813_297),
    ("segresnet", 5, 1, {}, 1_176_213),
    ("segresnet", 8, 1, {}, 1_176_240),
    ("rapnet", 14, 1, {}, 19_072_718),
    ("rapnet", 5, 1, {}, 19_072_133),
    ("rapnet", 8, 1, {}, 19_072_328),
    ("rapnet", 2, 2, {}, 19_072_802),
    ("nnunet", 5, 1, {}, 31_197_184),
    ("nnunet", 8, 1, {}, 31_199_584),
    ("nnunet", 5, 1, {"strides": [[1, 2, 2], 2, 2, 2, 2], "kernel": [[1, 3, 3], 3, 3, 3, 3, 3]}, 31_169_984),  # an anisotropic first level
    ("nnunet", 5, 1, {"up_bias": True, "head_bias": True}, 31_198_009),  # nnU-Net 2
    ("nnunet", 8, 1, {"up_bias": True, "head_bias": True}, 31_200_424),
    ("nnunet", 5, 1, {"bias": False, "head_bias": True, "deep_supervision": False}, 31_189_509),  # MONAI's DynUNet
    ("transbts", 5, 1, {}, 31_577_285),
    ("transbts", 8, 1, {}, 31_577_336),
    ("unetr", 5, 1, {}, 92_802_325),
    ("unetr", 8, 1, {}, 92_802_376),
    ("nnformer", 5, 1, {}, 149_265_629),
    ("nnformer", 8, 1, {}, 149_284_064),
    ("swinunetr", 5, 1, {}, 62_186_855),
    ("swinunetr", 8, 1, {}, 62_187_002),
    ("uxnet", 5, 1, {}, 53_006_069),
    ("uxnet", 8, 1, {}, 53_006_216),
    # Table 3, at 5 classes
    ("uxnet", 5, 1, {"convolution": "standard"}, 186_858_389),
    ("uxnet", 5, 1, {"convolution": "depthwise", "kernel": 7, "scaling": "dcs"}, 53_006_069),
    ("uxnet", 5, 1, {"kernel": 9}, 53_561_909),
    ("uxnet", 5, 1, {"kernel": 11}, 54_428_789),
    ("uxnet", 5, 1, {"kernel": 13}, 55_675_829),
    ("uxnet", 5, 1, {"scaling": "mlp"}, 56_127_989),
    ("uxnet", 8, 1, {"scaling": "mlp"}, 56_128_136),
    ("uxnet", 5, 1, {"scaling": "mlp", "kernel": 9}, 56_683_829),
    ("uxnet", 5, 1, {"scaling": "mlp", "kernel": 13}, 58_797_749),
    ("uxnet", 5, 1, {"convolution": "standard", "scaling": "mlp"}, 189_980_309),
    ("uxnet", 5, 1, {"scaling": "none"}, 52_987_349),
    ("uxnet", 5, 1, {"depths": [0, 0, 0, 0]}, 52_487_669),
    # Eq. 1: a second layer norm a block, no layer scale
    ("uxnet", 5, 1, {"block": "paper"}, 53_007_509),
]


@pytest.mark.parametrize(("name", "classes", "channels", "settings", "parameters"), PARAMETERS)
def test_parameters_of_the_papers_tables(name, classes, channels, settings, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build(name, channels, classes, 96, settings).parameters()) == parameters


@pytest.mark.parametrize(("file", "name", "settings"), REFERENCES, ids=[file for file, _, _ in REFERENCES])
def test_equal_to_the_reference(file, name, settings):
    """Where the same code is also held at a smaller width or with other settings, the smaller of a file's sizes is enough."""
    fingerprint = Fingerprint.read(FOLDER / f"{file}.json")
    cases = fingerprint.cases[:1] if file in ("uxnet_default_out5", "swinunetr_fs48_out5.monai090") else None
    assert worst_deviation(fingerprint, fingerprint.network(name, settings=settings), name, cases) < 1e-9


@pytest.mark.parametrize(("file", "name", "settings"), REFERENCES, ids=[file for file, _, _ in REFERENCES])
def test_the_key_map_leads_to_every_weight_of_the_reference(file, name, settings):
    fingerprint = Fingerprint.read(FOLDER / f"{file}.json")
    network = fingerprint.network(name, settings=settings)
    names = fingerprint.names(network, name)
    assert sorted(names.values()) == sorted(fingerprint.shapes)
    if name in ("unet", "rapnet", "uxnet", "segresnet"):  # the small ones: the seeding is the reference's
        _, weights = fingerprint.fill(network, name)
        assert fingerprint.sha256(weights) == fingerprint.data["fill_sha256_float32"]


@pytest.mark.parametrize("file", [file for file, _, _ in REFERENCES if file != "nnunet_v1_iso6_out5"])
def test_the_committed_files_are_the_references(data_dir, file):
    path = data_dir.parent / "reference" / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    given, ours = json.loads(path.read_text()), json.loads((FOLDER / f"{file}.json").read_text())
    assert all(ours[key] == given[key] for key in ("n_params", "fill_sha256_float32", "state_dict"))
    for mine, theirs in zip(ours["cases"], given["cases"], strict=True):
        assert mine["input"] == theirs["input"]
        assert all(theirs["output_float64"][key] == value for key, value in mine["output_float64"].items())


def test_float32_is_close_to_float64():
    file, name, settings = REFERENCES[1]
    fingerprint = Fingerprint.read(FOLDER / f"{file}.json")
    network, _ = fingerprint.fill(fingerprint.network(name, settings=settings), name)
    case = fingerprint.cases[0]
    with torch.inference_mode():
        assert deviation(network.float()(seeded_image(case["input"]["shape"]).float()), case) < 1e-4


@pytest.mark.parametrize(
    "settings",
    [{"block": "paper"}, {"convolution": "standard"}, {"scaling": "mlp"}, {"scaling": "none"}, {"kernel": 9}, {"layer_scale": False}],
)
def test_another_network_is_noticed(settings):
    file, name, narrow = REFERENCES[1]
    fingerprint = Fingerprint.read(FOLDER / f"{file}.json")
    with pytest.raises(Misfit):
        worst_deviation(fingerprint, fingerprint.network(name, settings={**narrow, **settings}), name, fingerprint.cases[:1])


def test_the_old_patch_merging_is_another_network_with_the_same_names():
    fingerprint = Fingerprint.read(FOLDER / "swinunetr_fs48_out5.json")
    network = fingerprint.network("swinunetr", settings={"merging": "old"})
    assert worst_deviation(fingerprint, network, "swinunetr", fingerprint.cases[:1]) > 0.1


# ---- the tool


@pytest.fixture
def check(capsys):
    """Runs the tool in this process: (exit code, what it prints)."""
    spec = importlib.util.spec_from_file_location("check_fingerprint", TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run(*arguments):
        return tool.main([str(argument) for argument in arguments]), capsys.readouterr().out

    return run


def test_the_tool_says_equal_and_not_equal(check, tmp_path):
    file = FOLDER / "segresnet_f8_out5.json"
    done = subprocess.run([sys.executable, str(TOOL), str(file), "--network", "segresnet"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(": ")[-1].strip()) == (0, "equal"), done.stderr
    data = json.loads(file.read_text())
    data["cases"][1]["output_float64"]["value"][3] += 1e-8
    (tmp_path / "other.json").write_text(json.dumps(data))
    code, said = check(tmp_path / "other.json", "--network", "segresnet")
    assert code == 1
    assert "NOT equal" in said


def test_the_tool_knows_the_patch_merging_of_a_file_that_states_its_monai():
    old = FOLDER / "swinunetr_fs48_out5.monai090.json"
    sys.path.insert(0, str(TOOL.parent))
    try:
        from check_fingerprint import told_by
    finally:
        sys.path.pop(0)
    assert told_by(Fingerprint.read(old), "swinunetr") == {"merging": "old"}
    assert told_by(Fingerprint.read(FOLDER / "swinunetr_fs48_out5.json"), "swinunetr") == {}
    assert told_by(Fingerprint.read(FOLDER / "uxnet_default_out5.json"), "uxnet") == {}


def test_the_tool_takes_settings_classes_channels_and_patch(check):
    settings = ["--set", "widths=[12,24,48,96]", "hidden=192", "--set", "block=released"]
    file = FOLDER / "uxnet_narrow12_hidden192_out5.json"
    fits = ["--classes", 5, "--in-channels", 1, "--patch", 32, 32, 32]
    assert check(file, "--network", "uxnet", *fits, *settings)[0] == 0
    for wrong in (["--classes", 6], ["--in-channels", 2], ["--set", "hidden=96"], ["--set", "size=enormous"], ["--set", "widths"]):
        code, said = check(file, "--network", "uxnet", *settings, *wrong)
        assert code == 1
        assert "equal" not in said
        assert said.strip()


def test_seeded_weights_are_those_of_the_description():
    fingerprint = Fingerprint.read(FOLDER / "rapnet_coarse_in1_out14.json")
    network, weights = fingerprint.fill(fingerprint.network("rapnet"), "rapnet")
    assert (weights["ec0.1.running_var"] >= 1).all()
    assert np.abs(weights["ec0.1.running_mean"]).max() < 0.6
    assert network.encoder[0][1].running_var.tolist() == pytest.approx(weights["ec0.1.running_var"].tolist())
