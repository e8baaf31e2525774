import contextlib
import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uxnet.cohort.ledger import making
from uxnet.cohort.run import Scan, _crew, find_scans, predict
from uxnet.cohort.scans import unread_images
from uxnet.cohort.unit import Desk, Unit, do_scan
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import Cancelled, DatasetError, DeviceError, InputError, ModelError, RecipeError, VolumeError
from uxnet.events import Kept, Note, Progress, Warn
from uxnet.inference.segmenter import Segmenter, load_model
from uxnet.inference.settings import Settings
from uxnet.inference.stitch import Room
from uxnet.io import claimed, lock_path, token_of
from uxnet.io.records import append_record
from uxnet.labels import Label, Labels, labels_from_dict
from uxnet.recipe import with_overrides

PLAIN = Settings(device="cpu", precision="float32")
OBLIQUE = np.array([[0.0, -1.9, 0.3, 11], [1.1, 0, 0.1, -7], [0.05, 0.2, 2.5, 3], [0, 0, 0, 1]])


def scan(path, shape=(17, 12, 20), seed=0, affine=OBLIQUE, sform=1, qform=2, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 30, shape).astype(dtype)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, sform)
    image.set_qform(np.diag([1.2, 1.9, 2.5, 1]), qform)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"a scan"
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    return load_model(tiny_model(), device="cpu", precision="float32")


@pytest.fixture(scope="module")
def two_channels(tiny_model):
    return load_model(tiny_model(2), device="cpu", precision="float32")


def names(scans):
    return {s.name: [f.name for f in s.files] for s in scans}


def empty(folder, *files):
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file).write_bytes(b"")
    return folder


# ---- finding scans


def test_folders_and_files(tmp_path):
    empty(tmp_path / "a", "x.nii.gz", "Y.NII", "notes.txt", ".x.part.nii.gz")
    empty(tmp_path / "a" / "below", "z.nii.gz")
    scans = find_scans([tmp_path / "a", empty(tmp_path, "w.nii") / "w.nii"], 1)
    assert names(scans) == {"Y": ["Y.NII"], "x": ["x.nii.gz"], "w": ["w.nii"]}


def test_the_suffix_of_an_only_channel_is_dropped(tmp_path):
    empty(tmp_path, "p1_0000.nii.gz", "p2_0000.nii.gz", "p3.nii.gz", "p4_12345.nii.gz")
    assert sorted(names(find_scans([tmp_path], 1))) == ["p1", "p2", "p3", "p4_12345"]


def test_case_numbers_are_no_channels_to_a_model_of_one_channel(tmp_path):
    # As AMOS and many others are named.
    empty(tmp_path, *(f"amos_{n:04d}.nii.gz" for n in (0, 4, 7)))
    assert sorted(names(find_scans([tmp_path], 1))) == ["amos_0000", "amos_0004", "amos_0007"]
    assert names(find_scans([tmp_path / "amos_0004.nii.gz"], 1)) == {"amos_0004": ["amos_0004.nii.gz"]}


def test_channels_of_one_scan(tmp_path):
    empty(tmp_path, "p1_0001.nii.gz", "p1_0000.nii.gz", "p2_0000.nii", "p2_0001.nii.gz", "all_in_one.nii.gz")
    assert names(find_scans([tmp_path], 2)) == {
        "p1": ["p1_0000.nii.gz", "p1_0001.nii.gz"],
        "p2": ["p2_0000.nii", "p2_0001.nii.gz"],
        "all_in_one": ["all_in_one.nii.gz"],
    }


@pytest.mark.parametrize(("there", "missing"), [((0, 1), 2), ((0, 2), 1), ((1, 2), 0), ((0,), 1), ((0, 1, 2, 4), 3)])
def test_a_missing_channel_is_named(tmp_path, there, missing):
    empty(tmp_path, "p0_0000.nii.gz", "p0_0001.nii.gz", "p0_0002.nii.gz", *(f"p1_{n:04d}.nii.gz" for n in there))
    whole, lacking = find_scans([tmp_path], 3)
    assert (whole.name, whole.problem) == ("p0", "")
    assert f"channel {missing:04d} of the scan p1 is missing" in lacking.problem


def test_a_channel_too_many_and_the_same_channel_twice_are_named(tmp_path):
    empty(tmp_path, "p_0000.nii.gz", "p_0000.nii", "p_0001.nii", "q_0000.nii", "q_0001.nii", "q_0002.nii")
    twice, more = find_scans([tmp_path], 2)
    assert "the same channel" in twice.problem
    assert more.problem.endswith("q_0002.nii: the scan q has 3 channels, the model takes 2")


def test_a_scan_that_lacks_a_channel_fails_alone(two_channels, tmp_path):
    for name in ("p_0000", "p_0001", "q_0001"):
        scan(tmp_path / "in" / f"{name}.nii.gz")
    outcomes = predict(two_channels, find_scans([tmp_path / "in"], 2), tmp_path / "out")
    assert statuses(outcomes) == {"p": "done", "q": "failed"}
    assert "q_0001.nii.gz: channel 0000 of the scan q is missing" in outcomes[1].error


@pytest.mark.parametrize("channels", [1, 2])
def test_clashing_names_are_refused(tmp_path, channels):
    suffixes = [f"_{n:04d}" for n in range(channels)]
    for folder in "ab":
        empty(tmp_path / folder, *(f"scan{s}.nii.gz" for s in suffixes))
    with pytest.raises(InputError, match=r"scan\.nii\.gz.*a/scan.*b/scan"):
        find_scans([tmp_path / "a", tmp_path / "b"], channels)
    empty(tmp_path / "c", "scan.nii", "scan.nii.gz")
    with pytest.raises(InputError, match=r"scan\.nii\.gz"):
        find_scans([tmp_path / "c"], channels)
    with pytest.raises(InputError):  # the same file, given twice
        find_scans([tmp_path / "c" / "scan.nii"] * 2, channels)


