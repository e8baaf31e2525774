import shutil

import numpy as np
import pytest
from tiny_datasets import SHAPE, decathlon, image, label_map, nnunet, save, write_json

from uxnet.dataset.check import check_dataset
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import DatasetError
from uxnet.labels import Label, Labels


def names(manifest):
    return [case.name for case in manifest.cases]


def test_decathlon(tmp_path):
    manifest = read_dataset(decathlon(tmp_path, ["b", "a"]))
    assert (manifest.name, manifest.layout, manifest.licence) == ("Tiny", "decathlon", "CC0")
    assert names(manifest) == ["a", "b"]
    assert manifest.cases[0].images == (tmp_path / "imagesTr/a.nii.gz",)
    assert manifest.cases[0].labels == tmp_path / "labelsTr/a.nii.gz"
    assert manifest.labels.classes == ("kidney", "tumour")
    assert manifest.channel_names == ("CT",)
    assert manifest.grouped_by == "case"
    assert manifest.persons == ("a", "b")


def test_decathlon_ignores_what_macos_leaves(tmp_path):
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in ("a", "._a")]
    assert names(read_dataset(decathlon(tmp_path, ["a"], training=entries))) == ["a"]


def test_decathlon_keeps_cases_whose_files_are_missing(tmp_path):
    decathlon(tmp_path, ["a", "b"])
    (tmp_path / "imagesTr/a.nii.gz").unlink()
    assert names(read_dataset(tmp_path)) == ["a", "b"]


def test_decathlon_takes_a_list_of_channel_files(tmp_path):
    entries = [{"image": ["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "label": "labelsTr/a.nii.gz"}]
    manifest = read_dataset(decathlon(tmp_path, [], training=entries, modality={"0": "T1", "1": "T2"}))
    assert names(manifest) == ["a"]
    assert [path.name for path in manifest.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert manifest.channel_names == ("T1", "T2")


def test_decathlon_without_channel_names_counts_the_channels_of_an_image(tmp_path):
    decathlon(tmp_path, ["a"], modality={})
    save(tmp_path / "imagesTr/a.nii.gz", image(0, (*SHAPE, 3)))
    assert read_dataset(tmp_path).channel_names == ("channel 0", "channel 1", "channel 2")


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ([], "no cases"),
        ({"a": 1}, "must be a list"),
        (["./imagesTr/a.nii.gz"], "entry 0"),
        ([{"image": 3, "label": "x.nii.gz"}], "entry 0"),
        ([{"label": "./labelsTr/a.nii.gz"}], "label maps but no images"),
        ([{"image": "./imagesTr/a.nii.gz"}], "images but no label maps"),
        ([{"image": f"{d}/a.nii.gz", "label": f"{d}/l.nii.gz"} for d in "xy"], "found more than once: case a"),
    ],
)
def test_decathlon_with_a_wrong_list(tmp_path, training, message):
    decathlon(tmp_path, ["a"], training=training)
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(tmp_path)
    assert "dataset.json" in str(caught.value)


def test_nnunet(tmp_path):
    manifest = read_dataset(nnunet(tmp_path, ["p_1", "p_2"]))
    assert manifest.layout == "nnunet"
    assert names(manifest) == ["p_1", "p_2"]
    assert [path.name for path in manifest.cases[0].images] == ["p_1_0000.nii.gz", "p_1_0001.nii.gz"]
    assert manifest.cases[0].labels == tmp_path / "labelsTr/p_1.nii.gz"
    assert manifest.channel_names == ("T1", "T2")
    assert manifest.labels.pairs == (("left horn", "right horn"),)


def test_nnunet_expects_every_channel_of_every_case(tmp_path):
    nnunet(tmp_path, ["a", "b"])
    (tmp_path / "imagesTr/a_0001.nii.gz").unlink()
    (tmp_path / "imagesTr/b_0000.nii.gz").unlink()
    manifest = read_dataset(tmp_path)
    assert [len(case.images) for case in manifest.cases] == [2, 2]


def test_nnunet_with_explicit_files(tmp_path):
    nnunet(tmp_path, ["a"])
    data = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    table = {"one": {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}}
    write_json(tmp_path / "dataset.json", {**data, "dataset": table})
    manifest = read_dataset(tmp_path)
    assert names(manifest) == ["one"]
    assert manifest.cases[0].images == (tmp_path / "imagesTr/a_0000.nii.gz",)
    write_json(tmp_path / "dataset.json", {**data, "dataset": {"../one": table["one"]}})
    with pytest.raises(DatasetError, match="file names"):
        read_dataset(tmp_path)


def test_both_sets_of_keys_are_told_apart_by_the_files(tmp_path):
    keys = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    assert read_dataset(decathlon(tmp_path / "a", ["x"], **keys)).layout == "decathlon"
    decathlon(tmp_path / "b", ["x"], **keys)
    shutil.move(tmp_path / "b/imagesTr/x.nii.gz", tmp_path / "b/imagesTr/x_0000.nii.gz")
    assert read_dataset(tmp_path / "b").layout == "nnunet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_ending": ".png"}, "file_ending"),
        ({"channel_names": {"0": "T1", "2": "T2"}}, "without gaps"),
        ({"channel_names": 2}, "channel_names"),
        ({"labels": {"background": 0, "horn": 1.5}}, "whole number"),
        ({"labels": {}}, "labels"),
    ],
)
def test_nnunet_with_a_wrong_description(tmp_path, change, message):
    nnunet(tmp_path, ["a"])
    sound = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "horn": 1}, "file_ending": ".nii.gz"}
    write_json(tmp_path / "dataset.json", sound | change)
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(tmp_path)
    assert "dataset.json" in str(caught.value)


