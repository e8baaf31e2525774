"""Augmented patches a second, on the way from prepared cases to the network: ours and a MONAI pipeline, in alternating rounds.

    python benchmarks/data_path.py DATASET [--cases N] [--rounds N] [--patches N] [--patch I J K] [-o FILE.json]

The recipe is `hippocampus`; both start from the same prepared cases. Ours reads them from its cache, the next batch in a thread while this
one is augmented, as the training loop does it. MONAI's have everything that is not random done beforehand and kept in memory (CacheDataset,
FgBgToIndicesd), do not track metadata, and are loaded by no other process or by two. With --patch a second comparison is made on four
made-up cases of 256^3 voxels. Each contestant lives in a process of its own and works while the others wait; what is printed is the median
over the rounds, and the median of the rounds' ratios. Memory is the peak of what its processes hold, shared pages counted in each.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from uxnet.dataset.cache import CachedCase, build_cache, open_case
from uxnet.dataset.manifest import Case, read_dataset
from uxnet.dataset.patches import read_batch, read_patch, what_is_shown
from uxnet.events import Event, Note
from uxnet.geometry import Geometry
from uxnet.io import write_image, write_labels
from uxnet.labels import Label, Labels
from uxnet.machine import reset_peak, take_peak
from uxnet.recipe import Stage, load_recipe
from uxnet.training.augment import augment
from uxnet.volume import Volume

MONAI = ("MONAI, in this process", "MONAI, 2 processes")
OURS = "ours"


def our_batches(cases: list[CachedCase], stage: Stage) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels as `training/loop.py` makes them."""
    shown, samples = what_is_shown(cases), range(stage.training.batch)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read_batch, cases, stage.sampling, samples, 0, 0, shown)
        for step in itertools.count():
            images, indices = coming.result()
            coming = reader.submit(read_batch, cases, stage.sampling, samples, 0, step + 1, shown)
            yield augment(torch.from_numpy(images), torch.from_numpy(indices), stage.augment, 0, step, stage.prepare.spacing_mm)


def monai_batches(cases: list[CachedCase], stage: Stage, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Images and labels (N, 1, I, J, K) by MONAI, with the recipe's probabilities and ranges."""
    from monai import transforms as t
    from monai.data import CacheDataset, DataLoader
    from monai.data.meta_obj import set_track_meta

    set_track_meta(False)
    both, chance, settings = ["image", "label"], stage.augment.intensity_probability, stage.augment
    turns, share = [math.radians(x) for x in settings.rotation_deg], stage.sampling.foreground
    steps = [
        t.EnsureTyped(both, track_meta=False),
        t.SpatialPadd(both, stage.sampling.patch),
        t.FgBgToIndicesd("label"),
        t.RandCropByPosNegLabeld(
            both, "label", stage.sampling.patch, share, 1 - share, 1, fg_indices_key="label_fg_indices", bg_indices_key="label_bg_indices"
        ),
        t.RandAffined(
            both,
            prob=settings.affine_probability,
            rotate_range=turns,
            scale_range=[settings.scale] * 3,
            mode=["bilinear", "nearest"],
            padding_mode="border",
        ),
        t.RandGaussianNoised("image", prob=chance, std=settings.noise),
        t.RandScaleIntensityd("image", factors=settings.intensity_scale, prob=chance),
        t.RandAdjustContrastd("image", prob=chance, gamma=(math.exp(-settings.gamma), math.exp(settings.gamma))),
        t.RandShiftIntensityd("image", offsets=settings.intensity_shift, prob=chance),
        t.SelectItemsd(both),
    ]
    whole = [read_patch(case, (0, 0, 0), case.indices.shape) for case in cases]
    data = CacheDataset([{"image": i, "label": x[None]} for i, x in whole], t.Compose(steps), progress=False)
    loader = DataLoader(data, batch_size=stage.training.batch, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch in loader:
            yield batch["image"], batch["label"]


def contestant(name: str, folder: Path, names: list[str], stage: Stage, pipe: Connection) -> None:
    """Answers each number of patches with (seconds a patch, a processor's seconds a patch, MB held), until it is told 0."""
    torch.set_num_threads(1)
    cases = [open_case(folder, next(folder.glob(f"{case}.*.json")).stem, case) for case in names]
    batches = our_batches(cases, stage) if name == OURS else monai_batches(cases, stage, 0 if name == MONAI[0] else 2)
    next(batches)
    while patches := pipe.recv():
        reset_peak()
        done, started, busy = 0, time.perf_counter(), processor_seconds()
        while done < patches:
            done += len(next(batches)[0])
        seconds, busy = time.perf_counter() - started, processor_seconds() - busy
        others = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
        pipe.send((seconds / done, busy / done, (take_peak() or 0) + others / 1e6))


def processor_seconds() -> float:
    """Of this process and those that it started."""
    running = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in running))


