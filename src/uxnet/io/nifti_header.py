"""What a NIfTI file's header says, read from its own bytes.

nibabel names the fields and computes affines, but only of a copy: where it would mend a header in silence (spacing, form codes,
quaternion), what was wrong is known here first, and is refused or said. Nothing behind the header is read, and what it claims is held
against the file's size before anybody reads or allocates for it.

Which affine counts: the sform if its code is above 0, else the qform. A file where neither is says nothing about left and right, and is
refused; one that contradicts itself is read, and warned about.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.geometry import Affine, Geometry
from uxnet.io.nifti import SUFFIXES

DAMAGE = (OSError, EOFError, zlib.error, ValueError, MemoryError, OverflowError)
"""What reading a damaged file may raise; the last two come from headers that claim absurdly many voxels."""

_OTHER_UNITS = {1: "metre", 3: "micrometre"}
_UNITS = (0, 1, 2, 3)
_FORMS = range(6)  # the codes of sform and qform that the standard and nibabel know
_SPACINGS_MM = (1e-5, 1e4)  # nothing is finer than light microscopy, or longer than a person
_SAME_SPACING = 0.01  # relative
_SAME_DIRECTION = 26.0  # degrees: where a gantry was tilted by up to 30 the sform is sheared, and no qform can repeat that
_ROUNDED = 1e-5  # a quaternion that is longer than 1 by no more was rounded
_LONGEST_QUATERNION = 1.1  # beyond, it is no rotation that was written carelessly
_MOST_EXTENSIONS = 1 << 24  # bytes before the voxels of a compressed file, which are to be uncompressed to be skipped
_DENSEST = 1032  # bytes that a byte of deflate can stand for


@dataclass(frozen=True)
class File:
    """A file whose header is read.

    header: its bytes as they are, little-endian.
    shape: (I, J, K, C).
    stored: type of the voxels in the file, with its byte order; they begin at byte `offset` of what was uncompressed.
    slope, inter: value = stored * slope + inter.
    doubts: sentences on what is wrong in the header and was read nevertheless.
    """

    path: Path
    geometry: Geometry
    header: bytes
    shape: tuple[int, int, int, int]
    stored: np.dtype[Any]
    offset: int
    slope: float
    inter: float
    doubts: tuple[str, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def compressed(self) -> bool:
        """Whether the file is compressed, by its name."""
        return is_compressed(self.path)

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


def is_compressed(path: Path) -> bool:
    """Whether a NIfTI file is compressed, by its name."""
    return path.name.lower().endswith(".gz")


def read_header(path: Path) -> File:
    """Reads a file's header, and nothing else of it.

    Raises:
        VolumeError: if there is no such file, it is no NIfTI of one real number a voxel and three axes, has no valid affine, a spacing
            that no scan has, a unit other than mm, or claims more than the file can hold.
    """
    if path.is_dir():
        raise VolumeError(f"{path}: is a folder, and a file was expected; move the file that it holds out of it")
    if not path.is_file():
        raise VolumeError(f"{path}: there is no such file")
    if not path.name.lower().endswith(SUFFIXES):
        raise VolumeError(f"{path}: not a NIfTI file by its name; expected .nii or .nii.gz")
    try:
        header = _parsed(_first_bytes(path), path)
        shape, stored, scaling = _shape(header, path), _type(header, path), _scaling(header, path)
    except (HeaderDataError, *DAMAGE) as error:
        raise VolumeError(f"{path}: cannot be read as NIfTI, it may be damaged or cut short ({said(error)})") from error
    offset = _offset(header, path)
    _refuse_more_than_there_is(path, offset, math.prod(shape) * stored.itemsize)
    affine, doubts = _affine(header, path)
    geometry = _geometry(shape, affine, path)
    doubts += _contradictions(header, geometry)
    return File(path, geometry, header.as_byteswapped("<").binaryblock, shape, stored, offset, *scaling, tuple(doubts))


def said(error: Exception) -> str:
    """An exception for a message."""
    return str(error) or type(error).__name__


def _first_bytes(path: Path) -> bytes:
    with gzip.open(path) if is_compressed(path) else path.open("rb") as file:
        return file.read(nib.Nifti2Header.sizeof_hdr)


def _parsed(raw: bytes, path: Path) -> Any:
    """The header with nothing mended."""
    for kind, magics in ((nib.Nifti1Header, (b"n+1", b"ni1")), (nib.Nifti2Header, (b"n+2", b"ni2"))):
        if len(raw) >= kind.sizeof_hdr:
            header = kind(raw[: kind.sizeof_hdr], check=False)
            if header["magic"].item() in magics:
                return header
    if len(raw) < nib.Nifti1Header.sizeof_hdr:
        raise VolumeError(f"{path}: it has {len(raw)} bytes, and a header alone has {nib.Nifti1Header.sizeof_hdr}; it is cut short")
    raise VolumeError(f"{path}: it is called NIfTI, but its content is not: the mark n+1 or n+2 is missing in its header")


def _shape(header: Any, path: Path) -> tuple[int, int, int, int]:
    """(I, J, K, C); refuses what is no volume."""
    axes = int(header["dim"][0])
    shape = tuple(int(n) for n in header.get_data_shape()) if 1 <= axes <= 7 else ()
    if len(shape) < 3 or len(shape) > 5 or (len(shape) == 5 and shape[3] != 1):
        dims = shape or f"of {axes} axes"
        raise VolumeError(f"{path}: its shape {dims} is not that of a volume (three axes, and at most one more for channels)")
    if min(shape) < 1:
        raise VolumeError(f"{path}: it is empty, its shape is {shape}")
    return (shape[0], shape[1], shape[2], math.prod(shape[3:]))


def _type(header: Any, path: Path) -> np.dtype[Any]:
    """The type of the voxels, with its byte order."""
    try:
        stored: np.dtype[Any] = header.get_data_dtype()
    except KeyError:
        raise VolumeError(f"{path}: the type of its voxels is {int(header['datatype'])} (datatype), which NIfTI does not know") from None
    if stored.kind not in "iuf":
        raise VolumeError(f"{path}: voxels of type {stored} are not supported; convert it to one number a voxel")
    return stored


def _scaling(header: Any, path: Path) -> tuple[float, float]:
    """(slope, inter); a slope that is 0 or not finite means none, by the standard and by nibabel."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise VolumeError(f"{path}: its values are scaled by {slope:g} and shifted by {inter} (scl_inter); convert it anew")
    return slope, inter