def test_what_is_not_there_or_empty(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.nii: there is no such file or folder"):
        find_scans([tmp_path / "nowhere.nii"], 1)
    with pytest.raises(InputError, match="there is no NIfTI file"):
        find_scans([tmp_path], 1)
    empty(tmp_path, "a.dcm")
    empty(tmp_path / "p1", "b.nii.gz")
    with pytest.raises(InputError, match=r"in this folder; .* not a\.dcm \(DICOM\); convert .*below are not looked into.*\(p1\)"):
        find_scans([tmp_path], 1)


def test_nothing_in_a_folder_is_left_out_without_a_word(tmp_path, segmenter):
    scan(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "gone.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    (tmp_path / "in" / "folder.nii.gz").mkdir()
    empty(tmp_path / "in", "b.mgz", "c.NRRD", "notes.txt")
    heard = []
    scans = find_scans([tmp_path / "in"], 1, heard.append)
    assert [one.name for one in scans] == ["a", "gone"]
    (warning,) = [event.message for event in heard if isinstance(event, Warn)]
    assert all(name in warning for name in ("3 left out", "b.mgz", "c.NRRD", "folder.nii.gz (a folder)"))
    assert [path.name for path in unread_images([tmp_path / "in"])] == ["b.mgz", "c.NRRD", "folder.nii.gz"]
    assert statuses(predict(segmenter, scans, tmp_path / "out")) == {"a": "done", "gone": "failed"}


def test_files_of_other_formats_that_are_given_and_folders_in_a_manifest_fail_by_name(tmp_path, segmenter):
    empty(tmp_path / "b.nii.gz"), scan(tmp_path / "c.nii.gz")
    empty(tmp_path, "a.hdr", "a.img")
    (tmp_path / "scans.json").write_text(json.dumps({"b": "b.nii.gz"}))
    inputs = [tmp_path / name for name in ("a.hdr", "a.img", "c.nii.gz", "scans.json")]
    outcomes = {outcome.name: outcome for outcome in predict(segmenter, find_scans(inputs, 1), tmp_path / "out")}
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "a.hdr": "failed",
        "a.img": "failed",
        "b": "failed",
        "c": "done",
    }
    assert outcomes["a.img"].error.endswith("not a.img (NIfTI or Analyze pair); convert it to .nii.gz")
    assert "b.nii.gz: is a folder" in outcomes["b"].error


def test_manifest(tmp_path):
    path = tmp_path / "lists" / "scans.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"patient 1": ["../a.nii", "/b.nii"], "p2": "c.nii.gz"}))
    assert find_scans([path], 2) == [
        Scan("patient 1", (path.parent / "../a.nii", Path("/b.nii"))),
        Scan("p2", (path.parent / "c.nii.gz",)),
    ]


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 5}', '{"a": []}', '{"../a": "x.nii"}', '{"b/a": "x.nii"}', '{"": "x.nii"}', "\x00"])
def test_what_is_no_manifest(tmp_path, content):
    (tmp_path / "scans.json").write_text(content)
    with pytest.raises(InputError, match=r"scans\.json"):
        find_scans([tmp_path / "scans.json"], 1)


# ---- predicting


def test_outputs_are_named_after_inputs_and_lie_on_their_grids(segmenter, tmp_path):
    inputs = [scan(tmp_path / "in" / "a b.nii.gz"), scan(tmp_path / "in" / "c.nii", (9, 30, 5), 1, sform=0, dtype=np.float32)]
    events = []
    outcomes = predict(segmenter, find_scans([tmp_path / "in"], 1), tmp_path / "out", report=events.append)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a b.nii.gz",
        "c.nii.gz",
        "labels.json",
        "predict.json",
        "predict.jsonl",
    ]
    assert [(o.name, o.error) for o in outcomes] == [("a b", ""), ("c", "")]
    for path, outcome in zip(inputs, outcomes, strict=True):
        assert outcome.files == (str(path),)
        before, after = nib.load(path), nib.load(outcome.output)
        assert after.get_data_dtype() == np.uint16  # the smallest that holds 300
        assert set(np.unique(after.dataobj)) <= {0, 1, 300}
        assert len(np.unique(after.dataobj)) > 1
        fields = ["dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"]
        fields += [f"{name}_{axis}" for name, axes in (("quatern", "bcd"), ("qoffset", "xyz")) for axis in axes]
        for field in fields:
            assert np.array_equal(before.header[field], after.header[field]), field
        assert np.array_equal(before.affine, after.affine)
    described = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels_from_dict(described) == segmenter.labels
    listed = json.loads((tmp_path / "out" / "predict.json").read_text())["scans"]
    assert [entry["output"] for entry in listed] == [str(tmp_path / "out" / "a b.nii.gz"), str(tmp_path / "out" / "c.nii.gz")]
    assert all(entry["seconds"] > 0 for entry in listed)
    assert sum(isinstance(e, Note) and " -> " in e.message for e in events) == 2
    assert [(e.done, e.total) for e in events if isinstance(e, Progress) and e.task == "scans"] == [(1, 2), (2, 2)]


def test_the_same_labels_as_the_segmenter_gives(segmenter, tmp_path):
    path = scan(tmp_path / "a.nii.gz")
    (outcome,) = predict(segmenter, find_scans([path], 1), tmp_path / "out")
    assert np.array_equal(nib.load(outcome.output).dataobj, segmenter.segment(path).array[0])


