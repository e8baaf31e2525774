"""What a recipe is known by in runs, records and checkpoints: canonical JSON, whatever wrote its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from uxnet.recipe.settings import Recipe
from uxnet.recipe.toml import recipe_to_dict, recipe_to_toml


def canonical_json(recipe: Recipe) -> str:
    """The recipe as JSON that depends on its values alone: keys sorted, no spaces, and one form for each number (1.0 is 1)."""
    return json.dumps(_canonical(recipe_to_dict(recipe)), sort_keys=True, separators=(",", ":"), default=str)


def recipe_sha256(recipe: Recipe) -> str:
    """The hash of the canonical JSON."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


def earlier_sha256(recipe: Recipe) -> str:
    """What versions before canonical JSON knew the recipe by: the hash of its text in TOML."""
    return hashlib.sha256(recipe_to_toml(recipe).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
