"""NIfTI in and out, with nibabel as the oracle."""

import gzip
import os
import re
import stat
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from grids import FEW, affines, shapes
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from uxnet.errors import VolumeError
from uxnet.events import Warn
from uxnet.geometry import Geometry
from uxnet.io import (
    atomic,
    case_name,
    is_nifti,
    nifti,
    nifti_read,
    read_geometry,
    read_image,
    read_labels,
    voxel_bytes,
    write_image,
    write_json,
    write_labels,
    write_probabilities,
)
from uxnet.volume import Volume

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (12, -7, 20), degrees=True).as_matrix() @ np.diag((-0.7, 0.9, 2.5))
OBLIQUE[:3, 3] = (83.1, -120.7, -44.4)
KEPT = ["sform_code", "qform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
KEPT += ["srow_x", "srow_y", "srow_z"]


def save(path, array, affine=OBLIQUE, *, kind=nib.Nifti1Image, endianness="<", sform=None, qform=None, units=("mm", "sec"), slope=None):
    """A file made by nibabel; `sform` and `qform` are (affine, code), by default nibabel's own choice."""
    header = kind.header_class(endianness=endianness)
    header.set_data_dtype(array.dtype)
    image = kind(array, affine, header)
    image.header.set_xyzt_units(*units)
    if sform is not None:
        image.set_sform(*sform)
    if qform is not None:
        image.set_qform(*qform)
    if slope is not None:
        image.header.set_slope_inter(*slope)
    nib.save(image, path)
    return path


def patch(path, changes):
    """Overwrites bytes of a file's header: {offset: (numpy dtype, value)}."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        raw = bytearray(file.read())
    for offset, (dtype, value) in changes.items():
        blob = np.array(value, dtype=dtype).tobytes()
        raw[offset : offset + len(blob)] = blob
    with opener(path, "wb") as file:
        file.write(raw)
    return path


def raw_header(path):
    """The header as it stands in the file, without nibabel's repairs, as a little-endian record."""
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "rb") as file:
        blob = file.read(540)
    kind = nib.Nifti2Header if 540 in (int.from_bytes(blob[:4], "little"), int.from_bytes(blob[:4], "big")) else nib.Nifti1Header
    return kind(blob[: kind.sizeof_hdr], check=False).as_byteswapped("<")


def blocks(shape=(6, 5, 4)):
    array = np.zeros(shape, np.uint8)
    array[1:3, 1:4, 2:] = 1
    array[4:, 2:, :2] = 3
    return array


# Reading


@FEW
@given(
    affines(turn=90),
    shapes(),
    st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "float32", "float64"]),
    st.sampled_from("<>"),
    st.sampled_from([".nii", ".nii.gz"]),
    st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]),
)
def test_whatever_nibabel_writes_is_read_as_nibabel_reads_it(tmp_path_factory, affine, shape, dtype, endianness, suffix, kind):
    path = tmp_path_factory.mktemp("any") / f"scan{suffix}"
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    save(path, array, affine, kind=kind, endianness=endianness)
    volume, oracle = read_image(path), nib.load(path)
    assert oracle.header.endianness == endianness
    np.testing.assert_array_equal(volume.array[0], oracle.get_fdata().astype(np.float32))
    np.testing.assert_array_equal(volume.geometry.affine_ras, oracle.affine)
    assert volume.geometry.orientation == "".join(nib.aff2axcodes(oracle.affine))
    assert volume.array.dtype == np.float32
    assert volume.array.dtype.isnative
    assert read_geometry(path) == volume.geometry
    labels = read_labels(path)
    np.testing.assert_array_equal(labels.array[0], array)
    assert labels.array.dtype.isnative


@pytest.mark.parametrize(("s", "q"), [(0, 1), (1, 0), (2, 1), (1, 1), (4, 3), (0, 5)])
def test_the_sform_counts_before_the_qform(tmp_path, s, q):
    other = np.diag((-2.0, -2, 3, 1))
    path = save(tmp_path / "a.nii", blocks(), None, sform=(OBLIQUE, s), qform=(other, q))
    np.testing.assert_array_equal(read_image(path).geometry.affine_ras, nib.load(path).affine)
    np.testing.assert_allclose(read_image(path).geometry.affine_ras, OBLIQUE if s else other, atol=1e-4)