def test_two_channels_are_read_in_their_order(two_channels, tmp_path):
    first, second = scan(tmp_path / "p_0000.nii.gz", seed=1), scan(tmp_path / "p_0001.nii.gz", seed=2)
    (outcome,) = predict(two_channels, find_scans([tmp_path], 2), tmp_path / "out")
    assert outcome.output == str(tmp_path / "out" / "p.nii.gz")
    got = np.asarray(nib.load(outcome.output).dataobj)
    assert np.array_equal(got, two_channels.segment([first, second]).array[0])
    assert not np.array_equal(got, two_channels.segment([second, first]).array[0])
    with pytest.raises(ModelError, match=r"it has 1 channels, the model takes 2 \(modality 0, modality 1\)"):
        two_channels.segment(first)


def test_a_bad_file_does_not_stop_the_rest(segmenter, two_channels, tmp_path):
    folder = tmp_path / "in"
    scan(folder / "a.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:2000])
    (folder / "c.nii.gz").write_bytes(b"")
    scan(folder / "d.nii.gz", sform=0, qform=0)
    scan(folder / "e.nii.gz", shape=(8, 8, 8, 2))
    scan(folder / "f.nii.gz", dtype=np.float64, seed=3)
    holed = nib.load(folder / "f.nii.gz")
    voxels = holed.get_fdata()
    voxels[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, holed.affine), folder / "f.nii.gz")
    scan(folder / "z.nii.gz", seed=4)
    events = []
    outcomes = {o.name: o for o in predict(segmenter, find_scans([folder], 1), tmp_path / "out", report=events.append)}
    assert [name for name, o in outcomes.items() if not o.error] == ["a", "z"]
    for name in "bcdef":
        assert f"{name}.nii.gz" in outcomes[name].error
        assert outcomes[name].output is None
        assert not (tmp_path / "out" / f"{name}.nii.gz").exists()
    warnings = [event.message for event in events if isinstance(event, Warn)]
    contradictory = [message for message in warnings if "ALS by the sform, RAS by the qform" in message]
    assert {str(folder / f"{name}.nii.gz") for name in "az"} <= {message.split(": ")[0] for message in contradictory}
    assert len(warnings) - len(contradictory) == 5
    listed = json.loads((tmp_path / "out" / "predict.json").read_text())["scans"]
    assert [bool(entry["error"]) for entry in listed] == [False, True, True, True, True, True, False]
    assert not [p for p in (tmp_path / "out").iterdir() if ".part" in p.name]


def test_nothing_is_overwritten_unasked(segmenter, tmp_path):
    path = scan(tmp_path / "in" / "a.nii.gz")
    output = tmp_path / "out" / "a.nii.gz"
    output.parent.mkdir()
    output.write_bytes(b"precious")
    scans = find_scans([path, scan(tmp_path / "in" / "b.nii.gz")], 1)
    with pytest.raises(InputError, match=r"a\.nii\.gz: exists already.*overwrite=True"):
        predict(segmenter, scans, tmp_path / "out")
    assert output.read_bytes() == b"precious"
    assert not (tmp_path / "out" / "b.nii.gz").exists()  # refused before anything was computed
    predict(segmenter, scans, tmp_path / "out", overwrite=True)
    assert nib.load(output).shape == (17, 12, 20)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_the_output(segmenter, tmp_path, overwrite):
    path = scan(tmp_path / "in" / "a.nii.gz")
    before = path.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for out in (tmp_path / "in", tmp_path / "in" / ".." / "in", tmp_path / "link"):
        with pytest.raises(InputError, match="would replace an input"):
            predict(segmenter, find_scans([path], 1), out, overwrite=overwrite)
    assert path.read_bytes() == before
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["a.nii.gz"]


def test_an_output_that_cannot_be_written_is_a_failure_of_that_scan(segmenter, tmp_path):
    path = scan(tmp_path / "a.nii.gz")
    (tmp_path / "out" / "a.nii.gz").mkdir(parents=True)
    (outcome,) = predict(segmenter, find_scans([path], 1), tmp_path / "out", overwrite=True)
    assert "a.nii.gz" in outcome.error


def test_a_record_that_cannot_be_written_is_a_failure_of_that_scan(segmenter, tmp_path, monkeypatch):
    def full(path, record):
        raise InputError(f"{path}: a record cannot be written (No space left on device)")

    monkeypatch.setattr("uxnet.cohort.run.append_record", full)
    (outcome,) = predict(segmenter, [Scan("a", (scan(tmp_path / "a.nii.gz"),))], tmp_path / "out")
    assert outcome.error.startswith(f"{tmp_path / 'out' / 'a.nii.gz'}: cannot be written (")
    assert not (tmp_path / "out" / "a.nii.gz").exists()


def test_cancelling_stops_at_once(segmenter, tmp_path):
    scans = find_scans([scan(tmp_path / "in" / f"{n}.nii.gz", seed=n).parent for n in range(3)][:1], 1)

    def stop(event):
        if isinstance(event, Progress) and event.task == "windows" and (tmp_path / "out" / "0.nii.gz").exists():
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        predict(segmenter, scans, tmp_path / "out", report=stop)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"0.nii.gz", "labels.json", "predict.jsonl"}


