"""Recipes: everything that decides what a training run or a prediction does, as frozen dataclasses that are TOML on disk.

    Recipe
    `-- stages: one, or two for the method of RAP-Net, the second with a `prior`
        |-- network      which one, and its settings
        |-- prepare      orientation, spacing, intensity, crop
        |-- sampling     patches
        |-- augment      what is done to a batch
        |-- loss, optimiser, schedule, training
        `-- inference    windows and how they are blended

Recipes in the box are named (`hippocampus`, `phantom`); others are paths of TOML files. Any key can be overridden:
`with_overrides(recipe, ["training.steps=500"])`.
"""

from __future__ import annotations

import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from uxnet.errors import RecipeError

SCHEMA = 1
Three = tuple[float, float, float]


def _check(ok: bool, key: str, message: str) -> None:
    if not ok:
        raise RecipeError(f"{key}: {message}")


@dataclass(frozen=True)
class Network:
    """Which network, by its name in `networks.build`, and its settings as keyword arguments."""

    name: str = "uxnet"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        none = [key for key, value in self.settings.items() if value is None]
        _check(not none, f"settings.{none[0] if none else ''}", "TOML has no none; write false, or leave the key out")


@dataclass(frozen=True)
class Intensity:
    """How one channel's intensities are brought to the range that networks like; the steps run in this order.

    clip: limits that the values are first clipped to (a CT window); empty for none.
    scale: "range" takes `clip` to 0..1; "percentile" takes the `low`-th and `high`-th percentile to 0..1 and clips (paper, A.1);
        "zscore" subtracts the mean and divides by the standard deviation; "none" leaves the values.
    low, high: the percentiles; for "zscore", values outside them are clipped first, so that a few bright voxels do not decide.
    nonzero: take percentiles, mean and deviation over voxels that are not 0 (skull-stripped or masked images).
    """

    clip: tuple[float, ...] = ()
    scale: Literal["range", "percentile", "zscore", "none"] = "zscore"
    low: float = 0.0
    high: float = 100.0
    nonzero: bool = False

    def __post_init__(self) -> None:
        _check(len(self.clip) in (0, 2) and list(self.clip) == sorted(set(self.clip)), "clip", "give two rising limits, or none")
        _check(self.scale != "range" or len(self.clip) == 2, "scale", '"range" needs the limits in `clip`')
        _check(0 <= self.low < self.high <= 100, "low, high", "percentiles must rise and lie within 0..100")


@dataclass(frozen=True)
class Preparation:
    """From a scan to the network's grid and range.

    orientation: the patient axes of (i, j, k), as letters.
    spacing_mm: the spacing to resample to; empty keeps each scan's own.
    intensity: one entry for all channels, or one a channel.
    interpolation: of images.
    label_interpolation: of training labels: "nearest", or "by_class" (each class linearly, the strongest wins: smoother).
    crop_above: keep only the box of voxels whose original intensity (of any channel) is above this; None keeps everything.
    """

    orientation: str = "RAS"
    spacing_mm: tuple[float, ...] = ()
    intensity: tuple[Intensity, ...] = (Intensity(),)
    interpolation: Literal["linear", "cubic"] = "linear"
    label_interpolation: Literal["nearest", "by_class"] = "by_class"
    crop_above: float | None = None

    def __post_init__(self) -> None:
        letters = sorted("R" if c in "RL" else "A" if c in "AP" else "S" if c in "SI" else "?" for c in self.orientation)
        _check(letters == ["A", "R", "S"], "orientation", f'{self.orientation!r} is none; name each axis once, for example "RAS"')
        _check(len(self.spacing_mm) in (0, 3) and all(s > 0 for s in self.spacing_mm), "spacing_mm", "give three positive numbers, or none")
        _check(len(self.intensity) >= 1, "intensity", "give one entry for all channels, or one a channel")


@dataclass(frozen=True)
class Sampling:
    """Patches: `patch` voxels along (i, j, k); a share `foreground` of them holds a labelled voxel at a random place in the patch."""

    patch: tuple[int, int, int] = (96, 96, 96)
    foreground: float = 0.5

    def __post_init__(self) -> None:
        _check(min(self.patch) >= 1, "patch", "sides must be at least 1")
        _check(0 <= self.foreground <= 1, "foreground", "must lie within 0..1")


