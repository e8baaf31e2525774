"""Several models and mirrored windows, averaged: an engine made of engines, that answers as one.

What is averaged are logits, window by window, before anything is stitched: so it takes no more memory than one model does, but for one
window's logits.

In a mirrored body left and right have changed places. Who mirrors a window for a network that has not been trained on mirrored bodies
shows it a left kidney where it knows the right one, and it will say "right kidney": mirrored back, the answers of left and right have
to change places, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.dataset.sides import lateral_axis
from uxnet.errors import LabelsError, ModelError, RecipeError
from uxnet.events import Report, Warn, silent
from uxnet.inference.settings import Mirror
from uxnet.inference.stitch import Engine
from uxnet.labels import Labels, unpaired_sides
from uxnet.model.file import Model
from uxnet.recipe import Stage

NO_MIRROR: Mirror = (False, False, False)


class Averaged:
    """The mean of the logits of several engines, over each window and its mirror images.

    Args:
        engines: of one stage of several models, which must answer with the same channels (see `check_same`).
        mirror: axes (i, j, k) that are mirrored, in all combinations, none included; each answer is mirrored back.
        swap: for an axis that is mirrored, which channel of the answer stands for each channel (see `check_mirror`); the others stay.
            A guided stage ("not it", "it") needs none: its mask is a channel of the window and is mirrored with it.

    Raises:
        ModelError: if there is no engine.
    """

    def __init__(self, engines: Sequence[Engine], mirror: Mirror = NO_MIRROR, swap: Mapping[int, Sequence[int]] | None = None) -> None:
        if not engines:
            raise ModelError("an average needs at least one model")
        self.engines = tuple(engines)
        axes = [axis for axis in range(3) if mirror[axis]]
        self.mirrorings = [some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)]
        self.swap = dict(swap or {})

    @property
    def passes(self) -> int:
        """How often a window goes through a network."""
        return len(self.engines) * len(self.mirrorings)

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, I, J, K) float32 -> mean logits (N, out_channels, I, J, K) float32.

        Beside one engine's answer, one array of its size is in memory.

        Raises:
            ModelError: if the engines answer with different channels.
        """
        if self.passes == 1:
            return self.engines[0].infer(batch)
        total = np.zeros(0, dtype=np.float32)
        for axes in self.mirrorings:
            # Engines may want memory that runs forwards.
            seen = np.ascontiguousarray(_mirrored(batch, axes)) if axes else batch
            for engine in self.engines:
                logits = engine.infer(seen)
                if not total.size:
                    # Not the answer itself: it may be the engine's own memory, which its next answer overwrites.
                    total = np.zeros(logits.shape, dtype=np.float32)
                self._add(total, logits, axes)
                del logits  # before the next ones are made
        total /= self.passes
        return total

    def _add(self, total: NDArray[np.float32], logits: NDArray[np.float32], axes: Sequence[int]) -> None:
        if logits.shape != total.shape:
            raise ModelError(f"the models that are averaged answer differently: logits {logits.shape[1:]} and {total.shape[1:]}")
        back = _mirrored(logits, axes)
        for channel, source in enumerate(self._sources(axes, total.shape[1])):
            total[:, channel] += back[:, source]

    def _sources(self, axes: Sequence[int], channels: int) -> list[int]:
        """For each channel, the one of the mirrored answer that stands for it; exchanged along two axes, they are where they were."""
        order = list(range(channels))
        for axis in axes:
            change = self.swap.get(axis)
            if change is not None:
                if sorted(change) != list(range(channels)):
                    raise ModelError(f"the network has {channels} channels; those that change places are given as {list(change)}")
                order = [order[source] for source in change]
        return order


def mirrored_channels(labels: Labels) -> tuple[int, ...]:
    """For each channel of the logits, the channel that stands for it in a mirrored body, by the labels' pairs.

    Pairs name labels or regions. A region that is in no pair itself stands for the region of its labels' partners: both kidneys
    together for themselves.

    Raises:
        LabelsError: if a name is in two pairs, or a region has labels in pairs but there is no region of their partners.
    """
    partner: dict[str, str] = {}
    for a, b in labels.pairs:
        if not partner.keys().isdisjoint((a, b)):
            raise LabelsError(f"pairs: {a!r} or {b!r} is in more than one pair, so it is not known what it becomes in a mirrored image")
        partner |= {a: b, b: a}
    if not labels.regions:
        indices = {label.name: index for index, label in enumerate(labels.foreground, start=1)}
        return (0, *(indices[partner.get(label.name, label.name)] for label in labels.foreground))
    values = {label.name: label.value for label in labels.foreground}
    becomes = {values[a]: values[b] for a, b in partner.items() if a in values and b in values}
    places = {region.name: place for place, region in enumerate(labels.regions)}
    unions = {frozenset(region.values): place for place, region in enumerate(labels.regions)}
    order = []
    for place, region in enumerate(labels.regions):
        union = frozenset(region.values)
        opposite = frozenset(becomes.get(value, value) for value in region.values)
        if partner.get(region.name) in places:
            order.append(places[partner[region.name]])
        elif opposite == union:
            order.append(place)
        elif opposite in unions:
            order.append(unions[opposite])
        else:
            raise LabelsError(f"pairs: the region {region.name!r} has no counterpart in a mirrored image; leave mirroring out")
    return tuple(order)


