"""The recipes of the paper's three datasets, run end to end at the paper's patch and width on data of their layout: memory and time.

    python benchmarks/challenge_recipes.py DATA [--only NAME ...] [--steps N] [--threads N] [-o FILE.json]

DATA holds `fetal_brain_sb` (filed as FeTA 2021) and `abdomen_ct` (filed as FLARE 2021, four organs, and as AMOS 2022). Nothing of a recipe
is changed but the number of steps and of the validation that follows the last; fine-tuning begins with the weights that the FLARE recipe
of the same reading left. Each is a `uxnet train` in a process of its own. The Dice of so few steps means nothing and is not recorded.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from uxnet.dataset.manifest import read_dataset
from uxnet.io import read_geometry
from uxnet.io.records import read_records
from uxnet.model.file import read_model
from uxnet.planning.memory import predicted_memory
from uxnet.recipe import load_recipe

# The folders are those of the tests.
sys.path += [str(Path(__file__).parents[1] / "tests" / name) for name in ("dataset", "support")]
from challenge_folders import FOUR_ORGANS, amos, copied, feta, flare  # type: ignore[import-not-found]

TASKS = {"flare2021": "flare", "feta2021": "feta", "amos2022": "amos", "amos2022-finetune": "amos"}
NAMES = [f"{task}-{reading}" for reading in ("paper", "released") for task in TASKS]


def folders(data: Path, into: Path) -> None:
    """The three datasets, and a split for each: the scan of the least extent validates, so that most of the time goes to the steps."""
    fetal, abdomen = data / "fetal_brain_sb", data / "abdomen_ct"
    fetuses, scans = (sorted((source / "imagesTr").glob("*.nii.gz")) for source in (fetal, abdomen))
    feta(into / "feta", [f"sub-{n:03d}" for n in range(1, len(fetuses) + 1)], put=copied(fetal))
    flare(into / "flare", range(len(scans)), put=copied(abdomen, FOUR_ORGANS))
    amos(into / "amos", range(1, len(scans) + 1), put=copied(abdomen))
    smallest = {"feta": fetuses, "flare": scans, "amos": scans}
    for name, paths in smallest.items():
        cases = [case.name for case in read_dataset(into / name).cases]
        out = cases[min(range(len(paths)), key=lambda n: _extent_mm3(paths[n]))]
        fold = {"train": [case for case in cases if case != out], "validation": [out]}
        (into / f"{name}.json").write_text(json.dumps({"folds": [fold]}))


def _extent_mm3(path: Path) -> float:
    geometry = read_geometry(path)
    return math.prod(geometry.shape) * math.prod(geometry.spacing_mm)


def measure(name: str, into: Path, steps: int, threads: int) -> dict[str, object]:
    task, reading = name.rsplit("-", 1)
    dataset, out = into / TASKS[task], into / "runs" / name
    command = ["train", dataset, "--recipe", name, "-o", out, "--device", "cpu", "--split", f"{dataset}.json", "--workers", "1"]
    command += ["--set", f"training.steps={steps}", "--set", f"training.validate_every={steps}"]
    if task.endswith("finetune"):
        command += ["--init-from", into / "runs" / f"flare2021-{reading}" / "model.uxnet"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "uxnet", *map(str, command)], env=environment, stderr=subprocess.PIPE, text=True)
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name}: {said[-2000:]}")
    records = read_records(out / "metrics.jsonl")
    done = [r["seconds"] for r in records if r["kind"] == "step"]
    trained_and_validated = float(read_model(out / "model.uxnet").provenance["training"]["seconds"])
    manifest, (stage,) = read_dataset(dataset), load_recipe(name).stages
    seconds = [after - before for before, after in zip([0.0, *done], done, strict=False)]
    return {
        "recipe": name,
        "patch": stage.sampling.patch,
        "batch": stage.training.batch,
        "classes": manifest.labels.out_channels,
        "steps": steps,
        "seconds_a_step": [round(s, 1) for s in seconds],
        "seconds_validation": round(trained_and_validated - done[-1], 1),
        "seconds_in_all": round(time.perf_counter() - started, 1),
        "peak_memory_mb": round(used.ru_maxrss * 1024 / 1e6),
        "predicted_step_mb": round(predicted_memory(stage, len(manifest.channel_names), manifest.labels.out_channels) / 1e6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()

    rows = []
    table = Table(title=f"{given.steps} steps of each recipe on a CPU, float32, {given.threads} threads")
    for column in ("recipe", "batch", "classes", "seconds a step", "validation, s", "peak memory, MB", "a step predicted, MB"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    with tempfile.TemporaryDirectory() as name:
        folders(given.data, Path(name))
        for recipe in given.only:
            row = measure(recipe, Path(name), given.steps, given.threads)
            rows.append(row)
            print(json.dumps(row), flush=True)
            each = ", ".join(f"{s:.0f}" for s in row["seconds_a_step"])  # type: ignore[attr-defined]
            shown = (row["batch"], row["classes"], each, row["seconds_validation"], row["peak_memory_mb"], row["predicted_step_mb"])
            table.add_row(recipe, *map(str, shown))
            if given.output:
                machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": given.threads}
                given.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
