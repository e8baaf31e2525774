import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from tiny_datasets import SHAPE, decathlon, image, label_map, nnunet, save, write_json

from uxnet.dataset.check import check_dataset, refuse_errors, same_scans
from uxnet.dataset.fingerprint import intensities_of
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import Cancelled, DatasetError
from uxnet.events import Progress


def check(root, **options):
    return check_dataset(read_dataset(root), **options)


def only(inspection, severity="error"):
    (problem,) = inspection.problems
    assert problem.severity == severity
    return problem


def test_a_sound_dataset_has_no_problems(tmp_path):
    inspection = check(decathlon(tmp_path, ["a", "b"]))
    assert inspection.problems == ()
    assert inspection.class_presence() == {"a": {"kidney", "tumour"}, "b": {"kidney", "tumour"}}
    refuse_errors(inspection)


def _damage(root):
    path = root / "imagesTr/b.nii.gz"
    path.write_bytes(path.read_bytes()[:100])


def _wrong_type(root):
    path = save(root / "imagesTr/b.nii", image(1))
    data = bytearray(path.read_bytes())
    data[70:72] = (3).to_bytes(2, "little")
    path.write_bytes(data)
    path.replace(root / "imagesTr/b.nii.gz")


def _nan(root):
    array = image(1)
    array[0, 0, 0] = np.nan
    save(root / "imagesTr/b.nii.gz", array)


BROKEN = {
    "image missing": (lambda root: (root / "imagesTr/b.nii.gz").unlink(), "imagesTr", "no such file"),
    "labels missing": (lambda root: (root / "labelsTr/b.nii.gz").unlink(), "labelsTr", "no such file"),
    "image cut short": (_damage, "imagesTr", "damaged"),
    "unknown type": (_wrong_type, "imagesTr", "cannot be read"),
    "not finite": (_nan, "imagesTr", "1 voxels are not finite"),
    "constant": (lambda root: save(root / "imagesTr/b.nii.gz", np.full(SHAPE, 7, np.int16)), "imagesTr", "every voxel of the image is 7"),
    "channels": (lambda root: save(root / "imagesTr/b.nii.gz", image(1, (*SHAPE, 2))), "imagesTr", "2 channels, the dataset has 1"),
    "no integers": (lambda root: save(root / "labelsTr/b.nii.gz", np.full(SHAPE, 0.5, np.float32)), "labelsTr", "no whole numbers"),
    "no label": (lambda root: save(root / "labelsTr/b.nii.gz", label_map((1, 9))), "labelsTr", r"value 9 is no label \(2 voxels\)"),
    "shape": (lambda root: save(root / "labelsTr/b.nii.gz", label_map(shape=(6, 5, 5))), "labelsTr", "6 x 5 x 5 voxels, the image 6"),
    "spacing": (lambda root: save(root / "labelsTr/b.nii.gz", label_map(), np.diag((1, 1, 3, 1))), "labelsTr", "1 x 1 x 3 mm"),
    "orientation": (lambda root: save(root / "labelsTr/b.nii.gz", label_map(), np.diag((-1, 1, 2, 1))), "labelsTr", "lies in LAS"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_error_is_named_and_the_other_case_is_not_touched(tmp_path, kind):
    decathlon(tmp_path, ["a", "b"])
    damage, folder, message = BROKEN[kind]
    damage(tmp_path)
    inspection = check(tmp_path)
    problem = only(inspection)
    assert problem.case == "b"
    assert problem.path == tmp_path / folder / "b.nii.gz"
    assert not problem.message.startswith(str(tmp_path))
    with pytest.raises(DatasetError, match=f"(?s)1 error.*b: .*{message}"):
        refuse_errors(inspection)
    assert inspection.fingerprint.cases[0].name == "a"
    assert inspection.class_presence()["a"] == {"kidney", "tumour"}


def test_a_shifted_grid(tmp_path):
    decathlon(tmp_path, ["a"])
    affine = np.diag((1.0, 1, 2, 1))
    affine[0, 3] = 1.5
    save(tmp_path / "labelsTr/a.nii.gz", label_map(), affine)
    inspection = check(tmp_path)
    assert "1.5 mm apart" in only(inspection).message
    assert inspection.fingerprint.cases[0].foreground == ()


def test_grids_may_differ_by_rounding(tmp_path):
    decathlon(tmp_path, ["a"])
    save(tmp_path / "labelsTr/a.nii.gz", label_map(), np.diag((1, 1, 2.0001, 1)))
    assert check(tmp_path).problems == ()


def test_warnings(tmp_path):
    decathlon(tmp_path, ["a", "b", "c", "d"])
    save(tmp_path / "imagesTr/b.nii.gz", image(0))
    save(tmp_path / "labelsTr/c.nii.gz", label_map(()))
    for folder, array in (("imagesTr", image(3)), ("labelsTr", label_map())):
        save(tmp_path / folder / "d.nii.gz", array, np.diag((0.001, 0.001, 0.002, 1)))
    b, c, d = (inspection := check(tmp_path)).problems
    assert inspection.errors == ()
    assert "same voxels as that of case 'a'" in b.message
    assert "no foreground" in c.message
    assert "0.001 x 0.001 x 0.002 mm" in d.message
    refuse_errors(inspection)


def whose(root, names, **options):
    told = []
    check_dataset(read_dataset(decathlon(root, names), **options), report=told.append)
    return [event.message for event in told if "person" in getattr(event, "message", "")]


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-03"], "^([^_]+)"),
        (["0001_t1", "0001_t2", "0002_t1"], "^([^_]+)"),
        (["scan_001_a", "scan_001_b", "scan_002_a"], "^([^_]+_[^_]+)"),
        (["X-GLI-0001-000", "X-GLI-0001-001", "X-GLI-0002-000"], "^([^-]+-[^-]+-[^-]+)"),
        (["hippocampus_001", "hippocampus_003"], None),
        (["liver_1_a", "liver_2_a"], None),
        (["left_1", "left_2", "right_1"], None),
    ],
)
def test_who_is_who_is_asked_where_nobody_says_it(tmp_path, names, pattern):
    (told,) = whose(tmp_path, names)
    assert "each case counts as a person of its own" in told
    found = re.search(r"group_by='(.*)'", told)
    assert (found and found[1]) == pattern
    if pattern:
        assert whose(tmp_path, names, group_by=pattern) == []
        assert len(read_dataset(tmp_path, group_by=pattern).persons) == len(names) - 1
    write_json(tmp_path / "subjects.json", dict.fromkeys(names, "me"))
    assert whose(tmp_path, names) == []


