"""The box on the command line: `uxnet models`, and models by name in `predict` and `info`."""

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from commands import run, scan
from made_cards import fill
from made_heads import WHOLE, cropper, finder, head, reference

from uxnet.inference.localise import LocatedSegmenter
from uxnet.io import read_labels, write_image


@pytest.fixture
def box(tmp_path, tiny_model):
    """A box of a model of crops, and one that would find them in heads."""
    folder = tmp_path / "box"
    fill(folder, "thing", tiny_model(), whole=WHOLE)
    fill(folder, "finder", tiny_model(), title="Where things are")
    return folder


def test_the_list_and_the_card(capsys, box):
    assert run("models", "--box", box) == 0
    out = capsys.readouterr().out
    for words in ("thing", "finder", "bright", "0.700 (0.600-0.800)", "MB", "CC0"):
        assert words in out
    assert run("models", "--box", box, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told] == ["finder", "thing"]
    assert told[1]["whole"]["localiser"] == "finder"
    assert told[1]["bytes"] == (box / "thing.uxnet").stat().st_size
    assert run("models", "thing", "--box", box) == 0
    out = capsys.readouterr().out
    for words in ("Things in noise", "Not a medical device", "0.900 (0.800-0.950)", "2 persons", "took the dark thing", "Knows noise only"):
        assert words in out
    assert run("models", "thing", "--box", box, "--json") == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Things in noise"


def test_a_model_without_its_card_is_named_and_the_others_are_listed(capsys, box):
    (box / "finder.toml").unlink()
    assert run("models", "--box", box) == 1
    said = capsys.readouterr()
    assert "0.700 (0.600-0.800)" in said.out
    assert "left out: " in said.err
    assert "its card finder.toml is missing beside it" in said.err
    assert run("models", "--box", box, "--json") == 1
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["thing"]
    assert run("models", "finder", "--box", box) == 1


def test_a_folder_that_hides_a_model_is_said(capsys, tmp_path, box, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scan(tmp_path / "finder" / "a.nii.gz")
    assert run("predict", "thing", "finder", "-o", "out", "--box", box, "--device", "cpu") == 0
    assert "finder: the folder here, to be segmented; not the model in the box" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["quantise", "nothing", "--data", "data"],
        ["train", "data", "--recipe", "hippocampus", "-o", "run", "--init-from", "nothing"],
        ["crossval", "data", "--recipe", "hippocampus", "-o", "cv", "--init-from", "nothing"],
        ["crossval", "data", "--recipe", "hippocampus", "-o", "cv", "--networks", "unet", "--init", "unet=nothing"],
    ],
    ids=lambda command: " ".join(command[-2:]),
)
def test_whatever_takes_a_model_takes_names(capsys, tmp_path, tiny_dataset, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiny_dataset)
    assert run(*command) == 2
    assert "there is no model 'nothing' in the box (hippocampus, hippocampus_localiser)" in capsys.readouterr().err


def test_names_that_are_not_there(capsys, box, tmp_path):
    assert run("models", "--box", tmp_path) == 0
    assert "there is no model in" in capsys.readouterr().out
    for command in (["models", "nothing"], ["info", "nothing"], ["predict", "nothing", tmp_path / "a.nii.gz", "-o", tmp_path / "out"]):
        assert run(*command, "--box", box) == 2
        assert "(finder, thing)" in capsys.readouterr().err


def test_info_by_name(capsys, box):
    assert run("info", "thing", "--box", box) == 0
    assert "1 bright, 300 dark" in capsys.readouterr().out


def test_listing_imports_no_torch():
    code = "import sys; from uxnet.cli.main import main; main(['models']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_making_a_card_needs_all_its_parts(capsys, tmp_path, tiny_model):
    assert run("models", "thing", "--make", tiny_model(), "-o", tmp_path) == 2
    assert "give a name, --make MODEL, --records, --facts and --output" in capsys.readouterr().err


def test_a_crop_is_segmented_by_name(capsys, tmp_path, box):
    path = scan(tmp_path / "a.nii.gz")
    assert run("predict", "thing", path, "-o", tmp_path / "out", "--box", box, "--device", "cpu") == 0
    said = capsys.readouterr().err
    assert "thing: the model in the box" in said
    assert "taken for a crop around one thing" in said
    assert json.loads((tmp_path / "out" / "labels.json").read_text())["foreground"][1] == {"name": "dark", "value": 300}


