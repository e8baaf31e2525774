"""The training loop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from uxnet.dataset.cache import CachedCase
from uxnet.dataset.patches import read_batch, what_is_shown
from uxnet.dataset.sides import lateral_axis, paired_indices
from uxnet.errors import Preempted, TrainingError, plural
from uxnet.events import Note, Progress, Report, Warn
from uxnet.io.records import append_record, keep_records, sync_records
from uxnet.io.schemas import MetricsLine
from uxnet.labels import Labels
from uxnet.networks.build import architecture
from uxnet.recipe import Optimiser as OptimiserSettings
from uxnet.recipe import Stage, Training
from uxnet.training.augment import augment
from uxnet.training.checkpoint import Progressed, State, load_checkpoint, save_checkpoint, save_weights
from uxnet.training.distil import Teachers
from uxnet.training.engine import Ready, TrainingEngine, whole, why_not_compiled
from uxnet.training.failures import SAVING, VALIDATING, plain_errors
from uxnet.training.groups import freeze, layer_depths, parameter_groups, resting
from uxnet.training.losses import SegmentationLoss
from uxnet.training.pace import Clock, Crowding
from uxnet.training.schedule import learning_rate
from uxnet.training.validate import Validation
from uxnet.training.watch import lost_classes, lost_message, stalled_message, stops_early

Batch = tuple[NDArray[np.float32], NDArray[Any]]


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what."""

    folder: Path

    @property
    def last(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """The weights of the best validation."""
        return self.folder / "checkpoints" / "best.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step and a validation."""
        return self.folder / "metrics.jsonl"


@dataclass(frozen=True)
class Hooks:
    """What is called while a run goes on.

    report: hears of progress, notes and warnings.
    stopping: asked after every step whether to save and leave.
    on_record: hears every record that is written; in the first process only.
    """

    report: Report
    stopping: Callable[[], bool] = lambda: False
    on_record: Callable[[Mapping[str, Any]], None] = lambda _: None


def fit(
    network: nn.Module,
    cases: Sequence[CachedCase],
    validate: Callable[[], Validation],
    *,
    stage: Stage,
    labels: Labels,
    loss_of: SegmentationLoss,
    engine: TrainingEngine,
    files: RunFiles,
    identity: str,
    hooks: Hooks,
    teachers: Teachers | None = None,
) -> tuple[Progressed, dict[str, Tensor]]:
    """Trains a network until the recipe's last step, going on from the last checkpoint if there is one.

    Everything random is a function of (seed, step, sample), so that a run that was interrupted gives the weights of one that was not,
    and several processes compute what one would. Every process calls it.

    Args:
        network: holds the weights that `validate` scores, whenever it is called.
        cases: prepared, to draw patches from.
        validate: scores the network on whole cases; in every process the same.
        labels: of the cases.
        files: where checkpoints and records go.
        identity: what the run is; a checkpoint of another is refused.
        teachers: are asked about every batch; on the engine's device.

    Returns:
        How far it came, and the last weights (their running average where the recipe asks for one).

    Raises:
        TrainingError: if too many steps in a row had to be skipped, a class that was found is lost, or the device has not the memory
            for it; checkpoints and records stay.
        Preempted: if `hooks.stopping` says so; everything is saved.
    """
    settings, report = stage.training, hooks.report
    with plain_errors(stage, engine.device, lambda: "before the first step"):
        ready, state = _begun(network, cases, stage, engine, report)
        if files.last.exists():
            _go_on(files.last, state, engine, identity, settings, report)
    done, crowding = state.done, Crowding(engine.device, report)
    if engine.rank == 0:

        def kept(record: Mapping[str, Any]) -> bool:
            return bool(record["step"] <= (done.validated if record["kind"] == "validation" else done.step))

        keep_records(files.metrics, kept, MetricsLine, report)
    clock = Clock(done.step, done.seconds)
    stepping = _Stepping(ready, state, stage, loss_of, engine, hooks, _sides(stage, labels), resting(ready.trained), teachers)

    def checkpoint() -> None:
        done.seconds = clock.seconds
        if engine.rank == 0:
            sync_records(files.metrics)  # what is recorded by a checkpoint has to be there if the checkpoint is
        with plain_errors(stage, engine.device, lambda: f"while saving step {done.step}", SAVING):
            save_checkpoint(files.last, state, engine, identity)

    def record(kind: str, values: Mapping[str, Any]) -> None:
        line = {**_finite(values), "kind": kind}
        if engine.rank == 0:
            append_record(files.metrics, line, sync=False)
            hooks.on_record(line)

    with (
        plain_errors(stage, engine.device, lambda: f"in step {done.step + 1}"),
        contextlib.closing(_batches(cases, stage, engine.share(settings.batch), done.step)) as batches,
    ):
        while True:
            if _validation_due(done, settings):
                checkpoint()  # so that nothing is lost while whole cases are segmented
                with plain_errors(stage, engine.device, lambda: f"in the validation after step {done.step}", VALIDATING):
                    validation = _validated(network, state, validate)
                done.validated = done.step
                done.scores.append(validation.mean)
                done.classes.append(validation.classes)
                record("validation", {"step": done.step, **validation.to_dict()})
                if validation.mean is not None and validation.mean > done.best:
                    done.best, done.best_step = validation.mean, done.step
                    _save_best(files.best, state, engine, identity)
                checkpoint()
                _refuse_collapse(done, settings, report)
            if _finished(done, settings):
                if done.step < settings.steps:
                    report(Note(f"stopped early, after {done.step} of {settings.steps} steps: {stalled_message(done.scores)}"))
                break

            values, halt = stepping.take(next(batches))
            record("step", {**values, "seconds": round(clock.seconds, 2)})
            _refuse_skips(done, settings, values)
            crowding.look()
            report(Progress("training", done.step, settings.steps, _shown(done, values, clock, settings.steps)))
            if halt:
                checkpoint()
                raise Preempted(f"stopped after step {done.step} of {settings.steps}; everything is saved, go on with resume=True")
            if done.step % settings.checkpoint_every == 0 and not _validation_due(done, settings):
                checkpoint()
    weights = state.average or ready.trained.state_dict()
    return done, {key: whole(value.detach()).clone() for key, value in weights.items()}


@dataclass(frozen=True)
class _Stepping:
    """What a step needs besides its batch; mirrors: see `_sides`; still: the frozen modules, which stay as if segmenting."""

    ready: Ready
    state: State
    stage: Stage
    loss_of: SegmentationLoss
    engine: TrainingEngine
    hooks: Hooks
    mirrors: Mapping[str, Any]
    still: Sequence[nn.Module]
    teachers: Teachers | None

    def take(self, batch: Batch) -> tuple[dict[str, Any], bool]:
        """Takes a step, or skips it without a trace where loss or gradient are absurd.

        Returns:
            What records say of it, and whether some process was asked to stop.
        """
        ready, done, settings, step = self.ready, self.state.done, self.stage.training, self.state.done.step
        rate = learning_rate(self.stage.schedule, self.stage.optimiser.learning_rate, step, settings.steps, done.scores)
        for group in ready.stepping.param_groups:
            group["lr"] = rate * group["factor"]
        ready.running.train()
        for module in self.still:
            module.eval()
        # Batch norms take a step's statistics up before anybody knows whether it is skipped.
        before = [(buffer, buffer.detach().clone()) for buffer in ready.trained.buffers()]
        loss = self._gradient(batch)
        norm = self.engine.gradient_norm(ready.running, ready.stepping, settings.clip_gradient)
        loss, halt = self.engine.mean([loss, float(self.hooks.stopping())])
        if math.isfinite(loss) and norm < settings.absurd_gradient:
            ready.stepping.step()
            _move_average(self.state.average, ready.trained, settings.ema, step)
            done.skipped_in_a_row = 0
        else:
            self.engine.skip()
            for buffer, value in before:
                buffer.copy_(value)
            done.skipped += 1
            done.skipped_in_a_row += 1
            self.hooks.report(Warn(f"step {step + 1} skipped: loss {loss:.3g}, gradient norm {norm:.3g} ({done.skipped} so far)"))
        ready.stepping.zero_grad(set_to_none=True)
        done.step = step + 1
        return {"step": done.step, "loss": loss, "learning_rate": rate, "gradient_norm": norm, "skipped": done.skipped}, halt > 0

    def _gradient(self, batch: Batch) -> float:
        """Adds this process's part of the gradient up, in as many parts as the recipe says; returns its mean loss."""
        ready, stage, engine, step = self.ready, self.stage, self.engine, self.state.done.step
        seed, parts = stage.training.seed, stage.training.accumulate
        samples = engine.share(stage.training.batch)
        each = -(-len(samples) // parts)
        images, indices = engine.put(torch.from_numpy(batch[0])), engine.put(_as_tensor(batch[1]))
        total = images.new_zeros((), dtype=torch.float32)
        for first in range(0, len(samples), each):
            part = slice(first, first + each)
            share = len(samples[part]) / len(samples)
            torch.manual_seed(_mixed(seed, step, samples[first]))  # for what draws from torch inside the network, such as drop path
            x, target = augment(
                images[part],
                indices[part],
                stage.augment,
                seed,
                step,
                stage.prepare.spacing_mm,
                masks=1 if stage.prior else 0,
                samples=samples[part],
                **self.mirrors,
            )
            taught = (self.teachers.answers(x, engine),) if self.teachers else ()
            with engine.accumulating(ready.running, more=first + each < len(samples)):
                loss = self.loss_of(ready.running(x), target, *taught) * share
                engine.backward(loss)
            total += loss.detach()
        return float(total)


def _begun(network: nn.Module, cases: Sequence[CachedCase], stage: Stage, engine: TrainingEngine, report: Report) -> tuple[Ready, State]:
    """The network with its optimiser on the device, before the first step."""
    settings = stage.optimiser
    freeze(network, settings.freeze, architecture(stage.network.name).untrained)
    channels = stage.in_channels(len(cases[0].image))
    depths = layer_depths(network, channels, stage.sampling.patch) if settings.layer_decay < 1 else None

    def optimiser_of(trained: nn.Module) -> Optimizer:
        return _adamw(parameter_groups(trained, settings.layer_decay, depths), settings)

    wanted = stage.training.compile
    if wanted and (why := why_not_compiled()):
        report(Warn(f"training.compile: torch cannot compile here ({why}); the network runs as it is"))
        wanted = False
    ready = engine.setup(network, optimiser_of, wanted)
    average = {key: value.detach().clone() for key, value in ready.trained.state_dict().items()} if stage.training.ema else {}
    return ready, State(ready.trained, ready.optimiser, average)


def _go_on(last: Path, state: State, engine: TrainingEngine, identity: str, settings: Training, report: Report) -> None:
    """Puts the last checkpoint into the state, and says so."""
    before, now = load_checkpoint(last, state, engine, identity), torch.get_num_threads()
    report(Note(f"going on after step {state.done.step} of {settings.steps}"))
    if before is not None and before != now and engine.device.type == "cpu":
        report(
            Note(
                f"it trained with {plural(before, 'thread')} so far and goes on with {now}: the last bits of its weights may "
                "differ from those of a run that was not interrupted"
            )
        )


def _sides(stage: Stage, labels: Labels) -> dict[str, Any]:
    """What `augment` needs to know of left and right. A guided stage is asked about one structure, whatever its name."""
    lateral = lateral_axis(stage.prepare.orientation)
    trades = stage.augment.mirror[lateral] and not stage.prior
    return {"lateral": lateral, "pairs": paired_indices(labels) if trades else ()}


def _adamw(groups: list[dict[str, Any]], settings: OptimiserSettings) -> Optimizer:
    # On CPUs torch goes through weights one after the other unless told otherwise, with intermediates, in twice the time.
    fused = True if all(p.device.type == "cpu" for group in groups for p in group["params"]) else None
    rate, betas, eps, decay = settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, weight_decay=decay, fused=fused)


def _batches(cases: Sequence[CachedCase], stage: Stage, samples: Sequence[int], first: int) -> Generator[Batch]:
    """The batches of the steps from `first` on, each read while the one before it is computed."""
    settings, shown = stage.training, what_is_shown(cases)
    with ThreadPoolExecutor(1) as reader:

        def ask(step: int) -> Any:
            return reader.submit(read_batch, cases, stage.sampling, samples, settings.seed, step, shown)

        coming = ask(first) if first < settings.steps else None
        for step in range(first, settings.steps):
            batch = coming.result()  # type: ignore[union-attr]  # there is one whenever there is a step
            coming = ask(step + 1) if step + 1 < settings.steps else None
            yield batch


def _validation_due(done: Progressed, settings: Training) -> bool:
    return done.validated < done.step and (done.step % settings.validate_every == 0 or done.step == settings.steps)


def _finished(done: Progressed, settings: Training) -> bool:
    return done.step >= settings.steps or stops_early(done.scores, settings.stop_after)


def _validated(network: nn.Module, state: State, validate: Callable[[], Validation]) -> Validation:
    """A validation with the averaged weights in the network, and its own put back."""
    if state.network is not network:  # fsdp: what is trained lies in parts, and this network is for segmenting alone
        network.load_state_dict({key: whole(value) for key, value in (state.average or state.network.state_dict()).items()})
        return validate()
    if not state.average:
        return validate()
    own = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.load_state_dict(state.average)
    try:
        return validate()
    finally:
        network.load_state_dict(own)


def _save_best(path: Path, state: State, engine: TrainingEngine, identity: str) -> None:
    weights = {key: whole(value) for key, value in (state.average or state.network.state_dict()).items()}
    header = {"step": state.done.best_step, "dice": state.done.best, "identity": identity}
    engine.first(lambda: save_weights(path, weights, header))


def _refuse_collapse(done: Progressed, settings: Training, report: Report) -> None:
    lost = lost_classes(done.classes)
    if not settings.collapse_after or not lost:
        return
    message = lost_message(done.classes, lost)
    if max(lost.values()) >= settings.collapse_after:
        raise TrainingError(f"stopped at step {done.step}: {message}")
    report(Warn(message))


def _refuse_skips(done: Progressed, settings: Training, last: Mapping[str, Any]) -> None:
    if done.skipped_in_a_row >= settings.skips_in_a_row:
        raise TrainingError(
            f"stopped at step {done.step}: {plural(done.skipped_in_a_row, 'step')} in a row had a loss or gradient that is not finite or "
            f"absurd (last: loss {last['loss']:.3g}, gradient norm {last['gradient_norm']:.3g}). The checkpoint before them is kept. "
            "Try a lower optimiser.learning_rate or training.precision=float32"
        )


def _move_average(average: dict[str, Tensor], network: nn.Module, decay: float, step: int) -> None:
    """The running average of the weights, with a shorter memory in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for key, value in network.state_dict().items():
        if key in average:
            average[key].lerp_(value.detach(), 1 - decay) if value.is_floating_point() else average[key].copy_(value)


def _shown(done: Progressed, values: Mapping[str, Any], clock: Clock, steps: int) -> dict[str, float | int | str]:
    shown: dict[str, float | int | str] = {"loss": round(values["loss"], 4), "rate": float(f"{values['learning_rate']:.2e}")}
    if done.scores and done.scores[-1] is not None:
        shown |= {"dice": round(done.scores[-1], 4), "best": round(done.best, 4)}
    if done.skipped:
        shown["skipped"] = done.skipped
    return shown | {"seconds_left": round(clock.left(done.step, steps))}


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: a value that is not finite is written as a word."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _as_tensor(indices: NDArray[Any]) -> Tensor:
    return torch.from_numpy(indices.astype(np.int16 if indices.dtype == np.uint16 else indices.dtype, copy=False))


def _mixed(seed: int, step: int, sample: int) -> int:
    return int(np.random.SeedSequence((seed, step, sample, 2)).generate_state(1, np.uint64)[0] >> 1)
