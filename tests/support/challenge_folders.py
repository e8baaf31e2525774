"""Folders as FeTA, FLARE and AMOS hand them out, of tiny cases or of real ones."""

import shutil

import nibabel as nib
import numpy as np
from tiny_datasets import SHAPE, image, save, write_json

# As AMOS's dataset.json spells them.
AMOS_NAMES = (
    "background", "spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "arota", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate/uterus",
)  # fmt: skip


FOUR_ORGANS = {6: 1, 2: 2, 3: 2, 1: 3, 10: 4}
"""Values of AMOS -> of FLARE's organisers: liver, both kidneys, spleen, pancreas."""


AFFINE = np.diag((-20.0, 20, 20, 1))
"""8 ml a voxel: of a few voxels are organs as large as organs are."""


def organs(voxels):
    """A label map of so many voxels of each value."""
    array = np.zeros(SHAPE, np.uint8)
    array.flat[: sum(voxels.values())] = np.repeat(list(voxels), list(voxels.values()))
    return array


FETAL, FOUR = organs({1: 3, 2: 3, 3: 4, 4: 1, 5: 1, 6: 1, 7: 1}), organs({1: 40, 2: 8, 3: 9, 4: 3})


def feta(root, subjects=("sub-001", "sub-002"), rec="mial", put=None, labels=FETAL):
    for n, subject in enumerate(subjects):
        folder = root / subject / "anat"
        if put is None:
            save(folder / f"{subject}_rec-{rec}_T2w.nii.gz", image(n), AFFINE)
            save(folder / f"{subject}_rec-{rec}_dseg.nii.gz", labels, AFFINE)
        else:
            folder.mkdir(parents=True)
            put(n, folder / f"{subject}_rec-{rec}_T2w.nii.gz", folder / f"{subject}_rec-{rec}_dseg.nii.gz")
        (folder / f"{subject}_rec-{rec}_T2w.json").write_text("{}")
    listed = "".join(f"{subject}\tPathological\t24.1\n" for subject in subjects)
    (root / "participants.tsv").write_text("participant_id\tPathology\tGestational age\n" + listed)
    return root


def flare(root, numbers=(0, 1), put=None, labels=FOUR):
    for n in numbers:
        scan, mask = root / "TrainingImg" / f"train_{n:03d}_0000.nii.gz", root / "TrainingMask" / f"train_{n:03d}.nii.gz"
        if put is None:
            save(scan, image(n), AFFINE)
            save(mask, labels, AFFINE)
        else:
            for path in (scan, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            put(n, scan, mask)
    return root


def amos(root, numbers=(1, 4, 507), put=None, **more):
    entries = [{"image": f"./imagesTr/amos_{n:04d}.nii.gz", "label": f"./labelsTr/amos_{n:04d}.nii.gz"} for n in numbers]
    for place, (n, entry) in enumerate(zip(numbers, entries, strict=True)):
        if put is None:
            save(root / entry["image"], image(n), AFFINE)
            save(root / entry["label"], organs({1: 10, 6: 40}), AFFINE)
        else:
            for path in entry.values():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
            put(place, root / entry["image"], root / entry["label"])
    described = {
        "name": "AMOS",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(AMOS_NAMES)},
        "training": entries,
        "validation": [{"image": "./imagesVa/amos_0008.nii.gz", "label": "./labelsVa/amos_0008.nii.gz"}],
        "test": [{"image": "./imagesTs/amos_0002.nii.gz"}, {"image": "./imagesTs/amos_0003.nii.gz"}],
    }
    write_json(root / "dataset.json", described | more)
    return root


def copied(source, becomes=None):
    """Files real cases under a challenge's names, their label values changed where `becomes` says; called with their numbers."""
    scans = sorted((source / "imagesTr").glob("*.nii.gz"))

    def put(n, scan, mask):
        shutil.copy(scans[n], scan)
        shutil.copy(source / "labelsTr" / scans[n].name, mask)
        if becomes:
            found, table = nib.load(mask), np.zeros(256, np.uint8)
            table[list(becomes)] = list(becomes.values())
            nib.save(nib.Nifti1Image(table[np.asarray(found.dataobj).astype(int)], found.affine), mask)

    return put
