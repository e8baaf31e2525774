"""The best fold of a cross-validation, to begin another training with: chosen by validation, as the paper does for its fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uxnet.errors import InputError, UsageError
from uxnet.evaluation.scores import read_record, record_files
from uxnet.events import Note, Report, silent
from uxnet.model.catalogue import resolve


def model_to_begin_with(path: Path, report: Report = silent) -> Path:
    """The model file that a training shall begin with.

    Args:
        path: a model file; the name of a model in the box; or a folder of `uxnet crossval`, of which the fold is taken that did best in
            its validation (section 5 of the paper: FLARE's best fold for AMOS). A folder with several networks is followed by the name of
            one: "flare_cv/uxnet". Test cases have no part in the choice.
        report: hears which fold was taken.

    Raises:
        InputError: if a record in the folder is damaged, none has a validation, or the chosen fold's model is not there any more.
        UsageError: if there is no such model in the box, or the folder has several networks and none is named, or not that one.
    """
    if _records(path):
        return _best(path, None, report)
    if not path.exists() and _records(path.parent):
        return _best(path.parent, path.name, report)
    return resolve(path)


def _records(folder: Path) -> list[Path]:
    return record_files(folder / "records")


def _best(folder: Path, name: str | None, report: Report) -> Path:
    records = {file.stem: read_record(file) for file in _records(folder)}
    names = sorted({str(record["name"]) for record in records.values()})
    if name is None and len(names) > 1:
        raise UsageError(f"{folder}: has several networks, write which: {' or '.join(str(folder / known) for known in names)}")
    if name is not None and name not in names:
        raise UsageError(f"{folder}: no network there is called {name}; there are: {', '.join(names)}")
    dices = {unit: dice for unit, r in records.items() if r["name"] == (name or names[0]) and (dice := _validated(r)) is not None}
    if not dices:
        raise InputError(f"{folder}: no record there has a validation to choose a fold by; name a model file")
    chosen = max(sorted(dices), key=lambda unit: dices[unit])
    model = folder / "runs" / chosen / "model.uxnet"
    if not model.is_file():
        raise InputError(f"{model}: is not there, but {chosen} did best in its validation; put it back, or name another model's file")
    others = ", ".join(f"{unit} {dice:.4f}" for unit, dice in sorted(dices.items()) if unit != chosen)
    report(Note(f"{folder}: {chosen} did best in its validation ({dices[chosen]:.4f}; others: {others or 'none'}); its model is taken"))
    return model


def _validated(record: Mapping[str, Any]) -> float | None:
    """The validation Dice of the weights that were kept; None where the last steps were not validated."""
    found = [point["dice"] for point in record.get("curve") or [] if point["step"] == record.get("kept_step")]
    return None if not found or found[-1] is None else float(found[-1])