@dataclass(frozen=True)
class Augmentation:
    """What is done to a batch while training; every number 0 and no mirroring leaves it as it is.

    rotation_deg: largest angle about each of the axes (i, j, k), drawn uniformly from +-.
    scale: largest relative change of size, per axis where `anisotropic`.
    affine_probability: the share of samples that are rotated and scaled.
    intensity_shift, intensity_scale: largest offset, in units of the sample's standard deviation, and relative change of contrast.
    gamma: largest change of the exponent's logarithm.
    noise: largest standard deviation of Gaussian noise, in units of the sample's.
    blur: largest standard deviation of Gaussian smoothing, in voxels.
    intensity_probability: the share of samples for each of the intensity changes.
    mirror: axes that may be mirrored, each with probability 1/2; off by default, since it trades left for right.
    """

    rotation_deg: Three = (0.0, 0.0, 0.0)
    scale: float = 0.0
    anisotropic: bool = False
    affine_probability: float = 1.0
    intensity_shift: float = 0.0
    intensity_scale: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    intensity_probability: float = 0.5
    mirror: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        for key in ("scale", "intensity_shift", "intensity_scale", "gamma", "noise", "blur"):
            _check(getattr(self, key) >= 0, key, "must not be negative")
        _check(self.scale < 1, "scale", "must be below 1")
        for key in ("affine_probability", "intensity_probability"):
            _check(0 <= getattr(self, key) <= 1, key, "must lie within 0..1")


@dataclass(frozen=True)
class Loss:
    """Dice + cross-entropy, each with its weight; `background` counts the background in the Dice term (as released)."""

    dice: float = 1.0
    cross_entropy: float = 1.0
    background: bool = True

    def __post_init__(self) -> None:
        _check(self.dice >= 0 and self.cross_entropy >= 0, "dice, cross_entropy", "weights must not be negative")
        _check(self.dice + self.cross_entropy > 0, "dice, cross_entropy", "one of them must be above 0")


@dataclass(frozen=True)
class Optimiser:
    """AdamW (Loshchilov & Hutter 2019)."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _check(self.learning_rate > 0, "learning_rate", "must be above 0")
        _check(self.weight_decay >= 0 and self.eps > 0, "weight_decay, eps", "must not be negative")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the run.

    "cosine": from the full rate to `floor` times it at the last step; "plateau": times `factor` whenever the validation Dice has not
    risen for `patience` validations (paper, table 4: 0.9 and 10); "constant". All after `warmup_steps` of linear rise.
    """

    kind: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup_steps: int = 0
    floor: float = 0.0
    factor: float = 0.9
    patience: int = 10

    def __post_init__(self) -> None:
        _check(self.warmup_steps >= 0 and self.patience >= 0, "warmup_steps, patience", "must not be negative")
        _check(0 <= self.floor <= 1 and 0 < self.factor < 1, "floor, factor", "must lie within 0..1")


@dataclass(frozen=True)
class Training:
    """Length, batch and numeric guard rails.

    precision: "auto" takes bfloat16 where the processor computes in it, else float32.
    clip_gradient: largest norm of the gradient; 0 for no clipping.
    absurd_gradient: a step whose gradient's norm is above this, or not finite, is skipped and counted.
    skips_in_a_row: so many skipped steps one after another stop the run.
    ema: decay of the running average of the weights that is validated and kept; 0 for none.
    keep: which weights become the model: those of the best validation, or the last ones (nothing chosen on the validation cases).
    """

    steps: int = 40_000
    batch: int = 2
    validate_every: int = 500
    checkpoint_every: int = 100
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0
    clip_gradient: float = 0.0
    absurd_gradient: float = 1e6
    skips_in_a_row: int = 20
    ema: float = 0.0
    keep: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "validate_every", "checkpoint_every", "skips_in_a_row"):
            _check(getattr(self, key) >= 1, key, "must be at least 1")
        _check(self.clip_gradient >= 0 and self.absurd_gradient > 0, "clip_gradient, absurd_gradient", "must not be negative")
        _check(0 <= self.ema < 1, "ema", "must lie within 0..1, below 1")


