"""What is done already: which content outputs were made from, in files that are only ever added to.

Each run (or shard of one) has a file of its own in the folder of the outputs, predict.jsonl or predict.1-of-4.jsonl, so that several can
write at the same time; all of them are read. A record is written before its outputs take their places: an output that stands there
and is not explained by a record was not written here, or was changed since.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

import uxnet
from uxnet.errors import InputError
from uxnet.events import Report, silent
from uxnet.inference.settings import Settings
from uxnet.io import sha256
from uxnet.io.checked import as_kind
from uxnet.io.records import Record, read_records
from uxnet.io.schemas import Figures, PredictedLine

OUTPUT_REVISION = "0.1.0"
"""The version of uxnet since which the same input, models and settings give the same outputs; raised only by one that changes them."""


@dataclass(frozen=True)
class Making:
    """Everything that decides an output, besides its input.

    models: sha256 of each model file.
    settings: `Settings.deciding()`, as JSON gives it back.
    probabilities: whether they are written, too.
    revision: of the outputs, `OUTPUT_REVISION`.
    table: sha256 of what the values of the label maps mean. It follows from the models; records hold it so that maps that mean
        something else are known beside each other.
    threads: that compute. They decide only in which order OpenVINO and torch add up numbers, and with it a voxel here and there: outputs
        of other threads count as done, and are told of.
    """

    models: tuple[str, ...]
    settings: Mapping[str, Any]
    probabilities: bool
    revision: str
    table: str = ""
    threads: int = 0

    def key(self, inputs: Sequence[str]) -> str:
        """What the outputs of an input are known by; `inputs` are the sha256 of its files, in their order."""
        told = [self.revision, self.models, dict(self.settings), self.probabilities, list(inputs)]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def record(self) -> Record:
        """Its part of a record."""
        return {
            "uxnet": uxnet.__version__,
            "revision": self.revision,
            "models": list(self.models),
            "settings": dict(self.settings),
            "probabilities": self.probabilities,
            "table": self.table,
        }

    def difference(self, record: Record) -> str:
        """What a record's outputs were made with that is not so now, in words; empty if there is nothing."""
        then, now = record.get("settings"), dict(self.settings)
        ways = ["for a whole one" if isinstance(settings, dict) and "located" in settings else "for a crop" for settings in (then, now)]
        if ways[0] != ways[1]:  # before the models, of which a whole scan takes one more
            return f"the scan taken {ways[0]}, not {ways[1]}"
        if record.get("models") != list(self.models):
            return "another model"
        # Before there was a revision, a record's version was it.
        if record.get("revision", record.get("uxnet")) != self.revision:
            return f"uxnet {record.get('uxnet')}, whose outputs this version's ({uxnet.__version__}) may differ from"
        if then != now:
            then = then if isinstance(then, dict) else {}
            name = next((key for key in {**now, **then} if then.get(key) != now.get(key)), "")
            return f"{name} {_worded(then.get(name), name)}, not {_worded(now.get(name), name)}" if name else "other settings"
        if record.get("probabilities") != self.probabilities:
            return "probabilities" if record.get("probabilities") else "no probabilities"
        return ""


def making(models: Sequence[Path], settings: Settings, probabilities: bool, table: str = "") -> Making:
    """How outputs are made now.

    Args:
        table: as in `Making`.

    Raises:
        OSError: if a model file cannot be read.
    """
    deciding = json.loads(json.dumps(settings.deciding()))
    return Making(tuple(sha256(path) for path in models), deciding, probabilities, OUTPUT_REVISION, table, settings.cores)


def read_ledger(folder: Path, report: Report = silent) -> dict[str, Record]:
    """The latest record of each name; those that are damaged are left out, as if what they say was not done, and warned of."""
    latest: dict[str, Record] = {}
    for path in sorted(folder.glob("predict*.jsonl")):
        for record in read_records(path, PredictedLine, report):
            before = latest.get(record["name"])
            if before is None or before["finished"] <= record["finished"]:
                latest[record["name"]] = {**record, "figures": asdict(as_kind(record["figures"], Figures))}
    return latest


def described(path: Path) -> dict[str, Any]:
    """What a record says of an output: its content and size."""
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def unexplained(outputs: Sequence[Path], record: Record | None, now: Making) -> str:
    """Why outputs that exist must not be taken for ours, as far as can be told without reading them through; empty if they may.

    What is torn may be replaced; what is whole and not what was written was put there by someone.
    """
    there = [path for path in outputs if path.exists()]
    if not there:
        return ""
    if record is None:
        return "nothing in its folder says what it was made from"
    difference = now.difference(record)
    if difference:
        return f"it was made with {difference}"
    for path in there:
        told = record["outputs"].get(path.name)
        if (told is None or path.stat().st_size != told.get("bytes")) and not is_torn(path):
            return "it is not what was written there"
    return ""


def is_done(outputs: Sequence[Path], record: Record | None, key: str, source: Path, overwrite: bool) -> bool:
    """Whether outputs are there that were made from the very same content; if not, they are to be made.

    Args:
        key: of the input as it is now (`Making.key`).
        source: the input, for the message.
        overwrite: whatever else stands there is to be replaced.

    Raises:
        InputError: if what stands there must not be replaced unasked: it was made from another input, or changed since.
    """
    there = [path for path in outputs if path.exists()]
    told = record["outputs"] if record else {}
    changed = [path for path in there if not path.is_file() or sha256(path) != told.get(path.name, {}).get("sha256")]
    if record and record["key"] == key and len(there) == len(outputs) and not changed:
        return True
    if overwrite or not there:
        return False
    foreign = [path for path in changed if not is_torn(path)]
    if foreign:
        raise InputError(f"{foreign[0]}: someone changed it since it was written there; choose another folder, or have it overwritten")
    if record and record["key"] != key and len(changed) < len(there):
        raise InputError(f"{source}: it has changed since {there[0]} was made from it; choose another folder, or have it overwritten")
    return False


def is_torn(path: Path) -> bool:
    """Whether a file is empty, or compressed and damaged or cut short: no work of anybody's."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        magic = file.read(2)
    if magic != b"\x1f\x8b":
        return not magic
    try:
        with gzip.open(path) as file:
            while file.read(2**20):
                pass
    except (OSError, EOFError, zlib.error):
        return True
    return False


def _worded(value: Any, name: str = "") -> str:
    if isinstance(value, list):
        return " ".join(map(_worded, value)) or "nothing"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none" if name == "memory_limit" else "by the recipe"
    return str(value)
