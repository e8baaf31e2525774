"""The way out and the way back: nothing moves in space, and labels come home as they went."""

import re

import nibabel as nib
import numpy as np
import pytest
from grids import FEW, ORIENTATIONS, SPACINGS, affines, centres, shapes
from hypothesis import given
from hypothesis import strategies as st

from uxnet.errors import VolumeError
from uxnet.geometry import Box, Geometry, full_box
from uxnet.inference.decide import restore_logits as restore_pieces
from uxnet.labels import Label, Labels, Region
from uxnet.prepare.intensity import normalise
from uxnet.prepare.way_out import prepare, prepare_labels, restore
from uxnet.recipe import Intensity, Preparation
from uxnet.volume import Volume

LABELS = Labels((Label("left", 7), Label("right", -2)), ignore=300)
AS_IT_IS = (Intensity(scale="none"),)
BY = st.sampled_from(["nearest", "by_class"])


def some_indices(shape, seed=0, highest=3):
    return np.random.default_rng(seed).integers(0, highest + 1, shape).astype(np.uint8)


def one_hot(indices, channels):
    return np.stack([(indices == n).astype(np.float32) for n in range(channels)])


def restore_logits(logits, trail, labels):
    """All the logits as one piece."""
    logits = np.asarray(logits, dtype=np.float32)
    return restore_pieces([(full_box(logits.shape[1:]), logits)], trail, labels)


def blob(geometry, centre_mm, radius_mm):
    """The voxels of a grid whose centres lie in a ball."""
    return (np.linalg.norm(geometry.to_mm(centres(geometry)) - centre_mm, axis=1) <= radius_mm).reshape(geometry.shape)


def centroid_mm(mask, geometry):
    return geometry.to_mm(np.argwhere(mask).mean(axis=0))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# Space


