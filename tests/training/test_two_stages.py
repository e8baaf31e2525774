"""RAP-Net's method as a recipe of two stages: trained in order, resumed, and used as one model."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

import uxnet
from uxnet.cli.main import main
from uxnet.dataset.cache import CachedCase
from uxnet.dataset.patches import draw_guided_place, read_batch
from uxnet.errors import DatasetError, RecipeError
from uxnet.io import read_labels
from uxnet.io.records import read_records
from uxnet.labels import Label, Labels, Region
from uxnet.model.file import read_model, read_weights
from uxnet.recipe import Network, Prior, Sampling, load_recipe
from uxnet.training import run as run_module
from uxnet.training.run import train


class Died(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def two(tiny_recipe):
    """Both phases with the smallest of RAP-Net's networks, long enough for the first to find something."""
    stage = replace(
        tiny_recipe.stages[0],
        network=Network("rapnet", {"width": 4, "output_relu": False}),
        training=replace(tiny_recipe.stages[0].training, steps=24, validate_every=12, checkpoint_every=4),
    )
    fine = replace(stage, sampling=Sampling((8, 8, 8)), prior=Prior(patches=4))
    return replace(tiny_recipe, name="two", stages=(stage, fine))


def go(dataset, recipe, out, **more):
    return train(dataset, recipe, out, device="cpu", workers=1, **more)


@pytest.fixture(scope="module")
def trained(tiny_dataset, two, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    return out, go(tiny_dataset, two, out)


def test_both_stages_are_trained_and_kept_in_one_model(trained, two):
    out, path = trained
    model = read_model(path)
    assert model.recipe == two
    assert [(s["in_channels"], s["out_channels"]) for s in model.description["stages"]] == [(1, 3), (2, 2)]
    assert read_weights(model, 0)["head.bias"].shape == (3,)
    assert read_weights(model, 1)["head.bias"].shape == (2,)
    assert [s["training"]["steps"] for s in model.provenance["stages"]] == [24, 24]
    assert model.provenance["validation"] == model.provenance["stages"][1]["validation"]
    for number in (0, 1):
        records = list(read_records(out / f"stage_{number}" / "metrics.jsonl"))
        assert [r["step"] for r in records if r["kind"] == "validation"] == [12, 24]
        assert (out / f"stage_{number}" / "curves.png").exists()
    guided = sorted(p.name for p in (out / "stage_0" / "labels").glob("*.nii.gz"))
    assert guided == sorted(f"{name}.nii.gz" for name in model.provenance["split"]["train"])


def test_the_model_segments_whole_scans(trained, tiny_dataset):
    _, path = trained
    segmenter = uxnet.load_model(path, device="cpu")
    scan = tiny_dataset / "imagesTr" / "case_00.nii.gz"
    found = segmenter.segment(scan)
    reference = read_labels(tiny_dataset / "labelsTr" / "case_00.nii.gz")
    assert found.geometry == reference.geometry
    assert set(np.unique(found.array)) <= {0, 1, 2}
    np.testing.assert_array_equal(found.array, segmenter.segment(scan).array)


@pytest.mark.parametrize("when", ["in the first stage", "between the stages", "in the second stage"])
def test_a_run_that_was_interrupted_gives_the_same_weights(trained, tiny_dataset, two, tmp_path, monkeypatch, when):
    _, whole = trained
    calls = []
    real_fit, real_labels = run_module.fit, run_module.write_labels

    def fit(*arguments, **more):
        calls.append(1)
        if (when, len(calls)) in (("in the first stage", 1), ("in the second stage", 2)):
            heard = more["hooks"].report

            def report(event):
                heard(event)
                if getattr(event, "task", "") == "training" and event.done == 7:
                    raise Died

            more["hooks"] = replace(more["hooks"], report=report)
        return real_fit(*arguments, **more)

    def write_labels(path, labels):
        real_labels(path, labels)
        if when == "between the stages":
            raise Died

    monkeypatch.setattr(run_module, "fit", fit)
    monkeypatch.setattr(run_module, "write_labels", write_labels)
    with pytest.raises(Died):
        go(tiny_dataset, two, tmp_path / "run")
    monkeypatch.undo()
    resumed = go(tiny_dataset, two, tmp_path / "run", resume=True)
    for number in (0, 1):
        want, got = read_weights(read_model(whole), number), read_weights(read_model(resumed), number)
        assert all(np.array_equal(want[key], got[key]) for key in want)


def test_a_label_map_that_was_made_of_something_else_is_made_anew(trained, tiny_dataset, two, tmp_path, monkeypatch):
    """What guides the second stage is of the image and the weights as they are; the rest is not segmented again."""
    out, path = trained
    shutil.copytree(out, tmp_path / "run")
    labels = tmp_path / "run/stage_0/labels"
    image, weights, moved = read_model(path).provenance["split"]["train"][:3]
    for name, key in ((image, "image_sha256"), (weights, "weights_sha256")):
        made_of = json.loads((labels / f"{name}.json").read_text())
        (labels / f"{name}.json").write_text(json.dumps(made_of | {key: "another"}))
    scan = nib.load(labels / f"{moved}.nii.gz")
    affine = scan.affine.copy()
    affine[0, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), affine), tmp_path / "new.nii.gz")
    shutil.move(tmp_path / "new.nii.gz", labels / f"{moved}.nii.gz")
    real, written = run_module.write_labels, []
    monkeypatch.setattr(run_module, "write_labels", lambda path, labels: (written.append(path.name), real(path, labels)))
    go(tiny_dataset, two, tmp_path / "run", resume=True)
    assert sorted(written) == sorted(f"{name}.nii.gz" for name in (image, weights, moved))
    go(tiny_dataset, two, tmp_path / "run", resume=True)
    assert len(written) == 3