def test_what_cannot_be_read_is_taken_for_nothing(capsys, tmp_path, box):
    (tmp_path / "a.nii").write_text("no image")
    assert run("predict", "thing", tmp_path / "a.nii", "-o", tmp_path / "out", "--box", box, "--workers", "0") == 1
    said = capsys.readouterr()
    assert "a.nii" in said.out + said.err
    assert "taken for" not in said.err


@pytest.fixture
def heads(tmp_path, monkeypatch, tiny_model):
    """Segmenters that know made heads, in place of those that the files would give."""
    loaded = []

    def load(models, settings, report):
        loaded.append((models, settings))
        return LocatedSegmenter(finder(), cropper(), settings.located.whole)

    monkeypatch.setattr("uxnet.cohort.run.load_located", load)
    return loaded


def test_heads_are_segmented_by_name_and_a_bad_one_is_named(capsys, tmp_path, box, heads):
    scans = {"good": head("LIA"), "other": head("SPR"), "half": head(sides=("left",))}
    for name, volume in scans.items():
        write_image(tmp_path / "in" / f"{name}.nii.gz", volume)
    out = tmp_path / "out"
    command = ["predict", "thing", tmp_path / "in", "-o", out, "--box", box, "--workers", "0"]
    assert run(*command) == 1
    said = capsys.readouterr()
    assert "taken for whole heads: left thing and right thing are located first" in said.err
    assert "half.nii.gz: not segmented: the right thing is not found" in said.err
    assert heads[0][1].located.localiser == box / "finder.uxnet"
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["good.nii.gz", "other.nii.gz"]
    for name in ("good", "other"):
        found = read_labels(out / f"{name}.nii.gz")
        np.testing.assert_array_equal(found.array[0], reference(scans[name]))
        assert found.geometry.same_grid(scans[name].geometry)
    labels = json.loads((out / "labels.json").read_text())
    assert labels["foreground"][0] == {"name": "left bright thing", "value": 1}
    assert [model["file"] for model in json.loads((out / "predict.json").read_text())["models"]] == [
        str(box / "thing.uxnet"),
        str(box / "finder.uxnet"),
    ]
    # Again: what is done is known, with the localiser's content.
    (tmp_path / "in" / "half.nii.gz").unlink()
    assert run(*command) == 0
    assert "2 of them were done already" in capsys.readouterr().out
    assert run(*command, "--region", "crop") == 1
    assert "exists already, and it was made with the scan taken for a whole one, not for a crop" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["thing", "{box}/thing.uxnet"])
def test_a_head_is_known_for_one_however_the_model_is_named(capsys, tmp_path, box, heads, given):
    volume = head()
    write_image(tmp_path / "a.nii.gz", volume)
    command = ["predict", given.format(box=box), tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--workers", "0"]
    # A path needs no --box: its card and localiser lie beside it.
    assert run(*command, *(["--box", box] if given == "thing" else [])) == 0
    said = capsys.readouterr().err
    assert "thing: the model in the box" in said
    assert "taken for a whole head: left thing and right thing are located first" in said
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "a.nii.gz").array[0], reference(volume))


def test_what_heads_cannot_have_is_refused_before_anything_is_done(capsys, tmp_path, box, heads):
    write_image(tmp_path / "a.nii.gz", head())
    scan(tmp_path / "b.nii.gz")
    options = ["-o", tmp_path / "out", "--box", box]
    for more, words in (
        (["--probabilities"], "probabilities are of crops only"),
        ([tmp_path / "b.nii.gz"], "whole scans and crops in one call (a of 130 mm and 0 more; b of 40 mm"),
    ):
        assert run("predict", "thing", tmp_path / "a.nii.gz", *more, *options) == 1
        assert words in capsys.readouterr().err
    other = ["predict", box / "finder.uxnet", tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--region", "head"]
    assert run(*other) == 2
    assert "--region head: it takes a model in the box" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_head_without_its_localiser(capsys, tmp_path, box):
    (box / "finder.uxnet").unlink()
    nib.save(nib.Nifti1Image(np.zeros((80, 80, 80), np.uint8), np.eye(4)), tmp_path / "a.nii.gz")
    assert run("predict", "thing", tmp_path / "a.nii.gz", "-o", tmp_path / "out", "--box", box) == 1
    assert "there is no model 'finder'" in capsys.readouterr().err