@FEW
@given(affines(turn=90), shapes())
def test_an_image_is_turned_as_nibabel_turns_it(affine, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image, trail = prepare(Volume(array[np.newaxis], Geometry(shape, affine)), Preparation(intensity=AS_IT_IS))
    oracle = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(image[0], np.asarray(oracle.dataobj))
    np.testing.assert_allclose(trail.prepared.affine_ras, oracle.affine, atol=1e-9)


@FEW
@given(affines(), shapes(2, 12), ORIENTATIONS, SPACINGS, st.booleans(), BY)
def test_every_prepared_voxel_shows_the_label_at_its_place(affine, shape, orientation, spacing, crop, interpolation):
    indices = some_indices(shape) * (np.random.default_rng(1).random(shape) < 0.7).astype(np.uint8)
    volume = Volume(indices[np.newaxis].astype(np.float32), Geometry(shape, affine))
    crop_above = 0.5 if crop else None
    _, trail = prepare(volume, Preparation(orientation=orientation, spacing_mm=spacing, crop_above=crop_above, intensity=AS_IT_IS))
    made = prepare_labels(indices, trail, interpolation)
    assert made.shape == trail.prepared.shape
    assert made.dtype == indices.dtype
    # The oracle: for each prepared voxel, the scan's own voxels around the same place in the room.
    ijk = np.linalg.inv(affine) @ np.c_[trail.prepared.to_mm(centres(trail.prepared)), np.ones(made.size)].T
    ijk = np.clip(ijk[:3].T, 0, np.array(shape) - 1)
    if interpolation == "nearest":
        clear = (np.abs(ijk - np.floor(ijk) - 0.5) > 1e-3).all(axis=1)
        nearest = indices[tuple(np.rint(ijk).astype(int).T)]
    else:
        corners = [indices[tuple(np.where(up, np.ceil(ijk), np.floor(ijk)).astype(int).T)] for up in np.ndindex(2, 2, 2)]
        clear = (np.array(corners) == corners[0]).all(axis=0)
        nearest = corners[0]
    np.testing.assert_array_equal(made.ravel()[clear], nearest[clear])


@FEW
@given(affines(spacings=st.tuples(*[st.floats(0.6, 3)] * 3)), st.tuples(*[st.floats(0.6, 3)] * 3), ORIENTATIONS, st.booleans(), BY)
def test_structures_stay_where_they_are_in_the_patient(affine, spacing, orientation, crop, interpolation):
    voxel = np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1.0)
    shape = tuple(int(n) for n in np.ceil(40 / voxel))
    geometry = Geometry(shape, affine)
    middle = geometry.to_mm((np.array(shape) - 1) / 2)
    # Left and right of the middle, and unlike in size, so that no mirror image passes.
    indices = blob(geometry, middle - np.array((10, 0, 0)), 5.5).astype(np.uint8)
    indices[blob(geometry, middle + np.array((10, 3, 0)), 7.5)] = 2
    image = 100.0 * (indices > 0)[np.newaxis].astype(np.float32)
    preparation = Preparation(orientation=orientation, spacing_mm=spacing, crop_above=50 if crop else None, intensity=AS_IT_IS)
    prepared, trail = prepare(Volume(image, geometry), preparation)
    made = prepare_labels(indices, trail, interpolation)
    # Half a prepared voxel in each axis, where labels have been rounded to its grid, and half of the scan's on the way back.
    out, back = max(spacing) / 2, (max(spacing) + max(geometry.spacing_mm)) / 2
    restored = restore(made, trail, LABELS, interpolation)
    decided = restore_logits(one_hot(made, 4), trail, LABELS)
    assert restored.geometry == decided.geometry == geometry
    for index, value in ((1, 7), (2, -2)):
        true = centroid_mm(indices == index, geometry)
        assert np.linalg.norm(centroid_mm(made == index, trail.prepared) - true) < out
        assert prepared[0][made == index].mean() > 60  # the image went the same way
        for volume in (restored, decided):
            assert np.linalg.norm(centroid_mm(volume.array[0] == value, geometry) - true) < back


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 2.0, 1.1), (2.5, 2.5, 2.5)])
def test_a_ramp_in_space_is_the_same_ramp_after_resampling(interpolation, spacing):
    affine = nib.affines.from_matvec(np.array([[0.1, -0.9, 0.2], [1.2, 0.1, 0.1], [0, 0.2, 1.5]]), (10, -20, 30))
    geometry = Geometry((24, 26, 22), affine)
    slope = np.array([0.3, -0.7, 0.5])
    ramp = (geometry.to_mm(centres(geometry)) @ slope + 4).reshape(1, *geometry.shape).astype(np.float32)
    image, trail = prepare(Volume(ramp, geometry), Preparation(spacing_mm=spacing, interpolation=interpolation, intensity=AS_IT_IS))
    mm = trail.prepared.to_mm(centres(trail.prepared))
    ijk = geometry.to_ijk(mm)
    # A spline feels the edge for a few voxels, since beyond it the image is constant; a line does not.
    margin = 0 if interpolation == "linear" else 6
    inside = ((ijk >= margin) & (ijk <= np.array(geometry.shape) - 1 - margin)).all(axis=1)
    assert inside.sum() > 50
    np.testing.assert_allclose(image.ravel()[inside], (mm @ slope + 4)[inside], atol=1e-4 if interpolation == "linear" else 3e-3)


def test_cubic_is_not_linear():
    array = np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32)
    volume = Volume(array, Geometry((8, 8, 8), np.eye(4)))
    made = [prepare(volume, Preparation(spacing_mm=(0.7,) * 3, interpolation=name, intensity=AS_IT_IS))[0] for name in ("linear", "cubic")]
    assert made[0].min() >= array.min()
    assert np.abs(made[0] - made[1]).max() > 0.1


def test_beyond_the_edge_the_edge_counts():
    """A grid of whole voxels may reach a little further than the scan; nothing is invented there."""
    volume = Volume(np.full((1, 7, 7, 7), 3.0, np.float32), Geometry((7, 7, 7), np.eye(4)))
    image, trail = prepare(volume, Preparation(spacing_mm=(2.0, 1.9, 0.3), intensity=AS_IT_IS))
    assert trail.prepared.shape == (4, 4, 23)
    np.testing.assert_allclose(image, 3, atol=1e-6)


# There and back


