"""Headers that are wrong or hostile: what is read, what is said of it, what is refused before anything else is read."""

import gzip
import re

import nibabel as nib
import numpy as np
import pytest

from uxnet.errors import VolumeError
from uxnet.io import read_geometry, read_image, read_labels, voxel_bytes
from uxnet.volume import LOWEST, NOT_FINITE

SHAPE = (6, 5, 4)
HALF_TURN = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1.0]])  # about (1, 1, 0): the quaternion's first number is 0
CODES, QUATERNION, SPACING, OFFSET = 252, 256, 80, 108  # of qform_code and sform_code, quatern_b, pixdim[1], vox_offset


def file(path, changes=(), *, forms="both", voxels=None, behind=b"\0" * 4):
    """A NIfTI-1 file of voxels of 0.7 x 0.9 x 2.5 mm, with bytes of its header overwritten: {offset: (dtype, values)}."""
    voxels = np.arange(120, dtype=np.uint8).reshape(SHAPE) if voxels is None else voxels
    affine = np.eye(4)
    affine[:3, :3] = HALF_TURN * (0.7, 0.9, 2.5)
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=1 if forms != "qform" else 0)
    image.set_qform(affine, code=1 if forms != "sform" else 0)
    image.header["vox_offset"] = 348 + len(behind)
    raw = bytearray(image.header.binaryblock)
    for offset, (dtype, values) in dict(changes).items():
        blob = np.array(values, dtype=dtype).tobytes()
        raw[offset : offset + len(blob)] = blob
    content = bytes(raw) + behind + voxels.tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def told(path, read=read_image):
    events = []
    volume = read(path, report=events.append)
    assert all(event.message.startswith(f"{path}: ") for event in events)
    return volume, [event.message for event in events]


@pytest.mark.parametrize("length", [1 - 1e-7, 1 + 2e-7, 1 + 4e-7, 1 + 1e-6, 1.003, 1.05])
def test_a_quaternion_that_is_too_long_is_shortened(tmp_path, capfd, length):
    b = np.float32(np.sqrt(0.5) * length)
    path = file(tmp_path / "a.nii.gz", {QUATERNION: ("<f4", (b, b, 0))}, forms="qform")
    volume, words = told(path)
    np.testing.assert_allclose(volume.geometry.affine_ras[:3, :3], HALF_TURN * (0.7, 0.9, 2.5), atol=2e-3)
    assert len(words) == (length > 1.001)
    assert all("quaternion" in word for word in words)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [0, np.nan, np.inf, -np.inf, 1e-30, 1e25])
@pytest.mark.parametrize("axis", range(3))
def test_a_spacing_that_no_scan_has_is_refused_where_it_counts(tmp_path, wrong, axis):
    changes = {SPACING + 4 * axis: ("<f4", wrong)}
    path = file(tmp_path / "a.nii", changes, forms="qform")
    for read in (read_geometry, read_image, read_labels):
        with pytest.raises(VolumeError, match=r"a\.nii: its spacing is .* mm"):
            read(path)
    volume, words = told(file(tmp_path / "b.nii", changes))
    np.testing.assert_allclose(volume.geometry.spacing_mm, (0.9, 0.7, 2.5), rtol=0.5)
    assert "mm by the sform" in words[-1]


def test_an_absurd_sform_is_refused(tmp_path):
    path = file(tmp_path / "a.nii", {280: ("<f4", (0, 1e25, 0))})
    with pytest.raises(VolumeError, match="no scan has"):
        read_image(path)


@pytest.mark.parametrize("forms", ["both", "sform", "qform"])
def test_a_negative_spacing_is_told(tmp_path, capfd, forms):
    volume, words = told(file(tmp_path / "a.nii", {SPACING + 4: ("<f4", -0.9)}, forms=forms))
    assert volume.geometry == read_geometry(file(tmp_path / "b.nii", forms=forms))
    assert len(words) == 1
    assert "negative spacing (pixdim is 0.7 x -0.9 x 2.5)" in words[0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("handedness", "says"), [(0, 0), (1, 0), (-1, 0), (-7, 1), (3, 1), (np.nan, 1)])
def test_the_handedness_counts_by_its_sign(tmp_path, handedness, says):
    volume, words = told(file(tmp_path / "a.nii", {76: ("<f4", handedness)}, forms="qform"))
    assert (np.linalg.det(volume.geometry.affine_ras) < 0) == (handedness < 0)
    assert len(words) == says


