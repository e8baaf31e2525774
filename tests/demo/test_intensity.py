"""The intensity classifier: right where intensity suffices, below 0.6 on phantoms."""

import numpy as np
import pytest

from uxnet.demo.intensity import fit
from uxnet.demo.phantoms import phantom, phantom_labels
from uxnet.errors import DatasetError, VolumeError
from uxnet.geometry import Geometry
from uxnet.labels import Label, Labels
from uxnet.volume import Volume

TWO = Labels((Label("dark", 3), Label("bright", 7)), ignore=255)


def _case(seed, overlap=0.0):
    rng = np.random.default_rng(seed)
    values = rng.choice([0, 3, 7], (1, 20, 20, 20), p=[0.8, 0.1, 0.1]).astype(np.uint8)
    means = np.select([values == 3, values == 7], [100, 200], 0)
    image = rng.normal(means, 5 + overlap).astype(np.float32)
    geometry = Geometry((20, 20, 20), np.eye(4))
    return Volume(image, geometry), Volume(values, geometry)


def _dice(found, truth, value):
    a, b = found == value, truth == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_what_intensity_tells_apart_is_told_apart():
    classifier = fit([_case(0), _case(1)], TWO)
    image, truth = _case(2)
    found = classifier.segment(image)
    assert found.array.shape == truth.array.shape
    assert set(np.unique(found.array)) == {0, 3, 7}
    assert min(_dice(found.array, truth.array, v) for v in (3, 7)) > 0.99
    assert classifier.training_dice > 0.99


def test_the_training_dice_is_what_segmenting_the_training_cases_gives():
    cases = [_case(n, overlap=60) for n in range(3)]
    classifier = fit(cases, TWO)
    scores = [_dice(classifier.segment(image).array, truth.array, v) for image, truth in cases for v in (3, 7)]
    assert classifier.training_dice == pytest.approx(np.mean(scores))
    assert 0.2 < classifier.training_dice < 0.9


def test_voxels_to_ignore_do_not_count():
    image, truth = _case(0)
    spoilt = truth.array.copy()
    spoilt[:, :5] = 255
    noisy = image.array.copy()
    noisy[:, :5] = 150
    classifier = fit([(image.with_array(noisy), truth.with_array(spoilt))], TWO)
    found = classifier.segment(image)
    assert _dice(found.array, truth.array, 7) > 0.99


def test_intensities_never_seen_still_get_a_label():
    classifier = fit([_case(0)], TWO)
    image, _ = _case(1)
    extreme = image.array.copy()
    extreme[0, 0, 0, :2] = (-1e6, 1e6)
    found = classifier.segment(image.with_array(extreme)).array
    assert set(np.unique(found)) <= {0, 3, 7}


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(DatasetError, match="at least one"):
        fit([], TWO)
    image, truth = _case(0)
    with pytest.raises(VolumeError, match="2 channels"):
        fit([(image.with_array(np.repeat(image.array, 2, axis=0)), truth)], TWO)


def test_intensity_alone_does_not_solve_the_phantoms():
    labels = phantom_labels()
    classifier = fit((phantom(0, index) for index in (6, 8, 11, 12)), labels)
    scores = []
    for index in (13, 19):
        image, truth = phantom(0, index)
        found = classifier.segment(image)
        scores += [_dice(found.array, truth.array, label.value) for label in labels.foreground]
    assert 0.1 < np.mean(scores) < 0.5
    assert classifier.training_dice < 0.5
