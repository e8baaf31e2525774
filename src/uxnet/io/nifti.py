"""NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`, in and out.

Which affine counts is decided as nibabel decides it: the sform if its code is above 0, else the qform. A file where both are 0
says nothing about left and right, and is refused.
"""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.geometry import Geometry
from uxnet.io.files import atomic
from uxnet.volume import Source, Volume

CHANNEL_NAME = re.compile(r"(.+)_(\d{4})")
"""Names of channel files without their ending, to be matched in full: CASE_0000, CASE_0001, ... (nnU-Net's convention)."""

_SUFFIXES = (".nii.gz", ".nii")
_OTHER_UNITS = {1: "metre", 3: "micrometre"}
# The last two come from headers that claim absurdly many voxels.
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, MemoryError, OverflowError)


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI; hidden files (unfinished ones, and those that macOS leaves) are none."""
    return path.name.lower().endswith(_SUFFIXES) and not path.name.startswith(".")


def case_name(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_geometry(path: str | Path) -> Geometry:
    """The grid of a file; its voxels are not read.

    Raises:
        VolumeError: as `read_image`.
    """
    path = Path(path)
    return _geometry(_open(path), path)


def read_image(*paths: str | Path) -> Volume:
    """One image, (C, I, J, K) float32, with scl_slope and scl_inter applied.

    Args:
        paths: one file whose fourth axis (or NIfTI's vector axis) is the channels, or one file a channel, all on one grid.

    Raises:
        VolumeError: if a file is missing, damaged, not NIfTI, of complex or RGB voxels, not three-dimensional, without a valid
            affine, holds values that are not finite, or lies on another grid than the first.
    """
    if not paths:
        raise VolumeError("an image needs at least one file")
    volumes = [_read_one(Path(path)) for path in paths]
    first = volumes[0]
    for path, volume in zip(paths[1:], volumes[1:], strict=True):
        if not volume.geometry.same_grid(first.geometry):
            raise VolumeError(f"{path}: its grid differs from that of {paths[0]}; the channels of one image must share a grid")
    return first if len(volumes) == 1 else first.with_array(np.concatenate([v.array for v in volumes]))


def read_labels(path: str | Path) -> Volume:
    """A label map, (1, I, J, K), in the smallest integer type that holds its values.

    Raises:
        VolumeError: as `read_image`, or if a value is no whole number, or there are several channels.
    """
    path = Path(path)
    image = _open(path)
    geometry = _geometry(image, path)
    array = _channels_first(_voxels(image, path), path)
    if array.shape[0] != 1:
        raise VolumeError(f"{path}: a label map has one channel, this file has {array.shape[0]}")
    if array.dtype.kind == "f":
        # Beyond 2^53 not every whole number is a float; NaN and infinity are caught here, too.
        whole = np.rint(array)
        wrong = array.size - int(((whole == array) & (np.abs(array) <= 2.0**53)).sum())
        if wrong:
            raise VolumeError(
                f"{path}: {wrong} voxels are no whole numbers, so this is no label map; was it interpolated, or is it an image?"
            )
        array = whole.astype(np.int64)
    return Volume(_smallest(array), geometry, Source(path, _header_bytes(image)))


def write_labels(path: str | Path, volume: Volume) -> None:
    """Writes a label map, whole or not at all; the type of its array is kept.

    Where `volume` came from a NIfTI file, its sform, qform, their codes and units are repeated exactly.

    Raises:
        VolumeError: if the file cannot be written, or the array is no single channel of integers.
    """
    if volume.channels != 1 or volume.array.dtype.kind not in "iu":
        raise VolumeError(f"{path}: a label map is one channel of integers, not {volume.array.shape} of {volume.array.dtype}")
    _write(Path(path), volume.array[0], volume)


def write_image(path: str | Path, volume: Volume) -> None:
    """Writes an image, whole or not at all, its channels along the fourth axis; the type of its array is kept.

    Raises:
        VolumeError: if the file cannot be written.
    """
    _write(Path(path), volume.array[0] if volume.channels == 1 else np.moveaxis(volume.array, 0, -1), volume)


def _read_one(path: Path) -> Volume:
    image = _open(path)
    geometry = _geometry(image, path)
    array = _channels_first(_voxels(image, path), path).astype(np.float32)
    wrong = array.size - int(np.isfinite(array).sum())
    if wrong:
        raise VolumeError(f"{path}: {wrong} voxels are not finite (NaN or infinite); replace them, then try again")
    return Volume(array, geometry, Source(path, _header_bytes(image)))


def _open(path: Path) -> Any:
    if not path.is_file():
        raise VolumeError(f"{path}: there is no such file")
    if not path.name.lower().endswith(_SUFFIXES):
        raise VolumeError(f"{path}: not a NIfTI file by its name; expected .nii or .nii.gz")
    try:
        image = nib.load(path)
    except (ImageFileError, HeaderDataError, *_DAMAGE) as error:
        raise VolumeError(f"{path}: cannot be read as NIfTI, it may be damaged or cut short ({_said(error)})") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise VolumeError(f"{path}: its content is {type(image).__name__}, not NIfTI")
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(f"{path}: voxels of type {image.get_data_dtype()} are not supported; convert it to one number a voxel")
    return image


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _geometry(image: Any, path: Path) -> Geometry:
    header = image.header
    if header["sform_code"] <= 0 and header["qform_code"] <= 0:
        raise VolumeError(
            f"{path}: it has no valid affine (sform_code and qform_code are both 0), so left and right are unknown; "
            "convert it again from its source, or set the sform after checking the orientation"
        )
    unit = _OTHER_UNITS.get(int(header["xyzt_units"]) & 7)
    if unit:
        raise VolumeError(f"{path}: its unit is the {unit}, and everything here is in mm; convert it (affine and xyzt_units) to mm")
    shape = _spatial(image.shape, path)
    try:
        return Geometry(shape, np.asarray(image.affine, dtype=np.float64))
    except ValueError as error:
        raise VolumeError(f"{path}: it has no valid affine ({error}); convert it again from its source") from error


def _spatial(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """The three spatial sides; refuses what is no volume."""
    if len(shape) < 3 or len(shape) > 5 or (len(shape) == 5 and shape[3] != 1):
        raise VolumeError(f"{path}: its shape {shape} is not that of a volume (three axes, and at most one more for channels)")
    if min(shape) < 1:
        raise VolumeError(f"{path}: it is empty, its shape is {shape}")
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def _voxels(image: Any, path: Path) -> NDArray[Any]:
    try:
        if path.name.lower().endswith(".gz"):
            # Read to its end, where the checksum stands: nibabel stops at the last voxel and would take wrong ones for right.
            with gzip.open(path) as file:
                image = type(image).from_bytes(file.read())
        array = np.asanyarray(image.dataobj)
    except _DAMAGE as error:
        raise VolumeError(f"{path}: its voxels cannot be read, the file may be damaged or cut short ({_said(error)})") from error
    native: NDArray[Any] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native


def _channels_first(array: NDArray[Any], path: Path) -> NDArray[Any]:
    spatial = _spatial(array.shape, path)
    return np.moveaxis(array.reshape(*spatial, -1), -1, 0)


def _smallest(array: NDArray[Any]) -> NDArray[Any]:
    low, high = int(array.min()), int(array.max())
    for name in ("uint8", "int8", "uint16", "int16", "int32"):
        if low >= np.iinfo(name).min and high <= np.iinfo(name).max:
            return array.astype(name)
    return array.astype(np.int64)


def _header_bytes(image: Any) -> bytes:
    header: bytes = image.header.as_byteswapped("<").binaryblock
    return header


def _write(path: Path, array: NDArray[Any], volume: Volume) -> None:
    if not path.name.lower().endswith(_SUFFIXES):
        raise VolumeError(f"{path}: a NIfTI file's name ends in .nii or .nii.gz")
    try:
        image = _image(array, volume)
        with atomic(path) as temporary:
            nib.save(image, temporary)
    except HeaderDataError as error:
        raise VolumeError(f"{path}: NIfTI cannot hold an array of shape {array.shape} and type {array.dtype} ({error})") from error
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written ({error.strerror or error})") from error


def _image(array: NDArray[Any], volume: Volume) -> Any:
    raw = volume.source.nifti_header if volume.source else None
    if raw is None:
        image = nib.Nifti1Image(array, volume.geometry.affine_ras, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
        image.set_sform(volume.geometry.affine_ras, code="scanner")
        image.set_qform(volume.geometry.affine_ras, code="scanner")
        return image
    kind = nib.Nifti1Image if len(raw) == 348 else nib.Nifti2Image
    header = kind.header_class(raw, check=False)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header["intent_code"], header["intent_name"] = 0, b""
    header["cal_min"], header["cal_max"] = 0, 0
    header.set_slope_inter(None, None)
    # No affine is handed over: nibabel would round the header's own sform and qform through it.
    return kind(array, None, header)