@FEW
@given(affines(turn=90), shapes(1, 9), ORIENTATIONS, st.booleans(), st.booleans(), BY, st.integers(0, 9))
def test_labels_come_back_voxel_for_voxel_where_the_spacing_is_kept(affine, shape, orientation, named, crop, interpolation, seed):
    geometry = Geometry(shape, affine)
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    values = LABELS.decode(some_indices(shape, seed))
    crop_above = float(rng.normal()) if crop else None
    if crop_above is not None and (image > crop_above).any():
        inside = np.argwhere((image > crop_above).any(axis=0))
        outside = np.ones(shape, bool)
        outside[tuple(slice(a, b + 1) for a, b in zip(inside.min(axis=0), inside.max(axis=0), strict=True))] = False
        values[outside] = LABELS.background  # what is cut off is lost, and only that
    order = [geometry.orientation.index(next(c for c in geometry.orientation if c in pair)) for pair in map(opposites, orientation)]
    spacing = tuple(np.array(geometry.spacing_mm)[order]) if named else ()
    _, trail = prepare(Volume(image, geometry), Preparation(orientation=orientation, spacing_mm=spacing, crop_above=crop_above))
    made = prepare_labels(LABELS.encode(values), trail, interpolation)
    for back in (restore(made, trail, LABELS, interpolation), restore_logits(one_hot(made, 4), trail, LABELS)):
        np.testing.assert_array_equal(back.array[0], values)
        assert back.array.dtype == LABELS.dtype
        assert back.geometry == geometry


def opposites(letter):
    return next(pair for pair in ("RL", "AP", "SI") if letter in pair)


@pytest.mark.parametrize("interpolation", ["nearest", "by_class"])
@pytest.mark.parametrize(("spacing", "least"), [((0.5, 0.5, 0.5), 0.99), ((0.7, 0.4, 0.9), 0.95), ((1.5, 1.5, 1.5), 0.9)])
def test_big_structures_survive_another_spacing(interpolation, spacing, least):
    geometry = Geometry((30, 32, 24), np.diag((-1.0, 1.0, 1.2, 1)))
    indices = blob(geometry, (-9, 16, 14), 7).astype(np.uint8)
    indices[blob(geometry, (-22, 16, 14), 6)] = 2
    _, trail = prepare(Volume(indices[np.newaxis].astype(np.float32), geometry), Preparation(spacing_mm=spacing))
    made = prepare_labels(indices, trail, interpolation)
    for back in (restore(made, trail, LABELS, interpolation), restore_logits(one_hot(made, 4), trail, LABELS)):
        for index, value in ((1, 7), (2, -2)):
            assert dice(indices == index, back.array[0] == value) > least


@pytest.mark.parametrize(("side", "spacing"), [(17, 7.0), (9, 2.6), (5, 0.3), (11, 4.4)])
@pytest.mark.parametrize("at", [0, -1])
def test_a_structure_at_the_scans_edge_is_not_cut_off(side, spacing, at):
    """Coarse grids end before the scan does; what the last prepared voxel says goes for the rest of the scan, cropped or not."""
    image = np.zeros((1, side, 4, 4), np.float32)
    image[0, at] = 1
    volume = Volume(image, Geometry((side, 4, 4), np.eye(4)))
    for crop_above in (None, 0.5):
        prepared, trail = prepare(volume, Preparation(spacing_mm=(spacing, 1.0, 1.0), crop_above=crop_above, intensity=AS_IT_IS))
        back = restore(np.ones(prepared.shape[1:], np.uint8), trail, LABELS)
        assert (back.array[0, at] == 7).all()


def test_there_is_background_where_the_crop_cut_off():
    labels = Labels((Label("a", 1),), background=9)
    image = np.zeros((1, 6, 6, 6), np.float32)
    image[0, 2:4, 3, 1:] = 1
    _, trail = prepare(Volume(image, Geometry((6, 6, 6), np.eye(4))), Preparation(crop_above=0.5))
    assert trail.box == Box((2, 3, 1), (4, 4, 6))
    back = restore(np.ones((2, 1, 5), np.uint8), trail, labels).array[0]
    assert (back[2:4, 3, 1:] == 1).all()
    assert (back == 1).sum() == 10
    assert (back == 9).sum() == 206
    logits = np.stack([np.zeros((2, 1, 5)), np.ones((2, 1, 5))])
    np.testing.assert_array_equal(restore_logits(logits, trail, labels).array[0], back)


def test_nothing_above_the_threshold_keeps_everything():
    volume = Volume(np.zeros((1, 4, 5, 6), np.float32), Geometry((4, 5, 6), np.eye(4)))
    image, trail = prepare(volume, Preparation(crop_above=10.0))
    assert image.shape == (1, 4, 5, 6)
    assert trail.box == full_box((4, 5, 6))


