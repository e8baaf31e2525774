"""Slab by slab, on several threads, in whole numbers or not: the result is the same."""

import numpy as np
import pytest
from grids import FEW
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from uxnet.errors import VolumeError
from uxnet.geometry import Geometry, resampled
from uxnet.prepare import resample as resample_module
from uxnet.prepare.intensity import measure, normalise
from uxnet.prepare.resample import each, mapping, resample, resample_labels
from uxnet.recipe import Intensity
from uxnet.volume import LOWEST, NOT_FINITE

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


# Other units


EACH = [
    Intensity(scale="zscore"),
    Intensity(scale="zscore", low=0.5, high=99.5, nonzero=True),
    Intensity(scale="percentile"),
    Intensity(scale="percentile", low=1, high=99),
]


@pytest.mark.parametrize("entry", EACH)
def test_a_scan_in_other_units_gives_the_same(entry):
    scan = np.random.default_rng(0).gamma(2, 50, (1, 12, 13, 14)).astype(np.float32)
    scan[0, :2] = 0
    expected = normalise(scan, (entry,))
    for power in (-60, -30, 20, 60, 100):  # of 2: not a digit is lost
        np.testing.assert_array_equal(normalise(scan * np.float32(2.0**power), (entry,)), expected)
    for factor in (1e-35, 1e-30, 1e-26, 1e-9, 1e18, 1e20, 1e30, 1e35):
        made = normalise((scan.astype(np.float64) * factor).astype(np.float32), (entry,))
        np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e60])
def test_what_is_not_finite_as_float32_is_refused_by_name(value):
    scan = np.random.default_rng(0).normal(size=(1, 4, 4, 4))
    scan[0, 1, 1, 1] = value
    for entry in (*EACH, Intensity(scale="none"), Intensity(clip=(0.0, 1.0), scale="range")):
        with pytest.raises(VolumeError, match=r"a\.nii: its values are not finite"):
            normalise(scan, (entry,), "a.nii")


# Padding


def padded(value, dtype="float32", share=5, low=0.0, high=1000.0):
    """Noise of 24 x 20 x 20 in a box of `value`, `share` slices of it on one side."""
    voxels = np.random.default_rng(0).uniform(low, high, (24, 20, 20)).round(0 if np.dtype(dtype).kind in "iu" else 6)
    array = voxels.astype(dtype)
    array[:share] = value
    return array


PADDINGS = [
    (LOWEST, "float32"),
    (NOT_FINITE, "float32"),
    (-3.4e38, "float32"),
    (-LOWEST, "float32"),
    (np.finfo(np.float64).min, "float64"),
    (-32768, "int16"),
    (-32768, "int32"),
    (-32768, "float32"),
    (32767, "int16"),
    (65535, "uint16"),
    (65535, "float32"),
    (-(2**31), "int32"),
    (2**31 - 1, "int32"),
    (2**31 - 1, "float32"),
    (-9999, "int16"),
    (-9999, "float32"),
    (1e6, "float64"),
]


@pytest.mark.parametrize(("value", "dtype"), PADDINGS)
@pytest.mark.parametrize("entry", [*EACH, Intensity(clip=(-100.0, 500.0), scale="range"), Intensity(scale="none")])
def test_padding_is_left_out_and_dark(value, dtype, entry):
    array = padded(value, dtype)
    made = normalise(array[None], (entry,))[0]
    rest = normalise(array[None, 5:], (entry,))[0]
    np.testing.assert_allclose(made[5:], rest, rtol=1e-5, atol=1e-6)
    assert (made[:5] <= rest.min()).all()
    found = measure(array)
    assert [one.share for one in found.padding] == [5 / 24]
    assert (found.low, found.high) == (float(array[5:].min()), float(array[5:].max()))
    # Turned and mirrored it is the same, and so it is in the type that training reads.
    assert measure(array.T[::-1]) == found
    if abs(value) < 1e38:
        assert measure(array.astype(np.float32)).padding[0].share == 5 / 24


def test_several_kinds_of_padding_are_found():
    array = padded(-32768, "int32")
    array[-2:] = -(2**31)
    array[10, 10, 10] = -32768
    found = measure(array)
    assert [one.value for one in found.padding] == [-(2**31), -32768]
    assert found.low >= 0


@pytest.mark.parametrize(
    ("value", "dtype", "low", "high"),
    [
        (0, "uint16", 500, 600),  # a masked image
        (0, "float32", 2000, 2100),
        (-1024, "int16", 0, 100),  # a masked CT
        (-1000, "float32", 0, 100),
        (-2000, "int16", -1024, 1500),  # outside the field of view of a CT
        (-3024, "int16", -1024, 1500),
        (255, "uint8", 0, 200),
        (255, "uint8", 0, 20),
        (4095, "int16", 0, 500),  # what saturates
        (1023, "float32", 0, 100),
        (65535, "uint16", 0, 40000),
        (32767, "int16", -32768, 32000),
        (-32768, "int16", -32700, 32767),
        (-1, "float32", 0, 1),
        (3000, "int16", 0, 1000),
    ],
)
def test_what_may_have_been_measured_is_no_padding(value, dtype, low, high):
    assert measure(padded(value, dtype, low=low, high=high)).padding == ()


def test_a_bright_structure_inside_and_a_few_stray_voxels_are_no_padding():
    array = padded(0, share=0, high=100)
    array[8:14, 8:14, 8:14] = 30000
    assert measure(array).padding == ()
    array = padded(0, share=0, high=100)
    array[0, 0, :3] = -9999
    assert measure(array).padding == ()


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 1000], [0, 1, 2, 3, -9999], [0, 1, 2, 3, 65535], [3, 7], [*range(40), 5000]])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_masks_and_labels_have_no_padding(values, dtype):
    array = np.random.default_rng(0).choice(values, (12, 12, 12)).astype(dtype)
    assert measure(array).padding == ()
