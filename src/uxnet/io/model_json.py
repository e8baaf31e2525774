"""What is read of model.json, the description in a model file, as types."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from uxnet.io.schemas import Count, Number, Whole


class Trained(Struct):
    """How far a stage was trained."""

    step: Whole | None = None
    steps: Whole | None = None


class Validated(Struct):
    """How a stage's weights did in their validation."""

    dice: Number | None = None
    classes: dict[str, Number | None] = {}


class TrainedStage(Struct):
    """A stage's training."""

    training: Trained = field(default_factory=Trained)
    validation: Validated = field(default_factory=Validated)


class DataHash(Struct):
    """Of a dataset's fingerprint, what it holds."""

    sha256: str | UnsetType = UNSET


class TrainedOn(Struct):
    """The dataset that a model was trained on."""

    name: str | UnsetType = UNSET
    licence: str | None = None
    fingerprint: DataHash | UnsetType = UNSET


class TrainedSplit(Struct):
    """The cases of a model's fold."""

    train: list[str] = []
    validation: list[str] = []
    test: list[str] = []
    fold: Whole | str = ""


class Converted(Struct):
    """The file that a model was converted from."""

    file: str
    sha256: str
    preparation: str


class BegunWith(Struct):
    """The model whose weights a training began with."""

    model: str
    sha256: str
    summary: str


class Teacher(Struct):
    """A model that a training learnt from."""

    model: str
    sha256: str


class Seen(Struct):
    """Cases of a dataset that had a part in a model's weights, and their label maps by hash."""

    dataset: str | None
    fingerprint: str | None
    cases: list[str]
    label_maps: list[str] = []


class Provenance(TrainedStage):
    """Where a model came from."""

    stages: list[TrainedStage] | UnsetType = UNSET
    versions: dict[str, Any] = {}
    precision: str | UnsetType = UNSET
    dataset: TrainedOn | UnsetType = UNSET
    split: TrainedSplit | UnsetType = UNSET
    converted: Converted | UnsetType = UNSET
    init_from: BegunWith | UnsetType = UNSET
    teachers: list[Teacher] = []
    train_label_maps: list[str] = []
    seen: list[Seen] = []


class StageWeights(Struct):
    """The weights of a stage of a model."""

    network: str
    weights: str
    sha256: str
    parameters: Count


class ModelDescription(Struct):
    """model.json of a model file."""

    uxnet: str
    name: str
    channels: list[str]
    labels: dict[str, Any]
    stages: list[StageWeights]
    recipe: dict[str, Any]
    provenance: Provenance


class VariantDice(Struct):
    """What another form of a network costs."""

    float32: Number
    int8: Number
    cases: Count


class Variant(Struct):
    """Another form of a network, of an engine that may not be known."""

    engine: str
    precision: str
    stage: Count
    window: list[Whole]
    files: dict[str, Any]
    weights_sha256: str
    made_with: dict[str, Any] = {}
    dice: VariantDice | UnsetType = UNSET
