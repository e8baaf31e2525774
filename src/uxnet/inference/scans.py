"""Finding the scans that files, folders and manifests name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uxnet.errors import InputError, UsageError, shortened
from uxnet.events import Report, Warn, silent
from uxnet.io import CHANNEL_NAME, case_name, is_nifti
from uxnet.io.checked import read_as
from uxnet.io.schemas import ScanTable

_OTHERS = (".dcm", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd")  # images in formats that are not read


@dataclass(frozen=True)
class Scan:
    """One image to segment: the name of its output and its files, one a channel (or one with all channels)."""

    name: str
    files: tuple[Path, ...]


def find_scans(inputs: Sequence[Path], channels: int, report: Report = silent) -> list[Scan]:
    """The scans that files and folders name.

    A folder gives every NIfTI file in it (not in folders below). Where the model takes several channels, files named NAME_0000,
    NAME_0001, ... are the channels of one scan NAME; other files are scans by themselves, and hold all channels. Where it takes one,
    every file is a scan, and NAME_0000 is called NAME unless a neighbour's name ends in another such number (case numbers, as in
    amos_0004). A .json file is a manifest: {"name": "file"} or {"name": ["channel 0", "channel 1"]}, its paths relative to it.

    Images of other formats in a folder are warned of.

    Raises:
        InputError: if a path does not exist, a folder holds no NIfTI file, or channels are missing.
        UsageError: if two scans have the same name.
    """
    scans: list[Scan] = []
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            # A link that leads nowhere is a scan, too: one that will fail by name, and not one that nobody misses.
            found = sorted(p for p in path.iterdir() if is_nifti(p) and not p.is_dir())
            others = sorted(p.name for p in path.iterdir() if p.name.lower().endswith(_OTHERS))
            if not found:
                hint = f"; convert {shortened(others, 3)}, DICOM by dcm2niix for example" if others else ""
                raise InputError(f"{path}: there is no NIfTI file (.nii, .nii.gz) in this folder{hint}")
            if others:
                report(Warn(f"{path}: left out, since only NIfTI is read: {shortened(others, 3)}"))
            files += found
        elif path.suffix == ".json" and path.is_file():
            scans += _manifest(path)
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
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    for file in files:
        match = CHANNEL_NAME.fullmatch(case_name(file))
        if match is None:
            scans.append(Scan(case_name(file), (file,)))
            continue
        # Each folder is its own: the same name in two of them is two scans, which the caller then sees as a clash.
        group = groups.setdefault((file.parent, match.group(1)), {})
        number = int(match.group(2))
        if number in group:
            raise InputError(f"{file}: the same channel of the same scan as {group[number]}; give only one of them")
        group[number] = file
    for (_, name), group in groups.items():
        missing = [n for n in range(max(channels, max(group) + 1)) if n not in group]
        if missing:
            raise InputError(
                f"{next(iter(group.values()))}: channel {missing[0]:04d} of the scan {name} is missing beside it, "
                f"the model takes {channels}. "
                "If the number is no channel's, name the files of each scan in a manifest (.json)"
            )
        scans.append(Scan(name, tuple(file for _, file in sorted(group.items()))))
    return scans
