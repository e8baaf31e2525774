"""What networks scored on their test cases, read from files: records of `uxnet crossval`, or JSON files of `uxnet evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import UNSET

from uxnet.errors import InputError, shortened
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.io import read_json
from uxnet.io.checked import as_kind
from uxnet.io.schemas import CrossvalRecord, Evaluated

RECORD_SCHEMA = "uxnet crossval record"
RECORD_VERSION = 1

DIGITS = 6
"""Of every number in a record, and of what is read: a file of `uxnet evaluate` has more, and equal scores must be equal."""

MEAN = "mean"
"""The mean over a case's classes, which stands among the classes."""

COMMON = ("recipe_sha256", "split_sha256", "dataset_sha256", "labels_sha256", "budget")
"""What all records of a cross-validation agree in; with it, networks are compared on equal terms."""

Values = Mapping[str, Mapping[str, float | None]]
"""Class -> metric -> value, None where it does not count."""


@dataclass(frozen=True)
class Scores:
    """What one network scored.

    classes: names, in the labels' order.
    cases: case -> its values. Over all folds, each case stands here once.
    persons: case -> person, of the cases that say it; none where every case is said to be of a person of its own name, as records once
        had it where nobody knew.
    tolerance_mm, empty: how it was scored, see docs/evaluation.md.
    records: the cross-validation's records, in the order of their folds; none for a file of `uxnet evaluate`.
    references: case -> class -> ml that its reference has; of the cases that say it.
    failed: cases that could not be scored; they are not among `cases`.
    seen: cases that a model of theirs was trained on, as far as a file of `uxnet evaluate` says.
    """

    name: str
    classes: tuple[str, ...]
    cases: Mapping[str, Values]
    tolerance_mm: float
    empty: str
    persons: Mapping[str, str] = field(default_factory=dict)
    records: tuple[Mapping[str, Any], ...] = ()
    references: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()

    def value(self, case: str, metric: str = "dice", class_name: str = MEAN) -> float | None:
        """What one case has in one class, or in the mean over its classes that count; None where nothing counts."""
        values = self.cases[case]
        return mean_of_counted(values[name][metric] for name in (self.classes if class_name == MEAN else (class_name,)))


def read_scores(sources: Sequence[str | Path]) -> tuple[Scores, ...]:
    """The networks in files and folders, in the order in which they appear.

    Args:
        sources: each a record, a JSON file of `uxnet evaluate`, a folder of a cross-validation or of its records, or a folder with a
            metrics.json. "NAME=PATH" names what is there; otherwise records have their own name, metrics.json that of its folder, and
            any other file its own. Records of one name are put together.

    Raises:
        InputError: if something cannot be read or is neither, records of one name are of different networks, or a case is scored twice.
    """
    found: dict[str, list[Scores]] = {}
    for source in sources:
        name, path = _named(source)
        for file in _files(path):
            scores = _read(file, name)
            found.setdefault(scores.name, []).append(scores)
    records = [record for parts in found.values() for part in parts for record in part.records]
    found = {name: [replace(part, records=with_one_hash(part.records, records)) for part in parts] for name, parts in found.items()}
    return tuple(_together(parts) for parts in found.values())


def read_record(path: Path) -> dict[str, Any]:
    """A record of a cross-validation; one of old, which says nothing of the label table, has None there.

    Raises:
        InputError: if it cannot be read, is none, of another version, or lacks something that is read of it.
    """
    data = read_json(path)
    if data.get("schema") != RECORD_SCHEMA:
        raise InputError(f"{path}: is no record of uxnet crossval; move it elsewhere")
    if data.get("version") != RECORD_VERSION:
        raise InputError(f"{path}: it is a record of version {data.get('version')!r}, this uxnet reads version {RECORD_VERSION}")
    try:
        as_kind(data, CrossvalRecord)
    except ValueError as wrong:
        raise InputError(f"{path}: {wrong}; it is not as uxnet crossval writes a record: make it anew, or move it elsewhere") from wrong
    return {"labels_sha256": None, **data}


