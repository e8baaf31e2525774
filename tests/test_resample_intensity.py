"""Slab by slab, on several threads, in whole numbers or not: the result is the same."""

import numpy as np
import pytest
from grids import FEW
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from uxnet import resample as resample_module
from uxnet.geometry import Geometry, resampled
from uxnet.intensity import normalise
from uxnet.recipe import Intensity
from uxnet.resample import each, mapping, resample, resample_labels

ENTRIES = st.sampled_from(
    [
        Intensity(scale="none"),
        Intensity(clip=(-200.0, 300.0), scale="range"),
        Intensity(scale="percentile", low=1, high=98.5),
        Intensity(scale="zscore"),
        Intensity(clip=(-500.0, 500.0), scale="zscore", low=0.5, high=99.5, nonzero=True),
    ]
)


@pytest.mark.parametrize("spline", [0, 1, 3])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("threads", [1, 3])
def test_slabs_are_the_whole(spline, order, threads, monkeypatch):
    monkeypatch.setattr(resample_module, "_SLAB", 2_000)
    array = np.asarray(np.random.default_rng(0).normal(size=(31, 45, 60)).astype(np.float32), order=order)
    source = Geometry(array.shape, np.diag([0.8, 1.1, 0.9, 1.0]))
    for spacing in ((1.3, 0.7, 2.0), (0.8, 1.1, 0.9), (0.5, 0.5, 0.5)):
        target = resampled(source, spacing)
        made = resample(array, source, target, spline, ranged=lambda part: 2 * part, threads=threads)
        scale, shift = mapping(source, target)
        whole = ndimage.affine_transform(2 * array, scale, shift, target.shape, order=spline, mode="nearest")
        np.testing.assert_allclose(made, whole, atol=2e-5)
        into = np.empty(target.shape, np.float32)
        assert resample(array, source, target, spline, ranged=lambda part: 2 * part, out=into) is into
        np.testing.assert_allclose(into, whole, atol=2e-5)


@FEW
@given(st.integers(0, 9), st.sampled_from([(2.0, 2.0, 2.0), (1.5, 1.0, 2.0), (0.7, 1.3, 1.0), (4.0, 1.0, 1.0)]))
def test_no_label_goes_before_another(seed, spacing):
    """Halfway between voxels several classes are equally strong: which of them has the lower index must not matter."""
    indices = np.random.default_rng(seed).integers(0, 2, (12, 13, 14)).astype(np.uint8)
    source = Geometry(indices.shape, np.eye(4))
    target = resampled(source, spacing)
    made = resample_labels(indices, source, target, "by_class")
    assert made.dtype == np.uint8
    np.testing.assert_array_equal(resample_labels(1 - indices, source, target, "by_class"), 1 - made)


@pytest.mark.parametrize("spacing", [1.5, 2.0])
def test_structures_keep_their_volume_on_another_grid(spacing):
    source = Geometry((24, 23, 22), np.eye(4))
    target = resampled(source, (spacing,) * 3)
    before, after = 0, 0.0
    for centre in np.random.default_rng(0).uniform(9, 13, (20, 3)):
        indices = (np.linalg.norm(np.moveaxis(np.indices(source.shape), 0, -1) - centre, axis=-1) < 6).astype(np.uint8)
        before += int(indices.sum())
        after += resample_labels(indices, source, target, "by_class").sum() * target.voxel_mm3
    assert after == pytest.approx(before, rel=0.03)


def test_what_a_thread_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        each(lambda n: 1 // n, [(1,), (0,), (2,)], 2)


@FEW
@given(st.sampled_from(["int16", "uint8", "uint16", "int8"]), ENTRIES, st.integers(0, 9), st.sampled_from("CF"))
def test_whole_numbers_are_counted_to_the_same_effect(dtype, entry, seed, order):
    rng = np.random.default_rng(seed)
    array = np.asarray(np.clip(rng.normal(60, 200, (2, 9, 8, 7)), np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype), order=order)
    array[:, :2] = 0
    np.testing.assert_allclose(normalise(array, (entry,)), normalise(array.astype(np.float32), (entry,)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["percentile", "zscore"])
def test_a_constant_channel_becomes_zero(scale):
    for dtype in (np.int16, np.float32):
        assert not normalise(np.full((1, 3, 3, 3), 7, dtype), (Intensity(scale=scale),)).any()
        assert not normalise(np.zeros((1, 3, 3, 3), dtype), (Intensity(scale=scale, nonzero=True),)).any()