MIRRORED = OBLIQUE @ np.diag((-1, 1, 1, 1))
SHEAR = np.array([[1, 0, 0, 0], [0, 1, 2.5 * np.sin(0.4) / 0.9, 0], [0, 0, np.cos(0.4), 0], [0, 0, 0, 1]])  # a gantry at 23 degrees
CONTRADICTIONS = {
    "mirrored": ({"qform": (MIRRORED, 1)}, {}, "LAS by the sform, RAS by the qform, up to 180 degrees apart"),
    "other voxels": ({"qform": (OBLIQUE @ np.diag((1, 1, 1.02, 1)), 1)}, {}, r"2\.5 mm by the sform, .* 2\.55 mm by pixdim"),
    "pixdim alone": ({"qform": (OBLIQUE, 0)}, {84: ("<f4", 1.0)}, r"0\.9 x 2\.5 mm by the sform, 0\.7 x 1 x 2\.5 mm by pixdim"),
    "no rotation": ({}, {256: ("<f4", (2, 2, 2))}, "a qform that is no rotation"),
    "agreeing": ({}, {}, None),
    "no qform": ({"qform": (MIRRORED, 0)}, {}, None),
    "no sform": ({"sform": (MIRRORED, 0)}, {}, None),
    "other codes": ({"sform": (OBLIQUE, 4)}, {}, None),
    "rounded": ({"qform": (OBLIQUE @ np.diag((1, 1.005, 1, 1)), 1)}, {}, None),
    "tilted": ({"sform": (OBLIQUE @ SHEAR, 1)}, {}, None),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_header_that_contradicts_itself_is_warned_of_once_a_file(tmp_path, name):
    forms, changes, says = CONTRADICTIONS[name]
    path = patch(save(tmp_path / "a.nii.gz", blocks(), **{"sform": (OBLIQUE, 1), "qform": (OBLIQUE, 1), **forms}), changes)
    reports = []
    volume = read_image(path, report=reports.append)
    np.testing.assert_array_equal(volume.geometry.affine_ras, nib.load(path).affine)
    read_labels(path, reports.append)
    assert len(reports) == (0 if says is None else 2)
    for event in reports:
        assert isinstance(event, Warn)
        assert re.search(rf"a\.nii\.gz: .*{says}", event.message)


@pytest.mark.parametrize("slope", [(2.5, -7.0), (1.0, 0.0), (-1.0, 100.0), (1.0, 3.0)])
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_slope_and_intercept_count(tmp_path, slope, endianness):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = save(tmp_path / "a.nii.gz", stored, endianness=endianness)
    patch(path, {112: (f"{endianness}f4", slope)})
    np.testing.assert_allclose(read_image(path).array[0], stored * slope[0] + slope[1])
    assert read_labels(path).array.dtype.kind in "iu" if slope[0] != 2.5 else True


def test_a_slope_of_zero_means_none(tmp_path):
    path = patch(save(tmp_path / "a.nii", blocks()), {112: ("<f4", (0, 50))})
    np.testing.assert_array_equal(read_image(path).array[0], blocks())


@pytest.mark.parametrize(("shape", "channels"), [((4, 5, 6, 3), 3), ((4, 5, 6, 1, 3), 3), ((4, 5, 6, 1), 1), ((4, 5, 6, 1, 1), 1)])
def test_the_fourth_axis_or_the_vector_axis_is_the_channels(tmp_path, shape, channels):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    volume = read_image(save(tmp_path / "a.nii.gz", array))
    assert volume.array.shape == (channels, 4, 5, 6)
    for c in range(channels):
        np.testing.assert_array_equal(volume.array[c], array.reshape(4, 5, 6, -1)[..., c])


def test_one_file_a_channel(tmp_path):
    paths = [save(tmp_path / f"{n}.nii.gz", blocks() + n) for n in range(3)]
    volume = read_image(*paths)
    assert volume.array.shape == (3, 6, 5, 4)
    assert [int(channel[0, 0, 0]) for channel in volume.array] == [0, 1, 2]
    assert volume.source.path == paths[0]
    moved = OBLIQUE.copy()
    moved[0, 3] += 1
    stray = save(tmp_path / "stray.nii.gz", blocks(), moved)
    with pytest.raises(VolumeError, match=r"stray\.nii\.gz.*grid"):
        read_image(paths[0], stray)
    with pytest.raises(VolumeError, match="at least one"):
        read_image()


@pytest.mark.parametrize(
    ("values", "dtype"),
    [([0, 255], "uint8"), ([-1, 5], "int8"), ([0, 300], "uint16"), ([-200, 5], "int16"), ([0, 70000], "int32"), ([0, 2**40], "int64")],
)
@pytest.mark.parametrize("stored", ["int64", "float64"])
def test_label_maps_come_in_the_smallest_type(tmp_path, values, dtype, stored):
    labels = read_labels(save(tmp_path / "a.nii", np.array(values, stored).reshape(2, 1, 1)))
    assert labels.array.dtype == dtype
    assert labels.array.ravel().tolist() == values


STORED = ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
SLOPES = [
    None,
    (1, 0),
    (0, 5),
    (np.nan, 3),
    (np.inf, 1),
    (1, -1024),
    (2, 0),
    (-3, 7),
    (1, 70000),
    (0.5, 0),
    (0.37, -7.25),
    (1e9, 0),
    (-1, 0),
]


def full_range(dtype, shape=(7, 5, 6)):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return (rng.normal(size=shape) * 1000).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("slope", SLOPES, ids=str)
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize("endianness", ["<", ">"])
def test_values_are_bit_for_bit_those_of_nibabel_compact_or_not(tmp_path, monkeypatch, dtype, endianness, slope):
    monkeypatch.setattr(nifti_read, "_CHUNK", 64)  # several, the last one smaller
    path = save(tmp_path / "a.nii.gz", full_range(dtype), endianness=endianness)
    if slope is not None:
        patch(path, {112: (f"{endianness}f4", slope)})
    expected = np.asanyarray(nib.load(path).dataobj).astype(np.float32)
    for compact in (False, True):
        array = read_image(path, compact=compact).array
        assert array.dtype.isnative
        assert array.flags.writeable
        assert np.moveaxis(array, 0, -1).flags.f_contiguous
        np.testing.assert_array_equal(array[0].astype(np.float32), expected)
        if not compact:
            assert array.dtype == np.float32
    whole = slope is None or slope[0] == 1 or np.nan_to_num(slope[0], posinf=0) == 0
    if whole and np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize <= 2 and slope not in [(1, -1024), (1, 70000)]:
        assert array.dtype == dtype


@pytest.mark.parametrize(
    ("values", "stored", "slope", "dtype"),
    [
        ([0, 3071], "uint16", (1, -1024), "int16"),
        ([0, 40000], "uint16", (1, 10), "uint16"),
        ([-32768, 0], "int16", (1, -1), "float32"),
        ([-5, 10], "int16", (-100, 0), "int16"),
        ([0, 32767], "int16", (2, 0), "uint16"),
        ([0, 200], "uint8", (1, 50), "uint8"),
        ([0, 100], "uint8", (-1, 0), "int8"),
        ([0, 255], "uint8", (4, -1000), "int16"),
        ([0, 255], "uint8", (200, 0), "uint16"),
        ([0, 255], "uint8", (300, 0), "float32"),
        ([0, 100], "int16", (0.5, 0), "float32"),
        ([0, 100], "int16", (1, 0.5), "float32"),
        ([0, 0], "int16", (3e9, 0), "float32"),
        ([0, 100], "int32", None, "float32"),
        ([0, 100], "float32", None, "float32"),
        ([0, 100], "float64", (1, 0), "float32"),
    ],
)
def test_the_type_of_a_compact_image(tmp_path, values, stored, slope, dtype):
    path = save(tmp_path / "a.nii", np.array(values, stored).reshape(2, 1, 1))
    if slope is not None:
        patch(path, {112: ("<f4", slope)})
    array = read_image(path, compact=True).array
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, read_image(path).array)


