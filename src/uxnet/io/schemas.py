"""What is read of each JSON file, as types; `checked.read_as` holds a file against one.

Keys that a type does not name are passed over: later versions may write more. Keys with a default may be missing: earlier ones wrote less.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
"""A number that is finite; whole ones count, too."""

Share = Annotated[float, Meta(ge=0, le=1)]
Size = Annotated[float, Meta(ge=0, le=1e12)]
"""Of a volume or a distance."""

Whole = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]

# ---- scores: records of `uxnet crossval`, files of `uxnet evaluate`


class ClassScores(Struct):
    """Of one class in one case."""

    dice: Share | None
    hd95_mm: Size | None
    nsd: Share | None
    predicted_ml: Size | None = None
    reference_ml: Size | UnsetType = UNSET


class CaseScores(Struct):
    """Of one case."""

    case: str
    classes: dict[str, ClassScores]
    person: str | UnsetType = UNSET


class Scoring(Struct):
    """How cases were scored."""

    tolerance_mm: Size
    empty: str


class Failed(Struct):
    """A case that could not be scored."""

    case: str


class Evaluated(Struct):
    """metrics.json of `uxnet evaluate`."""

    settings: Scoring
    classes: dict[str, Any]
    cases: list[CaseScores]
    failures: list[Failed] = []
    cases_seen_in_training: list[str] = []


class Budget(Struct):
    """What each network of a cross-validation was given: seconds of so many threads, or steps of each stage."""

    core_seconds: Number | UnsetType = UNSET
    threads: Whole | UnsetType = UNSET
    steps: Annotated[list[Whole], Meta(min_length=1)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.steps is UNSET and UNSET in (self.core_seconds, self.threads):
            raise ValueError('expected "core_seconds" and "threads", or "steps"')


class Point(Struct):
    """A validation, in a curve."""

    step: Whole
    seconds: Number | None
    dice: Share | None


class Beginning(Struct):
    """The model that a network began with."""

    model: str
    weights_sha256: Annotated[list[str], Meta(min_length=1)]
    recipe: str
    dataset: str


class Machine(Struct):
    """What a network was trained on."""

    instructions: list[str] | None = None
    gpus: list[str] | None = None


class CrossvalRecord(Struct):
    """records/NAME-foldK.json of `uxnet crossval`."""

    name: str
    network: str
    recipe: str
    protocol: str
    dataset: str
    keep: str
    recipe_sha256: str
    split_sha256: str
    dataset_sha256: str
    fold: Whole
    settings: dict[str, Any]
    budget: Budget
    parameters: Whole
    gmac: Number
    patch: list[Whole]
    steps: Whole
    skipped_steps: Whole
    seconds_training: Number
    warnings: list[str]
    evaluation: Scoring
    cases: Annotated[list[CaseScores], Meta(min_length=1)]
    recipe_toml_sha256: str | None = None
    labels_sha256: str | None = None
    planned_steps: Whole | UnsetType = UNSET
    kept_step: Whole | None = None
    seconds_a_step: Number | None = None
    peak_memory_mb: Number | None = None
    peak_gpu_memory_mb: Number | None = None
    threads: Whole | None = None
    machine: Machine | None = None
    versions: dict[str, Any] | None = None
    init: Beginning | None = None
    curve: list[Point] | None = None


class Folds(Struct):
    """Of a split.json, its folds."""

    folds: Annotated[list[Any], Meta(min_length=1)]


# ---- a run's folder


class MetricsLine(Struct):
    """A line of metrics.jsonl: of a step, of a validation, or of a kind that later versions write."""

    kind: str
    step: Count
    loss: float | str | None = None  # what is not finite is written as a word
    learning_rate: float | str | None = None
    seconds: Number | None = None
    dice: Share | UnsetType | None = UNSET  # none where no class was there to be scored
    classes: dict[str, Share | None] | None = None

    def __post_init__(self) -> None:
        needed = {"step": ("loss", "learning_rate", "seconds"), "validation": ("dice", "classes")}
        for name in needed.get(self.kind, ()):
            if getattr(self, name) is (UNSET if name == "dice" else None):
                raise ValueError(f"{name} is missing")
        for value in (self.loss, self.learning_rate):
            float(value or 0)


class WarningLine(Struct):
    """A line of a unit's warnings.jsonl."""

    message: str


