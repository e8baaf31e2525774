"""Structures on both sides of whole scans: found, cut out, mirrored, named and put back."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from grids import FEW, ORIENTATIONS
from hypothesis import given
from made_heads import CROP_LABELS, SIDE_LABELS, WHOLE, ByIntensity, cropper, finder, head, reference, segmenter

from uxnet.cohort.scans import Scan, are_whole
from uxnet.errors import InputError, ModelError, VolumeError
from uxnet.events import Warn
from uxnet.geometry import Box, Geometry
from uxnet.inference.localise import LocatedSegmenter, cut, find_sites, labels_of, load_located
from uxnet.inference.settings import Settings
from uxnet.labels import Label, Labels, Region
from uxnet.volume import Volume


def located(whole=WHOLE, crops=None):
    return LocatedSegmenter(finder(), crops or cropper(), whole)


@FEW
@given(ORIENTATIONS)
def test_both_sides_are_found_in_place_in_any_orientation(orientation):
    scan = head(orientation)
    found = located().segment(scan)
    assert found.geometry == scan.geometry
    assert found.source == scan.source
    assert found.array.dtype == np.uint8
    np.testing.assert_array_equal(found.array[0], reference(scan))
    assert set(np.unique(found.array)) == {0, 1, 2, 3, 4}


def test_a_tilted_scanner():
    straight = head()
    tilt = np.eye(4)
    tilt[:3, :3] = [[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]]
    tilted = replace(straight, geometry=Geometry(straight.geometry.shape, tilt @ straight.geometry.affine_ras))
    np.testing.assert_array_equal(located().segment(tilted).array[0], reference(straight))


@pytest.mark.parametrize("known", ["left", "right"])
@pytest.mark.parametrize("orientation", ["RAS", "LIA", "SPL"])
def test_the_model_sees_the_side_that_it_knows(known, orientation):
    crops = cropper()
    located(replace(WHOLE, known=known), crops).segment(head(orientation))
    assert len(crops.engines[0].windows) == 4  # each side twice: once more around what was found
    for window in crops.engines[0].windows:
        # RAS, as its recipe asks: on the left the anterior part lies further to the right, nearer to the midline.
        anterior, posterior = (np.argwhere(np.abs(window[0]) == value).mean(axis=0) for value in (10, 11))
        assert (anterior[0] > posterior[0]) == (known == "left")
        assert anterior[1] > posterior[1]


def test_a_crop_is_the_box_around_the_centroid():
    scan = head(spacing=(1.0, 1.0, 1.0))
    sites = find_sites(finder(()).segment(scan), SIDE_LABELS, WHOLE, "head")
    for side in ("left", "right"):
        crop = cut(scan, sites[side], WHOLE, side)
        assert crop.mirrored == (side == "right")
        assert crop.volume.geometry.orientation == "RAS"
        np.testing.assert_allclose(crop.volume.geometry.shape, (46, 60, 44), atol=1)
        centroid = np.argwhere(crop.volume.array[0]).mean(axis=0)
        np.testing.assert_allclose(centroid, (20, 30, 20), atol=1)


def test_what_is_found_is_named_after_its_side():
    labels = labels_of(CROP_LABELS, WHOLE)
    assert [(one.value, one.name) for one in labels.foreground] == [
        (1, "left anterior thing"),
        (2, "left posterior thing"),
        (3, "right anterior thing"),
        (4, "right posterior thing"),
    ]
    assert labels.pairs == (("left anterior thing", "right anterior thing"), ("left posterior thing", "right posterior thing"))
    regions = Labels((Label("a", 1), Label("b", 2)), regions=(Region("both", (1, 2), 1),))
    with pytest.raises(ModelError, match="regions"):
        labels_of(regions, WHOLE)


@pytest.mark.parametrize(
    ("scan", "words"),
    [
        (head(sides=("left",)), "the right thing is not found"),
        (head(sides=()), "the left thing is not found; the right thing is not found"),
        (head(at=(-26.0, 0, 0)), "the left thing does not lie to the left of the right thing"),
        (head(at=(14.0, 0, 0)), "the left thing and the right thing lie 29 mm apart, and 35 to 75 mm are plausible"),
        (head(at=(45.0, 0, 0), size_mm=160.0), "mm apart, and 35 to 75 mm are plausible"),
    ],
)
def test_an_absurd_head_is_refused_by_name(scan, words):
    with pytest.raises(VolumeError, match=r"^head\.nii\.gz: not segmented: ") as error:
        located().segment(scan)
    assert words in str(error.value)
    assert 'choose the region "crop"' in str(error.value)
    assert "--" not in str(error.value)


def test_absurd_sizes_are_refused():
    with pytest.raises(VolumeError, match=r"what looks like the left thing is of \d+\.\d ml, and 20 to 30 ml are plausible"):
        located(replace(WHOLE, volume_ml=(20.0, 30.0))).segment(head())
    blind = segmenter(CROP_LABELS, ByIntensity(lambda v: v == -10, lambda v: v == -11))
    with pytest.raises(VolumeError, match=r"segmented: the right thing is not found"):
        located(crops=blind).segment(head())


def test_a_localiser_that_is_off_is_made_up_for():
    scan = head(spacing=(2.0, 2.0, 2.0))
    crops = cropper()
    together = located(replace(WHOLE, crop_mm=((-16.0, 16.0), (-30.0, 30.0), (-14.0, 14.0))), crops)
    sites = find_sites(finder().segment(scan), SIDE_LABELS, WHOLE, "head")
    right = replace(sites["right"], centroid_mm=np.add(sites["right"].centroid_mm, (6, 12, 5)))
    crop, found = together._segment_side(scan, right, "right", lambda event: None)
    assert (found > 0).sum() == (reference(scan) > 2).sum() == (crop.volume.array > 0).sum()


def test_of_each_side_only_the_largest_component_counts():
    scan = head()
    array = scan.array.copy()
    array[0, -3:-1, -3:-1, -3:-1] = -10
    array[0, :1, :1, :1] = 10
    np.testing.assert_array_equal(located().segment(scan.with_array(array)).array[0], reference(scan))


def test_what_is_cut_off_or_unequal_is_said():
    said = []
    array = head().array.copy()
    array[:, :, array.shape[2] // 2 :][array[:, :, array.shape[2] // 2 :] > 0] = 0
    whole = head()
    located().segment(whole.with_array(array), said.append)
    (warning,) = [event.message for event in said if isinstance(event, Warn)]
    assert warning.startswith("head.nii.gz: ")
    assert "ml of the right thing are found, one of them over 2 times as much; look at both" in warning

    said.clear()
    box = Box((0, 0, 13), whole.geometry.shape)
    located().segment(Volume(whole.array[(slice(None), *box.slices)], box.apply_to(whole.geometry), whole.source), said.append)
    warnings = [event.message for event in said if isinstance(event, Warn)]
    assert len(warnings) == 2
    assert all("the scan ends close to the" in warning for warning in warnings)


def test_models_that_do_not_fit_together_are_refused():
    with pytest.raises(ModelError, match=r"finder\.uxnet: it does not find left kidney"):
        located(replace(WHOLE, sides=("left kidney", "right thing")))
    with pytest.raises(ModelError, match="the settings name none"):
        load_located([], Settings())
    with pytest.raises(ModelError, match="no probabilities"):
        located().segment(head(), probabilities="p.nii.gz")


def test_channels_are_called_as_the_model_of_crops_calls_them():
    crops = cropper()
    crops.model = replace(crops.model, channels=("T1w",))
    scan = head()
    two = Volume(np.concatenate([scan.array] * 2), scan.geometry, scan.source)
    with pytest.raises(ModelError, match=r"has 2 channels, the model takes 1 \(T1w\)"):
        located(crops=crops).segment(two)


def test_heads_and_crops_are_told_apart_by_their_extent(tmp_path):
    def scan(name, shape, spacing=1.0):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([spacing, 1, 1, 1])), path)
        return Scan(name, (path,))

    crop, slab, brain = scan("crop", (40, 59, 47)), scan("slab", (30, 10, 10), 3.0), scan("brain", (90, 100, 80))
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    bad = Scan("bad", (tmp_path / "bad.nii.gz",))
    assert not are_whole([crop, bad], WHOLE)
    assert are_whole([bad, slab, brain], WHOLE)
    assert not are_whole([bad], WHOLE)
    # In metres, nobody knows what it is: it does not decide for the others.
    assert not are_whole([crop, scan("micron", (50, 50, 50), 1000.0)], WHOLE)
    with pytest.raises(InputError, match=r"\(slab of 90 mm and 1 more; crop of 59 mm and 0 more; up to 70 mm is a crop\)"):
        are_whole([crop, slab, brain], WHOLE)
