"""Files in, label maps out: finding inputs, naming outputs, going on past bad ones."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uxnet.errors import Cancelled, InputError, UxnetError
from uxnet.events import Note, Progress, Report, Warn, silent
from uxnet.inference.segmenter import Segmenter
from uxnet.io import CHANNEL_NAME, case_name, is_nifti, write_json, write_labels


@dataclass(frozen=True)
class Scan:
    """One image to segment: the name of its output and its files, one a channel (or one with all channels)."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a scan. `error` is empty where `output` was written."""

    name: str
    files: tuple[str, ...]
    output: str | None
    error: str
    seconds: float
    peak_memory_mb: int | None


def find_scans(inputs: Sequence[Path], channels: int) -> list[Scan]:
    """The scans that files and folders name.

    A folder gives every NIfTI file in it (not in folders below). Where the model takes several channels, files named NAME_0000,
    NAME_0001, ... are the channels of one scan NAME; other files are scans by themselves, and hold all channels. Where it takes one,
    every file is a scan, and NAME_0000 is called NAME unless a neighbour's name ends in another such number (case numbers, as in
    amos_0004). A .json file is a manifest: {"name": "file"} or {"name": ["channel 0", "channel 1"]}, its paths relative to it.

    Raises:
        InputError: if a path does not exist, a folder holds no NIfTI file, channels are missing, or two scans have the same name.
    """
    scans: list[Scan] = []
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.is_file() and is_nifti(p))
            if not found:
                raise InputError(f"{path}: there is no NIfTI file (.nii, .nii.gz) in this folder")
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
        raise InputError(
            f"{len(twice)} output names would be written twice; the first is {twice[0]}.nii.gz, from {' and '.join(clashing)}. "
            "Rename the inputs or segment them into different folders"
        )
    return scans


def predict(segmenter: Segmenter, scans: Sequence[Scan], out: Path, *, overwrite: bool = False, report: Report = silent) -> list[Outcome]:
    """Segments every scan into `out` as NAME.nii.gz, on its own grid, and writes labels.json and predict.json beside them.

    A scan that fails is reported and the rest goes on.

    Args:
        overwrite: replace outputs that exist already, instead of refusing before anything is computed.

    Returns:
        One outcome a scan, in their order.

    Raises:
        InputError: if an output would overwrite an input, or a file that exists, or `out` holds label maps of another model.
    """
    outputs = {scan.name: out / f"{scan.name}.nii.gz" for scan in scans}
    _refuse_overwriting(scans, outputs, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {
        **segmenter.labels.to_dict(),
        "model": str(segmenter.model.path.name),
        "model_name": segmenter.model.recipe.name,
    }
    if not overwrite:
        _refuse_mixing(out / "labels.json", described)
    write_json(out / "labels.json", described)
    outcomes = []
    for done, scan in enumerate(scans, start=1):
        started, measured = time.perf_counter(), _reset_peak()
        error = ""
        try:
            write_labels(outputs[scan.name], segmenter.segment(scan.files, report))
        except Cancelled:
            raise
        except (UxnetError, OSError, MemoryError) as problem:
            error = str(problem) or f"{scan.files[0]}: {type(problem).__name__}"
            report(Warn(error))
        seconds = time.perf_counter() - started
        peak = _peak_memory_mb() if measured else None
        written = None if error else str(outputs[scan.name])
        outcomes.append(Outcome(scan.name, tuple(map(str, scan.files)), written, error, round(seconds, 3), peak))
        if not error:
            memory = f", peak memory {peak} MB" if peak is not None else ""
            report(Note(f"{scan.name}: {seconds:.1f} s{memory} -> {outputs[scan.name]}"))
        report(Progress("scans", done, len(scans)))
    earlier = [scan for scan in _earlier_scans(out / "predict.json") if scan["name"] not in outputs]
    write_json(out / "predict.json", {"model": str(segmenter.model.path), "scans": earlier + [asdict(outcome) for outcome in outcomes]})
    return outcomes


def _manifest(path: Path) -> list[Scan]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        items = [(str(name), [files] if isinstance(files, str) else list(files)) for name, files in data.items()]
        scans = [Scan(name, tuple(path.parent / str(f) for f in files)) for name, files in items]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f'{path}: no manifest; expected {{"name": "file" or ["channel 0", "channel 1"]}} ({error})') from error
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


def _refuse_overwriting(scans: Sequence[Scan], outputs: dict[str, Path], overwrite: bool) -> None:
    inputs = {file.resolve() for scan in scans for file in scan.files}
    for output in outputs.values():
        if output.resolve() in inputs:
            raise InputError(f"{output}: the output would replace an input; choose another folder")
    existing = [output for output in outputs.values() if output.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]}: exists already ({len(existing)} such outputs); choose another folder, or give --overwrite")


def _refuse_mixing(path: Path, described: dict[str, Any]) -> None:
    """One folder, one meaning: labels.json speaks for every label map beside it."""
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found != described:
        raise InputError(f"{path}: speaks of another model's label maps; choose another folder, or give --overwrite")


def _earlier_scans(path: Path) -> list[dict[str, Any]]:
    try:
        return [scan for scan in json.loads(path.read_text(encoding="utf-8"))["scans"] if "name" in scan]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _reset_peak() -> bool:
    """Starts a new reading of the peak memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_memory_mb() -> int | None:
    """The largest resident memory of this process since the last reset, in MB (10^6 bytes)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return round(int(match.group(1)) * 1024 / 1e6) if match else None