class Peaks(Struct):
    """memory.json of a unit."""

    peak_memory_mb: Number | None = None
    peak_gpu_memory_mb: Number | None = None


class TimeBudget(Struct):
    """budget.json: hours, and the steps that they came to."""

    hours: Number
    steps: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    seconds_a_step: Number
    seconds_a_validation: Number


class Begun(Struct):
    """begun.json: the steps of each stage that a run began with, where it was given others later."""

    steps: Annotated[list[Annotated[int, Meta(ge=1, le=2**63 - 1)]], Meta(min_length=1)]


class TransferredStage(Struct):
    """Of one stage."""

    weights_sha256: str | None = None


class Transfer(Struct):
    """transfer.json: what a run began with."""

    model: str
    stages: list[TransferredStage] = []


class InspectedCase(Struct):
    """What inspection.json says of a case's content; earlier versions said less."""

    name: str
    image_sha256: str | None = None
    labels_sha256: str | None = None
    spacing_mm: tuple[Number, Number, Number] | None = None
    orientation: str | None = None
    affine_ras: list[tuple[Number, Number, Number, Number]] | None = None


class InspectedCases(Struct):
    """The cases of an inspection."""

    cases: list[InspectedCase] = []


class InspectedContent(Struct):
    """inspection.json, as far as a run that goes on holds its cases against it."""

    fingerprint: InspectedCases = field(default_factory=InspectedCases)


class Extent(Struct):
    """Least and greatest along an axis."""

    minimum: Number
    maximum: Number


class Extents(Struct):
    """Along all axes."""

    sizes_vox: list[Extent]
    spacings_mm: list[Extent]


class Named(Struct):
    """A label."""

    name: str


class NamedLabels(Struct):
    """Labels by name."""

    foreground: list[Named]


class InspectedDataset(Struct):
    """inspection.json, as far as the paper's table of datasets needs it."""

    dataset: str
    channel_names: list[str]
    cases: Count
    labels: NamedLabels
    fingerprint: Extents


# ---- a cache


class CachedDescription(Struct):
    """NAME.json beside NAME.case."""

    key: str
    files: list[tuple[str, Whole, tuple[Whole, Whole], str]]
    arrays: dict[str, tuple[str, list[Count], Count]]
    places: list[Count]
    cut: list[tuple[Count, Count]]
    size: Count
    seal: str


# ---- predictions


class Written(Struct):
    """An output: its content and size."""

    sha256: str
    bytes: Count


class Figures(Struct):
    """What segmenting a scan took."""

    seconds: Number = 0.0
    peak_memory_mb: Whole | None = None
    windows: Whole | None = None
    threads: Whole | None = None  # that computed it
    keep: str = ""
    timings: dict[str, Number] = {}


class PredictedLine(Struct):
    """A line of predict.jsonl: outputs, and what they were made from."""

    name: str
    key: str
    finished: Number
    outputs: dict[str, Written]
    figures: Figures


class SeenCases(Struct):
    """Of a dataset, the cases whose labels had a part in a model's weights, and their label maps by hash."""

    dataset: str | None = None
    fingerprint: str | None = None
    cases: list[str] = []
    label_maps: list[str] = []


class PredictedModel(Struct):
    """A model of predict.json."""

    file: str
    sha256: str | None = None
    seen: list[SeenCases] = []


class PredictedBy(Struct):
    """predict.json, whose models (`PredictedModel`) made what lies beside it."""

    models: list[Any] = []


ScanTable = dict[str, str | list[str]]
"""A manifest of `uxnet predict`: name -> file, or its files of one channel each."""


# ---- synthetic images


class SynthesisRecord(Struct):
    """synthesis.json: maps -> the hash of each."""

    maps: dict[str, str]
    settings: dict[str, Any]
    merge: dict[str, Any]
