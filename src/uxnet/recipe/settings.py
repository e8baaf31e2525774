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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from uxnet.recipe.limits import MOST, check, check_patch, check_range, check_settings

SCHEMA = 1
_LARGEST = 1e30  # of intensities, whose squares float64 holds
_MOST_STEPS = 10**12
_MOST_OVERLAP = 0.9
Three = tuple[float, float, float]


def later(default: Any) -> Any:
    """A key that recipes did not have from the beginning.

    Where it has its default, files leave it out. So the hashes by which runs, checkpoints and records know their recipes stay what they
    were before there was the key, and what was begun by then goes on. Its default may never become another.
    """
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class Network:
    """Which network, by its name in `networks.build`, and its settings as keyword arguments."""

    name: str = "uxnet"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self.settings)


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
        check(len(self.clip) in (0, 2) and list(self.clip) == sorted(set(self.clip)), "clip", "give two rising limits, or none")
        check(all(abs(limit) <= _LARGEST for limit in self.clip), "clip", f"limits must lie within -{_LARGEST:g}..{_LARGEST:g}")
        check(self.scale != "range" or len(self.clip) == 2, "scale", '"range" needs the limits in `clip`')
        check(0 <= self.low < self.high <= 100, "low, high", "percentiles must rise and lie within 0..100")


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
        check(letters == ["A", "R", "S"], "orientation", f'{self.orientation!r} is none; name each axis once, for example "RAS"')
        check(len(self.spacing_mm) in (0, 3) and all(s > 0 for s in self.spacing_mm), "spacing_mm", "give three positive numbers, or none")
        for spacing in self.spacing_mm:
            check_range(spacing, 0.001, 1000, "spacing_mm")
        check(len(self.intensity) >= 1, "intensity", "give one entry for all channels, or one a channel")


@dataclass(frozen=True)
class Sampling:
    """Where patches lie.

    patch: voxels along (i, j, k).
    foreground: the share of patches that hold a labelled voxel, at a random place in the patch: structures are seen away from its
        centre, too. Each structure is as likely as another, however small.
    balance: what that holds for. "case": a case is drawn, then one of the structures that it shows; "class": a structure is drawn of
        all that the dataset shows, then one of the cases that show it, so that what few cases show is seen as often as the rest.
    per_case: so many patches of a step, in the order of their numbers, are of one case; the next so many of another draw (paper,
        table 4: sub-volumes cropped). Only where the case is drawn first.
    """

    patch: tuple[int, int, int] = (96, 96, 96)
    foreground: float = 0.5
    balance: Literal["case", "class"] = "case"
    per_case: int = 1

    def __post_init__(self) -> None:
        check_patch(self.patch, "patch")
        check(0 <= self.foreground <= 1, "foreground", "must lie within 0..1")
        check(1 <= self.per_case <= MOST, "per_case", f"must be at least 1, and at most {MOST}")
        check(self.per_case == 1 or self.balance == "case", "per_case", 'several patches a case need balance = "case"')


@dataclass(frozen=True)
class Augmentation:
    """What is done to a batch while training; every number 0 and no mirroring leaves it as it is.

    rotation_deg: largest angle about each of the axes (i, j, k), drawn uniformly from +-.
    scale: largest relative change of size, per axis where `anisotropic`.
    affine_probability: the share of samples that are rotated and scaled.
    intensity_shift, intensity_scale: largest offset, in units of the sample's standard deviation, and relative change of contrast.
    intensity_offset: largest offset in units of the prepared image itself (paper, table 4: 0.1 of an image in 0..1). It is drawn as
        `intensity_shift` is, by the same number; both add up.
    gamma: largest change of the exponent's logarithm.
    noise: largest standard deviation of Gaussian noise, in units of the sample's.
    blur: largest standard deviation of Gaussian smoothing, in voxels.
    intensity_probability: the share of samples for each of the intensity changes.
    mirror: axes that may be mirrored, each with probability 1/2. Where that trades left for right, the labels of left/right pairs
        trade places, too; sides that the labels do not name are lost to the network.
    """

    rotation_deg: Three = (0.0, 0.0, 0.0)
    scale: float = 0.0
    anisotropic: bool = False
    affine_probability: float = 1.0
    intensity_shift: float = 0.0
    intensity_offset: float = 0.0
    intensity_scale: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    intensity_probability: float = 0.5
    mirror: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        for key in ("scale", "intensity_shift", "intensity_offset", "intensity_scale", "gamma", "noise", "blur"):
            check(getattr(self, key) >= 0, key, "must not be negative")
        check(self.scale < 1, "scale", "must be below 1")
        for angle in self.rotation_deg:
            check_range(angle, -360, 360, "rotation_deg")
        for key, most in {"gamma": 10, "blur": 100}.items():
            check_range(getattr(self, key), 0, most, key)
        for key in ("intensity_shift", "intensity_offset", "intensity_scale", "noise"):
            check(getattr(self, key) <= _LARGEST, key, f"must not be above {_LARGEST:g}")
        for key in ("affine_probability", "intensity_probability"):
            check(0 <= getattr(self, key) <= 1, key, "must lie within 0..1")


