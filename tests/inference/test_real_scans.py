"""On real scans: OpenVINO gives the labels of torch, the whole way keeps its grid, and both hippocampi of a head are found."""

import importlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from uxnet.events import Spent
from uxnet.inference.localise import load_located
from uxnet.inference.segmenter import load_segmenter
from uxnet.inference.settings import Located, Settings
from uxnet.io import read_image, write_labels
from uxnet.labels import Label, Labels
from uxnet.model.catalogue import choose, model_file
from uxnet.model.file import write_model
from uxnet.networks.build import build
from uxnet.recipe import recipe_from_dict


@pytest.fixture(scope="module")
def ct_model(tmp_path_factory):
    """A small 3D UX-Net with random weights for CT at 5 mm: its labels are noise, which shows every difference."""
    import torch

    settings = {"widths": [4, 8, 16, 16], "hidden": 16}
    stage = {
        "network": {"name": "uxnet", "settings": settings},
        "prepare": {"spacing_mm": [5.0, 5.0, 6.0], "intensity": [{"clip": [-175.0, 250.0], "scale": "range"}], "crop_above": -500.0},
        "sampling": {"patch": [48, 48, 48]},
        "inference": {"overlap": 0.25},
    }
    torch.manual_seed(1)
    state = build("uxnet", 1, 6, 48, settings).state_dict()
    labels = Labels(tuple(Label(f"organ {n}", n) for n in range(1, 6)))
    path = tmp_path_factory.mktemp("ct") / "ct.uxnet"
    recipe = recipe_from_dict({"name": "ct", "stages": [stage]})
    write_model(path, [{k: v.numpy() for k, v in state.items()}], recipe=recipe, labels=labels, channels=["CT"], provenance={})
    return path


def test_openvino_gives_the_labels_of_torch_on_a_whole_ct(data_dir, ct_model, tmp_path):
    scan = next((data_dir / "abdomen_ct_unlabelled" / "images").iterdir())
    made, spent = {}, []
    for engine in ("torch", "openvino"):
        segmenter = load_segmenter([ct_model], Settings(device="cpu", engine=engine, precision="float32", cache=tmp_path))
        made[engine] = segmenter.segment(scan, lambda event: spent.append(event) if isinstance(event, Spent) else None)
    assert (made["torch"].array == made["openvino"].array).mean() > 0.999
    assert len(np.unique(made["torch"].array)) > 2
    assert {event.part for event in spent} == {"read", "prepare", "network", "stitch", "restore"}
    write_labels(tmp_path / "labels.nii.gz", made["openvino"])
    assert read_image(tmp_path / "labels.nii.gz").geometry == read_image(scan).geometry


def test_folds_mirrors_components_and_probabilities_in_one_go(data_dir, ct_model, tmp_path):
    scan = next((data_dir / "abdomen_ct_unlabelled" / "images").iterdir())
    settings = Settings(device="cpu", mirror=(False, True, False), largest=("organ 1",), cache=tmp_path, overlap=0.0)
    labels = load_segmenter([ct_model, ct_model], settings).segment(scan, probabilities=tmp_path / "probs.nii.gz")
    probs = read_image(tmp_path / "probs.nii.gz")
    assert probs.array.shape == (6, *labels.array.shape[1:])
    np.testing.assert_allclose(probs.array.sum(axis=0), 1, atol=0.02)
    # The label is what is likeliest, but for steps of 1/255 and the pieces of organ 1 that were taken away.
    label = labels.array[0]
    likelihood = np.take_along_axis(probs.array, label[np.newaxis].astype(np.int64), axis=0)[0]
    assert (likelihood >= probs.array.max(axis=0) - 1.5 / 255)[label != 0].all()
    assert ndimage.label(label == 1, np.ones((3, 3, 3)))[1] <= 1


def test_both_hippocampi_of_a_head_are_found_however_it_is_stored(data_dir, monkeypatch):
    """Mirrored and turned, too; FreeSurfer's labels are of another protocol, so a Dice of 1 is out of reach."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    heads = importlib.import_module("whole_heads")
    chosen = choose([Path("hippocampus")])
    model = load_located(chosen.models, Settings(located=Located(model_file(chosen.whole.localiser), chosen.whole), device="cpu"))
    folder = data_dir / "adult_brain_t1"
    (path,) = (folder / "imagesTr").glob("*.nii.gz")
    seen = []
    for what, voxels, labels, affine in heads.variants(nib.load(path), nib.load(folder / "labels_aseg" / path.name)):
        for side, (off_mm, dice) in heads.measured(model, voxels, labels, affine).items():
            assert off_mm < 5, (what, side)
            assert dice > 0.75, (what, side)
        seen.append(what)
    assert len(seen) == 6
