"""A scan segmented by the full 3D UX-Net on a CPU: each of our engines and MONAI's sliding window, side by side in one run.

    python benchmarks/inference.py SCAN.nii.gz [--windows 4] [--rounds 3] [--classes 16] [--engines ...] [-o FILE.json]

Same weights (a function of their names, so that every part of the network matters), same scan at 1.5 x 1.5 x 2 mm, same windows of 96^3
with an overlap of 0.25, Gaussian blending. Each contestant has a process of its own, so that its peak memory is its own, and works
while the others wait; the machines that this runs on are noisy, so they take turns, and what counts is the median over the rounds of
each one's time divided into MONAI's of the same round. `--windows` takes a part of the scan from its middle; 0 takes all of it.

Ours does the whole way: read, prepare, network, stitch, decide on the scan's own grid, write. MONAI's path is what the authors' script
does in the middle: `sliding_window_inference` around the same network in eager float32, and argmax on the prepared grid; reading,
preparing, the way back to the scan's grid and writing are not counted against it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

SPACING, PATCH, OVERLAP = (1.5, 1.5, 2.0), 96, 0.25
LAYOUTS = {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1), 8: (2, 2, 2), 12: (3, 2, 2)}
ENGINES = ("openvino float32", "openvino bfloat16", "openvino int8", "torch float32")
PARTS = ("read", "prepare", "network", "stitch", "restore", "write")


def write_model_file(path: Path, classes: int) -> None:
    from fingerprints import seeded_weight

    from uxnet.labels import Label, Labels
    from uxnet.model.file import write_model
    from uxnet.networks.build import build
    from uxnet.recipe import recipe_from_dict

    recipe = recipe_from_dict(
        {
            "name": "benchmark",
            "stages": [
                {
                    "network": {"name": "uxnet"},
                    "prepare": {"spacing_mm": SPACING, "intensity": [{"clip": [-175.0, 250.0], "scale": "range"}]},
                    "sampling": {"patch": [PATCH] * 3},
                    "inference": {"overlap": OVERLAP},
                }
            ],
        }
    )
    labels = Labels(tuple(Label(f"class {n}", n) for n in range(1, classes)))
    state = build("uxnet", 1, classes, PATCH).state_dict()
    weights = {key: seeded_weight(key, tensor.shape) for key, tensor in state.items()}
    write_model(path, [weights], recipe=recipe, labels=labels, channels=["CT"], provenance={})


def cut_scan(scan: Path, windows: int, out: Path) -> tuple[int, int, int]:
    """A part of the scan, from its middle, that takes so many windows; returns the windows along each axis."""
    from uxnet.geometry import Box, resampled
    from uxnet.inference.tiles import tile
    from uxnet.io import read_image, write_image
    from uxnet.volume import Volume

    volume = read_image(scan)
    if windows:
        sides = [
            round((PATCH + (n - 1) * PATCH * (1 - OVERLAP)) * s / old)
            for n, s, old in zip(LAYOUTS[windows], SPACING, volume.geometry.spacing_mm, strict=True)
        ]
        sides = [min(side, whole) for side, whole in zip(sides, volume.geometry.shape, strict=True)]
        start = [(whole - side) // 2 for whole, side in zip(volume.geometry.shape, sides, strict=True)]
        box = Box(tuple(start), tuple(a + n for a, n in zip(start, sides, strict=True)))
        volume = Volume(volume.array[(slice(None), *box.slices)], box.apply_to(volume.geometry), None)
    write_image(out, Volume(volume.array.astype(np.int16), volume.geometry, None))
    found = tile(resampled(volume.geometry, SPACING).shape, (PATCH,) * 3, OVERLAP)
    return tuple(len(starts) for starts in found.starts)


def serve(who: str, model: Path, scan: Path, threads: int, cache: Path, pipe) -> None:
    """Segments the scan whenever it is asked to, and answers with seconds by part; at last with its logits of the middle window."""
    import re

    import torch

    torch.set_num_threads(threads)
    contestant = monai_path(model, scan) if who.startswith("MONAI") else our_path(who, model, scan, threads, cache)
    try:
        run, window = contestant
        logits = window()
    except Exception as error:  # noqa: BLE001 - whatever keeps a contestant away is told
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send(logits.astype(np.float32))
    Path("/proc/self/clear_refs").write_text("5")
    while pipe.recv():
        spent = run()
        status = Path("/proc/self/status").read_text()
        pipe.send((spent, int(re.search(r"VmHWM:\s+(\d+)", status).group(1)) * 1024 / 1e6))


def middle_window(model: Path, scan: Path):
    from uxnet.io import read_image
    from uxnet.model.file import read_model
    from uxnet.prepare.way_out import prepare

    image, _ = prepare(read_image(scan), read_model(model).recipe.stages[0].prepare)
    start = [max(0, (n - PATCH) // 2) for n in image.shape[1:]]
    window = image[(slice(None), *(slice(a, a + PATCH) for a in start))]
    lack = [PATCH - n for n in window.shape[1:]]
    return image, np.pad(window, [(0, 0), *((n // 2, n - n // 2) for n in lack)])[np.newaxis]


def our_path(who: str, model: Path, scan: Path, threads: int, cache: Path):
    from uxnet.events import Spent
    from uxnet.inference.engines.precision import Cautious
    from uxnet.inference.segmenter import load_segmenter
    from uxnet.inference.settings import Settings
    from uxnet.io import write_labels

    engine, precision = who.split()

    def run():
        spent = dict.fromkeys(PARTS, 0.0)

        def report(event):
            if isinstance(event, Spent):
                spent[event.part] = spent.get(event.part, 0.0) + event.seconds

        started = time.perf_counter()
        labels = segmenter.segment(scan, report)
        written = time.perf_counter()
        write_labels(Path(tempfile.gettempdir()) / f"uxnet_bench_{who.replace(' ', '_')}.nii.gz", labels)
        spent["write"] = time.perf_counter() - written
        spent["all"] = time.perf_counter() - started
        return spent

    def window():
        return segmenter.engines[0].infer(middle_window(model, scan)[1])

    try:
        segmenter = load_segmenter([model], Settings(device="cpu", engine=engine, precision=precision, threads=threads, cache=cache))
        for cautious in segmenter.engines:
            if isinstance(cautious, Cautious):  # labels of noise would not pass its check
                cautious.chosen = cautious.lower
    except Exception as error:  # noqa: BLE001

        def window(error=error):
            raise error

    return run, window


def monai_path(model: Path, scan: Path):
    import torch
    from monai.inferers import sliding_window_inference

    from uxnet.inference.engines.torch import trained_network
    from uxnet.model.file import read_model

    network = trained_network(read_model(model), 0).eval()
    image, middle = middle_window(model, scan)
    image = torch.from_numpy(image[np.newaxis])

    def run():
        started = time.perf_counter()
        with torch.no_grad():
            logits = sliding_window_inference(image, (PATCH,) * 3, 4, network, overlap=OVERLAP, mode="gaussian")
            logits.argmax(1)
        return {"all": time.perf_counter() - started}

    def window():
        with torch.no_grad():
            return network(torch.from_numpy(middle)).numpy()

    return run, window


def matmul_rate(threads: int) -> float:
    """GFLOP/s of a large float32 matrix product, the best of five."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        rates.append(2 * 4096**3 / (time.perf_counter() - started) / 1e9)
    return max(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--windows", type=int, default=4, choices=(0, *LAYOUTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--threads", type=int, default=len(__import__("os").sched_getaffinity(0)))
    parser.add_argument("--engines", nargs="*", default=ENGINES)
    parser.add_argument("--model", type=Path, help="a model file made by an earlier run (an int8 variant can be put into it)")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or Path(folder) / "full.uxnet"
        if not model.exists():
            write_model_file(model, given.classes)
        scan = Path(folder) / "part.nii.gz"
        layout = cut_scan(given.scan, given.windows, scan)
        measured, logits, away = race(["MONAI eager float32", *given.engines], model, scan, given.threads, Path(folder), given.rounds)
    rows = summarise(measured, logits, math.prod(layout), matmul_rate(given.threads))
    show(rows, away, layout, given)
    if given.output:
        machine = {"processor": processor(), "threads": given.threads, **versions()}
        asked = {"scan": given.scan.name, "windows": math.prod(layout), "rounds": given.rounds, "classes": given.classes}
        given.output.write_text(json.dumps({"machine": machine, **asked, "rows": rows, "away": away}, indent=1) + "\n")


