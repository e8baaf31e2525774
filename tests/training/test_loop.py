import errno
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from uxnet.dataset.cache import CachedCase
from uxnet.dataset.manifest import Case
from uxnet.errors import Cancelled, DatasetError, Preempted, RecipeError, TrainingError
from uxnet.events import Note, Progress, Warn
from uxnet.geometry import Geometry
from uxnet.io import write_labels
from uxnet.io.records import read_records
from uxnet.labels import Label, Labels
from uxnet.machine import Load
from uxnet.networks.build import build
from uxnet.recipe import Optimiser, Schedule
from uxnet.training import checkpoint, loop, pace
from uxnet.training import validate as validate_module
from uxnet.training.checkpoint import _load_parts
from uxnet.training.engine import TrainingEngine
from uxnet.training.loop import Hooks, RunFiles, fit
from uxnet.training.losses import SegmentationLoss
from uxnet.training.progress import draw_curves
from uxnet.training.validate import Validation
from uxnet.volume import Volume

LABELS = Labels((Label("a", 1), Label("b", 2)))


class Spoilt(SegmentationLoss):
    """A loss that is multiplied by something at certain calls, counted from 0."""

    def __init__(self, settings, spoil):
        super().__init__(settings, LABELS)
        self.spoil, self.calls = spoil, 0

    def forward(self, logits, indices):
        factor = self.spoil.get(self.calls, 1.0)
        self.calls += 1
        return super().forward(logits, indices) * factor


@pytest.fixture(scope="module")
def cases():
    rng = np.random.default_rng(0)
    made = []
    for n in range(3):
        indices = rng.integers(0, 3, (16, 18, 17)).astype(np.uint8)
        image = (indices[None] + rng.normal(0, 0.5, (1, *indices.shape))).astype(np.float32)
        places = tuple(np.argwhere(indices == k).astype(np.int32) for k in (1, 2))
        made.append(CachedCase(str(n), image, indices, places))
    return made


@pytest.fixture
def run(tmp_path, cases, tiny_recipe):
    """run(spoil={}, scores=..., report=..., **training settings) -> (done, weights, events, stage, files)."""

    def go(
        spoil=None,
        scores=None,
        report=None,
        schedule=None,
        optimiser=None,
        stopping=None,
        scoring=None,
        drop_path=None,
        anew=False,
        **training,
    ):
        for path in (p for p in tmp_path.rglob("*") if p.is_file() and anew):
            path.unlink()
        stage = tiny_recipe.stages[0]
        stage = replace(stage, training=replace(stage.training, **training))
        if schedule is not None:
            stage = replace(stage, schedule=schedule)
        if optimiser is not None:
            stage = replace(stage, optimiser=optimiser)
        torch.manual_seed(0)
        network = build("uxnet", 1, 3, settings={**stage.network.settings, **({} if drop_path is None else {"drop_path": drop_path})})
        events, given = [], iter(scores or [])
        files = RunFiles(tmp_path)

        def hear(event):
            events.append(event)
            if report:
                report(event)

        done, weights = fit(
            network,
            cases,
            scoring or (lambda: Validation({"x": {"a": next(given, 0.5), "b": None}})),
            stage=stage,
            labels=LABELS,
            loss_of=Spoilt(stage.loss, spoil or {}),
            engine=TrainingEngine("cpu", "float32"),
            files=files,
            identity="test",
            hooks=Hooks(hear, stopping or (lambda: False)),
        )
        return done, dict(weights), events, files

    return go


def steps(files):
    return [r for r in read_records(files.metrics) if r["kind"] == "step"]