@pytest.mark.parametrize(
    ("types", "dtype"),
    [
        (["int16", "int16"], "int16"),
        (["uint8", "int16"], "int16"),
        (["uint8", "uint16", "uint8"], "uint16"),
        (["int16", "uint16"], "float32"),
        (["int16", "float64"], "float32"),
        (["float32", "int32"], "float32"),
    ],
)
def test_channels_of_several_types_get_one_that_holds_them(tmp_path, types, dtype):
    paths = [save(tmp_path / f"{n}.nii.gz", np.arange(n, 24 + n).reshape(2, 3, 4).astype(t)) for n, t in enumerate(types)]
    volume = read_image(*paths, compact=True)
    assert volume.array.dtype == dtype
    assert np.moveaxis(volume.array, 0, -1).flags.f_contiguous
    np.testing.assert_array_equal(volume.array, read_image(*paths).array)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_file_that_changes_later_does_no_harm(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", full_range("int16"))
    arrays = [read_image(path).array, read_image(path, compact=True).array, read_labels(path).array]
    before = [array.copy() for array in arrays]
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    for array, kept in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, kept)


def traced(do):
    """The most bytes that it had at a time, and what it gave."""
    tracemalloc.start()
    try:
        made = do()
        return tracemalloc.get_traced_memory()[1], made
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("slope", [None, (1, -100), (0.37, 1)])
@pytest.mark.parametrize("compact", [False, True])
def test_while_it_is_read_there_is_little_beside_the_result(tmp_path, suffix, slope, compact):
    path = save(tmp_path / f"a{suffix}", np.arange(160**3, dtype=np.int16).reshape(160, 160, 160) // 2)
    if slope is not None:
        patch(path, {112: ("<f4", slope)})
    peak, volume = traced(lambda: read_image(path, compact=compact))
    assert volume.array.itemsize == (2 if compact and slope != (0.37, 1) else 4)
    assert peak < volume.array.nbytes + 8e6
    pair, volume = traced(lambda: read_image(path, path))
    assert pair < volume.array.nbytes + 8e6


def test_labels_are_read_in_little_memory(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.full((160, 160, 160), 3, np.uint8))
    peak, volume = traced(lambda: read_labels(path))
    assert peak < volume.array.nbytes + 8e6


def test_the_size_of_what_is_stored(tmp_path):
    assert voxel_bytes(save(tmp_path / "a.nii.gz", np.zeros((4, 5, 6, 2), np.int16))) == 480


def test_a_label_beyond_64_bits_with_a_sign_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", np.array([0, 2**63], np.uint64).reshape(2, 1, 1))
    with pytest.raises(VolumeError, match=r"a\.nii.*too large"):
        read_labels(path)


# What is refused, always by a sentence that names the file


def truncated(path):
    save(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def almost_whole(path):
    save(path, np.random.default_rng(0).normal(size=(20, 20, 20)))
    path.write_bytes(path.read_bytes()[:-4])


def only_a_start(path):
    save(path, blocks())
    path.write_bytes(path.read_bytes()[:60])


def singular(path):
    save(path, blocks(), None, sform=(np.diag((1.0, 1, 0, 1)), 1), qform=(np.eye(4), 0))


def rgb(path):
    save(path, np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]))


