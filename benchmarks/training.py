"""Training throughput: a whole run against its network alone on a fixed batch, against MONAI's way, and one process against two.

    python benchmarks/training.py DATASET [--cases N] [--rounds N] [--steps N] [--threads N] [--precision P] [-o FILE.json]

The recipe is `hippocampus`. Ours compute in `--precision`, by default what `uxnet train` takes by itself: bfloat16 on a processor that
has it, else float32; MONAI's defaults in float32, as its pipelines do unless told otherwise. Each contestant lives in a process of its
own and works while the others wait: `--steps` steps a round, in turn, one round to warm up. What is printed is the median over the
rounds, and the median of the rounds' ratios to the first one.

    the network alone                     forwards, loss, backwards, clipping, AdamW on one batch again and again: no data, no records
    a run                                 `fit`: patches, augmentation, network, optimiser, records
    the network, fed by MONAI             the same network and optimiser; patches and augmentation by MONAI, as in data_path.py
    MONAI's defaults                      that pipeline, MONAI's DiceCELoss, contiguous memory and torch's own kernels, as the
                                          authors' script has them

Then whole runs of `uxnet train` in one process with one and with two threads, and in two processes with one thread each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from data_path import monai_batches
from rich.console import Console
from rich.table import Table
from training_step import torchs_kernels

from uxnet.dataset.cache import CachedCase, build_cache, open_case
from uxnet.dataset.manifest import Manifest, read_dataset
from uxnet.io.records import read_records
from uxnet.machine import reset_peak, take_peak
from uxnet.networks import blocks
from uxnet.networks.build import build
from uxnet.networks.cpu import kernels as kernels_cpu
from uxnet.recipe import Stage, load_recipe
from uxnet.training.engine import TrainingEngine
from uxnet.training.loop import Hooks, RunFiles, fit
from uxnet.training.losses import SegmentationLoss
from uxnet.training.validate import Validation

ALONE, RUN, FED, MONAI = "the network alone", "a run", "the network, fed by MONAI", "MONAI's defaults"


def network_of(stage: Stage, manifest: Manifest) -> torch.nn.Module:
    torch.manual_seed(0)
    labels = manifest.labels
    return build(stage.network.name, len(manifest.channel_names), labels.out_channels, stage.sampling.patch, stage.network.settings)


def run_steps(stage: Stage, cases: list[CachedCase], manifest: Manifest, folder: Path, precision: str) -> Callable[[int], float]:
    """Whole runs: seconds a step between the third and the last, as the records have them."""

    def work(steps: int) -> float:
        training = replace(stage.training, steps=steps + 3, validate_every=steps + 3, checkpoint_every=steps + 3)
        own = replace(stage, training=training)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            files = RunFiles(Path(name))
            fit(
                network_of(stage, manifest),
                cases,
                lambda: Validation({}),
                stage=own,
                labels=manifest.labels,
                loss_of=SegmentationLoss(stage.loss, manifest.labels),
                engine=TrainingEngine("cpu", precision),
                files=files,
                identity="benchmark",
                hooks=Hooks(lambda _: None),
            )
            ends = [r["seconds"] for r in read_records(files.metrics) if r["kind"] == "step"]
        return (ends[-1] - ends[2]) / steps

    return work


def loop_steps(
    stage: Stage, manifest: Manifest, batches: Iterator[tuple[torch.Tensor, torch.Tensor]], precision: str, monai: bool
) -> Callable[[int], float]:
    """A plain loop over batches (images, indices)."""
    network = network_of(stage, manifest)
    settings = stage.optimiser

    def optimiser_of(trained: torch.nn.Module) -> torch.optim.Optimizer:
        fused = None if monai else True  # as torch has it by itself, and as `fit` has it
        return torch.optim.AdamW(trained.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=fused)

    if monai:
        from monai.losses import DiceCELoss

        blocks.instance_norm = torch.nn.functional.instance_norm
        kernels_cpu.pays = torchs_kernels
        loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
        running, optimiser, backward = network, optimiser_of(network), torch.Tensor.backward
    else:
        ours = SegmentationLoss(stage.loss, manifest.labels)

        def loss_of(logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            return ours(logits, indices[:, 0])

        engine = TrainingEngine("cpu", precision)
        ready = engine.setup(network, optimiser_of)
        running, optimiser, backward = ready.running, ready.stepping, engine.backward

    def work(steps: int) -> float:
        running.train()
        started = time.perf_counter()
        for _ in range(steps):
            images, indices = next(batches)
            backward(loss := loss_of(running(images), indices))
            torch.nn.utils.clip_grad_norm_(running.parameters(), stage.training.clip_gradient)
            float(loss.detach())
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return (time.perf_counter() - started) / steps

    return work


def contestant(name: str, dataset: Path, folder: Path, count: int, threads: int, precision: str, pipe: Connection) -> None:
    """Answers each number of steps with (seconds a step, peak memory in MB), until it is told 0."""
    torch.set_num_threads(threads)
    stage, manifest = load_recipe("hippocampus").stages[0], read_dataset(dataset)
    cases = [
        open_case(folder / "cache", next((folder / "cache").glob(f"{case.name}.*.json")).stem, case.name) for case in manifest.cases[:count]
    ]
    if name == RUN:
        work = run_steps(stage, cases, manifest, folder, precision)
    elif name == ALONE:
        torch.manual_seed(0)
        fixed = (
            torch.randn(stage.training.batch, 1, *stage.sampling.patch),
            torch.randint(0, 3, (stage.training.batch, 1, *stage.sampling.patch)),
        )
        work = loop_steps(stage, manifest, iter(lambda: fixed, None), precision, False)
    else:
        work = loop_steps(stage, manifest, monai_batches(cases, stage, 0), precision, name == MONAI)
    while steps := pipe.recv():
        reset_peak()
        seconds = work(steps)
        pipe.send((seconds, take_peak() or 0))


def compare(dataset: Path, folder: Path, given: argparse.Namespace) -> list[dict[str, object]]:
    context = multiprocessing.get_context("spawn")
    running = {}
    for name in (ALONE, RUN, FED, MONAI):
        here, there = context.Pipe()
        process = context.Process(target=contestant, args=(name, dataset, folder, given.cases, given.threads, given.precision, there))
        process.start()
        there.close()
        running[name] = (process, here)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    memory = dict.fromkeys(running, 0.0)
    for turn in range(given.rounds + 1):
        for name, (_, pipe) in running.items():
            pipe.send(given.steps)
            took, held = pipe.recv()
            if turn:
                seconds[name].append(took)
                memory[name] = max(memory[name], held)
    for process, pipe in running.values():
        pipe.send(0)
        process.join()
    batch = load_recipe("hippocampus").stages[0].training.batch
    return [
        {
            "way": name,
            "patches_a_second": batch / statistics.median(times),
            "of_the_network_alone": statistics.median(a / t for a, t in zip(seconds[ALONE], times, strict=True)),
            "of_monais_defaults": statistics.median(m / t for m, t in zip(seconds[MONAI], times, strict=True)),
            "peak_memory_mb": round(memory[name]),
        }
        for name, times in seconds.items()
    ]


def processes(dataset: Path, folder: Path, given: argparse.Namespace) -> list[dict[str, object]]:
    """Seconds a step of whole commands, in turn."""
    ways = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(max(2, given.rounds // 2)):
        for name, (count, threads) in ways.items():
            out = folder / f"{count}-{threads}-{turn}"
            steps = [f"training.{key}={given.steps}" for key in ("steps", "validate_every")]
            command = ["train", dataset, "--recipe", "hippocampus", "-o", out, "--cache", folder / "cache-all", "--workers", "1"]
            for setting in [*steps, f"training.precision={given.precision}"]:
                command += ["--set", setting]
            launcher = ["torch.distributed.run", f"--nproc-per-node={count}", "-m"] if count > 1 else []
            arguments = [sys.executable, "-m", *launcher, "uxnet", *map(str, command)]
            subprocess.run(arguments, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, check=True, capture_output=True)
            ends = [r["seconds"] for r in read_records(out / "metrics.jsonl") if r["kind"] == "step"]
            seconds[name].append((ends[-1] - ends[2]) / (len(ends) - 3))
    first = seconds["1 process, 1 thread"]
    return [
        {
            "way": name,
            "seconds_a_step": statistics.median(times),
            "ratio": statistics.median(a / t for a, t in zip(first, times, strict=True)),
        }
        for name, times in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--no-processes", action="store_true", help="leave the comparison of one and two processes out")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    given.precision = TrainingEngine("cpu", given.precision).precision

    stage, manifest = load_recipe("hippocampus").stages[0], read_dataset(given.dataset)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_cache(list(manifest.cases[: given.cases]), stage.prepare, manifest.labels, folder / "cache")
        rows = compare(given.dataset, folder, given)
        several = [] if given.no_processes else processes(given.dataset, folder, given)

    console = Console()
    table = Table(
        title=f"training, batch {stage.training.batch}, {given.precision}, {given.threads} threads, median of {given.rounds} rounds"
    )
    for column in ("way", "patches a second", "of the network alone", "times MONAI's defaults", "peak memory, MB"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        figures = f"{row['patches_a_second']:.2f}", f"{100 * row['of_the_network_alone']:.1f} %", f"{row['of_monais_defaults']:.2f}"
        table.add_row(row["way"], *figures, str(row["peak_memory_mb"]))
    console.print(table)
    if several:
        table = Table(title="uxnet train, the same batch")
        for column in ("way", "seconds a step", "times one process"):
            table.add_column(column, justify="left" if column == "way" else "right")
        for row in several:
            table.add_row(row["way"], f"{row['seconds_a_step']:.3f}", f"{row['ratio']:.2f}")
        console.print(table)
    if given.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": given.threads}
        setting = {"machine": machine, "precision": given.precision}
        given.output.write_text(json.dumps({**setting, "rows": rows, "processes": several}, indent=1) + "\n")


if __name__ == "__main__":
    main()
