"""Which files are images: NIfTI, which is read, and formats that are known by name and are not read, so that none is passed over."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uxnet.errors import shortened
from uxnet.io.nifti import is_nifti

UNREAD_FORMATS = {
    "compressed NIfTI": (".nii.bz2", ".nii.zst", ".nii.xz", ".nii.lz4", ".nii.z", ".nii.zip", ".nii.7z"),
    "NIfTI or Analyze pair": (".hdr", ".img", ".hdr.gz", ".img.gz"),
    "DICOM": (".dcm", ".dicom", ".ima"),
    "NRRD": (".nrrd", ".nhdr"),
    "MetaImage": (".mha", ".mhd"),
    "FreeSurfer": (".mgz", ".mgh", ".mgh.gz"),
    "MINC": (".mnc", ".mnc.gz"),
    "GIPL": (".gipl", ".gipl.gz"),
    "AFNI": (".head", ".brik", ".brik.gz"),
    "Philips PAR/REC": (".par", ".rec"),
    "TIFF": (".tif", ".tiff"),
}
"""Formats of volumes that are not read, and the endings (lower case) by which they are known."""

_DICOM_MARK = b"DICM"  # behind 128 bytes of anything


@dataclass(frozen=True)
class ImagesFound:
    """The images of a folder, each kind sorted by name; hidden files are none.

    read: NIfTI files, and links of such a name that lead nowhere.
    unread: files of the other formats, and folders with the name of a NIfTI file.
    """

    read: tuple[Path, ...]
    unread: tuple[Path, ...]


def images_in(folder: Path) -> ImagesFound:
    """The images that lie in a folder, and not in the folders below.

    Raises:
        OSError: if the folder cannot be read.
    """
    read: list[Path] = []
    unread: list[Path] = []
    for path in sorted(folder.iterdir()):
        if unread_format(path):
            unread.append(path)
        elif is_nifti(path):
            read.append(path)
    return ImagesFound(tuple(read), tuple(unread))


def unread_format(path: Path) -> str:
    """The format of an image that is not read ("DICOM", "a folder"); empty for NIfTI files and for what is no image.

    A file counts by its name; one without an ending, or with a number as its ending, as DICOM is often exported, by its content.
    """
    name = path.name.lower()
    if name.startswith("."):
        return ""
    if is_nifti(path):
        return "a folder" if path.is_dir() else ""
    for known, endings in UNREAD_FORMATS.items():
        if name.endswith(endings):
            return known
    ending = name.rpartition(".")[2]
    return "DICOM" if (ending == name or ending.isdigit()) and _is_dicom(path) else ""


def unread_message(unread: Sequence[Path]) -> str:
    """A clause that names images that are not read, each with its format, and says what helps."""
    named = shortened((f"{path.name} ({unread_format(path)})" for path in unread), 3)
    return f"only NIfTI files (.nii, .nii.gz) are read, not {named}; {_remedy(unread)}"


def _remedy(unread: Sequence[Path]) -> str:
    formats = {unread_format(path) for path in unread}
    remedies = []
    if "a folder" in formats:
        remedies.append("move the files out of such folders")
    if "compressed NIfTI" in formats:
        remedies.append("unpack what is compressed otherwise")
    if formats - {"a folder", "compressed NIfTI"}:
        remedies.append("convert the others to .nii.gz" if remedies else "convert them to .nii.gz")
    return ", ".join(remedies) + (", DICOM by dcm2niix for example" if "DICOM" in formats else "")


def _is_dicom(path: Path) -> bool:
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(132)[128:] == _DICOM_MARK
    return False