def test_the_crop_looks_at_any_channel_and_at_the_intensities_before_normalisation():
    image = np.zeros((2, 6, 6, 6), np.float32)
    image[0, 1, 1, 1] = image[1, 4, 4, 4] = 500
    _, trail = prepare(Volume(image, Geometry((6, 6, 6), np.eye(4))), Preparation(crop_above=400.0))
    assert trail.box == Box((1, 1, 1), (5, 5, 5))


@FEW
@given(affines(), shapes(2, 10), SPACINGS)
def test_a_crop_holds_every_voxel_above_the_threshold(affine, shape, spacing):
    image = (np.random.default_rng(0).random((1, *shape)) < 0.1).astype(np.float32)
    geometry = Geometry(shape, affine)
    prepared, trail = prepare(Volume(image, geometry), Preparation(spacing_mm=spacing, crop_above=0.5, intensity=AS_IT_IS))
    assert prepared.shape[1:] == trail.box.shape
    assert min(trail.box.start) >= 0
    assert all(b <= n for b, n in zip(trail.box.stop, trail.grid.shape, strict=True))
    back = restore(np.ones(trail.box.shape, np.uint8), trail, LABELS)
    assert (back.array[0][image[0] > 0.5] == 7).all()


def test_neither_way_changes_what_it_is_given():
    array = np.random.default_rng(0).normal(size=(1, 6, 5, 4)).astype(np.float32)
    volume = Volume(array.copy(), Geometry((6, 5, 4), np.eye(4)))
    for preparation in (Preparation(), Preparation(intensity=AS_IT_IS), Preparation(spacing_mm=(2.0,) * 3)):
        image, trail = prepare(volume, preparation)
        assert not np.shares_memory(image, volume.array)
        assert image.flags.c_contiguous
        assert image.dtype == np.float32
        logits = np.random.default_rng(1).normal(size=(4, *image.shape[1:])).astype(np.float32)
        kept = logits.copy()
        restore_logits(logits, trail, LABELS)
        np.testing.assert_array_equal(logits, kept)
    np.testing.assert_array_equal(volume.array, array)


def test_the_source_travels_along():
    volume = Volume(np.zeros((1, 3, 3, 3), np.float32), Geometry((3, 3, 3), np.eye(4)))
    _, trail = prepare(volume, Preparation())
    assert restore(np.zeros((3, 3, 3), np.uint8), trail, LABELS).source is volume.source


def test_labels_of_another_shape_are_refused():
    _, trail = prepare(Volume(np.zeros((1, 3, 4, 5), np.float32), Geometry((3, 4, 5), np.eye(4))), Preparation())
    for shape in ((5, 4, 3), (3, 4, 4), (1, 3, 4, 5)):
        with pytest.raises(VolumeError, match="prepared grid"):
            restore(np.zeros(shape, np.uint8), trail, LABELS)
        with pytest.raises(VolumeError, match="prepared grid"):
            restore_logits(np.zeros((4, *shape)), trail, LABELS)


# Logits


def plain_trail(shape):
    return prepare(Volume(np.zeros((1, *shape), np.float32), Geometry(shape, np.eye(4))), Preparation())[1]


def test_the_strongest_channel_wins_and_the_first_of_equals():
    logits = np.array([[0, 0, 1, 5], [1, 0, 2, 5], [2, -1, 2, 5]], np.float32).reshape(3, 4, 1, 1)
    assert restore_logits(logits, plain_trail((4, 1, 1)), LABELS).array.ravel().tolist() == [-2, 0, 7, 0]


def test_regions_are_written_in_their_order_later_ones_over_earlier_ones():
    whole, core, active = Region("whole", (1, 2, 3), 1), Region("core", (2, 3), 2), Region("active", (3,), 3)
    parts = tuple(Label(str(v), v) for v in (1, 2, 3))
    logits = np.array([[-1, 1, 1, 1, -1, 0], [-1, -1, 1, 1, 9, 0], [-1, -1, -1, 1, -1, 0]], np.float32).reshape(3, 6, 1, 1)
    trail = plain_trail((6, 1, 1))
    made = restore_logits(logits, trail, Labels(parts, regions=(whole, core, active)))
    assert made.array.ravel().tolist() == [0, 1, 2, 3, 2, 0]
    made = restore_logits(logits[::-1], trail, Labels(parts, regions=(active, core, whole)))
    assert made.array.ravel().tolist() == [0, 1, 1, 1, 2, 0]  # the whole, written last, covers the others