def with_one_hash(records: Iterable[Mapping[str, Any]], known: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """The records; those of earlier versions, which know their recipe by a hash of TOML, by the hash that newer ones of it have.

    Args:
        known: records, of which those that have both hashes say which belong together.
    """
    same = {record["recipe_toml_sha256"]: record["recipe_sha256"] for record in known if record.get("recipe_toml_sha256")}
    return tuple({**record, "recipe_sha256": same.get(record["recipe_sha256"], record["recipe_sha256"])} for record in records)


def record_files(folder: Path) -> list[Path]:
    """The records in a folder, by name; those that are being written are left out."""
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def differences(scores: Sequence[Scores]) -> list[str]:
    """Sentences on what records were made with: precision, threads, machine and versions, where they are not the same in all, and whose.

    These are no part of the recipe, so records that agree in `COMMON` may differ in them. What a record does not say is passed over.
    """
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for s in scores:
        for record in s.records:
            for what, value in _made_with(record).items():
                found.setdefault(what, {}).setdefault(value, {}).setdefault(s.name, []).append(str(record["fold"]))
    return [f"The {what} is not the same for all: {_whose(values)}." for what, values in found.items() if len(values) > 1]


def _made_with(record: Mapping[str, Any]) -> dict[str, str]:
    facts = {"precision": record.get("precision"), "number of threads": record.get("threads")}
    machine = record.get("machine") or {}
    # A number tells apart the GPUs of one machine, on which units lie side by side.
    device = str(machine.get("device") or "").partition(":")[0]
    gpus = machine.get("gpus") if device != "cpu" else None
    parts = (machine.get("processor"), *(machine.get("instructions") or ()), *dict.fromkeys(gpus or ()), device)
    facts["machine"] = ", ".join(str(part) for part in parts if part)
    facts |= {f"version of {name}": version for name, version in (record.get("versions") or {}).items()}
    return {what: str(value) for what, value in facts.items() if value not in (None, "")}


def _whose(values: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Each value with the networks that have it; with the folds, too, where a network has several."""
    every = [name for names in values.values() for name in names]
    said = []
    for value, names in values.items():
        who = [
            name if every.count(name) == 1 else f"{name} on fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}"
            for name, folds in names.items()
        ]
        said.append(f"{value} ({'; '.join(who)})")
    return ", ".join(said)


def _named(source: str | Path) -> tuple[str, Path]:
    name, equals, path = str(source).partition("=")
    if not equals or Path(source).exists():
        return "", Path(source)
    return name, Path(path)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder")
    if path.is_file():
        return [path]
    if (path / "metrics.json").is_file():
        return [path / "metrics.json"]
    inside = (path / "records").is_dir()
    files = record_files(path / "records") if inside else [file for file in record_files(path) if "-fold" in file.stem]
    if not files:
        raise InputError(f"{path}: there are no records of uxnet crossval and no metrics.json of uxnet evaluate in this folder")
    return files


def _read(path: Path, name: str) -> Scores:
    data = read_json(path)
    recorded = "schema" in data
    found: CrossvalRecord | Evaluated
    if recorded:
        found = as_kind(data := read_record(path), CrossvalRecord)
    else:
        try:
            found = as_kind(data, Evaluated)
        except ValueError as wrong:
            raise InputError(f"{path}: {wrong}; it is neither a record of uxnet crossval nor a JSON file of uxnet evaluate") from wrong
    cases = {one.case: {c: {m: _rounded(getattr(values, m)) for m in METRICS} for c, values in one.classes.items()} for one in found.cases}
    persons = {one.case: one.person for one in found.cases if one.person is not UNSET}
    references = {
        one.case: {c: values.reference_ml for c, values in one.classes.items() if values.reference_ml is not UNSET} for one in found.cases
    }
    failed = () if isinstance(found, CrossvalRecord) else tuple(failure.case for failure in found.failures)
    seen = () if isinstance(found, CrossvalRecord) else tuple(case for case in found.cases_seen_in_training if case in cases)
    scoring, own = (found.evaluation, found.name) if isinstance(found, CrossvalRecord) else (found.settings, _own_name(path))
    # Of a record as it is, the classes of its cases; a file of evaluate names them even where it has no case.
    classes = tuple(found.classes) if isinstance(found, Evaluated) else tuple(next(iter(cases.values()), {}))
    if not cases:
        raise InputError(f"{path}: it scores no case")
    if len(cases) < len(found.cases) or any(tuple(values) != classes for values in cases.values()):
        raise InputError(f"{path}: it scores a case twice, or not all cases in the same classes; it has been changed by hand")
    records = (data,) if recorded else ()
    return Scores(name or own, classes, cases, scoring.tolerance_mm, scoring.empty, persons, records, references, failed, seen)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _own_name(path: Path) -> str:
    return path.resolve().parent.name if path.name == "metrics.json" else path.stem


def _together(parts: Sequence[Scores]) -> Scores:
    """The scores of one name, of however many folds.

    Raises:
        InputError: if they are of different networks, or have a case in common.
    """
    first = parts[0]
    cases: dict[str, Values] = {}
    persons: dict[str, str] = {}
    references: dict[str, Mapping[str, float]] = {}
    _refuse_another_network(parts)
    for part in parts:
        if (part.classes, part.tolerance_mm, part.empty) != (first.classes, first.tolerance_mm, first.empty):
            raise InputError(f"{first.name}: two files of this name have other classes or were scored in other ways; score them alike")
        twice = sorted(cases.keys() & part.cases.keys())
        if twice:
            raise InputError(f"{first.name}: {shortened(twice)} scored twice; each case may be in one fold's test part only")
        cases |= part.cases
        persons |= part.persons
        references |= part.references
    if all(person == case for case, person in persons.items()):
        persons = {}
    seen = tuple(sorted({case for part in parts for case in part.seen}))
    records = sorted((r for part in parts for r in part.records), key=lambda r: int(r["fold"]))
    failed = tuple(sorted({case for part in parts for case in part.failed} - cases.keys()))
    return Scores(first.name, first.classes, cases, first.tolerance_mm, first.empty, persons, tuple(records), references, failed, seen)


def _refuse_another_network(parts: Sequence[Scores]) -> None:
    """Records of one name are of one network on one set of terms. What a record does not state of the terms is passed over."""
    name, rename = parts[0].name, "compare one of them, or give the other a name: NAME=FILE"
    if len({bool(part.records) for part in parts}) > 1:
        raise InputError(f"{name}: a record and a file of uxnet evaluate have this name; {rename}")
    for key in ("network", "settings", "init", *COMMON):
        found = [record.get(key) for part in parts for record in part.records]
        stated = [value for value in found if value is not None or key not in COMMON]
        for value in stated:
            if value != stated[0]:
                raise InputError(f"{name}: two records of this name differ in {key} ({stated[0]}; {value}); {rename}")