def test_a_damaged_model_is_named(tiny_model, tmp_path):
    whole = tiny_model().read_bytes()
    path = tmp_path / "m.uxnet"
    for content in (b"", whole[: len(whole) // 2], whole.replace(b"PK", b"XX")):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"m\.uxnet"):
            load_model(path)
    with pytest.raises(ModelError, match="no such model file"):
        load_model(tmp_path / "none.uxnet")


def test_a_folder_keeps_what_earlier_calls_did_and_never_mixes_models(tmp_path, segmenter, two_channels):
    out = tmp_path / "out"
    predict(segmenter, [Scan("a", (scan(tmp_path / "a.nii.gz"),))], out)
    predict(segmenter, [Scan("b", (scan(tmp_path / "b.nii.gz"),))], out)
    assert [s["name"] for s in json.loads((out / "predict.json").read_text())["scans"]] == ["a", "b"]
    before = (out / "labels.json").read_bytes()
    with pytest.raises(InputError, match=r"labels\.json.*another model"):
        predict(two_channels, [Scan("c", (scan(tmp_path / "c.nii.gz"),))], out)
    assert (out / "labels.json").read_bytes() == before


def test_predictions_do_not_go_into_a_dataset_nor_say_what_its_labels_are(tmp_path, segmenter):
    data, file = tmp_path / "data", scan(tmp_path / "data" / "imagesTr" / "a.nii.gz")
    with pytest.raises(InputError, match=r"data: is the folder of a dataset"):
        predict(segmenter, [Scan("a", (file,))], data)
    assert [path.name for path in data.iterdir()] == ["imagesTr"]
    # What a prediction wrote and somebody put there is not taken for the dataset's own.
    predict(segmenter, [Scan("a", (file,))], tmp_path / "out")
    training = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    described = {"name": "D", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "left kidney"}, "training": training}
    (data / "dataset.json").write_text(json.dumps(described))
    (data / "labels.json").write_bytes((tmp_path / "out" / "labels.json").read_bytes())
    with pytest.raises(DatasetError, match=r"labels\.json: was written by a prediction"):
        read_dataset(data)
    # Its pairs were read from names: nobody said them.
    said = json.loads((data / "labels.json").read_text())
    assert not labels_from_dict(said).pairs_said
    assert labels_from_dict({key: value for key, value in said.items() if key not in ("model", "model_name", "models")}).pairs_said


@pytest.mark.parametrize("value", [0, -1000])
def test_a_scan_that_shows_nothing_is_refused(tmp_path, segmenter, two_channels, value):
    blank, seen = tmp_path / "blank.nii.gz", scan(tmp_path / "seen.nii.gz")
    nib.save(nib.Nifti1Image(np.full((17, 12, 20), value, np.int16), OBLIQUE), blank)
    blank_one, other = predict(segmenter, [Scan("blank", (blank,)), Scan("seen", (seen,))], tmp_path / "out")
    assert (blank_one.status, other.status) == ("failed", "done")
    assert f"every voxel is {value}" in blank_one.error
    heard = []
    (outcome,) = predict(two_channels, [Scan("half", (seen, blank))], tmp_path / "two", report=heard.append)
    assert outcome.status == "done"
    assert any(isinstance(event, Warn) and "is constant; is it missing?" in event.message for event in heard)


def renamed(segmenter, tmp_path):
    """A model with other bytes, which calls "dark" what `segmenter` calls "bright"."""
    path = tmp_path / "renamed.uxnet"
    path.write_bytes(segmenter.model.path.read_bytes() + b"\0")
    labels = Labels((Label("dark", 1), Label("bright", 300)))
    return Segmenter(replace(segmenter.model, path=path, labels=labels), segmenter.engines, segmenter.settings)


def test_maps_whose_values_mean_something_else_do_not_share_a_folder_even_if_it_may_overwrite(tmp_path, segmenter):
    for n in range(3):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    scans, out, other = find_scans([tmp_path / "in"], 1), tmp_path / "out", renamed(segmenter, tmp_path)
    predict(segmenter, scans, out)
    before = (out / "labels.json").read_bytes()
    with pytest.raises(InputError, match=r"2\.nii\.gz: its values mean something else .* \(1 such file\); choose another folder"):
        predict(other, scans[:2], out, overwrite=True)
    # Whatever its part, each shard sees the whole call.
    for part in ("1/2", "2/2"):
        with pytest.raises(InputError, match=r"2\.nii\.gz: its values mean something else"):
            predict(other, scans[:2], out, overwrite=True, part=part)
    assert (out / "labels.json").read_bytes() == before
    # A call that replaces all of them may, also in parts. Between the parts, and where one was interrupted, maps of both are there.
    assert statuses(predict(other, scans, out, overwrite=True, part="1/2")) == {"0": "done", "2": "done"}
    assert labels_from_dict(json.loads((out / "labels.json").read_text())) == other.labels
    new = [Scan("new", (scan(tmp_path / "new.nii.gz"),))]
    with pytest.raises(InputError, match=r"1\.nii\.gz: its values mean something else"):
        predict(other, new, out)
    assert statuses(predict(other, scans, out, overwrite=True, part="2/2")) == {"1": "done"}
    assert statuses(predict(other, new, out)) == {"new": "done"}
    # What no record knows is what labels.json says it is.
    (out / "predict.jsonl").unlink()
    (out / "predict.1-of-2.jsonl").unlink()
    with pytest.raises(InputError, match=r"0\.nii\.gz: its values mean something else"):
        predict(segmenter, new, out, overwrite=True)


def test_a_model_is_known_by_its_content_and_not_by_its_files_name(tmp_path, tiny_model, segmenter):
    out = tmp_path / "out"
    predict(segmenter, [Scan("a", (scan(tmp_path / "a.nii.gz"),))], out)
    moved, changed = tmp_path / "moved.uxnet", tmp_path / "changed" / segmenter.model.path.name
    moved.write_bytes(segmenter.model.path.read_bytes())
    changed.parent.mkdir()
    changed.write_bytes(segmenter.model.path.read_bytes() + b"\0")
    new = [Scan("b", (scan(tmp_path / "b.nii.gz"),))]
    with pytest.raises(InputError, match=r"labels\.json.*another model"):
        predict([changed], new, out, settings=PLAIN)
    assert statuses(predict([moved], new, out, settings=PLAIN)) == {"b": "done"}


def test_each_scan_is_listed_with_what_it_was_made_with(tmp_path, tiny_model, segmenter):
    out = tmp_path / "out"
    predict(segmenter, [Scan("a", (scan(tmp_path / "a.nii.gz"),))], out)
    wider = replace(PLAIN, overlap=0.25)
    predict([tiny_model()], [Scan("b", (scan(tmp_path / "b.nii.gz"),))], out, settings=wider)
    told = json.loads((out / "predict.json").read_text())
    assert [one["made_with"]["settings"]["overlap"] for one in told["scans"]] == [None, 0.25]
    assert [one["made_with"]["models"] for one in told["scans"]] == [[told["models"][0]["sha256"]]] * 2
    assert told["settings"]["overlap"] == 0.25  # the call's own


@pytest.mark.parametrize("mm", [1e-6, 1e6, 1e25])
def test_an_absurd_spacing_fails_alone(tmp_path, segmenter, mm):
    scan(tmp_path / "in" / "a.nii.gz")
    scan(tmp_path / "in" / "b.nii.gz", affine=np.diag([mm, mm, mm, 1]))
    recipe = with_overrides(segmenter.model.recipe, ["prepare.spacing_mm=[2.0, 2.0, 2.0]"])
    resampling = Segmenter(replace(segmenter.model, recipe=recipe), segmenter.engines, segmenter.settings)
    outcomes = predict(resampling, find_scans([tmp_path / "in"], 1), tmp_path / "out")
    assert statuses(outcomes) == {"a": "done", "b": "failed"}
    assert outcomes[1].error.startswith(f"{tmp_path / 'in' / 'b.nii.gz'}: its spacing is {np.float32(mm):g} x")


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 3 TiB"), MemoryError(), OSError(28, "No space left on device")])
def test_what_goes_wrong_is_said_of_a_scan(tmp_path, segmenter, monkeypatch, error):
    def fail(*_, **__):
        raise error

    path = scan(tmp_path / "a.nii.gz")
    monkeypatch.setattr(segmenter, "segment", fail)
    (outcome,) = predict(segmenter, [Scan("a", (path,))], tmp_path / "out")
    assert outcome.error == f"{path}: {str(error) or 'MemoryError'}"


def test_air_cannot_be_left_out_where_nothing_says_what_it_is(tmp_path, tiny_model):
    path = scan(tmp_path / "a.nii.gz")
    with pytest.raises(RecipeError, match=r"skip_air: the recipe has no prepare\.crop_above"):
        predict([tiny_model()], [Scan("a", (path,))], tmp_path / "out", settings=replace(PLAIN, skip_air=True))
    assert not (tmp_path / "out").exists()


def test_what_the_memory_decided_is_recorded_and_a_broken_limit_is_said(tmp_path, tiny_model, monkeypatch):
    scans, events = [Scan("a", (scan(tmp_path / "a.nii.gz", affine=np.diag([1.2, 1.9, 2.5, 1])),))], []
    (outcome,) = predict([tiny_model()], scans, tmp_path / "out", settings=PLAIN, report=events.append)
    assert outcome.keep == "memory"
    assert json.loads((tmp_path / "out" / "predict.jsonl").read_text())["figures"]["keep"] == "memory"
    assert not [event for event in events if isinstance(event, Warn)]
    half, limited = Room(1, "half"), replace(PLAIN, memory_limit=10**12)

    def plan(report, **_):
        report(Kept("half"))
        return lambda sweep: half

    monkeypatch.setattr("uxnet.inference.segmenter.planner", plan)
    monkeypatch.setattr("uxnet.cohort.unit.take_peak", lambda: 2_000_000)
    monkeypatch.setattr("uxnet.cohort.unit.reset_peak", lambda: True)
    (outcome,) = predict([tiny_model()], scans, tmp_path / "half", settings=limited, report=events.append)
    assert outcome.keep == "half"
    assert any("peak memory 2000000 MB, logits kept in half precision" in event.message for event in events if isinstance(event, Note))
    (warning,) = [event.message for event in events if isinstance(event, Warn)]
    assert "a: it took 2000000 MB of memory, more than the limit of 1000.00 GB" in warning


def test_workers_share_the_machine(tmp_path, tiny_model):
    crews = [_crew([tiny_model()], Settings(), workers, None, 8).settings.sharing for workers in (None, 0, 1, 4)]
    assert crews == [1, 1, 1, 4]


# ---- what is done is not done again


@pytest.fixture
def done(segmenter, tmp_path):
    """Three scans that are done: their folder and outputs, and the times at which these were written."""
    for n in range(3):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    predict(segmenter, find_scans([tmp_path / "in"], 1), tmp_path / "out")
    return tmp_path / "in", tmp_path / "out"


def written(out):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(out.glob("*.nii.gz"))}


