"""The rules about data and the network's grid: what they choose, and that each says why with the dataset's own numbers."""

import subprocess
import sys
import tomllib

import numpy as np
import pytest
from tiny_datasets import decathlon, save, write_json

from uxnet.dataset.check import check_dataset
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import DatasetError
from uxnet.planning import rules
from uxnet.planning.grid import grids, strides_for, uxnet_settings
from uxnet.planning.rules import Choice, Plan
from uxnet.recipe import load_recipe, recipe_from_dict

ISOTROPIC = (1.0, 1.0, 1.0)


def balls(shape, values, spacing=ISOTROPIC, background=50.0, bright=150.0):
    """An image and a label map: a ball of each value, side by side along the first axis."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"), -1)
    labels = np.zeros(shape, np.uint8)
    for n, value in enumerate(values):
        labels[np.linalg.norm(grid - [-0.5 + n * 1.0 / max(1, len(values) - 1), 0, 0], axis=-1) < 0.35] = value
    noise = np.random.default_rng(0).normal(0, 3, shape)
    return (background + noise + (bright - background) * (labels > 0)).astype(np.float32), labels


def dataset(root, cases, labels=("kidney", "tumour"), **more):
    """A Decathlon dataset of (image, labels, affine) by name."""
    for name, (image, label_map, affine) in cases.items():
        save(root / "imagesTr" / f"{name}.nii.gz", image, affine)
        save(root / "labelsTr" / f"{name}.nii.gz", label_map, affine)
    listed = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in cases]
    names = {"0": "background", **{str(n): name for n, name in enumerate(labels, start=1)}}
    write_json(root / "dataset.json", {"name": "T", "modality": {"0": "MRI"}, "labels": names, "training": listed} | more)
    return root


def facts(root):
    manifest = read_dataset(root)
    looks = [rules.look_at(case, manifest.labels) for case in manifest.cases]
    return rules.facts_of(check_dataset(manifest).fingerprint, manifest.labels, looks)


def made(tmp_path, spacings, shape=(24, 22, 20), **more):
    image, label_map = balls(shape, (1, 2))
    return facts(dataset(tmp_path, {f"c{n}": (image, label_map, np.diag([*s, 1.0])) for n, s in enumerate(spacings)}, **more))


def test_spacing_is_the_median_and_the_tenth_percentile_along_a_coarse_axis(tmp_path):
    spacing, choice = rules.spacing(made(tmp_path / "a", [(1, 1, 2), (1, 1, 2.5), (1.5, 1.5, 2)]))
    assert spacing == (1.0, 1.0, 2.0)
    assert "3 cases" in choice.reason
    assert "1 x 1 x 2 to 1.5 x 1.5 x 2.5" in choice.reason
    spacing, choice = rules.spacing(made(tmp_path / "b", [(1, 1, 3), (1, 1, 5), (1, 1, 6)]))
    assert spacing == (1.0, 1.0, 3.4)
    assert "up-down" in choice.reason
    # Never finer than the fine axes.
    assert rules.spacing(made(tmp_path / "c", [(1, 1, 0.2), (1, 1, 9), (1, 1, 9)]))[0][2] >= 1


def test_axes_are_those_of_the_patient_however_they_are_stored(tmp_path):
    image, label_map = balls((30, 20, 10), (1, 2))
    along = np.diag([1.0, 2.0, 5.0, 1.0])
    turned = along[:, [2, 0, 1, 3]] * [-1, 1, 1, 1]
    cases = {
        "a": (image, label_map, along),
        "b": (image.transpose(2, 0, 1)[::-1].copy(), label_map.transpose(2, 0, 1)[::-1].copy(), turned),
    }
    found = facts(dataset(tmp_path, cases))
    assert (found.spacings == [1, 2, 5]).all()
    assert (found.shapes == [30, 20, 10]).all()
    assert found.looks[0].symmetry == pytest.approx(found.looks[1].symmetry)


def test_ct_is_clipped_at_the_foreground_and_mri_case_by_case(tmp_path):
    ct = made(tmp_path / "ct", [(1, 1, 1)] * 2, modality={"0": "CT"})
    choice = rules.intensity(ct)
    (entry,) = choice.value
    assert entry["scale"] == "range"
    assert 130 < entry["clip"][0] < 150 < entry["clip"][1] < 170
    assert f"{entry['clip'][0]:g} and {entry['clip'][1]:g} HU" in choice.reason
    (entry,) = rules.intensity(made(tmp_path / "mr", [(1, 1, 1)] * 2)).value
    assert entry == {"scale": "zscore", "low": 0.5, "high": 99.5}
    for name, says in {"CT": True, "ct_venous": True, "Contrast": False, "T2w MRI (super-resolution act)": False}.items():
        assert rules.is_ct(made(tmp_path / name.replace(" ", "_"), [(1, 1, 1)], modality={"0": name}), 0) == says


def test_a_channel_of_two_values_stays_what_it_is(tmp_path):
    image, label_map = balls((24, 22, 20), (1, 2))
    both = np.stack([image, 255 * (label_map > 0)], axis=-1).astype(image.dtype)
    found = facts(dataset(tmp_path, {"a": (both, label_map, np.eye(4))}, modality={"0": "MRI", "1": "mask"}))
    choice = rules.intensity(found)
    assert choice.value[1] == {"clip": [0.0, 255.0], "scale": "range"}
    assert "mask: A mask: it is 0 or 255 everywhere" in choice.reason


def test_a_mask_of_zeros_is_left_out_and_cropped(tmp_path):
    image, label_map = balls((40, 30, 30), (1, 2))
    image[:, :, 18:] = image[:, 20:] = 0
    label_map[image == 0] = 0
    found = facts(dataset(tmp_path / "a", {"a": (image, label_map, np.eye(4))}))
    (entry,) = rules.intensity(found).value
    assert entry["nonzero"] is True
    kept, choice = rules.crop(found)
    assert choice.value == 0.0
    assert kept == pytest.approx((1, 2 / 3, 0.6))
    assert rules.prepared_shape(found, ISOTROPIC, kept) == pytest.approx((40, 20, 18))
    # Not where a label would be lost, and not where 0 is not the least.
    label_map[0, 0, -1] = 1
    assert rules.crop(facts(dataset(tmp_path / "b", {"a": (image, label_map, np.eye(4))})))[1] is None
    image[0, 0, 0] = -5
    assert rules.crop(facts(dataset(tmp_path / "c", {"a": (image, label_map, np.eye(4))})))[1] is None


def test_air_is_cropped_from_a_ct(tmp_path):
    image, label_map = balls((30, 30, 30), (1, 2), background=-1000)
    found = facts(dataset(tmp_path, {"a": (image, label_map, np.eye(4))}, modality={"0": "CT"}))
    kept, choice = rules.crop(found)
    assert choice.value == rules.AIR_HU
    assert max(kept) < 1


def test_strides_follow_the_spacing_and_leave_four_voxels():
    assert strides_for((35, 50, 36), ISOTROPIC, 4) == ((2, 2, 2),) * 3
    assert strides_for((96, 96, 96), ISOTROPIC, 4) == ((2, 2, 2),) * 4
    assert strides_for((128, 128, 24), (1, 1, 5), 4) == ((2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2))
    assert strides_for((5, 5, 5), ISOTROPIC, 4) == ((1, 1, 1),)
    for shape in ((35, 50, 36), (117, 91, 20), (300, 300, 9), (64, 8, 8)):
        for spacing in (ISOTROPIC, (1, 1, 5), (3, 1, 1)):
            total = np.prod(strides_for(shape, spacing, 4), axis=0)
            assert all(n / t >= 4 or t == 1 for n, t in zip(shape, total, strict=True))


def test_patches_grow_to_the_whole_case_in_whole_strides():
    for median, spacing in [
        ((35, 50, 36), ISOTROPIC),
        ((256, 196, 76), (1.4, 1.4, 2.5)),
        ((120, 120, 22), (1, 1, 5)),
        ((512, 512, 20), (0.7, 0.7, 5)),
    ]:
        found = grids(median, spacing)
        assert [np.prod(g.patch) for g in found] == sorted(np.prod(g.patch) for g in found)
        assert len({g.patch for g in found}) == len(found)
        for grid in found:
            total = np.prod(grid.strides, axis=0)
            assert not any(p % t for p, t in zip(grid.patch, total, strict=True))
            assert all(p < m + t for p, m, t in zip(grid.patch, median, total, strict=True))
    assert grids((35, 50, 36), ISOTROPIC)[-1].patch == (40, 56, 40)
    assert all(p % 32 == 0 for grid in grids((100, 100, 100), ISOTROPIC, (32, 32, 32)) for p in grid.patch)


def test_kernels_are_about_as_many_millimetres_along_every_axis_and_never_narrow_again():
    spacing = (1.0, 1.0, 5.0)
    settings = {c.key.rsplit(".", 1)[1]: c.value for c in uxnet_settings(grids((120, 120, 22), spacing)[-1], spacing, 16)}
    assert settings["stem_kernel"] == [7, 7, 1]
    assert settings["stem_stride"] == [2, 2, 1]
    assert settings["kernel"] == [[7, 7, 3], [7, 7, 7], [7, 7, 7], [7, 7, 7]]
    assert settings["decoder_kernel"] == [[3, 3, 1], [3, 3, 1], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
    isotropic = {c.key.rsplit(".", 1)[1] for c in uxnet_settings(grids((96, 96, 96), ISOTROPIC)[-1], ISOTROPIC, 16)}
    assert isotropic == {"widths", "hidden"}
    # A thin axis stops being halved and ends as the finest: the others keep their kernels.
    thin = {c.key.rsplit(".", 1)[1]: c.value for c in uxnet_settings(grids((117, 91, 20), ISOTROPIC)[-1], ISOTROPIC, 16)}
    assert "kernel" not in thin or all(k[:2] == [7, 7] for k in thin["kernel"])


@pytest.mark.parametrize("spacing", [ISOTROPIC, (1.0, 1.0, 5.0), (3.0, 0.5, 0.5), (1.4, 1.4, 2.5)])
def test_every_grid_is_a_network_that_runs(spacing):
    import torch

    from uxnet.networks.build import build

    for grid in grids((70, 64, 30), spacing)[::6]:
        settings = {c.key.removeprefix("network.settings."): c.value for c in uxnet_settings(grid, spacing, 4)}
        with torch.device("meta"):
            network = build("uxnet", 1, 3, grid.patch, settings)
        assert network(torch.empty(1, 1, *grid.patch, device="meta")).shape == (1, 3, *grid.patch)
        assert all(p % s == 0 for p, s in zip(grid.patch, network.total_stride, strict=True))


def test_rotation_stays_in_the_fine_plane(tmp_path):
    found = made(tmp_path, [(1, 1, 5)] * 2)
    chosen = {c.key: c.value for c in rules.augmentation(found, (1.0, 1.0, 5.0), long=False)}
    assert chosen["augment.rotation_deg"] == [0.0, 0.0, 10.0]
    chosen = {c.key: c.value for c in rules.augmentation(found, ISOTROPIC, long=True)}
    assert chosen["augment.rotation_deg"] == [30.0] * 3


def test_mirroring_needs_symmetry_and_pairs(tmp_path):
    def mirror(name, labels):
        image, label_map = balls((24, 22, 20), (1, 2))
        found = facts(dataset(tmp_path / name, {"a": (image, label_map, np.eye(4))}, labels))
        choice = rules.augmentation(found, ISOTROPIC, long=False)[-1]
        assert choice.key == "augment.mirror"
        return choice.value, choice.reason

    assert mirror("pair", ("left lung", "right lung"))[0] == mirror("letters", ("lung_L", "lung_R"))[0] == [True, False, False]
    value, reason = mirror("alone", ("left lung", "heart"))
    assert not any(value)
    assert "'left lung'" in reason
    value, reason = mirror("other", ("liver", "spleen"))  # of one shape, but each on a side of its own
    assert not any(value)
    assert "0.00" in reason


def test_rare_classes_are_drawn_by_class(tmp_path):
    image, both = balls((20, 20, 20), (1, 2))
    cases = {f"c{n}": (image, both if n == 0 else np.where(both == 1, 1, 0).astype(np.uint8), np.eye(4)) for n in range(3)}
    chosen = {c.key: c for c in rules.sampling(facts(dataset(tmp_path, cases)), 0.5)}
    assert chosen["sampling.balance"].value == "class"
    assert "'tumour' is in 1 of 3 cases" in chosen["sampling.balance"].reason


def test_a_dataset_without_foreground(tmp_path):
    image, _ = balls((10, 10, 10), (1,))
    with pytest.raises(DatasetError, match="no case shows any foreground"):
        facts(dataset(tmp_path, {"a": (image, np.zeros((10, 10, 10), np.uint8), np.eye(4))}))


def test_toml_holds_the_recipe_and_the_reasons(tmp_path):
    nasty = 'a "name" with \\ and \x7f, \t and é'
    choices = (
        Choice("network.name", "uxnet", "First\nline\x00 of many words. " * 20),
        Choice("network.settings.strides", [[2, 2, 1], [2, 2, 2]], "Why."),
        Choice("prepare.intensity", [{"scale": "zscore", "nonzero": True}], "Why #2."),
        Choice("training.steps", 10, "= not a key"),
    )
    plan = Plan(nasty, nasty, choices)
    text = plan.to_toml(["Above."])
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    assert load_recipe(path) == plan.recipe == recipe_from_dict(tomllib.loads(text))
    assert plan.recipe.name == nasty
    assert max(map(len, text.splitlines())) <= 120
    assert text.startswith("# Above.\n")
    assert "# Why #2.\nintensity = " in text


def test_no_torch():
    code = (
        "import sys, uxnet.planning.rules, uxnet.planning.grid, uxnet.cli.plan, uxnet.planning.recipe_for; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cases_are_looked_at_evenly(tmp_path):
    decathlon(tmp_path, [f"c{n:02d}" for n in range(9)])
    cases = read_dataset(tmp_path).cases
    assert [case.name for case in rules.some_of(cases, 3)] == ["c00", "c04", "c08"]
    assert len(rules.some_of(cases, 24)) == 9
