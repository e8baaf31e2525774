"""Tiny datasets on disk for the tests of `uxnet.dataset`."""

import json

import nibabel as nib
import numpy as np

SHAPE = (6, 5, 4)


def save(path, array, affine=None):
    """An array as NIfTI, 1 x 1 x 2 mm unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag((1, 1, 2, 1)) if affine is None else affine), path)
    return path


def image(seed, shape=SHAPE):
    """Noise."""
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def label_map(values=(1, 2), shape=SHAPE):
    """Zeros with one voxel (two for the second, ...) of each value."""
    array = np.zeros(shape, np.uint8)
    for n, value in enumerate(values):
        array[n, : n + 1, 0] = value
    return array


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def decathlon(root, names, labels=("kidney", "tumour"), **more):
    """A sound Decathlon dataset of the given cases."""
    for n, name in enumerate(names):
        save(root / "imagesTr" / f"{name}.nii.gz", image(n))
        save(root / "labelsTr" / f"{name}.nii.gz", label_map())
    described = {
        "name": "Tiny",
        "licence": "CC0",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(n + 1): name for n, name in enumerate(labels)}},
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
    }
    write_json(root / "dataset.json", described | more)
    return root


def nnunet(root, names, channels=("T1", "T2")):
    """A sound nnU-Net v2 raw dataset of the given cases."""
    for n, name in enumerate(names):
        for c in range(len(channels)):
            save(root / "imagesTr" / f"{name}_{c:04d}.nii.gz", image(10 * n + c))
        save(root / "labelsTr" / f"{name}.nii.gz", label_map())
    write_json(
        root / "dataset.json",
        {
            "channel_names": {str(c): name for c, name in enumerate(channels)},
            "labels": {"background": 0, "left horn": 1, "right horn": 2},
            "numTraining": len(names),
            "file_ending": ".nii.gz",
        },
    )
    return root