def test_a_header_that_contradicts_itself_is_warned_of_by_its_file(tmp_path):
    nnunet(tmp_path, ["a"])
    for path in (tmp_path / "imagesTr/a_0001.nii.gz", tmp_path / "labelsTr/a.nii.gz"):
        scan = nib.load(path)
        scan.set_sform(scan.affine, 1)
        scan.set_qform(scan.affine @ np.diag((-1, 1, 1, 1)), 1)
        nib.save(scan, path)
    inspection = check(tmp_path)
    assert [problem.path.name for problem in inspection.warnings] == ["a_0001.nii.gz", "a.nii.gz"]
    assert all(problem.message.startswith("its header contradicts itself (RAS by the sform, LAS by") for problem in inspection.warnings)
    assert inspection.errors == ()


def test_padding_is_warned_of_and_counts_in_no_figure(tmp_path):
    decathlon(tmp_path, ["a", "b", "c"])
    sound = check(tmp_path).fingerprint
    for n, (name, value) in enumerate({"a": -32768, "b": np.nan}.items()):
        path = tmp_path / f"imagesTr/{name}.nii.gz"
        scan = nib.load(path)
        array = np.concatenate([np.full((3, *scan.shape[1:]), value, np.float32), image(n)[3:].astype(np.float32)])
        save(path, array)
    inspection = check(tmp_path)
    assert inspection.errors == ()
    warned = [p for p in inspection.warnings if p.case]
    assert [p.path.name for p in warned] == ["a.nii.gz", "b.nii.gz"]
    assert "of the voxels are -32768, far from the others" in warned[0].message
    assert "not finite (NaN or infinite), in one piece at its edge" in warned[1].message
    for before, now in zip(sound.cases, inspection.fingerprint.cases, strict=True):
        for figure in ("minimum", "median", "mean", "std"):
            assert getattr(now.intensities[0], figure) == pytest.approx(getattr(before.intensities[0], figure), rel=0.3, abs=5)


def test_an_image_of_nothing_but_padding_and_one_value_is_an_error(tmp_path):
    decathlon(tmp_path, ["a", "b"])
    array = np.full(image(0).shape, 7, np.float32)
    array[:2] = np.finfo(np.float32).min
    save(tmp_path / "imagesTr/a.nii.gz", array)
    (error,) = check(tmp_path).errors
    assert "besides its padding every voxel of the image is 7" in error.message


