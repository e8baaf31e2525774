import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uxnet.errors import Cancelled, InputError, ModelError
from uxnet.events import Note, Progress, Warn
from uxnet.inference.cohort import Scan, find_scans, predict
from uxnet.inference.segmenter import load_model
from uxnet.labels import labels_from_dict

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
    with pytest.raises(InputError, match=rf"channel {missing:04d} of the scan p1 is missing"):
        find_scans([tmp_path], 3)


def test_the_same_channel_twice(tmp_path):
    empty(tmp_path, "p_0000.nii.gz", "p_0000.nii", "p_0001.nii")
    with pytest.raises(InputError, match="the same channel"):
        find_scans([tmp_path], 2)


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
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a b.nii.gz", "c.nii.gz", "labels.json", "predict.json"]
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
    assert sum(isinstance(e, Note) for e in events) == 2
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
    assert len([e for e in events if isinstance(e, Warn)]) == 5
    listed = json.loads((tmp_path / "out" / "predict.json").read_text())["scans"]
    assert [bool(entry["error"]) for entry in listed] == [False, True, True, True, True, True, False]
    assert not [p for p in (tmp_path / "out").iterdir() if ".part" in p.name]


def test_nothing_is_overwritten_unasked(segmenter, tmp_path):
    path = scan(tmp_path / "in" / "a.nii.gz")
    predict(segmenter, find_scans([path], 1), tmp_path / "out")
    output = tmp_path / "out" / "a.nii.gz"
    output.write_bytes(b"precious")
    scans = find_scans([path, scan(tmp_path / "in" / "b.nii.gz")], 1)
    with pytest.raises(InputError, match=r"a\.nii\.gz: exists already.*--overwrite"):
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


def test_cancelling_stops_at_once(segmenter, tmp_path):
    scans = find_scans([scan(tmp_path / "in" / f"{n}.nii.gz", seed=n).parent for n in range(3)][:1], 1)

    def stop(event):
        if isinstance(event, Progress) and event.task == "windows" and (tmp_path / "out" / "0.nii.gz").exists():
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        predict(segmenter, scans, tmp_path / "out", report=stop)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"0.nii.gz", "labels.json"}


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
