"""Cross-validation: two tiny networks on two folds, killed, resumed, shared out, refused."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from made_records import made_record, made_trial, write_records
from place_units import seen

from uxnet.crossval import run as crossval_module
from uxnet.crossval.plan import _with_budget
from uxnet.crossval.run import Budget, Entry, cross_validate, entries_of, with_beginnings
from uxnet.crossval.unit import Place, begin, curve, do_unit, rounded, seconds_a_step
from uxnet.dataset.folds import read_split
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import Cancelled, DatasetError, InputError, ModelError, RecipeError, UsageError, UxnetError
from uxnet.events import Note, Progress, Warn
from uxnet.io import alone
from uxnet.jobs import work
from uxnet.recipe import Prior, recipe_from_dict, recipe_to_dict, recipe_to_toml, with_overrides

STEPS = 16
VARIANTS = ("uxnet=uxnet:widths=[4, 8]:depths=[1,1]:hidden=8:kernel=3:layer_scale=0.5", "plain-unet=unet:widths=[4,8,16]")
ENTRIES = entries_of([], VARIANTS)
TITLES = [f"{e.name}-fold{k}" for k in (0, 1) for e in ENTRIES]
TIMES = ("seconds_training", "seconds_a_step", "peak_memory_mb", "evaluation", "machine")


@pytest.fixture(scope="module")
def recipe(tiny_recipe):
    """The tiny recipe with 16 steps; a step does not depend on when it is done."""
    return with_overrides(tiny_recipe, ["training.validate_every=8"])


def crossval(dataset, recipe, out, **more):
    given = {"entries": ENTRIES, "budget": Budget(steps=STEPS), "folds": (0, 1), "jobs": 2, "device": "cpu"} | more
    return cross_validate(dataset, recipe, out, given.pop("entries"), **given)


@pytest.fixture(scope="module")
def whole(tiny_dataset, recipe, tmp_path_factory):
    """A cross-validation that nothing happened to, and what it said."""
    out, heard = tmp_path_factory.mktemp("whole") / "cv", []
    outcomes = crossval(tiny_dataset, recipe, out, report=heard.append, keep_labels=True)
    assert [(o.name, o.fold, o.status, o.error) for o in outcomes] == [(e.name, k, "done", "") for k in (0, 1) for e in ENTRIES]
    return out, heard


def records(out):
    return {path.stem: json.loads(path.read_text()) for path in sorted((out / "records").iterdir())}


def lasting(record):
    """What must not depend on when and how fast it was made."""
    kept = {key: value for key, value in record.items() if key not in TIMES}
    return kept | {"curve": [{key: v for key, v in point.items() if key != "seconds"} for point in record["curve"]]}


@pytest.fixture
def copied(whole, tmp_path):
    """A finished cross-validation to be damaged."""
    return Path(shutil.copytree(whole[0], tmp_path / "cv"))


# ---- what it leaves


def test_a_record_says_everything(whole, tiny_dataset):
    out, heard = whole
    split = read_split(out / "split.json", read_dataset(tiny_dataset))
    assert split.protocol == "5x80-10-10"
    found = records(out)
    assert set(found) == set(TITLES)
    for title, record in found.items():
        assert [case["case"] for case in record["cases"]] == list(split.folds[record["fold"]].test)
        assert title == f"{record['name']}-fold{record['fold']}"
        assert (record["steps"], record["budget"], record["recipe"], record["threads"]) == (STEPS, {"steps": [STEPS]}, "tiny", 1)
        assert [point["step"] for point in record["curve"]] == [8, 16]
        assert record["seconds_training"] >= record["curve"][-1]["seconds"] > record["curve"][0]["seconds"] > 0
        assert record["peak_memory_mb"] is None or record["peak_memory_mb"] > 50
        assert set(record["cases"][0]["classes"]) == {"bright", "dark"}
        assert {"dice", "hd95_mm", "nsd", "predicted_ml", "reference_ml", "outcome"} == set(record["cases"][0]["classes"]["dark"])
        assert "person" not in record["cases"][0]  # nobody knows whose case it is
        assert "planned_steps" not in record
        text = json.dumps(record)
        assert str(out) not in text
        assert str(tiny_dataset) not in text
        assert rounded(record) == record
        assert len(text) < 10_000
        assert (out / "runs" / title / "test" / f"{record['cases'][0]['case']}.nii.gz").exists()
    for key in ("recipe_sha256", "split_sha256", "dataset_sha256", "patch"):
        assert len({json.dumps(record[key]) for record in found.values()}) == 1
    assert len({record["key"] for record in found.values()}) == 4
    assert {found[t]["parameters"] for t in TITLES[::2]} == {found["uxnet-fold0"]["parameters"]}
    assert {e.task.split()[0] for e in heard if isinstance(e, Progress) and e.task.endswith(" training")} == set(TITLES)


def test_the_summary_says_what_was_equal_and_who_is_best(whole):
    out, _ = whole
    text = (out / "README.md").read_text()
    assert "The same for all networks" in text
    assert "persons kept whole" not in text
    assert "Not complete: folds 0, 1 of 5; missing: plain-unet, uxnet on folds 2, 3, 4." in text
    assert f"The budget of each is {STEPS} steps" in text
    assert "has the highest mean Dice" in text
    assert str(out) not in text
    summary = json.loads((out / "summary.json").read_text())
    assert {n["name"] for n in summary["networks"]} == {"uxnet", "plain-unet"}
    assert summary["comparison"]["against"] == "uxnet"
    assert summary["missing_folds"] == {"uxnet": [2, 3, 4], "plain-unet": [2, 3, 4]}
    assert summary["budget"] == {"steps": [STEPS]}


def test_the_summary_says_what_is_missing_and_what_was_not_the_same(tmp_path):
    from uxnet.crossval.summary import write_summary

    out = made_trial(tmp_path / "cv", {"unet": 0.8, "uxnet": 0.9, "other": 0.7})
    (out / "split.json").write_text(json.dumps({"folds": [{}] * 5}))
    write_summary(out)
    text = (out / "README.md").read_text()
    assert "Not complete" not in text
    assert "is not the same for all" not in text
    (out / "records/unet-fold4.json").unlink()
    (out / "records/other-fold0.json").unlink()
    machine = {"processor": "any", "instructions": [], "gpus": ["H100", "H100"], "device": "cuda:1"}
    changed = made_record("uxnet", 1, {f"case_{n:02d}": 0.9 for n in range(4, 8)}, precision="bfloat16", machine=machine)
    write_records(out, [changed])
    write_summary(out)
    text = (out / "README.md").read_text()
    assert "Not complete: folds 0, 1, 2, 3, 4 of 5; missing: other on fold 0; unet on fold 4." in text
    most = "other; unet; uxnet on folds 0, 2, 3, 4"
    assert f"The precision is not the same for all: float32 ({most}), bfloat16 (uxnet on fold 1)." in text
    assert f"The machine is not the same for all: any, cpu ({most}), any, H100, cuda (uxnet on fold 1)." in text


def test_the_model_is_what_train_alone_gives(whole, tiny_dataset, recipe, tmp_path):
    """A unit is a run like any other: it could have been trained by `uxnet train`."""
    from uxnet.model.file import read_model, read_weights
    from uxnet.recipe import load_recipe
    from uxnet.training.run import train

    out, _ = whole
    alone = train(
        tiny_dataset, load_recipe(out / "runs/uxnet-fold1/recipe.toml"), tmp_path / "run", fold=1, split=out / "split.json", device="cpu"
    )
    ours, theirs = (read_weights(read_model(path)) for path in (alone, out / "runs/uxnet-fold1/model.uxnet"))
    assert all((ours[key] == theirs[key]).all() for key in ours)


# ---- in pieces


def test_what_was_killed_goes_on_and_gives_the_same_records(copied, tiny_dataset, recipe, tmp_path):
    """Of two networks and two folds, one is done. The program is killed with the other in hand, then one of its processes only."""
    out, file, expected = copied, tmp_path / "recipe.toml", records(copied)
    for title in TITLES[2:]:
        shutil.rmtree(out / "runs" / title)
        (out / "records" / f"{title}.json").unlink()
    file.write_text(recipe_to_toml(recipe))
    variants = [word for variant in VARIANTS for word in ("--variant", variant)]
    flags = ["--steps", str(STEPS), "--folds", "0,1", "--jobs", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "uxnet", "crossval", str(tiny_dataset), "--recipe", str(file), "-o", str(out), *variants, *flags]

    def begun():
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def wait_for(process, pattern, known=()):
        until = time.monotonic() + 240
        while not (found := [p for p in out.glob(pattern) if p not in known]):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        return found

    finished = set(out.glob("runs/*-fold0/checkpoints/*"))
    first = begun()
    wait_for(first, "runs/*/checkpoints/last.safetensors", known=finished)
    children = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    first.wait()
    psutil.wait_procs(children, timeout=60)
    assert not any(child.is_running() for child in children)
    assert len(records(out)) < 4

    second = begun()
    wait_for(second, "runs/*-fold1/checkpoints/last.safetensors", known=set(out.glob("runs/*/checkpoints/last.safetensors")))
    workers = [c for c in psutil.Process(second.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    workers[0].send_signal(signal.SIGKILL)
    said, _ = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert "4 of 4 units done" in said
    found = records(out)
    assert {t: lasting(found[t]) for t in TITLES} == {t: lasting(expected[t]) for t in TITLES}
    assert not list(out.glob("runs/*-fold1/test"))


def test_what_is_done_is_not_done_again(copied, tiny_dataset, recipe):
    before = {path: path.read_bytes() for path in (copied / "records").iterdir()}
    shutil.rmtree(copied / "runs")
    shutil.rmtree(copied / "cache")
    (copied / "README.md").unlink()
    heard = []
    outcomes = crossval(tiny_dataset, recipe, copied, report=heard.append)
    assert {o.status for o in outcomes} == {"already"}
    assert {path: path.read_bytes() for path in (copied / "records").iterdir()} == before
    assert any(isinstance(e, Note) and "4 of 4 units were done already" in e.message for e in heard)
    assert (copied / "README.md").exists()
    assert not (copied / "cache").exists()


def test_shards_are_disjoint_and_together_everything(copied, tiny_dataset, recipe):
    parts = [[(o.name, o.fold) for o in crossval(tiny_dataset, recipe, copied, part=f"{n}/3")] for n in (1, 2, 3)]
    assert sorted(unit for part in parts for unit in part) == sorted((e.name, k) for e in ENTRIES for k in (0, 1))
    # Whatever is done already, a part is the same.
    (copied / "records" / f"{TITLES[0]}.json").unlink()
    assert [(o.name, o.fold) for o in crossval(tiny_dataset, recipe, copied, part="2/3")] == parts[1]
    assert not (copied / "records" / f"{TITLES[0]}.json").exists()


def test_a_failing_unit_is_named_and_the_rest_is_done(copied, tiny_dataset, recipe):
    """One unit's folder holds another run; the other's record is missing, and its finished run gives it again."""
    before = records(copied)
    bad, good = copied / "records" / "uxnet-fold0.json", copied / "records" / "plain-unet-fold1.json"
    bad.unlink()
    good.unlink()
    (copied / "runs/uxnet-fold0/recipe.toml").write_text(recipe_to_toml(recipe))
    outcomes = {(o.name, o.fold): o for o in crossval(tiny_dataset, recipe, copied, jobs=1)}
    assert {key: o.status for key, o in outcomes.items()} == {
        ("uxnet", 0): "failed",
        ("plain-unet", 0): "already",
        ("uxnet", 1): "already",
        ("plain-unet", 1): "done",
    }
    assert outcomes["uxnet", 0].error.startswith("runs/uxnet-fold0: the run there has another recipe")
    assert not bad.exists()
    found = records(copied)
    assert lasting(found["plain-unet-fold1"]) == lasting(before["plain-unet-fold1"])
    assert found["plain-unet-fold1"]["peak_memory_mb"] == before["plain-unet-fold1"]["peak_memory_mb"]
    assert "missing: plain-unet on folds 2, 3, 4; uxnet on folds 0, 2, 3, 4." in (copied / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": Budget(steps=STEPS + 1)}, "its budget is another"),
        ({"budget": Budget(core_seconds=100)}, "its budget is another"),
        ({"tolerance_mm": 2.0}, "a tolerance of 1.0 mm, not 2"),
        (
            {"entries": (Entry("uxnet", "uxnet", {**ENTRIES[0].settings, "hidden": 16}),)},
            "another network of the same",
        ),
        ({"recipe": "training.seed=1"}, "another recipe"),
    ],
)
def test_records_of_another_cross_validation_are_refused(copied, tiny_dataset, recipe, change, words):
    other = with_overrides(recipe, [change.pop("recipe")]) if "recipe" in change else recipe
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=words):
        crossval(tiny_dataset, other, copied, **change)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_other_folds_and_renamed_records_are_refused(copied, tiny_dataset, recipe, tmp_path):
    split = json.loads((copied / "split.json").read_text())
    split["folds"] = split["folds"][::-1]
    (tmp_path / "other.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match="other folds"):
        crossval(tiny_dataset, recipe, copied, split=tmp_path / "other.json")
    (copied / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match="its split is another"):
        crossval(tiny_dataset, recipe, copied)
    (tmp_path / "twice.json").write_text(json.dumps({"folds": [split["folds"][0]] * 2}))
    with pytest.raises(DatasetError, match=rf"twice\.json: test cases of more than one fold: case {split['folds'][0]['test'][0]}"):
        crossval(tiny_dataset, recipe, tmp_path / "new", split=tmp_path / "twice.json")
    split["folds"][1]["test"] = []
    (tmp_path / "some.json").write_text(json.dumps(split))
    with pytest.raises(DatasetError, match="fold 1 has no test cases, and others have"):
        crossval(tiny_dataset, recipe, tmp_path / "new", split=tmp_path / "some.json")
    with pytest.raises(DatasetError, match="it holds a 5x80-10-10 split, but 5x80-20 is asked for"):
        crossval(tiny_dataset, recipe, copied, protocol="5x80-20")
    assert not (tmp_path / "new").exists()


def test_without_test_cases_validation_cases_are_scored_and_chosen_on_never(tiny_dataset, recipe, tmp_path):
    one = {"protocol": "5x80-20", "entries": ENTRIES[1:], "jobs": 1}
    for choice in ("training.keep=best", "training.stop_after=2", "schedule.kind=plateau"):
        chooses = with_overrides(recipe, ["training.keep=last", choice])
        with pytest.raises(RecipeError, match=rf"stages\[0\]\.{choice.partition('=')[0]}: asks the validation cases, which are scored"):
            crossval(tiny_dataset, chooses, tmp_path / "cv", **one)
    assert not (tmp_path / "cv").exists()
    last = with_overrides(recipe, ["training.keep=last"])
    assert [outcome.status for outcome in crossval(tiny_dataset, last, tmp_path / "cv", **one)] == ["done", "done"]
    split = read_split(tmp_path / "cv/split.json", read_dataset(tiny_dataset))
    for fold in (0, 1):
        record = records(tmp_path / "cv")[f"plain-unet-fold{fold}"]
        assert (record["protocol"], record["scored"], record["kept_step"]) == ("5x80-20", "validation", STEPS)
        assert tuple(case["case"] for case in record["cases"]) == split.folds[fold].validation
        # The same cases, weights and precision as in the last validation: the same Dice.
        dice = [values["dice"] for case in record["cases"] for values in case["classes"].values() if values["dice"] is not None]
        assert sum(dice) / len(dice) == pytest.approx(record["curve"][-1]["dice"], abs=0.02)
    assert "those that are scored" in (tmp_path / "cv/README.md").read_text()
    # Another call finds the folds there.
    assert {o.status for o in crossval(tiny_dataset, last, tmp_path / "cv", **one | {"protocol": None})} == {"already"}


def change_record(out, title, **more):
    path = out / "records" / f"{title}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_records_of_another_label_table_or_made_in_another_way_are_refused(copied, tiny_dataset, recipe, tmp_path):
    record = (copied / "records/uxnet-fold0.json").read_bytes()
    change_record(copied, "uxnet-fold0", key="0" * 64)
    with pytest.raises(InputError, match=r"uxnet-fold0\.json: this record was made in another way"):
        crossval(tiny_dataset, recipe, copied)
    (copied / "records/uxnet-fold0.json").write_bytes(record)
    change_record(copied, "plain-unet-fold1", labels_sha256="0" * 64)
    with pytest.raises(InputError, match=r"plain-unet-fold1\.json.*its labels is another"):
        crossval(tiny_dataset, recipe, copied)
    shutil.copytree(tiny_dataset, tmp_path / "renamed")
    description = json.loads((tmp_path / "renamed/dataset.json").read_text())
    description["labels"]["2"] = "another name"
    (tmp_path / "renamed/dataset.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"plain-unet-fold0\.json.*its labels is another"):
        crossval(tmp_path / "renamed", recipe, copied)


def test_a_renamed_record_is_refused(copied, tiny_dataset, recipe):
    (copied / "records/uxnet-fold0.json").rename(copied / "records/x-fold0.json")
    with pytest.raises(InputError, match="give it its name back"):
        crossval(tiny_dataset, recipe, copied)


def test_a_unit_is_in_one_hand_at_a_time(tmp_path):
    unit = SimpleNamespace(run=tmp_path / "run")
    with alone(unit.run / "lock", UxnetError("mine")), pytest.raises(UxnetError, match="another process has this unit in hand"):
        do_unit(Place(1, "cpu"), unit, lambda _: None)


def test_whoever_cancels_stops_all(copied, tiny_dataset, recipe):
    for path in (copied / "records").iterdir():
        path.unlink()
    shutil.rmtree(copied / "runs")

    def cancel(event):
        if isinstance(event, Progress) and event.task.endswith(" training"):
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        crossval(tiny_dataset, recipe, copied, report=cancel)
    assert not psutil.Process().children() or not any("spawn_main" in " ".join(c.cmdline()) for c in psutil.Process().children())
    assert records(copied) == {}


def test_on_a_cluster(copied, tiny_dataset, recipe):
    pytest.importorskip("ray", reason="Ray is not installed; pip install 'uxnet[ray]'")
    before = records(copied)
    (copied / "records/uxnet-fold1.json").unlink()
    outcomes = crossval(tiny_dataset, recipe, copied, cluster="local", jobs=1)
    assert [o.status for o in outcomes] == ["already", "already", "done", "already"], outcomes
    assert lasting(records(copied)["uxnet-fold1"]) == lasting(before["uxnet-fold1"])


def test_a_cluster_computes_on_gpus_only_if_they_are_asked_for(copied, tiny_dataset, recipe):
    """No Ray is needed where everything is done; nor has this machine to have a GPU."""
    for device, warned in (("auto", True), ("cpu", False), ("cuda", False)):
        heard = []
        outcomes = crossval(tiny_dataset, recipe, copied, cluster="auto", device=device, jobs=None, report=heard.append)
        assert {o.status for o in outcomes} == {"already"}
        assert any(isinstance(e, Warn) and "device=cuda" in e.message for e in heard) == warned
    with pytest.raises(UsageError, match="cuda:1: on a Ray cluster"):
        crossval(tiny_dataset, recipe, copied, cluster="auto", device="cuda:1", jobs=None)


# ---- budgets, entries, places


def test_core_seconds_of_the_recipes_own_network(tiny_dataset, recipe, tmp_path):
    more = {"budget": Budget(core_seconds=6), "folds": [4], "jobs": 1, "group_by": r"\d+"}
    (outcome,) = crossval(tiny_dataset, recipe, tmp_path / "cv", entries=(), **more)
    assert (outcome.name, outcome.fold, outcome.status) == ("uxnet", 4, "done"), outcome
    record = records(tmp_path / "cv")["uxnet-fold4"]
    assert record["budget"] == {"core_seconds": 6.0, "threads": 1, "validations": "included"}
    assert record["settings"] == recipe.stages[0].network.settings
    assert record["steps"] == json.loads((tmp_path / "cv/runs/uxnet-fold4/budget.json").read_text())["steps"] >= 1
    text = (tmp_path / "cv/README.md").read_text()
    assert "6 core-seconds of training (1 thread, validations included)" in text
    assert [(case["case"], case["person"]) for case in record["cases"]] == [(c["case"], c["case"][-2:]) for c in record["cases"]]
    assert "persons kept whole" in text
    assert "no other network" in text


def test_a_budget_is_put_into_every_stage(recipe):
    changed, said = _with_budget(recipe, Budget(core_seconds=7200), 2)
    assert changed.stages[0].training.hours == 1.0
    assert said == {"core_seconds": 7200.0, "threads": 2, "validations": "included"}
    changed, said = _with_budget(recipe, Budget(steps=7), 2)
    assert (changed.stages[0].training.steps, changed.stages[0].training.hours, said) == (7, 0, {"steps": [7]})
    assert _with_budget(recipe, Budget(), 1)[1] == {"steps": [8]}
    for wrong in (Budget(1, 1), Budget(steps=0), Budget(core_seconds=0), Budget(steps=-1)):
        with pytest.raises(UsageError, match="budget"):
            _with_budget(recipe, wrong, 1)
    with pytest.raises(RecipeError, match="hours"):
        _with_budget(with_overrides(recipe, ["training.hours=1"]), Budget(), 1)


def test_entries_from_words():
    plain, other = entries_of(["unet"], ["uxnet-k9=uxnet:kernel=[9, 9, 7]:block=paper:size=paper:layer_scale=0.5"], "narrow")
    assert plain == Entry("unet", "unet", {"size": "narrow"})
    assert other == Entry("uxnet-k9", "uxnet", {"size": "paper", "kernel": [9, 9, 7], "block": "paper", "layer_scale": 0.5})
    assert entries_of([], ["mine=recipe", "wide=recipe:hidden=16"]) == (Entry("mine", "recipe"), Entry("wide", "recipe", {"hidden": 16}))
    for wrong in ("x", "x=", "x=uxnet:kernel", "a/b=uxnet", "=uxnet", "unet=uxnet", "x=uxnet:kernels=3", "x=uxnet:size=large"):
        with pytest.raises(UsageError):
            entries_of(["unet"], [wrong])


@pytest.mark.parametrize("entry", [Entry("a", "nonet"), Entry("a", "uxnet", {"kernels": 3}), Entry("a", "uxnet", {"block": "own"})])
def test_a_network_that_cannot_be_built_is_refused_before_anything_begins(tiny_dataset, recipe, tmp_path, entry):
    with pytest.raises(RecipeError, match=r"^a: "):
        crossval(tiny_dataset, recipe, tmp_path / "cv", entries=(*ENTRIES, entry))
    # Nothing is there that could stand in the way of the corrected call.
    assert not (tmp_path / "cv").exists()


def test_every_row_of_table_3_can_be_named(tiny_dataset, recipe):
    """Both readings of the block, and the ablations, at the tiny size."""
    from uxnet.crossval.plan import _cost
    from uxnet.paper.networks import TABLE_3

    stage = recipe_to_dict(recipe)["stages"][0]
    for network, title, settings, _ in TABLE_3:
        if network == "uxnet":
            pairs = [f"{key}={value}" for key, value in settings.items()]
            (entry,) = entries_of(
                [], [":".join([f"{title.replace(' ', '-')}=uxnet".replace("standard-conv.", "standard"), *pairs])], "narrow"
            )
            one = recipe_from_dict({"name": "x", "stages": [stage | {"network": {"name": network, "settings": dict(entry.settings)}}]})
            assert _cost(one, read_dataset(tiny_dataset), entry)["parameters"] > 0


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system holds no process to cores")
def test_a_unit_keeps_to_its_cores_and_threads():
    core = sorted(os.sched_getaffinity(0))[-1]
    (finished,) = work(seen, [0], 1, start=partial(begin, 1, (core,), "cpu"))
    assert finished.result == (1, "cpu", [core], "1", False)


def test_steps_are_timed_without_validations():
    def step(n, seconds):
        return {"kind": "step", "step": n, "seconds": seconds}

    # 0.5 s a step, and a validation of 100 s between.
    run = [step(n, 0.5 * n) for n in range(1, 31)] + [{"kind": "validation", "step": 30, "dice": 0.5, "classes": {}}]
    run += [step(n, 100 + 0.5 * n) for n in range(31, 61)]
    assert seconds_a_step(run) == pytest.approx(0.5)
    assert seconds_a_step(run[:3]) == pytest.approx(0.5)
    assert seconds_a_step(run[:1]) is None
    assert seconds_a_step([]) is None
    assert curve(run) == [{"step": 30, "seconds": 15.0, "dice": 0.5, "classes": {}}]


# ---- beginning with a model's weights


def test_scratch_and_fine_tuned_stand_in_one_cross_validation(whole, copied, tiny_dataset, recipe):
    """Records of fresh networks stay as they are, and the one that begins with weights says with which."""
    model, heard = whole[0] / "runs/uxnet-fold1/model.uxnet", []
    before = {path: path.read_bytes() for path in (copied / "records").iterdir()}
    tuned = dataclasses.replace(ENTRIES[0], name="tuned", init=model)
    outcomes = crossval(tiny_dataset, recipe, copied, entries=(*ENTRIES, tuned), report=heard.append)
    assert [o.status for o in outcomes] == ["already", "already", "done"] * 2
    assert {path: path.read_bytes() for path in before} == before
    found, folds = records(copied), json.loads((copied / "split.json").read_text())["folds"]
    init = found["tuned-fold0"]["init"]
    assert (init["model"], init["recipe"], init["dataset"]) == ("model.uxnet", "tiny", "Tiny")
    assert str(model) not in json.dumps(found["tuned-fold0"])
    assert "init" not in found["uxnet-fold0"]
    assert found["tuned-fold0"]["settings"] == found["uxnet-fold0"]["settings"]
    assert found["tuned-fold0"]["curve"][0]["dice"] != found["uxnet-fold0"]["curve"][0]["dice"]
    assert json.loads((copied / "runs/tuned-fold0/transfer.json").read_text())["model"] == "model.uxnet"
    assert "tuned begins with the weights of model.uxnet (recipe tiny, trained on Tiny;" in (copied / "README.md").read_text()
    # It was trained on fold 1, so on cases that fold 0 holds out: said before anything is trained, and in that fold's record.
    (said,) = [e.message for e in heard if isinstance(e, Warn) and "held out here" in e.message and ":" not in e.message.split(" was ")[0]]
    judged = [name for fold in folds[:2] for name in (*fold["validation"], *fold["test"])]
    assert said.startswith(f"model.uxnet was trained on {len(set(judged) & set(folds[1]['train']))} of the {len(set(judged))} cases")
    assert any("held out here" in warning for warning in found["tuned-fold0"]["warnings"])
    assert not any("held out here" in warning for warning in found["tuned-fold1"]["warnings"])

    # Another model, or none, under the same name is another network; nothing is trained.
    for other in (None, whole[0] / "runs/uxnet-fold0/model.uxnet"):
        with pytest.raises(InputError, match="give the entry another name"):
            crossval(tiny_dataset, recipe, copied, entries=(dataclasses.replace(tuned, init=other),))
    with pytest.raises(InputError, match="this record began with fresh weights, not with model"):
        crossval(tiny_dataset, recipe, copied, entries=ENTRIES[:1], init_from=model)


def test_a_cross_validation_that_an_earlier_version_began_goes_on(copied, tiny_dataset, recipe):
    """Its records know recipe and network by hashes of texts in TOML, with no default written out; the others, but as a second hash."""
    from uxnet.evaluation.scores import read_scores
    from uxnet.recipe import load_recipe, other_keys
    from uxnet.recipe.identity import recipe_sha256

    file = copied / "records" / "uxnet-fold0.json"
    record, (stage,) = json.loads(file.read_text()), recipe.stages
    assert record["recipe_sha256"] == recipe_sha256(recipe)
    network, training = dataclasses.replace(stage.network, settings=ENTRIES[0].settings), dataclasses.replace(stage.training, steps=STEPS)
    trained = dataclasses.replace(recipe, stages=(dataclasses.replace(stage, network=network, training=training),))
    assert other_keys(load_recipe(copied / "runs/uxnet-fold0/recipe.toml"), trained) == ""
    labels = read_dataset(tiny_dataset).labels.to_dict()
    decides = [recipe_to_toml(trained), labels, record["split_sha256"], 0, record["dataset_sha256"], record["budget"], 1.0]
    earlier = {"recipe_sha256": record.pop("recipe_toml_sha256"), "key": hashlib.sha256(json.dumps(decides).encode()).hexdigest()}
    assert earlier["recipe_sha256"] == hashlib.sha256(recipe_to_toml(recipe).encode()).hexdigest()
    file.write_text(json.dumps(record | earlier))
    assert {o.status for o in crossval(tiny_dataset, recipe, copied)} == {"already"}
    found = read_scores([copied])
    assert {r["recipe_sha256"] for scores in found for r in scores.records} == {recipe_sha256(recipe)}
    assert "differ in recipe" not in (copied / "README.md").read_text()
    file.write_text(json.dumps(record | earlier | {"key": "1" * 64}))
    with pytest.raises(InputError, match="made in another way"):
        crossval(tiny_dataset, recipe, copied)


def test_an_entry_may_be_the_recipes_own_network(tiny_dataset, recipe, tmp_path):
    from uxnet.crossval.plan import chosen_split, make_units
    from uxnet.dataset.check import check_dataset

    manifest, own = read_dataset(tiny_dataset), recipe.stages[0].network.settings
    inspection = check_dataset(manifest)
    split = chosen_split(tmp_path / "split.json", None, inspection, recipe, print)

    def units(*words, recipe=recipe):
        return make_units(manifest, inspection, split, recipe, tmp_path, entries_of([], words), Budget(), [0], 1, 1.0)

    (alone,) = (unit.facts for unit in units())
    mine, wide = (unit.facts for unit in units("mine=recipe", "wide=recipe:hidden=16"))
    assert (mine["network"], mine["settings"], wide["settings"]) == ("uxnet", own, {**own, "hidden": 16})
    assert alone["key"] == mine["key"] != wide["key"]
    assert list(tmp_path.iterdir()) == []

    # Of two stages, each keeps its own.
    first = recipe.stages[0]
    second = dataclasses.replace(first, network=dataclasses.replace(first.network, settings={**own, "kernel": 5}), prior=Prior())
    two = dataclasses.replace(recipe, stages=(first, second))
    (alone,) = units(recipe=two)
    mine, wide, other = units("mine=recipe", "wide=recipe:hidden=16", "other=unet:widths=[4,8]", recipe=two)
    assert [stage.network.settings for stage in mine.recipe.stages] == [own, {**own, "kernel": 5}]
    assert alone.recipe == mine.recipe
    assert [stage.network.settings for stage in wide.recipe.stages] == [{**own, "hidden": 16}, {**own, "kernel": 5, "hidden": 16}]
    assert [stage.network.name for stage in other.recipe.stages] == ["unet", "unet"]


def test_models_to_begin_with_that_cannot_be(whole, tiny_dataset, recipe, tmp_path):
    model = whole[0] / "runs/uxnet-fold1/model.uxnet"
    assert with_beginnings(ENTRIES, [f"uxnet={model}"])[0].init == model
    assert with_beginnings(ENTRIES, [])[0].init is None
    for wrong in ("uxnet", "uxnet=", "other=x.uxnet"):
        with pytest.raises(UsageError):
            with_beginnings(ENTRIES, [wrong])
    for entry, path, said in (
        (ENTRIES[1], model, "its network is uxnet, that of plain-unet is unet"),
        (ENTRIES[0], tmp_path / "none", "none"),
    ):
        with pytest.raises(ModelError, match=said):
            crossval(tiny_dataset, recipe, tmp_path / "cv", entries=(entry,), init_from=path)
    assert not (tmp_path / "cv").exists()


def test_a_training_that_was_stopped_says_how_long_it_was_to_be(tiny_dataset, recipe, tmp_path):
    """Without learning no validation is better than the first, so the second one stops it."""
    still = with_overrides(recipe, ["optimiser.learning_rate=1e-12", "training.stop_after=1", "training.validate_every=2"])
    (outcome,) = crossval(tiny_dataset, still, tmp_path / "cv", entries=ENTRIES[:1], folds=[0], jobs=1)
    record = records(tmp_path / "cv")["uxnet-fold0"]
    assert outcome.status == "done"
    assert (record["steps"], record["planned_steps"]) == (4, STEPS)


def test_rounding():
    assert rounded({"a": [0.12345678, 1, None, "x", (2 / 3,)]}) == {"a": [0.123457, 1, None, "x", [0.666667]]}


def test_gpus_do_not_decide_how_many_processes_read_cases(monkeypatch):
    monkeypatch.setattr(crossval_module, "usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [crossval_module.default_jobs(device, 1) for device in ("cuda", "cuda:1", "cpu")] == [2, 1, 8]
    assert crossval_module._readers("cuda", 2, 1) == 8
    assert [crossval_module._readers("cpu", jobs, threads) for jobs, threads in ((1, 1), (2, 3), (4, 3))] == [1, 6, 8]