DAMAGED = {
    "truncated": truncated,
    "almost whole": almost_whole,
    "only a start": only_a_start,
    "text": lambda path: path.write_text("patient,age\n1,2\n" * 100),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
    "complex": lambda path: save(path, np.zeros((4, 4, 4), np.complex64)),
    "rgb": rgb,
    "flat": lambda path: save(path, np.zeros((4, 4), np.uint8), np.eye(4)),
    "no codes": lambda path: save(path, blocks(), None, sform=(np.eye(4), 0), qform=(np.eye(4), 0)),
    "singular": singular,
    "nan in the affine": lambda path: patch(save(path, blocks()), {280: ("<f4", np.nan)}),
    "bad quaternion": lambda path: patch(save(path, blocks(), None, sform=(None, 0), qform=(np.eye(4), 1)), {256: ("<f4", (2, 2, 2))}),
    "nan quaternion": lambda path: patch(save(path, blocks(), None, sform=(None, 0), qform=(np.eye(4), 1)), {256: ("<f4", np.nan)}),
    "unknown type": lambda path: patch(save(path, blocks()), {70: ("<i2", 999)}),
    "empty axis": lambda path: patch(save(path, blocks()), {42: ("<i2", 0)}),
    "negative axis": lambda path: patch(save(path, blocks()), {42: ("<i2", -5)}),
    "no axes": lambda path: patch(save(path, blocks()), {40: ("<i2", 0)}),
    "too many axes": lambda path: patch(save(path, blocks()), {40: ("<i2", 77)}),
    "time and vectors": lambda path: save(path, np.zeros((4, 4, 4, 2, 3), np.uint8)),
    "more voxels than bytes": lambda path: patch(save(path, blocks()), {42: ("<i2", (500, 500, 50))}),
    "absurdly many voxels": lambda path: patch(save(path, blocks()), {40: ("<i2", [7] + [32767] * 7)}),
    "offset of zero": lambda path: patch(save(path, blocks()), {108: ("<f4", 0)}),
    "offset inside the header": lambda path: patch(save(path, blocks()), {108: ("<f4", 336)}),
    "offset inside the longer header": lambda path: patch(save(path, blocks(), kind=nib.Nifti2Image), {168: ("<i8", 352)}),
    "fewer voxels than bytes": lambda path: patch(save(path, blocks()), {42: ("<i2", (5, 5, 4))}),
    "a smaller type than that of the voxels": lambda path: patch(save(path, blocks().astype(np.int16)), {70: ("<i2", (2, 8))}),
    "offset behind the end": lambda path: patch(save(path, blocks()), {108: ("<f4", 1e6)}),
    "offset is no number": lambda path: patch(save(path, blocks()), {108: ("<f4", np.nan)}),
    "slope without intercept": lambda path: patch(save(path, blocks()), {112: ("<f4", (2, np.inf))}),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_what_cannot_be_trusted_is_refused_by_name(tmp_path, damage, suffix):
    path = tmp_path / f"patient{suffix}"
    DAMAGED[damage](path)
    for read in (read_image, read_labels):
        with pytest.raises(VolumeError) as caught:
            read(path)
        assert str(path) in str(caught.value)


def test_an_infinite_slope_means_none_as_in_nibabel(tmp_path):
    path = patch(save(tmp_path / "a.nii", blocks()), {112: ("<f4", (np.inf, np.nan))})
    np.testing.assert_array_equal(nib.load(path).get_fdata(), blocks())
    np.testing.assert_array_equal(read_image(path).array[0], blocks())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_byte_behind_the_last_voxel_is_refused_and_said(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", blocks())
    opener = gzip.open if suffix == ".nii.gz" else open
    with opener(path, "ab") as file:
        file.write(b"\0")
    with pytest.raises(VolumeError, match=r"a\.nii.*: it goes on behind the last of the 6 x 5 x 4 x 1 voxels of type uint8"):
        read_image(path)


def test_a_damaged_byte_in_a_compressed_file_is_found_by_its_checksum(tmp_path):
    path = save(tmp_path / "a.nii.gz", np.random.default_rng(0).integers(0, 200, (12, 12, 12)).astype(np.uint8))
    whole, expected, refusals = path.read_bytes(), read_image(path).array, []
    for offset in np.linspace(10, len(whole) - 5, 60).astype(int):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :])
        try:
            np.testing.assert_array_equal(read_image(path).array, expected)
        except VolumeError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(str(path) in refusal for refusal in refusals)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_hold_finite_numbers_only(tmp_path, value):
    array = np.zeros((4, 4, 4), np.float32)
    array[1, 2, 3:] = value
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: 1 voxels are not finite"):
        read_image(path)


