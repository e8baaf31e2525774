import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from commands import run, scan

from uxnet.cli.predict import show
from uxnet.cohort.unit import Outcome
from uxnet.events import Progress
from uxnet.inference.settings import Settings


@pytest.fixture
def asked(monkeypatch):
    """What the command line hands to `predict`, which does nothing: a list of its calls, positional arguments last."""
    calls = []

    def predict(models, scans, out, **keywords):
        calls.append({**keywords, "models": models, "scans": scans, "out": out})
        return []

    monkeypatch.setattr("uxnet.cohort.run.predict", predict)
    return calls


def test_predict_then_evaluate(capsys, tmp_path, tiny_model):
    folder = tmp_path / "in [1]"
    for n in range(2):
        scan(folder / f"case {n}.nii.gz", seed=n)
    (folder / "broken.nii.gz").write_bytes(b"nothing")
    out = tmp_path / "out [b]"
    command = ["predict", tiny_model(), folder, "-o", out, "--device", "cpu", "--precision", "float32"]
    assert run(*command) == 1
    said = capsys.readouterr()
    assert f"2 of 3 scans segmented into {out}" in said.out
    assert (said.out.count("broken"), said.err.count("failed: ")) == (1, 1)  # a row of the table; and why, once
    assert "broken.nii.gz: " in said.err
    names = {"case 0.nii.gz", "case 1.nii.gz", "labels.json", "predict.json", "predict.jsonl"}
    assert {p.name for p in out.iterdir()} == names
    # A second time nothing is done twice, nor by a shard or in this process.
    before = {name: (out / name).stat().st_mtime_ns for name in names if name.endswith(".nii.gz")}
    (folder / "broken.nii.gz").unlink()
    for more in ([], ["--workers", "0"], ["--shard", "1/1"]):
        assert run(*command, *more) == 0
        said = capsys.readouterr()
        assert "2 of 2 scans segmented" in said.out
        assert "2 of them were done already" in said.out
        assert "2 of 2 were done already" in said.err
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    # With another setting it is refused, unless asked for.
    other = ["predict", tiny_model(), folder / "case 0.nii.gz", "-o", out, "--device", "cpu", "--precision", "float32", "--overlap", "0.25"]
    assert run(*other) == 1
    said = capsys.readouterr().err
    assert "case 0.nii.gz: exists already, and it was made with overlap by the recipe, not 0.25" in said
    assert "--overwrite" in said
    assert run(*other, "--overwrite") == 0
    capsys.readouterr()
    # What it wrote is what `evaluate` reads, the names of the classes with it.
    assert run("evaluate", out / "case 0.nii.gz", out / "case 0.nii.gz", "--labels", out / "labels.json", "-o", tmp_path / "m.json") == 0
    assert "bright" in capsys.readouterr().out


def test_predict_with_a_manifest(capsys, tmp_path, tiny_model):
    scan(tmp_path / "t1.nii.gz", seed=1)
    scan(tmp_path / "t2.nii.gz", seed=2)
    (tmp_path / "scans.json").write_text(json.dumps({"patient 1": ["t1.nii.gz", "t2.nii.gz"]}))
    assert run("predict", tiny_model(2), tmp_path / "scans.json", "-o", tmp_path / "out") == 0
    assert (tmp_path / "out" / "patient 1.nii.gz").is_file()
    scan(tmp_path / "p_0000.nii.gz")
    assert run("predict", tiny_model(2), tmp_path / "p_0000.nii.gz", "-o", tmp_path / "other") == 1
    said = capsys.readouterr()
    assert "channel 0001 of the scan p is missing" in said.err
    assert "0 of 1 scan segmented" in said.out


