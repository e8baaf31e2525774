"""Recipes as TOML: in the box, on disk, and changed key by key."""

from __future__ import annotations

import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from uxnet.errors import RecipeError, UsageError, shortened, shown
from uxnet.recipe.limits import check, check_length, number, whole
from uxnet.recipe.settings import Network, Recipe


def recipe_names() -> list[str]:
    """The names of the recipes in the box."""
    return sorted(f.name.removesuffix(".toml") for f in _box().iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe in the box by its name, or one on disk by its path.

    Raises:
        UsageError: if it is no file and there is none of that name.
        RecipeError: if a file here has the name of one in the box, the file cannot be read or is no TOML, or a key is unknown or has a
            wrong value; the message names file and key.
    """
    path = Path(name_or_path)
    if str(name_or_path) in recipe_names() and path.is_file():
        raise RecipeError(f"{path}: a recipe in the box, and a file here; write ./{path} for the file, or rename it")
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from error
    elif str(name_or_path) in recipe_names():
        text = (_box() / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        raise UsageError(f"there is no recipe {str(name_or_path)!r}; in the box are {', '.join(recipe_names())}, or give a .toml file")
    try:
        return recipe_from_dict(tomllib.loads(text))
    except (ValueError, RecipeError) as error:  # no TOML, or whole numbers of more digits than Python reads
        raise RecipeError(f"recipe {name_or_path}: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"recipe {name_or_path}: it is nested too deeply") from error


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as TOML or JSON give them.

    Raises:
        RecipeError: naming the key that is unknown, missing or wrong.
    """
    recipe: Recipe = _parse(Recipe, data, "")
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values; keys that are None are left out, and those that came `later` at their default."""
    data: dict[str, Any] = _plain(recipe)
    return data


def from_plain(kind: type[Any], data: Mapping[str, Any]) -> Any:
    """Plain values, as TOML or JSON give them, as a frozen dataclass of numbers, words, tuples and such dataclasses.

    Raises:
        RecipeError: naming the key that is unknown, missing or wrong.
    """
    return _parse(kind, data, "")


def to_plain(value: Any) -> Any:
    """A frozen dataclass as the plain values that `from_plain` takes; what is None is left out."""
    return _plain(value)


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every key written out but for those that came `later`, at their default."""
    return tomli_w.dumps(recipe_to_dict(recipe))


def complete_toml(recipe: Recipe) -> str:
    """The recipe as TOML with every key of it and every setting of its networks, so that it means the same whatever defaults become.

    Imports torch, whose room knows the settings.
    """
    return tomli_w.dumps(_plain(_complete(recipe), later=True))


def _complete(recipe: Recipe) -> Recipe:
    from uxnet.networks.build import every_setting  # its room imports torch

    stages = (
        replace(stage, network=Network(stage.network.name, every_setting(stage.network.name, stage.network.settings)))
        for stage in recipe.stages
    )
    return replace(recipe, stages=tuple(stages))


def other_keys(there: Recipe, here: Recipe) -> str:
    """In which keys two recipes differ, with both values; empty where they mean the same, whether defaults are written out or not."""
    a, b = (_leaves(_plain(_complete(recipe), later=True)) for recipe in (there, here))
    differ = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    return shortened((f"{key} is {a.get(key, 'not set')} there and {b.get(key, 'not set')} here" for key in differ), 3)


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Dotted keys -> values, as TOML writes them."""
    parts: Iterable[tuple[str, Any]]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        parts = ((str(n), item) for n, item in enumerate(value))
    else:
        return {key: tomli_w.dumps({"": value}).partition("=")[2].strip()}
    return {name: leaf for part, item in parts for name, leaf in _leaves(item, f"{key}.{part}".lstrip(".")).items()}


def with_network(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another network in every stage, with that network's own settings: the recipe's were the other one's.

    Raises:
        UsageError: if there is no such network.
    """
    from uxnet.networks.build import check_asked  # its room imports torch

    check_asked(name)
    return replace(recipe, stages=tuple(replace(stage, network=Network(name)) for stage in recipe.stages))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with keys set anew.

    Args:
        overrides: "KEY=VALUE" each; VALUE as TOML writes it, quotes around a word may be left out. KEY is a path, such as
            "training.steps", "network.settings.widths" or "stages.1.training.steps"; without "stages.N." it means every stage.

    Raises:
        UsageError: for an unknown key or a wrong value.
    """
    data = recipe_to_dict(recipe)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"{override!r} is no override; write KEY=VALUE, for example training.steps=500")
        parts = key.strip().split(".")
        value = toml_value(text.strip())
        if parts[0] in data and parts[0] != "stages":
            targets: list[tuple[Any, list[str]]] = [(data, parts)]
        elif parts[0] == "stages":
            if len(parts) < 3 or not parts[1].isdigit() or int(parts[1]) >= len(data["stages"]):
                raise UsageError(f"{key}: write stages.N.KEY with N from 0 to {len(data['stages']) - 1}")
            targets = [(data["stages"][int(parts[1])], parts[2:])]
        else:
            targets = [(stage, parts) for stage in data["stages"]]
        for target, path in targets:
            for part in path[:-1]:
                target = target.setdefault(part, {})
                if not isinstance(target, dict):
                    raise UsageError(f"{key}: {part} has no keys of its own")
            target[path[-1]] = value
    try:
        changed = recipe_from_dict(data)
    except RecipeError as error:
        raise UsageError(str(error)) from error
    if any(override.partition("=")[0].strip().endswith("network.settings.size") for override in overrides):
        _refuse_idle_size(changed)
    return changed


def _refuse_idle_size(recipe: Recipe) -> None:
    """Refuses a size that changes nothing, since a recipe (a run's, with everything written out) gives all that it stands for."""
    from uxnet.networks.build import idle_size  # its room imports torch

    for stage in recipe.stages:
        if given := idle_size(stage.network.name, stage.network.settings):
            raise UsageError(f"network.settings.size: changes nothing, since the recipe gives {given}; set these, or name the network anew")


def _box() -> Any:
    return resources.files("uxnet") / "recipes"


def toml_value(text: str) -> Any:
    """A value as TOML writes it, quotes around a word may be left out."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # a bare word


def _plain(value: Any, *, later: bool = False) -> Any:
    """Plain values; `later` keeps keys that came later and have their default."""
    if is_dataclass(value):
        items = ((f, getattr(value, f.name)) for f in fields(value))
        kept = ((f.name, item) for f, item in items if later or not (f.metadata.get("later") and item == f.default))
        return {name: _plain(item, later=later) for name, item in kept if item is not None}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, later=later) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, later=later) for v in value]
    return value


def _parse(kind: Any, value: Any, key: str) -> Any:
    """`value` as `kind` (a type annotation of the classes above), or a RecipeError that names `key`."""
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, key)
    if origin in (Union, types.UnionType):
        inner = [k for k in get_args(kind) if k is not type(None)]
        return None if value is None else _parse(inner[0], value, key)
    if origin is Literal:
        check(value in get_args(kind), key, f"{shown(value)} is none of {', '.join(map(repr, get_args(kind)))}")
        return value
    if origin is tuple:
        inner = list(get_args(kind))
        check(isinstance(value, list | tuple), key, f"expected a list, got {shown(value)}")
        check_length(value, key)
        if inner[-1] is Ellipsis:
            inner = [inner[0]] * len(value)
        check(len(value) == len(inner), key, f"expected {len(inner)} values, got {len(value)}")
        return tuple(_parse(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return number(value, key)
    if origin is not None:  # Mapping[str, Any]
        check(isinstance(value, Mapping), key, f"expected a table, got {shown(value)}")
        return dict(value)
    if kind is float and isinstance(value, float):
        check(value == value and abs(value) != float("inf"), key, "must be a finite number")
    check(type(value) is kind, key, f"expected {_NAMES.get(kind, kind)}, got {shown(value)}")
    return whole(value, key) if kind is int else value


_NAMES = {int: "a whole number", float: "a number", str: "a word in quotes", bool: "true or false"}


def _parse_dataclass(kind: Any, value: Any, key: str) -> Any:
    check(isinstance(value, Mapping), key or "recipe", f"expected a table, got {shown(value)}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    here = f"{key}." if key else ""
    for name in value:
        check(name in names, f"{here}{str(name)[:80]}", f"unknown key; known are {', '.join(names)}")
    parsed = {name: _parse(hints[name], value[name], f"{here}{name}") for name in names if name in value}
    check(kind is not Recipe or "name" in parsed, "name", "a recipe needs a name")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING and f.name not in parsed]
    check(not needed, f"{here}{needed[0] if needed else ''}", "is missing")
    try:
        return kind(**parsed)
    except RecipeError as error:
        raise RecipeError(f"{here}{error}") from error