def _offset(header: Any, path: Path) -> int:
    """The byte at which the voxels begin."""
    offset, least = float(header["vox_offset"]), int(header.single_vox_offset)
    if not offset.is_integer():
        raise VolumeError(f"{path}: by its header the voxels begin at byte {offset:g} (vox_offset); convert it again from its source")
    if offset < least:
        raise VolumeError(
            f"{path}: by its header the voxels begin at byte {offset:.0f}, inside the header itself (vox_offset is at least {least}); "
            "convert it again from its source"
        )
    return int(offset)


def _refuse_more_than_there_is(path: Path, offset: int, voxels: int) -> None:
    """Holds bytes before the voxels, and of the voxels, against the file's size."""
    there, compressed = path.stat().st_size, is_compressed(path)
    if compressed and offset > _MOST_EXTENSIONS:
        raise VolumeError(
            f"{path}: by its header the voxels begin at byte {offset:,} (vox_offset), behind more than any extension of a header takes; "
            "convert it again from its source"
        )
    if offset + voxels > there * (_DENSEST if compressed else 1):
        most = " could hold even if compressed to the utmost" if compressed else " holds"
        raise VolumeError(
            f"{path}: its header tells of {voxels:,} bytes of voxels from byte {offset:,} on, more than this file of {there:,} bytes"
            f"{most}; it is damaged or cut short"
        )


def _affine(header: Any, path: Path) -> tuple[Affine, list[str]]:
    """The affine that counts, and what is to be said of how it was found."""
    codes = {form: int(header[form]) for form in ("sform_code", "qform_code")}
    sform = header.get_sform()
    # Behind a code that nobody knows may stand anything, also nothing.
    by_sform = codes["sform_code"] in _FORMS[1:] or (codes["sform_code"] > 0 and _invertible(sform))
    if not by_sform and codes["qform_code"] <= 0:
        are = "and qform_code are both 0" if not any(codes.values()) else f"is {codes['sform_code']}, qform_code {codes['qform_code']}"
        raise VolumeError(
            f"{path}: it has no valid affine (sform_code {are}), so left and right are unknown; "
            "convert it again from its source, or set the sform after checking the orientation"
        )
    doubts = [
        f"its {form} is {code}, which NIfTI does not know (0 to {_FORMS[-1]}); the {'sform' if by_sform else 'qform'} counts"
        for form, code in codes.items()
        if code not in _FORMS
    ]
    unit = int(header["xyzt_units"]) & 7
    if unit in _OTHER_UNITS:
        raise VolumeError(
            f"{path}: its unit is the {_OTHER_UNITS[unit]}, and everything here is in mm; convert it (affine and xyzt_units) to mm"
        )
    if unit not in _UNITS:
        doubts.append(f"its unit's code is {unit} (xyzt_units), which NIfTI does not know; it is taken for mm")
    spacing = header["pixdim"][1:4]
    if (spacing < 0).any():
        doubts.append(
            f"its header has a negative spacing (pixdim is {_times(spacing)}): the size counts, not the sign, and label maps repeat these "
            "bytes, so that other programs show both alike; correct it if they show the scan mirrored"
        )
    if by_sform:
        return np.asarray(sform, dtype=np.float64), doubts
    if not (np.isfinite(spacing) & (spacing != 0)).all():
        raise VolumeError(
            f"{path}: its spacing is {_times(spacing)} mm (pixdim), and without an sform nothing else tells the voxels' size; "
            "correct pixdim, or convert it again from its source"
        )
    try:
        return np.asarray(_qform(header), dtype=np.float64), doubts + _doubts_of_qform(header)
    except ValueError as error:
        raise VolumeError(f"{path}: it has no valid affine ({error}); convert it again from its source") from error


