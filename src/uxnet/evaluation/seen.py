"""Whether predictions are of cases that their model was trained on: such scores say little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uxnet.errors import InputError, plural, shortened
from uxnet.evaluation.pairs import folder_of
from uxnet.events import Report, Warn
from uxnet.io import read_json, sha256
from uxnet.model import cases_among, read_model, seen_by
from uxnet.shipped import BOX


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
    told = set()
    for path in sorted(folder.glob("predict*.json")):
        try:
            entries = read_json(path).get("models")
        except InputError:
            continue
        for entry in entries if isinstance(entries, list) else []:
            if not isinstance(entry, dict):
                continue
            content, file = entry.get("sha256"), entry.get("file")
            if not isinstance(file, str) or not isinstance(content, str | None) or (content or file) in told:
                continue
            told.add(content or file)
            yield Path(file).name, _stated(entry.get("seen")) or _read(Path(file), content, folder)


def _stated(seen: Any) -> list[Mapping[str, Any]]:
    """What predict.json says that a model has seen, as far as it is in order."""
    parts = [part for part in seen if isinstance(part, dict)] if isinstance(seen, list) else []
    return [
        {
            "dataset": part.get("dataset"),
            "fingerprint": part.get("fingerprint"),
            **{key: _texts(part.get(key)) for key in ("cases", "label_maps")},
        }
        for part in parts
    ]


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


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
