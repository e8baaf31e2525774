"""NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`: their names, and writing them. `nifti_read.py` reads them."""

from __future__ import annotations

import contextlib
import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.io.files import atomic
from uxnet.volume import Volume

CHANNEL_NAME = re.compile(r"(.+)_(\d{4})")
"""Names of channel files without their ending, to be matched in full: CASE_0000, CASE_0001, ... (nnU-Net's convention)."""

SUFFIXES = (".nii.gz", ".nii")

# What says where voxels are: of the spacing the axes of space and the handedness before them.
_PLACE = ["sform_code", "qform_code", "xyzt_units", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
_PLACE += ["srow_x", "srow_y", "srow_z"]
_SPACING = slice(0, 4)

_SLAB = 1 << 23  # bytes that are written at a time
_DESCRIPTION = 79  # bytes that the header has for it, and one that ends it


def is_nifti(path: Path) -> bool:
    """Whether the name says NIfTI; hidden files (unfinished ones, and those that macOS leaves) are none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def case_name(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def write_labels(path: str | Path, volume: Volume) -> None:
    """Writes a label map, whole or not at all; the type of its array is kept.

    Where `volume` came from a NIfTI file, its sform, qform, spacing, their codes and units are repeated exactly, faults and all: whatever
    a program makes of the scan's header, it makes the same of the label map's.

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


def write_probabilities(path: str | Path, array: NDArray[np.uint8], like: Volume, names: Sequence[str]) -> None:
    """Writes probabilities, whole or not at all: bytes that the header's slope of 1/255 makes 0..1, the classes along the fourth axis.

    A few megabytes at a time are read from `array`, so it may be mapped from a file that is larger than the memory. This is quickest
    where it lies as NIfTI stores it, i fastest and classes slowest: the transpose of an array (C, K, J, I).

    Args:
        path: .nii.gz, or .nii.
        array: (C, I, J, K), probabilities times 255.
        like: a volume on the same grid, whose geometry and source are repeated as `write_labels` does it.
        names: of the C classes; they become the file's description where its 79 bytes suffice.

    Raises:
        VolumeError: if the file cannot be written, or the array is not of bytes, of this grid, and of as many classes as names.
    """
    path = Path(path)
    if array.dtype != np.uint8 or array.shape != (len(names), *like.geometry.shape):
        expected = f"{len(names)} classes of bytes on the grid {like.geometry.shape}"
        raise VolumeError(f"{path}: probabilities are {expected}, not {array.shape} of {array.dtype}")
    stored = np.moveaxis(array, 0, -1)
    with _writing(path, stored) as temporary:
        header = _image(stored, like).header
        description = ", ".join(names).encode()
        header["descrip"] = description if len(description) <= _DESCRIPTION else b""
        header.set_slope_inter(1 / 255, 0)
        # nibabel would take a whole class at a time.
        with _opened(temporary) as file:
            header.write_to(file)
            planes = max(1, _SLAB // (array.shape[1] * array.shape[2]))
            for channel in array:
                for k in range(0, array.shape[3], planes):
                    file.write(np.ascontiguousarray(channel[:, :, k : k + planes].T).data)


def _write(path: Path, array: NDArray[Any], volume: Volume) -> None:
    with _writing(path, array) as temporary:
        nib.save(_image(array, volume), temporary)


@contextlib.contextmanager
def _writing(path: Path, array: NDArray[Any]) -> Iterator[Path]:
    """A temporary path that takes the place of `path`; what goes wrong is said of `path`."""
    if not path.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"{path}: a NIfTI file's name ends in .nii or .nii.gz")
    try:
        with atomic(path) as temporary:
            yield temporary
    except HeaderDataError as error:
        raise VolumeError(f"{path}: NIfTI cannot hold an array of shape {array.shape} and type {array.dtype} ({error})") from error
    except OSError as error:
        raise VolumeError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file to write bytes to, compressed where its name says so; without a date, so that the same bytes make the same file."""
    with path.open("wb") as file:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as compressed:
                yield compressed
        else:
            yield file


def _image(array: NDArray[Any], volume: Volume) -> Any:
    raw = volume.source.nifti_header if volume.source else None
    if raw is None:
        image = nib.Nifti1Image(array, volume.geometry.affine_ras, dtype=array.dtype)
        image.header.set_xyzt_units("mm")
        image.set_sform(volume.geometry.affine_ras, code="scanner")
        image.set_qform(volume.geometry.affine_ras, code="scanner")
        return image
    kind = nib.Nifti1Image if len(raw) == nib.Nifti1Header.sizeof_hdr else nib.Nifti2Image
    source, clean = kind.header_class(raw, check=False), kind.header_class()
    header = source.copy()
    # What nibabel would mend, and say so without the file's name. It is put back afterwards.
    for field in ("sizeof_hdr", "magic", "vox_offset", *_PLACE):
        header[field] = clean[field]
    header["pixdim"][_SPACING] = 1
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header["intent_code"], header["intent_name"] = 0, b""
    header["cal_min"], header["cal_max"] = 0, 0
    header.set_slope_inter(None, None)
    # No affine is handed over: nibabel would round the header's own sform and qform through it.
    image = kind(array, None, header)
    for field in _PLACE:
        image.header[field] = source[field]
    image.header["pixdim"][_SPACING] = source["pixdim"][_SPACING]
    return image
