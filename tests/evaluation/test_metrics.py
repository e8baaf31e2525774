"""Metrics by hand-made cubes, and against MONAI."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from uxnet.errors import LabelsError, UsageError, VolumeError
from uxnet.evaluation import Outcome, case_metrics, missing_scores, surface_distances
from uxnet.evaluation.metrics import dice_scores
from uxnet.geometry import Geometry
from uxnet.labels import Label, Labels, Region
from uxnet.volume import Source, Volume

ORGAN = Labels((Label("organ", 1),))


def volume(array, spacing=(1.0, 1.0, 1.0), affine=None, path=None):
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    return Volume(np.asarray(array)[None], Geometry(np.shape(array), affine), Source(Path(path)) if path else None)


def cube(shape, *slices, value=1):
    array = np.zeros(shape, np.uint8)
    array[tuple(slices)] = value
    return array


def one(predicted, reference, spacing=(1.0, 1.0, 1.0), **settings):
    (result,) = case_metrics(volume(predicted, spacing), volume(reference, spacing), ORGAN, **settings)
    return result


def blobs(rng, shape):
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return noise > np.quantile(noise, rng.uniform(0.6, 0.95))


# -- by hand ---------------------------------------------------------------------------------------------------------------


def test_a_shifted_cube_by_hand():
    shape = (12, 12, 12)
    reference = cube(shape, slice(2, 6), slice(2, 6), slice(2, 6))
    predicted = cube(shape, slice(4, 8), slice(2, 6), slice(2, 6))
    result = one(predicted, reference, spacing=(1.5, 1.0, 3.0))
    assert result.dice == 0.5
    # The 4^3 cube has 64 - 8 = 56 surface voxels; 16 of them (its far side) are two steps of 1.5 mm away.
    assert result.hd95_mm == 3.0
    assert result.predicted_ml == result.reference_ml == pytest.approx(64 * 4.5 / 1000)
    assert result.outcome is Outcome.FOUND
    # Beside them, the ring of 12 in the plane before is 1.5 mm away. The plane that enters the other cube is within 1 mm: its ring
    # lies on the other's, its inner four one step of 1 mm from it. From the other side it is the same.
    assert result.nsd == pytest.approx((56 - 16 - 12) / 56)
    assert one(predicted, reference, spacing=(1.5, 1.0, 3.0), tolerance_mm=1.5).nsd == pytest.approx((56 - 16) / 56)
    assert one(predicted, reference, spacing=(1.5, 1.0, 3.0), tolerance_mm=3.0).nsd == 1.0


def test_hd95_is_the_larger_directed_percentile():
    # Two lone voxels more in the prediction, of 27: every reference voxel has its like, only the other way is long.
    reference = cube((30, 5, 5), slice(0, 1))
    predicted = reference.copy()
    predicted[[20, 21], 0, 0] = 1
    there, back = surface_distances(predicted.astype(bool), reference.astype(bool), volume(reference).geometry)
    assert sorted(there)[-2:] == [20, 21]
    assert back.max() == 0
    expected = pytest.approx(np.percentile(there, 95))
    assert one(predicted, reference).hd95_mm == expected
    assert one(reference, predicted).hd95_mm == expected
    assert np.percentile(there, 95) > 0


def test_equal_maps_are_perfect():
    array = cube((9, 8, 7), slice(0, 9), slice(2, 5), slice(3, 4))
    result = one(array, array, spacing=(0.7, 2.0, 5.0), tolerance_mm=0)
    assert (result.dice, result.hd95_mm, result.nsd) == (1, 0, 1)


@pytest.mark.parametrize(
    ("predicted", "reference", "empty", "outcome", "expected"),
    [
        (False, True, "skip", Outcome.MISSED, (0.0, "diagonal", 0.0)),
        (False, True, "one", Outcome.MISSED, (0.0, "diagonal", 0.0)),
        (True, False, "skip", Outcome.FALSE_POSITIVE, (0.0, None, 0.0)),
        (True, False, "one", Outcome.FALSE_POSITIVE, (0.0, "diagonal", 0.0)),
        (False, False, "skip", Outcome.ABSENT, (None, None, None)),
        (False, False, "one", Outcome.ABSENT, (1.0, 0.0, 1.0)),
    ],
)
def test_every_row_of_the_policy(predicted, reference, empty, outcome, expected):
    shape, spacing = (10, 20, 5), (3.0, 2.0, 24.0)
    diagonal = math.sqrt(30**2 + 40**2 + 120**2)
    assert diagonal == 130
    full, nothing = cube(shape, slice(2, 4), slice(2, 4), slice(2, 4)), np.zeros(shape, np.uint8)
    result = one(full if predicted else nothing, full if reference else nothing, spacing, empty=empty)
    expected = tuple(pytest.approx(diagonal) if x == "diagonal" else x for x in expected)
    assert (result.dice, result.hd95_mm, result.nsd) == expected
    assert result.outcome is outcome
    assert result.predicted_ml == pytest.approx(8 * 0.144 if predicted else 0)
    assert result.reference_ml == pytest.approx(8 * 0.144 if reference else 0)


def test_no_answer_is_worse_than_none():
    shape = (6, 7, 8)
    far = one(cube(shape, 5, 6, 7), cube(shape, 0, 0, 0), (1.0, 2.0, 3.0))
    assert far.hd95_mm < one(np.zeros(shape, np.uint8), cube(shape, 0, 0, 0), (1.0, 2.0, 3.0)).hd95_mm


def test_the_policy_has_no_word_for_what_is_measured():
    with pytest.raises(ValueError, match="measured"):
        missing_scores(Outcome.FOUND, 1.0)


def test_the_docs_declare_the_policy():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for outcome in Outcome:
        assert f"`{outcome.value}`" in text


# -- against MONAI ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_equals_monai_on_anisotropic_blobs(seed):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(9, 26, size=3))
    spacing = tuple(float(s) for s in rng.uniform(0.4, 4, size=3))
    tolerance = float(rng.uniform(0.5, 4))
    a, b = blobs(rng, shape), blobs(rng, shape)
    if seed % 3 == 0:  # small, so that the crop has a margin on every side
        a[:3], a[-2:], b[:2], b[-3:], a[..., :2], b[..., :2] = (False,) * 6
    if seed % 3 == 1:  # cut off by the image
        a[0], b[:, -1] = True, True
    p, r = (torch.from_numpy(x.astype(np.float32))[None, None] for x in (a, b))
    result = one(a.astype(np.uint8), b.astype(np.uint8), spacing, tolerance_mm=tolerance)
    expected = {
        "dice": metrics.compute_dice(p, r, include_background=True),
        "hd95_mm": metrics.compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing),
        "nsd": metrics.compute_surface_dice(p, r, [tolerance], include_background=True, spacing=spacing, use_subvoxels=False),
    }
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(float(value), rel=1e-6, abs=1e-6), name


# -- geometry --------------------------------------------------------------------------------------------------------------


def test_the_image_border_is_a_surface_and_the_crop_does_not_show():
    small = cube((4, 4, 4), slice(None), slice(None), slice(None))
    shifted = cube((4, 4, 4), slice(1, None), slice(None), slice(None))
    padded = [np.pad(x, 5) for x in (shifted, small)]
    at_border, inside = one(shifted, small), one(*padded)
    assert (at_border.dice, at_border.hd95_mm, at_border.nsd) == (inside.dice, inside.hd95_mm, inside.nsd)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_measured_in_its_plane_as_many_alike_are(axis):
    rng = np.random.default_rng(2)
    pair = [np.expand_dims(blobs(rng, (40, 36, 9))[..., 4], axis).astype(np.uint8) for _ in range(2)]
    result = one(*pair)
    contours = [x.astype(bool).squeeze() ^ ndimage.binary_erosion(x.squeeze()) for x in pair]
    far = [ndimage.distance_transform_edt(~there)[here] for here, there in (contours, contours[::-1])]
    assert result.hd95_mm == pytest.approx(max(np.percentile(d, 95) for d in far))
    assert result.nsd == pytest.approx(sum(int((d <= 1).sum()) for d in far) / sum(map(len, far)))
    (voxel,) = (one(x, x) for x in [np.ones((1, 1, 1), np.uint8)])
    assert (voxel.dice, voxel.hd95_mm, voxel.nsd) == (1, 0, 1)


def test_distances_match_a_distance_transform():
    rng = np.random.default_rng(3)
    a, b = blobs(rng, (20, 18, 16)), blobs(rng, (20, 18, 16))
    spacing = (0.8, 2.5, 1.2)
    there, _ = surface_distances(a, b, volume(a, spacing).geometry)
    edge_a, edge_b = (x ^ ndimage.binary_erosion(x) for x in (a, b))
    assert there == pytest.approx(ndimage.distance_transform_edt(~edge_b, sampling=spacing)[edge_a])


def test_an_oblique_grid_is_measured_as_its_straight_one_and_one_voxel_is_within_its_own_size():
    rng = np.random.default_rng(4)
    a, b = (blobs(rng, (14, 15, 16)).astype(np.uint8) for _ in range(2))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag([1, 1, 2.5])).astype(np.float32)
    (oblique,) = case_metrics(volume(a, affine=affine), volume(b, affine=affine), ORGAN)
    straight = one(a, b, (1, 1, 2.5))
    assert oblique.nsd == straight.nsd
    assert oblique.hd95_mm == pytest.approx(straight.hd95_mm, rel=1e-5)


def test_a_sheared_grid_is_measured_in_space():
    affine = np.array([[1.0, 1.0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    a, b = cube((3, 3, 1), 0, 2, 0), cube((3, 3, 1), 2, 0, 0)
    (result,) = case_metrics(volume(a, affine=affine), volume(b, affine=affine), ORGAN)
    # Indices (-2, 2, 0) apart: x = -2 + 2, y = 2.
    assert result.hd95_mm == pytest.approx(2.0)


def test_another_grid_is_refused_and_both_files_are_named():
    array = cube((4, 4, 4), 1)
    moved = np.eye(4)
    moved[0, 3] = 1
    for other in (volume(np.pad(array, 1), path="b.nii"), volume(array, affine=moved, path="b.nii")):
        with pytest.raises(VolumeError, match=r"a\.nii.*b\.nii"):
            case_metrics(volume(array, path="a.nii"), other, ORGAN)


# -- labels ----------------------------------------------------------------------------------------------------------------


def test_ignored_voxels_count_nowhere():
    labels = Labels((Label("organ", 1),), ignore=9)
    reference = cube((8, 4, 4), slice(0, 4))
    predicted = cube((8, 4, 4), slice(0, 6))
    reference[4:6] = 9
    (result,) = case_metrics(volume(predicted), volume(reference), labels)
    assert (result.dice, result.hd95_mm, result.nsd) == (1, 0, 1)
    assert result.predicted_ml == result.reference_ml
    reference[:6] = 9
    (result,) = case_metrics(volume(predicted), volume(reference), labels)
    assert result.outcome is Outcome.ABSENT


def test_inputs_are_left_as_they_were():
    reference, predicted = cube((4, 4, 4), 1), cube((4, 4, 4), 2)
    reference[3] = 9
    kept = reference.copy(), predicted.copy()
    case_metrics(volume(predicted), volume(reference), Labels((Label("organ", 1),), ignore=9))
    assert np.array_equal(reference, kept[0])
    assert np.array_equal(predicted, kept[1])


def test_regions_are_unions():
    labels = Labels((Label("oedema", 1), Label("core", 2)), regions=(Region("whole", (1, 2), 1), Region("core", (2,), 2)))
    reference, predicted = cube((8, 8, 8), slice(1, 5)), cube((8, 8, 8), slice(1, 5))
    reference[1:3], predicted[3:5] = 2, 2
    whole, core = case_metrics(volume(predicted), volume(reference), labels)
    assert (whole.name, whole.dice, whole.hd95_mm) == ("whole", 1, 0)
    assert (core.name, core.dice) == ("core", 0)
    assert core.hd95_mm == 2


def test_other_integer_types_and_negative_values():
    labels = Labels((Label("a", -3), Label("b", 40000)), background=7)
    array = np.full((5, 5, 5), 7, np.int64)
    array[1:3], array[4] = -3, 40000
    a, b = case_metrics(volume(array), volume(array.astype(np.int32)), labels)
    assert a.dice == b.dice == 1
    assert a.reference_ml == pytest.approx(0.05)


def test_unknown_values_are_named_with_their_file():
    array = cube((4, 4, 4), 1, value=5)
    with pytest.raises(LabelsError, match=r"p\.nii: the values 5 "):
        case_metrics(volume(array, path="p.nii"), volume(cube((4, 4, 4), 1)), ORGAN)


def test_what_is_no_label_map_is_refused():
    good = volume(cube((4, 4, 4), 1))
    for bad in (good.array.astype(np.float32), np.concatenate([good.array] * 2)):
        with pytest.raises(VolumeError, match="one channel of integers"):
            case_metrics(good.with_array(bad), good, ORGAN)


@pytest.mark.parametrize("settings", [{"tolerance_mm": -1}, {"tolerance_mm": math.nan}, {"empty": "zero"}])
def test_wrong_settings_are_refused(settings):
    good = volume(cube((4, 4, 4), 1))
    with pytest.raises(UsageError):
        case_metrics(good, good, ORGAN, **settings)


def test_dice_of_label_maps():
    labels = Labels((Label("a", 1), Label("b", 7)), ignore=9)
    reference = np.array([[[1, 1, 0, 9, 9]]])
    predicted = np.array([[[1, 0, 0, 1, 7]]])
    assert dice_scores(predicted, reference, labels) == {"a": pytest.approx(2 / 3), "b": None}
