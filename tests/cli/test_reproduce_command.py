"""`uxnet reproduce`, from its arguments to its files."""

import numpy as np
import pytest
from commands import run
from made_records import made_record, made_trial, write_records

from uxnet.dataset.manifest import read_dataset
from uxnet.io import read_labels, write_labels


@pytest.fixture
def kept(tmp_path, tiny_dataset):
    """A cross-validation of two networks on two folds of the tiny dataset that kept its label maps."""
    manifest, records = read_dataset(tiny_dataset), []
    for name in ("unet", "uxnet"):
        for fold in (0, 1):
            dices = {}
            for case in manifest.cases[2 * fold : 2 * fold + 2]:
                truth = read_labels(case.labels)
                wrong = truth.array.copy()
                wrong[:, :, : 4 if name == "uxnet" else 6] = 0
                dices[case.name] = [0.8, 0.7] if name == "uxnet" else [0.6, 0.5]
                path = tmp_path / f"cv/runs/{name}-fold{fold}/test/{case.name}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_labels(path, truth.with_array(wrong.astype(np.uint8)))
            records.append(made_record(name, fold, dices, classes=("bright", "dark"), dataset="Tiny"))
    return write_records(tmp_path / "cv", records)


def test_no_records_are_a_table_that_says_so(capsys, tmp_path):
    assert run("reproduce", "table2", "-o", tmp_path) == 0
    out = capsys.readouterr().out
    assert "not run" in out
    assert "nothing of ours was run" in " ".join(out.split())
    assert {p.name for p in tmp_path.iterdir()} == {"table2.md", "table2.csv", "table2.tex"}


@pytest.mark.parametrize("columns", [60, 200])
def test_a_table_fits_the_terminal(capsys, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    made_trial(tmp_path / "cv", {"unet": 0.8, "uxnet": 0.9})
    assert run("reproduce", "table1", "--records", tmp_path / "cv") == 0
    out = capsys.readouterr().out
    assert " ".join(out.split()).count("Hippocampus, Dice (not a dataset of the paper)") == 1  # of however many pieces
    assert max(map(len, out.splitlines())) <= columns
    for words in ("639.4 [d]", "0.934* [i]", "577.53"):
        assert words in out
    assert list(tmp_path.iterdir()) == [tmp_path / "cv"]


def test_figure_4_shows_the_label_maps_that_were_kept(capsys, tmp_path, kept, tiny_dataset):
    assert (
        run("reproduce", "figure4", "--records", kept, "--dataset", tiny_dataset, "--rows", 2, "--note", "Mine.", "-o", tmp_path / "out")
        == 0
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"figure4.png", "figure4.svg"}
    text = (tmp_path / "out/figure4.svg").read_text(encoding="utf-8")
    for words in ("ground truth", "3D U-Net", "3D UX-Net", "Dice 0.750", "Dice 0.550", "case_00", "case_03", "Mine.", "R"):
        assert f"<!-- {words} -->" in text or words in text
    assert "A: uxnet is uxnet (size = narrow)." in capsys.readouterr().out


def test_figure_4_of_cases_by_name_and_of_label_maps_that_are_gone(capsys, tmp_path, kept, tiny_dataset):
    (kept / "runs/unet-fold1/test/case_02.nii.gz").unlink()
    arguments = ["reproduce", "figure4", "--records", kept, "--dataset", tiny_dataset, "-o", tmp_path / "out"]
    assert run(*arguments, "--cases", "case_02") == 0
    assert "<!-- not run -->" in (tmp_path / "out/figure4.svg").read_text(encoding="utf-8")
    assert run(*arguments, "--cases", "case_09") == 1
    assert "no network has a label map" in capsys.readouterr().err
    for path in kept.glob("runs/*/test/*"):
        path.unlink()
    assert run(*arguments) == 1
    assert "--keep-labels" in capsys.readouterr().err


def test_figure_3(tmp_path, kept):
    assert run("reproduce", "figure3", "--records", kept, "--over", "seconds", "--band", "interval", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out/figure3.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["figure3"], 2, "which folder"),
        (["figure3", "-o", "OUT"], 1, "needs records"),
        (["figure4", "-o", "OUT"], 2, "by --dataset"),
        (["figure4", "--rows", "0", "-o", "OUT"], 2, "at least 1"),
        (["table1", "--records", "NONE"], 1, "no such file"),
        (["table4", "--records", "NONE"], 2, "table4 does not use --records; it is for table1, table2, table3, figure3, figure4, transfer"),
        (["figure4", "--over", "seconds", "-o", "OUT"], 2, "figure4 does not use --over; it is for figure3"),
        (["table1", "--note", "mine"], 2, "table1 does not use --note; it is for figure3, figure4, transfer"),
        (["table5", "--feta", "NONE"], 2, "table5 does not use --feta"),
        (["table5", "--dataset", "NONE"], 1, "NONE"),
    ],
)
def test_what_cannot_be_made_is_one_line(capsys, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    assert run("reproduce", *arguments) == code
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_figure_4_refuses_another_dataset(capsys, tmp_path, tiny_dataset):
    made_trial(tmp_path / "cv", {"uxnet": 0.9})
    assert run("reproduce", "figure4", "--records", tmp_path / "cv", "--dataset", tiny_dataset, "-o", tmp_path / "out") == 1
    assert "the records are of A: Hippocampus" in capsys.readouterr().err
