"""From a dataset's fingerprint to a recipe: each rule about data, and the reason that it gives.

A plan is a list of choices. A choice is a key of the recipe's stage, its value, and a sentence with the dataset's own numbers; what no
choice names stays at its default. The rules are nnU-Net's where it published them (Isensee et al., Nature Methods 18 (2021), methods and
supplementary note 2: median spacing, the tenth percentile along a coarse axis, CT by the foreground's percentiles, what counts as
anisotropic), and otherwise what this project's own recipes were tuned to.

The network's grid is for `dataset.grid`, and how large a patch may be for `experiments.plan`. All axes are (R, A, S).
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.fingerprint import Fingerprint
from uxnet.dataset.manifest import Case
from uxnet.errors import DatasetError, plural
from uxnet.geometry import axis_order
from uxnet.io import read_image, read_labels
from uxnet.labels import Labels, unpaired_sides
from uxnet.recipe import Recipe, recipe_from_dict

Three = tuple[float, float, float]

AIR_HU = -500.0
"""Halfway between air and tissue: what a CT is cropped above."""

_COARSE = 3.0  # spacings that differ by more are anisotropic (nnU-Net)
_SAMPLED = 5000  # foreground voxels of a case for the percentiles of a CT
_PLANES = ("left-right", "front-back", "up-down")


@dataclass(frozen=True)
class Choice:
    """A key of a stage ("sampling.patch"), its plain value, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """A recipe of one stage with the reason for each of its keys."""

    name: str
    description: str
    choices: tuple[Choice, ...]

    @property
    def recipe(self) -> Recipe:
        """The recipe that the choices make."""
        stage: dict[str, Any] = {}
        for choice in self.choices:
            table, last = stage, choice.key.split(".")
            for part in last[:-1]:
                table = table.setdefault(part, {})
            table[last[-1]] = choice.value
        return recipe_from_dict({"name": self.name, "description": self.description, "stages": [stage]})

    def to_toml(self, head: Sequence[str] = ()) -> str:
        """The recipe as TOML, each key under its reason; `head` stands above, a paragraph each."""
        lines = [line for paragraph in head for line in _comment(paragraph)]
        lines += ["schema = 1", f"name = {_toml(self.name)}", f"description = {_toml(self.description)}", "", "[[stages]]"]
        table = ""
        for choice in sorted(self.choices, key=lambda c: _TABLES.index(c.key.rpartition(".")[0])):
            owner, _, key = choice.key.rpartition(".")
            if owner != table:
                lines += ["", f"[stages.{owner}]"]
                table = owner
            lines += [*_comment(choice.reason), f"{key} = {_toml(choice.value)}"]
        return "\n".join(lines) + "\n"