def test_a_run_learns_and_leaves_its_records(run):
    done, weights, events, files = run(steps=30, validate_every=15, ema=0.0)
    records = steps(files)
    assert [r["step"] for r in records] == list(range(1, 31))
    assert np.mean([r["loss"] for r in records[-5:]]) < 0.9 * np.mean([r["loss"] for r in records[:5]])
    assert records[0]["learning_rate"] == pytest.approx(1e-2)
    assert records[-1]["learning_rate"] < 1e-3
    assert (done.step, done.scores, done.skipped) == (30, [0.5, 0.5], 0)
    assert [r["step"] for r in read_records(files.metrics) if r["kind"] == "validation"] == [15, 30]
    told = [e for e in events if isinstance(e, Progress) and e.task == "training"]
    assert [(e.done, e.total) for e in told] == [(n, 30) for n in range(1, 31)]
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e12])
def test_a_step_with_an_absurd_loss_or_gradient_is_skipped_and_counted(run, factor):
    done, weights, events, files = run(spoil={2: factor, 5: factor}, steps=8)
    assert done.skipped == 2
    assert [r["skipped"] for r in steps(files)] == [0, 0, 1, 1, 1, 2, 2, 2]
    warnings = [e.message for e in events if isinstance(e, Warn)]
    assert [w.split(":")[0] for w in warnings] == ["step 3 skipped", "step 6 skipped"]
    shown = [e.values.get("skipped") for e in events if isinstance(e, Progress) and e.task == "training"]
    assert shown == [None, None, 1, 1, 1, 2, 2, 2]
    assert all(value.isfinite().all() for value in weights.values())
    for line in files.metrics.read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    draw_curves(files.folder / "curves.png", read_records(files.metrics), "a run with absurd steps")
    assert (files.folder / "curves.png").stat().st_size > 1000


def test_a_skipped_step_leaves_the_weights_as_they_were(run):
    _, before, _, _ = run(steps=4, ema=0.0, schedule=Schedule("constant"))
    _, after, events, _ = run(steps=5, ema=0.0, schedule=Schedule("constant"), spoil={0: math.nan})  # goes on with step 5
    assert len([e for e in events if isinstance(e, Warn)]) == 1
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_skips_in_a_row_stop_the_run(run):
    spoilt = dict.fromkeys([3, 5, 6, 7], math.nan)
    with pytest.raises(TrainingError, match=r"stopped at step 8: 3 steps in a row .*learning_rate"):
        run(spoil=spoilt, steps=20, skips_in_a_row=3, checkpoint_every=1, validate_every=20)
    # The weights before them are there, and the run can go on from them.
    done, weights, _, files = run(steps=9, skips_in_a_row=3, validate_every=20)
    assert done.step == 9
    assert [r["step"] for r in steps(files)] == list(range(1, 10))
    assert all(value.isfinite().all() for value in weights.values())


def test_the_best_validation_is_kept(run):
    done, _, _, files = run(steps=8, validate_every=2, scores=[0.3, 0.7, 0.7, 0.1])
    assert (done.best, done.best_step, done.scores) == (0.7, 4, [0.3, 0.7, 0.7, 0.1])
    assert files.best.is_file()


def test_validations_without_a_score(run):
    done, _, _, files = run(steps=4, validate_every=2, scores=[None, None])
    assert done.scores == [None, None]
    assert done.best_step == 0
    assert not files.best.exists()