@pytest.mark.parametrize("value", [0.5, 1e-6, np.nan, np.inf, -np.inf, 1e300])
def test_label_maps_hold_whole_numbers_only(tmp_path, value):
    array = np.zeros((4, 4, 4))
    array[1, 2, 3:] = value
    path = save(tmp_path / "a.nii.gz", array)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: 1 voxels are no whole numbers"):
        read_labels(path)


def test_label_maps_have_one_channel(tmp_path):
    with pytest.raises(VolumeError, match=r"a\.nii.*one channel"):
        read_labels(save(tmp_path / "a.nii", np.zeros((3, 3, 3, 2), np.uint8)))


def test_other_names_and_missing_files_are_refused(tmp_path):
    (tmp_path / "a.mha").write_text("x")
    (tmp_path / "folder.nii").mkdir()
    for name, says in (("a.mha", "by its name"), ("b.nii", "no such file"), ("folder.nii", "is a folder")):
        with pytest.raises(VolumeError, match=f"{name}.*{says}"):
            read_image(tmp_path / name)


def test_a_header_with_any_byte_wrong_is_read_or_refused_but_never_crashes(tmp_path):
    path = save(tmp_path / "a.nii", blocks())
    whole, rng, refusals = path.read_bytes(), np.random.default_rng(0), []
    for n in range(150):
        raw = bytearray(whole)
        for offset in rng.integers(0, 352, 1 + n % 3):
            raw[offset] = rng.integers(256)
        path.write_bytes(raw)
        try:
            assert np.isfinite(read_image(path).array).all()
        except VolumeError as error:
            refusals.append(str(error))
    assert 10 < len(refusals) < 140
    assert all(str(path) in refusal for refusal in refusals)


# Writing


def assert_same_space(made, source):
    """The header fields that say where voxels are: bit for bit those of the source."""
    a, b = raw_header(made), raw_header(source)
    for field in KEPT:
        assert a[field].tobytes() == b[field].tobytes(), f"{field}: {a[field]} is not {b[field]}"
    assert a["pixdim"][:4].tobytes() == b["pixdim"][:4].tobytes(), f"pixdim: {a['pixdim']} is not {b['pixdim']}"
    assert a["dim"][1:4].tolist() == b["dim"][1:4].tolist()
    assert type(a) is type(b)
    np.testing.assert_array_equal(nib.load(made).affine, nib.load(source).affine)


SOURCES = {
    "plain": {},
    "sform only": {"affine": None, "sform": (OBLIQUE, 2), "qform": (None, 0)},
    "qform only": {"affine": None, "sform": (None, 0), "qform": (OBLIQUE, 1)},
    "both differ": {"affine": None, "sform": (OBLIQUE, 4), "qform": (np.diag((-2.0, 2, 3, 1)), 1)},
    "sheared sform": {"affine": np.array([[1, 0.3, 0, 5], [0, 1, 0.1, 6], [0, 0, 2, 7], [0, 0, 0, 1.0]])},
    "nifti-2": {"kind": nib.Nifti2Image},
    "big-endian": {"endianness": ">"},
    "big-endian nifti-2": {"endianness": ">", "kind": nib.Nifti2Image},
    "no units": {"units": ("unknown", "unknown")},
    "microseconds": {"units": ("mm", "usec")},
    "scaled": {"slope": (2.0, 1.0)},
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("source", SOURCES)
def test_labels_repeat_where_the_scan_is_bit_for_bit(tmp_path, source, suffix):
    scan = save(tmp_path / f"scan{suffix}", np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32), **SOURCES[source])
    volume = read_image(scan)
    made = tmp_path / f"labels{suffix}"
    write_labels(made, volume.with_array(blocks()[np.newaxis]))
    assert_same_space(made, scan)
    image = nib.load(made)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(image.dataobj), blocks())
    assert image.dataobj.slope == 1
    assert image.dataobj.inter == 0
    assert read_labels(made).geometry == volume.geometry


