"""Logits decided piece by piece are those that are decided all at once, voxel by voxel."""

import itertools

import numpy as np
import pytest
from grids import FEW
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from uxnet.errors import VolumeError
from uxnet.geometry import Box, Geometry, axis_order
from uxnet.inference import decide
from uxnet.inference.decide import restore_logits
from uxnet.labels import Label, Labels, Region
from uxnet.prepare.resample import mapping
from uxnet.prepare.way_out import covered, prepare
from uxnet.recipe import Intensity, Preparation
from uxnet.volume import Volume

PLAIN = Labels(tuple(Label(f"label {n}", 3 * n) for n in range(1, 5)), background=1)
PARTS = tuple(Label(name, value) for name, value in (("a", 1), ("b", 2), ("c", 4)))
REGIONS = Labels(PARTS, regions=(Region("all", (1, 2, 4), 1), Region("core", (2, 4), 2), Region("middle", (4,), 4)))

SPACING = st.tuples(*[st.sampled_from([0.7, 1.0, 1.3, 2.0])] * 3)


def trail_of(shape, spacing, orientation="RAS"):
    volume = Volume(np.ones((1, *shape), np.float32), Geometry(shape, np.diag([-1.0, 1.1, 1.6, 1.0])))
    return prepare(volume, Preparation(orientation=orientation, spacing_mm=spacing, intensity=(Intensity(scale="none"),)))[1]


def pieces_of(logits, cuts):
    """Pieces that cover the grid, each beginning with the last plane of the one before."""
    bounds = [sorted({0, *(c % n for c in cuts), n}) for n in logits.shape[1:]]
    for sides in itertools.product(*(itertools.pairwise(b) for b in bounds)):
        box = Box(tuple(max(a - 1, 0) for a, _ in sides), tuple(b for _, b in sides))
        yield box, logits[(slice(None), *box.slices)]


def oracle(logits, trail):
    """Every channel at every one of the scan's voxels, by scipy."""
    where = covered(trail)
    scale, shift = mapping(trail.prepared, where.apply_to(trail.oriented))
    made = [ndimage.affine_transform(c.astype(np.float64), scale, shift, where.shape, order=1, mode="nearest") for c in logits]
    back = axis_order(trail.oriented, trail.geometry.orientation)
    return np.stack([back.apply(c) for c in made])


def smooth(shape, channels, seed, sigma):
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    return np.stack([ndimage.gaussian_filter(c, sigma) for c in noise]).astype(np.float32)


@FEW
@given(
    st.tuples(*[st.integers(1, 14)] * 3), SPACING, st.sampled_from(["RAS", "LPI", "SRA"]), st.lists(st.integers(0, 20), max_size=4),
    st.sampled_from([0, 2.5]), st.sampled_from([PLAIN, REGIONS]), st.integers(1, 3), st.integers(0, 5),
)  # fmt: skip
def test_pieces_give_what_all_channels_at_every_voxel_give(shape, spacing, orientation, cuts, sigma, labels, threads, seed):
    trail = trail_of(shape, spacing, orientation)
    logits = smooth(trail.prepared.shape, labels.out_channels, seed, sigma)
    probabilities = np.zeros((labels.out_channels, *shape), np.uint8)
    made = restore_logits(pieces_of(logits, cuts), trail, labels, probabilities=probabilities, threads=threads)
    exact = oracle(logits, trail)
    if labels.regions:
        values, sure = np.full(shape, labels.background), np.abs(exact).min(axis=0) > 1e-5
        for region, channel in zip(labels.regions, exact, strict=True):
            values[channel > 0] = region.writes
        probs = 1 / (1 + np.exp(-exact))
    else:
        ranked = np.sort(exact, axis=0)
        values, sure = labels.decode(exact.argmax(axis=0)), ranked[-1] - ranked[-2] > 1e-5
        probs = np.exp(exact) / np.exp(exact).sum(axis=0)
    np.testing.assert_array_equal(made.array[0][sure], values[sure])
    assert sure.mean() > 0.9
    np.testing.assert_allclose(probabilities / 255, probs, atol=0.5 / 255 + 1e-4)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions"])
def test_it_does_not_matter_how_a_slab_is_decided(labels, monkeypatch):
    trail = trail_of((30, 26, 22), (2.0, 1.7, 1.9))
    logits = smooth(trail.prepared.shape, labels.out_channels, 0, 2.0)
    made = []
    for sparse, work in ((0.0, 4_000_000), (1.0, 4_000_000), (0.0, 3_000), (1.0, 300), (0.15, 50_000)):
        monkeypatch.setattr(decide, "_SPARSE", sparse)
        monkeypatch.setattr(decide, "_WORK", work)
        made.append(restore_logits(pieces_of(logits, [5, 9]), trail, labels).array)
    for other in made[1:]:
        np.testing.assert_array_equal(other, made[0])
    assert len(np.unique(made[0])) > 2


def test_outside_the_crop_is_background_in_labels_and_probabilities():
    array = np.zeros((1, 10, 9, 8), np.float32)
    array[0, 3:6, 2:7, 4:6] = 1
    volume = Volume(array, Geometry((10, 9, 8), np.eye(4)))
    image, trail = prepare(volume, Preparation(crop_above=0.5, intensity=(Intensity(scale="none"),)))
    logits = np.stack([np.full(image.shape[1:], value, np.float32) for value in (0, 50, 0, 0, 0)])
    probabilities = np.zeros((5, 10, 9, 8), np.uint8)
    made = restore_logits([(Box((0, 0, 0), image.shape[1:]), logits)], trail, PLAIN, probabilities=probabilities)
    np.testing.assert_array_equal(made.array, np.where(array > 0, 3, 1))
    np.testing.assert_array_equal(probabilities[1], 255 * array[0])
    np.testing.assert_array_equal(probabilities.sum(axis=0), 255)


def test_pieces_that_leave_a_gap_are_refused():
    trail = trail_of((8, 8, 8), (1.0, 1.1, 1.6))
    logits = np.zeros((5, 8, 8, 8), np.float32)
    with pytest.raises(VolumeError, match="do not cover"):
        restore_logits([(Box((0, 0, 0), (8, 8, 4)), logits[..., :4])], trail, PLAIN)
