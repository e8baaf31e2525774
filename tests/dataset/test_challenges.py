"""The layouts of FeTA, FLARE and AMOS: hand-made folders, and real volumes filed in the same way (`--data`)."""

import json

import pytest
from challenge_folders import AFFINE, FOUR_ORGANS, amos, copied, feta, flare, organs
from tiny_datasets import image, label_map, save, write_json

from uxnet.dataset.challenges import AMOS_LABELS, FETA_LABELS, FLARE_LABELS, FLARE_LABELS_OF_THE_AUTHORS
from uxnet.dataset.check import check_dataset
from uxnet.dataset.folds import make_split
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import DatasetError
from uxnet.events import Note


def names(manifest):
    return [case.name for case in manifest.cases]


# ---- FeTA


def test_feta(tmp_path):
    feta(feta(tmp_path, rec="irtk"), ("sub-041",))
    (tmp_path / "participants.tsv").unlink()
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, manifest.name, manifest.channel_names) == ("feta", "FeTA2021", ("T2w MRI",))
    assert names(manifest) == ["sub-001_rec-irtk", "sub-002_rec-irtk", "sub-041_rec-mial"]
    assert manifest.persons == ("sub-001", "sub-002", "sub-041")
    assert manifest.grouped_by == "person"
    assert manifest.labels == FETA_LABELS
    case = manifest.cases[0]
    assert case.images == (tmp_path / "sub-001/anat/sub-001_rec-irtk_T2w.nii.gz",)
    assert case.labels == tmp_path / "sub-001/anat/sub-001_rec-irtk_dseg.nii.gz"


def test_two_reconstructions_of_one_fetus_are_one_person_and_stay_together(tmp_path):
    subjects = [f"sub-{n:03d}" for n in range(1, 11)]
    feta(tmp_path, subjects)
    feta(tmp_path, subjects, rec="irtk")
    manifest = read_dataset(tmp_path)
    assert len(manifest.cases) == 20
    assert len(manifest.persons) == 10
    for fold in make_split(manifest, {}, protocol="5x80-10-10").folds:
        parts = [{name.split("_")[0] for name in part} for part in (fold.train, fold.validation, fold.test)]
        assert [len(part) for part in parts] == [8, 1, 1]
        assert len(set.union(*parts)) == 10


def test_feta_with_a_list_of_participants_that_does_not_fit(tmp_path):
    feta(tmp_path)
    table = tmp_path / "participants.tsv"
    table.write_text("participant_id\tPathology\nsub-001\tNeurotypical\n")
    with pytest.raises(DatasetError, match=r"participants\.tsv: it does not list case sub-002_rec-mial"):
        read_dataset(tmp_path)
    table.write_text("who\nsub-001\n")
    with pytest.raises(DatasetError, match="participant_id"):
        read_dataset(tmp_path)


def test_feta_keeps_what_has_no_partner(tmp_path):
    feta(tmp_path)
    (tmp_path / "sub-001/anat/sub-001_rec-mial_dseg.nii.gz").unlink()
    (tmp_path / "sub-002/anat/sub-002_rec-mial_T2w.nii.gz").unlink()
    a, b = read_dataset(tmp_path).cases
    assert (a.labels, b.images) == (None, ())


def test_other_brains_in_the_same_folders_are_not_taken_for_feta(tmp_path):
    for name in ("sub-01", "sub-02_rec-norm"):
        folder = tmp_path / name.split("_")[0] / "anat"
        save(folder / f"{name}_T2w.nii.gz", image(0))
        save(folder / f"{name}_dseg.nii.gz", label_map())
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, manifest.labels.classes, manifest.channel_names) == ("bids", ("label 1", "label 2"), ("T2w",))
    assert manifest.name == tmp_path.name


@pytest.mark.parametrize(
    ("voxels", "why"),
    [
        ({1: 3, 2: 4}, "the label maps show no white matter, ventricles"),
        ({1: 3, 2: 3, 3: 4, 4: 1, 5: 1, 6: 1, 7: 1, 8: 2}, "the label maps hold 8"),
        ({1: 3, 2: 3, 3: 1, 4: 1, 5: 4, 6: 2, 7: 2}, "'white matter' is smaller than 'cerebellum' in 2 of the 2 cases"),
        ({1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 110}, "'white matter' is smaller than 'brainstem'"),
    ],
)
def test_labels_get_fetas_names_only_where_values_and_volumes_are_its(tmp_path, voxels, why):
    manifest = read_dataset(feta(tmp_path, labels=organs(voxels)))
    assert manifest.layout == "bids"
    assert manifest.labels.classes == tuple(f"label {value}" for value in voxels)
    assert (manifest.reference, manifest.persons) == ("", ("sub-001", "sub-002"))
    assert why in manifest.doubts[0]
    write_json(tmp_path / "labels.json", {"labels": {f"mine {value}": value for value in voxels}})
    assert read_dataset(tmp_path).labels.classes == tuple(f"mine {value}" for value in voxels)


