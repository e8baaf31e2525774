"""`uxnet plan`: from a folder to a recipe that loads, builds and is explained; and what it refuses."""

import itertools
import json
import re

import nibabel as nib
import numpy as np
import pytest

from uxnet.cli.main import main
from uxnet.dataset.check import check_dataset
from uxnet.dataset.manifest import read_dataset
from uxnet.planning.recipe_for import RUNTIME, Machine, plan_recipe
from uxnet.recipe import load_recipe, recipe_to_dict

PLENTY = 64_000_000_000


def run(*arguments):
    """The exit code of a command line, however it comes."""
    try:
        return main(["plan", *map(str, arguments)])
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def coarse_dataset(tmp_path_factory):
    """Five scans of 1 x 1 x 5 mm with a ball on each side."""
    root = tmp_path_factory.mktemp("coarse") / "data"
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    shape, affine = (96, 80, 20), np.diag([1.0, 1.0, 5.0, 1.0])
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    labels = np.zeros(shape, np.uint8)
    for value, side in ((1, -0.5), (2, 0.5)):
        labels[np.linalg.norm(grid - [side, 0, 0], axis=-1) < 0.3] = value
    for n in range(5):
        image = np.random.default_rng(n).normal(0, 1, shape) + 3.0 * labels
        nib.save(nib.Nifti1Image(image.astype(np.float32), affine), root / "imagesTr" / f"c{n}.nii.gz")
        nib.save(nib.Nifti1Image(labels, affine), root / "labelsTr" / f"c{n}.nii.gz")
    cases = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in range(5)]
    names = {"0": "background", "1": "left ball", "2": "right ball"}
    described = {"name": "Coarse", "modality": {"0": "MRI"}, "labels": names, "training": cases}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def planned(root, device="cpu", memory=PLENTY, cores=2, **more):
    precision = "float32" if device == "cpu" else "bfloat16"
    return plan_recipe(check_dataset(read_dataset(root)), Machine(device, precision, memory, cores), timed=False, **more)


def test_a_plan_is_written_with_its_reasons_and_loads_as_planned(tiny_dataset, tmp_path, capsys):
    file = tmp_path / "new" / "tiny.toml"
    assert run(tiny_dataset, "-o", file, "--device", "cpu", "--memory", "64GB", "--no-timed") == 0
    shown = capsys.readouterr().out
    for text in ("sampling.patch", "prepare.spacing_mm", "1 x 1 x 1.5", "GMac", str(file)):
        assert text in re.sub(r"\s+", " ", shown) or text in shown
    expected = planned(tiny_dataset).plan.recipe
    assert load_recipe(file).stages[0].sampling == expected.stages[0].sampling
    lines = file.read_text().splitlines()
    for before, line in itertools.pairwise(lines):
        if " = " in line and not line.startswith(("#", "schema", 'name = "Tiny', "description")):
            assert before.startswith("# "), line


def test_the_file_is_exactly_the_plan(coarse_dataset, tmp_path):
    plan = planned(coarse_dataset).plan
    file = tmp_path / "a.toml"
    file.write_text(plan.to_toml(["Head."]), encoding="utf-8")
    assert recipe_to_dict(load_recipe(file)) == recipe_to_dict(plan.recipe)
    assert all(choice.reason.endswith((".", "?")) for choice in plan.choices)


def test_a_coarse_axis_gets_strides_and_kernels_of_its_own_and_the_network_runs(coarse_dataset):
    import torch

    from uxnet.networks.build import build

    stage = planned(coarse_dataset).plan.recipe.stages[0]
    settings = stage.network.settings
    assert settings["stem_stride"] == [2, 2, 1]
    assert settings["stem_kernel"] == [7, 7, 1]
    assert settings["kernel"][0] == [7, 7, 3]
    assert stage.prepare.spacing_mm == (1.0, 1.0, 5.0)
    assert stage.augment.rotation_deg == (0.0, 0.0, 10.0)
    assert stage.augment.mirror == (True, False, False)
    network = build("uxnet", 1, 3, stage.sampling.patch, settings)
    logits = network(torch.randn(1, 1, *stage.sampling.patch))
    logits.square().mean().backward()
    assert logits.shape == (1, 3, *stage.sampling.patch)


def test_it_trains(coarse_dataset, tmp_path):
    from uxnet.recipe import with_overrides
    from uxnet.training.run import train

    recipe = planned(coarse_dataset, memory=RUNTIME + 150_000_000).plan.recipe
    recipe = with_overrides(recipe, ["training.steps=2", "training.validate_every=2", "training.precision=float32"])
    assert train(coarse_dataset, recipe, tmp_path / "run", device="cpu").is_file()


def test_the_patch_follows_the_memory_and_the_cores(coarse_dataset):
    def voxels(**more):
        found = planned(coarse_dataset, **more)
        stage = found.plan.recipe.stages[0]
        return int(np.prod(stage.sampling.patch)), found

    little, found = voxels(memory=1_000_000_000)
    much, _ = voxels(memory=4_000_000_000, cores=64)
    few, _ = voxels(cores=1)
    assert found.memory <= 1_000_000_000
    assert little < much
    assert few < much


def test_a_gpu_gets_the_papers_widths_if_there_is_room(coarse_dataset):
    roomy = planned(coarse_dataset, "cuda", 40_000_000_000).plan.recipe.stages[0]
    assert roomy.network.settings["widths"][0] == 48
    assert roomy.training.steps == 40_000
    assert roomy.optimiser.learning_rate == 1e-4
    tight = planned(coarse_dataset, "cuda", 3_000_000_000).plan.recipe.stages[0]
    assert tight.network.settings["widths"][0] == 16