def test_logits_are_resampled_before_they_are_decided():
    """Twice as fine, a boundary falls where the logits cross, not where a prepared voxel ends."""
    volume = Volume(np.zeros((1, 8, 1, 1), np.float32), Geometry((8, 1, 1), np.eye(4)))
    _, trail = prepare(volume, Preparation(spacing_mm=(2.0, 1.0, 1.0)))
    logits = np.array([[0, 0, 0, 0], [-1, -1, 3, 3]], np.float32).reshape(2, 4, 1, 1)
    assert restore_logits(logits, trail, Labels((Label("a", 1),))).array.ravel().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    logits[1] = np.array([-3, -3, 9, 9]).reshape(4, 1, 1)  # crosses at 1/4 of the way from voxel 1 to voxel 2: 2.5 + 2/4 = 3.0
    logits[1] += 0.01
    assert restore_logits(logits, trail, Labels((Label("a", 1),))).array.ravel().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


# Intensities, by hand


def channel(values, **settings):
    array = np.array(values, np.float32).reshape(1, -1, 1, 1)
    return normalise(array, (Intensity(**settings),)).ravel()


def test_a_window_goes_to_zero_and_one():
    np.testing.assert_allclose(channel([-500, -100, 0, 100, 900], clip=(-100.0, 100.0), scale="range"), [0, 0, 0.5, 1, 1])


def test_none_clips_at_most():
    np.testing.assert_allclose(channel([-5, 0, 5], scale="none"), [-5, 0, 5])
    np.testing.assert_allclose(channel([-5, 0, 5], clip=(-1.0, 2.0), scale="none"), [-1, 0, 2])


def test_percentiles_go_to_zero_and_one():
    np.testing.assert_allclose(channel(range(11), scale="percentile"), np.arange(11) / 10)
    tenths = np.clip((np.arange(11) - 1) / 8, 0, 1)
    np.testing.assert_allclose(channel(range(11), scale="percentile", low=10.0, high=90.0), tenths, atol=1e-6)


def test_the_z_score_has_mean_zero_and_deviation_one():
    np.testing.assert_allclose(channel([1, 3], scale="zscore"), [-1, 1])
    x = np.random.default_rng(0).normal(1000, 50, 500)
    made = channel(x, scale="zscore")
    np.testing.assert_allclose((made.mean(), made.std()), (0, 1), atol=1e-4)
    np.testing.assert_allclose(channel(7 * x - 300, scale="zscore"), made, atol=1e-3)  # scanners differ in gain and offset


def test_a_few_bright_voxels_do_not_decide_the_z_score():
    x = np.r_[np.tile([1.0, 3.0], 500), 1e6]
    made = channel(x, scale="zscore", high=99.0)
    np.testing.assert_allclose(made[:2], [-1, 1], atol=0.01)
    assert made.max() < 1.01


def test_zeros_may_be_left_out_of_the_count():
    np.testing.assert_allclose(channel([0, 0, 0, 0, 1, 3], scale="zscore", nonzero=True)[4:], [-1, 1])
    np.testing.assert_allclose(channel([0, 0, 0, 10, 20], scale="percentile", nonzero=True), [0, 0, 0, 0, 1])
    assert channel([0, 0], scale="zscore", nonzero=True).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_mask_and_what_shows_in_few_voxels_do_not_vanish(dtype):
    mask, few = np.array([0, 0, 0, 1], dtype), np.array([0] * 999 + [7], dtype)
    for x in (mask, few):
        assert channel(x, scale="percentile", low=1, high=99, nonzero=True)[[0, -1]].tolist() == [0, 1]
        for nonzero in (False, True):
            made = channel(x, scale="zscore", nonzero=nonzero)
            np.testing.assert_allclose(made, (x - x.mean()) / x.std(), atol=1e-5)


@pytest.mark.parametrize("scale", ["zscore", "percentile"])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e6, 1e-20])
def test_a_constant_channel_becomes_zero(scale, value):
    made = channel([value] * 1001, scale=scale)
    assert made.tolist() == [0] * 1001