@dataclass(frozen=True)
class Loss:
    """Dice + cross-entropy, each with its weight; `background` counts the background in the Dice term (as released).

    taught: where there are teachers, the share of their answers in the cross-entropy's target; the rest are the labels.
    """

    dice: float = 1.0
    cross_entropy: float = 1.0
    background: bool = True
    taught: float = later(0.5)

    def __post_init__(self) -> None:
        check(0 <= self.taught <= 1, "taught", "a share lies between 0 and 1")
        check(self.dice >= 0 and self.cross_entropy >= 0, "dice, cross_entropy", "weights must not be negative")
        check(self.dice + self.cross_entropy > 0, "dice, cross_entropy", "one of them must be above 0")


@dataclass(frozen=True)
class Optimiser:
    """AdamW (Loshchilov & Hutter 2019).

    freeze: parts of the network that keep their weights, as the beginnings of their names, such as "stem" or "stages.0".
    layer_decay: the learning rate of each layer, as a factor on that of the layer after it; the last has the full rate. 1 for one
        rate for all. For fine-tuning (Clark et al. 2020, section 3): early layers are the most general and change least.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    freeze: tuple[str, ...] = ()
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        check(0 < self.layer_decay <= 1, "layer_decay", "must lie within 0..1, above 0")
        check(all(self.freeze), "freeze", "an empty name would freeze everything")
        check(self.learning_rate > 0, "learning_rate", "must be above 0")
        check(all(0 <= beta < 1 for beta in self.betas), "betas", "must lie within 0..1, below 1")
        check(self.weight_decay >= 0 and self.eps > 0, "weight_decay, eps", "must not be negative")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the run.

    "cosine": from the full rate to `floor` times it at the last step; "poly": the same way as the remaining share of the steps to the
    power of `power`; "plateau": times `factor` whenever the validation Dice has not risen for `patience` validations (paper, table 4:
    0.9 and 10); "constant". All after `warmup_steps` of linear rise.
    """

    kind: Literal["cosine", "poly", "plateau", "constant"] = "cosine"
    warmup_steps: int = 0
    floor: float = 0.0
    factor: float = 0.9
    patience: int = 10
    power: float = 0.9

    def __post_init__(self) -> None:
        check(0 < self.power <= 1000, "power", "must be above 0, and at most 1000")
        check(self.warmup_steps >= 0 and self.patience >= 0, "warmup_steps, patience", "must not be negative")
        check(0 <= self.floor <= 1 and 0 < self.factor < 1, "floor, factor", "must lie within 0..1")


