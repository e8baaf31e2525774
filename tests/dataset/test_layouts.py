"""Folders and descriptions as other tools and people leave them: read where it is clear what is meant, else named with what to do."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_datasets import SHAPE, decathlon, image, label_map, nnunet, save, write_json

from uxnet.dataset.check import check_dataset, warn_and_refuse
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import DatasetError

NAMES = ("a", "b")


def changed(root, **keys):
    """The same dataset.json with other keys; None removes one."""
    data = json.loads((root / "dataset.json").read_text()) | keys
    write_json(root / "dataset.json", {key: value for key, value in data.items() if value is not None})
    return root


def renamed(root, old, new):
    for path in sorted(path for part in ("imagesTr", "labelsTr") for path in (root / part).iterdir()):
        array = label_map() if path.parent.name == "labelsTr" else image(0)
        path.unlink()
        save(path.with_name(path.name.replace(old, new)), array)
    return root


def names(manifest):
    return [case.name for case in manifest.cases]


def sound(manifest):
    return check_dataset(manifest).errors == ()


# ---- nnU-Net


@pytest.mark.parametrize(
    ("told", "ending", "right"),
    [("nii.gz", ".nii.gz", ".nii.gz"), (".nii.gz", ".nii", ".nii"), (".nii", ".nii.gz", ".nii.gz"), (None, ".nii", ".nii")],
)
def test_files_of_another_ending_than_told_are_read_and_the_ending_is_what_is_to_be_corrected(tmp_path, told, ending, right):
    root = changed(renamed(nnunet(tmp_path, NAMES, ["CT"]), ".nii.gz", ending), file_ending=told)
    manifest = read_dataset(root)
    assert (manifest.layout, names(manifest), sound(manifest)) == ("nnunet", ["a", "b"], True)
    (doubt,) = manifest.doubts
    assert f'set "file_ending" to "{right}"' in doubt
    assert "rename" not in doubt


def test_endings_in_capitals_are_read(tmp_path):
    manifest = read_dataset(renamed(nnunet(tmp_path, NAMES, ["CT"]), ".nii.gz", ".NII.GZ"))
    assert (names(manifest), sound(manifest)) == (["a", "b"], True)


def test_an_ending_that_is_not_niftis_says_what_to_set(tmp_path):
    root = changed(nnunet(tmp_path, NAMES), file_ending=".nrrd")
    with pytest.raises(DatasetError, match=r'the files here end in \.nii\.gz; set "file_ending"'):
        read_dataset(root)
    for path in [*root.glob("*Tr/*")]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ".nrrd")))
    with pytest.raises(DatasetError, match=r'convert the files, then set "file_ending" to "\.nii\.gz"'):
        read_dataset(root)
    with pytest.raises(DatasetError, match=r"a_0000\.nrrd \(NRRD\).*convert them"):
        read_dataset(changed(root, file_ending=".nii.gz"))


@pytest.mark.parametrize("named", ["{}_0000", "{}"])
def test_channels_along_the_fourth_axis_are_read(tmp_path, named):
    root = nnunet(tmp_path, NAMES)
    for path in [*(root / "imagesTr").iterdir()]:
        path.unlink()
    for n, name in enumerate(NAMES):
        save(root / "imagesTr" / f"{named.format(name)}.nii.gz", image(n, (*SHAPE, 2)))
    manifest = read_dataset(root)
    assert [len(case.images) for case in manifest.cases] == [1, 1]
    assert sound(manifest)
    assert bool(manifest.doubts) == (named == "{}")  # nnU-Net itself would not find them


def test_labels_as_text_regions_and_keys_of_other_tools(tmp_path):
    root = changed(nnunet(tmp_path, NAMES), labels={"background": "0", "left horn": "1", "right horn": "2"}, numTraining="2")
    manifest = read_dataset(changed(root, overwrite_image_reader_writer="SimpleITKIO"))
    assert (manifest.labels.classes, manifest.doubts) == (("left horn", "right horn"), ())
    regions = {"background": 0, "whole": ["1", 2], "core": "2", "ignore": "3"}
    labels = read_dataset(changed(root, labels=regions, regions_class_order=["1", "2"])).labels
    assert (labels.classes, labels.ignore) == (("whole", "core"), 3)


def test_nnunet_v1_lists_images_without_the_channels_that_lie_there(tmp_path):
    nnunet(tmp_path, NAMES)
    write_json(
        tmp_path / "dataset.json",
        {
            "modality": {"0": "T1", "1": "T2"},
            "labels": {"0": "background", "1": "left horn", "2": "right horn"},
            "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in NAMES],
        },
    )
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, names(manifest), sound(manifest)) == ("nnunet_v1", ["a", "b"], True)
    assert [path.name for path in manifest.cases[1].images] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    assert "nnU-Net v1 (guessed from" in manifest.summary
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    (error,) = check_dataset(read_dataset(tmp_path)).errors
    assert error.path == tmp_path / "imagesTr/b_0001.nii.gz"


# ---- lists


@pytest.mark.parametrize("form", [".\\imagesTr\\{}.nii.gz", "imagesTr\\{}.nii.gz", "./imagesTr/{}.nii.gz"])
def test_paths_of_windows_are_read(tmp_path, form):
    entries = [{"image": form.format(n), "label": form.format(n).replace("images", "labels")} for n in NAMES]
    manifest = read_dataset(decathlon(tmp_path, NAMES, training=entries))
    assert (names(manifest), sound(manifest), manifest.doubts) == (["a", "b"], True, ())


@pytest.mark.parametrize("root", ["/home/me/data", "C:\\data", "\\\\server\\data"])
def test_paths_of_another_machine_are_said(tmp_path, root):
    slash = "\\" if "\\" in root else "/"
    entries = [{part: f"{root}{slash}{part}sTr{slash}{n}.nii.gz" for part in ("image", "label")} for n in NAMES]
    with pytest.raises(DatasetError, match=r"of another machine.*such as imagesTr/a\.nii\.gz"):
        read_dataset(decathlon(tmp_path, NAMES, training=entries))


def test_a_backslash_that_is_part_of_a_name_stays(tmp_path):
    decathlon(tmp_path, ["a\\b"])
    assert names(read_dataset(tmp_path)) == ["a\\b"]


@pytest.mark.parametrize("file", ["dataset.json", "dataset_0.json"])
def test_monai_lists(tmp_path, file):
    decathlon(tmp_path, ["a", "b", "c", "d"])
    (tmp_path / "dataset.json").unlink()
    entry = {n: {"image": [f"imagesTr/{n}.nii.gz"], "label": f"labelsTr/{n}.nii.gz"} for n in "abc"}
    lists = {"training": [{"fold": 0, **entry["a"]}, {"fold": 1, **entry["b"]}], "validation": [entry["c"]]}
    write_json(tmp_path / file, {**lists, "testing": [{"image": "x.nii.gz"}]})
    manifest = read_dataset(tmp_path)
    assert (manifest.layout, names(manifest), manifest.labels.classes) == ("datalist", ["a", "b"], ("label 1", "label 2"))
    assert '1 case of "validation"' in manifest.left_out
    folds, lone = manifest.doubts
    assert '"fold"' in folds
    assert f"not listed in {file}: d.nii.gz, d.nii.gz" in lone
    assert ("guessed" in manifest.summary) == (file != "dataset.json")
    write_json(tmp_path / "another.json", lists)
    if file != "dataset.json":
        with pytest.raises(DatasetError, match="several files list"):
            read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": []}, '"training" list is empty'),
        ({"training": {"image": ["a"]}}, "must be a list"),
        ({"training": None}, "layout is not known"),
        ({"training": [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] * 2}, "more than once: case a; list it once"),
        ({"labels": {"0": "clear label", "1": "kidney"}}, "the value 0 is called 'clear label', and 0 must be the background"),
    ],
)
def test_a_wrong_list_says_what_is_wrong_with_it(tmp_path, change, message):
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(changed(decathlon(tmp_path, NAMES), **change))
    assert str(tmp_path / "dataset.json") in str(caught.value)


def test_a_file_that_is_there_under_another_ending_is_named(tmp_path):
    decathlon(tmp_path, NAMES)
    (tmp_path / "imagesTr/a.nii.gz").unlink()
    save(tmp_path / "imagesTr/a.nii", image(0))
    (error,) = check_dataset(read_dataset(tmp_path)).errors
    assert "a.nii is there: correct the name in dataset.json" in error.message


# ---- folders


@pytest.mark.parametrize("kind", ["folders", "decathlon", "nnunet"])
def test_images_that_are_not_read_are_named_and_counted(tmp_path, kind):
    images, labels = ("images", "labels") if kind == "folders" else ("imagesTr", "labelsTr")
    {"folders": lambda root, cases: nnunet(root, cases, ["CT"]), "decathlon": decathlon, "nnunet": nnunet}[kind](tmp_path, NAMES)
    if kind == "folders":
        (tmp_path / "dataset.json").unlink()
        (tmp_path / "imagesTr").rename(tmp_path / images)
        (tmp_path / "labelsTr").rename(tmp_path / labels)
    for name in ("c.nii.bz2", "d.hdr", "d.img", "e.mgz"):
        (tmp_path / images / name).write_bytes(b"")
    (tmp_path / labels / "c.nii").mkdir()
    inspection = check_dataset(read_dataset(tmp_path))
    (warning,) = [problem.message for problem in inspection.warnings if "left out" in problem.message]
    assert "5 files" in warning
    assert "c.nii.bz2 (compressed NIfTI)" in warning
    heard = []
    warn_and_refuse(inspection, heard.append)  # as training and cross-validation begin
    assert [event.message for event in heard] == [f"{tmp_path}: {warning}"]


def test_folders_with_the_names_of_files_are_called_folders(tmp_path):
    for part, array in (("images", image(0)), ("labels", label_map())):
        save(tmp_path / part / "a.nii" / "a.nii", array)
    with pytest.raises(DatasetError, match=r"a\.nii \(a folder\).*move the files out"):
        read_dataset(tmp_path)
    decathlon(tmp_path / "listed", ["a"])
    (tmp_path / "listed/imagesTr/a.nii.gz").unlink()
    (tmp_path / "listed/imagesTr/a.nii.gz").mkdir()
    (error,) = check_dataset(read_dataset(tmp_path / "listed")).errors
    assert "is a folder" in error.message


def test_what_lies_elsewhere_in_the_folder_is_named(tmp_path):
    for part in ("images", "labels"):
        save(tmp_path / part / "a.nii.gz", label_map())
    save(tmp_path / "images/site2/b.nii.gz", image(0))
    save(tmp_path / "imagesTr/c.nii.gz", image(0))
    manifest = read_dataset(tmp_path)
    assert names(manifest) == ["a"]
    lone, below = manifest.doubts
    assert "in imagesTr, and of no case: c.nii.gz" in lone
    assert "images/site2" in below


def test_the_folder_that_is_meant_is_named(tmp_path):
    root = decathlon(tmp_path / "outer" / "inner", NAMES)
    with pytest.raises(DatasetError, match=f"such as {root}"):
        read_dataset(root.parent)
    with pytest.raises(DatasetError, match="is a file; name the folder"):
        read_dataset(root / "dataset.json")


# ---- BIDS


def bids(root, labels="derivatives/manual/{0}/anat/{0}_desc-manual_dseg.nii.gz", kinds=("T1w",)):
    for n in (1, 2):
        subject = f"sub-{n:02d}"
        for kind in kinds:
            save(root / subject / "anat" / f"{subject}_{kind}.nii.gz", image(n))
        save(root / labels.format(subject), label_map())
    write_json(root / "dataset_description.json", {"Name": "Two brains", "BIDSVersion": "1.8.0"})
    return root


@pytest.mark.parametrize("labels", ["{0}/anat/{0}_dseg.nii.gz", "derivatives/manual/{0}/anat/{0}_space-T1w_desc-manual_dseg.nii.gz"])
def test_bids(tmp_path, labels):
    manifest = read_dataset(bids(tmp_path, labels))
    assert (manifest.layout, manifest.name, manifest.channel_names) == ("bids", "Two brains", ("T1w",))
    assert (names(manifest), manifest.persons, manifest.grouped_by) == (["sub-01", "sub-02"], ("sub-01", "sub-02"), "person")
    assert manifest.cases[0].labels == tmp_path / labels.format("sub-01")
    assert manifest.labels.classes == ("label 1", "label 2")
    assert "layout: BIDS (guessed from sub-01/anat/sub-01_T1w.nii.gz)" in manifest.summary
    assert sound(manifest)


def test_bids_takes_the_names_of_labels_from_the_tables_that_apply(tmp_path):
    bids(tmp_path)
    table = "index\tname\n0\tUnknown\n1\tleft thing\n2\tright thing\n77\tnever\n"
    (tmp_path / "derivatives/manual/desc-manual_dseg.tsv").write_text(table)
    (tmp_path / "derivatives/manual/desc-other_dseg.tsv").write_text("index\tname\n1\tother\n")
    labels = read_dataset(tmp_path).labels
    assert (labels.classes, labels.pairs) == (("left thing", "right thing"), (("left thing", "right thing"),))
    (tmp_path / "derivatives/manual/desc-manual_dseg.tsv").write_text("index\tname\n1\tleft thing\n2\tleft thing\n")
    with pytest.raises(DatasetError, match=r"'left thing' is not one label's alone \(values 1, 2\)"):
        read_dataset(tmp_path)
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tliver\n")
    with pytest.raises(DatasetError, match="the value 1 is 'liver' here and 'left thing' in"):
        read_dataset(tmp_path)
    (tmp_path / "dseg.tsv").write_text("value\tname\n1\tliver\n")
    with pytest.raises(DatasetError, match=r'dseg\.tsv: it is no table with the columns "index"'):
        read_dataset(tmp_path)


def test_bids_says_what_it_leaves_out_and_what_it_cannot_know(tmp_path):
    save(bids(tmp_path / "a") / "sub-01/anat/sub-01_acq-fast_T2w.nii.gz", image(0))
    save(tmp_path / "a/sub-01/func/sub-01_task-rest_bold.nii.gz", image(0))
    (tmp_path / "a/sub-02/anat/sub-02_x.mgz").write_bytes(b"")
    manifest = read_dataset(tmp_path / "a")
    assert "1 T2w image, 1 bold image" in manifest.left_out
    assert "sub-02_x.mgz (FreeSurfer)" in manifest.doubts[0]
    way_out = "list the pairs in a dataset.json"
    with pytest.raises(DatasetError, match=rf"FLAIR, T1w.*{way_out}"):
        read_dataset(bids(tmp_path / "b", kinds=("T1w", "FLAIR")))
    save(tmp_path / "a/derivatives/auto/sub-01/anat/sub-01_desc-auto_dseg.nii.gz", label_map())
    with pytest.raises(DatasetError, match=rf"two label maps fit sub-01_T1w\.nii\.gz.*{way_out}"):
        read_dataset(tmp_path / "a")
    shutil.rmtree(tmp_path / "a/derivatives")
    with pytest.raises(DatasetError, match=rf"no label map.*{way_out}"):
        read_dataset(tmp_path / "a")


def test_bids_sessions_are_of_one_person(tmp_path):
    for session in ("ses-1", "ses-2"):
        folder = Path(tmp_path, "sub-01", session, "anat")
        save(folder / f"sub-01_{session}_T1w.nii.gz", image(0))
        save(folder / f"sub-01_{session}_dseg.nii.gz", label_map())
    manifest = read_dataset(tmp_path)
    assert (names(manifest), manifest.persons) == (["sub-01_ses-1", "sub-01_ses-2"], ("sub-01",))