def test_labels_that_are_rounded_are_warned_of(tmp_path):
    decathlon(tmp_path, ["a"])
    path = tmp_path / "labelsTr/a.nii.gz"
    labels = nib.load(path)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(labels.get_fdata(), labels.affine, header), path)
    inspection = check(tmp_path)
    assert inspection.errors == ()
    assert any("are off whole numbers by up to" in p.message and p.path == path for p in inspection.warnings)


def test_the_same_image_twice_is_no_leak_within_a_person(tmp_path):
    decathlon(tmp_path, ["p1_a", "p1_b"])
    save(tmp_path / "imagesTr/p1_b.nii.gz", image(0))
    manifest = read_dataset(tmp_path, group_by="^p1")
    assert "leak" not in only(check_dataset(manifest), "warning").message
    assert "leak" in only(check(tmp_path), "warning").message


def test_the_same_image_in_two_parts_of_a_fold_is_named(tmp_path):
    decathlon(tmp_path, ["a", "b", "c", "d", "e"])
    for name in "bd":
        save(tmp_path / f"imagesTr/{name}.nii.gz", image(0))
    save(tmp_path / "imagesTr/e.nii.gz", image(2))
    inspection = check(tmp_path)
    (across, within) = same_scans(inspection, {"train": ["a", "b", "c", "e"], "validation": ["d"]})
    assert "several parts of this fold" in across
    assert "a (train) = b (train) = d (validation);" in across
    assert "several cases: c (train) = e (train);" in within
    assert same_scans(inspection, {"train": ["a", "c"], "validation": []}) == []


def test_a_class_that_no_case_shows(tmp_path):
    problem = only(check(decathlon(tmp_path, ["a"], labels=("kidney", "tumour", "cyst"))), "warning")
    assert (problem.case, problem.path) == ("", None)
    assert "'cyst'" in problem.message


def test_partners_and_channels(tmp_path):
    nnunet(tmp_path, ["a", "b", "c"])
    (tmp_path / "imagesTr/a_0001.nii.gz").unlink()
    save(tmp_path / "imagesTr/b_0001.nii.gz", np.zeros(SHAPE, np.float32))
    save(tmp_path / "imagesTr/c_0001.nii.gz", image(5), np.diag((1, 1, 3, 1)))
    a, b, c = check(tmp_path).problems
    assert (a.severity, a.path) == ("error", tmp_path / "imagesTr/a_0001.nii.gz")
    assert (b.severity, b.message[:9]) == ("warning", "channel 1")
    assert (c.severity, c.path) == ("error", tmp_path / "imagesTr/c_0001.nii.gz")


def test_a_dataset_that_is_not_whole(tmp_path):
    decathlon(tmp_path / "a", ["a", "b", "c"], numTraining=4)
    save(tmp_path / "a" / "imagesTr" / "d.nii.gz", image(1))
    counted, lone = check(tmp_path / "a").problems
    assert {counted.severity, lone.severity} == {"warning"}
    assert "counts 4 training cases (numTraining), and 3 are here" in counted.message
    assert "not listed in dataset.json: d.nii.gz" in lone.message
    nnunet(tmp_path / "b", ["a", "b", "c"])
    assert check(tmp_path / "b").problems == ()
    # One image of two channels among others does not make them wrong.
    decathlon(tmp_path / "c", ["a", "b", "c"], modality=None)
    save(tmp_path / "c" / "imagesTr" / "a.nii.gz", np.stack([image(1), image(2)], -1))
    (odd,) = check(tmp_path / "c").errors
    assert (odd.case, "2 channels, the dataset has 1" in odd.message) == ("a", True)


def test_cases_without_partner(tmp_path):
    for n, name in enumerate("ab"):
        save(tmp_path / f"images/{name}.nii.gz", image(n))
    for name in "bc":
        save(tmp_path / f"labels/{name}.nii.gz", label_map())
    a, c = check(tmp_path).problems
    assert "no label map for it" in a.message
    assert "no image for it" in c.message
    assert {a.severity, c.severity} == {"error"}