def test_options(coarse_dataset):
    stage = planned(coarse_dataset, steps=77, spacing_mm=(2.0, 2.0, 5.0)).plan.recipe.stages[0]
    assert stage.training.steps == 77
    assert stage.prepare.spacing_mm == (2.0, 2.0, 5.0)
    assert planned(coarse_dataset, hours=2.5).plan.recipe.stages[0].training.hours == 2.5
    assert planned(coarse_dataset, size="paper").plan.recipe.stages[0].network.settings["widths"][0] == 48


@pytest.mark.parametrize(
    ("passes", "hours", "steps", "reason"),
    [
        (1, 1e6, "1000", "The least that trains a network from nothing"),
        (10**6, 1e6, "40000", "As many as the 3D UX-Net's paper trains; "),
        (10**6, 4.0, r"[1-9]\d{3}", r"What 2 cores at about .* s a step do in 4 hours"),
        (10**6, 0.001, "200", r"Fewer train nothing; they take 2 cores at about .* s a step .* hours"),
    ],
)
def test_the_reason_for_the_steps_is_what_decided(coarse_dataset, monkeypatch, passes, hours, steps, reason):
    monkeypatch.setattr("uxnet.planning.recipe_for._PASSES", passes)
    monkeypatch.setattr("uxnet.planning.recipe_for._CPU_HOURS", hours)
    (length,) = [choice for choice in planned(coarse_dataset).plan.choices if choice.key == "training.steps"]
    assert re.fullmatch(steps, str(length.value))
    assert re.match(reason, length.reason)


@pytest.mark.parametrize("network", ["nnunet", "unetr", "segresnet"])
def test_other_networks_get_a_recipe_that_builds(coarse_dataset, network):
    from uxnet.networks.build import build

    stage = planned(coarse_dataset, network=network).plan.recipe.stages[0]
    assert stage.network.name == network
    build(network, 1, 3, stage.sampling.patch, stage.network.settings)


def test_too_little_memory_says_what_would_do(coarse_dataset, tmp_path, capsys):
    assert run(coarse_dataset, "-o", tmp_path / "a.toml", "--device", "cpu", "--memory", "610MB", "--no-timed") == 1
    said = capsys.readouterr().err
    least = re.search(r"take (\d+(?:\.\d+)?) (MB|GB)", said)
    assert least, said
    assert not (tmp_path / "a.toml").exists()
    enough = float(least[1]) * {"MB": 1e6, "GB": 1e9}[least[2]] * 1.01
    assert planned(coarse_dataset, memory=int(enough)).memory <= enough


def test_what_is_refused(tiny_dataset, coarse_dataset, tmp_path, capsys):
    there = tmp_path / "there.toml"
    there.write_text("mine")
    for arguments, code, says in (
        ((tiny_dataset, "-o", there), 1, "is there already"),
        ((tiny_dataset, "-o", tmp_path), 2, "ends in .toml"),
        ((tiny_dataset, "-o", tmp_path / "a.toml", "--memory", "much"), 2, "no amount of memory"),
        ((tiny_dataset, "-o", tmp_path / "a.toml", "--steps", "0"), 2, "above 0"),
        ((tiny_dataset, "-o", tmp_path / "a.toml", "--network", "vnet"), 2, "no network 'vnet'"),
        ((tmp_path, "-o", tmp_path / "a.toml"), 1, "no dataset.json"),
    ):
        assert run(*arguments, "--device", "cpu") == code
        assert says in capsys.readouterr().err
    assert there.read_text() == "mine"
    assert not (tmp_path / "a.toml").exists()


def test_errors_of_the_dataset_are_named_as_training_names_them(tmp_path, capsys):
    from tiny_datasets import decathlon

    root = decathlon(tmp_path / "data", ["a", "b"])
    (root / "imagesTr/a.nii.gz").unlink()
    assert run(root, "-o", tmp_path / "a.toml", "--device", "cpu") == 1
    said = capsys.readouterr().err
    assert "Tiny: 2 cases, 2 classes; layout: Medical Segmentation Decathlon" in said
    assert "1 error; correct them" in said
    assert "a: there is no such file (imagesTr/a.nii.gz)" in said


def test_too_few_cases_for_folds_are_said_by_plan_and_refused_by_training_which_leaves_nothing(tmp_path, capsys, tiny_recipe):
    from tiny_datasets import decathlon

    from uxnet.crossval.run import cross_validate
    from uxnet.errors import DatasetError
    from uxnet.training.run import train

    root = decathlon(tmp_path / "data", ["a", "b", "c"])
    assert run(root, "-o", tmp_path / "a.toml", "--device", "cpu", "--no-timed") == 0
    needs = "3 cases are too few for 5x80-20, which needs 5; add cases"
    assert needs in capsys.readouterr().err
    for attempt in (
        lambda out: train(root, tiny_recipe, out, device="cpu"),
        lambda out: cross_validate(root, tiny_recipe, out, (), device="cpu", protocol="5x80-20"),
    ):
        with pytest.raises(DatasetError, match=needs):
            attempt(tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_overwrite(tiny_dataset, tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("mine")
    assert run(tiny_dataset, "-o", file, "--device", "cpu", "--no-timed", "--overwrite", "--steps", "5") == 0
    assert load_recipe(file).stages[0].training.steps == 5


def test_help(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for text in ("DATASET", "--memory", "--size", "--network", "--hours", "--overwrite", "--group-by"):
        assert text in shown
