"""Peak memory of a long scan: a made 512 x 512 x N CT (0.8 x 0.8 x 1 mm, compressed NIfTI), the narrow 3D UX-Net, `predict`'s whole way.

    python benchmarks/memory.py [--slices 600] [--classes 16 100] [--spacing 1.5 1.5 2 | native] [--patch 96] [-o FILE.json]

What is counted is the process's resident memory beyond what it holds once its runtime is loaded and one window is computed. The weights
are random and the labels they give are noise, which is the worst case for what decides labels. Beside it stand the arrays that a sliding
window holds which keeps every class: on the prepared grid (classes x voxels, float32, and the count of windows over each voxel), and on
the scan's own grid, where the labels are decided after resampling; computed, since they do not fit into many machines.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

SPACING_MM = (0.8, 0.8, 1.0)


def write_scan(path: Path, slices: int) -> None:
    from scipy import ndimage

    from uxnet.geometry import Geometry
    from uxnet.io import write_image
    from uxnet.volume import Volume

    rng = np.random.default_rng(0)
    coarse = rng.normal(0, 300, (8, 8, slices // 40 + 2)).astype(np.float32)
    array = np.empty((512, 512, slices), dtype=np.int16, order="F")
    for k in range(slices):
        low = k // 40
        between = coarse[:, :, low] + (coarse[:, :, low + 1] - coarse[:, :, low]) * (k % 40) / 40
        array[:, :, k] = ndimage.zoom(between, 64, order=1) + rng.normal(0, 10, (512, 512))
    write_image(path, Volume(array[np.newaxis], Geometry(array.shape, np.diag([-0.8, 0.8, 1.0, 1.0])), None))


def write_model_file(path: Path, classes: int, patch: int, spacing: list[float]) -> None:
    import torch

    from uxnet.labels import Label, Labels
    from uxnet.model.file import write_model
    from uxnet.networks.build import build
    from uxnet.recipe import recipe_from_dict

    stage = {
        "network": {"name": "uxnet", "settings": {"size": "narrow"}},
        "prepare": {"spacing_mm": spacing, "intensity": [{"clip": [-175.0, 250.0], "scale": "range"}]},
        "sampling": {"patch": [patch] * 3},
        "inference": {"overlap": 0.25},
    }
    torch.manual_seed(0)
    state = build("uxnet", 1, classes, patch, {"size": "narrow"}).state_dict()
    labels = Labels(tuple(Label(f"class {n}", n) for n in range(1, classes)))
    recipe = recipe_from_dict({"name": "memory", "stages": [stage]})
    write_model(path, [{k: v.numpy() for k, v in state.items()}], recipe=recipe, labels=labels, channels=["CT"], provenance={})


def measure(model: Path, scan: Path, out: Path, limit: int | None, precision: str, pipe) -> None:
    from uxnet.events import Note
    from uxnet.inference.segmenter import load_segmenter
    from uxnet.inference.settings import Settings
    from uxnet.io import write_labels
    from uxnet.machine import held

    said = []
    segmenter = load_segmenter([model], Settings(device="cpu", precision=precision, cache=out.parent / "cache", memory_limit=limit))
    stage = segmenter.stages[0]
    segmenter.engines[0].infer(np.zeros((1, 1, *stage.window), np.float32))
    runtime = held()
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    labels = segmenter.segment(scan, lambda event: said.append(event.message) if isinstance(event, Note) else None)
    write_labels(out, labels)
    seconds = time.perf_counter() - started
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
    pipe.send({"runtime": runtime, "peak": peak, "seconds": seconds, "said": said})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="*", default=[600])
    parser.add_argument("--classes", type=int, nargs="*", default=[16, 100])
    parser.add_argument("--spacing", nargs="*", default=["1.5", "1.5", "2"])
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--memory-limit", default=None)
    parser.add_argument("--precision", default="float32", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    from uxnet.geometry import Geometry, resampled
    from uxnet.inference.memory import parse_size

    spacing = [] if given.spacing == ["native"] else [float(s) for s in given.spacing]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for slices in given.slices:
            scan = folder / f"{slices}.nii.gz"
            write_scan(scan, slices)
            shape = (512, 512, slices)
            grid = resampled(Geometry(shape, np.diag([*SPACING_MM, 1.0])), spacing).shape if spacing else shape
            for classes in given.classes:
                model = folder / f"{classes}.uxnet"
                write_model_file(model, classes, given.patch, spacing)
                mine, theirs = multiprocessing.Pipe()
                limit = parse_size(given.memory_limit) if given.memory_limit else None
                process = multiprocessing.get_context("spawn").Process(
                    target=measure, args=(model, scan, folder / "out.nii.gz", limit, given.precision, theirs)
                )
                process.start()
                found = mine.recv()
                process.join()
                whole = 4 * (classes + 1) * int(np.prod(grid)), 4 * classes * int(np.prod(shape))
                rows.append({"slices": slices, "classes": classes, "grid": grid, **found, "kept_whole": whole})
    show(rows, given)
    if given.output:
        asked = {"patch": given.patch, "precision": given.precision, "spacing": spacing}
        given.output.write_text(json.dumps({**asked, "rows": rows}, indent=1) + "\n")


def show(rows, given) -> None:
    table = Table(title=f"512 x 512 x N voxels, windows of {given.patch}^3, overlap 0.25; GB")
    for column in (
        "slices",
        "classes",
        "prepared",
        "runtime",
        "beyond it",
        "told",
        "told / measured",
        "all classes: prepared",
        "own grid",
        "s",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        match = re.search(r"memory (\d+\.?\d*) (GB|MB) at most", "\n".join(row["said"]))
        told = float(match.group(1)) * {"GB": 1e9, "MB": 1e6}[match.group(2)]
        gb = [f"{size / 1e9:.2f}" for size in (row["runtime"], row["peak"] - row["runtime"], told)]
        cells = [str(row["slices"]), str(row["classes"]), " x ".join(map(str, row["grid"])), *gb, f"{told / row['peak']:.3f}"]
        table.add_row(*cells, *(f"{size / 1e9:.1f}" for size in row["kept_whole"]), f"{row['seconds']:.0f}")
    Console(width=160).print(table)
    for row in rows:
        print(*row["said"], sep="\n")


if __name__ == "__main__":
    main()