@pytest.mark.parametrize("scale", ["range", "percentile", "zscore", "none"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_every_type_becomes_float32_without_overflow(scale, dtype):
    array = np.array([0, 100, 120], dtype).reshape(1, 3, 1, 1)
    made = normalise(array, (Intensity(clip=(0.0, 200.0), scale=scale),))
    assert made.dtype == np.float32
    assert np.isfinite(made).all()
    assert (np.diff(made.ravel()) > 0).all()


def test_channels_are_normalised_each_by_its_entry():
    array = np.array([[0, 100], [-1, 3]], np.float32).reshape(2, 2, 1, 1)
    each = normalise(array, (Intensity(clip=(0.0, 200.0), scale="range"), Intensity(scale="none")))
    np.testing.assert_allclose(each.reshape(2, 2), [[0, 0.5], [-1, 3]])
    np.testing.assert_allclose(normalise(array, (Intensity(scale="percentile"),)).reshape(2, 2), [[0, 1], [0, 1]])


def test_channels_and_entries_that_do_not_fit_are_refused_by_name():
    volume = Volume(np.zeros((3, 2, 2, 2), np.float32), Geometry((2, 2, 2), np.eye(4)))
    with pytest.raises(VolumeError, match=r"memory: it has 3 channels.* 2"):
        prepare(volume, Preparation(intensity=(Intensity(), Intensity())))


@pytest.mark.parametrize("mm", [1e-3, 150.0, 1e25])
def test_an_absurd_spacing_is_refused_by_name(mm):
    volume = Volume(np.zeros((1, 4, 4, 4), np.float32), Geometry((4, 4, 4), np.diag([1.0, mm, 1, 1])))
    with pytest.raises(VolumeError, match=re.escape(f"memory: its spacing is 1 x {mm:g} x 1 mm (RAS), and 1 x 1 x 1 mm are asked for")):
        prepare(volume, Preparation(spacing_mm=(1.0, 1.0, 1.0)))
    # Where nothing is resampled, it is nobody's business.
    assert prepare(volume, Preparation())[0].shape == (1, 4, 4, 4)


def box_of(value, channels=1, dtype=np.float32):
    array = np.random.default_rng(0).uniform(50, 200, (channels, 10, 9, 8)).astype(dtype)
    array[0, :3] = value
    return Volume(array, Geometry((10, 9, 8), np.eye(4)))


def warned(volume, *intensity, spacing=()):
    words = []
    image, _ = prepare(volume, Preparation(intensity=intensity, spacing_mm=spacing), report=lambda event: words.append(event.message))
    return image, words


@pytest.mark.parametrize("scale", ["zscore", "percentile", "none"])
@pytest.mark.parametrize("spacing", [(), (1.4, 1.0, 1.0)])
def test_padding_is_told_once_and_does_not_spread_by_resampling(scale, spacing):
    volume = box_of(-32768, dtype=np.int16)
    image, words = warned(volume, Intensity(scale=scale), spacing=spacing)
    assert len(words) == 1
    assert re.search("memory: 30 % of the voxels are -32768, far from the others", words[0])
    dark, _ = warned(volume.with_array(np.maximum(volume.array, 0)), Intensity(clip=(0.0, 1000.0), scale="none"), spacing=spacing)
    assert image.min() >= (0 if scale == "none" else -3)
    if scale == "none":
        np.testing.assert_allclose(image, dark)


def test_padding_of_one_channel_names_it():
    _, words = warned(box_of(-32768, channels=2), Intensity())
    assert len(words) == 1
    assert "memory: of channel 0, 30 % of the voxels are -32768" in words[0]


@pytest.mark.parametrize("scale", ["zscore", "percentile", "range", "none"])
def test_a_scan_of_which_nothing_is_left_is_refused_by_name(scale):
    volume = box_of(60)
    dim = volume.with_array(volume.array * np.float32(1e-26))
    for one, clip in ((volume, (-100.0, 40.0)), (dim, (1.0, 250.0))):
        with pytest.raises(VolumeError, match=r"memory: its values .* all the same once they are clipped"):
            warned(one, Intensity(clip=clip, scale=scale))
        # Beside another channel that shows something it is said, as a constant one is.
        both = one.with_array(np.concatenate((one.array, volume.array)))
        image, words = warned(both, Intensity(clip=clip, scale=scale), Intensity())
        assert image[1].std() > 0.5
        assert len(words) == 1
        assert "memory: channel 0: its values" in words[0]


def test_a_scan_that_is_constant_but_for_padding_is_refused_by_name():
    array = np.full((1, 10, 9, 8), 7, np.float32)
    array[0, :3] = np.finfo(np.float32).min
    with pytest.raises(VolumeError, match="memory: besides its padding every voxel is 7"):
        warned(Volume(array, Geometry((10, 9, 8), np.eye(4))), Intensity())
