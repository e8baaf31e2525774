"""Reading NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`.

nibabel reads the headers; the voxels are read here, a few at a time and straight into what is returned, so that beside the result
there is little else in memory. Which affine counts is decided as nibabel decides it: the sform if its code is above 0, else the qform.
A file where both are 0 says nothing about left and right, and is refused; one whose sform, qform and pixdim contradict each other is
read, and warned about.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.events import Report, Warn, silent
from uxnet.geometry import Geometry
from uxnet.io.nifti import SUFFIXES
from uxnet.volume import Source, Volume

_OTHER_UNITS = {1: "metre", 3: "micrometre"}
# The last two come from headers that claim absurdly many voxels.
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, MemoryError, OverflowError)

_CHUNK = 1 << 18  # voxels that are read and converted at a time: what they take stays in a processor's cache
_LARGEST_WHOLE = 2.0**53  # beyond, not every whole number is a float
_SAME_SPACING = 0.01  # relative
_SAME_DIRECTION = 26.0  # degrees: where a gantry was tilted by up to 30 the sform is sheared, and no qform can repeat that
_SMALL = ("uint8", "int8", "uint16", "int16")


@dataclass(frozen=True)
class _File:
    """A file whose header is read.

    shape: (I, J, K, C).
    stored: type of the voxels in the file, with its byte order; they begin at byte `offset` of what was uncompressed.
    slope, inter: value = stored * slope + inter.
    doubt: a sentence on how its header contradicts itself; empty where it does not.
    """

    path: Path
    geometry: Geometry
    header: bytes
    shape: tuple[int, int, int, int]
    stored: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    doubt: str

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def scaled(self) -> bool:
        """Whether values differ from what is stored."""
        return (self.slope, self.inter) != (1, 0)

    @property
    def small(self) -> bool:
        """Whether whole numbers of at most 16 bits are stored."""
        return self.stored.kind in "iu" and self.stored.itemsize <= 2

    def values(self, stored: NDArray[Any]) -> NDArray[Any]:
        """What the stored numbers mean; where they are scaled, in float64 as nibabel does it."""
        if not self.scaled:
            return stored
        wide: NDArray[Any] = stored.astype(np.result_type(stored.dtype, np.float64))
        with np.errstate(over="ignore"):  # what overflows is refused later
            if self.slope != 1:
                wide *= self.slope
            if self.inter != 0:
                wide += self.inter
        return wide

    def channels_first(self, flat: NDArray[Any]) -> NDArray[Any]:
        """(C, I, J, K), a view of all numbers in the order of the file: i runs fastest, channels slowest."""
        return np.moveaxis(flat.reshape(self.shape, order="F"), -1, 0)


def read_geometry(path: str | Path) -> Geometry:
    """The grid of a file; its voxels are not read.

    Raises:
        VolumeError: as `read_image`.
    """
    return _open(Path(path)).geometry


def voxel_bytes(path: str | Path) -> int:
    """Bytes of a file's voxels, uncompressed; only its header is read.

    Raises:
        VolumeError: as `read_image`.
    """
    file = _open(Path(path))
    return file.size * file.stored.itemsize


def channels_of(path: str | Path) -> int:
    """How many channels a file holds; only its header is read.

    Raises:
        VolumeError: as `read_image`.
    """
    return _open(Path(path)).shape[3]


def read_image(*paths: str | Path, compact: bool = False, report: Report = silent) -> Volume:
    """One image, (C, I, J, K), with scl_slope and scl_inter applied; in memory as NIfTI stores it: i runs fastest, channels slowest.

    While it is read, beside the result only a few megabytes are in memory; with `compact` also the stored voxels of a file whose scaled
    numbers turn out to need float32, and for several files once more the largest of them.

    Args:
        paths: one file whose fourth axis (or NIfTI's vector axis) is the channels, or one file a channel, all on one grid.
        compact: whole numbers of at most 16 bits stay such, instead of becoming float32 as everything else does: those that are stored
            unscaled in their own type, those that are scaled by whole numbers if the values fit (u)int8 or (u)int16. The values are
            the same.
        report: hears a Warn of each file whose sform, qform and pixdim contradict each other.

    Returns:
        float32; with `compact` perhaps uint8, int8, uint16 or int16, for several files the least of them that holds all their types.

    Raises:
        VolumeError: if a file is missing, damaged, longer than its header says, not NIfTI, of complex or RGB voxels, not
            three-dimensional, without a valid affine, holds values that are not finite, or lies on another grid than the first.
    """
    if not paths:
        raise VolumeError("an image needs at least one file")
    files = [_open(Path(path)) for path in paths]
    first = files[0]
    for file in files[1:]:
        if not file.geometry.same_grid(first.geometry):
            raise VolumeError(f"{file.path}: its grid differs from that of {first.path}; the channels of one image must share a grid")
    _warn(files, report)
    array = _joined([_compact(file) for file in files]) if compact else _as_floats(files)
    return Volume(array, first.geometry, Source(first.path, first.header))


def read_labels(path: str | Path, report: Report = silent) -> Volume:
    """A label map, (1, I, J, K), in the smallest integer type that holds its values; in memory as NIfTI stores it.

    Args:
        path: the file.
        report: as in `read_image`.

    Raises:
        VolumeError: as `read_image`, or if a value is no whole number, or there are several channels.
    """
    file = _open(Path(path))
    if file.shape[3] != 1:
        raise VolumeError(f"{path}: a label map has one channel, this file has {file.shape[3]}")
    _warn([file], report)
    return Volume(file.channels_first(_whole_numbers(file)), file.geometry, Source(file.path, file.header))


def _warn(files: list[_File], report: Report) -> None:
    for file in files:
        if file.doubt:
            report(Warn(f"{file.path}: {file.doubt}"))


def _as_floats(files: list[_File]) -> NDArray[np.float32]:
    """The channels of all files, each read to its place."""
    flat = _room(sum(file.size for file in files), np.float32, files[0])
    start = 0
    for file in files:
        _floats(file, _chunks(file), flat[start : start + file.size])
        start += file.size
    i, j, k, _ = files[0].shape
    return np.moveaxis(flat.reshape((i, j, k, -1), order="F"), -1, 0)


def _compact(file: _File) -> NDArray[Any]:
    """A file's voxels, (C, I, J, K), in a small integer type where there is one, else float32."""
    if not file.small or (file.scaled and not _by_whole_numbers(file)):
        return file.channels_first(_floats(file, _chunks(file), _room(file.size, np.float32, file)))
    stored = _stored(file)
    if not file.scaled:
        return file.channels_first(stored)
    # Only what occurs decides: CT as unsigned numbers less 1024 seldom uses the type's whole range.
    low, high = sorted(int(end) * int(file.slope) + int(file.inter) for end in (stored.min(), stored.max()))
    fitting = [np.dtype(name) for name in _SMALL if np.iinfo(name).min <= low and high <= np.iinfo(name).max]
    if not fitting:
        return file.channels_first(_floats(file, _pieces(stored), _room(file.size, np.float32, file)))
    in_place = [dtype for dtype in fitting if dtype.itemsize == stored.itemsize]
    flat = stored.view(in_place[-1]) if in_place else _room(file.size, fitting[0], file)
    for start, part in _pieces(stored):
        flat[start : start + part.size] = file.values(part)
    return file.channels_first(flat)


def _joined(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """The channels of several arrays in one; `arrays` is emptied on the way, so that both are never there in full."""
    if len(arrays) == 1:
        return arrays[0]
    common = np.result_type(*arrays)
    dtype = common if common.name in _SMALL else np.dtype(np.float32)
    _, i, j, k = arrays[0].shape
    joined: NDArray[Any] = np.empty((sum(len(array) for array in arrays), k, j, i), dtype=dtype).transpose(0, 3, 2, 1)
    start = 0
    while arrays:
        array = arrays.pop(0)
        joined[start : start + len(array)] = array
        start += len(array)
    return joined


def _whole_numbers(file: _File) -> NDArray[Any]:
    """All numbers of a label map in the order of the file, in the smallest integer type."""
    stored = _stored(file)
    exact = not file.scaled and stored.dtype.kind in "iu"
    wrong, lows, highs = 0, [], []
    for _, part in _pieces(stored):
        values = file.values(part)
        if not exact:
            # NaN and infinity are caught here, too: neither is at most 2^53.
            wrong += values.size - int(((np.rint(values) == values) & (np.abs(values) <= _LARGEST_WHOLE)).sum())
        if not wrong:
            lows.append(int(values.min()))
            highs.append(int(values.max()))
    if wrong:
        raise VolumeError(
            f"{file.path}: {wrong} voxels are no whole numbers, so this is no label map; was it interpolated, or is it an image?"
        )
    dtype = _smallest(min(lows), max(highs), file)
    if dtype == stored.dtype and exact:
        return stored
    flat = _room(file.size, dtype, file)
    for start, part in _pieces(stored):
        flat[start : start + part.size] = file.values(part)
    return flat


def _smallest(low: int, high: int, file: _File) -> np.dtype[Any]:
    for name in ("uint8", "int8", "uint16", "int16", "int32", "int64"):
        if low >= np.iinfo(name).min and high <= np.iinfo(name).max:
            return np.dtype(name)
    raise VolumeError(f"{file.path}: the value {high} is too large for a label; renumber the labels")


def _floats(file: _File, pieces: Iterator[tuple[int, NDArray[Any]]], flat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fills `flat` with the values of stored numbers; refuses what is not finite, also what only becomes so as float32."""
    wrong = 0
    for start, part in pieces:
        into = flat[start : start + part.size]
        with np.errstate(over="ignore"):
            into[:] = file.values(part)
        wrong += part.size - int(np.count_nonzero(np.isfinite(into)))
    if wrong:
        raise VolumeError(f"{file.path}: {wrong} voxels are not finite (NaN or infinite); replace them, then try again")
    return flat


def _by_whole_numbers(file: _File) -> bool:
    """Whether scaling whole numbers of 16 bits gives whole numbers, exactly."""
    return all(float(x).is_integer() and abs(x) < 1 << 31 for x in (file.slope, file.inter))


def _stored(file: _File) -> NDArray[Any]:
    """All numbers as they are stored, but in this machine's byte order."""
    flat = _room(file.size, file.stored.newbyteorder("="), file)
    for start, part in _chunks(file):
        flat[start : start + part.size] = part
    return flat


def _pieces(flat: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """As `_chunks`, of what is in memory."""
    for start in range(0, flat.size, _CHUNK):
        yield start, flat[start : start + _CHUNK]


def _chunks(file: _File) -> Iterator[tuple[int, NDArray[Any]]]:
    """The numbers as they are stored, piece by piece: the place of the first, and they. Each piece is to be used before the next.

    Then the file must end. Where it goes on, its header has another shape or type than its voxels; and at the end of a compressed file
    stands the checksum, which who stops at the last voxel never sees.
    """
    compressed = file.path.name.lower().endswith(".gz")
    buffer = np.empty(min(file.size, _CHUNK), dtype=file.stored)
    with _damage_refused(file), gzip.open(file.path) if compressed else file.path.open("rb") as opened:
        _skip(opened, file.offset)
        for start in range(0, file.size, _CHUNK):
            part = buffer[: file.size - start]
            _fill(opened, part)
            yield start, part.astype(file.stored.newbyteorder("="), copy=False)
        if opened.read(1):
            sides = " x ".join(str(n) for n in file.shape)
            raise VolumeError(
                f"{file.path}: it goes on behind the last of the {sides} voxels of type {file.stored.name} that its header tells of, so "
                "the header's shape or type is wrong; convert it again from its source"
            )


def _skip(opened: BufferedIOBase, size: int) -> None:
    while size:
        # Not by seeking: beyond the end that would go unnoticed for long.
        read = len(opened.read(min(size, 1 << 20)))
        if not read:
            raise EOFError("it ends before its voxels begin")
        size -= read


def _fill(opened: BufferedIOBase, part: NDArray[Any]) -> None:
    view, done = part.view(np.uint8).data, 0
    while done < len(view):
        read = opened.readinto(view[done:])
        if not read:
            raise EOFError("it ends before its last voxel")
        done += read


def _room(size: int, dtype: Any, file: _File) -> NDArray[Any]:
    """Memory for so many numbers."""
    with _damage_refused(file):
        return np.empty(size, dtype=dtype)


@contextlib.contextmanager
def _damage_refused(file: _File) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        said = f"{file.path}: its voxels cannot be read, the file may be damaged or cut short ({_said(error)})"
        raise VolumeError(said) from error


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _open(path: Path) -> _File:
    if path.is_dir():
        raise VolumeError(f"{path}: is a folder, and a file was expected; move the file that it holds out of it")
    if not path.is_file():
        raise VolumeError(f"{path}: there is no such file")
    if not path.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"{path}: not a NIfTI file by its name; expected .nii or .nii.gz")
    try:
        image: Any = nib.load(path)
    except (ImageFileError, HeaderDataError, *_DAMAGE) as error:
        raise VolumeError(f"{path}: cannot be read as NIfTI, it may be damaged or cut short ({_said(error)})") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise VolumeError(f"{path}: its content is {type(image).__name__}, not NIfTI")
    if image.get_data_dtype().kind not in "iuf":
        raise VolumeError(f"{path}: voxels of type {image.get_data_dtype()} are not supported; convert it to one number a voxel")
    geometry, proxy = _geometry(image, path), image.dataobj
    offset, least = int(proxy.offset), int(image.header.single_vox_offset)
    if offset < least:
        raise VolumeError(
            f"{path}: by its header the voxels begin at byte {offset}, inside the header itself (vox_offset is at least {least}); "
            "convert it again from its source"
        )
    shape = (*geometry.shape, math.prod(int(n) for n in image.shape[3:]))
    header: bytes = image.header.as_byteswapped("<").binaryblock
    doubt = _doubt(image.header, geometry)
    return _File(path, geometry, header, shape, proxy.dtype, offset, float(proxy.slope), float(proxy.inter), doubt)


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


def _doubt(header: Any, geometry: Geometry) -> str:
    """What is to be said where the sform counts, and pixdim or the qform contradicts it."""
    if header["sform_code"] <= 0:
        return ""
    said, spacing = [], header["pixdim"][1:4]
    if not np.allclose(geometry.spacing_mm, spacing, rtol=_SAME_SPACING, atol=0):
        by_sform, by_pixdim = (" x ".join(f"{mm:.4g}" for mm in numbers) for numbers in (geometry.spacing_mm, spacing))
        said.append(f"voxels of {by_sform} mm by the sform, {by_pixdim} mm by pixdim")
    if header["qform_code"] > 0:
        try:
            other = Geometry(geometry.shape, header.get_qform())
            here, there = (grid.affine_ras[:3, :3] / grid.spacing_mm for grid in (geometry, other))
            degrees = float(np.degrees(np.arccos(np.clip((here * there).sum(axis=0), -1, 1))).max())
            if degrees > _SAME_DIRECTION:
                said.append(f"{geometry.orientation} by the sform, {other.orientation} by the qform, up to {degrees:.0f} degrees apart")
        except (ValueError, HeaderDataError):
            said.append("a qform that is no rotation")
    if not said:
        return ""
    return f"its header contradicts itself ({'; '.join(said)}); the sform counts: see whether it is right, then correct the rest"


def _spatial(shape: tuple[int, ...], path: Path) -> tuple[int, int, int]:
    """The three spatial sides; refuses what is no volume."""
    if len(shape) < 3 or len(shape) > 5 or (len(shape) == 5 and shape[3] != 1):
        raise VolumeError(f"{path}: its shape {shape} is not that of a volume (three axes, and at most one more for channels)")
    if min(shape) < 1:
        raise VolumeError(f"{path}: it is empty, its shape is {shape}")
    return (int(shape[0]), int(shape[1]), int(shape[2]))