@pytest.mark.parametrize(
    ("q", "s", "says"),
    [
        (1, 1, None),
        (0, 5, None),
        (1, 7, r"sform_code is 7.*the sform counts"),
        (0, 256, r"sform_code is 256.*the sform counts"),
        (9, 0, r"qform_code is 9.*the qform counts"),
        (-3, 2, r"qform_code is -3.*the sform counts"),
        (1, -1, r"sform_code is -1.*the qform counts"),
    ],
)
def test_codes_that_nobody_knows_are_told_by_their_number(tmp_path, capfd, q, s, says):
    volume, words = told(file(tmp_path / "a.nii", {CODES: ("<i2", (q, s))}))
    assert volume.geometry.orientation == read_geometry(file(tmp_path / "b.nii")).orientation
    assert len(words) == (says is not None)
    assert says is None or re.search(says, words[0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("q", "s", "says"), [(0, 0, "both 0"), (-1, 0, "qform_code -1"), (0, -2, "sform_code is -2")])
def test_without_a_form_that_counts_it_is_refused(tmp_path, q, s, says):
    with pytest.raises(VolumeError, match=says):
        read_image(file(tmp_path / "a.nii", {CODES: ("<i2", (q, s))}))


def test_behind_an_unknown_code_an_empty_sform_does_not_count(tmp_path):
    empty = {CODES: ("<i2", (1, 7)), 280: ("<f4", [0] * 12)}
    volume, words = told(file(tmp_path / "a.nii", empty))
    assert volume.geometry == read_geometry(file(tmp_path / "b.nii", forms="qform"))
    assert "sform_code is 7" in words[0]
    with pytest.raises(VolumeError, match="no valid affine"):
        read_image(file(tmp_path / "c.nii", {**empty, CODES: ("<i2", (1, 1))}))


def test_an_unknown_unit_is_told(tmp_path):
    assert "unit's code is 5" in told(file(tmp_path / "a.nii", {123: ("u1", 5)}))[1][0]


# Claims are held against the file's size; these files have nothing behind their headers that anybody could read.

HOSTILE = {
    "an extension of 2 GB": {OFFSET: ("<f4", 2e9), 348: ("<i4", (1, 2_000_000_016, 6))},
    "voxels at 1 GB": {OFFSET: ("<f4", 1e9)},
    "voxels nowhere": {OFFSET: ("<f4", np.nan)},
    "voxels at infinity": {OFFSET: ("<f4", np.inf)},
    "voxels before the file": {OFFSET: ("<f4", -352)},
    "voxels between two bytes": {OFFSET: ("<f4", 352.5)},
    "two thousand million voxels": {42: ("<i2", (2000, 1000, 1000))},
    "more voxels than there are numbers for": {40: ("<i2", [7] + [32767] * 7)},
    "a negative number of axes": {40: ("<i2", -4)},
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("claim", HOSTILE)
def test_what_a_header_claims_is_refused_before_anything_else_is_read(tmp_path, monkeypatch, claim, suffix):
    path = file(tmp_path / f"a{suffix}", HOSTILE[claim], behind=b"\1" + bytes(3 + 16))
    opened = []
    monkeypatch.setattr("uxnet.io.nifti_read._chunks", opened.append)
    for read in (read_geometry, voxel_bytes, read_image, read_labels):
        with pytest.raises(VolumeError, match=r"a\.nii"):
            read(path)
    assert opened == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("size", [16, 3_000_000])
def test_extensions_are_skipped_whatever_they_hold(tmp_path, capfd, suffix, size):
    extension = b"\1\0\0\0" + np.array([size + 3, 999], "<i4").tobytes() + bytes(size - 8)  # of a size that nibabel complains of
    volume, words = told(file(tmp_path / f"a{suffix}", behind=extension))
    np.testing.assert_array_equal(volume.array[0].ravel(), np.arange(120))
    assert words == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("magic", [b"n+3\0", b"\0\0\0\0", b"nii\0"])
def test_what_is_called_nifti_and_is_none_is_refused(tmp_path, magic):
    with pytest.raises(VolumeError, match=r"a\.nii: it is called NIfTI, but its content is not"):
        read_image(file(tmp_path / "a.nii", {344: ("S4", magic)}))


# Label maps that were saved as what nibabel's get_fdata gave


@pytest.mark.parametrize("dtype", ["int16", "uint16", "uint8"])
@pytest.mark.parametrize("most", [1, 3, 13, 104, 255])
def test_labels_that_scaling_left_a_little_off_are_rounded(tmp_path, dtype, most):
    labels = np.resize(np.arange(most + 1), (8, 8, 8))
    path = tmp_path / "a.nii.gz"
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    nib.save(nib.Nifti1Image(labels.astype(np.float64), np.eye(4), header), path)
    volume, words = told(path, read_labels)
    np.testing.assert_array_equal(volume.array[0], labels)
    assert volume.array.dtype == np.uint8
    off = (nib.load(path).get_fdata() != labels).any()
    assert len(words) == off
    assert not words or "rounded" in words[0]


@pytest.mark.parametrize(
    ("stored", "slope"),
    [([0, 100, 50], (0.01, 0)), ([0, 1], (0.5, 0)), ([0, 255, 128], (1 / 255, 0)), ([0, 1], (1, 1e-3)), ([0, 2], (0.3, 0))],
)
def test_maps_that_are_truly_fractional_are_refused(tmp_path, stored, slope):
    voxels = np.resize(np.array(stored, np.int16), (4, 4, 4))
    path = file(tmp_path / "a.nii", {112: ("<f4", slope)}, voxels=voxels)
    with pytest.raises(VolumeError, match="no whole numbers"):
        read_labels(path)


def test_what_is_stored_in_floats_has_no_steps_to_be_rounded_to(tmp_path):
    voxels = np.full((4, 4, 4), 1.0000153, np.float32)
    with pytest.raises(VolumeError, match="no whole numbers"):
        read_labels(file(tmp_path / "a.nii", voxels=voxels))


# What is not finite


def noise(shape=(12, 11, 10)):
    return np.random.default_rng(0).normal(100, 20, shape).astype(np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [np.s_[:3], np.s_[:, -1], np.s_[:, :, :1], np.s_[-1:]])
def test_padding_that_is_not_finite_is_told_and_becomes_a_number(tmp_path, value, where):
    voxels = noise()
    voxels[where] = value
    for n, array in enumerate((voxels, voxels.astype(np.float64), np.stack([noise(), voxels], -1))):
        volume, words = told(file(tmp_path / f"{n}.nii.gz", voxels=array))
        seen = np.moveaxis(volume.array, 0, -1).reshape(array.shape)
        assert (seen[~np.isfinite(array)] == np.float32(NOT_FINITE)).all()
        np.testing.assert_array_equal(seen[np.isfinite(array)], array[np.isfinite(array)])
        share = 100 * np.mean(~np.isfinite(array))
        assert len(words) == 1
        assert f"{share:.3g} % of its voxels are not finite" in words[0]


def scattered():
    voxels = noise()
    voxels[np.random.default_rng(1).random(voxels.shape) < 0.05] = np.nan
    return voxels


def hole():
    voxels = noise()
    voxels[3:8, 3:8, 3:8] = np.nan
    return voxels


def few():
    voxels = noise((20, 20, 20))
    voxels[0, 0, :10] = np.nan
    return voxels


@pytest.mark.parametrize("made", [scattered, hole, few, lambda: np.full((4, 4, 4), np.nan, np.float32)])
def test_what_is_not_finite_anywhere_else_is_refused(tmp_path, made):
    with pytest.raises(VolumeError, match=r"a\.nii: \d+ voxels are not finite"):
        read_image(file(tmp_path / "a.nii", voxels=made()))


def test_what_float32_does_not_hold_is_refused_by_name(tmp_path):
    for factor, says in ((1e60, "scale them down"), (1e-60, "scale them up")):
        with pytest.raises(VolumeError, match=rf"a\.nii: .*{says}"):
            read_image(file(tmp_path / "a.nii", voxels=noise().astype(np.float64) * factor))
    lowest = noise().astype(np.float64)
    lowest[:3] = np.finfo(np.float64).min
    assert (read_image(file(tmp_path / "b.nii", voxels=lowest)).array[0, :3] == LOWEST).all()
    residue = noise().astype(np.float64)
    residue[:6] = 1e-300  # what splines leave of 0
    assert (read_image(file(tmp_path / "c.nii", voxels=residue)).array[0, :6] == 0).all()
