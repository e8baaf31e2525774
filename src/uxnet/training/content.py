"""What a run's cases hold, so that `--resume` does not go on with others: told by the inspection, which reads every voxel anyway."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from uxnet.dataset.cases import some
from uxnet.dataset.check import Inspection
from uxnet.errors import CheckpointError, DatasetError
from uxnet.io.checked import as_kind, read_as
from uxnet.io.schemas import InspectedContent

_SAID = {
    "image_sha256": "image",
    "labels_sha256": "label map",
    "spacing_mm": "spacing",
    "orientation": "orientation",
    "affine_ras": "affine",
}


def content_hash(inspection: Inspection, names: Iterable[str]) -> str:
    """A hash of the voxels of these cases' images and label maps, and of their grids."""
    cases = _now(inspection)
    return hashlib.sha256(json.dumps([[name, *map(cases[name].get, _SAID)] for name in sorted(names)]).encode()).hexdigest()


def refuse_changed_cases(file: Path, inspection: Inspection, names: Sequence[str]) -> None:
    """Holds the cases against the inspection that the run began with.

    Args:
        file: that inspection. What an earlier version did not write there is not compared; nothing is where there is no file.

    Raises:
        CheckpointError: naming the cases whose image, label map or grid is another.
        DatasetError: if the file is damaged.
    """
    if not file.is_file():
        return
    otherwise = "put the file back as it was, or train into another folder"
    before, now = _cases(read_as(file, InspectedContent, DatasetError, otherwise)), _now(inspection)
    changed = []
    for name in names:
        then = before.get(name, {})
        what = [said for key, said in _SAID.items() if then.get(key) and then[key] != now[name][key]]
        changed += [f"{name} ({', '.join(what)})"] if what else []
    if changed:
        raise CheckpointError(
            f"{file.parent}: {some(changed)} changed since the run there began, so it cannot go on; resume it with the dataset as it was, "
            "or train into another folder"
        )


def weights_hash(weights: Sequence[Mapping[str, Tensor]]) -> str:
    """A hash of the weights of some networks, by name."""
    digest = hashlib.sha256()
    for one in weights:
        for name, tensor in sorted(one.items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def _now(inspection: Inspection) -> dict[str, dict[str, Any]]:
    return _cases(as_kind(inspection.to_dict(), InspectedContent))


def _cases(inspection: InspectedContent) -> dict[str, dict[str, Any]]:
    """Case -> what is compared of it. A thousandth of a millimetre is no other grid: files are written in several precisions."""
    found = {}
    for case in inspection.fingerprint.cases:
        facts = {key: getattr(case, key) for key in _SAID}
        for key in ("spacing_mm", "affine_ras"):
            facts[key] = (np.round(facts[key], 3) + 0.0).tolist() if facts[key] else None
        found[case.name] = facts
    return found
