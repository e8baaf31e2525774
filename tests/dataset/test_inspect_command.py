import json
import subprocess
import sys

import pytest
import tyro
from tiny_datasets import decathlon, label_map, save

from uxnet.cli.inspect import run as inspect
from uxnet.errors import DatasetError, InputError


def run(*args):
    return tyro.cli(inspect, args=[str(arg) for arg in args])


def test_a_sound_dataset(tmp_path, capsys):
    decathlon(tmp_path / "data", ["p1_a", "p1_b", "p2_a"])
    assert run(tmp_path / "data", "-o", tmp_path / "out.json", "--group-by", r"^p\d") == 0
    shown = capsys.readouterr().out
    for text in ("Tiny: 3 cases of 2 persons", "fingerprint", "6x5x4", "1x1x2", "kidney", "0 errors, 0 warnings"):
        assert text in shown
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["persons"], data["errors"]) == (2, 0)


def test_errors_are_listed_and_give_exit_code_1(tmp_path, capsys):
    decathlon(tmp_path, ["a", "b [1]"])
    (tmp_path / "imagesTr/a.nii.gz").unlink()
    save(tmp_path / "labelsTr/b [1].nii.gz", label_map(()))
    assert run(tmp_path) == 1
    shown = capsys.readouterr().out
    for text in ("no such file", "imagesTr/a.nii.gz", "b [1]", "warning", "1 error, 1 warning", "refuses"):
        assert text in shown


def test_what_was_found_is_shown_before_it_is_written(tmp_path, capsys, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("uxnet.io.write_json", full)
    with pytest.raises(OSError, match="No space"):
        run(decathlon(tmp_path, ["a"]), "-o", tmp_path / "out.json")
    shown = capsys.readouterr().out
    assert shown.startswith("Tiny: 1 case, 2 classes; layout: Medical Segmentation Decathlon\n")
    assert "0 errors, 0 warnings in 1 case" in shown
    assert "written" not in shown


def test_a_dataset_of_which_nothing_can_be_read(tmp_path, capsys):
    decathlon(tmp_path, ["a"])
    (tmp_path / "imagesTr/a.nii.gz").unlink()
    assert run(tmp_path) == 1
    assert "fingerprint" not in capsys.readouterr().out


def test_what_is_no_dataset(tmp_path):
    with pytest.raises(DatasetError):
        run(tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        run(decathlon(tmp_path, ["a"]), "-o", tmp_path)
    for name in ("dataset.json", "labelsTr/a.nii.gz"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(InputError, match=r"describes a folder|named \.json"):
            run(tmp_path, "-o", tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_help_speaks_of_every_option(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    shown = capsys.readouterr().out
    for text in ("DATASET", "--output", "--group-by", "--workers", "subjects.json"):
        assert text in shown


def test_no_torch():
    code = "import sys, uxnet.cli.inspect, uxnet.dataset.check, uxnet.dataset.folds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