@pytest.mark.parametrize("shape", [(6, 5, 4, 2), (6, 5, 4, 1, 2), (6, 5, 4, 1)])
def test_labels_of_a_scan_of_several_channels(tmp_path, shape):
    scan = save(tmp_path / "scan.nii.gz", np.zeros(shape, np.float32))
    made = tmp_path / "labels.nii.gz"
    write_labels(made, read_image(scan).with_array(blocks()[np.newaxis]))
    assert_same_space(made, scan)
    assert nib.load(made).shape == (6, 5, 4)


FAULTS = {
    "handedness of 0": {76: ("<f4", 0)},
    "handedness of -7": {76: ("<f4", -7)},
    "negative spacing": {80: ("<f4", (0.7, -0.9, 2.5))},
    "spacing of 0": {88: ("<f4", 0)},
    "spacing of NaN": {88: ("<f4", np.nan)},
    "codes that nobody knows": {252: ("<i2", (-1, 7))},
    "a quaternion that is too long": {256: ("<f4", (0.7072, 0.7072, 0))},
    "another size of the header": {0: ("<i4", 0)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_in_a_header_is_repeated_too(tmp_path, capfd, fault):
    """Other programs mend it otherwise than nibabel does; whatever they do, they are to do it to the label map as well."""
    scan = patch(save(tmp_path / "scan.nii", blocks(), sform=(OBLIQUE, 1), qform=(OBLIQUE, 1)), FAULTS[fault])
    like = read_image(scan)
    write_labels(tmp_path / "labels.nii", like.with_array(blocks()[np.newaxis]))
    write_probabilities(tmp_path / "probs.nii", np.zeros((2, 6, 5, 4), np.uint8), like, ["a", "b"])
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii").array[0], blocks())
    assert capfd.readouterr() == ("", "")  # nibabel has its own words for it, without the file's name
    for made in ("labels.nii", "probs.nii"):
        assert_same_space(tmp_path / made, scan)


def test_what_belongs_to_the_image_is_not_repeated(tmp_path):
    image = nib.Nifti1Image(blocks(), OBLIQUE)
    image.header["cal_max"], image.header["descrip"] = 400, b"a scan"
    image.header.set_intent("z score")
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(image, tmp_path / "scan.nii")
    write_labels(tmp_path / "labels.nii", read_image(tmp_path / "scan.nii").with_array(blocks()[np.newaxis]))
    header = nib.load(tmp_path / "labels.nii").header
    assert header["cal_max"] == 0
    assert header["intent_code"] == 0
    assert b"Jane Doe" not in (tmp_path / "labels.nii").read_bytes()
    assert (tmp_path / "labels.nii").stat().st_size == 352 + blocks().size


@FEW
@given(affines(turn=90), shapes(), st.sampled_from(["uint8", "int8", "int16", "uint16", "int32", "int64"]))
def test_labels_from_memory_are_read_back(tmp_path_factory, affine, shape, dtype):
    path = tmp_path_factory.mktemp("labels") / "a.nii.gz"
    array = np.random.default_rng(0).integers(0, 100, (1, *shape)).astype(dtype)
    geometry = Geometry(shape, affine)
    write_labels(path, Volume(array, geometry))
    back = read_labels(path)
    np.testing.assert_array_equal(back.array, array)
    assert back.geometry.same_grid(geometry)
    header = nib.load(path).header
    assert header.get_data_dtype() == dtype
    assert header.get_xyzt_units()[0] == "mm"
    assert min(header["sform_code"], header["qform_code"]) > 0
    # Programs that look at the qform see the same place.
    assert Geometry(shape, header.get_qform()).same_grid(geometry, 0.05)


def test_images_are_read_back_with_their_channels(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    for name, channels in (("a.nii.gz", 1), ("b.nii", 2)):
        write_image(tmp_path / name, Volume(array[:channels], Geometry((6, 5, 4), OBLIQUE)))
        np.testing.assert_array_equal(read_image(tmp_path / name).array, array[:channels])


@pytest.mark.parametrize("array", [np.zeros((1, 2, 2, 2), np.float32), np.zeros((2, 2, 2, 2), np.uint8), np.zeros((1, 2, 2, 2), bool)])
def test_what_is_no_label_map_is_not_written(tmp_path, array):
    with pytest.raises(VolumeError, match=r"a\.nii.*one channel of integers"):
        write_labels(tmp_path / "a.nii", Volume(array, Geometry((2, 2, 2), np.eye(4))))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [np.float16, bool])
def test_a_type_that_nifti_does_not_have_is_refused_by_name(tmp_path, dtype):
    with pytest.raises(VolumeError, match=r"a\.nii"):
        write_image(tmp_path / "a.nii", Volume(np.zeros((1, 2, 2, 2), dtype), Geometry((2, 2, 2), np.eye(4))))


def test_too_long_a_side_is_refused_by_name(tmp_path):
    with pytest.raises(VolumeError, match=r"a\.nii"):
        write_labels(tmp_path / "a.nii", Volume(np.zeros((1, 40000, 2, 1), np.uint8), Geometry((40000, 2, 1), np.eye(4))))


def test_places_that_cannot_be_written_to_are_refused_by_name(tmp_path):
    volume = Volume(blocks()[np.newaxis], Geometry((6, 5, 4), np.eye(4)))
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.nii").mkdir()
    for path in (tmp_path / "file" / "a.nii", tmp_path / "folder.nii", tmp_path / "a.mha"):
        with pytest.raises(VolumeError, match=path.name):
            write_labels(path, volume)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.nii"]


@pytest.mark.parametrize("name", ["A.NII", "A.NII.GZ", "a.b.nii.gz", "é ö.nii.gz"])
def test_unusual_names_are_written_and_read(tmp_path, name):
    path = tmp_path / name
    write_labels(path, Volume(blocks()[np.newaxis], Geometry((6, 5, 4), np.eye(4))))
    np.testing.assert_array_equal(read_labels(path).array[0], blocks())
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith("gz")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_same_labels_make_the_same_file(tmp_path):
    volume = Volume(blocks()[np.newaxis], Geometry((6, 5, 4), OBLIQUE))
    write_labels(tmp_path / "a.nii.gz", volume)
    write_labels(tmp_path / "b" / "a.nii.gz", volume)
    a, b = (nib.load(p) for p in (tmp_path / "a.nii.gz", tmp_path / "b" / "a.nii.gz"))
    assert a.header == b.header
    np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))


