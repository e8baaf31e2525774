"""The weakest fair rival: a classifier that sees one voxel's intensity and nothing else.

Printed beside a network's score it says how much of a task is solved by grey values alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import DatasetError, VolumeError
from uxnet.labels import Labels
from uxnet.volume import Volume

# How far the classes' frequencies count: as found, their square root, not at all.
_PRIORS = (1.0, 0.5, 0.0)


@dataclass(frozen=True, eq=False)
class IntensityClassifier:
    """For every interval of intensity the most probable label; `fit` makes one.

    Args:
        labels: what the labels mean.
        edges: (B - 1,) rising intensities between B intervals; the first and the last interval are open.
        choices: (B,) the index (0 background, 1..n) of the label given to each interval.
        prior_power: the power of the class frequencies that scored best on the training cases.
        training_dice: mean Dice over foreground labels and training cases, 0..1.
    """

    labels: Labels
    edges: NDArray[np.float64]
    choices: NDArray[np.int64]
    prior_power: float
    training_dice: float

    def segment(self, volume: Volume) -> Volume:
        """The label map (1, I, J, K), in values, of an image (1, I, J, K).

        Raises:
            VolumeError: if the image has several channels.
        """
        return volume.with_array(self.labels.decode(self.choices[_bins(volume, self.edges)]))


def fit(volumes: Iterable[tuple[Volume, Volume]], labels: Labels, *, intervals: int = 200) -> IntensityClassifier:
    """Bayes' rule on histograms of single voxels.

    How often each class occurs may count fully, by its square root or not at all; whichever gives the best mean Dice on the training
    cases is taken, so that the rival is not weaker than it must be.

    Args:
        volumes: pairs of an image (1, I, J, K) and its label map (1, I, J, K) of values; ignored voxels do not count.
        intervals: how finely intensities are told apart, between the 0.1th and 99.9th percentile of the training images.

    Raises:
        DatasetError: if there are no cases.
        VolumeError: if an image has several channels.
        LabelsError: if a label map holds values that are no labels.
    """
    cases = list(volumes)
    if not cases:
        raise DatasetError("an intensity classifier needs at least one training case")
    ends = np.array([np.percentile(image.array, (0.1, 99.9)) for image, _ in cases])
    edges = np.linspace(ends[:, 0].min(), ends[:, 1].max(), intervals - 1)
    counts = np.stack([_histogram(image, truth, labels, edges) for image, truth in cases])
    likelihood = _smooth(counts.sum(axis=0))
    frequency = likelihood.sum(axis=1, keepdims=True)
    tried = [(likelihood / frequency * frequency**power).argmax(axis=0) for power in _PRIORS]
    scores = [_mean_dice(counts, choices) for choices in tried]
    best = int(np.argmax(scores))
    return IntensityClassifier(labels, edges, tried[best], _PRIORS[best], scores[best])


def _bins(volume: Volume, edges: NDArray[np.float64]) -> NDArray[np.intp]:
    if volume.channels != 1:
        raise VolumeError(f"{volume.name}: it has {volume.channels} channels; the intensity classifier works on one")
    bins: NDArray[np.intp] = np.digitize(volume.array, edges)
    return bins


def _histogram(image: Volume, truth: Volume, labels: Labels, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many voxels of each class fall into each interval, (n + 1, B)."""
    classes, size = len(labels.foreground) + 1, len(edges) + 1
    indices = labels.encode(truth.array).astype(np.int64)
    known = indices < classes
    both = indices[known] * size + _bins(image, edges)[known]
    return np.bincount(both, minlength=classes * size).reshape(classes, size).astype(np.float64)


def _smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """A little blur, so that a sparse class's histogram has no holes, and never quite zero."""
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    return np.stack([np.convolve(row, kernel, "same") for row in counts]) + 1e-6


def _mean_dice(counts: NDArray[np.float64], choices: NDArray[np.int64]) -> float:
    """Mean Dice of a choice, from the histograms (cases, n + 1, B) alone; classes that a case lacks do not count in it."""
    scores = []
    for case in counts:
        for index in range(1, case.shape[0]):
            size = case[index].sum()
            if size:
                chosen = choices == index
                scores.append(2 * case[index, chosen].sum() / (size + case[:, chosen].sum()))
    return float(np.mean(scores)) if scores else 0.0