def test_info_and_predict_take_it_like_any_model(trained, tiny_dataset, tmp_path, capsys):
    _, path = trained
    assert main(["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert told.count("training ") == 2
    assert told.count("network ") == 2
    assert main(["predict", str(path), str(tiny_dataset / "imagesTr" / "case_01.nii.gz"), "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "case_01.nii.gz").is_file()


def test_labels_that_are_regions_are_refused(tiny_dataset, two, tmp_path):
    manifest = uxnet.read_dataset(tiny_dataset)
    labels = Labels(manifest.labels.foreground, regions=(Region("both", (1, 2), 1),))
    with pytest.raises(RecipeError, match="regions"):
        go(replace(manifest, labels=labels), two, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_recipe_in_the_box_is_rapnets_two_phases():
    coarse, fine = load_recipe("hippocampus-rapnet").stages
    assert (coarse.network.name, fine.network.name) == ("rapnet", "rapnet")
    assert coarse.prior is None
    assert fine.prior is not None
    assert coarse.prepare.spacing_mm > fine.prepare.spacing_mm


# ---- patches of the guided stage


def case(shape, prior, labels=(), channels=1):
    rng = np.random.default_rng(0)
    indices, guide = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for array, where in ((guide, prior), (indices, labels)):
        for index, voxels in where:
            array[tuple(np.array(voxels).T)] = index
    places = tuple(np.argwhere(guide == index).astype(np.int32) for index in (1, 2))
    return CachedCase("x", rng.uniform(1, 2, (channels, *shape)).astype(np.float32), indices, places, guide)


def test_a_patch_shows_one_structures_mask_and_asks_about_it_alone():
    one = case((20, 20, 20), [(1, [(5, 5, 5)]), (2, [(14, 14, 14)])], [(1, [(5, 5, 6)]), (2, [(5, 6, 5), (14, 14, 15)]), (3, [(6, 5, 5)])])
    sampling = Sampling((8, 8, 8))
    seen = set()
    for step in range(30):
        place = draw_guided_place([one], sampling, 0, step, 0)
        images, targets = read_batch([one], sampling, [0], 0, step)
        assert images.shape == (1, 2, 8, 8, 8)
        assert set(np.unique(images[0, 1])) == {0.0, 1.0}
        assert images[0, 1].sum() == 1  # the other structure's mask is not shown
        assert (targets == 1).sum() == 1
        assert (targets == 2).sum() == (1 if place.structure == 1 else 0)  # index 3 is above the two structures: ignored
        seen.add(place.structure)
    assert seen == {1, 2}


def test_cases_without_a_prior_are_left_out_and_a_dataset_without_any_is_refused():
    empty, found = case((9, 9, 9), []), case((9, 9, 9), [(2, [(4, 4, 4)])])
    assert {draw_guided_place([empty, found, empty], Sampling((4, 4, 4)), 0, step, 0).case for step in range(20)} == {1}
    with pytest.raises(DatasetError, match="train it for longer"):
        draw_guided_place([empty, empty], Sampling((4, 4, 4)), 0, 0, 0)


def test_augmentation_moves_the_mask_but_keeps_it_one():
    from uxnet.recipe import Augmentation
    from uxnet.training.augment import augment

    settings = Augmentation(
        (20, 20, 20), 0.1, intensity_shift=0.5, intensity_scale=0.5, gamma=0.5, noise=0.5, blur=1.0, intensity_probability=1.0
    )
    mask = torch.zeros(2, 1, 16, 16, 16)
    mask[:, :, 4:10, 5:12, 6:11] = 1
    images = torch.cat((torch.randn(2, 1, 16, 16, 16), mask), dim=1)
    changed, indices = augment(images, mask[:, 0].to(torch.uint8), settings, 0, 3, masks=1)
    assert set(changed[:, 1].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(changed[:, 1], images[:, 1])  # it was moved
    assert (changed[:, 1] - indices.float()).abs().mean() < 0.05  # with the labels
    assert not torch.equal(changed[:, 0], images[:, 0])


def test_a_guided_stage_ignores_what_is_to_be_ignored():
    stage = replace(load_recipe("hippocampus-rapnet").stages[1])
    labels = Labels((Label("a", 1), Label("b", 2)), ignore=9)
    asked = run_module._labels_of(stage, labels)
    assert (asked.out_channels, asked.ignore_index) == (2, 2)
    assert run_module._labels_of(load_recipe("hippocampus").stages[0], labels) is labels