def test_the_running_average(run):
    """What fit returns is the average of the weights after each step, its memory short at first."""
    after = []
    real = torch.optim.AdamW.step

    def noting(self, *arguments, **more):
        if not after:
            after.append([p.detach().clone() for p in self.param_groups[0]["params"]])
        result = real(self, *arguments, **more)
        after.append([p.detach().clone() for p in self.param_groups[0]["params"]])
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noting)
        _, averaged, _, _ = run(steps=5, ema=0.2)
    want = [w.double() for w in after[0]]
    for step, weights in enumerate(after[1:]):
        decay = min(0.2, (1 + step) / (10 + step))
        want = [decay * a + (1 - decay) * w for a, w in zip(want, weights, strict=True)]
    for got, wanted in zip(averaged.values(), want, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def test_cancelling_leaves_everything_in_order(run):
    def stop(event):
        if isinstance(event, Progress) and event.done == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        run(steps=8, report=stop)
    done, weights, _, files = run(steps=8)
    assert [r["step"] for r in steps(files)] == list(range(1, 9))
    for path in (files.last, files.best, files.metrics):
        path.unlink()
    _, uninterrupted, _, _ = run(steps=8)
    assert all(torch.equal(weights[key], uninterrupted[key]) for key in weights)
    assert done.step == 8


def test_asked_to_make_room_it_saves_and_leaves(run):
    """After any step, whether or not a checkpoint is due; and what goes on ends where an uninterrupted run does."""
    asked = iter([False, False, True])
    with pytest.raises(Preempted, match="after step 3 of 8; everything is saved"):
        run(steps=8, checkpoint_every=100, stopping=lambda: next(asked))
    done, weights, events, _ = run(steps=8, checkpoint_every=100)
    assert any("after step 3 of 8" in e.message for e in events if isinstance(e, Note))
    _, uninterrupted, _, _ = run(steps=8, checkpoint_every=100, anew=True)
    assert done.step == 8
    assert all(torch.equal(weights[key], uninterrupted[key]) for key in weights)


def test_what_is_lost_in_a_validation_is_the_validation(run):
    """A run that dies while cases are segmented goes on with that validation, not with the steps before it."""

    def die():
        raise Cancelled("now")

    with pytest.raises(Cancelled):
        run(steps=6, validate_every=3, checkpoint_every=100, scoring=die)
    done, _, events, files = run(steps=6, validate_every=3, scores=[0.25, 0.5])
    assert any("after step 3 of 6" in e.message for e in events if isinstance(e, Note))
    assert done.scores == [0.25, 0.5]
    assert [(r["kind"], r["step"]) for r in read_records(files.metrics) if r["kind"] == "validation"] == [
        ("validation", 3),
        ("validation", 6),
    ]


def test_it_stops_when_nothing_gets_better(run):
    done, _, events, files = run(steps=20, validate_every=2, stop_after=3, scores=[0.3, 0.5, 0.4, 0.5, 0.2, 0.9])
    assert (done.step, done.best_step, done.scores) == (10, 4, [0.3, 0.5, 0.4, 0.5, 0.2])
    assert len(steps(files)) == 10
    (said,) = [e.message for e in events if isinstance(e, Note)]
    assert "stopped early, after 10 of 20 steps: no better Dice than 0.5000 in 3 validations in a row" in said
    again, *_ = run(steps=20, validate_every=2, stop_after=3, scores=[1.0])  # a finished run stays finished
    assert again == done


def test_a_class_that_is_lost_stops_the_run(run):
    scores = [0.6, 0.7, 0.02, 0.0, 0.01, 0.9]
    with pytest.raises(TrainingError, match=r"stopped at step 10: lost after it had been found: a \(Dice 0\.70 at best"):
        run(steps=12, validate_every=2, scores=scores)
    done, _, events, _ = run(steps=12, validate_every=2, scores=scores, collapse_after=0, anew=True)
    assert done.step == 12
    _, _, events, _ = run(steps=12, validate_every=2, scores=[0.6, 0.7, 0.02, 0.6, 0.7, 0.7], anew=True)
    assert ["lost after" in e.message for e in events if isinstance(e, Warn)] == [True]  # said, and it came back


def test_parts_of_a_batch_give_the_gradient_of_the_whole(run):
    """The first moments after one step are a tenth of the gradient."""
    moments = []
    for parts in (1, 2, 4):
        *_, files = run(steps=1, batch=4, accumulate=parts, ema=0.0, drop_path=0.0, anew=True)
        tensors = _load_parts(files.last)[0]
        moments.append(torch.cat([v.flatten() for k, v in sorted(tensors.items()) if k.endswith(".exp_avg")]).double())
    for parted in moments[1:]:
        assert (parted - moments[0]).norm() < 1e-5 * moments[0].norm()


def test_frozen_parts_keep_their_weights(run, tiny_recipe):
    torch.manual_seed(0)
    fresh = build("uxnet", 1, 3, settings=tiny_recipe.stages[0].network.settings).state_dict()
    _, weights, _, _ = run(steps=3, ema=0.0, optimiser=Optimiser(1e-2, freeze=("stem", "stages.0")))
    frozen = [key for key in fresh if key.startswith(("stem.", "stages.0."))]
    assert frozen
    assert all(torch.equal(weights[key], fresh[key]) for key in frozen)
    assert not torch.equal(weights["head.weight"], fresh["head.weight"])


@pytest.mark.parametrize("name", ["nothing", "stage", "stages.0.0.n"])
def test_a_part_that_is_not_there_cannot_be_frozen(run, name):
    with pytest.raises(RecipeError, match=rf"optimiser\.freeze: nothing .* '{name}'; its parts are stem, "):
        run(steps=3, optimiser=Optimiser(freeze=(name,)))


def test_early_layers_change_less(run, tiny_recipe):
    torch.manual_seed(0)
    fresh = build("uxnet", 1, 3, settings=tiny_recipe.stages[0].network.settings).state_dict()
    _, weights, _, files = run(
        steps=1, ema=0.0, schedule=Schedule("constant"), optimiser=Optimiser(1e-2, layer_decay=0.5, weight_decay=0.0)
    )
    # AdamW's first step moves each weight by the learning rate.
    stem, head = ((weights[key] - fresh[key]).abs().median().item() for key in ("stem.conv.weight", "head.weight"))
    assert head == pytest.approx(1e-2, rel=1e-3)
    assert stem < 1e-2 * 0.5**4
    assert steps(files)[0]["learning_rate"] == pytest.approx(1e-2)


def test_a_compiled_network_learns_the_same(run):
    *_, files = run(steps=3, drop_path=0.0)
    plain = [r["loss"] for r in steps(files)]
    _, _, events, files = run(steps=3, drop_path=0.0, compile=True, anew=True)
    assert not [e for e in events if isinstance(e, Warn)]
    assert [r["loss"] for r in steps(files)] == pytest.approx(plain, rel=1e-3)


def test_where_nothing_can_be_compiled_the_network_runs_as_it_is(run, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    done, _, events, _ = run(steps=2, compile=True)
    assert done.step == 2
    assert any("training.compile" in e.message and "no compiler" in e.message for e in events if isinstance(e, Warn))


@pytest.mark.parametrize("step", [0, 3])
def test_what_goes_wrong_while_reading_reaches_the_user_as_itself(run, monkeypatch, step):
    """And nothing hangs; the steps before it are recorded."""
    real = loop.read_batch

    def reading(cases, sampling, samples, seed, at, shown):
        if at == step:
            raise DatasetError("x.case: damaged")
        return real(cases, sampling, samples, seed, at, shown)

    monkeypatch.setattr(loop, "read_batch", reading)
    with pytest.raises(DatasetError, match=r"^x\.case: damaged$"):
        run(steps=8)


def test_the_mean_of_a_validation_is_over_what_counts():
    scores = Validation({"x": {"a": 1.0, "b": None}, "y": {"a": 0.0, "b": 0.5}, "z": {"a": None, "b": None}})
    assert scores.classes == {"a": 0.5, "b": 0.5}
    assert scores.mean == pytest.approx((1.0 + 0.25) / 2)
    assert Validation({}).mean is None


def test_a_class_that_no_validation_case_shows_has_no_score(tmp_path, monkeypatch):
    """However much of it is predicted; one that some case shows, perhaps of another process, counts where it is found falsely."""
    labels, geometry = Labels((Label("a", 1), Label("b", 2), Label("c", 3))), Geometry((4, 4, 4), np.eye(4))
    cases = []
    for name, values in (("x", [1]), ("y", [1, 3])):
        array = np.zeros((1, 4, 4, 4), np.uint8)
        array[0, 0, 0, : len(values)] = values
        write_labels(tmp_path / f"{name}.nii.gz", Volume(array, geometry))
        cases.append(Case(name, (tmp_path / f"{name}.nii.gz",), tmp_path / f"{name}.nii.gz", name))
    found = np.zeros((1, 4, 4, 4), np.uint8)
    found[0, 0, 0, :3] = (1, 2, 3)
    monkeypatch.setattr(validate_module, "segment", lambda *_: Volume(found, geometry))

    def of(*chosen):
        return validate_module.validate(chosen, (), (), labels)

    alone = {"a": 1.0, "b": None, "c": None}
    assert of(cases[0]).to_dict() == {"dice": 1.0, "classes": alone, "cases": {"x": alone}}
    both = {"x": {"a": 1.0, "b": None, "c": 0.0}, "y": {"a": 1.0, "b": None, "c": 0.0}}
    for validation in (of(*cases), validate_module.joined([of(cases[1]), of(), of(cases[0])], ["x", "y"])):
        assert validation.to_dict() == {"dice": 0.5, "classes": {"a": 1.0, "b": None, "c": 0.0}, "cases": both}


LACKING = [
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:7] err == 0. DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    RuntimeError("std::bad_alloc"),
    MemoryError("Unable to allocate 8.00 GiB for an array"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has a total capacity of\nException raised from x (most"),
]


@pytest.mark.parametrize(
    ("where", "name", "when", "error"),
    [
        (loop, "read_batch", "in step 1", LACKING[3]),
        *((loop._Stepping, "_gradient", "in step 1", error) for error in LACKING),
        (torch.optim.AdamW, "step", "in step 1", LACKING[0]),
        (loop, "_move_average", "in step 1", LACKING[1]),
        (loop, "_begun", "before the first step", LACKING[2]),
    ],
)
def test_a_step_that_does_not_fit_into_memory_says_what_to_do(where, name, when, error, run, monkeypatch):
    def greedy(*_, **__):
        raise error

    monkeypatch.setattr(where, name, greedy)
    said = (
        rf"stopped {when}: cpu has not the memory for 2 patches of 16x16x16 voxels \([^\n\[]*\)\. Raise training\.accumulate, lower [^\n]*"
    )
    with pytest.raises(TrainingError) as caught:
        run(steps=2)
    assert re.fullmatch(said, str(caught.value))


def test_a_validation_that_does_not_fit_into_memory_says_what_to_do(run):
    def greedy():
        raise MemoryError("Unable to allocate 8.00 GiB")

    with pytest.raises(
        TrainingError, match=r"in the validation after step 1: cpu has not the memory for whole cases .* Lower inference\.batch"
    ):
        run(steps=1, scoring=greedy)


def test_a_checkpoint_that_does_not_fit_into_memory_is_what_is_named(run, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(
        TrainingError, match=r"^stopped while saving step 1: cpu has not the memory for a checkpoint \(MemoryError\)\. Leave"
    ):
        run(steps=1)


def test_what_torch_says_of_its_own_code_is_not_shown(run, monkeypatch):
    def wrong(*_):
        raise RuntimeError(
            "Sizes do not fit. Look here.\nException raised from add at x.cpp:3 (most recent call first):\nframe #0: c10::Error"
        )

    monkeypatch.setattr(loop._Stepping, "_gradient", wrong)
    with pytest.raises(TrainingError, match=r"^stopped in step 1: Sizes do not fit$"):
        run(steps=2)


def test_other_errors_of_a_step_stay_what_they_are(run, monkeypatch):
    def wrong(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loop._Stepping, "_gradient", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        run(steps=2)


def test_a_skipped_step_leaves_no_trace_in_batch_norms(tmp_path, cases, tiny_recipe):
    stage = tiny_recipe.stages[0]
    stage = replace(stage, training=replace(stage.training, steps=5, validate_every=5, ema=0.0))
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 1), torch.nn.BatchNorm3d(4), torch.nn.Conv3d(4, 3, 1))
    done, weights = fit(
        network,
        cases,
        lambda: Validation({"x": {"a": 0.5, "b": None}}),
        stage=stage,
        labels=LABELS,
        loss_of=Spoilt(stage.loss, {1: math.inf, 3: math.nan}),
        engine=TrainingEngine("cpu", "float32"),
        files=RunFiles(tmp_path),
        identity="test",
        hooks=Hooks(lambda _: None),
    )
    assert (done.step, done.skipped) == (5, 2)
    assert weights["1.num_batches_tracked"] == 3


def test_others_that_take_the_cores_are_warned_of_once_and_bursts_are_not(monkeypatch):
    """Two threads on two cores; each look is a measurement, of so many cores left free."""
    monkeypatch.setattr(pace, "load", lambda: Load(0, 0, -math.inf))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for free, warned in (
        ([2.0, 1.9, 1.6, 1.7, 1.55], []),
        ([0.2, 2.0, 0.2, 2.0, 0.2], []),
        ([2.0, 1.2, 1.0, 0.9, 0.9], ["threads=1"]),
        ([0.1, 0.1], ["threads=1"]),
    ):
        events, given = [], iter(free)
        monkeypatch.setattr(pace, "free_cores", lambda before, after, given=given: next(given))
        crowding = pace.Crowding(torch.device("cpu"), events.append)
        for _ in range(len(free)):
            crowding.look()
        assert [event.message.split("; go on with ")[1] for event in events] == warned
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert pace.Crowding(torch.device("cpu"), events.append).before is None  # it could not have fewer
    assert pace.Crowding(torch.device("cuda"), events.append).before is None


def test_going_on_with_other_threads_is_said(run, monkeypatch):
    run(steps=1)
    _, _, events, _ = run(steps=1)
    assert not any("threads" in event.message for event in events if isinstance(event, Note))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    _, _, events, _ = run(steps=1)
    assert any(
        "it trained with 1 thread so far and goes on with 3: the last bits" in event.message for event in events if isinstance(event, Note)
    )
