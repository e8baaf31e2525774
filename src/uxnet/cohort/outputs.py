"""The folder of a cohort's outputs: what is to be written where, what must not be lost there, and who has which scan in hand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from uxnet.cohort.ledger import Making, unexplained
from uxnet.cohort.scans import Scan
from uxnet.cohort.unit import Unit
from uxnet.errors import InputError, plural
from uxnet.events import Note, Report
from uxnet.io import claimed, clear_parts, is_nifti, lock_path, part_path, read_json, token_of
from uxnet.io.records import Record

_LONGEST_NAME = 255  # bytes, on nearly every disk
_SECONDS_BETWEEN_LOOKS = 1.0


def planned_units(scans: Sequence[Scan], out: Path, made_of: Making, overwrite: bool, known: Mapping[str, Record]) -> list[Unit]:
    """A unit of work for each scan: its outputs, and the hidden files of this call in which they are made."""
    call = secrets.token_hex(4)
    endings = ["", "_probs"] if made_of.probabilities else [""]
    units = []
    for scan in scans:
        outputs = tuple(out / f"{scan.name}{ending}.nii.gz" for ending in endings)
        longest = max((output.name for output in outputs), key=lambda name: len(os.fsencode(name)))
        excess = len(os.fsencode(longest)) - _LONGEST_NAME
        problem = scan.problem or (
            f"{scan.files[0]}: the name of its output, {longest}, would have {plural(excess, 'byte')} more than the {_LONGEST_NAME} that a "
            "file's name can have; rename the scan"
            if excess > 0
            else ""
        )
        units.append(
            Unit(
                scan=scan,
                outputs=outputs,
                parts=tuple(part_path(out, token_of(scan.name), ".nii.gz", f"{call}{n}") for n in range(len(outputs))),
                making=made_of,
                known=known.get(scan.name),
                overwrite=overwrite,
                problem=problem,
            )
        )
    return units


def names_in(out: Path) -> set[str]:
    """The names of the files in a folder; none where there is no such folder."""
    return {path.name for path in out.iterdir()} if out.is_dir() else set()


def refuse_losses(
    call: Sequence[Unit],
    units: Sequence[Unit],
    out: Path,
    there: Collection[str],
    meaning: Mapping[str, Any],
    overwrite: bool,
    known: Mapping[str, Record],
) -> None:
    """Refuses, before anything is computed, what would be lost or mixed up.

    Args:
        call: the units of all shards.
        units: those of this one. Only of them it is known that nobody is writing their outputs.
        there: names of the files in the folder before its records were read: what others have put there since, they have recorded since.
        known: the folder's records.

    Raises:
        InputError: as `cohort.predict`.
    """
    if (out / "dataset.json").exists() or any((out / part).is_dir() for part in ("imagesTr", "labelsTr")):
        raise InputError(f"{out}: is the folder of a dataset, whose labels labels.json would be taken for; choose another folder")
    call, units = ([unit for unit in some if not unit.problem] for some in (call, units))
    inputs = {file.resolve() for unit in call for file in unit.scan.files}
    written: dict[Path, str] = {}
    for unit in call:
        for output in unit.outputs:
            if output.resolve() in inputs:
                raise InputError(f"{output}: the output would replace an input; choose another folder")
            if written.setdefault(output, unit.scan.name) != unit.scan.name:
                raise InputError(f"{output}: the output of two scans, {written[output]} and {unit.scan.name}; rename one of them")
    found = [(tuple(output for output in unit.outputs if output.name in there), unit) for unit in units]
    refused = [] if overwrite else [(paths, why) for paths, unit in found if (why := unexplained(paths, unit.known, unit.making))]
    if refused:
        first = next(path for path in refused[0][0] if path.exists())
        raise InputError(
            f"{first}: exists already, and {refused[0][1]} ({plural(len(refused), 'such output')}); choose another folder, or give "
            "overwrite=True"
        )
    # One folder, one meaning: labels.json speaks for every label map beside it.
    labels = out / "labels.json"
    told = read_if_there(labels)
    if told is None and labels.exists():
        told = {}
    # Whose they are says the content of the models, not its file's name; earlier versions wrote only that.
    whose = "model" if told and "models" not in told else "models"
    if told is not None and not overwrite and (table_hash(told) != table_hash(meaning) or told.get(whose) != meaning[whose]):
        raise InputError(f"{labels}: speaks of another model's label maps; choose another folder, or give overwrite=True")
    strange = _of_another_table(call, out, None if told is None else table_hash(told), inputs, known)
    if strange:
        raise InputError(
            f"{strange[0]}: its values mean something else than this model's, and this call does not replace it "
            f"({plural(len(strange), 'such file')}); choose another folder, since labels.json speaks for all label maps of one"
        )


def _of_another_table(
    call: Sequence[Unit], out: Path, told: str | None, inputs: Collection[Path], known: Mapping[str, Record]
) -> list[Path]:
    """Label maps in the folder that the call leaves as they are and whose values mean something else.

    Args:
        told: the table of the folder's labels.json, which counts for maps that no record knows; None if there is no such file.
    """
    if not out.is_dir() or not call:
        return []
    tables = {name: record.get("table", told) for record in known.values() for name in record["outputs"]}
    replaced = {path.name for unit in call for path in unit.outputs} | {name for unit in call for name in stale_names(unit)}
    table = call[0].making.table
    others = [path for path in sorted(out.iterdir()) if path.name.endswith(".nii.gz") and is_nifti(path) and path.name not in replaced]
    return [path for path in others if tables.get(path.name, told) not in (None, table) and path.resolve() not in inputs]


def stale_names(unit: Unit) -> list[str]:
    """Names of files that an earlier call wrote for the scan and that this one does not: probabilities that nobody asks for any more."""
    names = {path.name for path in unit.outputs}
    return [name for name in unit.known["outputs"] if name not in names and Path(name).name == name] if unit.known else []


def table_hash(described: Mapping[str, Any]) -> str:
    """The hash of what values mean, of `Labels.to_dict` or labels.json."""
    table = [described.get(key) for key in ("background", "foreground", "regions", "ignore")]
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def read_if_there(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none that can be read."""
    try:
        return read_json(path)
    except InputError:
        return None


