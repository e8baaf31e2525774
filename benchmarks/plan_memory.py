"""The memory of training steps: as `uxnet plan` predicts it, and as it is.

    python benchmarks/plan_memory.py [--recipe FILE:CHANNELS:CLASSES ...] [--only NAME ...] [--steps 4] [--precision P] [-o FILE.json]

Each row is a process of its own. It trains as `uxnet train` does, on made cases that are a little larger than the patch, first for one
step with small patches, so that everything is loaded and warm. What the heap has free is then given back to the system, and the peak of
resident memory of some real steps is taken beyond what was held before them. Validation at the end and the checkpoint are in it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table


def usual():
    """Name -> (stage, channels, classes)."""
    from uxnet.recipe import Network, Sampling, Stage, Training, load_recipe

    hippocampus = load_recipe("hippocampus").stages[0]
    narrow = {"size": "narrow"}

    def stage(name, patch, batch, settings):
        return Stage(network=Network(name, settings), sampling=Sampling(patch=(patch,) * 3), training=Training(batch=batch))

    found = {"hippocampus": (hippocampus, 1, 3), "uxnet narrow 96": (stage("uxnet", 96, 1, narrow), 1, 3)}
    for name in ("nnunet", "swinunetr", "unet", "segresnet", "rapnet", "transbts", "unetr", "nnformer"):
        found[f"{name} narrow 64"] = (stage(name, 64, 2, {} if name == "segresnet" else narrow), 1, 3)
    return found


def write_cases(folder: Path, shape, channels: int, classes: int) -> Path:
    """Five cases of noise, in the layout of nnU-Net."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for n in range(5):
        for c in range(channels):
            image = rng.normal(0, 1, shape).astype(np.float32)
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "imagesTr" / f"case{n}_{c:04d}.nii")
        labels = rng.integers(0, classes, shape).astype(np.uint8)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "labelsTr" / f"case{n}.nii")
    names = {"background": 0, **{f"class {c}": c for c in range(1, classes)}}
    described = {"channel_names": {str(c): f"channel {c}" for c in range(channels)}, "labels": names, "file_ending": ".nii"}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def train_for(stage, steps: int, data: Path, out: Path, precision: str) -> None:
    from uxnet.recipe import Preparation, Recipe
    from uxnet.training.run import train

    training = replace(stage.training, steps=steps, validate_every=steps, precision=precision, checkpoint_every=steps)
    plain = replace(stage, prepare=Preparation(), training=training)
    train(data, Recipe("memory", stages=(plain,)), out, device="cpu")


def status(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024


def measure(stage, channels: int, classes: int, steps: int, precision: str, pipe) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch = stage.sampling.patch
        data = write_cases(folder / "data", tuple(p + 4 for p in patch), channels, classes)
        small = write_cases(folder / "small", (20, 20, 20), channels, classes)
        train_for(
            replace(stage, sampling=replace(stage.sampling, patch=tuple(min(32, p) for p in patch))), 1, small, folder / "warm", precision
        )
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        train_for(stage, steps, data, folder / "run", precision)
        pipe.send((status("VmHWM") - before, before))


def measured(stage, channels: int, classes: int, steps: int = 4, precision: str = "float32") -> tuple[int, int]:
    """Bytes beyond what the process held before, and those; in a process of its own."""
    mine, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=measure, args=(stage, channels, classes, steps, precision, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="*", default=[], help="a planned recipe, its image channels and its classes: FILE:1:3")
    parser.add_argument("--only", nargs="*", default=None, help="of the usual rows, those whose names begin so")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    from uxnet.planning.memory import predicted_memory, traced_step
    from uxnet.recipe import load_recipe

    cases = {name: case for name, case in usual().items() if given.only is None or name.startswith(tuple(given.only))}
    for text in given.recipe:
        file, channels, classes = text.rsplit(":", 2)
        cases[Path(file).name] = (load_recipe(file).stages[0], int(channels), int(classes))
    rows = []
    table = Table(title=f"peak of {given.steps} training steps on a CPU in {given.precision}, beyond what the process held before; MB")
    for column in ("", "network", "patch", "batch", "alive at once", "predicted", "measured", "predicted / measured", "held before"):
        table.add_column(column, justify="left" if column in ("", "network") else "right")
    for name, (stage, channels, classes) in cases.items():
        asked = stage, channels, classes, "cpu", given.precision
        predicted, alive = predicted_memory(*asked), traced_step(*asked).peak
        found, before = measured(stage, channels, classes, given.steps, given.precision)
        patch = " x ".join(map(str, stage.sampling.patch))
        row = {"name": name, "network": stage.network.name, "patch": stage.sampling.patch, "batch": stage.training.batch}
        rows.append({**row, "alive": alive, "predicted": predicted, "measured": found, "held_before": before})
        sizes = [f"{size / 1e6:.0f}" for size in (alive, predicted, found)]
        table.add_row(name, stage.network.name, patch, str(stage.training.batch), *sizes, f"{predicted / found:.2f}", f"{before / 1e6:.0f}")
        print(f"{name}: predicted {predicted / 1e6:.0f}, measured {found / 1e6:.0f}, ratio {predicted / found:.3f}", flush=True)
    Console(width=160).print(table)
    if given.output:
        given.output.write_text(json.dumps({"precision": given.precision, "steps": given.steps, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
