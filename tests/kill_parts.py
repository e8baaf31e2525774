"""Kills `uxnet train` and `uxnet predict` while they write, lets them go on, and counts what is left behind:

    python tests/kill_parts.py [--kills 10]

Each kill (SIGKILL) waits for a temporary file in one of the folders that are written into. Prints for each how many of the kills left
such a file, and what was left once the same command had gone on to its end; exits 1 if anything was.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np

from uxnet.recipe import recipe_from_dict, recipe_to_toml

PATIENCE = 120.0  # seconds
RECIPE = {
    "name": "killed",
    "stages": [
        {
            "network": {"name": "uxnet", "settings": {"widths": [4, 8], "depths": [1, 1], "hidden": 8, "kernel": 3}},
            "prepare": {"intensity": [{"scale": "zscore"}]},
            "sampling": {"patch": [16, 16, 16]},
            "training": {"steps": 12, "batch": 2, "validate_every": 3, "checkpoint_every": 1, "precision": "float32"},
            "inference": {"overlap": 0.0},
        }
    ],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="of each command (10)")
    kills, left = parser.parse_args().kills, 0
    with tempfile.TemporaryDirectory(prefix="uxnet-kills-") as folder:
        work = Path(folder)
        dataset, recipe = make_dataset(work / "data"), work / "killed.toml"
        recipe.write_text(recipe_to_toml(recipe_from_dict(RECIPE)))
        split = work / "splits" / "split.json"

        def train(out):
            return ["train", dataset, "--recipe", recipe, "-o", out, "--resume", "--split", split, "--device", "cpu", "--workers", "2"]

        places = itertools.cycle(["checkpoints", "cache", ".", "../splits", "pictures"])
        left += attack("train", train, work, list(itertools.islice(places, kills)), again=lambda: split.unlink(missing_ok=True))
        model = work / "train-0" / "model.uxnet"

        def predict(out):
            return ["predict", model, dataset / "imagesTr", "-o", out, "--device", "cpu", "--workers", "2", "--probabilities"]

        left += attack("predict", predict, work, ["."] * kills)
    sys.exit(1 if left else 0)


def attack(name, command, work, places, again=lambda: None):
    """Kills a command once for each place, goes on with it, and prints what became of it; gives how many files were left at the end."""
    hits, left, codes = Counter(), Counter(), Counter()
    for n, place in enumerate(places):
        again()
        out = work / f"{name}-{n}"
        hits[place] += kill_at(command(out), out / place)
        codes[subprocess.run(arguments(command(out)), check=False, capture_output=True).returncode] += 1
        left.update(path.parent.name for folder in (out, work / "splits") for path in hidden(folder))
    print(f"{name}: {len(places)} kills, files that they left: {dict(hits)}; afterwards exit codes {dict(codes)}, left: {dict(left) or 0}")
    return left.total()


def kill_at(command, folder):
    """Starts a command and kills it when a temporary file is in a folder; gives how many files it then left there."""
    process = subprocess.Popen(arguments(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < end:
        try:
            if any(entry.name.startswith(".") and ".part" in entry.name for entry in os.scandir(folder)):
                break
        except FileNotFoundError:
            time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return len([path for path in hidden(folder) if path.parent.resolve() == folder.resolve()])


def hidden(folder):
    return [path for path in folder.rglob(".*") if not path.is_dir() or path.name.startswith(".budget")] if folder.is_dir() else []


def arguments(command):
    return [sys.executable, "-m", "uxnet", *map(str, command)]


def make_dataset(root):
    """Ten cases of a bright ball in noise, large enough that writing them takes a moment."""
    rng, names = np.random.default_rng(0), [f"case_{n}" for n in range(10)]
    ball = np.linalg.norm(np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) - 20, axis=-1) < 9
    for kind in ("imagesTr", "labelsTr"):
        (root / kind).mkdir(parents=True)
        for name in names:
            voxels = ball.astype(np.uint8) if kind == "labelsTr" else (rng.normal(0, 1, ball.shape) + 4 * ball).astype(np.float32)
            nib.save(nib.Nifti1Image(voxels, np.eye(4)), root / kind / f"{name}.nii.gz")
    cases = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names]
    described = {"name": "Balls", "modality": {"0": "MR"}, "labels": {"0": "background", "1": "ball"}, "training": cases}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


if __name__ == "__main__":
    main()