_TABLES = (
    *("network", "network.settings", "prepare", "sampling", "augment", "loss"),
    *("optimiser", "schedule", "training", "inference"),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What a plan needs of a case beside its fingerprint.

    zeros: share of voxels that are exactly 0, a channel.
    two: the two values of a channel that has no others (a mask); None for any other channel.
    above_zero, above_air: the box of voxels above 0 and above `AIR_HU`, as shares of the sides; None where labels lie outside.
    symmetry: Dice of the label map and its left-right mirror image (sides of pairs exchanged), 0..1; None without foreground.
    foreground: of each channel, intensities of labelled voxels, at most 5,000, float32.
    """

    zeros: tuple[float, ...]
    two: tuple[tuple[float, float] | None, ...]
    above_zero: Three | None
    above_air: Three | None
    symmetry: float | None
    foreground: tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class Facts:
    """A dataset as a plan sees it: fingerprint, labels, looks, and each case's shape (voxels) and spacing (mm), (n, 3) in RAS."""

    fingerprint: Fingerprint
    labels: Labels
    looks: tuple[Look, ...]
    shapes: NDArray[np.float64]
    spacings: NDArray[np.float64]


def facts_of(fingerprint: Fingerprint, labels: Labels, looks: Sequence[Look]) -> Facts:
    """The facts of a dataset.

    Raises:
        DatasetError: if no case shows a label.
    """
    if not any(any(case.voxels.values()) for case in fingerprint.cases):
        raise DatasetError("no case shows any foreground, so there is nothing to plan for")
    places = [[_axis(letter) for letter in case.orientation] for case in fingerprint.cases]
    shapes = [np.array(case.shape, float)[np.argsort(p)] for case, p in zip(fingerprint.cases, places, strict=True)]
    spacings = [np.array(case.spacing_mm)[np.argsort(p)] for case, p in zip(fingerprint.cases, places, strict=True)]
    return Facts(fingerprint, labels, tuple(looks), np.array(shapes), np.array(spacings))


def some_of(cases: Sequence[Case], most: int = 24) -> list[Case]:
    """At most so many cases, evenly drawn."""
    places = np.unique(np.linspace(0, len(cases) - 1, min(most, len(cases))).round().astype(int))
    return [cases[place] for place in places]


def look_at(case: Case, labels: Labels) -> Look:
    """Reads a case.

    Raises:
        VolumeError, LabelsError: if it cannot be read, or holds other values.
        DatasetError: if it has no label map.
    """
    if case.labels is None:
        raise DatasetError(f"{case.name}: it has no label map; training needs one")
    image, reference = read_image(*case.images), read_labels(case.labels)
    order = axis_order(image.geometry, "RAS")
    channels = [order.apply(channel) for channel in image.array]
    indices = order.apply(labels.encode(reference.array[0]))
    inside = (indices > 0) & (indices <= len(labels.foreground))
    places = np.flatnonzero(inside)
    places = places[np.linspace(0, len(places) - 1, min(_SAMPLED, len(places))).astype(np.int64)]
    return Look(
        zeros=tuple(float(np.mean(channel == 0)) for channel in channels),
        two=tuple(_two_values(channel) for channel in channels),
        above_zero=_box(np.any([channel > 0 for channel in channels], axis=0), inside),
        above_air=_box(np.any([channel > AIR_HU for channel in channels], axis=0), inside),
        symmetry=_symmetry(np.where(inside, indices, 0), labels),
        foreground=tuple(channel.reshape(-1)[places].astype(np.float32) for channel in channels),
    )


def _two_values(channel: NDArray[np.float32]) -> tuple[float, float] | None:
    low, high = float(channel.min()), float(channel.max())
    return (low, high) if low < high and bool(((channel == low) | (channel == high)).all()) else None


def _box(kept: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> Three | None:
    shares = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        here, wanted = np.flatnonzero(kept.any(axis=others)), np.flatnonzero(labelled.any(axis=others))
        if not len(here) or (len(wanted) and (wanted[0] < here[0] or wanted[-1] > here[-1])):
            return None
        shares.append(float(here[-1] - here[0] + 1) / kept.shape[axis])
    return (shares[0], shares[1], shares[2])


def _symmetry(indices: NDArray[Any], labels: Labels) -> float | None:
    """About the middle of the foreground; along the first axis, which is left-right."""
    found = np.flatnonzero(indices.any(axis=(1, 2)))
    if not len(found):
        return None
    box = indices[found[0] : found[-1] + 1]
    number = {label.name: n for n, label in enumerate(labels.foreground, start=1)}
    table = np.arange(len(number) + 1)
    for left, right in labels.pairs:
        if left in number and right in number:
            table[number[left]], table[number[right]] = number[right], number[left]
    mirrored = table[box[::-1]]
    return float(2 * np.sum((box == mirrored) & (box > 0)) / (np.sum(box > 0) + np.sum(mirrored > 0)))


def _axis(letter: str) -> int:
    return "RLAPSI".index(letter) // 2


# ---- from the scan to the network's grid and range


def spacing(facts: Facts, asked: Three | None = None) -> tuple[Three, Choice]:
    """The spacing to resample to, in mm."""
    if asked is not None:
        return asked, Choice("prepare.spacing_mm", list(asked), f"As asked; the cases have {_range(facts.spacings)} mm.")
    median = np.median(facts.spacings, axis=0)
    target, coarse = median.copy(), int(np.argmax(median))
    spread = f"{plural(len(facts.spacings), 'case')} of {_range(facts.spacings)} mm"
    reason = f"The median: {spread}."
    if median.max() / median.min() > _COARSE:
        tenth = float(np.percentile(facts.spacings[:, coarse], 10))
        target[coarse] = max(tenth, float(np.delete(median, coarse).max()))
        reason = (
            f"{spread}. The median, but along {_PLANES[coarse]}, which is {median.max() / median.min():.3g} times as coarse, the tenth "
            "percentile: the finer cases then lose little, and the coarser ones are interpolated."
        )
    values = [float(f"{s:.6g}") for s in target]
    return (values[0], values[1], values[2]), Choice("prepare.spacing_mm", values, reason)


def is_ct(facts: Facts, channel: int) -> bool:
    """Whether a channel holds Hounsfield units: its name says so, or it has no name and values of air."""
    name = facts.fingerprint.channel_names[channel]
    if re.search(r"(?i)(?<![a-z])(ct|cta|cbct|hu)(?![a-z])", name):
        return True
    return bool(re.fullmatch(r"channel \d+", name)) and facts.fingerprint.intensities(channel)["minimum"].median <= -900


def intensity(facts: Facts) -> Choice:
    """One entry a channel, or one for all where they are alike."""
    found = [_of_channel(facts, channel) for channel in range(len(facts.fingerprint.channel_names))]
    entries = [entry for entry, _ in found]
    if all(entry == entries[0] for entry in entries):
        entries = entries[:1]
    names = facts.fingerprint.channel_names
    reasons = [reason if len(names) == 1 else f"{name}: {reason}" for name, (_, reason) in zip(names, found, strict=True)]
    return Choice("prepare.intensity", entries, " ".join(reasons))


def _of_channel(facts: Facts, channel: int) -> tuple[dict[str, Any], str]:
    if is_ct(facts, channel):
        pooled = np.concatenate([look.foreground[channel] for look in facts.looks])
        low, high = (float(np.round(p)) for p in np.percentile(pooled, (0.5, 99.5)))
        if low < high:
            reason = (
                f"CT has a scale of its own, so all cases share one: the 0.5th and 99.5th percentile of {len(pooled):,} labelled voxels "
                f"of {plural(len(facts.looks), 'case')}, {low:g} and {high:g} HU (nnU-Net's rule for CT), become 0 and 1."
            )
            return {"clip": [low, high], "scale": "range"}, reason
    pairs = {look.two[channel] for look in facts.looks}
    if len(pairs) == 1 and (pair := pairs.pop()):
        return {"clip": list(pair), "scale": "range"}, f"A mask: it is {pair[0]:g} or {pair[1]:g} everywhere, which become 0 and 1."
    medians = facts.fingerprint.intensities(channel)["median"]
    tops = facts.fingerprint.intensities(channel)["p99_5"]
    zeros = float(np.median([look.zeros[channel] for look in facts.looks]))
    reason = (
        f"No absolute scale: from case to case the median lies from {medians.minimum:.4g} to {medians.maximum:.4g} and the 99.5th "
        f"percentile from {tops.minimum:.4g} to {tops.maximum:.4g}, so each "
        "is brought to its own mean and deviation, without its outermost 0.5 %."
    )
    entry: dict[str, Any] = {"scale": "zscore", "low": 0.5, "high": 99.5}
    if zeros >= 0.25:
        entry["nonzero"] = True
        reason += f" {zeros:.0%} of the voxels are exactly 0, a mask and no tissue, so they do not count."
    return entry, reason


def crop(facts: Facts) -> tuple[Three, Choice | None]:
    """The shares of the sides that are left, and the choice, None where cropping is not worth it or would lose labels."""
    whole: Three = (1.0, 1.0, 1.0)
    channels = range(len(facts.fingerprint.channel_names))
    airy = all(is_ct(facts, c) and facts.fingerprint.intensities(c)["median"].median < AIR_HU for c in channels)
    masked = all(np.median([look.zeros[c] for look in facts.looks]) >= 0.25 for c in channels)
    positive = all(facts.fingerprint.intensities(c)["minimum"].minimum >= 0 for c in channels)
    if airy:
        boxes, above, what = [look.above_air for look in facts.looks], AIR_HU, "more than half of the voxels are air"
    elif masked and positive:
        boxes, above, what = [look.above_zero for look in facts.looks], 0.0, "what surrounds the patient is exactly 0"
    else:
        return whole, None
    kept = [box for box in boxes if box is not None]
    if len(kept) < len(boxes):
        return whole, None
    i, j, k = (float(s) for s in np.median(kept, axis=0))
    if i * j * k > 0.9:
        return whole, None
    seen = f"{plural(len(kept), 'case')} looked at"
    reason = f"In the median case {what}; the box of the rest is {i * j * k:.0%} of the scan and holds every label ({seen})."
    return (i, j, k), Choice("prepare.crop_above", above, reason)


def prepared_shape(facts: Facts, spacing_mm: Three, kept: Three) -> Three:
    """The median over the cases of the prepared size, in voxels."""
    i, j, k = (float(n) for n in np.median(np.rint(facts.shapes * facts.spacings / np.array(spacing_mm)), axis=0) * np.array(kept))
    return (max(1.0, i), max(1.0, j), max(1.0, k))


# ---- training


def augmentation(facts: Facts, spacing_mm: Three, long: bool) -> tuple[Choice, ...]:
    """What may be done to a batch; more in a long training than in a short one."""
    angle, scale = (30.0, 0.25) if long else (10.0, 0.1)
    length = "nnU-Net's range, for a long training" if long else "little, for a short training"
    turns, why = [angle] * 3, f"Degrees about each axis: {length}."
    ratio = max(spacing_mm) / min(spacing_mm)
    if ratio > _COARSE:
        coarse = int(np.argmax(spacing_mm))
        turns = [angle if axis == coarse else 0.0 for axis in range(3)]
        longer = f"along {_PLANES[coarse]} voxels are {ratio:.3g} times as long, and turning them in would blur"
        why = f"In the fine plane alone: {longer} ({length})."
    ct = all(is_ct(facts, c) for c in range(len(facts.fingerprint.channel_names)))
    level = 0.1 if ct else 0.2
    kind = (
        "CT: little, since Hounsfield units mean the same everywhere"
        if ct
        else "No absolute scale: scanners differ in brightness and contrast"
    )
    mirror, unless = _mirror(facts)
    choices = [
        Choice("augment.rotation_deg", turns, why),
        Choice("augment.scale", scale, "Relative change of size."),
        Choice("augment.affine_probability", 0.2 if long else 0.5, "Share of samples that are turned and scaled."),
        Choice("augment.intensity_shift", level, f"{kind}."),
        Choice("augment.intensity_scale", level, "Likewise, of the contrast."),
        *([] if ct else [Choice("augment.gamma", 0.3, "Likewise, of the curve.")]),
        Choice("augment.noise", 0.1, "In units of the sample's deviation."),
        Choice("augment.intensity_probability", 0.3, "Share of samples for each of the changes of intensity."),
        Choice("augment.mirror", [mirror, False, False], f"{unless} Never front-back or up-down: no patient is scanned so."),
    ]
    return tuple(choices)


def _mirror(facts: Facts) -> tuple[bool, str]:
    sided = unpaired_sides(facts.labels)
    if sided and not facts.labels.pairs_said:
        return False, f"{sided[0]!r} names a side and has no counterpart, so left-right mirroring would make it untrue."
    values = [look.symmetry for look in facts.looks if look.symmetry is not None]
    agreement = float(np.median(values)) if values else 0.0
    measured = f"the label maps and their left-right mirror images have a Dice of {agreement:.2f} (sides of pairs exchanged)"
    if agreement < 0.7:
        return False, f"Not mirrored: {measured}, so a mirrored patient is no patient."
    return True, f"Left-right: {measured}; pairs exchange their labels."


def sampling(facts: Facts, patch_share: float) -> tuple[Choice, ...]:
    """Where patches lie; `patch_share` is the patch as a share of the median case."""
    fingerprint = facts.fingerprint
    seen = {name: fingerprint.cases_with(name) for name in fingerprint.classes if fingerprint.cases_with(name)}
    rarest = min(seen, key=lambda name: seen[name])
    filled = float(np.median([sum(case.voxels.values()) / math.prod(case.shape) for case in fingerprint.cases]))
    reason = (
        f"Labels are {filled:.2%} of the voxels, a patch {min(1.0, patch_share):.0%} of the median case; half of the patches show some."
    )
    choices = [Choice("sampling.foreground", 0.5, reason)]
    if seen[rarest] < len(fingerprint.cases) / 2:
        of = plural(len(fingerprint.cases), "case")
        why = f"{rarest!r} is in {seen[rarest]} of {of}: drawn class by class, it is seen as often as the others."
        choices.append(Choice("sampling.balance", "class", why))
    return tuple(choices)


# ---- TOML with its reasons


def _comment(text: str) -> list[str]:
    shown = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.wrap(shown, 120, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # Words, numbers and truth are written alike in JSON and TOML, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _range(values: NDArray[np.float64]) -> str:
    low, high = (numbers(edge) for edge in (values.min(axis=0), values.max(axis=0)))
    return low if low == high else f"{low} to {high} (median {numbers(np.median(values, axis=0))})"


def numbers(values: Any) -> str:
    """Three numbers, readable."""
    return " x ".join(f"{float(v):.4g}" for v in values)
