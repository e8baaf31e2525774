"""`uxnet crossval` and `uxnet compare` as commands: what they print, write and refuse."""

import csv
import json

import pytest
from commands import run

from uxnet.cli.crossval import _names, _numbers
from uxnet.errors import InputError
from uxnet.evaluation.metrics import METRICS
from uxnet.recipe import recipe_to_toml


@pytest.fixture
def wide(monkeypatch):
    """Tables are not broken."""
    monkeypatch.setenv("COLUMNS", "200")


def metrics(path, dices):
    """A JSON file as `uxnet evaluate` writes it, as far as comparing reads it."""
    cases = [{"case": f"case_{n}", "classes": {"liver": dict.fromkeys(METRICS, d)}} for n, d in enumerate(dices)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": {"tolerance_mm": 1.0, "empty": "skip"}, "classes": {"liver": {}}, "cases": cases}))
    return path


def test_a_cross_validation_of_one_fold(tiny_dataset, tiny_recipe, tmp_path, capsys, wide):
    recipe, out = tmp_path / "tiny.toml", tmp_path / "cv"
    recipe.write_text(recipe_to_toml(tiny_recipe))
    command = ["crossval", tiny_dataset, "--recipe", recipe, "-o", out, "--folds", "2", "--steps", "4", "--device", "cpu", "--jobs", "1"]
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "1 of 1 unit done" in said
    assert "The same for all networks" in " ".join(said.split())
    assert {path.name for path in out.iterdir()} == {"README.md", "cache", "recipe.toml", "records", "runs", "split.json", "summary.json"}
    # Again, nothing is left to do; with another budget, the record that is there is refused.
    assert run(*command) == 0
    assert "1 of 1 unit done, 1 of them before" in capsys.readouterr().out
    command[command.index("4")] = "5"
    assert run(*command) == 1
    assert "its budget is another" in capsys.readouterr().err
    assert run("compare", out) == 1
    assert "comparing needs two networks" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_begins(tiny_dataset, tmp_path, capsys):
    common = ["crossval", tiny_dataset, "--recipe", "phantom", "-o", tmp_path / "cv"]
    for more, code, words in (
        (["--folds", "x"], 2, "--folds 'x'"),
        (["--folds", "5"], 2, "folds 0 to 4"),
        (["--variant", "a=vnet"], 2, "there is no network 'vnet'"),
        (["--tolerance-mm", "-1"], 2, "--tolerance-mm is -1"),
        (["--networks", "unet,unet"], 2, "two networks are called unet"),
        (["--networks", "vnet"], 2, "there is no network 'vnet'"),
        (["--variant", "a=unet:widths"], 2, "is no variant"),
        (["--networks", "unet", "--steps", "5", "--core-seconds", "5"], 2, "not of both"),
        (["--networks", "unet", "--size", "narrow", "--shard", "3/2"], 2, "is no shard"),
        (["--threads", "0"], 2, "at least 1"),
    ):
        assert run(*common, *more, "--device", "cpu", "--jobs", "1") == code
        assert words in capsys.readouterr().err, more
    assert not (tmp_path / "cv").exists()


def test_lists_on_the_command_line():
    assert _names(" uxnet, unet ,") == ["uxnet", "unet"]
    assert len(_names("all")) == 9
    assert _names("") == []
    assert _numbers("") is None
    assert _numbers("0,3") == [0, 3]
    with pytest.raises(InputError):
        _numbers("0-3")


def test_comparing_files_of_evaluate(tmp_path, capsys, wide):
    metrics(tmp_path / "ours" / "metrics.json", [0.8 + n / 1000 for n in range(12)])
    theirs = metrics(tmp_path / "theirs.json", [0.7 + n / 500 for n in range(12)])
    files = [tmp_path / name for name in ("c.md", "c.csv", "c.png")]
    assert run("compare", tmp_path / "ours", theirs, "-o", files[0], "--csv", files[1], "--boxes", files[2]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ours has the highest mean Dice, 0.8055, over 12 cases" in said
    assert "ours wins against every other network" in said
    assert f"written: {files[2]}" in said
    text = files[0].read_text()
    assert text.startswith("# Comparison\n")
    assert "| theirs | Dice | 12 |" in text
    assert {row["network"] for row in csv.DictReader(files[1].open())} == {"ours", "theirs"}
    assert files[2].read_bytes().startswith(b"\x89PNG")


def test_boxes_are_of_the_cases_that_all_networks_have(tmp_path, monkeypatch):
    metrics(tmp_path / "a.json", [0.5, 0.6, 0.7])
    metrics(tmp_path / "b.json", [0.6, 0.7])
    drawn = {}
    monkeypatch.setattr("uxnet.draw.boxes", lambda path, scores, title: drawn.update(scores))
    assert run("compare", tmp_path / "a.json", tmp_path / "b.json", "--boxes", tmp_path / "c.png") == 0
    assert drawn == {"b": [0.6, 0.7], "a": [0.5, 0.6]}


def test_another_network_that_wins_is_said_to(tmp_path, capsys, wide):
    metrics(tmp_path / "a.json", [0.5 + n / 100 for n in range(10)])
    metrics(tmp_path / "b.json", [0.6 + n / 90 for n in range(10)])
    pair = [f"uxnet={tmp_path / 'a.json'}", f"swinunetr={tmp_path / 'b.json'}"]
    assert run("compare", *pair) == 0
    assert "swinunetr wins against uxnet: the difference is significant (p = 0.002)" in " ".join(capsys.readouterr().out.split())
    assert run("compare", *pair, "--against", "swinunetr", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["against"] == "swinunetr"
    assert "In Dice, swinunetr wins against every other network." in data["verdict"]
    (test,) = [t for t in data["tests"] if (t["metric"], t["class_name"]) == ("dice", "mean")]
    assert (test["other"], test["effect"], test["n"]) == ("uxnet", 1.0, 10)


def test_what_cannot_be_compared(tmp_path, capsys):
    one = metrics(tmp_path / "a.json", [0.5])
    for given, code, words in (
        ([], 2, "no runs"),
        ([one], 1, "comparing needs two networks"),
        ([one, tmp_path / "none"], 1, "no such file"),
        ([one, f"b={one}", "--against", "c"], 2, "no network 'c'"),
        ([one, f"b={one}", "--by", "person"], 1, "no record says whose case"),
        ([one, f"b={one}", "--alpha", "2"], 2, "level of significance"),
        ([one, f"b={one}", "-o", tmp_path], 2, f"{tmp_path}: is a folder"),
        ([one, f"b={one}", "-o", one], 2, "is named .md"),
        ([one, f"b={one}", "--csv", tmp_path / "c"], 2, "is named .csv"),
        ([one, f"b={one}", "--boxes", tmp_path / "c.gif"], 2, "is named .png or .svg"),
    ):
        assert run("compare", *given) == code
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
