"""Both hippocampi of one labelled head, as it is and changed: how far off the centroids are, and Dice against FreeSurfer's labels.

    python benchmarks/whole_heads.py adult_brain_t1 [--model hippocampus] [--box DIR]

The folder has an image in imagesTr and, by the same name, FreeSurfer's aseg labels in labels_aseg (17 is the left hippocampus, 53 the
right). One head with automatic labels of another protocol is no statistics.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from uxnet.geometry import Geometry
from uxnet.inference.localise import LocatedSegmenter, load_located
from uxnet.inference.settings import Located, Settings
from uxnet.model.catalogue import choose, model_file
from uxnet.volume import Volume

ASEG = {"left": 17, "right": 53}
TURNED_DEG = (12.0, -8.0, 10.0)


def variants(image: nib.Nifti1Image, aseg: nib.Nifti1Image) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(what was done, image, aseg labels, affine), arrays (I, J, K)."""
    voxels, labels, affine = np.asarray(image.dataobj, np.float32), np.asarray(aseg.dataobj), image.affine
    yield f"as it is ({''.join(nib.aff2axcodes(affine))})", voxels, labels, affine
    for axes in ("RAS", "SPL"):
        order = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
        turned = affine @ nib.orientations.inv_ornt_aff(order, voxels.shape)
        yield f"stored as {axes}", *(nib.orientations.apply_orientation(a, order) for a in (voxels, labels)), turned
    lateral = next(n for n, axis in enumerate(nib.aff2axcodes(affine)) if axis in "LR")
    traded = np.flip(labels, lateral)
    traded = np.select([traded == ASEG["left"], traded == ASEG["right"]], [ASEG["right"], ASEG["left"]], traded)
    yield "mirrored as a body is", np.flip(voxels, lateral), traded, affine
    spacing = np.array([1.5, 0.8, 3.0])
    shape = tuple(int(n) for n in np.array(voxels.shape) / spacing)
    coarse = affine @ np.diag([*spacing, 1.0])
    resampled = (ndimage.affine_transform(a, np.diag(spacing), output_shape=shape, order=k) for a, k in ((voxels, 1), (labels, 0)))
    yield "at 1.5 x 0.8 x 3 mm", *resampled, coarse
    i, j, k = np.deg2rad(TURNED_DEG)
    about = (
        np.array([[1, 0, 0], [0, np.cos(i), -np.sin(i)], [0, np.sin(i), np.cos(i)]])
        @ np.array([[np.cos(j), 0, np.sin(j)], [0, 1, 0], [-np.sin(j), 0, np.cos(j)]])
        @ np.array([[np.cos(k), -np.sin(k), 0], [np.sin(k), np.cos(k), 0], [0, 0, 1]])
    )
    middle = (np.array(voxels.shape) - 1) / 2
    rotated = (ndimage.affine_transform(a, about, middle - about @ middle, order=n) for a, n in ((voxels, 1), (labels, 0)))
    yield "turned by 12, -8 and 10 degrees", *rotated, affine


def measured(model: LocatedSegmenter, voxels: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> dict[str, tuple[float, float]]:
    """Side -> (distance of the centroids in mm, Dice); sides are the patient's, by the affine."""
    geometry = Geometry(voxels.shape, affine)
    found = model.segment(Volume(np.ascontiguousarray(voxels, np.float32)[np.newaxis], geometry)).array[0]
    sides = {}
    for side, value in ASEG.items():
        ours = np.isin(found, [label.value for label in model.labels.foreground if label.name.startswith(side)])
        theirs = labels == value
        off = geometry.to_mm(np.argwhere(ours).mean(0)) - geometry.to_mm(np.argwhere(theirs).mean(0))
        sides[side] = float(np.linalg.norm(off)), 2 * float((ours & theirs).sum()) / float(ours.sum() + theirs.sum())
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=Path("hippocampus"))
    parser.add_argument("--box", type=Path)
    given = parser.parse_args()
    chosen = choose([given.model], given.box)
    if chosen.whole is None:
        parser.error(f"{given.model} has no card that says how crops are found in a head")
    model = load_located(chosen.models, Settings(located=Located(model_file(chosen.whole.localiser, chosen.box), chosen.whole)))
    path = next((given.data / "imagesTr").glob("*.nii.gz"))
    image, aseg = nib.load(path), nib.load(given.data / "labels_aseg" / path.name)
    print(f"{'the head':<34}{'centroids off by, mm':>24}{'Dice':>16}   (left, right)")
    for what, voxels, labels, affine in variants(image, aseg):
        sides = measured(model, voxels, labels, affine)
        (left_mm, left), (right_mm, right) = sides["left"], sides["right"]
        print(f"{what:<34}{left_mm:>16.1f}, {right_mm:.1f}{left:>14.3f}, {right:.3f}")


if __name__ == "__main__":
    main()