class Claims:
    """The scans that a call has in hand: each by a lock in the folder of the outputs, so that other calls leave it alone.

    At the end nothing is left there that is half made, by this call or by one that was killed.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.held: dict[str, tuple[Unit, contextlib.ExitStack]] = {}

    def __enter__(self) -> Claims:
        clear_parts(self.out)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for unit, _ in list(self.held.values()):
            self.release(unit)
        clear_parts(self.out)

    def take(self, unit: Unit) -> bool:
        """Takes a scan in hand; False if another call has it."""
        name = unit.scan.name
        if name not in self.held:
            with contextlib.ExitStack() as stack:
                try:
                    if not stack.enter_context(claimed(lock_path(self.out, token_of(name)))):
                        return False
                except OSError:
                    pass  # a disk that takes no more files is the scan's own failure, when it is written
                self.held[name] = (unit, stack.pop_all())
        return True

    def release(self, unit: Unit) -> None:
        """Ends a scan: what was made of it and has not taken its place is removed."""
        _, stack = self.held.pop(unit.scan.name)
        with stack:
            for part in unit.parts:
                part.unlink(missing_ok=True)

    def wait(self, units: Sequence[Unit], report: Report) -> list[Unit]:
        """Waits until another call is done with at least one of the scans, and takes those that are free in hand; none for none."""
        said = False
        while units:
            if free := [unit for unit in units if self.take(unit)]:
                return free
            if not said:
                report(Note(f"waiting for another process that has {plural(len(units), 'scan')} in hand, {units[0].scan.name} first"))
            said = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return []
