"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from uxnet.augment import augment
from uxnet.dataset.cache import CachedCase
from uxnet.dataset.patches import read_batch
from uxnet.errors import TrainingError
from uxnet.events import Note, Progress, Report, Warn
from uxnet.recipe import Optimiser as OptimiserSettings
from uxnet.recipe import Stage
from uxnet.records import append_record, keep_records
from uxnet.training.checkpoint import Progressed, load_checkpoint, save_checkpoint, save_weights
from uxnet.training.engine import TrainingEngine
from uxnet.training.losses import SegmentationLoss
from uxnet.training.schedule import learning_rate
from uxnet.training.validate import Validation

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


def fit(
    network: nn.Module,
    cases: Sequence[CachedCase],
    validate: Callable[[nn.Module], Validation],
    *,
    stage: Stage,
    loss_of: SegmentationLoss,
    engine: TrainingEngine,
    files: RunFiles,
    identity: str,
    report: Report,
    on_validation: Callable[[], None],
) -> tuple[Progressed, Mapping[str, Tensor]]:
    """Trains a network until the recipe's last step, going on from the last checkpoint if there is one.

    Everything random is a function of (seed, step, sample), so that a run that was interrupted gives the weights of one that was not.

    Args:
        cases: prepared, to draw patches from.
        validate: scores the network on whole cases.
        files: where checkpoints and records go.
        identity: what the run is; a checkpoint of another is refused.
        on_validation: called when a validation has been recorded.

    Returns:
        How far it came, and the last weights (their running average where the recipe asks for one).

    Raises:
        TrainingError: if too many steps in a row had to be skipped; checkpoints and records stay.
    """
    settings, seed = stage.training, stage.training.seed
    running, optimiser = engine.setup(network, _adamw(network, stage.optimiser))
    average = {key: value.detach().clone() for key, value in network.state_dict().items()} if settings.ema else {}
    done = Progressed()
    if files.last.exists():
        done = load_checkpoint(files.last, network, optimiser, average, identity)
        report(Note(f"going on after step {done.step} of {settings.steps}"))
    keep_records(files.metrics, lambda record: record["step"] <= done.step)
    clock = _Clock(done.step, done.seconds)

    def checkpoint() -> None:
        done.seconds = clock.seconds
        save_checkpoint(files.last, network, optimiser, average, done, identity)

    for images, indices in _batches(cases, stage, done.step):
        step = done.step
        torch.manual_seed(_mixed(seed, step))  # for what draws from torch inside the network, such as drop path
        rate = learning_rate(stage.schedule, stage.optimiser.learning_rate, step, settings.steps, done.scores)
        for group in optimiser.param_groups:
            group["lr"] = rate

        on_device = engine.put(torch.from_numpy(images)), engine.put(_as_tensor(indices))
        x, target = augment(*on_device, stage.augment, seed, step, stage.prepare.spacing_mm, masks=1 if stage.prior else 0)
        running.train()
        loss = loss_of(running(x), target)
        engine.backward(loss)
        norm = engine.gradient_norm(running, optimiser, settings.clip_gradient)
        # A scaled loss (float16) overflows now and then by design: its scaler skips that step and lowers the scale.
        sane = math.isfinite(float(loss.detach())) and (norm < settings.absurd_gradient or (engine.scales_loss and math.isfinite(norm)))
        if sane or engine.scales_loss:
            optimiser.step()
        if sane:
            _move_average(average, network, settings.ema, step)
            done.skipped_in_a_row = 0
        else:
            done.skipped += 1
            done.skipped_in_a_row += 1
            report(Warn(f"step {step + 1} skipped: loss {float(loss.detach()):.3g}, gradient norm {norm:.3g} ({done.skipped} so far)"))
        optimiser.zero_grad(set_to_none=True)
        done.step = step + 1

        record = {"step": done.step, "loss": float(loss.detach()), "learning_rate": rate, "gradient_norm": norm, "skipped": done.skipped}
        append_record(files.metrics, _finite(record) | {"kind": "step", "seconds": round(clock.seconds, 2)})
        if done.skipped_in_a_row >= settings.skips_in_a_row:
            raise TrainingError(
                f"stopped at step {done.step}: {done.skipped_in_a_row} steps in a row had a loss or gradient that is not finite or absurd "
                f"(last: loss {float(loss.detach()):.3g}, gradient norm {norm:.3g}). The checkpoint before them is kept. "
                "Try a lower optimiser.learning_rate or training.precision=float32"
            )
        last = done.step == settings.steps
        if last or done.step % settings.validate_every == 0:
            weights = average or network.state_dict()
            validation = _with_weights(network, average, validate)
            done.scores.append(validation.mean)
            append_record(files.metrics, {"step": done.step, "kind": "validation", **validation.to_dict()})
            if validation.mean is not None and validation.mean > done.best:
                done.best, done.best_step = validation.mean, done.step
                save_weights(files.best, weights, {"step": done.step, "dice": validation.mean})
            on_validation()
        report(Progress("training", done.step, settings.steps, _shown(done, record, clock, settings.steps)))
        if last or done.step % settings.checkpoint_every == 0 or done.step % settings.validate_every == 0:
            checkpoint()
    return done, average or network.state_dict()