def test_writing_labels_takes_little_memory(tmp_path):
    for n, array in enumerate([np.zeros((1, 160, 160, 160), np.uint8), np.zeros((160, 160, 160, 1), np.uint8).T]):
        peak, _ = traced(
            lambda n=n, array=array: write_labels(tmp_path / f"{n}.nii.gz", Volume(array, Geometry((160, 160, 160), np.eye(4))))
        )
        assert peak < 1e6


# Probabilities


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("source", SOURCES)
def test_probabilities_are_read_back_on_the_grid_of_the_scan(tmp_path, monkeypatch, source, suffix):
    monkeypatch.setattr(nifti, "_SLAB", 70)  # two planes at a time
    scan = save(tmp_path / f"scan{suffix}", np.zeros((6, 5, 4), np.float32), **SOURCES[source])
    like, array = read_image(scan), np.random.default_rng(0).integers(0, 256, (3, 6, 5, 4)).astype(np.uint8)
    made = tmp_path / f"probabilities{suffix}"
    write_probabilities(made, array, like, ["background", "liver", "spleen"])
    assert_same_space(made, scan)
    image = nib.load(made)
    assert image.shape == (6, 5, 4, 3)
    assert image.get_data_dtype() == np.uint8
    assert image.dataobj.slope == pytest.approx(1 / 255)
    assert image.dataobj.inter == 0
    assert image.header["descrip"].item() == b"background, liver, spleen"
    for compact in (False, True):
        back = read_image(made, compact=compact)
        assert back.array.dtype == np.float32
        assert back.array.min() >= 0
        assert back.array.max() <= 1
        np.testing.assert_allclose(back.array, array / 255, atol=1e-6)
        assert back.geometry == like.geometry


def test_probabilities_of_any_memory_layout(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 6)).astype(np.uint8)
    like = Volume(np.zeros((1, 4, 5, 6), np.int16), Geometry((4, 5, 6), OBLIQUE))
    for n, lay in enumerate([array, array.transpose(0, 3, 2, 1).copy().transpose(0, 3, 2, 1), array[:, ::-1].copy()[:, ::-1]]):
        write_probabilities(tmp_path / f"{n}.nii.gz", lay, like, ["a", "b"])
        np.testing.assert_allclose(read_image(tmp_path / f"{n}.nii.gz").array, array / 255, atol=1e-6)
        assert (tmp_path / f"{n}.nii.gz").read_bytes() == (tmp_path / "0.nii.gz").read_bytes()
    assert read_geometry(tmp_path / "0.nii.gz").same_grid(like.geometry)


def test_names_that_do_not_fit_are_left_out_also_the_words_of_the_scan(tmp_path):
    image = nib.Nifti1Image(blocks(), OBLIQUE)
    image.header["descrip"] = b"a scan"
    nib.save(image, tmp_path / "scan.nii")
    like = read_image(tmp_path / "scan.nii")
    for count, said in ((1, b"l\xc3\xa9sion"), (30, b"")):
        path = tmp_path / f"{count}.nii.gz"
        write_probabilities(path, np.zeros((count, 6, 5, 4), np.uint8), like, ["lésion"] * count)
        assert nib.load(path).header["descrip"].item() == said


