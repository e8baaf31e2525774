"""Small label maps with FreeSurfer's numbers: two halves of a head."""

import json

import nibabel as nib
import numpy as np

SHAPE = (28, 26, 24)


def head(seed=0):
    """(28, 26, 24) uint16: a skull (515) around white matter (2, 41) and hippocampi (17, 53), a brainstem (16) between them."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in SHAPE), indexing="ij")
    size = rng.uniform(0.92, 1.0)
    labels = np.zeros(SHAPE, np.uint16)
    labels[x**2 + y**2 + z**2 < (11.5 * size) ** 2] = 515
    brain = x**2 + y**2 + z**2 < (9.5 * size) ** 2
    labels[brain] = np.where(x < 0, 2, 41)[brain]
    labels[(np.abs(x) < 2) & (np.abs(y) < 2) & (z < -1) & brain] = 16
    for value, side in ((17, -1), (53, 1)):
        labels[(x - 5 * side) ** 2 + (y + 2) ** 2 + (z - 1) ** 2 < 7] = value
    return labels


def write_head(path, labels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else affine), path)
    return path


def head_folder(root, names=("a", "b"), description=None):
    """labelsTr with a head a name, and a dataset.json with a table `to_two`."""
    for n, name in enumerate(names):
        write_head(root / "labelsTr" / f"{name}.nii.gz", head(n))
    data = {
        "name": "Heads",
        "licence": "CC0-1.0",
        "reference": "nobody",
        "training": [{"label": f"./labelsTr/{name}.nii.gz"} for name in names],
        "to_two": {"2": 1, "41": 1, "17": 2, "53": 2, "515": 0},
        "two": {"0": "background", "1": "white matter", "2": "hippocampus"},
    }
    (root / "dataset.json").write_text(json.dumps(data | (description or {})))
    return root
