"""Folders of predictions and references, what is written, and the command line."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import run, scan

from uxnet.cli.evaluate import run as evaluate
from uxnet.errors import Cancelled, DatasetError, InputError, LabelsError, UsageError
from uxnet.evaluation import (
    bootstrap_mean,
    evaluate_files,
    evaluate_pairs,
    find_pairs,
    labels_from_values,
    read_labels_file,
    write_evaluation,
    write_evaluation_csv,
)
from uxnet.events import Note, Progress, Warn
from uxnet.geometry import Geometry
from uxnet.io import read_labels, write_image, write_json, write_labels
from uxnet.labels import Label, Labels
from uxnet.model.file import read_model, read_weights, write_model
from uxnet.volume import Volume

SHAPE = (10, 12, 8)
LABELS = Labels((Label("kidney", 1), Label("cyst", 2)))


def save(path, array, origin=0.0, write=write_labels):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 3] = origin
    write(path, Volume(array[None], Geometry(array.shape, affine)))
    return path


def kidney(start=2, cyst=True):
    array = np.zeros(SHAPE, np.uint8)
    array[start : start + 4, 2:8, 2:6] = 1
    if cyst:
        array[start + 1, 3:5, 3:5] = 2
    return array


@pytest.fixture
def folders(tmp_path):
    """Three good cases; of a fourth one and fifth one the cyst is missed and made up."""
    predicted, reference = tmp_path / "pred", tmp_path / "data" / "labelsTs"
    write_json(tmp_path / "data" / "dataset.json", {"labels": {"background": 0, "kidney": 1, "cyst": 2}})
    for name, has, says in [("a", (2, True), (2, True)), ("b", (2, True), (3, True)), ("c", (3, False), (3, False))]:
        save(reference / f"{name}.nii.gz", kidney(*has))
        save(predicted / f"{name}.nii.gz", kidney(*says))
    save(reference / "d.nii.gz", kidney(2, True))
    save(predicted / "d.nii", kidney(2, False))
    save(reference / "e.nii.gz", kidney(2, False))
    save(predicted / "e.nii.gz", kidney(2, True))
    return predicted, reference


def with_provenance(model, path, provenance):
    """A copy of a model that came from elsewhere."""
    given = read_model(model)
    write_model(path, [read_weights(given)], recipe=given.recipe, labels=given.labels, channels=given.channels, provenance=provenance)


def collect(events):
    return lambda event: events.append(event)


# -- the whole -------------------------------------------------------------------------------------------------------------


def test_a_cohort(folders):
    events = []
    evaluation = evaluate_files(*folders, report=collect(events))
    assert [case.name for case in evaluation.cases] == ["a", "b", "c", "d", "e"]
    assert evaluation.failures == ()
    kidneys, cysts = evaluation.classes()
    assert (kidneys.name, kidneys.found, kidneys.dice.n) == ("kidney", 5, 5)
    assert (cysts.found, cysts.missed, cysts.false_positives, cysts.absent) == (2, 1, 1, 1)
    # The made-up cyst (e) counts in Dice, not in HD95; the absent one (c) in neither.
    assert (cysts.dice.n, cysts.nsd.n, cysts.hd95_mm.n) == (4, 4, 3)
    by_name = {case.name: case for case in evaluation.cases}
    assert by_name["c"].mean("dice") == 1
    assert by_name["d"].classes[1].hd95_mm == pytest.approx(np.sqrt(10**2 + 12**2 + 16**2))
    assert by_name["e"].mean("hd95_mm") == by_name["e"].classes[0].hd95_mm
    overall = evaluation.overall()
    assert overall.dice.interval == bootstrap_mean([case.mean("dice") for case in evaluation.cases])
    assert overall.dice.interval.low < overall.dice.interval.mean < overall.dice.interval.high
    assert (overall.missed, overall.false_positives) == (1, 1)
    assert [e.done for e in events if isinstance(e, Progress)] == [1, 2, 3, 4, 5]
    assert any(isinstance(e, Note) and "dataset.json" in e.message for e in events)


def test_a_reference_whose_header_contradicts_itself_is_warned_of(folders):
    path, events = folders[1] / "a.nii.gz", []
    reference = nib.load(path)
    reference.header["pixdim"][3] = 3.0
    nib.save(reference, path)
    evaluate_files(*folders, report=events.append)
    (warning,) = [event.message for event in events if isinstance(event, Warn)]
    assert warning.startswith(f"{path}: its header contradicts itself (voxels of 1 x 1 x 2 mm by the sform, 1 x 1 x 3 mm by pixdim)")


def test_empty_counts_as_one(folders):
    evaluation = evaluate_files(*folders, empty="one")
    cysts = evaluation.classes()[1]
    assert cysts.dice.n == cysts.hd95_mm.n == cysts.nsd.n == 5
    c = next(case for case in evaluation.cases if case.name == "c")
    assert (c.classes[1].dice, c.classes[1].hd95_mm, c.classes[1].nsd) == (1, 0, 1)


def test_a_class_that_no_reference_shows_has_no_score_and_its_false_positives_are_counted(folders):
    predicted, reference = folders[0] / "e.nii.gz", folders[1] / "e.nii.gz"
    events = []
    evaluation = evaluate_files(predicted, reference, labels=folders[1].parent / "dataset.json", report=events.append)
    kidneys, cysts = evaluation.classes()
    assert (cysts.dice.n, cysts.dice.interval.mean, cysts.nsd.n, cysts.false_positives) == (0, None, 0, 1)
    assert evaluation.overall().dice.interval.mean == kidneys.dice.interval.mean == evaluation.cases[0].mean("dice")
    assert any(isinstance(e, Warn) and "cyst: no reference shows it" in e.message and "in 1 case" in e.message for e in events)
    # Who says that absence counts wants it scored: found falsely it is wrong, in HD95, too.
    cysts = evaluate_files(predicted, reference, empty="one").classes()[1]
    assert (cysts.dice.interval.mean, cysts.hd95_mm.n) == (0, 1)


def test_worst_cases(folders):
    evaluation = evaluate_files(*folders)
    worst = evaluation.worst(2)
    scores = sorted(case.mean("dice") for case in evaluation.cases)
    assert [case.mean("dice") for case in worst] == scores[:2]


def test_bad_cases_are_named_and_the_rest_goes_on(folders):
    predicted, reference = folders
    (predicted / "a.nii.gz").write_bytes(b"not an image")
    (predicted / "b.nii.gz").unlink()
    save(predicted / "c.nii.gz", kidney(3, False), origin=5)
    save(predicted / "d.nii", kidney().astype(np.float32) + 0.25, write=write_image)
    save(predicted / "e.nii.gz", kidney() * 3)
    save(predicted / "f.nii.gz", kidney())
    save(predicted / "g.nii.gz", kidney().astype(np.float32), write=write_image)
    save(reference / "g.nii.gz", kidney())
    save(predicted / "h.nii.gz", kidney())
    save(predicted / "h.nii", kidney())
    save(reference / "h.nii.gz", kidney())
    events = []
    evaluation = evaluate_files(*folders, report=collect(events))
    messages = {failure.name: failure.message for failure in evaluation.failures}
    assert list(messages) == ["a", "b", "c", "d", "e", "h"]
    for name, words in {
        "a": "cannot be read",
        "b": "no prediction",
        "c": "its grid",
        "d": "no whole numbers",
        "e": "the values 3, 6 are no labels",
        "h": "same case",
    }.items():
        assert words in messages[name]
        assert f"{name}.nii" in messages[name]
    # A label map stored as floating-point numbers is still one.
    assert [case.name for case in evaluation.cases] == ["g"]
    assert evaluation.cases[0].mean("dice") == 1
    assert [path.name for path in evaluation.unused] == ["f.nii.gz"]
    assert any(isinstance(e, Warn) and "f.nii.gz" in e.message for e in events)


def test_nothing_evaluated_still_has_a_summary(folders):
    predicted, reference = folders
    pairs = [("x", predicted / "none.nii", reference / "none.nii")]
    evaluation = evaluate_pairs(pairs, LABELS)
    assert len(evaluation.failures) == 1
    assert [s.dice.n for s in (*evaluation.classes(), evaluation.overall())] == [0, 0, 0]
    json.dumps(evaluation.to_dict(), allow_nan=False)


def test_wrong_settings_and_cancelling_are_no_failures_of_cases(folders):
    with pytest.raises(UsageError, match="tolerance_mm"):
        evaluate_files(*folders, tolerance_mm=-2)

    def stop(event):
        if isinstance(event, Progress):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        evaluate_files(*folders, report=stop)


def test_the_same_files_twice_are_warned_of(folders):
    events = []
    evaluate_files(folders[1], folders[1], report=collect(events))
    assert any(isinstance(e, Warn) and "same files" in e.message for e in events)


# -- pairs and labels ------------------------------------------------------------------------------------------------------


def test_pairs_of_files_and_folders(folders):
    predicted, reference = folders
    assert len(find_pairs(predicted, reference).pairs) == 5
    assert find_pairs(predicted / "d.nii", reference / "a.nii.gz").pairs == (("a", predicted / "d.nii", reference / "a.nii.gz"),)
    for found in (find_pairs(predicted / "d.nii", reference), find_pairs(predicted, reference / "d.nii.gz")):
        assert found.pairs == (("d", predicted / "d.nii", reference / "d.nii.gz"),)
        assert not found.failures
        assert not found.unused


def test_paths_that_lead_nowhere(folders, tmp_path):
    predicted, reference = folders
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such file or folder"):
        find_pairs(predicted / "nowhere", reference)
    with pytest.raises(InputError, match="no NIfTI file"):
        find_pairs(tmp_path / "empty", reference)
    (reference / "a.nii.gz").rename(tmp_path / "lone.nii.gz")
    for pair in ((tmp_path / "lone.nii.gz", reference), (predicted, tmp_path / "lone.nii.gz")):
        with pytest.raises(InputError, match="lone"):
            find_pairs(*pair)


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ("{}", "{}_seg", "rename the references: without '_seg' the names match"),
        ("sub-{}_pred", "sub-{}", "rename the predictions: without '_pred' the names match"),
        ("{}", "lab_{}", "rename the references: without 'lab_' the names match"),
        ("{}_a", "{}_b", "a prediction and its reference need the same name"),
    ],
)
def test_names_that_do_not_match_are_shown_from_both_sides(tmp_path, ours, theirs, says):
    for folder, name in (("pred", ours), ("ref", theirs)):
        for case in ("c0", "c1", "c2", "c3"):
            save(tmp_path / folder / f"{name.format(case)}.nii.gz", kidney())
    for only_predicted in (False, True):
        with pytest.raises(InputError) as refused:
            find_pairs(tmp_path / "pred", tmp_path / "ref", only_predicted=only_predicted)
        assert all(
            f"{name.format('c0')}, {name.format('c1')}, {name.format('c2')} and 1 more" in str(refused.value) for name in (ours, theirs)
        )
        assert str(refused.value).endswith(says)


def test_predictions_of_some_references(folders, tmp_path, capsys):
    """Of one fold, or of whatever was predicted so far: the others are told in one line, and are no failures where that is said."""
    predicted, reference = folders
    for name in ("a.nii.gz", "c.nii.gz", "d.nii"):
        (predicted / name).unlink()
    assert run("evaluate", *folders) == 1
    shown = capsys.readouterr().out
    assert "3 of 5 references have no prediction: a, c, d\n" in shown
    assert shown.count("failed:") == 1
    assert run("evaluate", *folders, "--only-predicted", "-o", tmp_path / "m.json") == 0
    assert "2 of 2 cases evaluated; 3 references without a prediction left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "m.json").read_text())["references_left_out"] == ["a", "c", "d"]
    folds = [
        {"train": ["a"], "validation": ["d"], "test": ["b", "e"]},
        {"train": ["a"], "validation": ["b", "c"]},
        {"train": ["a"], "validation": ["x", "e"]},
    ]
    write_json(tmp_path / "split.json", {"folds": folds})
    split = ["--split", tmp_path / "split.json"]
    assert run("evaluate", *folders, "--fold", 0, *split) == 0
    assert "2 of 2 cases evaluated" in capsys.readouterr().out
    for fold, says in ((1, "c.nii.gz: there is no prediction for this reference"), (2, "x: there is neither a prediction in")):
        assert run("evaluate", *folders, "--fold", fold, *split) == 1
        assert says in capsys.readouterr().out.replace("\n", "")
        assert run("evaluate", *folders, "--fold", fold, *split, "--only-predicted") == 0
        assert "1 of 1 case evaluated; 1 reference without" in capsys.readouterr().out
    for wrong in (["--fold", 0], split, ["--fold", 3, *split]):
        assert run("evaluate", *folders, *wrong) == 2
    assert run("evaluate", predicted / "b.nii.gz", reference, "--fold", 0, *split) == 2


def test_images_of_other_formats_are_never_passed_over(folders):
    predicted, reference = folders
    (predicted / "b.nii.gz").rename(predicted / "b.nrrd")
    (reference / "c.nii.gz").rename(reference / "c.nii.bz2")
    (reference / "overview.tif").write_bytes(b"")
    (reference / "d.nii").mkdir()
    save(predicted / "x.nii.gz", kidney())
    for part in ("x.hdr", "x.img"):
        (reference / part).write_bytes(b"")
    events = []
    evaluation = evaluate_files(*folders, report=events.append)
    assert [case.name for case in evaluation.cases] == ["a", "d", "e"]
    messages = {failure.name: failure.message for failure in evaluation.failures}
    assert list(messages) == ["b", "c", "x"]
    for name, words in {"b": "b.nrrd (NRRD)", "c": "c.nii.bz2 (compressed NIfTI)", "x": "x.hdr (NIfTI or Analyze pair), x.img"}.items():
        assert words in messages[name]
    warned = [event.message for event in events if isinstance(event, Warn)]
    assert any("overview.tif (TIFF)" in message for message in warned)
    for path in predicted.iterdir():
        path.rename(path.with_suffix(".mgz"))
    with pytest.raises(InputError, match=r"no NIfTI file .*\.mgz \(FreeSurfer\).* convert them"):
        evaluate_files(*folders)


def test_labels_from_values_where_nothing_says_more(folders, tmp_path):
    (tmp_path / "data" / "dataset.json").unlink()
    events = []
    evaluation = evaluate_files(*folders, report=collect(events))
    assert evaluation.labels.classes == ("label 1", "label 2")
    assert any(isinstance(e, Note) and "values" in e.message for e in events)
    write_json(folders[0] / "labels.json", LABELS.to_dict())
    assert evaluate_files(*folders).labels == LABELS


@pytest.mark.parametrize("place", ["data", "data/labelsTs"])
def test_labels_json_goes_before_dataset_json(folders, tmp_path, place):
    write_json(tmp_path / place / "labels.json", {"labels": {"background": 0, "spleen": 1, "cyst": 2}})
    assert evaluate_files(*folders).labels.classes == ("spleen", "cyst")


def test_predictions_with_other_names_for_the_values_are_refused(folders):
    own = folders[0] / "labels.json"
    for same in ({"Kidney": 1, "label 2": 2, "more": 3}, {"kidney": 1}):
        write_json(own, {"labels": {"background": 0, **same}})
        assert evaluate_files(*folders).labels == LABELS
    write_json(own, {"labels": {"background": 0, "cyst": 1, "kidney": 2}})
    with pytest.raises(LabelsError, match=r"data.dataset\.json: what is 'cyst' there is 'kidney' in .*pred.labels\.json \(2 such"):
        evaluate_files(*folders)
    assert evaluate_files(*folders, labels=own).labels.classes == ("cyst", "kidney")


def test_references_without_labels_say_so(tmp_path):
    with pytest.raises(LabelsError, match="nothing to evaluate"):
        labels_from_values([save(tmp_path / "x.nii", np.zeros(SHAPE, np.uint8)), tmp_path / "missing.nii"])
    with pytest.raises(LabelsError, match=r"no reference can be read.*missing\.nii"):
        labels_from_values([tmp_path / "missing.nii"])


def test_labels_files(tmp_path):
    path = tmp_path / "labels.json"
    write_json(path, LABELS.to_dict())
    assert read_labels_file(path) == LABELS
    write_json(path, {"labels": {"0": "background", "1": "kidney", "2": "cyst"}})
    assert read_labels_file(path) == LABELS
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as some editors save it
    assert read_labels_file(path) == LABELS
    write_json(path, {"labels": {"background": 0, "kidney": 1, "whole": "x"}})
    with pytest.raises(LabelsError, match=r"labels\.json"):
        read_labels_file(path)
    for text in ("{", "[1]"):
        path.write_text(text)
        with pytest.raises(DatasetError, match=r"labels\.json"):
            read_labels_file(path)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_labels_file(tmp_path / "missing.json")


# -- what is written -------------------------------------------------------------------------------------------------------


def test_json_and_csv(folders, tmp_path):
    (folders[0] / "b.nii.gz").unlink()
    evaluation = evaluate_files(*folders, tolerance_mm=1.5)
    write_evaluation(tmp_path / "out" / "m.json", evaluation)
    data = json.loads((tmp_path / "out" / "m.json").read_text())
    assert data["settings"] == {"tolerance_mm": 1.5, "empty": "skip", "confidence": 0.95, "resamples": 2000, "seed": 0}
    assert (data["n_cases"], data["n_failures"]) == (4, 1)
    assert data["failures"][0]["case"] == "b"
    assert list(data["classes"]) == ["kidney", "cyst"]
    assert data["classes"]["cyst"]["missed"] == 1
    assert data["mean"]["dice"]["n"] == 4
    case = next(c for c in data["cases"] if c["case"] == "c")
    assert case["classes"]["cyst"] == {
        "dice": None, "hd95_mm": None, "nsd": None, "predicted_ml": 0.0, "reference_ml": 0.0, "outcome": "absent",
    }  # fmt: skip
    assert case["classes"]["kidney"]["reference_ml"] == pytest.approx(96 * 2 / 1000)

    write_evaluation_csv(tmp_path / "m.csv", evaluation)
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 + 1
    assert [r["case"] for r in rows if r["outcome"] == "failed"] == ["b"]
    row = next(r for r in rows if (r["case"], r["class"]) == ("d", "cyst"))
    assert (row["dice"], row["nsd"], row["outcome"]) == ("0.0", "0.0", "missed")
    assert float(row["hd95_mm"]) == data["cases"][2]["classes"]["cyst"]["hd95_mm"]
    assert next(r for r in rows if (r["case"], r["class"]) == ("c", "cyst"))["dice"] == ""


def test_the_same_files_give_the_same_bytes(folders, tmp_path):
    for name in ("1.json", "2.json"):
        write_evaluation(tmp_path / name, evaluate_files(*folders))
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_cases_that_the_model_was_trained_on_are_counted(folders, tiny_model, tmp_path):
    """A model of the dataset Tiny, trained on its case a."""

    def warnings():
        events = []
        evaluate_files(*folders, report=collect(events))
        return [event.message for event in events if isinstance(event, Warn)]

    assert warnings() == []
    write_json(folders[0] / "predict.json", {"models": [{"file": str(tiny_model())}, {"file": "gone.uxnet"}, {}]})
    assert warnings() == []  # whose cases these are is not said, but by the folder's name
    description = tmp_path / "data" / "dataset.json"
    write_json(description, json.loads(description.read_text()) | {"name": "Tiny"})
    (warning,) = warnings()
    assert "was trained on 1 of these 5 cases (a): their scores do not say how good it is on others" in warning
    write_json(folders[0] / "predict.json", {"models": "none"})
    assert warnings() == []


def test_cases_of_the_training_are_known_wherever_evaluate_is_called_and_whatever_they_are_called(tiny_model, tmp_path, monkeypatch):
    """The model lies at a relative path, is moved, and is gone: what it has seen stands in predict.json, or in the file of its content."""
    labels = Labels((Label("bright", 1), Label("dark", 300)))
    for name, value in (("a", 1), ("b", 300)):
        scan(tmp_path / "lab" / "scans" / f"{name}.nii.gz", (12, 12, 12))
        array = np.zeros((1, 12, 12, 12), np.uint16)
        array[0, :4, :4, :4] = value
        geometry = Geometry((12, 12, 12), np.diag([-1.5, 1, 2, 1]))
        write_labels(tmp_path / "refs" / "labelsTr" / f"{name}.nii.gz", Volume(array, geometry))
    write_json(tmp_path / "refs" / "dataset.json", labels.to_dict() | {"name": "Tiny"})
    model = tmp_path / "lab" / "models" / "mine.uxnet"
    digest = read_labels(tmp_path / "refs" / "labelsTr" / "b.nii.gz").sha256()
    model.parent.mkdir()
    with_provenance(tiny_model(), model, {"dataset": {"name": "Tiny"}, "split": {"train": ["a"]}, "train_label_maps": [digest[:16]]})
    monkeypatch.chdir(tmp_path / "lab")
    assert run("predict", "models/mine.uxnet", "scans", "-o", "out", "--threads", "1") == 0
    monkeypatch.chdir(tmp_path)

    def seen(predicted="lab/out", reference="refs/labelsTr"):
        events = []
        evaluation = evaluate_files(Path(predicted), Path(reference), report=events.append)
        warned = [event.message for event in events if isinstance(event, Warn) and "was trained on" in event.message]
        assert all(f"mine.uxnet was trained on {len(evaluation.seen)} of these 2 cases" in message for message in warned)
        assert len(warned) == bool(evaluation.seen)
        return evaluation.seen

    assert seen() == ("a", "b")  # a by its name, b by its label map
    told = json.loads((tmp_path / "lab" / "out" / "predict.json").read_text())
    del told["models"][0]["seen"]  # as earlier versions wrote it
    write_json(tmp_path / "lab" / "out" / "predict.json", told)
    assert seen() == ("a", "b")
    other = tmp_path / "lab" / "models" / "other.uxnet"
    model.rename(other)
    assert seen() == ()
    with_provenance(other, model, {"dataset": {"name": "Tiny"}, "split": {"train": ["a"]}})
    assert seen() == ()  # another model where it was
    for strange in (
        5,
        [5],
        [{"file": 5}, {"file": "x", "sha256": [1]}],
        [{"file": "x\0", "sha256": 7}],
        [{"file": "y" * 300, "sha256": "0", "seen": {}}],
        [{"file": "z", "seen": [{"cases": 3}]}],
    ):
        write_json(tmp_path / "lab" / "out" / "predict.json", told | {"models": strange})
        assert seen() == ()


def test_a_narrow_terminal_keeps_the_names_of_classes(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    evaluate(*folders)
    shown = capsys.readouterr().out
    assert "kidney" in shown
    assert "cyst" in shown


# -- the command line ------------------------------------------------------------------------------------------------------


def test_command_line_good(folders, tmp_path, capsys):
    assert evaluate(*folders, output=tmp_path / "metrics.json") == 0
    shown = capsys.readouterr()
    for word in ("kidney", "cyst", "mean", "lowest mean Dice", "5 of 5 cases"):
        assert word in shown.out
    assert (tmp_path / "metrics.json").is_file()
    assert (tmp_path / "metrics.csv").is_file()


def test_command_line_with_a_missing_prediction(folders, tmp_path, capsys):
    (folders[0] / "b.nii.gz").unlink()
    assert evaluate(*folders, csv=tmp_path / "rows.csv") == 1
    shown = capsys.readouterr().out
    assert "b.nii.gz: there is no prediction" in shown
    assert "4 of 5 cases evaluated, 1 failed" in shown
    assert (tmp_path / "rows.csv").is_file()


def test_command_line_parses(folders, tmp_path):
    tyro = pytest.importorskip("tyro")
    args = [*map(str, folders), "-o", str(tmp_path / "m.json"), "--tolerance-mm", "2", "--empty", "one"]
    assert tyro.cli(evaluate, args=args) == 0
    assert json.loads((tmp_path / "m.json").read_text())["settings"]["empty"] == "one"


def test_command_line_refuses_outputs_before_it_works(folders, tmp_path):
    with pytest.raises(InputError, match="folder"):
        evaluate(*folders, output=tmp_path)
    labels, others = tmp_path / "classes.json", tmp_path / "cases.csv"
    labels.write_text("{}")
    others.write_text("case,age\n")
    for output, more, says in (
        ("metrics.csv", {}, "named .json"),
        ("a.nii.gz", {}, "named .json"),
        ("run.v1", {}, "name it run.v1.json"),
        ("dataset.json", {}, "describes a folder"),
        ("classes.json", {"labels": labels}, "it is read"),
        ("cases.json", {}, "cases.csv: is another file"),
    ):
        with pytest.raises(UsageError, match=says):
            evaluate(*folders, output=tmp_path / output, **more)
    assert (labels.read_text(), others.read_text()) == ("{}", "case,age\n")
    # Its own table is replaced with its own file.
    for _ in range(2):
        assert evaluate(*folders, output=tmp_path / "metrics.json") == 0
    assert evaluate(*folders, output=tmp_path / "cases.json", csv=tmp_path / "rows.csv") == 0


# -- real data -------------------------------------------------------------------------------------------------------------


def test_real_references_agree_with_themselves(data_dir, tmp_path):
    source = data_dir / "hippocampus" / "labelsTr"
    if not source.is_dir():
        pytest.skip("hippocampus is not in the data folder")
    files = sorted(source.glob("*.nii.gz"))[:3]
    evaluation = evaluate_pairs([(f.name, f, f) for f in files], read_labels_file(source.parent / "dataset.json"))
    assert evaluation.overall().dice.interval == (1, 1, 1)
