"""Recipes: everything that decides what a training run or a prediction does."""

from uxnet.recipe.settings import (
    Augmentation,
    Inference,
    Intensity,
    Loss,
    Network,
    Optimiser,
    Preparation,
    Prior,
    Recipe,
    Sampling,
    Schedule,
    Stage,
    Training,
)
from uxnet.recipe.toml import (
    load_recipe,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
    recipe_to_toml,
    with_network,
    with_overrides,
)

__all__ = [
    "Augmentation",
    "Inference",
    "Intensity",
    "Loss",
    "Network",
    "Optimiser",
    "Preparation",
    "Prior",
    "Recipe",
    "Sampling",
    "Schedule",
    "Stage",
    "Training",
    "load_recipe",
    "recipe_from_dict",
    "recipe_names",
    "recipe_to_dict",
    "recipe_to_toml",
    "with_network",
    "with_overrides",
]