def test_every_flag_reaches_the_prediction(asked, tmp_path, tiny_model):
    path, other = scan(tmp_path / "a.nii.gz"), tmp_path / "fold 2.uxnet"
    other.write_bytes(tiny_model().read_bytes())
    assert run("predict", tiny_model(), path, other, "-o", tmp_path / "out") == 0
    call = asked.pop()
    assert call["models"] == [tiny_model(), other]
    assert [s.files for s in call["scans"]] == [(path,)]
    assert call["out"] == tmp_path / "out"
    assert call["settings"] == Settings()
    assert {k: call[k] for k in ("workers", "part", "cluster", "probabilities", "overwrite")} == {
        "workers": None,
        "part": None,
        "cluster": None,
        "probabilities": False,
        "overwrite": False,
    }
    given = "--device cuda:1 --engine torch --precision int8 --threads 3 --workers 2 --shard 2/7 --ray local --overlap 0.25 --mirror kj"
    given += " --largest dark --largest bright --probabilities --memory-limit 1.5GiB --no-skip-air --overwrite"
    assert run("predict", tiny_model(), path, "-o", tmp_path / "out", *given.split(), "--cache", tmp_path) == 0
    call = asked.pop()
    assert call["settings"] == Settings(
        device="cuda:1",
        engine="torch",
        precision="int8",
        threads=3,
        cache=tmp_path,
        overlap=0.25,
        mirror=(False, True, True),
        largest=("bright", "dark"),
        skip_air=False,
        memory_limit=3 * 2**29,
    )
    assert (call["workers"], call["part"], call["cluster"], call["probabilities"], call["overwrite"]) == (2, "2/7", "local", True, True)


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ("--mirror none", "mirror", (False, False, False)),
        ("--mirror recipe", "mirror", (False, True, False)),  # as the tiny recipe trains
        ("--mirror ijk", "mirror", (True, True, True)),
        ("--largest all", "largest", ("bright", "dark")),
        ("--skip-air", "skip_air", True),
        ("--memory-limit 512MB", "memory_limit", 512_000_000),
    ],
)
def test_words_for_settings(asked, tmp_path, tiny_model, given, name, value):
    assert run("predict", tiny_model(), scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "out", *given.split()) == 0
    assert getattr(asked.pop()["settings"], name) == value


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        ("{scan}", 2, "no model: name at least one .uxnet file"),
        ("{model}", 2, "no input: name at least one file or folder"),
        ("{model} {tmp}/none.uxnet {scan}", 1, "none.uxnet: there is no such model file"),
        ("{model} {two} {scan}", 1, "2.uxnet: "),
        ("{model} {scan} --mirror left", 2, "--mirror 'left': give none, recipe, or letters of i, j and k"),
        ("{model} {scan} --mirror ii", 2, "--mirror 'ii'"),
        ("{model} {scan} --largest liver", 2, "--largest 'liver': the model knows no such structure, but bright, dark"),
        ("{model} {scan} --overlap 1", 2, "--overlap 1: "),
        ("{model} {scan} --overlap -0.1", 2, "--overlap -0.1: "),
        ("{model} {scan} --threads -1", 2, "--threads -1: "),
        ("{model} {scan} --workers -1", 2, "--workers -1: "),
        ("{model} {scan} --memory-limit much", 2, "'much' is no amount of memory"),
        ("{model} {scan} --shard 5/4", 2, "'5/4' is no shard"),
        ("{model} {scan} --skip-air --no-skip-air", 2, "contradict each other"),
        ("{model} {scan} --skip-air", 1, "skip_air: the recipe has no prepare.crop_above"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(capsys, tmp_path, tiny_model, given, code, words):
    path = scan(tmp_path / "a.nii.gz")
    filled = [part.format(scan=path, model=tiny_model(), two=tiny_model(2), tmp=tmp_path) for part in given.split()]
    assert run("predict", *filled, "-o", tmp_path / "out") == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("uxnet predict: ") == 1
    assert not (tmp_path / "out").exists()


def outcome(n, status="done"):
    figures = {"seconds": 2.0, "peak_memory_mb": 100 + n, "windows": 8, "timings": {"network": 4.0}}
    return Outcome(f"scan [{n}]", (f"{n}.nii",), status, **figures, error=f"{n}.nii: bad [/]" if status == "failed" else "")


def test_a_short_list_is_a_table_and_of_a_long_one_only_failures_are_shown(capsys):
    from rich.console import Console

    mixed = [outcome(0), outcome(1, "already"), outcome(2, "failed")]
    show(Console(width=100), mixed, Path("out"))
    out = capsys.readouterr().out
    for n, status in enumerate(["done", "already", "failed"]):
        (line,) = [line for line in out.splitlines() if f"scan [{n}]" in line]
        assert status in line
        assert "2.00" in line  # windows a second
    assert "2 of 3 scans segmented into out, 1 of them was done already" in out
    show(Console(width=100), [outcome(n) for n in range(40)] + [outcome(40, "failed")], Path("out"))
    out = capsys.readouterr().out
    assert "scan [7]" not in out
    assert "failed: scan [40] (why is said above" in out
    assert "40 of 41 scans segmented into out; 2.0 s a scan, peak memory of a process 139 MB" in out


def test_one_is_no_plural_and_nothing_is_zero(capsys):
    from rich.console import Console

    for status, words in (("done", "1 scan segmented into out\n"), ("already", "1 scan segmented into out, it was done already\n")):
        show(Console(width=100), [outcome(0, status)], Path("out"))
        assert capsys.readouterr().out == words
    show(Console(width=100), [outcome(0, "failed")], Path("out"), left_out=2)
    assert capsys.readouterr().out == "0 of 1 scan segmented into out; left out, since they are not NIfTI: 2\n"
    show(Console(width=100), [replace(outcome(0), windows=0), outcome(1)], Path("out"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "scan [0]" in line]
    assert line.split()[-2:] == ["0", "0.00"]


def test_images_of_other_formats_are_named_and_counted(capsys, tmp_path, tiny_model):
    scan(tmp_path / "in" / "p0.nii.gz")
    scan(tmp_path / "in" / "p1.nii" / "p1.nii")
    for name in ("p2.hdr", "p2.img", "notes.txt", "._p0.nii.gz"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert run("predict", tiny_model(), tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu") == 0
    said = capsys.readouterr()
    assert all(name in said.err for name in ("p1.nii (a folder)", "p2.hdr", "p2.img"))
    assert "notes" not in said.err
    assert "1 scan segmented" in said.out
    assert "not NIfTI: 3" in said.out


@pytest.mark.parametrize("whole", [False, True], ids=["images", "dataset"])
def test_only_the_cases_that_a_fold_holds_out(asked, capsys, tmp_path, tiny_model, tiny_dataset, whole):
    split = tmp_path / "split.json"
    folds = [{"train": ["case_00"], "validation": ["case_03", "case_01"]}, {"train": ["x"], "validation": ["y"], "test": ["case_05"]}]
    split.write_text(json.dumps({"folds": folds}))
    command = ["predict", tiny_model(), tiny_dataset if whole else tiny_dataset / "imagesTr", "-o", tmp_path / "out", "--split", split]
    for fold, names in ((0, ["case_01", "case_03"]), (1, ["case_05"])):
        assert run(*command, "--fold", fold) == 0
        assert sorted(scan.name for scan in asked.pop()["scans"]) == names
    assert "1 case of the fold, of 10 that are there" in capsys.readouterr().err
    assert run(*command, "--fold", "2") == 2
    assert run(*command) == 2
    assert "--fold K and --split FILE go together" in capsys.readouterr().err
    folds[0]["validation"].append("case_99")
    split.write_text(json.dumps({"folds": folds}))
    assert run(*command, "--fold", "0") == 1
    assert "there is no scan of 1 case of the fold: case_99" in capsys.readouterr().err
    assert not asked


def test_who_is_stopped_says_how_far_it_came(capsys, monkeypatch, tmp_path, tiny_model):
    def predict(*_, report, **__):
        report(Progress("scans", 2, 5, {"failed": 1}))
        raise KeyboardInterrupt

    monkeypatch.setattr("uxnet.cohort.run.predict", predict)
    assert run("predict", tiny_model(), scan(tmp_path / "a.nii.gz"), "-o", tmp_path / "out") == 130
    said = capsys.readouterr()
    assert f"stopped: 1 of 5 scans segmented into {tmp_path / 'out'}, 1 failed; the same command" in said.out
    assert said.err.endswith("uxnet predict: interrupted\n")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no such signal here")
def test_sigterm_stops_all_processes_and_leaves_nothing_half_made(tmp_path, tiny_model):
    for n in range(40):
        scan(tmp_path / "in" / f"{n:02d}.nii.gz", seed=n)
    out = tmp_path / "out"
    command = ["predict", tiny_model(), tmp_path / "in", "-o", out, "--device", "cpu", "--workers", "2", "--overlap", "0.9"]
    with subprocess.Popen([sys.executable, "-m", "uxnet", *map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        while not list(out.glob("*.nii.gz")) and process.poll() is None:
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "of 40 scans segmented" in said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are text")
def test_names_that_are_no_text_or_very_long(capsysbinary, tmp_path, tiny_model):
    folder, out = tmp_path / "in", tmp_path / "out"
    odd = os.fsdecode(b"caf\xe9")
    scan(folder / f"{odd}.nii.gz")
    scan(folder / f"{'l' * 247}.nii.gz", seed=1)
    scan(folder / f"{'m' * 242}.nii.gz", seed=2)
    (folder / os.fsdecode(b"bad\xe9.nii.gz")).write_bytes(b"nothing")
    command = ["predict", tiny_model(), folder, "-o", out, "--device", "cpu", "--precision", "float32"]
    assert run(*command) == 1
    said = capsysbinary.readouterr()
    assert b"3 of 4 scans segmented" in said.out
    assert rb"bad\udce9.nii.gz" in said.err
    assert {len(os.fsencode(path.name)) for path in out.glob("*.nii.gz")} == {11, 249, 254}
    (folder / os.fsdecode(b"bad\xe9.nii.gz")).unlink()
    assert run(*command, "--workers", "2") == 0
    assert b"3 of them were done already" in capsysbinary.readouterr().out
    assert odd in {entry["name"] for entry in json.loads((out / "predict.json").read_text())["scans"]}
    # Probabilities have longer names.
    assert run(*command[:-1], "float32", "--probabilities", "-o", tmp_path / "probs") == 1
    said = capsysbinary.readouterr()
    assert b"_probs.nii.gz, would have 5 bytes more than the 255" in said.err
    assert b"2 of 3 scans segmented" in said.out