def test_the_fingerprint(tmp_path):
    decathlon(tmp_path, ["a", "b"])
    save(tmp_path / "imagesTr/b.nii.gz", image(1, (8, 5, 4)), np.diag((-1, 1, 2, 1)))
    save(tmp_path / "labelsTr/b.nii.gz", label_map((2,), (8, 5, 4)), np.diag((-1, 1, 2, 1)))
    fingerprint = check(tmp_path).fingerprint
    a, b = fingerprint.cases
    assert (a.shape, b.shape) == ((6, 5, 4), (8, 5, 4))
    assert a.spacing_mm == pytest.approx((1, 1, 2))
    assert fingerprint.orientations == {"RAS": 1, "LAS": 1}
    assert (fingerprint.sizes_vox[0].median, fingerprint.sizes_vox[0].minimum, fingerprint.sizes_vox[0].maximum) == (7, 6, 8)
    assert a.voxels == {"kidney": 1, "tumour": 2}
    assert a.volumes_ml == pytest.approx({"kidney": 0.002, "tumour": 0.004})
    assert (fingerprint.cases_with("kidney"), fingerprint.cases_with("tumour")) == (1, 2)
    assert fingerprint.volume_ml("kidney").maximum == pytest.approx(0.002)
    assert a.intensities == (intensities_of(image(0)),)
    assert a.foreground == (intensities_of(image(0)[label_map() > 0]),)
    assert a.intensities[0].mean == pytest.approx(image(0).mean(), rel=1e-5)
    assert fingerprint.intensities(0)["maximum"].maximum == max(image(0).max(), image(1, (8, 5, 4)).max())


def test_regions_are_unions(tmp_path):
    root = nnunet(tmp_path, ["a"])
    data = json.loads((root / "dataset.json").read_text())
    data["labels"] = {"background": 0, "whole": [1, 2], "core": [2]}
    (root / "dataset.json").write_text(json.dumps(data | {"regions_class_order": [1, 2]}))
    assert check(root).fingerprint.cases[0].voxels == {"whole": 3, "core": 2}


def test_the_digest_is_of_the_voxels(tmp_path):
    one, two = (check(decathlon(tmp_path / n, ["a", "b"])).fingerprint.sha256 for n in "xy")
    assert one == two
    save(tmp_path / "y/labelsTr/b.nii.gz", label_map((2, 1)))
    assert check(tmp_path / "y").fingerprint.sha256 != one


def test_processes_find_the_same(tmp_path):
    decathlon(tmp_path, ["a", "b", "c"])
    _damage(tmp_path)
    seen = []
    assert check(tmp_path, workers=2, report=seen.append) == check(tmp_path)
    assert [(event.done, event.total) for event in seen if isinstance(event, Progress)] == [(1, 3), (2, 3), (3, 3)]


def test_the_check_can_be_cancelled(tmp_path):
    def stop(event):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        check(decathlon(tmp_path, ["a", "b"]), report=stop)


def test_as_json(tmp_path):
    decathlon(tmp_path, ["a", "b"])
    _damage(tmp_path)
    data = json.loads(json.dumps(check(tmp_path).to_dict(), allow_nan=False))
    assert (data["cases"], data["errors"], data["warnings"]) == (2, 1, 0)
    assert data["problems"][0]["path"] == "imagesTr/b.nii.gz"
    assert data["fingerprint"]["classes"]["kidney"]["cases"] == 1
    assert data["fingerprint"]["cases"][0]["shape"] == [6, 5, 4]


def test_many_errors_are_counted_and_some_named(tmp_path):
    decathlon(tmp_path, [f"c{n:02d}" for n in range(12)])
    for path in sorted((tmp_path / "imagesTr").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DatasetError, match=r"(?s)11 errors.*c01: .*and 1 more"):
        refuse_errors(check(tmp_path))


def test_hippocampus(data_dir):
    manifest = read_dataset(data_dir / "hippocampus")
    assert (len(manifest.cases), len(manifest.persons), manifest.grouped_by) == (209, 136, "person")
    assert manifest.labels.classes == ("Anterior", "Posterior")
    inspection = check_dataset(manifest)
    assert inspection.problems == ()
    assert [(s.minimum, s.maximum) for s in inspection.fingerprint.sizes_vox] == [(31, 43), (40, 59), (24, 47)]
    assert all(inspection.fingerprint.cases_with(name) == 209 for name in manifest.labels.classes)


def test_names_of_cases_need_not_be_text(tmp_path):
    manifest = read_dataset(decathlon(tmp_path, ["a", "b"]))
    inspection = check_dataset(manifest)
    facts = inspection.fingerprint.cases
    odd = replace(inspection.fingerprint, cases=(replace(facts[0], name="caf\udce9"), *facts[1:]))
    assert len(odd.sha256) == 64
    assert odd.sha256 != inspection.fingerprint.sha256