# ---- FLARE


def test_flare(tmp_path):
    manifest = read_dataset(flare(tmp_path))
    assert (manifest.layout, manifest.name, manifest.channel_names, manifest.grouped_by) == ("flare", "FLARE2021", ("CT",), "case")
    assert names(manifest) == ["train_000", "train_001"]
    assert manifest.cases[1].images == (tmp_path / "TrainingImg/train_001_0000.nii.gz",)
    assert manifest.cases[1].labels == tmp_path / "TrainingMask/train_001.nii.gz"
    assert manifest.labels == FLARE_LABELS
    assert check_dataset(manifest).errors == ()


def test_flare_under_the_authors_names(tmp_path):
    write_json(flare(tmp_path) / "labels.json", FLARE_LABELS_OF_THE_AUTHORS.to_dict())
    assert read_dataset(tmp_path).labels == FLARE_LABELS_OF_THE_AUTHORS
    write_json(tmp_path / "labels.json", {"labels": {"spleen": 1, "kidney": 2, "liver": 3, "pancreas": 4}})
    assert read_dataset(tmp_path).labels.foreground == FLARE_LABELS_OF_THE_AUTHORS.foreground


def test_flare_keeps_what_has_no_partner_and_refuses_what_is_there_twice(tmp_path):
    flare(tmp_path)
    (tmp_path / "TrainingMask/train_001.nii.gz").unlink()
    assert read_dataset(tmp_path).cases[1].labels is None
    save(tmp_path / "TrainingImg/train_000.nii.gz", image(0))
    with pytest.raises(DatasetError, match="same case 'train_000'"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("voxels", "why"),
    [
        ({1: 40, 2: 8}, "the label maps show no spleen, pancreas"),
        ({1: 9, 2: 8, 3: 40, 4: 3}, "'liver' is smaller than 'spleen'"),
        ({1: 4, 2: 2, 3: 2, 4: 2}, "at most 80 ml a case"),
    ],
)
def test_labels_get_flares_names_only_where_values_and_volumes_are_its(tmp_path, voxels, why):
    manifest = read_dataset(flare(tmp_path, labels=organs(voxels)))
    assert (manifest.layout, manifest.channel_names) == ("folders", ("channel 0",))
    assert manifest.labels.classes == tuple(f"label {value}" for value in voxels)
    assert why in manifest.doubts[0]
    assert check_dataset(manifest).errors == ()


def test_flares_folders_with_other_names_are_not_flare(tmp_path):
    flare(tmp_path)
    for path in sorted(tmp_path.rglob("*.nii.gz")):
        path.rename(path.with_name(path.name.replace("train_", "knee")))
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, names(manifest)) == ("folders", ["knee000", "knee001"])
    assert "knee000_0000.nii.gz is none of its names" in manifest.doubts[0]


# ---- AMOS


def test_amos_takes_the_ct_of_the_training_list_and_says_what_it_leaves(tmp_path):
    manifest = read_dataset(amos(tmp_path, (499, 1, 500, 600)))
    assert (manifest.layout, manifest.name, manifest.channel_names) == ("amos", "AMOS", ("CT",))
    assert names(manifest) == ["amos_0001", "amos_0499"]
    assert manifest.labels == AMOS_LABELS
    for part in ("2 MR cases (numbers from 500 on)", "its validation list (1)", "its test list (2)", "2 CT cases"):
        assert part in manifest.left_out
    heard = []
    inspection = check_dataset(manifest, report=heard.append)
    assert [event.message for event in heard if isinstance(event, Note)][:1] == [manifest.left_out]
    assert inspection.to_dict()["left_out"] == manifest.left_out


def test_amos_of_ct_alone_leaves_nothing_out(tmp_path):
    manifest = read_dataset(amos(tmp_path, (1, 4), validation=[], test=[]))
    assert manifest.left_out == ""


def test_amos_of_mr_alone_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="only its CT cases"):
        read_dataset(amos(tmp_path, (507, 508)))