@dataclass(frozen=True)
class Inference:
    """The sliding window.

    patch: size of a window; empty takes the training patch's. A convolutional network takes larger ones than it was trained on.
    overlap: the least share of a side that neighbours have in common.
    blending: how much each voxel of a window counts.
    batch: windows computed at a time.
    skip_air: windows that hold nothing above `prepare.crop_above` are not computed, and are background.
    """

    patch: tuple[int, ...] = ()
    overlap: float = 0.5
    blending: Literal["gaussian", "constant"] = "gaussian"
    batch: int = 1
    skip_air: bool = False

    def __post_init__(self) -> None:
        _check(0 <= self.overlap < 1, "overlap", "must lie within 0..1, below 1")
        _check(self.batch >= 1, "batch", "must be at least 1")
        _check(len(self.patch) in (0, 3) and all(p >= 1 for p in self.patch), "patch", "give three sides of at least 1, or none")


@dataclass(frozen=True)
class Prior:
    """What makes a stage the second phase of RAP-Net (Lee et al., ISBI 2021): it is guided by the labels of the stage before it.

    Its network sees, beside the image, the mask of one structure as the stage before found it, and answers for that structure
    alone (two channels: not it, it). Patches lie around voxels of the mask; one network serves all structures.

    patches: windows a structure in prediction, each around a voxel of its mask; each voxel is decided by their majority.
    """

    patches: int = 50

    def __post_init__(self) -> None:
        _check(self.patches >= 1, "patches", "must be at least 1")


@dataclass(frozen=True)
class Stage:
    """One network, how its input is made, and how it is trained."""

    network: Network = Network()
    prepare: Preparation = Preparation()
    sampling: Sampling = Sampling()
    augment: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimiser: Optimiser = Optimiser()
    schedule: Schedule = Schedule()
    training: Training = Training()
    inference: Inference = Inference()
    prior: Prior | None = None

    def in_channels(self, channels: int) -> int:
        """Channels that the network takes, of a scan with so many."""
        return channels + (1 if self.prior else 0)

    def out_channels(self, classes: int) -> int:
        """Channels that the network gives, for labels with so many."""
        return 2 if self.prior else classes

    @property
    def window(self) -> tuple[int, int, int]:
        """The size of an inference window."""
        i, j, k = self.inference.patch or self.sampling.patch
        return (i, j, k)


@dataclass(frozen=True)
class Recipe:
    """A name, a sentence on what it is for, and its stages."""

    name: str
    description: str = ""
    schema: int = SCHEMA
    stages: tuple[Stage, ...] = (Stage(),)

    def __post_init__(self) -> None:
        _check(self.schema == SCHEMA, "schema", f"this version of uxnet reads schema {SCHEMA}, not {self.schema}")
        _check(len(self.stages) in (1, 2), "stages", "a recipe has one stage, or two: a coarse one and one that it guides")
        _check(self.stages[0].prior is None, "stages[0].prior", "nothing comes before the first stage that could guide it")
        for number, stage in enumerate(self.stages[1:], start=1):
            _check(stage.prior is not None, f"stages[{number}].prior", "a second stage is guided by the first: say how")


def recipe_names() -> list[str]:
    """The names of the recipes in the box."""
    return sorted(f.name.removesuffix(".toml") for f in _box().iterdir() if f.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe in the box by its name, or one on disk by its path.

    Raises:
        RecipeError: if there is none, it is no TOML, or a key is unknown or has a wrong value; the message names file and key.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml" or path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read as a recipe ({error})") from error
    elif str(name_or_path) in recipe_names():
        text = (_box() / f"{name_or_path}.toml").read_text(encoding="utf-8")
    else:
        raise RecipeError(f"there is no recipe {str(name_or_path)!r}; in the box are {', '.join(recipe_names())}, or give a .toml file")
    try:
        return recipe_from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecipeError) as error:
        raise RecipeError(f"recipe {name_or_path}: {error}") from error


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """A recipe from plain values, as TOML or JSON give them.

    Raises:
        RecipeError: naming the key that is unknown, missing or wrong.
    """
    recipe: Recipe = _parse(Recipe, data, "")
    return recipe


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values; keys that are None are left out."""
    data: dict[str, Any] = _plain(recipe)
    return data


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every key written out."""
    return tomli_w.dumps(recipe_to_dict(recipe))


