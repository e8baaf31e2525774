"""Heads that nobody scanned: two structures in space, and segmenters that know them by their intensities.

On the left a voxel is negative, on the right positive; its size is 10 in the anterior part and 11 in the posterior. The anterior part
lies nearer to the midline, as a hippocampus's does.
"""

from pathlib import Path

import numpy as np

from uxnet.geometry import Geometry, axis_order
from uxnet.inference.segmenter import Segmenter
from uxnet.labels import Label, Labels
from uxnet.model.catalogue import Whole
from uxnet.model.file import Model
from uxnet.recipe import Inference, Intensity, Preparation, Recipe, Sampling, Stage
from uxnet.volume import Source, Volume

WHOLE = Whole(
    localiser="finder",
    sides=("left thing", "right thing"),
    known="left",
    naming="{side} {label} thing",
    crop_mm=((-20.0, 26.0), (-30.0, 30.0), (-20.0, 24.0)),
    largest_crop_mm=70.0,
    distance_mm=(35.0, 75.0),
    volume_ml=(1.0, 30.0),
)
CROP_LABELS = Labels((Label("Anterior", 1), Label("Posterior", 2)))
SIDE_LABELS = Labels((Label("left thing", 1), Label("right thing", 2)), pairs=(("left thing", "right thing"),))


def head(orientation="RAS", spacing=(3.0, 2.5, 4.0), *, sides=("left", "right"), at=(26.0, 0.0, 0.0), name="head.nii.gz", size_mm=130.0):
    """A head as a Volume, in any orientation; its structures lie `at` (mm) from its middle, mirrored for the other side."""
    shape = tuple(int(size_mm / s) for s in spacing)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -(np.array(shape) - 1) / 2 * spacing
    ras = Geometry(shape, affine)
    points = ras.to_mm(np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1))
    voxels = np.zeros(shape, np.float32)
    voxels[0, 0, 0] = 1  # or one without structures would be a blank scan
    for side, sign in (("left", -1.0), ("right", 1.0)):
        if side in sides:
            # Seen from the midline outwards, in the frame of this side.
            own = points * (sign, 1, 1) - at
            voxels[(np.linalg.norm((own - (-4, 10, 0)) / (8, 12, 9), axis=-1) < 1)] = sign * 10
            voxels[(np.linalg.norm((own - (4, -8, 0)) / (8, 14, 8), axis=-1) < 1)] = sign * 11
    order = axis_order(ras, orientation)
    return Volume(np.ascontiguousarray(order.apply(voxels))[np.newaxis], order.apply_to(ras), Source(Path(name)))


def reference(volume):
    """What should be found in a head: 1 left anterior, 2 left posterior, 3 right anterior, 4 right posterior."""
    signed = volume.array[0]
    return np.select([signed == -10, signed == -11, signed == 10, signed == 11], [1, 2, 3, 4], 0).astype(np.uint8)


class ByIntensity:
    """An engine that knows what to say of each intensity, and keeps the windows that it was shown."""

    def __init__(self, *conditions):
        self.conditions = conditions
        self.windows = []

    def infer(self, batch):
        self.windows.append(batch[:, 0].copy())
        found = [condition(batch[:, 0]) for condition in self.conditions]
        nothing = ~np.logical_or.reduce(found)
        return np.stack([nothing, *found], axis=1).astype(np.float32) * 20 - 10


def segmenter(labels, engine, spacing_mm=(), name="model.uxnet"):
    prepare = Preparation(spacing_mm=spacing_mm, intensity=(Intensity(scale="none"),))
    stage = Stage(prepare=prepare, sampling=Sampling(patch=(64, 64, 64)), inference=Inference(overlap=0.0))
    recipe = Recipe("made", stages=(stage,))
    return Segmenter(Model(recipe, labels, ("any",), {}, {"name": "made"}, Path(name)), [engine])


def finder(spacing_mm=(4.0, 4.0, 4.0)):
    return segmenter(SIDE_LABELS, ByIntensity(lambda v: v < -3, lambda v: v > 3), spacing_mm, "finder.uxnet")


def cropper():
    return segmenter(CROP_LABELS, ByIntensity(lambda v: np.abs(v) == 10, lambda v: np.abs(v) == 11), name="thing.uxnet")