def statuses(outcomes):
    return {outcome.name: outcome.status for outcome in outcomes}


def test_the_same_call_again_does_nothing_again(segmenter, done):
    folder, out = done
    before, earlier = written(out), json.loads((out / "predict.json").read_text())["scans"]
    events = []
    for overwrite in (False, True):
        outcomes = predict(segmenter, find_scans([folder], 1), out, overwrite=overwrite, report=events.append)
        assert statuses(outcomes) == dict.fromkeys("012", "already")
        assert written(out) == before
    assert Note("3 of 3 were done already") in events
    again = json.loads((out / "predict.json").read_text())["scans"]
    assert [{**scan, "status": "done"} for scan in again] == earlier


def test_the_model_is_not_loaded_where_nothing_is_to_be_done(tiny_model, done, monkeypatch):
    folder, out = done

    def never(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr("uxnet.cohort.run.load_segmenter", never)
    outcomes = predict([tiny_model()], find_scans([folder], 1), out, settings=PLAIN, workers=0)
    assert statuses(outcomes) == dict.fromkeys("012", "already")


def test_what_is_missing_or_torn_is_done_again(segmenter, done):
    folder, out = done
    (out / "0.nii.gz").unlink()
    whole = (out / "1.nii.gz").read_bytes()
    before = written(out)
    for torn in (whole[: len(whole) // 2], whole[:-1], b"", whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        (out / "1.nii.gz").write_bytes(torn)
        outcomes = predict(segmenter, find_scans([folder], 1), out)
        assert statuses(outcomes)["1"] == "done"
        assert statuses(outcomes)["2"] == "already"
        assert np.array_equal(nib.load(out / "1.nii.gz").dataobj, segmenter.segment(folder / "1.nii.gz").array[0])
    assert (out / "0.nii.gz").is_file()
    assert written(out)["2.nii.gz"] == before["2.nii.gz"]


def test_a_corrected_output_is_precious(segmenter, done):
    folder, out = done
    before = written(out)
    image = nib.load(out / "1.nii.gz")
    voxels = np.asarray(image.dataobj).copy()
    voxels[:3] = 1
    nib.save(nib.Nifti1Image(voxels, None, image.header), out / "1.nii.gz")
    corrected = (out / "1.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"1\.nii\.gz: exists already, and it is not what was written"):
        predict(segmenter, find_scans([folder], 1), out)
    assert (out / "1.nii.gz").read_bytes() == corrected
    assert statuses(predict(segmenter, find_scans([folder], 1), out, overwrite=True)) == {"0": "already", "1": "done", "2": "already"}
    assert (out / "1.nii.gz").read_bytes() != corrected
    assert {name: times for name, times in written(out).items() if name != "1.nii.gz"} == {
        name: times for name, times in before.items() if name != "1.nii.gz"
    }


def test_a_correction_of_the_same_size_is_found_when_its_turn_comes(segmenter, done):
    folder, out = done
    blob = bytearray((out / "1.nii.gz").read_bytes())
    blob[4] ^= 1  # the time in gzip's header: another file, and whole
    (out / "1.nii.gz").write_bytes(blob)
    outcomes = predict(segmenter, find_scans([folder], 1), out)
    assert statuses(outcomes) == {"0": "already", "1": "failed", "2": "already"}
    assert "1.nii.gz: someone changed it since it was written there" in outcomes[1].error
    assert "have it overwritten" in outcomes[1].error
    assert (out / "1.nii.gz").read_bytes() == blob


def test_a_changed_input_fails_unless_it_may_overwrite(segmenter, done):
    folder, out = done
    scan(folder / "1.nii.gz", seed=77)
    before = written(out)
    outcomes = predict(segmenter, find_scans([folder], 1), out)
    assert statuses(outcomes) == {"0": "already", "1": "failed", "2": "already"}
    assert str(folder / "1.nii.gz") in outcomes[1].error
    assert "have it overwritten" in outcomes[1].error
    assert written(out) == before
    assert statuses(predict(segmenter, find_scans([folder], 1), out, overwrite=True))["1"] == "done"
    assert np.array_equal(nib.load(out / "1.nii.gz").dataobj, segmenter.segment(folder / "1.nii.gz").array[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlap": 0.25}, "overlap by the recipe, not 0.25"),
        ({"largest": ("dark",)}, "largest nothing, not dark"),
        ({"memory_limit": 10**12}, "memory_limit none, not 1000000000000"),
        ({"model": 1}, "another model"),
    ],
)
def test_another_model_or_setting_is_refused_before_anything_is_done(tiny_model, done, tmp_path, change, words):
    folder, out = done
    model = tiny_model()
    if "model" in change:
        # Of the same name and meaning, with other bytes.
        model = tmp_path / model.name
        model.write_bytes(tiny_model().read_bytes() + b"\0")
    settings = replace(PLAIN, **{key: value for key, value in change.items() if key != "model"})
    scan(folder / "3.nii.gz", seed=3)
    before = written(out)
    with pytest.raises(InputError, match=rf"0\.nii\.gz: exists already, and it was made with .*{words}.*3 such outputs.*overwrite=True"):
        predict([model], find_scans([folder], 1), out, settings=settings, workers=0)
    assert written(out) == before
    # Of these only the number of threads can change a voxel now and then: it is told.
    events, threads = [], replace(PLAIN, threads=3, sharing=3, cache=tmp_path)
    outcomes = predict([tiny_model()], find_scans([folder], 1), out, settings=threads, workers=0, report=events.append)
    assert statuses(outcomes) == {"0": "already", "1": "already", "2": "already", "3": "done"}
    told = json.loads((out / "predict.json").read_text())["scans"]
    assert [(one["name"], one["threads"]) for one in told] == [(n, PLAIN.cores) for n in "012"] + [("3", 3)]
    assert events[-1] == Note("3 of 4 were done already, 3 of them on other numbers of threads than 3, which may change a voxel")
    events.clear()
    predict([tiny_model()], find_scans([folder], 1), out, settings=replace(threads, threads=PLAIN.cores), workers=0, report=events.append)
    assert events[-1].message.startswith("4 of 4 were done already, 1 of them on other")


def test_outputs_of_another_version_count_unless_their_revision_differs(segmenter, done, monkeypatch):
    folder, out = done
    scans, ledger = find_scans([folder], 1), out / "predict.jsonl"
    monkeypatch.setattr("uxnet.__version__", "9.9.9")
    assert statuses(predict(segmenter, scans, out)) == dict.fromkeys("012", "already")
    # As records were before there was a revision.
    records = [json.loads(line) for line in ledger.read_text().splitlines()]
    ledger.write_text("".join(json.dumps({k: v for k, v in record.items() if k != "revision"}) + "\n" for record in records))
    assert statuses(predict(segmenter, scans, out)) == dict.fromkeys("012", "already")
    monkeypatch.setattr("uxnet.cohort.ledger.OUTPUT_REVISION", "9.9.9")
    with pytest.raises(InputError, match=r"it was made with uxnet 0\.1\.0, whose outputs this version's \(9\.9\.9\) may differ"):
        predict(segmenter, scans, out)


def test_an_interrupted_call_is_taken_up_wherever_it_was_stopped(segmenter, tmp_path, monkeypatch):
    for n in range(3):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    scans, out = find_scans([tmp_path / "in"], 1), tmp_path / "out"

    def die(ledger, record):
        append_record(ledger, record)
        # Between the record and the place: nothing stands there yet.
        if record["name"] == "1":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("uxnet.cohort.run.append_record", die)
        with pytest.raises(KeyboardInterrupt):
            predict(segmenter, scans, out)
    assert len(list(out.glob("*.nii.gz"))) == 1
    ledger = out / "predict.jsonl"
    ledger.write_bytes(ledger.read_bytes() + b'{"name": "2", "key": "torn')
    assert sorted(statuses(predict(segmenter, scans, out)).values()) == ["already", "done", "done"]
    assert statuses(predict(segmenter, scans, out)) == dict.fromkeys("012", "already")
    assert not [path for path in out.iterdir() if ".part" in path.name]


def test_probabilities_are_outputs_like_the_label_map(segmenter, done):
    folder, out = done
    with pytest.raises(InputError, match="made with no probabilities"):
        predict(segmenter, find_scans([folder], 1), out, probabilities=True)
    outcomes = predict(segmenter, find_scans([folder], 1), out, probabilities=True, overwrite=True)
    assert [outcome.probabilities for outcome in outcomes] == [str(out / f"{n}_probs.nii.gz") for n in range(3)]
    (out / "2_probs.nii.gz").unlink()
    outcomes = predict(segmenter, find_scans([folder], 1), out, probabilities=True)
    assert statuses(outcomes) == {"0": "already", "1": "already", "2": "done"}
    assert (out / "2_probs.nii.gz").is_file()
    # Where label maps are replaced, probabilities of earlier ones do not stay beside them; what someone changed does.
    (out / "1_probs.nii.gz").write_bytes(b"mine")
    predict(segmenter, find_scans([folder], 1), out, overwrite=True)
    assert [path.name for path in sorted(out.glob("*_probs.nii.gz"))] == ["1_probs.nii.gz"]


def test_a_label_map_and_anothers_probabilities_do_not_share_a_name(segmenter, tmp_path):
    for name in ("a", "a_probs"):
        scan(tmp_path / "in" / f"{name}.nii.gz")
    with pytest.raises(InputError, match=r"a_probs\.nii\.gz: the output of two scans"):
        predict(segmenter, find_scans([tmp_path / "in"], 1), tmp_path / "out", probabilities=True)
    with pytest.raises(InputError, match=r"a_probs\.nii\.gz: the output of two scans"):
        predict(segmenter, find_scans([tmp_path / "in"], 1), tmp_path / "out", probabilities=True, part="1/2")


# ---- shards


def test_shards_write_into_one_folder_at_the_same_time(tiny_model, segmenter, tmp_path):
    for n in range(5):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    scans, out = find_scans([tmp_path / "in"], 1), tmp_path / "out"
    parts, model = ["1/3", "2/3", "3/3"], tiny_model()
    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(lambda part: predict([model], scans[::-1], out, settings=PLAIN, part=part, workers=0), parts))
    assert [[o.name for o in of_part] for of_part in outcomes] == [["0", "3"], ["1", "4"], ["2"]]
    assert {path.name for path in out.iterdir()} == {
        *(f"{n}.nii.gz" for n in range(5)),
        *(f"predict.{n}-of-3.json{more}" for n in (1, 2, 3) for more in ("", "l")),
        "labels.json",
    }
    # Whatever the parts were, all of it is known to be done.
    assert statuses(predict(segmenter, scans, out)) == dict.fromkeys("01234", "already")
    assert statuses(predict(segmenter, scans, out, part="2/2")) == dict.fromkeys("13", "already")
    with pytest.raises(InputError, match="is no shard"):
        predict(segmenter, scans, out, part="4/3")
    assert predict(segmenter, scans, out, part="6/6") == []


def test_two_calls_at_a_time_share_the_scans_of_one_folder(tiny_model, segmenter, tmp_path):
    for n in range(6):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    scans, out, model = find_scans([tmp_path / "in"], 1), tmp_path / "out", tiny_model()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: predict([model], scans, out, settings=PLAIN, workers=0), range(2)))
    assert [sorted({status for of_call in both if (status := statuses(of_call)[f"{n}"])}) for n in range(6)] == [["already", "done"]] * 6
    assert {path.name for path in out.iterdir()} == {*(f"{n}.nii.gz" for n in range(6)), "labels.json", "predict.json", "predict.jsonl"}
    assert len(json.loads((out / "predict.json").read_text())["scans"]) == 6
    assert statuses(predict(segmenter, scans, out)) == dict.fromkeys("012345", "already")


def test_a_scan_that_another_call_has_in_hand_comes_last_and_is_not_done_twice(segmenter, tmp_path, monkeypatch):
    for n in range(3):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    scans, out, heard = find_scans([tmp_path / "in"], 1), tmp_path / "out", []
    monkeypatch.setattr("uxnet.cohort.outputs._SECONDS_BETWEEN_LOOKS", 0.01)
    out.mkdir()
    with contextlib.ExitStack() as other:
        assert other.enter_context(claimed(lock_path(out, token_of("0"))))

        def report(event):
            heard.append(event)
            if isinstance(event, Note) and event.message.startswith("waiting for another process that has 1 scan in hand, 0"):
                assert (out / "2.nii.gz").exists()
                other.close()

        assert statuses(predict(segmenter, scans, out, report=report)) == dict.fromkeys("012", "done")
    assert [event.done for event in heard if isinstance(event, Progress) and event.task == "scans"] == [1, 2, 3]


# ---- processes


def test_processes_give_what_this_one_gives_and_bad_scans_fail_alone(tiny_model, segmenter, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for n in range(4):
        scan(folder / f"{n}.nii.gz", seed=n)
    (folder / "bad.nii.gz").write_bytes((folder / "0.nii.gz").read_bytes()[:2000])
    (out / "full.nii.gz").mkdir(parents=True)  # what cannot be written is found out by the writer
    scan(folder / "full.nii.gz", seed=4)
    events, settings = [], PLAIN
    scans = find_scans([folder], 1)
    outcomes = predict([tiny_model()], scans, out, settings=settings, workers=2, overwrite=True, report=events.append)
    assert [o.name for o in outcomes] == [s.name for s in scans]
    assert statuses(outcomes) == {**dict.fromkeys("0123", "done"), "bad": "failed", "full": "failed"}
    for outcome in outcomes[:4]:
        assert np.array_equal(nib.load(outcome.output).dataobj, segmenter.segment(folder / f"{outcome.name}.nii.gz").array[0])
        assert outcome.seconds > 0
        assert "write" in outcome.timings
    assert all(f"{name}.nii.gz" in outcome.error for name, outcome in zip(["bad", "full"], outcomes[4:], strict=True))
    steps = [e for e in events if isinstance(e, Progress)]
    assert {e.task for e in steps} == {"scans"}
    assert [(e.done, e.total) for e in steps] == [(n, 6) for n in range(1, 7)]
    assert all("seconds_left" in e.values or e.done == 6 for e in steps if e.done > 2)
    assert steps[-1].values["failed"] == 2
    assert not [path for path in out.iterdir() if ".part" in path.name]


def test_a_scan_that_kills_its_process_fails_alone(tiny_model, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    for n in range(4):
        scan(folder / f"{n}.nii.gz", seed=n)
    scan(folder / "deadly.nii.gz", seed=9)
    outcomes = _with_deadly(tiny_model(), find_scans([folder], 1), out)
    assert statuses(outcomes) == {**dict.fromkeys("0123", "done"), "deadly": "failed"}
    assert str(folder / "deadly.nii.gz") in outcomes[-1].error
    assert "died twice" in outcomes[-1].error
    assert [bool(entry["error"]) for entry in json.loads((out / "predict.json").read_text())["scans"]] == [False] * 4 + [True]
    assert not [path for path in out.iterdir() if ".part" in path.name]


def _with_deadly(model, scans, out):
    from unittest import mock

    import cohort_units

    with mock.patch("uxnet.cohort.run.do_scan", cohort_units.do_scan):
        return predict([model], scans, out, settings=PLAIN, workers=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_that_cannot_be_loaded_is_no_scans_fault(tiny_model, tmp_path, workers):
    for n in range(2):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    settings = Settings(device="cpu", precision="float16", engine="torch")
    with pytest.raises(DeviceError, match="float16"):
        predict([tiny_model()], find_scans([tmp_path / "in"], 1), tmp_path / "out", settings=settings, workers=workers)


def test_cancelling_ends_the_processes(tiny_model, tmp_path):
    for n in range(4):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)

    def stop(event):
        if isinstance(event, Progress) and event.task == "scans":
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        predict([tiny_model()], find_scans([tmp_path / "in"], 1), tmp_path / "out", settings=PLAIN, workers=2, report=stop)
    assert not multiprocessing.active_children()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert len([name for name in left if name.endswith(".nii.gz")]) == 1
    assert not [name for name in left if ".part" in name]


class Slow:
    """A segmenter whose steps wait for each other: nothing of it passes unless reading and writing overlap with segmenting."""

    def __init__(self, segmenter, fail=()):
        self.segmenter, self.fail = segmenter, fail
        self.next_prepared, self.computing = threading.Event(), 0

    def prepare(self, files, report):
        name = files[0].name.removesuffix(".nii.gz")
        if name == "1":
            self.next_prepared.set()
        if f"read {name}" in self.fail:
            raise VolumeError(f"{files[0]}: cannot be read")
        return self.segmenter.prepare(files, report)

    def segment(self, ready, report, *, probabilities=None):
        self.computing += 1
        assert self.computing == 1, "two at a time"
        assert self.next_prepared.wait(60)
        try:
            return self.segmenter.segment(ready, report, probabilities=probabilities)
        finally:
            self.computing -= 1


@pytest.mark.parametrize("fail", ["", "read 1", "write 1"])
def test_the_next_scan_is_read_while_this_one_is_segmented_and_errors_stay_with_their_scan(segmenter, tmp_path, fail):
    for n in range(3):
        scan(tmp_path / "in" / f"{n}.nii.gz", seed=n)
    slow = Slow(segmenter, (fail,))
    desk = Desk(lambda report: slow, abreast=True)
    made_of = making([segmenter.model.path], Settings(), False)
    parts = [tmp_path / ("none" if fail == f"write {n}" else ".") / f".{n}.part.nii.gz" for n in range(3)]
    (tmp_path / "none").write_text("a file where a folder should be")
    units = [
        Unit(found, (tmp_path / f"{found.name}.nii.gz",), (part,), made_of, None, False)
        for found, part in zip(find_scans([tmp_path / "in"], 1), parts, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        outcomes = [unit.outcome for unit in pool.map(lambda unit: do_scan(desk, unit, lambda event: None), units)]
    assert [bool(outcome.error) for outcome in outcomes] == [False, bool(fail), False]
    if fail:
        assert "1.nii.gz" in outcomes[1].error
    assert [part.exists() for part in parts] == [True, not fail, True]
