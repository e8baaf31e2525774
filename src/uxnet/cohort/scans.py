"""Finding the scans that files, folders and manifests name."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uxnet.errors import InputError, UsageError, VolumeError, shortened
from uxnet.events import Note, Report, Warn, silent
from uxnet.inference.domain import extent_mm
from uxnet.inference.localise import LARGEST_MM
from uxnet.io import CHANNEL_NAME, case_name, images_in, read_geometry, unread_format, unread_message
from uxnet.io.checked import read_as
from uxnet.io.schemas import ScanTable
from uxnet.model.catalogue import Whole


@dataclass(frozen=True)
class Scan:
    """One image to segment: the name of its output and its files, one a channel (or one with all channels).

    problem: why it cannot be segmented, if its files' names say so already; empty for most.
    """

    name: str
    files: tuple[Path, ...]
    problem: str = ""


def find_scans(inputs: Sequence[Path], channels: int, report: Report = silent) -> list[Scan]:
    """The scans that files and folders name.

    A folder gives every NIfTI file in it (not in folders below). Where the model takes several channels, files named NAME_0000,
    NAME_0001, ... are the channels of one scan NAME; other files are scans by themselves, and hold all channels. Where it takes one,
    every file is a scan, and NAME_0000 is called NAME unless a neighbour's name ends in another such number (case numbers, as in
    amos_0004). A .json file is a manifest: {"name": "file"} or {"name": ["channel 0", "channel 1"]}, its paths relative to it.

    Images in a folder that are of other formats are warned of, and folders below that hold images are named. A file of such a format that
    is given itself, and a scan that lacks a channel or has one twice, are scans that will fail (`Scan.problem`).

    Raises:
        InputError: if a path does not exist, or a folder holds no NIfTI file.
        UsageError: if two scans have the same name.
    """
    scans: list[Scan] = []
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            files += _in_folder(path, report)
        elif path.suffix == ".json" and path.is_file():
            scans += _manifest(path)
        elif unread_format(path) and path.exists():
            scans.append(Scan(path.name, (path,), f"{path}: {unread_message([path])}"))
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: there is no such file or folder")
    scans += _by_channels(files, channels)
    names = Counter(scan.name for scan in scans)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        clashing = [str(f) for scan in scans if scan.name == twice[0] for f in scan.files]
        raise UsageError(
            f"{len(twice)} output names would be written twice; the first is {twice[0]}.nii.gz, from {' and '.join(clashing)}. "
            "Rename the inputs or segment them into different folders"
        )
    return scans


def unread_images(inputs: Sequence[Path]) -> list[Path]:
    """The images that lie in the folders among the inputs and that `find_scans` leaves out."""
    return [path for folder in inputs if folder.is_dir() for path in images_in(folder).unread]


def _in_folder(folder: Path, report: Report) -> tuple[Path, ...]:
    found, below = images_in(folder), _folders_with_images(folder)
    others = [f"folders below are not looked into, and some hold images ({shortened(below, 3)}); name them, too"] if below else []
    if not found.read:
        hints = [*([unread_message(found.unread)] if found.unread else []), *others]
        raise InputError("; ".join([f"{folder}: there is no NIfTI file (.nii, .nii.gz) in this folder", *hints]))
    if found.unread:
        report(Warn(f"{folder}: {len(found.unread)} left out: {unread_message(found.unread)}"))
    if others:
        report(Note(f"{folder}: {others[0]}"))
    return found.read


def _folders_with_images(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        below = [folder / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(path.name for path in below if not unread_format(path) and _holds_images(path))


def _holds_images(folder: Path) -> bool:
    try:
        found = images_in(folder)
    except OSError:  # not ours to read
        return False
    return bool(found.read or found.unread)


def _manifest(path: Path) -> list[Scan]:
    data = read_as(path, ScanTable, otherwise='write a manifest as {"name": "file" or ["channel 0", "channel 1"]}')
    items = [(name, [files] if isinstance(files, str) else files) for name, files in data.items()]
    scans = [Scan(name, tuple(path.parent / file for file in files)) for name, files in items]
    unsafe = [scan.name for scan in scans if not scan.name or Path(scan.name).name != scan.name or not scan.files]
    if unsafe:
        raise InputError(f"{path}: {unsafe[0]!r} is no plain name with at least one file")
    return scans


def _by_channels(files: Sequence[Path], channels: int) -> list[Scan]:
    if channels == 1:
        matches = {file: CHANNEL_NAME.fullmatch(case_name(file)) for file in files}
        numbered = {file.parent for file, match in matches.items() if match and match.group(2) != "0000"}
        plain = {file: match is None or file.parent in numbered for file, match in matches.items()}
        return [Scan(case_name(f) if plain[f] else case_name(f).removesuffix("_0000"), (f,)) for f in files]
    scans: list[Scan] = []
    groups: dict[tuple[Path, str], list[tuple[int, Path]]] = {}
    for file in files:
        match = CHANNEL_NAME.fullmatch(case_name(file))
        if match is None:
            scans.append(Scan(case_name(file), (file,)))
        else:
            # Each folder is its own: the same name in two of them is two scans, which the caller then sees as a clash.
            groups.setdefault((file.parent, match.group(1)), []).append((int(match.group(2)), file))
    for (_, name), group in groups.items():
        group.sort()
        scans.append(Scan(name, tuple(file for _, file in group), _wrong_channels(name, group, channels)))
    return scans


def _wrong_channels(name: str, group: Sequence[tuple[int, Path]], channels: int) -> str:
    """What is wrong with the channels of a scan, by their numbers; empty if nothing is."""
    numbers = [number for number, _ in group]
    for (number, file), (after, again) in itertools.pairwise(group):
        if number == after:
            return f"{again}: the same channel of the same scan as {file}; give only one of them"
    missing = [n for n in range(max(channels, numbers[-1] + 1)) if n not in numbers]
    if missing:
        return (
            f"{group[0][1]}: channel {missing[0]:04d} of the scan {name} is missing beside it, the model takes {channels}. "
            "If the number is no channel's, name the files of each scan in a manifest (.json)"
        )
    if len(group) > channels:
        return f"{group[-1][1]}: the scan {name} has {len(group)} channels, the model takes {channels}"
    return ""


def are_whole(scans: Sequence[Scan], whole: Whole) -> bool:
    """Whether scans are whole ones, by the extent that their headers give; files that cannot be read are not asked.

    Raises:
        InputError: if some are and some are not: their label maps would mean different things in one folder.
    """
    extents = {}
    for scan in scans:
        try:
            geometry = read_geometry(scan.files[0])
        except VolumeError:
            continue
        extent = extent_mm(geometry)[-1]
        if extent < LARGEST_MM:  # a header in other units is no reason to leave the others; it fails by itself
            extents[scan.name] = extent
    large = [name for name, extent in extents.items() if extent > whole.largest_crop_mm]
    small = [name for name in extents if name not in large]
    if large and small:
        raise InputError(
            f"whole scans and crops in one call ({large[0]} of {extents[large[0]]:.0f} mm and {len(large) - 1} more; {small[0]} of "
            f"{extents[small[0]]:.0f} mm and {len(small) - 1} more; up to {whole.largest_crop_mm:g} mm is a crop): their labels differ, so "
            'segment them into different folders, or choose the region ("head" or "crop") that all of them are'
        )
    return bool(large)