def with_network(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another network in every stage, with that network's own settings: the recipe's were the other one's.

    Raises:
        RecipeError: if the name is empty.
    """
    _check(bool(name), "network.name", "must not be empty")
    return replace(recipe, stages=tuple(replace(stage, network=Network(name)) for stage in recipe.stages))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with keys set anew.

    Args:
        overrides: "KEY=VALUE" each; VALUE as TOML writes it, quotes around a word may be left out. KEY is a path, such as
            "training.steps", "network.settings.widths" or "stages.1.training.steps"; without "stages.N." it means every stage.

    Raises:
        RecipeError: for an unknown key or a wrong value.
    """
    data = recipe_to_dict(recipe)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise RecipeError(f"{override!r} is no override; write KEY=VALUE, for example training.steps=500")
        parts = key.strip().split(".")
        value = _toml_value(text.strip())
        if parts[0] in data and parts[0] != "stages":
            targets: list[tuple[Any, list[str]]] = [(data, parts)]
        elif parts[0] == "stages":
            if len(parts) < 3 or not parts[1].isdigit() or int(parts[1]) >= len(data["stages"]):
                raise RecipeError(f"{key}: write stages.N.KEY with N from 0 to {len(data['stages']) - 1}")
            targets = [(data["stages"][int(parts[1])], parts[2:])]
        else:
            targets = [(stage, parts) for stage in data["stages"]]
        for target, path in targets:
            for part in path[:-1]:
                target = target.setdefault(part, {})
                if not isinstance(target, dict):
                    raise RecipeError(f"{key}: {part} has no keys of its own")
            target[path[-1]] = value
    return recipe_from_dict(data)


def _box() -> Any:
    return resources.files("uxnet") / "recipes"


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        items = ((f.name, getattr(value, f.name)) for f in fields(value))
        return {name: _plain(item) for name, item in items if item is not None}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
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
        _check(value in get_args(kind), key, f"{value!r} is none of {', '.join(map(repr, get_args(kind)))}")
        return value
    if origin is tuple:
        inner = list(get_args(kind))
        _check(isinstance(value, list | tuple), key, f"expected a list, got {value!r}")
        if inner[-1] is Ellipsis:
            inner = [inner[0]] * len(value)
        _check(len(value) == len(inner), key, f"expected {len(inner)} values, got {len(value)}")
        return tuple(_parse(k, v, f"{key}[{i}]") for i, (k, v) in enumerate(zip(inner, value, strict=True)))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is not None:  # Mapping[str, Any]
        _check(isinstance(value, Mapping), key, f"expected a table, got {value!r}")
        return dict(value)
    if kind is float and isinstance(value, float):
        _check(value == value and abs(value) != float("inf"), key, "must be a finite number")
    _check(type(value) is kind, key, f"expected {_NAMES.get(kind, kind)}, got {value!r}")
    return value


_NAMES = {int: "a whole number", float: "a number", str: "a word in quotes", bool: "true or false"}


def _parse_dataclass(kind: Any, value: Any, key: str) -> Any:
    _check(isinstance(value, Mapping), key or "recipe", f"expected a table, got {value!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    here = f"{key}." if key else ""
    for name in value:
        _check(name in names, f"{here}{name}", f"unknown key; known are {', '.join(names)}")
    parsed = {name: _parse(hints[name], value[name], f"{here}{name}") for name in names if name in value}
    _check(kind is not Recipe or "name" in parsed, "name", "a recipe needs a name")
    try:
        return kind(**parsed)
    except RecipeError as error:
        raise RecipeError(f"{here}{error}") from error
