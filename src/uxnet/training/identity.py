"""What a run is known by: checkpoints hold it, so that those of another run are not taken for its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uxnet.dataset.check import Inspection
from uxnet.dataset.folds import Fold
from uxnet.errors import CheckpointError
from uxnet.recipe import Recipe, recipe_to_toml
from uxnet.recipe.identity import canonical_json
from uxnet.training.checkpoint import same_run, weights_header
from uxnet.training.content import content_hash
from uxnet.training.distil import Teachers


def run_identity(
    out: Path, recipe: Recipe, inspection: Inspection, fold: Fold, origin: Mapping[str, Any] | None, teachers: Teachers | None
) -> str:
    """Hashes of what decides the weights: of the recipe, the labels, the cases on each side, the weights to begin with and those of
    teachers; and, after a "+", of what the cases hold. A run that an earlier version began keeps the identity that it had there."""
    # Whose weights, and which of them were made to fit how: the model's file may have another name by now.
    begun = [[weights_of(origin), [stage["adapted"] for stage in origin["stages"]]]] if origin else []
    taught = [{"taught": [teacher["weights_sha256"] for teacher in teachers.origin]}] if teachers else []
    content = content_hash(inspection, (*fold.train, *fold.validation))

    def of(recipe_text: str) -> str:
        text = json.dumps([recipe_text, inspection.manifest.labels.to_dict(), fold.train, fold.validation, *begun, *taught])
        return f"{hashlib.sha256(text.encode()).hexdigest()}+{content}"

    earlier = of(recipe_to_toml(recipe))
    return earlier if any(same_run(found, earlier) for found in _identities_there(out)) else of(canonical_json(recipe))


def _identities_there(out: Path) -> list[Any]:
    """The identities in the checkpoints of a run's folder. One that is damaged is for whoever needs it to say."""
    found = []
    for file in (*out.glob("checkpoints/*.safetensors"), *out.glob("stage_*/checkpoints/*.safetensors")):
        with contextlib.suppress(CheckpointError):
            found.append(weights_header(file).get("identity"))
    return found


def weights_of(origin: Mapping[str, Any]) -> list[str]:
    """The hashes of the weights that a run begins with, see `begin_from`: one a stage, none for fresh ones."""
    return [str(stage.get("weights_sha256")) for stage in origin.get("stages", [])]