@dataclass(frozen=True)
class Training:
    """Length, batch and numeric guard rails.

    steps: optimiser steps.
    hours: if above 0, the time that the training may take, validations included: it is turned into a number of steps before the
        first one, by measuring some, and that number is kept in the run's folder (budget.json) from then on.
    batch: patches a step, over all devices.
    accumulate: parts that each device computes its share of a batch in, one after the other, to save memory. The gradient is the
        same but for rounding, unless the network has batch norm.
    validate_every, checkpoint_every: steps.
    compile: let torch compile the network (torch.compile); where that is not possible, it is said and the network runs as it is.
    precision: "auto" takes bfloat16 where the processor computes in it, else float32.
    clip_gradient: largest norm of the gradient; 0 for no clipping.
    absurd_gradient: a step whose gradient's norm is above this, or not finite, is skipped and counted.
    skips_in_a_row: so many skipped steps one after another stop the run.
    ema: decay of the running average of the weights that is validated and kept; 0 for none.
    keep: which weights become the model: those of the best validation, or the last ones (nothing chosen on the validation cases).
    stop_after: stop when so many validations in a row brought no better score; 0 for never.
    collapse_after: stop when a class that was found before has been lost for so many validations in a row; 0 for never.
    """

    steps: int = 40_000
    hours: float = 0.0
    batch: int = 2
    accumulate: int = 1
    validate_every: int = 500
    checkpoint_every: int = 100
    compile: bool = False
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0
    clip_gradient: float = 0.0
    absurd_gradient: float = 1e6
    skips_in_a_row: int = 20
    ema: float = 0.0
    keep: Literal["best", "last"] = "best"
    stop_after: int = 0
    collapse_after: int = 3

    def __post_init__(self) -> None:
        for key in ("steps", "batch", "accumulate", "validate_every", "checkpoint_every", "skips_in_a_row"):
            check(getattr(self, key) >= 1, key, "must be at least 1")
        for key in ("batch", "accumulate"):
            check(getattr(self, key) <= MOST, key, f"must not be above {MOST}")
        check(self.steps <= _MOST_STEPS, "steps", f"must not be above {_MOST_STEPS}")
        check_range(self.hours, 0, 100_000, "hours")
        for key in ("stop_after", "collapse_after"):
            check(getattr(self, key) >= 0, key, "must not be negative")
        check(0 <= self.seed < 2**63, "seed", "must not be negative, nor 2^63 or above")
        check(self.batch % self.accumulate == 0, "accumulate", f"cannot share out a batch of {self.batch} in equal parts")
        check(self.clip_gradient >= 0 and self.absurd_gradient > 0, "clip_gradient, absurd_gradient", "must not be negative")
        check(0 <= self.ema < 1, "ema", "must lie within 0..1, below 1")


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
        check(0 <= self.overlap < 1, "overlap", "must lie within 0..1, below 1")
        check(
            self.overlap <= _MOST_OVERLAP, "overlap", f"must not be above {_MOST_OVERLAP}: every voxel is computed a thousand times there"
        )
        check(1 <= self.batch <= MOST, "batch", f"must be at least 1, and at most {MOST}")
        check(len(self.patch) in (0, 3) and all(p >= 1 for p in self.patch), "patch", "give three sides of at least 1, or none")
        if self.patch:
            check_patch(self.patch, "patch")


@dataclass(frozen=True)
class Prior:
    """What makes a stage the second phase of RAP-Net (Lee et al., ISBI 2021): it is guided by the labels of the stage before it.

    Its network sees, beside the image, the mask of one structure as the stage before found it, and answers for that structure
    alone (two channels: not it, it). Patches lie around voxels of the mask; one network serves all structures.

    patches: windows a structure in prediction, each around a voxel of its mask; each voxel is decided by their majority.
    """

    patches: int = 50

    def __post_init__(self) -> None:
        check(1 <= self.patches <= MOST, "patches", f"must be at least 1, and at most {MOST}")


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

    @property
    def asks_validation(self) -> tuple[str, ...]:
        """The keys by which the validation cases decide something: how fast to learn, when to stop, which weights to keep."""
        asks = {
            "schedule.kind": self.schedule.kind == "plateau",
            "training.stop_after": self.training.stop_after > 0,
            "training.keep": self.training.keep == "best",
        }
        return tuple(key for key, does in asks.items() if does)


@dataclass(frozen=True)
class Recipe:
    """A name, a sentence on what it is for, and its stages."""

    name: str
    description: str = ""
    schema: int = SCHEMA
    stages: tuple[Stage, ...] = (Stage(),)

    def __post_init__(self) -> None:
        check(self.schema == SCHEMA, "schema", f"this version of uxnet reads schema {SCHEMA}, not {self.schema}")
        check(len(self.stages) in (1, 2), "stages", "a recipe has one stage, or two: a coarse one and one that it guides")
        check(self.stages[0].prior is None, "stages[0].prior", "nothing comes before the first stage that could guide it")
        for number, stage in enumerate(self.stages[1:], start=1):
            check(stage.prior is not None, f"stages[{number}].prior", "a second stage is guided by the first: say how")
