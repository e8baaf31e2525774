"""The second phase of RAP-Net: each structure that the first phase found is asked about again, patch by patch around its voxels.

Lee, Tang, Bao, Abramson, Huo, Landman. "RAP-Net: Coarse-to-Fine Multi-Organ Segmentation with Single Random Anatomical Prior", ISBI 2021,
arXiv:2012.12425, section 2: 50 patches a structure, whose answers are fused by majority vote.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.patches import start_around
from uxnet.errors import RecipeError
from uxnet.events import Progress, Report, silent
from uxnet.geometry import Shape
from uxnet.inference.stitch import Engine, finite, pad_to
from uxnet.labels import Labels
from uxnet.prepare.way_out import prepare, prepare_labels, restore
from uxnet.recipe import Stage
from uxnet.volume import Image, Volume

_SEED = 0  # a scan's labels are the same every time


def refine(volume: Volume, coarse: Volume, engine: Engine, stage: Stage, labels: Labels, report: Report = silent) -> Volume:
    """The label map of a scan, from its coarse label map.

    A structure that the coarse map lacks stays missing: nothing says where to look for it.

    Args:
        volume: an image, (C, I, J, K).
        coarse: the label map of the stage before, (1, I, J, K) values on the same grid.
        engine: computes the stage's network, (N, C + 1, I, J, K) -> (N, 2, I, J, K).
        stage: preparation, patch and `prior`.
        labels: what the values mean.

    Returns:
        (1, I, J, K) values of the smallest integer type, on exactly the scan's geometry.

    Raises:
        RecipeError: if the stage has no `prior`.
        VolumeError: if the scan's channels do not fit the recipe.
        ModelError: if the network gives NaN or infinity.
    """
    if stage.prior is None:
        raise RecipeError("prior: this stage is not guided by another")
    image, trail = prepare(volume, stage.prepare)
    prior = prepare_labels(labels.encode(coarse.array[0]), trail, stage.prepare.label_interpolation)
    found = [index for index in range(1, len(labels.foreground) + 1) if (prior == index).any()]
    indices = np.zeros(prior.shape, dtype=prior.dtype)
    best = np.full(prior.shape, 0.5, dtype=np.float32)  # a voxel belongs to a structure by more than half of its votes
    # The image is padded once; its last channel becomes the mask of one structure after the other.
    padded, inside = pad_to(np.concatenate((image, np.zeros_like(image[:1]))), stage.window)
    for done, index in enumerate(found, start=1):
        padded[(-1, *inside)] = prior == index
        share = votes(padded, engine, stage, stage.prior.patches, index)[inside]
        ahead = share > best
        indices[ahead] = index
        best[ahead] = share[ahead]
        report(Progress("structures", done, len(found)))
    return restore(indices, trail, labels, stage.prepare.label_interpolation)


def votes(padded: Image, engine: Engine, stage: Stage, patches: int, index: int) -> NDArray[np.float32]:
    """The share of the patches over each voxel that say it is the structure; 0 where no patch lies.

    Args:
        padded: (C + 1, I, J, K), prepared, no side smaller than the patch's; the last channel is the mask of where the stage before
            found the structure, not empty.
        patches: how many are drawn.
        index: of the structure; it and nothing else decides which voxels the patches are drawn around.
    """
    patch: Shape = stage.window
    shape = padded.shape[1:]
    voxels = np.argwhere(padded[-1] > 0)
    rng = np.random.default_rng((_SEED, index))
    chosen = voxels[rng.integers(len(voxels), size=patches)]
    # Near an edge many voxels have the same patch: it is computed once, and its vote counts as often.
    starts = Counter(start_around(voxel, shape, patch) for voxel in chosen)
    said, asked = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    items = list(starts.items())
    for first in range(0, len(items), stage.inference.batch):
        group = items[first : first + stage.inference.batch]
        boxes = [tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True)) for start, _ in group]
        logits = finite(engine.infer(np.stack([padded[(slice(None), *box)] for box in boxes])))
        for box, one, (_, times) in zip(boxes, logits, group, strict=True):
            said[box] += times * (one[1] > one[0])
            asked[box] += times
    share: NDArray[np.float32] = np.divide(said, asked, out=np.zeros_like(said), where=asked > 0)
    return share