def race(contestants, model, scan, threads, cache, rounds):
    context = multiprocessing.get_context("spawn")
    pipes, logits, away = {}, {}, {}
    for who in contestants:
        mine, theirs = context.Pipe()
        context.Process(target=serve, args=(who, model, scan, threads, cache, theirs), daemon=True).start()
        first = mine.recv()
        if isinstance(first, str):
            away[who] = first
        else:
            pipes[who], logits[who] = mine, first
    measured = {who: [] for who in pipes}
    for _ in range(rounds):
        for who, pipe in pipes.items():
            pipe.send(True)
            measured[who].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return measured, logits, away


def summarise(measured, logits, windows, rate):
    base = "MONAI eager float32"
    rows = []
    for who, results in measured.items():
        ratios = [theirs[0]["all"] / mine[0]["all"] for mine, theirs in zip(results, measured[base], strict=True)]
        spent = {part: statistics.median(r[0].get(part, 0.0) for r in results) for part in (*PARTS, "all")}
        error = logits[who].astype(np.float64) - logits[base]
        spread = logits[base].std()
        row = {
            "contestant": who,
            "seconds": spent["all"],
            "times_faster": statistics.median(ratios),
            "peak_memory_mb": max(r[1] for r in results),
        }
        row["parts"] = {part: spent[part] for part in PARTS}
        if spent["network"]:
            row["beside_the_network"] = 1 - spent["network"] / spent["all"]
            row["share_of_matmul_rate"] = 2 * gmac(logits[who].shape[1]) * windows / spent["network"] / rate
        row["error_largest"], row["error_rms"] = float(np.abs(error).max() / spread), float(np.sqrt((error**2).mean()) / spread)
        row["labels_equal"] = float((logits[who].argmax(1) == logits[base].argmax(1)).mean())
        rows.append(row)
    return rows