def test_mapped_probabilities_are_written_in_little_memory(tmp_path):
    stored = np.memmap(tmp_path / "mapped", np.uint8, "w+", shape=(6, 150, 160, 170))
    stored[2] = 255
    like = Volume(np.broadcast_to(np.uint8(0), (1, 170, 160, 150)), Geometry((170, 160, 150), np.eye(4)))
    for array in (stored.transpose(0, 3, 2, 1), np.memmap(tmp_path / "mapped", np.uint8, "r", shape=(6, 170, 160, 150))):
        peak, _ = traced(lambda array=array: write_probabilities(tmp_path / "a.nii.gz", array, like, list("abcdef")))
        assert peak < 2.2e7 < array.size / 1.1
        assert (read_image(tmp_path / "a.nii.gz").array[2] == 1).all()


@pytest.mark.parametrize("array", [np.zeros((2, 6, 5, 4), np.float32), np.zeros((3, 6, 5, 4), np.uint8), np.zeros((2, 5, 6, 4), np.uint8)])
def test_what_are_no_probabilities_is_not_written(tmp_path, array):
    like = Volume(blocks()[np.newaxis], Geometry((6, 5, 4), np.eye(4)))
    with pytest.raises(VolumeError, match=r"a\.nii\.gz: probabilities are 2 classes"):
        write_probabilities(tmp_path / "a.nii.gz", array, like, ["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_probabilities_are_whole_or_not_there(tmp_path, monkeypatch):
    like, path = Volume(blocks()[np.newaxis], Geometry((6, 5, 4), np.eye(4))), tmp_path / "a.nii.gz"
    write_probabilities(path, np.zeros((2, 6, 5, 4), np.uint8), like, ["a", "b"])
    before = path.read_bytes()

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(VolumeError, match=r"a\.nii\.gz.*No space left"):
        write_probabilities(path, np.ones((2, 6, 5, 4), np.uint8), like, ["a", "b"])
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(VolumeError, match=r"a\.mha"):
        write_probabilities(tmp_path / "a.mha", np.zeros((2, 6, 5, 4), np.uint8), like, ["a", "b"])


# Whole or not at all


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_a_file_whose_writing_fails_halfway_is_left_as_it_was(tmp_path, monkeypatch, name, error):
    path = tmp_path / name
    volume = Volume(blocks()[np.newaxis], Geometry((6, 5, 4), np.eye(4)))
    write_labels(path, volume)
    before = path.read_bytes()

    def half(image, temporary):
        temporary.write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(nib, "save", half)
    expected = VolumeError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        write_labels(path, volume.with_array(volume.array + 1))
    if expected is VolumeError:
        assert str(path) in str(caught.value)
        assert "No space left" in str(caught.value)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_being_written_is_no_case(tmp_path):
    with atomic(tmp_path / "deep" / "a.nii.gz") as temporary:
        temporary.write_text("new")
        assert not is_nifti(temporary)
        assert temporary.name.endswith(".nii.gz")
        assert not (tmp_path / "deep" / "a.nii.gz").exists()
    assert (tmp_path / "deep" / "a.nii.gz").read_text() == "new"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_files_are_as_readable_as_others(tmp_path):
    write_json(tmp_path / "a.json", {"ü": [1]})
    (tmp_path / "b.json").write_text("{}")
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == stat.S_IMODE((tmp_path / "b.json").stat().st_mode)
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert sorted(os.listdir(tmp_path)) == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("name", "case", "nifti"),
    [("a.nii.gz", "a", True), ("a.nii", "a", True), ("A.NII.GZ", "A", True), ("a.b.nii", "a.b", True), ("._a.nii.gz", "._a", False)],
)
def test_names_of_cases(tmp_path, name, case, nifti):
    assert case_name(tmp_path / name) == case
    assert is_nifti(tmp_path / name) == nifti
    assert not is_nifti(tmp_path / "a.json")


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_units_other_than_mm_are_refused_instead_of_misread(tmp_path, unit):
    path = save(tmp_path / "a.nii.gz", np.zeros((3, 4, 5), np.int16), units=(unit, "sec"))
    with pytest.raises(VolumeError, match=r"a\.nii\.gz.*mm"):
        read_image(path)


def test_a_file_obeys_the_umask_and_nobody_elses_is_changed_meanwhile(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda mask: pytest.fail("other threads would write files with it"))
            write_labels(tmp_path / "a.nii.gz", Volume(blocks()[np.newaxis], Geometry((6, 5, 4), np.eye(4))))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.nii.gz").stat().st_mode) == 0o640