def test_nnunet_refuses_an_image_without_channel_number(tmp_path):
    nnunet(tmp_path, ["a"])
    save(tmp_path / "imagesTr/b.nii.gz", image(0))
    with pytest.raises(DatasetError, match=r"b\.nii\.gz.*_0000"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr")])
def test_folders_take_labels_and_channels_from_the_files(tmp_path, images, labels):
    for name in ("a", "b"):
        save(tmp_path / images / f"{name}_0000.nii.gz", image(1))
        save(tmp_path / images / f"{name}_0001.nii", image(2))
    save(tmp_path / labels / "a.nii.gz", label_map((3,)))
    save(tmp_path / labels / "b.nii.gz", label_map((1, 7)))
    save(tmp_path / labels / "._b.nii.gz", label_map((9,)))
    manifest = read_dataset(tmp_path)
    assert manifest.layout == "folders"
    assert manifest.labels == Labels((Label("label 1", 1), Label("label 3", 3), Label("label 7", 7)))
    assert manifest.channel_names == ("channel 0", "channel 1")
    assert [path.name for path in manifest.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii"]


def test_folders_expect_every_channel_of_every_case(tmp_path):
    for name, channels in {"a": (0, 1, 2), "b": (0, 2), "c": (0, 1), "d": (1, 2)}.items():
        save(tmp_path / "labels" / f"{name}.nii.gz", label_map())
        for c in channels:
            save(tmp_path / "images" / f"{name}_{c:04d}.nii.gz", image(c))
    save(tmp_path / "labels/e.nii.gz", label_map())
    save(tmp_path / "images/e.nii.gz", image(0, (6, 5, 4, 3)))  # the channels in one file
    inspection = check_dataset(read_dataset(tmp_path))
    missing = [(p.case, p.path.name) for p in inspection.errors]
    assert missing == [("b", "b_0001.nii.gz"), ("c", "c_0002.nii.gz"), ("d", "d_0000.nii.gz")]
    assert all("no such file" in p.message for p in inspection.errors)


def test_folders_four_digits_may_be_part_of_a_name(tmp_path):
    for name in ("scan_0001", "scan_0002"):
        save(tmp_path / "images" / f"{name}.nii.gz", image(1))
        save(tmp_path / "labels" / f"{name}.nii.gz", label_map())
    save(tmp_path / "images/scan_0003.nii.gz", image(1))
    manifest = read_dataset(tmp_path)
    assert names(manifest) == ["scan_0001", "scan_0002", "scan_0003"]
    assert manifest.cases[2].labels is None


def test_folders_with_a_labels_file(tmp_path):
    save(tmp_path / "images/a.nii.gz", image(1))
    save(tmp_path / "labels/a.nii.gz", label_map())
    own = Labels((Label("liver", 1), Label("spleen", 2)), ignore=255)
    write_json(tmp_path / "labels.json", own.to_dict())
    assert read_dataset(tmp_path).labels == own
    write_json(tmp_path / "labels.json", {"labels": {"liver": 1, "spleen": 2, "ignore": 255}})
    assert read_dataset(tmp_path).labels == own
    write_json(tmp_path / "labels.json", {"liver": 1})
    with pytest.raises(DatasetError, match=r"labels\.json"):
        read_dataset(tmp_path)


def test_folders_keep_what_has_no_partner(tmp_path):
    for name in "ab":
        save(tmp_path / f"images/{name}.nii.gz", image(1))
    for name in "bc":
        save(tmp_path / f"labels/{name}.nii.gz", label_map())
    a, b, c = read_dataset(tmp_path).cases
    assert (a.labels, len(b.images), c.images) == (None, 1, ())


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(DatasetError, match="images or imagesTr"):
        read_dataset(tmp_path)
    save(tmp_path / "images/img1.nii.gz", image(1))
    with pytest.raises(DatasetError, match="labels or labelsTr"):
        read_dataset(tmp_path)
    save(tmp_path / "labels/seg1.nii.gz", label_map())
    with pytest.raises(DatasetError, match="'img1' and 'seg1'"):
        read_dataset(tmp_path)
    (tmp_path / "labels/seg1.nii.gz").unlink()
    save(tmp_path / "labels/img1.nii.gz", label_map(()))
    with pytest.raises(DatasetError, match="no labels to learn"):
        read_dataset(tmp_path)
    save(tmp_path / "images/img1.nii", image(1))
    with pytest.raises(DatasetError, match="same case 'img1'"):
        read_dataset(tmp_path)


def test_no_dataset_at_all(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset(tmp_path / "nowhere")
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match=r"dataset\.json: cannot be read as JSON"):
        read_dataset(tmp_path)
    write_json(tmp_path / "dataset.json", {"labels": {"0": "background"}})
    with pytest.raises(DatasetError, match="layout is not known"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("table", [{"p1_a": 1, "p1_b": 1, "p2": "two"}, {"note": "x", "subject": {"p1_a": 1, "p1_b": 1, "p2": "two"}}])
def test_persons_from_a_file(tmp_path, table):
    decathlon(tmp_path, ["p1_a", "p1_b", "p2"])
    write_json(tmp_path / "subjects.json", table)
    manifest = read_dataset(tmp_path)
    assert [case.person for case in manifest.cases] == ["1", "1", "two"]
    assert manifest.persons == ("1", "two")
    assert manifest.grouped_by == "person"


def test_persons_from_a_file_must_be_there_for_every_case(tmp_path):
    decathlon(tmp_path, ["a", "b"])
    write_json(tmp_path / "subjects.json", {"a": 1})
    with pytest.raises(DatasetError, match=r"subjects\.json: it names no person for case b"):
        read_dataset(tmp_path)


def test_persons_from_a_pattern(tmp_path):
    decathlon(tmp_path, ["p1_a", "p1_b", "p2_a"])
    write_json(tmp_path / "subjects.json", {})
    for pattern, persons in ((r"^(p\d+)_", ["p1", "p1", "p2"]), (r"\d", ["1", "1", "2"])):
        assert [case.person for case in read_dataset(tmp_path, group_by=pattern).cases] == persons
    with pytest.raises(DatasetError, match="case p2_a"):
        read_dataset(tmp_path, group_by="p1")
    with pytest.raises(DatasetError, match="regular expression"):
        read_dataset(tmp_path, group_by="(")


def test_a_case_by_name(tmp_path):
    manifest = read_dataset(decathlon(tmp_path, ["a", "b"]))
    assert manifest.case("b") is manifest.cases[1]
    with pytest.raises(DatasetError, match="'c'"):
        manifest.case("c")


def test_labels_that_are_no_integers_do_not_stop_the_reading(tmp_path):
    for name, array in (("a", label_map()), ("b", np.full(SHAPE, 0.5, np.float32))):
        save(tmp_path / f"images/{name}.nii.gz", image(1))
        save(tmp_path / f"labels/{name}.nii.gz", array)
    assert read_dataset(tmp_path).labels.classes == ("label 1", "label 2")
