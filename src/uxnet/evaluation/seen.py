"""Whether predictions are of cases that their model was trained on: such scores say little."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from uxnet.errors import InputError, plural, shortened
from uxnet.evaluation.pairs import folder_of
from uxnet.events import Report, Warn
from uxnet.io import read_json, sha256
from uxnet.io.checked import as_kind, read_as
from uxnet.io.schemas import PredictedBy, PredictedModel
from uxnet.model.catalogue import BOX
from uxnet.model.file import cases_among, read_model, seen_by


def warn_of_seen(predicted: Path, reference: Path, label_maps: Mapping[str, str], report: Report) -> tuple[str, ...]:
    """Warns of scored cases that a model was trained on, and gives their names.

    It is known of predictions beside which `uxnet predict` has left its predict.json: what its models have seen stands there. Cases are
    told by their names, where a dataset.json above the references has the name of the model's dataset, and by their label maps.

    Args:
        predicted, reference: label maps, or folders of them.
        label_maps: of each scored case the sha256 of its reference's voxels; empty where it shows no class.
    """
    dataset, found = _dataset_of(folder_of(reference)), set()
    for name, seen in _models_of(folder_of(predicted)):
        if known := sorted(label_maps.keys() & cases_among(seen, dataset, label_maps=label_maps)):
            which = f"{len(known)} of these {plural(len(label_maps), 'case')} ({shortened(known, 3)})"
            report(Warn(f"{name} was trained on {which}: their scores do not say how good it is on others"))
            found.update(known)
    return tuple(sorted(found))


def _models_of(folder: Path) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """The name of each model that a predict.json (or a shard's) tells of, once, and what it has seen."""
    entries: list[Any] = []
    for path in sorted(folder.glob("predict*.json")):
        with contextlib.suppress(InputError):
            entries += read_as(path, PredictedBy).models
    told = set()
    for entry in entries:
        try:
            model = as_kind(entry, PredictedModel)
        except ValueError:
            continue
        if (content := model.sha256 or model.file) not in told:
            told.add(content)
            yield Path(model.file).name, [asdict(part) for part in model.seen] or _read(Path(model.file), model.sha256, folder)


def _read(file: Path, content: str | None, folder: Path) -> list[dict[str, Any]]:
    """What the model's own file says, where earlier versions of predict.json do not: wherever a file of that content still is.

    A path that is not absolute began in the folder in which the prediction was called, which may be any above its outputs.
    """
    places = [file, *(above / file for above in (folder, *folder.parents)), BOX / file.name]
    for place in places if content else places[:1]:
        try:
            if place.is_file() and content in (None, sha256(place)):
                return seen_by([read_model(place)])
        except (InputError, OSError, ValueError):
            continue
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
