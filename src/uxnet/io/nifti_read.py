"""Reading NIfTI-1 and NIfTI-2, `.nii` and `.nii.gz`.

`nifti_header.py` reads the header. The voxels are read here, a few at a time and straight into what is returned, so that beside the
result there is little else in memory.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.events import Report, Warn, silent
from uxnet.geometry import Geometry
from uxnet.io.nifti_header import DAMAGE, File, read_header, said
from uxnet.volume import LOWEST, NOT_FINITE, Source, Volume

_CHUNK = 1 << 18  # voxels that are read and converted at a time: what they take stays in a processor's cache
_LARGEST_WHOLE = 2.0**53  # beyond, not every whole number is a float
_SMALL = ("uint8", "int8", "uint16", "int16")
_FLOAT = np.finfo(np.float32)
_DOUBLE = np.finfo(np.float64)
_PADDING = 0.01  # of a channel's voxels: less that is not finite is no padding but damage
_IN_ONE_PIECE = 0.5  # of what is padding lies beside more of it, along some axis at least
_ROUNDED_STEP, _COARSEST_STEP = 0.1, 0.5  # of the header's slope, see `_rounding`


def read_geometry(path: str | Path) -> Geometry:
    """The grid of a file; its voxels are not read.

    Raises:
        VolumeError: as `read_image`.
    """
    return read_header(Path(path)).geometry


def voxel_bytes(path: str | Path) -> int:
    """Bytes of a file's voxels, uncompressed; only its header is read.

    Raises:
        VolumeError: as `read_image`.
    """
    file = read_header(Path(path))
    return file.size * file.stored.itemsize


def channels_of(path: str | Path) -> int:
    """How many channels a file holds; only its header is read.

    Raises:
        VolumeError: as `read_image`.
    """
    return read_header(Path(path)).shape[3]


def read_image(*paths: str | Path, compact: bool = False, report: Report = silent) -> Volume:
    """One image, (C, I, J, K), with scl_slope and scl_inter applied; in memory as NIfTI stores it: i runs fastest, channels slowest.

    Padding that is not finite (NaN or infinite in more than a hundredth of a channel's voxels, in one piece that reaches the scan's edge)
    becomes `volume.NOT_FINITE`, which statistics leave out (see intensity.py).

    While it is read, beside the result only a few megabytes are in memory; with `compact` also the stored voxels of a file whose scaled
    numbers turn out to need float32, and for several files once more the largest of them.

    Args:
        paths: one file whose fourth axis (or NIfTI's vector axis) is the channels, or one file a channel, all on one grid.
        compact: whole numbers of at most 16 bits stay such, instead of becoming float32 as everything else does: those that are stored
            unscaled in their own type, those that are scaled by whole numbers if the values fit (u)int8 or (u)int16. The values are
            the same.
        report: hears a Warn of each file whose header is doubtful (sform, qform and pixdim that contradict each other, form codes that
            nobody knows, a negative spacing), and of padding that is not finite.

    Returns:
        float32; with `compact` perhaps uint8, int8, uint16 or int16, for several files the least of them that holds all their types.

    Raises:
        VolumeError: if a file is missing, damaged, longer than its header says, not NIfTI, of complex or RGB voxels, not
            three-dimensional, without a valid affine or with a spacing that no scan has, holds values that are not finite elsewhere
            than in padding or do not fit float32, or lies on another grid than the first.
    """
    if not paths:
        raise VolumeError("an image needs at least one file")
    files = [read_header(Path(path)) for path in paths]
    first = files[0]
    for file in files[1:]:
        if not file.geometry.same_grid(first.geometry):
            raise VolumeError(f"{file.path}: its grid differs from that of {first.path}; the channels of one image must share a grid")
    _warn(files, report)
    array = _joined([_compact(file, report) for file in files]) if compact else _as_floats(files, report)
    return Volume(array, first.geometry, Source(first.path, first.header))


def read_labels(path: str | Path, report: Report = silent) -> Volume:
    """A label map, (1, I, J, K), in the smallest integer type that holds its values; in memory as NIfTI stores it.

    Values that the header's scaling leaves a little off a whole number, as saving what nibabel's `get_fdata` gave does it, are rounded.

    Args:
        path: the file.
        report: hears a Warn of a header that is doubtful, as in `read_image`, and of values that are rounded.

    Raises:
        VolumeError: as `read_image`, or if a value is no whole number, or there are several channels.
    """
    file = read_header(Path(path))
    if file.shape[3] != 1:
        raise VolumeError(f"{path}: a label map has one channel, this file has {file.shape[3]}")
    _warn([file], report)
    return Volume(file.channels_first(_whole_numbers(file, report)), file.geometry, Source(file.path, file.header))


def _warn(files: list[File], report: Report) -> None:
    for file in files:
        for doubt in file.doubts:
            report(Warn(f"{file.path}: {doubt}"))


def _as_floats(files: list[File], report: Report) -> NDArray[np.float32]:
    """The channels of all files, each read to its place."""
    flat = _room(sum(file.size for file in files), np.float32, files[0])
    start = 0
    for file in files:
        _floats(file, _chunks(file), flat[start : start + file.size], report)
        start += file.size
    i, j, k, _ = files[0].shape
    return np.moveaxis(flat.reshape((i, j, k, -1), order="F"), -1, 0)


def _compact(file: File, report: Report) -> NDArray[Any]:
    """A file's voxels, (C, I, J, K), in a small integer type where there is one, else float32."""
    if not file.small or (file.scaled and not _by_whole_numbers(file)):
        return file.channels_first(_floats(file, _chunks(file), _room(file.size, np.float32, file), report))
    stored = _stored(file)
    if not file.scaled:
        return file.channels_first(stored)
    # Only what occurs decides: CT as unsigned numbers less 1024 seldom uses the type's whole range.
    low, high = sorted(int(end) * int(file.slope) + int(file.inter) for end in (stored.min(), stored.max()))
    fitting = [np.dtype(name) for name in _SMALL if np.iinfo(name).min <= low and high <= np.iinfo(name).max]
    if not fitting:
        return file.channels_first(_floats(file, _pieces(stored), _room(file.size, np.float32, file), report))
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


def _whole_numbers(file: File, report: Report) -> NDArray[Any]:
    """All numbers of a label map in the order of the file, in the smallest integer type."""
    stored = _stored(file)
    exact = not file.scaled and stored.dtype.kind in "iu"
    wrong, rounded, furthest, lows, highs = 0, 0, 0.0, [], []
    for _, part in _pieces(stored):
        values = file.values(part)
        if not exact:
            whole = np.rint(values)
            with np.errstate(invalid="ignore"):
                off = np.abs(values - whole)
                # NaN and infinity are caught here, too: neither is at most 2^53.
                right = (off <= _rounding(file, values)) & (np.abs(values) <= _LARGEST_WHOLE)
            wrong += values.size - int(np.count_nonzero(right))
            rounded += int(np.count_nonzero(off))
            values = whole
        if not wrong:
            furthest = furthest if exact else max(furthest, float(off.max()))
            lows.append(int(values.min()))
            highs.append(int(values.max()))
    if wrong:
        raise VolumeError(
            f"{file.path}: {wrong} voxels are no whole numbers, so this is no label map; was it interpolated, or is it an image?"
        )
    if rounded:
        report(
            Warn(
                f"{file.path}: {rounded} voxels are off whole numbers by up to {furthest:.2g}, as its header's scaling explains "
                f"(scl_slope {file.slope:.4g}); they are rounded; save label maps as whole numbers, unscaled"
            )
        )
    dtype = _smallest(min(lows), max(highs), file)
    if dtype == stored.dtype and exact:
        return stored
    flat = _room(file.size, dtype, file)
    for start, part in _pieces(stored):
        flat[start : start + part.size] = file.values(part) if exact else np.rint(file.values(part))
    return flat


def _rounding(file: File, values: NDArray[Any]) -> NDArray[Any] | float:
    """By how much values may miss whole numbers for their header's sake.

    Whole numbers that were stored in steps of the slope miss by up to one; of coarse steps only half of one counts, so that no two labels
    could be meant. Slope and intercept are rounded themselves.
    """
    if not file.scaled:
        return 0.0
    step = abs(file.slope) if file.stored.kind in "iu" else 0.0
    step = step if step <= _ROUNDED_STEP else step / 2 if step < _COARSEST_STEP else 0.0
    tolerance: NDArray[Any] = step + float(_FLOAT.eps) * (np.abs(values) + 2 * abs(file.inter))
    return tolerance


def _smallest(low: int, high: int, file: File) -> np.dtype[Any]:
    for name in ("uint8", "int8", "uint16", "int16", "int32", "int64"):
        if low >= np.iinfo(name).min and high <= np.iinfo(name).max:
            return np.dtype(name)
    raise VolumeError(f"{file.path}: the value {high} is too large for a label; renumber the labels")


def _floats(file: File, pieces: Iterator[tuple[int, NDArray[Any]]], flat: NDArray[np.float32], report: Report) -> NDArray[np.float32]:
    """Fills `flat` with the values of stored numbers; refuses what is not finite but for padding, and what does not fit float32."""
    wrong, beyond, largest, something, seen = 0, 0, 0.0, False, False
    for start, part in pieces:
        into, values = flat[start : start + part.size], file.values(part)
        with np.errstate(over="ignore"):
            into[:] = values
        bad = part.size - int(np.count_nonzero(np.isfinite(into)))
        if bad:
            extreme = np.abs(values) == _DOUBLE.max  # padding, as its type's extreme is in float32
            into[extreme] = np.copysign(LOWEST, values[extreme])
            finite = np.abs(values[np.isfinite(values) & ~np.isfinite(into)])
            beyond += finite.size
            largest = max(largest, float(finite.max(initial=0)))
            wrong += part.size - int(np.count_nonzero(np.isfinite(into)))
        if not seen:
            something = something or bool((np.isfinite(values) & (values != 0)).any())
            seen = bool((np.abs(into) >= _FLOAT.tiny).any())
    if beyond:
        raise VolumeError(f"{file.path}: {beyond} voxels reach up to {largest:.3g}, and float32 ends at {_FLOAT.max:.2g}; scale them down")
    if something and not seen:
        raise VolumeError(f"{file.path}: all voxels are below {_FLOAT.tiny:.2g}, where float32 ends; scale them up")
    if wrong:
        _mend_padding(file, flat, report)
    return flat


def _mend_padding(file: File, flat: NDArray[np.float32], report: Report) -> None:
    """Padding that is not finite becomes NOT_FINITE, and is said; anything else that is not finite is refused."""
    channels = [~np.isfinite(channel) for channel in file.channels_first(flat)]
    wrong = sum(int(np.count_nonzero(holes)) for holes in channels)
    if not all(_is_padding(holes) for holes in channels if holes.any()):
        raise VolumeError(f"{file.path}: {wrong} voxels are not finite (NaN or infinite); replace them, then try again")
    flat[~np.isfinite(flat)] = NOT_FINITE
    report(
        Warn(
            f"{file.path}: {100 * wrong / flat.size:.3g} % of its voxels are not finite (NaN or infinite), in one piece at its edge; they "
            "are taken for padding: left out of the statistics, and as dark as the darkest of the rest"
        )
    )


def _is_padding(holes: NDArray[np.bool_]) -> bool:
    """Whether what is True (I, J, K) looks like the outside of a body or a field of view: much, in one piece, and up to the edge."""
    count = int(np.count_nonzero(holes))
    if not _PADDING * holes.size < count < holes.size:
        return False
    faces, beside = False, 0
    for axis in range(3):
        planes = np.moveaxis(holes, axis, 0)
        faces = faces or bool(planes[0].any() or planes[-1].any())
        beside = max(beside, int(np.count_nonzero(planes[1:] & planes[:-1])))
    return faces and beside >= _IN_ONE_PIECE * count


def _by_whole_numbers(file: File) -> bool:
    """Whether scaling whole numbers of 16 bits gives whole numbers, exactly."""
    return all(float(x).is_integer() and abs(x) < 1 << 31 for x in (file.slope, file.inter))


def _stored(file: File) -> NDArray[Any]:
    """All numbers as they are stored, but in this machine's byte order."""
    flat = _room(file.size, file.stored.newbyteorder("="), file)
    for start, part in _chunks(file):
        flat[start : start + part.size] = part
    return flat


def _pieces(flat: NDArray[Any]) -> Iterator[tuple[int, NDArray[Any]]]:
    """As `_chunks`, of what is in memory."""
    for start in range(0, flat.size, _CHUNK):
        yield start, flat[start : start + _CHUNK]


def _chunks(file: File) -> Iterator[tuple[int, NDArray[Any]]]:
    """The numbers as they are stored, piece by piece: the place of the first, and they. Each piece is to be used before the next.

    Then the file must end. Where it goes on, its header has another shape or type than its voxels; and at the end of a compressed file
    stands the checksum, which who stops at the last voxel never sees.
    """
    buffer = np.empty(min(file.size, _CHUNK), dtype=file.stored)
    with _damage_refused(file), gzip.open(file.path) if file.compressed else file.path.open("rb") as opened:
        if file.compressed:
            _skip(opened, file.offset)
        else:
            opened.seek(file.offset)
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


def _room(size: int, dtype: Any, file: File) -> NDArray[Any]:
    """Memory for so many numbers."""
    with _damage_refused(file):
        return np.empty(size, dtype=dtype)


@contextlib.contextmanager
def _damage_refused(file: File) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        text = f"{file.path}: its voxels cannot be read, the file may be damaged or cut short ({said(error)})"
        raise VolumeError(text) from error
