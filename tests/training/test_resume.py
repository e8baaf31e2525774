"""A run that dies goes on: whatever kills it, wherever it is, the weights are in the end those of a run that lived."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace

import nibabel as nib
import numpy as np
import pytest
import torch
from commands import run
from safetensors import safe_open
from safetensors.torch import save_file

from uxnet.dataset import store
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import Cancelled, CheckpointError, DatasetError, InputError, Preempted, RecipeError, TrainingError, UsageError
from uxnet.events import Note, Warn
from uxnet.io import alone
from uxnet.io.records import read_records
from uxnet.labels import Label, Labels
from uxnet.model.file import read_model, read_weights
from uxnet.recipe import (
    Inference,
    Loss,
    Network,
    Optimiser,
    Prior,
    Training,
    complete_toml,
    load_recipe,
    other_keys,
    recipe_to_toml,
    with_network,
    with_overrides,
)
from uxnet.training import checkpoint, loop, resume
from uxnet.training import identity as identity_module
from uxnet.training import progress as showing
from uxnet.training import run as run_module
from uxnet.training.run import train
from uxnet.training.validate import Validation

# What the killed processes run: `train` with something around it that kills, or slows down so that it can be killed.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from uxnet.recipe import load_recipe
from uxnet.training import checkpoint, loop
from uxnet.training.run import train
dataset, recipe, out, cache, how = sys.argv[1:]
if how == "while writing":
    real, calls = checkpoint.save_file, []
    def save_file(tensors, path, metadata=None):
        calls.append("progressed" in metadata["uxnet"])  # a checkpoint, and not weights alone
        real(tensors, path, metadata=metadata)
        if sum(calls) == 3:
            whole = open(path, "rb").read()
            with open(path, "wb") as file:
                file.write(whole[: len(whole) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save_file = save_file
else:
    real = loop.augment
    def augment(*arguments, **more):
        time.sleep(0.15)
        return real(*arguments, **more)
    loop.augment = augment
train(dataset, load_recipe(recipe), out, cache=Path(cache), device="cpu", workers=1)
"""


# Forks a process for each attempt, so that none waits for torch to be imported, and kills it at a random moment: after so many signs of
# life (a step begins, a record is written, a checkpoint is half written, a validation begins) and a little while.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from uxnet.recipe import load_recipe
from uxnet.training import checkpoint, loop, run
from uxnet.training.run import train
dataset, recipe, folder, cache, least = sys.argv[1:]
torch.set_num_threads(1)

