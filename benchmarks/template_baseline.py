"""What no learning reaches: the training label maps laid over each other by their centres, and for each voxel the commonest label.

    python benchmarks/template_baseline.py DATASET --split split.json [--fold 0]

Prints the mean Dice of each structure over the fold's validation cases, on their own grids. Reads nothing of their images but the shape.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from uxnet.dataset.manifest import read_dataset
from uxnet.io import read_labels
from uxnet.training.validate import Validation, dice_scores


def centred(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` cut or filled up with background to `shape`, its centre kept."""
    out = np.zeros(shape, array.dtype)
    into, of = [], []
    for n, m in zip(array.shape, shape, strict=True):
        into.append(slice(max(0, (m - n) // 2), max(0, (m - n) // 2) + min(n, m)))
        of.append(slice(max(0, (n - m) // 2), max(0, (n - m) // 2) + min(n, m)))
    out[tuple(into)] = array[tuple(of)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--fold", type=int, default=0)
    given = parser.parse_args()
    manifest = read_dataset(given.dataset)
    fold = json.loads(given.split.read_text())["folds"][given.fold]
    maps = {case.name: read_labels(case.labels).array[0] for case in manifest.cases}
    labels = manifest.labels
    train = [labels.encode(maps[name]) for name in fold["train"]]
    canvas = tuple(max(a.shape[axis] for a in maps.values()) for axis in range(3))
    counts = np.zeros((len(labels.foreground) + 1, *canvas), np.int32)
    for indices in train:
        laid = centred(indices, canvas)
        for index in range(len(counts)):
            counts[index] += laid == index
    template = labels.decode(counts.argmax(0).astype(np.uint8))
    scores = {name: dice_scores(centred(template, maps[name].shape), maps[name], labels) for name in fold["validation"]}
    found = Validation(scores)
    print(json.dumps({**found.classes, "mean": found.mean}, indent=1))


if __name__ == "__main__":
    main()