def test_amos_keeps_labels_that_are_not_the_organisers(tmp_path):
    manifest = read_dataset(amos(tmp_path, labels={"0": "background", "1": "spleen", "6": "liver"}))
    assert (manifest.layout, manifest.labels.classes) == ("amos", ("spleen", "liver"))
    assert names(manifest) == ["amos_0001", "amos_0004"]
    assert read_dataset(amos(tmp_path, labels={})).labels == AMOS_LABELS


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"0": "background", "1": "Anterior", "6": "Posterior"}},
        {"labels": {"background": 0, "Anterior": 1, "Posterior": 6}},
        {"modality": {"0": "MRI"}},
    ],
)
def test_cases_that_are_called_as_amos_but_are_of_something_else_are_all_read(tmp_path, change):
    manifest = read_dataset(amos(tmp_path, **change))
    assert (manifest.layout, manifest.reference) == ("decathlon", "")
    assert names(manifest) == ["amos_0001", "amos_0004", "amos_0507"]


def test_amos_without_labels_is_amos_only_where_the_volumes_are(tmp_path):
    amos(tmp_path, labels={})
    for path in (tmp_path / "labelsTr").iterdir():
        save(path, organs({1: 40, 6: 10}), AFFINE)
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, manifest.labels.classes, len(manifest.cases)) == ("decathlon", ("label 1", "label 6"), 3)
    assert "'liver' is smaller than 'spleen'" in manifest.doubts[0]


def test_a_decathlon_with_one_case_of_another_name_is_no_amos(tmp_path):
    entries = [{"image": f"imagesTr/{n}.nii.gz", "label": f"labelsTr/{n}.nii.gz"} for n in ("amos_0507", "other")]
    amos(tmp_path, (507,), training=entries)
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, "MR" in manifest.left_out) == ("decathlon", False)
    assert names(manifest) == ["amos_0507", "other"]


# ---- labels


@pytest.mark.parametrize("labels", [FETA_LABELS, FLARE_LABELS, FLARE_LABELS_OF_THE_AUTHORS, AMOS_LABELS])
def test_every_label_has_a_colour_of_its_own(labels):
    assert [name for name, _ in labels.colours] == list(labels.classes)
    assert len({colour for _, colour in labels.colours}) == len(labels.classes)
    assert [label.value for label in labels.foreground] == list(range(1, len(labels.classes) + 1))


def test_the_two_orders_of_flare_differ_in_liver_and_spleen_alone():
    ours, theirs = ({label.name: label.value for label in labels.foreground} for labels in (FLARE_LABELS, FLARE_LABELS_OF_THE_AUTHORS))
    assert (ours["liver"], ours["spleen"], theirs["liver"], theirs["spleen"]) == (1, 3, 3, 1)
    assert (ours["kidney"], ours["pancreas"]) == (theirs["kidney"], theirs["pancreas"]) == (2, 4)


# ---- real volumes, filed as the challenges file theirs


def test_real_fetal_brains_as_feta(tmp_path, data_dir):
    inspection = check_dataset(read_dataset(feta(tmp_path, ("sub-001", "sub-002"), put=copied(data_dir / "fetal_brain_sb"))))
    assert inspection.problems == ()
    assert all(inspection.fingerprint.cases_with(name) == 2 for name in FETA_LABELS.classes)


def test_real_scans_as_amos(tmp_path, data_dir):
    source = data_dir / "abdomen_ct"
    told = json.loads((source / "dataset.json").read_text())["labels"]
    assert {label.value: label.name for label in AMOS_LABELS.foreground} == {int(v): n for v, n in told.items() if v != "0"}
    inspection = check_dataset(read_dataset(amos(tmp_path, (1, 4, 5), put=copied(source))))
    assert inspection.problems == ()


@pytest.mark.parametrize("wrong", [False, True])
def test_real_scans_as_flare_under_either_order(tmp_path, data_dir, wrong):
    """The three scans show parts of the body only: a slab, a chest, a trunk."""
    flare(tmp_path, (0, 1, 2), put=copied(data_dir / "abdomen_ct", FOUR_ORGANS))
    if wrong:
        write_json(tmp_path / "labels.json", FLARE_LABELS_OF_THE_AUTHORS.to_dict())
    inspection = check_dataset(read_dataset(tmp_path))
    assert inspection.errors == ()
    told = [problem.message for problem in inspection.warnings]
    assert wrong or not told
    assert any("'liver' is smaller than 'spleen' in 3 of the 3 cases" in message for message in told) == wrong