def attempt(out, pipe):
    def telling(sign, function):
        def told(*arguments, **more):
            os.write(pipe, sign)
            return function(*arguments, **more)
        return told
    real = checkpoint.save_file
    def halfway(tensors, path, metadata=None):
        real(tensors, path, metadata=metadata)
        whole = open(path, "rb").read()
        with open(path, "wb") as file:
            file.write(whole[: len(whole) // 2])
            file.flush()
            os.write(pipe, b"h")
            time.sleep(0.03)
            file.write(whole[len(whole) // 2 :])
    checkpoint.save_file = halfway
    loop.augment = telling(b"s", loop.augment)
    loop.append_record = telling(b"r", loop.append_record)
    run.validate = telling(b"v", run.validate)
    train(dataset, load_recipe(recipe), out, cache=Path(cache), device="cpu", workers=1, resume=True)

draw = random.Random(5)
moments, outs = [], []
while len(moments) < int(least):
    out = Path(folder) / f"run{len(outs)}"
    outs.append(out.name)
    while not (out / "model.uxnet").exists():
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                attempt(out, writing)
                os._exit(0)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(3)
        os.close(writing)
        left, last = draw.randint(1, 14), b""
        while left and (sign := os.read(reading, 1)):
            left, last = left - 1, sign
        if left == 0:
            time.sleep(draw.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
        os.close(reading)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            moments.append(last.decode())
        elif os.WEXITSTATUS(status):
            sys.exit("an attempt failed")
print(json.dumps([moments, outs]))
"""


class Died(BaseException):
    """Stands for the end of the process, where a real one would take too long."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_recipe):
    """The recipe as a file, and the cache that all runs share."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "tiny.toml").write_text(recipe_to_toml(tiny_recipe))
    return folder


@pytest.fixture(scope="module")
def go(tiny_dataset, tiny_recipe, shared):
    def train_(out, resume=False, recipe=tiny_recipe, dataset=tiny_dataset, **more):
        return train(dataset, recipe, out, cache=shared / "cache", device="cpu", workers=1, resume=resume, **more)

    return train_


@pytest.fixture(scope="module")
def whole(go, tmp_path_factory):
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert go(out) == out / "model.uxnet"
    return out


@pytest.fixture(autouse=True)
def quick_curves(whole, monkeypatch):
    """Pictures take most of so short a run's time; only `whole` draws real ones."""
    monkeypatch.setattr(showing, "curves", lambda path, **_: path.write_bytes(b"curves"))
    monkeypatch.setattr(showing, "picture", lambda path, *_: None)


def tensors(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def assert_same_run(out, whole):
    """Weights, optimiser, averages and records are those of the run that lived; only the clock may differ."""
    ours, theirs = (read_weights(read_model(run / "model.uxnet")) for run in (out, whole))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    for name in ("last", "best"):
        a, b = (tensors(run / "checkpoints" / f"{name}.safetensors") for run in (out, whole))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in b), name
    ours, theirs = ([{**r, "seconds": 0} for r in read_records(run / "metrics.jsonl")] for run in (out, whole))
    assert ours == theirs
    steps = [r["step"] for r in ours if r["kind"] == "step"]
    assert steps == list(range(1, 9))


def test_what_a_run_leaves_behind(whole, tiny_dataset):
    names = {p.name for p in whole.iterdir()}
    assert names == {
        "recipe.toml",
        "split.json",
        "inspection.json",
        "metrics.jsonl",
        "curves.png",
        "pictures",
        "checkpoints",
        "model.uxnet",
        "train.lock",
    }
    assert {p.name for p in (whole / "checkpoints").iterdir()} == {"last.safetensors", "best.safetensors"}
    model = read_model(whole / "model.uxnet")
    provenance = model.provenance
    split = json.loads((whole / "split.json").read_text())["folds"][0]
    assert provenance["split"] == {"fold": 0, **split}
    assert len(split["train"]) + len(split["validation"]) == 10
    assert not set(split["train"]) & set(split["validation"])
    assert (provenance["dataset"]["name"], provenance["dataset"]["cases"]) == ("Tiny", 10)
    validations = [r for r in read_records(whole / "metrics.jsonl") if r["kind"] == "validation"]
    assert [r["step"] for r in validations] == [4, 8]
    best = max(validations, key=lambda r: r["dice"])
    assert provenance["validation"]["dice"] == best["dice"]
    assert provenance["training"]["step"] == best["step"]
    assert [label.name for label in model.labels.foreground] == ["bright", "dark"]
    assert str(tiny_dataset) not in json.dumps(model.description)  # a model is handed on: it says nothing of someone's disk


def test_sigkill_leaves_a_run_that_goes_on(go, whole, shared, tiny_dataset, tmp_path):
    """Once inside the writing of a checkpoint, once from outside in the middle of a step."""
    outs = {how: tmp_path / how.replace(" ", "-") for how in ("while writing", "from outside")}
    processes = {
        how: subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tiny_dataset), str(shared / "tiny.toml"), str(out), str(shared / "cache"), how],
            stderr=subprocess.PIPE,
        )
        for how, out in outs.items()
    }
    outside, records = processes["from outside"], outs["from outside"] / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 120
        while outside.poll() is None and time.monotonic() < deadline:
            if len(read_records(records)) >= 3:
                outside.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
        for how, process in processes.items():
            _, said = process.communicate(timeout=120)
            assert process.returncode == -signal.SIGKILL, (how, said.decode())
    finally:
        for process in processes.values():
            process.kill()
    for how, out in outs.items():
        assert not (out / "model.uxnet").exists()
        done = len(read_records(out / "metrics.jsonl"))
        assert 3 <= done < 10, how
        go(out, resume=True)
        assert_same_run(out, whole)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_cluster_that_wants_the_machine_back(name, code, go, whole, shared, tiny_dataset, tmp_path):
    """The signal, or Ctrl-C, is answered by a checkpoint and an exit code of its own; the run goes on from the very step."""
    out = tmp_path / "run"
    slow = "import time; from uxnet.training import loop; real = loop.augment; " + (
        "loop.augment = lambda *a, **k: (time.sleep(0.3), real(*a, **k))[1]; import sys; from uxnet.cli.main import main; sys.exit(main())"
    )
    arguments = ["train", str(tiny_dataset), "--recipe", str(shared / "tiny.toml"), "-o", str(out), "--cache", str(shared / "cache")]
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments, "--workers", "1"], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not read_records(out / "metrics.jsonl"):
            time.sleep(0.02)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, said
    assert "everything is saved, go on with --resume" in said
    done = [r["step"] for r in read_records(out / "metrics.jsonl") if r["kind"] == "step"]
    assert 1 <= len(done) < 8
    events = []
    go(out, resume=True, report=events.append)
    assert any(isinstance(e, Note) and f"after step {done[-1]} of 8" in e.message for e in events)
    assert_same_run(out, whole)


def test_sigkill_at_random_moments(whole, shared, tiny_dataset, tmp_path):
    """Twenty and more times, some of them in the middle of the writing of a checkpoint."""
    arguments = [str(tiny_dataset), str(shared / "tiny.toml"), str(tmp_path), str(shared / "cache"), "20"]
    done = subprocess.run([sys.executable, "-c", KILLER, *arguments], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    killed, outs = json.loads(done.stdout.splitlines()[-1])
    assert len(killed) >= 20
    assert killed.count("h") >= 2
    assert set(killed) == set("hrsv")
    for out in outs:
        assert_same_run(tmp_path / out, whole)


def moments():
    """Where a run can die, as (name, object, attribute, call at which it dies)."""
    yield "before the first step", run_module, "fit", 1
    yield "recording the first step", loop, "append_record", 1
    yield "recording a later step", loop, "append_record", 4
    yield "in the first checkpoint", checkpoint, "save_file", 1
    yield "in the validation", run_module, "validate", 1
    yield "saving the best weights", loop, "save_weights", 1
    yield "after the best weights, before the checkpoint", showing, "draw_curves", 1
    yield "in the last checkpoint", loop, "save_checkpoint", 4
    yield "writing the model", run_module, "hand_over", 1


@pytest.mark.parametrize(("where", "attribute", "call"), [m[1:] for m in moments()], ids=[m[0] for m in moments()])
def test_a_run_that_dies_anywhere_goes_on(go, whole, tmp_path, monkeypatch, where, attribute, call):
    real, calls = getattr(where, attribute), []

    def dying(*arguments, **more):
        calls.append(1)
        if len(calls) == call:
            raise Died
        return real(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(where, attribute, dying)
        with pytest.raises(Died):
            go(tmp_path / "run")
    go(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_dying_again_and_again(go, whole, tmp_path, monkeypatch):
    real, calls, deaths = loop.append_record, [], 0

    def dying(path, record, **more):
        calls.append(1)
        real(path, record, **more)
        if len(calls) % 4 == 0:
            with path.open("a") as file:
                file.write('{"step": 99, "kind": "st')  # a line that was cut off
            raise Died

    monkeypatch.setattr(loop, "append_record", dying)
    while not (tmp_path / "run" / "model.uxnet").exists():
        try:
            go(tmp_path / "run", resume=True)
        except Died:
            deaths += 1
        assert deaths < 20
    assert deaths >= 3
    assert_same_run(tmp_path / "run", whole)


def test_dying_while_cases_are_prepared(tiny_dataset, tiny_recipe, whole, tmp_path, monkeypatch):
    real, calls = store.atomic, []

    @contextlib.contextmanager
    def dying(path):
        calls.append(1)
        with real(path) as temporary:
            if len(calls) == 5:
                temporary.write_bytes(b"half")
                raise Died
            yield temporary

    with monkeypatch.context() as patch:
        patch.setattr(store, "atomic", dying)
        with pytest.raises(Died):
            train(tiny_dataset, tiny_recipe, tmp_path / "run", device="cpu", workers=1)
    train(tiny_dataset, tiny_recipe, tmp_path / "run", device="cpu", workers=1, resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_a_run_that_has_to_be_stopped_hands_over_its_best(go, tiny_recipe, tiny_dataset, tmp_path, monkeypatch):
    """A class that collapses stops the run; the weights before it are a model, and a run with a mended recipe can begin with it."""
    dices = iter([0.6, 0.7, 0.02, 0.01, 0.0, 0.9])
    real = run_module.validate

    def scripted(cases, *_):
        dice = next(dices)
        return Validation({case.name: {"bright": dice, "dark": dice} for case in cases})

    monkeypatch.setattr(run_module, "validate", scripted)
    recipe = with_overrides(tiny_recipe, ["training.validate_every=1"])
    with pytest.raises(TrainingError, match=r"bright.*dark.*weights of step 2, the best, are in .*last_good\.uxnet"):
        go(tmp_path / "run", recipe=recipe)
    assert not (tmp_path / "run" / "model.uxnet").exists()
    good = read_model(tmp_path / "run" / "last_good.uxnet")
    assert good.provenance["training"]["step"] == 2
    best = tensors(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert all(np.array_equal(value, best[key].numpy()) for key, value in read_weights(good).items())
    monkeypatch.setattr(run_module, "validate", real)
    mended = with_overrides(tiny_recipe, ["optimiser.learning_rate=1e-3"])
    assert go(tmp_path / "mended", recipe=mended, init_from=good.path).is_file()


def stopping(error, monkeypatch, step=5):
    """Makes reading the batch of a step, counted from 0, end in an error; steps 4 and 8 are validated."""
    real = loop.read_batch

    def reading(*arguments):
        if arguments[4] == step:
            raise error
        return real(*arguments)

    monkeypatch.setattr(loop, "read_batch", reading)


@pytest.mark.parametrize("kind", [DatasetError, TrainingError, InputError])
def test_whatever_stops_a_run_its_best_is_handed_over(go, tmp_path, monkeypatch, kind):
    stopping(kind("x.case: damaged"), monkeypatch)
    with pytest.raises(kind, match=r"^x\.case: damaged\. The weights of step 4, the best, are in .*last_good\.uxnet$") as caught:
        go(tmp_path / "run")
    assert type(caught.value) is kind
    assert read_model(tmp_path / "run" / "last_good.uxnet").provenance["training"]["step"] == 4


def test_who_cancels_or_stops_before_the_first_validation_has_no_model(go, tmp_path, monkeypatch):
    for name, error, step in (("a", Cancelled("enough"), 5), ("b", DatasetError("x.case: damaged"), 2)):
        with monkeypatch.context() as patch:
            stopping(error, patch, step)
            with pytest.raises(type(error), match=f"^{error}$"):
                go(tmp_path / name)
        assert not (tmp_path / name / "last_good.uxnet").exists()


def test_a_full_disk_is_what_is_said_whatever_fails_after_it(go, whole, tmp_path, monkeypatch):
    """The records cannot be written, and then the model of the best weights cannot either; what was saved is gone on with."""
    real, calls, events = os.fsync, [], []

    def full(handle):
        name = os.readlink(f"/proc/self/fd/{handle}") if os.path.isdir("/proc/self/fd") else ""
        calls.append(name)
        if "last_good" in name or sum("metrics" in call for call in calls) > 3:  # they are synced with checkpoints
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"metrics\.jsonl: a record cannot be written \(No space left on device\)[^.]*$"):
            go(tmp_path / "run", report=events.append)
    warned = [e.message for e in events if isinstance(e, Warn)]
    assert "last_good.uxnet: the weights of the best validation could not be written there" in warned[-1]
    assert not (tmp_path / "run" / "last_good.uxnet").exists()
    go(tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_what_another_run_left_is_not_this_ones_best(go, whole, tmp_path, monkeypatch):
    """Somebody removed the checkpoint to train anew in the same folder, but not the best weights."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    for name in ("checkpoints/last.safetensors", "model.uxnet", "metrics.jsonl"):
        (out / name).unlink()
    with monkeypatch.context() as patch:
        stopping(DatasetError("x.case: damaged"), patch, 2)
        with pytest.raises(DatasetError, match=r"^x\.case: damaged$"):
            go(out, resume=True, fold=1)
    assert not (out / "last_good.uxnet").exists()
    # Nor where no validation of this one could be scored.
    monkeypatch.setattr(run_module, "validate", lambda cases, *_: Validation({case.name: {"bright": None, "dark": None} for case in cases}))
    assert read_model(go(out, resume=True, fold=1)).provenance["training"]["step"] == 8


def test_a_run_goes_on_to_more_steps_as_if_it_had_had_them_from_the_start(go, tiny_recipe, tmp_path):
    """Twice, once after it was finished and once before."""

    def of(steps):
        words = ["schedule.kind=constant", "training.validate_every=2", f"training.steps={steps}"]
        return with_overrides(tiny_recipe, words)

    events, out = [], tmp_path / "longer"
    go(out, recipe=of(2))
    with pytest.raises(Preempted):
        go(out, resume=True, recipe=of(5), stopping=lambda: True, report=events.append)
    assert any(isinstance(e, Note) and "goes on to 5 steps instead of 2" in e.message for e in events)
    assert other_keys(load_recipe(out / "recipe.toml"), of(5)) == ""
    with pytest.raises(CheckpointError, match=r"cannot go on to 2 steps instead of 5: it has taken 3 already; resume it with .*steps=5"):
        go(out, resume=True, recipe=of(2))
    go(out, resume=True, recipe=of(4))
    go(tmp_path / "at once", recipe=of(4))
    ours, theirs = (read_model(run / "model.uxnet") for run in (out, tmp_path / "at once"))
    assert ours.recipe == theirs.recipe
    assert ours.recipe.stages[0].training.steps == 4
    ours, theirs = read_weights(ours), read_weights(theirs)
    assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)
    ours, theirs = ([{**r, "seconds": 0} for r in read_records(run / "metrics.jsonl")] for run in (out, tmp_path / "at once"))
    assert ours == theirs


@pytest.mark.parametrize(
    ("words", "may"),
    [
        (["schedule.kind=cosine"], False),
        (["schedule.kind=poly"], False),
        (["schedule.kind=plateau"], True),
        (["schedule.kind=constant"], True),
        (["schedule.kind=cosine", "schedule.floor=1"], True),
        (["schedule.kind=cosine", "schedule.warmup_steps=4"], True),
        (["schedule.kind=cosine", "schedule.warmup_steps=2"], False),
        (["schedule.kind=constant", "training.hours=1"], False),
    ],
)
@pytest.mark.parametrize("steps", [6, 20])
def test_more_steps_where_those_taken_would_have_been_the_same(words, may, steps, tiny_recipe, tmp_path, monkeypatch):
    there = with_overrides(tiny_recipe, words)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.safetensors").touch()
    monkeypatch.setattr(resume, "weights_header", lambda _: {"progressed": {"step": 4, "scores": [0.5, None]}})
    resume.begin_or_tidy(tmp_path, there, False, print)
    more = with_overrides(there, [f"training.steps={steps}"])
    if may:
        resume.refuse_another_run(tmp_path, more, True)
        resume.begin_or_tidy(tmp_path, more, True, print)
        assert other_keys(resume.as_begun(tmp_path), there) == ""
    else:
        with pytest.raises(CheckpointError, match=rf"go on to {steps} steps instead of 8: .*(falling to|training\.hours).*\(init_from\)"):
            resume.refuse_another_run(tmp_path, more, True)


def test_a_stage_that_another_is_trained_on_keeps_its_steps(tiny_recipe, tmp_path):
    first = with_overrides(tiny_recipe, ["schedule.kind=constant"]).stages[0]
    there = replace(tiny_recipe, stages=(first, replace(first, prior=Prior())))
    resume.begin_or_tidy(tmp_path, there, False, print)
    more = with_overrides(there, ["stages.0.training.steps=20"])
    resume.refuse_another_run(tmp_path, more, True)
    (tmp_path / "stage_1" / "checkpoints").mkdir(parents=True)
    (tmp_path / "stage_1" / "checkpoints" / "last.safetensors").touch()
    with pytest.raises(CheckpointError, match="stage 1 is being trained on what stage 0 found"):
        resume.refuse_another_run(tmp_path, more, True)


def test_a_folder_is_in_one_hand_at_a_time(go, whole, tiny_recipe, tmp_path, monkeypatch):
    with alone(whole / "train.lock", CheckpointError("mine")), pytest.raises(CheckpointError, match="another process trains there"):
        go(whole, resume=True)
    real = run_module.check_dataset

    def checking(*arguments, **more):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "recipe.toml").write_text(recipe_to_toml(tiny_recipe))
        return real(*arguments, **more)

    monkeypatch.setattr(run_module, "check_dataset", checking)
    with pytest.raises(CheckpointError, match=r"there is a run already.*resume=True"):
        go(tmp_path / "run")  # another process began it while this one read the dataset


def test_resuming_tidies_the_run_and_leaves_others_what_they_write(go, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    own = [out / ".curves.x.part.png", out / "checkpoints" / ".last.x.part.safetensors", out / "pictures" / ".step_4.x.part.png"]
    others = [out / "cache" / ".case_00.x.part.case", out / "cache" / "stage_0" / ".a.x.part.json", out / "test" / ".b.x.part.nii.gz"]
    for path in own + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    go(out, resume=True)
    assert not [path for path in own if path.exists()]
    assert all(path.exists() for path in others)


def test_tuples_in_a_recipe_of_pythons_are_lists_in_its_file(go, tiny_recipe, tmp_path):
    stage = tiny_recipe.stages[0]
    settings = {**stage.network.settings, "widths": (4, 8), "depths": (1, 1)}
    recipe = replace(tiny_recipe, stages=(replace(stage, network=Network("uxnet", settings), training=replace(stage.training, steps=1)),))
    go(tmp_path / "run", recipe=recipe)
    go(tmp_path / "run", recipe=recipe, resume=True)


def test_a_scan_that_trains_and_validates_is_named(go, tiny_dataset, tmp_path, monkeypatch):
    data, events = tmp_path / "data", []
    shutil.copytree(tiny_dataset, data)
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(data / folder / "case_03.nii.gz", data / folder / "case_07.nii.gz")
    names = [f"case_{n:02d}" for n in range(10) if n != 7]
    (tmp_path / "split.json").write_text(json.dumps({"folds": [{"train": names, "validation": ["case_07"]}]}))

    def die(*_, **__):
        raise Died

    monkeypatch.setattr(run_module, "fit", die)
    with pytest.raises(Died):
        go(tmp_path / "run", dataset=data, split=tmp_path / "split.json", report=events.append)
    (warned,) = [e.message for e in events if isinstance(e, Warn)]
    assert "case_03 (train) = case_07 (validation)" in warned


def test_the_summary_says_that_a_run_stopped_early(shared, tiny_dataset, tmp_path, capsys):
    settings = ["training.validate_every=1", "training.stop_after=1", "optimiser.learning_rate=1e-12"]
    arguments = [
        "train",
        tiny_dataset,
        "--recipe",
        shared / "tiny.toml",
        "-o",
        tmp_path / "run",
        "--cache",
        shared / "cache",
        "--workers",
        "1",
    ]
    assert run(*arguments, "--device", "cpu", *(word for setting in settings for word in ("--set", setting))) == 0
    said = capsys.readouterr().out
    assert "stopped early, after 2 of 8 steps: no better Dice than" in said
    assert "weights of step 1 of 2" in said


def test_resuming_a_finished_run_changes_nothing(go, whole):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.name in ("model.uxnet", "metrics.jsonl", "last.safetensors")}
    events = []
    go(whole, resume=True, report=events.append)
    assert any(isinstance(e, Note) and "after step 8 of 8" in e.message for e in events)
    assert {p: p.read_bytes() for p in before} == before


def test_resuming_what_is_not_there_starts_a_run(go, whole, tmp_path):
    events = []
    go(tmp_path / "new", resume=True, report=events.append)
    assert any(isinstance(e, Note) and "nothing to resume" in e.message for e in events)
    assert_same_run(tmp_path / "new", whole)


def test_a_run_that_is_there_is_not_overwritten(go, whole):
    before = (whole / "model.uxnet").read_bytes()
    with pytest.raises(CheckpointError, match=r"there is a run already.*resume=True"):
        go(whole)
    assert (whole / "model.uxnet").read_bytes() == before


def test_another_recipe_fold_or_labels_is_refused(go, whole, tiny_recipe, tiny_dataset):
    with pytest.raises(CheckpointError, match=r"another recipe \(stages\.0\.training\.batch is 2 there and 3 here; .*\(init_from\)"):
        go(whole, resume=True, recipe=with_overrides(tiny_recipe, ["training.batch=3"]))
    with pytest.raises(CheckpointError, match=r"another run.*train into another folder$"):
        go(whole, resume=True, fold=1)
    assert not (whole / "last_good.uxnet").exists()  # it would be that run's, with this one's cases written on it
    with pytest.raises(UsageError, match="folds 0 to 4, not 5"):
        go(whole, resume=True, fold=5)
    assert (whole / "recipe.toml").read_text() == complete_toml(tiny_recipe)


def test_what_a_run_writes_down_of_its_recipe_is_all_of_it(go, whole, tmp_path, monkeypatch):
    """Every key and setting, so that another version's defaults change nothing; and the run goes on with either form of the recipe."""
    text = (whole / "recipe.toml").read_text()
    keys = [f.name for kind in (Loss, Optimiser, Training, Inference) for f in fields(kind)]
    assert [key for key in (*keys, "expansion", "block", "stem_kernel") if f"\n{key} = " not in text] == []
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stopping(DatasetError("x"), patch)
        with pytest.raises(DatasetError):
            go(out)
    assert_same_run(go(out, resume=True, recipe=load_recipe(out / "recipe.toml")).parent, whole)


def test_a_run_whose_recipe_was_written_as_it_was_given_goes_on(go, whole, tiny_recipe, tmp_path, monkeypatch):
    """As versions did before: its recipe's hash, by which its checkpoints know it, was of that text."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(resume, "complete_toml", recipe_to_toml)
        stopping(DatasetError("x"), patch)
        with pytest.raises(DatasetError):
            go(out)
    assert (out / "recipe.toml").read_text() == recipe_to_toml(tiny_recipe)
    assert resume.as_begun(out) == tiny_recipe
    assert_same_run(go(out, resume=True).parent, whole)


def test_a_run_does_not_go_on_with_other_cases(go, whole, tiny_dataset, tmp_path):
    """Their names are the same, and what they hold is another; of an earlier version's run less is known, but it goes on."""
    out, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(whole, out)
    shutil.copytree(tiny_dataset, data)
    split = json.loads((out / "split.json").read_text())["folds"][0]
    brighter, moved = split["train"][:2]
    labelled = split["validation"][0]
    for name, folders in {brighter: ["imagesTr"], labelled: ["labelsTr"], moved: ["imagesTr", "labelsTr"]}.items():
        for folder in folders:
            file = data / folder / f"{name}.nii.gz"
            scan = nib.load(file)
            array, affine = np.asarray(scan.dataobj).copy(), scan.affine.copy()
            if name == moved:
                affine[0, 3] += 5
            else:
                array[0, 0, 0] += 1
            nib.save(nib.Nifti1Image(array, affine), tmp_path / "new.nii.gz")
            shutil.move(tmp_path / "new.nii.gz", file)
    with pytest.raises(CheckpointError, match="changed since the run there began") as caught:
        go(out, resume=True, dataset=data)
    for told in (f"{brighter} (image)", f"{labelled} (label map)", f"{moved} (affine)"):
        assert told in str(caught.value)
    go(out, resume=True)  # with the cases as they were

    known = (out / "inspection.json").read_text()
    (out / "inspection.json").unlink()
    with pytest.raises(CheckpointError, match="fold or cases differ"):
        go(out, resume=True, dataset=data)
    earlier = json.loads(known)
    for case in earlier["fingerprint"]["cases"]:
        del case["affine_ras"]
    (out / "inspection.json").write_text(json.dumps(earlier))
    path = out / "checkpoints" / "last.safetensors"
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["uxnet"])
    save_file(tensors(path), path, metadata={"uxnet": json.dumps(header | {"identity": header["identity"].partition("+")[0]})})
    go(out, resume=True)
    with pytest.raises(CheckpointError, match=brighter):
        go(out, resume=True, dataset=data)


def test_a_run_that_an_earlier_version_began_goes_on_under_its_identity(go, whole, tmp_path, monkeypatch):
    """Earlier versions hashed the text that the recipe's file has."""

    def identity(out):
        return checkpoint.weights_header(out / "checkpoints" / "last.safetensors")["identity"]

    out, steps = tmp_path / "run", []
    with monkeypatch.context() as earlier:
        earlier.setattr(identity_module, "canonical_json", recipe_to_toml)
        with pytest.raises(Preempted):
            go(out, stopping=lambda: steps.append(1) or len(steps) == 3)
    began = identity(out)
    assert began != identity(whole)
    go(out, resume=True)
    assert_same_run(out, whole)
    assert identity(out) == began


def test_a_torn_checkpoint_is_named(go, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    path = out / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"last\.safetensors"):
        go(out, resume=True)


def test_a_recipe_whose_network_cannot_be_built(go, tiny_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"network\.settings"):
        go(tmp_path / "run", recipe=with_overrides(tiny_recipe, ["network.settings.widths=[4]"]))
    # Nothing began, so the mended recipe may have the folder.
    assert not (tmp_path / "run").exists()


def test_a_network_that_is_tied_to_its_patch_is_given_no_other_windows(go, tiny_recipe, tmp_path):
    tied = with_overrides(with_network(tiny_recipe, "unetr"), ["network.settings.size=narrow", "inference.patch=[16, 16, 32]"])
    with pytest.raises(RecipeError, match=r"inference\.patch: unetr is tied to .*\[16, 16, 16\].* no windows of \[16, 16, 32\]"):
        go(tmp_path / "run", recipe=tied)
    assert not (tmp_path / "run").exists()


def test_mirrored_sides_without_counterpart_are_refused(go, tiny_recipe, tiny_dataset, tmp_path):
    manifest = replace(read_dataset(tiny_dataset), labels=Labels((Label("Lens_L", 1), Label("dark", 2))))
    mirrored = with_overrides(tiny_recipe, ["augment.mirror=[true, false, false]"])
    with pytest.raises(RecipeError, match=r"augment\.mirror.*'Lens_L'"):
        go(tmp_path / "run", recipe=mirrored, dataset=manifest)
    assert not (tmp_path / "run").exists()


def test_a_dataset_with_errors_is_refused_and_the_cases_named(go, tiny_dataset, tmp_path):
    bad = tmp_path / "data"
    shutil.copytree(tiny_dataset, bad)
    (bad / "imagesTr" / "case_03.nii.gz").write_bytes(b"not an image")
    labels = nib.load(bad / "labelsTr" / "case_07.nii.gz")
    nib.save(nib.Nifti1Image(np.full(labels.shape, 9, np.uint8), labels.affine), bad / "labelsTr" / "case_07.nii.gz")
    with pytest.raises(DatasetError, match=r"(?s)case_03.*case_07"):
        go(tmp_path / "run", dataset=bad)
    assert not (tmp_path / "run").exists()
    # Once it is mended, the same command starts it.
    for folder in ("imagesTr", "labelsTr"):
        for name in ("case_03", "case_07"):
            shutil.copy(tiny_dataset / folder / f"{name}.nii.gz", bad / folder)
    events = []
    go(tmp_path / "run", dataset=bad, report=events.append)
    assert (tmp_path / "run" / "model.uxnet").is_file()
    assert not [e for e in events if isinstance(e, Warn) and "skipped" in e.message]