def gmac(classes: int) -> float:
    import torch

    from uxnet.networks.build import build
    from uxnet.networks.macs import count_macs

    with torch.device("meta"):
        return count_macs(build("uxnet", 1, classes, PATCH).eval(), (1, 1, *[PATCH] * 3)).true / 1e9


def show(rows, away, layout, given) -> None:
    part = "the whole scan" if not given.windows else "a part from the middle of the scan"
    windows = f"{' x '.join(map(str, layout))} windows of {PATCH}^3"
    title = f"{part}: {windows}, {given.classes} classes, {given.threads} threads, median of {given.rounds}"
    table = Table(title=title)
    for column in (
        "",
        "s",
        "times as fast",
        *PARTS[:2],
        "network",
        *PARTS[3:],
        "beside network",
        "of matmul rate",
        "error, largest",
        "rms",
        "labels equal",
        "peak MB",
    ):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        ours = "beside_the_network" in row
        parts = [f"{row['parts'][part]:.2f}" if ours else "" for part in PARTS]
        shares = [f"{row['beside_the_network']:.1%}", f"{row['share_of_matmul_rate']:.0%}"] if ours else ["", ""]
        errors = [f"{row['error_largest']:.1e}", f"{row['error_rms']:.1e}", f"{row['labels_equal']:.3%}"]
        table.add_row(
            row["contestant"],
            f"{row['seconds']:.1f}",
            f"{row['times_faster']:.2f}",
            *parts,
            *shares,
            *errors,
            f"{row['peak_memory_mb']:.0f}",
        )
    Console(width=200).print(table)
    for who, why in away.items():
        print(f"{who}: not measured: {why}")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next(line for line in lines if line.startswith("flags"))
        names = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile") if name in flags]
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name")) + " (" + ", ".join(names) + ")"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions():
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "monai", "openvino")}


if __name__ == "__main__":
    main()
