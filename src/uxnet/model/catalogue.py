"""The models in the box: NAME.uxnet and its card, NAME.toml, in one folder of the package (or in any other folder).

A card belongs to one file, whose hash it holds. It says what the model segments, what it was trained on and under which licence, how
well it does on what, and where it fails. Where the model knows only a part of a scan, the card's table `[whole]` says how that part is
found in a whole one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w

import uxnet
from uxnet.errors import InputError, ModelError, RecipeError, UsageError
from uxnet.io import atomic, is_nifti, sha256
from uxnet.recipe import Recipe, from_plain, load_recipe, recipe_names, to_plain

SCHEMA = 1
BOX = Path(uxnet.__file__).parent / "models"
MOST_BYTES = 15_000_000
"""Larger files do not go into the box: everyone who installs the package downloads it."""

NOT_A_DEVICE = "Not a medical device: for research, and not for diagnosis or treatment."
Range = tuple[float, float]


@dataclass(frozen=True)
class Data:
    """What a model was trained on, and what has to be said of it wherever the weights go."""

    name: str
    licence: str
    attribution: str = ""
    cases: int = 0
    persons: int = 0


@dataclass(frozen=True)
class Training:
    """How: the recipe and network by name, learnt numbers, steps and batch of each stage, and the split in words."""

    recipe: str
    network: str
    parameters: int
    steps: tuple[int, ...]
    batch: tuple[int, ...]
    precision: str
    split: str
    weights: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class Score:
    """Of one structure ("mean": of all): each metric as (mean, low, high), (mean,) without an interval, or () if never scored."""

    structure: str
    dice: tuple[float, ...] = ()
    hd95_mm: tuple[float, ...] = ()
    nsd: tuple[float, ...] = ()


@dataclass(frozen=True)
class Failure:
    """One of the worst cases: its mean Dice, and what went wrong."""

    case: str
    dice: float
    what: str


@dataclass(frozen=True)
class Evaluation:
    """Scores on cases of which `what` says how they stand to the training.

    persons: 0 where it is not known whose the cases are.
    by: what the intervals were drawn over.
    failures: the worst cases, the worst first.
    """

    what: str
    cases: int
    persons: int
    by: Literal["case", "person"]
    tolerance_mm: float
    scores: tuple[Score, ...]
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Whole:
    """How a structure that is on both sides is found in a whole scan by another model, and segmented by one that knows crops.

    localiser: a model in the same box, of labels `sides`.
    sides: the localiser's labels for left and right.
    known: the side whose crops the model was trained on; crops of the other are mirrored for it, and its answers back.
    naming: of the labels, with {side} and {label} to be filled in.
    crop_mm: the crop, from the structure's centroid: (least, most) to the right, to the front and to the top, of the known side.
    largest_crop_mm: a scan none of whose sides is longer is a crop already.
    distance_mm: between the two centroids, what is plausible.
    volume_ml: of each side, what is plausible.
    """

    localiser: str
    sides: tuple[str, str]
    known: Literal["left", "right"]
    naming: str
    crop_mm: tuple[Range, Range, Range]
    largest_crop_mm: float
    distance_mm: Range
    volume_ml: Range


@dataclass(frozen=True)
class Domain:
    """What scans a model was made for. What is empty is not checked.

    sides_mm: of the extent of a scan, from its shortest side to its longest: (least, greatest) of each of the three.
    spacing_mm: (least, greatest) side of a voxel.
    hounsfield: of each channel, whether its values are Hounsfield units (CT, air at -1000); None where neither can be said.
    """

    sides_mm: tuple[Range, ...] = ()
    spacing_mm: Range | None = None
    hounsfield: tuple[bool | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sides_mm) not in (0, 3):
            raise RecipeError(f"sides_mm: expected the ranges of three sides, got {len(self.sides_mm)}")


@dataclass(frozen=True)
class Card:
    """What everyone should know who uses a model; TOML on disk.

    sha256: of the model's file.
    input: what it expects, in words; `domain` says it in numbers, by which scans are checked.
    made_by: the commands, in their order.
    """

    title: str
    description: str
    sha256: str
    structures: tuple[str, ...]
    licence: str
    intended_use: str
    input: str
    data: Data
    training: Training
    evaluation: Evaluation
    not_for: str = NOT_A_DEVICE
    limits: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()
    domain: Domain | None = None
    whole: Whole | None = None
    schema: int = field(default=SCHEMA)


@dataclass(frozen=True)
class Chosen:
    """What a command line means: model files, what is left of its words, and `[whole]` of the first model whose card has one.

    box: where that card's localiser is: the folder of the model, in a box or not.
    """

    models: tuple[Path, ...]
    rest: tuple[Path, ...]
    whole: Whole | None
    box: Path


def names(box: Path | None = None) -> list[str]:
    """The names of the models in the box."""
    return sorted(path.stem for path in (box or BOX).glob("*.uxnet") if not path.name.startswith("."))


def model_file(name: str, box: Path | None = None) -> Path:
    """The file of a model in the box.

    Raises:
        ModelError: if there is none of that name; the message lists those that there are.
    """
    if name not in names(box):
        raise ModelError(no_such(name, box))
    return (box or BOX) / f"{name}.uxnet"


def read_card(name: str, box: Path | None = None) -> Card:
    """The card of a model in the box.

    Raises:
        ModelError: if there is no such model, its card is missing or not as expected, or is another file's.
    """
    model = model_file(name, box)
    path = model.with_suffix(".toml")
    try:
        card: Card = from_plain(Card, tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ModelError(f"{model}: its card {path.name} is missing beside it") from error
    except (OSError, ValueError, RecursionError, RecipeError) as error:
        raise ModelError(f"{path}: not as a card should be ({error})") from error
    if card.schema != SCHEMA:
        raise ModelError(f"{path}: a card of schema {card.schema}, this version of uxnet reads {SCHEMA}")
    if card.sha256 != sha256(model):
        raise ModelError(f"{path}: it is the card of another file than {model.name} (their sha256 differ); make it anew")
    return card


def write_card(path: Path, card: Card) -> None:
    """Writes a card, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(tomli_w.dumps(to_plain(card)), encoding="utf-8")