def _adamw(network: nn.Module, settings: OptimiserSettings) -> Optimizer:
    return torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )


def _batches(cases: Sequence[CachedCase], stage: Stage, first: int) -> Iterator[Batch]:
    """The batches of the steps from `first` on, each read while the one before it is computed."""
    settings = stage.training
    with ThreadPoolExecutor(1) as reader:

        def ask(step: int) -> Any:
            return reader.submit(read_batch, cases, stage.sampling, settings.batch, settings.seed, step)

        coming = ask(first) if first < settings.steps else None
        for step in range(first, settings.steps):
            batch = coming.result()  # type: ignore[union-attr]  # there is one whenever there is a step
            coming = ask(step + 1) if step + 1 < settings.steps else None
            yield batch


def _move_average(average: dict[str, Tensor], network: nn.Module, decay: float, step: int) -> None:
    """The running average of the weights, with a shorter memory in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for key, value in network.state_dict().items():
        if key in average:
            average[key].lerp_(value.detach(), 1 - decay) if value.is_floating_point() else average[key].copy_(value)


def _with_weights(network: nn.Module, average: Mapping[str, Tensor], validate: Callable[[nn.Module], Validation]) -> Validation:
    """A validation with the averaged weights in the network, and its own put back."""
    if not average:
        return validate(network)
    own = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.load_state_dict(average)
    try:
        return validate(network)
    finally:
        network.load_state_dict(own)


class _Clock:
    """Seconds spent, those of earlier parts of the run included, and the time left."""

    def __init__(self, step: int, seconds: float) -> None:
        self.first, self.before, self.started = step, seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def left(self, step: int, steps: int) -> float:
        return (time.monotonic() - self.started) / max(1, step - self.first) * (steps - step)


def _shown(done: Progressed, record: Mapping[str, Any], clock: _Clock, steps: int) -> dict[str, float | int | str]:
    values: dict[str, float | int | str] = {"loss": round(record["loss"], 4), "rate": float(f"{record['learning_rate']:.2e}")}
    if done.scores and done.scores[-1] is not None:
        values |= {"dice": round(done.scores[-1], 4), "best": round(done.best, 4)}
    if done.skipped:
        values["skipped"] = done.skipped
    return values | {"seconds_left": round(clock.left(done.step, steps))}


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: a value that is not finite is written as a word."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _as_tensor(indices: NDArray[Any]) -> Tensor:
    return torch.from_numpy(indices.astype(np.int16 if indices.dtype == np.uint16 else indices.dtype, copy=False))


def _mixed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step, 2)).generate_state(1, np.uint64)[0] >> 1)
