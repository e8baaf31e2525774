"""Whether predictions are of cases that their model was trained on: such scores say little."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from uxnet.errors import InputError, shortened
from uxnet.evaluation.pairs import folder_of
from uxnet.events import Report, Warn
from uxnet.io import read_json
from uxnet.io.checked import read_as
from uxnet.io.schemas import PredictedBy
from uxnet.model import cases_seen, read_model


def warn_of_seen(predicted: Path, reference: Path, cases: Iterable[str], report: Report) -> None:
    """Warns of scored cases that a model was trained on.

    It is known of predictions beside which `uxnet predict` has left its predict.json, as long as the model's file is where it was, and of
    references below a dataset.json: cases are told by their names in a dataset of one name.

    Args:
        predicted, reference: label maps, or folders of them.
        cases: the names of those that are scored.
    """
    dataset, names = _dataset_of(folder_of(reference)), set(cases)
    for file in _models_of(folder_of(predicted)):
        try:
            model = read_model(file)
        except InputError:
            continue
        if seen := sorted(names & cases_seen(model, dataset)):
            which = f"{len(seen)} of these {len(names)} cases ({shortened(seen, 3)})"
            report(Warn(f"{file.name} was trained on {which}: their scores do not say how good it is on others"))


def _models_of(folder: Path) -> list[Path]:
    """The model files that predict.json names; none where it is not there, or not as expected."""
    try:
        return [Path(model.file) for model in read_as(folder / "predict.json", PredictedBy).models]
    except InputError:
        return []


def _dataset_of(folder: Path) -> str | None:
    """The name of the dataset whose references lie in a folder, as `read_dataset` reads it."""
    for root in (folder, folder.parent):
        try:
            data = read_json(root / "dataset.json")
        except InputError:
            continue
        return str(data.get("name") or data.get("dataset_name") or root.name)
    return None