def choose(words: Sequence[Path], box: Path | None = None) -> Chosen:
    """Which words name models: .uxnet files, the folders of training runs, and names in the box of which there is no file or folder.

    The path of a model in the box means what its name does. Of other files a card counts if it lies beside them and holds their hash.

    Raises:
        InputError: if none does; it says what was taken for what.
        ModelError: if the card of a model in the box is not as it should be.
    """
    here = box or BOX
    words = [_of_run(word) or word for word in words]
    boxed = [word for word in words if _is_name(word) and word.name in names(box) and not word.exists()]
    models = [word for word in words if word.suffix == ".uxnet" or word in boxed]
    if not models:
        raise _no_model(words, box)
    files = tuple(model_file(word.name, box) if word in boxed else word for word in models)
    cards = [(file.parent, card_of(file, here)) for file in files]
    whole, found_in = next(((card.whole, folder) for folder, card in cards if card and card.whole), (None, here))
    return Chosen(files, tuple(word for word in words if word not in models), whole, found_in)


def resolve(word: Path, box: Path | None = None) -> Path:
    """The one model that a word means: a path as it is, that of a training run's folder, or a name in the box of which there is no file
    or folder.

    Raises:
        UsageError: if it is a name and there is no such model.
        ModelError: if a folder of that name hides it.
    """
    if of_run := _of_run(word):
        return of_run
    if not _is_name(word) or word.is_file():
        return word
    if word.exists():
        raise ModelError(_hidden(word, box) if word.name in names(box) else f"{word}: a folder is no model; give a .uxnet file")
    if word.name not in names(box):
        raise UsageError(no_such(word.name, box))
    return model_file(word.name, box)


def recipe_of(word: str | Path, box: Path | None = None) -> Recipe:
    """A recipe by its name or file, or a model's own: that of a .uxnet file, of a run's folder, or of a model in the box by its name.

    A recipe goes before a model of that name. A model's recipe is without deep supervision, whose heads models leave out; a run's folder
    has it as it was trained.

    Raises:
        UsageError: if there is neither a recipe nor a model of that name.
        RecipeError: if a file cannot be read as a recipe.
        ModelError: if a model cannot be read.
    """
    from uxnet.model.file import read_model  # which whoever only asks for names does without

    path = Path(word)
    if str(word) in recipe_names() or path.suffix == ".toml":
        return load_recipe(word)
    if path.is_dir() and (path / "recipe.toml").is_file():
        return load_recipe(path / "recipe.toml")
    if path.suffix == ".uxnet" or (_is_name(path) and path.name in names(box) and not path.exists()):
        return read_model(resolve(path, box)).recipe
    try:
        return load_recipe(word)
    except UsageError as error:
        raise UsageError(
            f"{error}, or a model, whose own recipe is taken: a .uxnet file, a run's folder, or one {in_the_box(box)}"
        ) from error


def no_such(name: str, box: Path | None) -> str:
    """What is said to whoever names a model that there is not."""
    return f"there is no model {name!r} {in_the_box(box)}; give one of them, or a .uxnet file"


def _of_run(word: Path) -> Path | None:
    """The model in the folder of a training run; None for any other word."""
    model = word / "model.uxnet"
    return model if word.is_dir() and (word / "recipe.toml").is_file() and model.is_file() else None


def in_the_box(box: Path | None = None) -> str:
    """What there is, in words: "in the box (a, b)"."""
    where = "in the box" if box in (None, BOX) else f"in {box}"
    return f"{where} ({', '.join(names(box)) or 'it is empty'})"


def card_of(file: Path, box: Path | None = None) -> Card | None:
    """The card of a model's file: every one in the box must have one; elsewhere what lies beside it may be anything.

    Raises:
        ModelError: if the card of a model in the box is not as it should be.
    """
    box = box or BOX
    if file.parent.resolve() == box.resolve() and file.stem in names(box):
        return read_card(file.stem, box)
    try:
        return read_card(file.stem, file.parent)
    except ModelError:
        return None


def _is_name(word: Path) -> bool:
    """Whether a word could be a model's name: one part, and no file's."""
    return len(word.parts) == 1 and word.suffix not in (".uxnet", ".json") and not is_nifti(word)


def _no_model(words: Sequence[Path], box: Path | None) -> InputError:
    hidden = [word for word in words if _is_name(word) and word.name in names(box)]
    if hidden:
        return InputError(_hidden(hidden[0], box))
    unknown = [word for word in words if _is_name(word) and not word.exists()]
    if unknown:
        return UsageError(f"no model: there is no file {unknown[0]}, and no model of that name {in_the_box(box)}")
    return UsageError(f"no model: name at least one .uxnet file, or a model {in_the_box(box)}, before what is to be segmented")


def _hidden(word: Path, box: Path | None) -> str:
    what = "folder" if word.is_dir() else "file"
    return (
        f"no model: a {what} {word} is here and is taken instead of the model of that name {in_the_box(box)}; "
        f"write its file's path ({model_file(word.name, box)}), or call the command in another folder"
    )
