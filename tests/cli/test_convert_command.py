import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.nets import SegResNet

from uxnet.cli.main import main
from uxnet.model.file import read_model


def run(*arguments):
    try:
        return main([str(a) for a in arguments])
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("elsewhere") / "seg.pt"
    weights = SegResNet(init_filters=8, in_channels=1, out_channels=3, blocks_down=(1, 1), blocks_up=(1,)).state_dict()
    torch.save({"state_dict": weights}, path)
    return path


def test_a_checkpoint_becomes_a_model_that_segments(capsys, tmp_path, checkpoint):
    labels = tmp_path / "dataset.json"
    labels.write_text(json.dumps({"labels": {"background": 0, "anterior": 1, "posterior": 5}, "channel_names": {"0": "T1"}}))
    out = tmp_path / "new" / "seg.uxnet"
    options = ("--recipe", "hippocampus", "--labels", labels, "--set", "network.settings.dropout=0.1", "--network", "segresnet")
    assert run("convert", checkpoint, "-o", out, *options) == 0
    said, heard = capsys.readouterr()
    assert heard.count("assumed: ") == 2
    for words in ("segresnet", "parameters", "width 8", "dropout 0.1", "anterior, posterior", "T1", f"written: {out}"):
        assert words in said
    assert read_model(out).recipe.stages[0].network.settings["dropout"] == 0.1
    assert run("info", out) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert all(
        words in told
        for words in ("model seg (", "from seg.pt", "prepared as hippocampus says", "assumed 8 groups", "trained on not known")
    )
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(20, 24, 18)).astype(np.float32), np.diag([-1.0, 1, 1, 1])), scan)
    assert run("predict", out, scan, "-o", tmp_path / "labels", "--device", "cpu") == 0
    (found,) = (tmp_path / "labels").glob("*.nii.gz")
    assert set(np.unique(nib.load(found).dataobj)) <= {0, 1, 5}


def test_a_recipe_must_be_named(capsys, tmp_path, checkpoint):
    assert run("convert", checkpoint, "-o", tmp_path / "x.uxnet") == 2
    assert "--recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("{checkpoint}", "--recipe", "none"), "no recipe 'none'"),
        (("{checkpoint}", "--recipe", "hippocampus", "--set", "dropout"), "KEY=VALUE"),
        (("{checkpoint}", "--recipe", "hippocampus", "--network", "resnet"), "'resnet'"),
        (("{checkpoint}", "--recipe", "hippocampus", "--labels", "{tmp}/none.json"), "none.json"),
        (("{tmp}/none.pth", "--recipe", "hippocampus"), "none.pth"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, checkpoint, options, words):
    given = [o.format(tmp=tmp_path, checkpoint=checkpoint) for o in options]
    assert run("convert", *given, "-o", tmp_path / "x.uxnet") == (2 if "--set" in options or "none" in options else 1)
    said = capsys.readouterr()
    assert words in said.err.splitlines()[-1]
    assert said.err.splitlines()[-1].startswith("uxnet convert: ")
    assert "Traceback" not in said.out + said.err
    assert list(tmp_path.iterdir()) == []