def compare(folder: Path, names: list[str], stage: Stage, rounds: int, patches: int) -> list[dict[str, object]]:
    """A row a contestant."""
    context = multiprocessing.get_context("spawn")
    running = {}
    for name in (OURS, *MONAI):
        here, there = context.Pipe()
        process = context.Process(target=contestant, args=(name, folder, names, stage, there))
        process.start()
        there.close()
        running[name] = (process, here)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    busy: dict[str, list[float]] = {name: [] for name in running}
    memory = dict.fromkeys(running, 0.0)
    for turn in range(rounds + 1):
        for name, (_, pipe) in running.items():
            pipe.send(patches)
            took, worked, held = pipe.recv()
            if turn:  # the first round warms up
                seconds[name].append(took)
                busy[name].append(worked)
                memory[name] = max(memory[name], held)
    for process, pipe in running.values():
        pipe.send(0)
        process.join()
    best = min(MONAI, key=lambda name: statistics.median(seconds[name]))
    return [
        {
            "patch": list(stage.sampling.patch),
            "way": name,
            "patches_a_second": 1 / statistics.median(times),
            "times_monais_best": statistics.median(b / t for t, b in zip(times, seconds[best], strict=True)),
            "processor_ms_a_patch": 1000 * statistics.median(busy[name]),
            "peak_memory_mb": round(memory[name]),
        }
        for name, times in seconds.items()
    ]


def made_up(folder: Path, count: int = 4, side: int = 256) -> tuple[list[Case], Labels]:
    """Noise of whole numbers as CT has them, with two labelled boxes."""
    rng, cases = np.random.default_rng(0), []
    for n in range(count):
        indices = np.zeros((1, side, side, side), np.uint8)
        indices[0, 40:90, 50:120, 60:200], indices[0, 150:170, 160:180, 100:130] = 1, 2
        geometry = Geometry((side, side, side), np.eye(4))
        image, labels = folder / f"{n}.nii", folder / f"{n}_labels.nii"
        write_image(image, Volume(rng.integers(-1000, 1500, indices.shape).astype(np.int16), geometry))
        write_labels(labels, Volume(indices, geometry))
        cases.append(Case(str(n), (image,), labels, str(n)))
    return cases, Labels((Label("large", 1), Label("small", 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=400, help="a round; a tenth of it of the larger patch")
    parser.add_argument("--patch", type=int, nargs=3, metavar=("I", "J", "K"), help="a larger patch, on made-up cases")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()

    console = Console()

    def told(event: Event) -> None:
        if isinstance(event, Note):
            console.print(event.message)

    stage = load_recipe("hippocampus").stages[0]
    manifest, rows = read_dataset(given.dataset), []
    with tempfile.TemporaryDirectory() as folder:
        cases = list(manifest.cases[: given.cases])
        build_cache(cases, stage.prepare, manifest.labels, Path(folder) / "given", report=told)
        rows += compare(Path(folder) / "given", [case.name for case in cases], stage, given.rounds, given.patches)
        if given.patch:
            larger = replace(stage, sampling=replace(stage.sampling, patch=tuple(given.patch)))
            Path(folder, "scans").mkdir()
            cases, labels = made_up(Path(folder) / "scans")
            build_cache(cases, larger.prepare, labels, Path(folder) / "made", report=told)
            rows += compare(Path(folder) / "made", [case.name for case in cases], larger, given.rounds, max(4, given.patches // 10))

    table = Table(title=f"augmented patches, batches of {stage.training.batch}, median of {given.rounds} rounds")
    for column in ("patch", "way", "patches a second", "times MONAI's best", "processor, ms a patch", "peak memory, MB"):
        table.add_column(column, justify="left" if column in ("patch", "way") else "right")
    for row in rows:
        patch = " x ".join(map(str, row["patch"]))
        figures = f"{row['patches_a_second']:.1f}", f"{row['times_monais_best']:.2f}", f"{row['processor_ms_a_patch']:.1f}"
        table.add_row(patch, row["way"], *figures, str(row["peak_memory_mb"]))
    console.print(table)
    if given.output:
        import monai

        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "monai": monai.__version__}
        given.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