def check_mirror(mirror: Mirror, orientation: str, labels: Labels, trained: Mirror, report: Report = silent) -> dict[int, tuple[int, ...]]:
    """Whether answers to mirrored windows may be averaged, and which channels change places then.

    Where no labels come in pairs, any axis may be mirrored. Where some do, only the axis between left and right, and its channels
    change places: what lies on the left of a mirrored body is called left, in training, too (`augment.mirror`). Names that say a side
    and are in no pair forbid what training did not mirror: the answers of left and right would be averaged.

    Args:
        mirror: the axes (i, j, k) to be mirrored.
        orientation: of the prepared image (the recipe's `prepare.orientation`).
        labels: what the channels mean.
        trained: the axes that training mirrored (the recipe's `augment.mirror`).
        report: is warned of axes that training did not mirror.

    Returns:
        The axis -> the channel that stands for each channel, for `Averaged`. Not for guided stages, whose channels have no side.

    Raises:
        RecipeError: if an axis must not be mirrored.
        LabelsError: as `mirrored_channels`.
    """
    swap: dict[int, tuple[int, ...]] = {}
    sideways = lateral_axis(orientation)
    for axis in (axis for axis in range(3) if mirror[axis] and labels.pairs):
        if axis != sideways:
            pair = " and ".join(map(repr, labels.pairs[0]))
            raise RecipeError(
                f"mirror: labels come in pairs ({pair}), so axis {'ijk'[axis]} must not be mirrored. It runs {_RUNS[orientation[axis]]}: "
                "mirrored so, a body is a mirror image in which left and right have changed places, without the names saying so. "
                f"Mirror axis {'ijk'[sideways]} alone, with which the pairs change places, or none"
            )
        swap[axis] = mirrored_channels(labels)
    lone = unpaired_sides(labels)
    for axis in (axis for axis in range(3) if mirror[axis] and not trained[axis] and lone):
        raise RecipeError(
            f"mirror: axis {'ijk'[axis]} must not be mirrored: {lone[0]!r} says a side, the model does not say which class it becomes in a "
            "mirrored body, and training mirrored none (augment.mirror). Leave the axis out"
        )
    unseen = [name for name, asked, seen in zip("ijk", mirror, trained, strict=True) if asked and not seen]
    if unseen:
        report(
            Warn(
                f"mirror: the recipe did not train with axis {' and '.join(unseen)} mirrored (augment.mirror), so the network has not seen "
                "mirrored bodies and may know them less well; compare the Dice with and without on cases that it was not trained on"
            )
        )
    return swap


def check_same(models: Sequence[Model]) -> None:
    """Whether models mean the same by their logits and get the same windows, as the folds of one training do.

    Networks and weights may differ, and everything about training.

    Raises:
        ModelError: naming the file and what differs.
    """
    first = models[0]
    for model in models[1:]:
        ours, theirs = first.recipe.stages, model.recipe.stages
        if len(ours) != len(theirs):
            raise _differ(model, first, "number of stages", len(theirs), len(ours))
        compared: list[tuple[str, Any, Any]] = [
            ("labels", replace(first.labels, colours=()), replace(model.labels, colours=())),
            ("channels", first.channels, model.channels),
        ]
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            compared += [(f"stages.{number}.{key}", x, y) for (key, x), (_, y) in zip(_windows(a), _windows(b), strict=True)]
        for key, a, b in compared:
            found = _difference(key, a, b)
            if found is not None:
                where, ours_is, theirs_is = found
                raise _differ(model, first, where, theirs_is, ours_is)


_RUNS = {"A": "from back to front", "P": "from front to back", "S": "from foot to head", "I": "from head to foot"}


def _mirrored(array: NDArray[np.float32], axes: Sequence[int]) -> NDArray[np.float32]:
    """(N, C, I, J, K), mirrored along some of the last three axes: a view."""
    return np.flip(array, tuple(axis + 2 for axis in axes))


def _windows(stage: Stage) -> list[tuple[str, Any]]:
    """What decides the windows that a network is shown and how they are put together."""
    return [
        ("prepare", stage.prepare),
        ("inference.patch", stage.window),
        ("inference.blending", stage.inference.blending),
        ("prior", stage.prior),
    ]


def _difference(key: str, a: Any, b: Any) -> tuple[str, Any, Any] | None:
    """The first key whose values differ, and both values; None where all agree."""
    if type(a) is type(b) and is_dataclass(a):
        each = (_difference(f"{key}.{f.name}", getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
        return next((found for found in each if found is not None), None)
    return None if a == b else (key, a, b)


def _differ(model: Model, first: Model, key: str, value: Any, expected: Any) -> ModelError:
    here, there = repr(value), repr(expected)
    values = f" ({here} instead of {there})" if len(here) + len(there) < 160 else ""
    return ModelError(
        f"{model.path}: its {key} differs from that of {first.path}{values}, so their answers cannot be averaged; "
        "give models of one training, such as its folds"
    )