def _geometry(shape: tuple[int, int, int, int], affine: Affine, path: Path) -> Geometry:
    try:
        geometry = Geometry(shape[:3], affine)
    except ValueError as error:
        raise VolumeError(f"{path}: it has no valid affine ({error}); convert it again from its source") from error
    if not _SPACINGS_MM[0] <= min(geometry.spacing_mm) <= max(geometry.spacing_mm) <= _SPACINGS_MM[1]:
        raise VolumeError(f"{path}: its spacing is {_times(geometry.spacing_mm)} mm, which no scan has; correct its affine")
    return geometry


def _qform(header: Any) -> Affine:
    """The qform as other readers understand it: sizes without sign, a handedness of 1 or -1, a quaternion of at most length 1.

    Raises:
        ValueError: if the quaternion is no rotation.
    """
    mended = header.copy()
    mended["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
    mended["pixdim"][1:4] = np.abs(header["pixdim"][1:4])
    length = _quaternion_length(header)
    if not length <= _LONGEST_QUATERNION:
        raise ValueError(f"the qform's quaternion is {length:.4g} long, and at most 1 makes a rotation")
    affine: Affine
    try:
        affine = mended.get_qform()
    except ValueError:  # longer than nibabel lets pass for rounding
        for name in ("quatern_b", "quatern_c", "quatern_d"):
            mended[name] = float(header[name]) / length
        affine = mended.get_qform()
    return affine


def _doubts_of_qform(header: Any) -> list[str]:
    doubts, handedness, length = [], float(header["pixdim"][0]), _quaternion_length(header)
    if handedness not in (-1, 0, 1):
        doubts.append(f"its header's handedness is {handedness:g} (pixdim[0]), neither 1 nor -1; its sign counts, see whether left is left")
    if length > 1 + _ROUNDED:
        doubts.append(f"its qform's quaternion is {length:.5g} long, and at most 1 makes a rotation; it is shortened, as others do it")
    return doubts


def _quaternion_length(header: Any) -> float:
    return math.hypot(*(float(header[name]) for name in ("quatern_b", "quatern_c", "quatern_d")))


def _contradictions(header: Any, geometry: Geometry) -> list[str]:
    """What is to be said where the sform counts, and pixdim or the qform contradicts it."""
    if header["sform_code"] <= 0:
        return []
    told, spacing = [], np.abs(header["pixdim"][1:4])
    if not np.allclose(geometry.spacing_mm, spacing, rtol=_SAME_SPACING, atol=0):
        told.append(f"voxels of {_times(geometry.spacing_mm)} mm by the sform, {_times(spacing)} mm by pixdim")
    if header["qform_code"] > 0:
        sized = header.copy()
        sized["pixdim"][1:4] = np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1)
        try:
            other = Geometry(geometry.shape, _qform(sized))
            here, there = (grid.affine_ras[:3, :3] / grid.spacing_mm for grid in (geometry, other))
            degrees = float(np.degrees(np.arccos(np.clip((here * there).sum(axis=0), -1, 1))).max())
            if degrees > _SAME_DIRECTION:
                told.append(f"{geometry.orientation} by the sform, {other.orientation} by the qform, up to {degrees:.0f} degrees apart")
        except (ValueError, HeaderDataError):
            told.append("a qform that is no rotation")
    if not told:
        return []
    return [f"its header contradicts itself ({'; '.join(told)}); the sform counts: see whether it is right, then correct the rest"]


def _invertible(affine: Affine) -> bool:
    try:
        Geometry((1, 1, 1), affine)
    except ValueError:
        return False
    return True


def _times(numbers: Any) -> str:
    return " x ".join(f"{float(n):.4g}" for n in numbers)
