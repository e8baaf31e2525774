"""`uxnet plan`: a dataset's inspection in, a recipe with its reasons out.

The rules about data stand in `dataset.plan`, those of the network's grid in `dataset.grid`. Here is how large a patch may be: as large as
the memory allows, and on a CPU as a step of a few seconds allows. All axes are (R, A, S).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from uxnet.dataset.check import Inspection, refuse_errors
from uxnet.errors import MemoryLimitError, plural
from uxnet.events import Note, Progress, Report, silent
from uxnet.geometry import Shape
from uxnet.inference.memory import in_gb
from uxnet.jobs import work
from uxnet.machine import free_memory, usable_cores
from uxnet.planning import rules
from uxnet.planning.grid import Grid, grids, largest, times, uxnet_settings
from uxnet.planning.rules import Choice, Plan, Three
from uxnet.recipe import Stage

if TYPE_CHECKING:
    from uxnet.planning.memory import StepTime

Size = Literal["paper", "narrow", "auto"]

RUNTIME = 600_000_000
"""Bytes that a process holds before its first step: Python, torch and what else is loaded (530 MB were measured), and the cases' maps."""

# Multiply-accumulates of a forward pass that a core trains on in a second (a step is about three forward passes; measured: 6 on one core
# of a Zen 3), and how many of them a step may have on a CPU.
_GMAC_A_CORE_SECOND, _GMAC_A_CORE_STEP = 6.0, 12.0
_CPU_HOURS = 12.0  # what a training on a CPU may take unless someone says otherwise
_PASSES = 15  # over the training cases, on a CPU; the hippocampus recipe's
_CPU_STEPS, _GPU_STEPS = 1000, 40_000  # the 3D UX-Net's paper, section 4.1
_LEAST_STEPS = 200  # on a CPU, however long they take


@dataclass(frozen=True)
class Machine:
    """Where the training will run.

    device: "cpu", "cuda", "cuda:1" or "mps".
    precision: that "auto" becomes there.
    memory: bytes that the training process may take.
    cores: of the CPU.
    """

    device: str
    precision: str
    memory: int
    cores: int

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Planned:
    """A plan, and what it will cost.

    memory: bytes, of the whole process.
    gmac: 1e9 multiply-accumulates of the forward pass of a step's batch; about a third of what a step computes.
    time: of a step on this machine, scaled from measured smaller ones; None where none was measured.
    """

    plan: Plan
    memory: int
    gmac: float
    time: StepTime | None


def this_machine(device: str = "auto", memory: int | None = None) -> Machine:
    """The device of that name here.

    Args:
        memory: bytes; by default 80 % of the free RAM, or 90 % of the free memory of a GPU.

    Raises:
        DeviceError: if this machine has no such device.
    """
    import torch

    from uxnet.devices import choose_device, choose_precision

    chosen = choose_device(device)
    if memory is None:
        memory = int(0.9 * torch.cuda.mem_get_info(chosen)[0]) if chosen.type == "cuda" else int(0.8 * free_memory())
    return Machine(str(chosen), choose_precision("auto", chosen), memory, usable_cores())


def plan_recipe(
    inspection: Inspection,
    machine: Machine,
    *,
    network: str = "uxnet",
    size: Size = "auto",
    steps: int | None = None,
    hours: float | None = None,
    spacing_mm: Three | None = None,
    timed: bool = True,
    workers: int = 1,
    report: Report = silent,
) -> Planned:
    """A recipe of one stage for a dataset and a machine.

    Args:
        size: of the network; "auto" takes the paper's where a GPU has room for it.
        steps: of the training, instead of the rule's.
        hours: that the training may take; turned into steps when it begins.
        spacing_mm: to resample to, instead of the rule's.
        timed: measure a small step, to tell how long one takes.
        workers: processes that look at cases.

    Raises:
        DatasetError: if the dataset has errors or shows no foreground.
        RecipeError: if there is no such network.
        MemoryLimitError: if the memory does not suffice for the smallest sensible patch; it says what would.
    """
    refuse_errors(inspection)
    facts = _facts(inspection, workers, report)
    target, spacing = rules.spacing(facts, spacing_mm)
    kept, crop = rules.crop(facts)
    median = rules.prepared_shape(facts, target, kept)
    prepare = (
        Choice("prepare.orientation", "RAS", f"Stored as {', '.join(facts.fingerprint.orientations)}; turned, so that all lie alike."),
        *(spacing, rules.intensity(facts)),
        *([] if crop is None else [crop]),
    )
    sizes: list[Size] = [size] if size != "auto" else ["narrow"] if machine.on_cpu else ["paper", "narrow"]
    for number, one in enumerate(sizes, start=1):
        search = _Search(facts, machine, network, one, target, median, size == "auto", prepare)
        found = search.best(report)
        # The paper's widths are worth having if they leave a patch of the paper's size, or the whole case.
        if found is not None and (number == len(sizes) or math.prod(found.patch) >= min(96**3, 0.9 * math.prod(median))):
            break
    if found is None:
        least, stage = search.least()
        raise MemoryLimitError(
            f"{in_gb(machine.memory)} of memory do not suffice: even patches of {times(stage.sampling.patch)}, one at a time, take "
            f"{in_gb(least)} with {network} ({one}); allow that much" + ("" if one == "narrow" else ", or take size=narrow")
        )
    return _finished(search, found, inspection, steps, hours, timed)


def _facts(inspection: Inspection, workers: int, report: Report) -> rules.Facts:
    manifest = inspection.manifest
    cases, looks = rules.some_of(manifest.cases), []
    look = functools.partial(rules.look_at, labels=manifest.labels)
    for done, finished in enumerate(work(look, cases, workers), start=1):
        if finished.error is not None:
            raise finished.error
        looks += [] if finished.result is None else [finished.result]
        report(Progress("looking at cases", done, len(cases)))
    return rules.facts_of(inspection.fingerprint, manifest.labels, looks)


# ---- as large as memory and time allow


@dataclass(frozen=True)
class Found:
    """A grid with a batch, and what they cost: bytes of a step, and GMac of the batch's forward pass."""

    grid: Grid
    batch: int
    accumulate: int
    memory: int
    gmac: float

    @property
    def patch(self) -> Shape:
        """Its sides in voxels."""
        return self.grid.patch


@dataclass(frozen=True)
class _Search:
    """Everything that decides how large a patch may be."""

    facts: rules.Facts
    machine: Machine
    network: str
    size: str
    spacing_mm: Three
    median: Three
    chosen: bool
    prepare: tuple[Choice, ...]

    @functools.cached_property
    def grids(self) -> list[Grid]:
        if self.network == "uxnet":
            return grids(self.median, self.spacing_mm)
        stride = getattr(self._weightless(grids(self.median, self.spacing_mm)[-1].patch, self._settings(None)), "total_stride", (8, 8, 8))
        return grids(self.median, self.spacing_mm, stride)

    def best(self, report: Report) -> Found | None:
        """The largest patch that fits; None if none does."""
        most = _GMAC_A_CORE_STEP * self.machine.cores if self.machine.on_cpu else math.inf
        quick = largest(self.grids, lambda grid: 2 * self.gmac(grid), most)
        candidates = self.grids[: self.grids.index(quick[0]) + 1] if quick else self.grids[:1]
        for accumulate in (1, 2):

            def cost(grid: Grid, accumulate: int = accumulate) -> int:
                memory = self.memory(grid, 2, accumulate)
                report(Note(f"patches of {times(grid.patch)} would take {in_gb(memory + RUNTIME)}"))
                return memory

            found = largest(candidates, cost, self.machine.memory - RUNTIME)
            if found:
                return self._with_batch(Found(found[0], 2, accumulate, int(found[1]), 2 * self.gmac(found[0])))
        return None

    def least(self) -> tuple[int, Stage]:
        """Bytes that the smallest patch takes, and its stage."""
        return self.memory(self.grids[0], 2, 2) + RUNTIME, self.stage(self.grids[0], 2, 2)

    def _with_batch(self, found: Found) -> Found:
        """More patches a step, where a patch is a whole case and a GPU computes: nnU-Net's limit is 5 % of all voxels."""
        if self.machine.on_cpu or found.grid is not self.grids[-1] or found.accumulate > 1:
            return found
        voxels = float(np.rint(self.facts.shapes * self.facts.spacings / np.array(self.spacing_mm)).prod(axis=1).sum())
        most, room = int(min(16, 0.05 * voxels / math.prod(found.patch))), self.machine.memory - RUNTIME
        if most <= 2:
            return found
        batch = most
        while batch > 2 and (memory := self.memory(found.grid, batch, 1)) > room:
            batch = max(2, min(batch - 1, int(batch * room / memory)))
        return found if batch == 2 else replace(found, batch=batch, memory=memory, gmac=batch * self.gmac(found.grid))

    def gmac(self, grid: Grid) -> float:
        """Of the forward pass of one patch."""
        from uxnet.networks.macs import count_macs

        stage = self.stage(grid, 1, 1)
        network = self._weightless(grid.patch, stage.network.settings)
        return count_macs(network.train(), (1, len(self.facts.fingerprint.channel_names), *grid.patch)).true / 1e9

    def memory(self, grid: Grid, batch: int, accumulate: int) -> int:
        """Bytes of a step."""
        from uxnet.planning.memory import predicted_memory

        channels, classes = len(self.facts.fingerprint.channel_names), self.facts.labels.out_channels
        device = "cpu" if self.machine.on_cpu else "cuda"
        return predicted_memory(self.stage(grid, batch, accumulate), channels, classes, device, self.machine.precision)

    def stage(self, grid: Grid, batch: int, accumulate: int) -> Stage:
        """A stage with all that its memory depends on."""
        choices = (
            Choice("network.name", self.network, ""),
            *(Choice(f"network.settings.{key}", value, "") for key, value in self._settings(grid).items()),
            Choice("sampling.patch", list(grid.patch), ""),
            Choice("augment.noise", 0.1, ""),
            Choice("training.batch", batch, ""),
            Choice("training.accumulate", accumulate, ""),
        )
        return Plan("", "", choices).recipe.stages[0]

    def network_choices(self, grid: Grid) -> tuple[Choice, ...]:
        """Which network, its size and its grid."""
        where = "a CPU trains" if self.machine.on_cpu else f"{in_gb(self.machine.memory)} have no room for the paper's widths: this trains"
        narrow = f"Narrow, as {where} in reasonable time." if self.chosen else "Narrow, as asked."
        why = (
            narrow
            if self.size == "narrow"
            else "The paper's widths, for which there is room."
            if self.chosen
            else "The paper's size, as asked."
        )
        if self.network != "uxnet":
            own = [Choice("network.settings.size", self.size, why)] if self.size == "narrow" else []
            return Choice("network.name", self.network, "As asked, with settings of its own."), *own
        first = Choice("network.name", "uxnet", f"The 3D UX-Net. {why}")
        choices = uxnet_settings(grid, self.spacing_mm, 16 if self.size == "narrow" else 48)
        scale = Choice("network.settings.layer_scale", 0.1, "The paper's 1e-6 takes tens of thousands of steps to open the blocks.")
        return (first, *choices, scale) if self.size == "narrow" else (first, *choices)

    def _settings(self, grid: Grid | None) -> dict[str, Any]:
        if self.network != "uxnet" or grid is None:
            return {"size": "narrow"} if self.size == "narrow" else {}
        start = "network.settings."
        return {c.key.removeprefix(start): c.value for c in self.network_choices(grid) if c.key.startswith(start)}

    def _weightless(self, patch: Shape, settings: Any) -> Any:
        import torch

        from uxnet.networks.build import build

        with torch.device("meta"):
            return build(self.network, len(self.facts.fingerprint.channel_names), self.facts.labels.out_channels, patch, settings)


# ---- what is left to choose, when the patch is known


def _finished(search: _Search, found: Found, inspection: Inspection, steps: int | None, hours: float | None, timed: bool) -> Planned:
    machine, facts, patch = search.machine, search.facts, found.patch
    network = search.network_choices(found.grid)
    guess = 3 * found.gmac / (3 * _GMAC_A_CORE_SECOND * machine.cores) if machine.on_cpu else None
    length = _length(search, found, steps, guess)
    long = length.value >= 10_000
    choices = (
        *network,
        *search.prepare,
        _patch_choice(search, found),
        *rules.sampling(facts, math.prod(patch) / math.prod(search.median)),
        *rules.augmentation(facts, search.spacing_mm, long),
        *_training_choices(search, found, length, hours),
        _overlap(search.median, patch),
    )
    total = f"{inspection.manifest.name}: {len(facts.fingerprint.cases)} cases, {len(facts.fingerprint.classes)} classes"
    plan = Plan(inspection.manifest.name, f"Planned from the fingerprint of {total}.", choices)
    stage = plan.recipe.stages[0]
    time = None
    if timed:
        from uxnet.planning.memory import step_seconds

        channels, classes = len(facts.fingerprint.channel_names), facts.labels.out_channels
        time = step_seconds(stage, channels, classes, machine.device, machine.precision)
    return Planned(plan, found.memory + RUNTIME, found.gmac, time)


def _patch_choice(search: _Search, found: Found) -> Choice:
    whole = found.grid is search.grids[-1]
    size = "the whole of it" if whole else f"{math.prod(found.patch) / math.prod(search.median):.0%} of it, in its proportions"
    limit = "a larger one would only add air" if whole else f"more would take more than {in_gb(search.machine.memory)} of memory"
    if not whole and search.machine.on_cpu and found.gmac > 0.7 * _GMAC_A_CORE_STEP * search.machine.cores:
        limit = f"{found.gmac:.1f} GMac a step are what {plural(search.machine.cores, 'core')} can train on in a few seconds"
    if math.prod(found.patch) < 0.25 * math.prod(search.median):
        limit += "; a coarser spacing would show it more of the patient"
    reason = (
        f"The median case has {times([round(n) for n in search.median])} voxels when prepared; this is {size}, in whole strides of "
        f"{times([int(n) for n in np.prod(found.grid.strides, axis=0)])}; {limit}."
    )
    return Choice("sampling.patch", list(found.patch), reason)


def _length(search: _Search, found: Found, steps: int | None, guess: float | None) -> Choice:
    cases = round(0.8 * len(search.facts.fingerprint.cases)) or 1
    if steps is not None:
        return Choice("training.steps", steps, "As asked.")
    if guess is None:
        return Choice(
            "training.steps", _GPU_STEPS, f"As many as the 3D UX-Net's paper trains, for {plural(cases, 'training case')} a fold."
        )
    patches = min(8, max(1, round(math.prod(search.median) / math.prod(found.patch))))
    wanted, allowed = _PASSES * cases * patches / found.batch, 3600 * _CPU_HOURS / guess
    each = f" of {patches} patches each" if patches > 1 else ""
    reason = f"{_PASSES} passes over the {plural(cases, 'training case')} of a fold{each}, {found.batch} patches a step."
    if wanted < _CPU_STEPS:
        reason = f"The least that trains a network from nothing; {wanted:.0f} would be {reason}"
    if wanted > _GPU_STEPS:
        reason = f"As many as the 3D UX-Net's paper trains; {wanted:.0f} would be {reason}"
    sensible = min(max(_CPU_STEPS, wanted), _GPU_STEPS)
    if allowed < sensible:
        cores = f"{plural(search.machine.cores, 'core')} at about {guess:.1f} s a step"
        reason = f"What {cores} do in {_CPU_HOURS:g} hours; more would do better."
        if allowed < _LEAST_STEPS:
            reason = f"Fewer train nothing; they take {cores} {_LEAST_STEPS * guess / 3600:.0f} hours, and more would do better."
    return Choice("training.steps", _round(max(_LEAST_STEPS, min(sensible, allowed))), reason)


def _training_choices(search: _Search, found: Found, length: Choice, hours: float | None) -> tuple[Choice, ...]:
    steps, narrow = int(length.value), search.size == "narrow"
    rate, origin = (1e-3, "for narrow networks, as in the hippocampus recipe") if narrow else (1e-4, "the 3D UX-Net's paper, table 4")
    share = 20 if steps >= 10_000 else 3
    memory = f"{in_gb(found.memory + RUNTIME)} are predicted, {in_gb(search.machine.memory)} allowed"
    batch = "A patch is a whole case, so more of them steady the gradient" if found.batch > 2 else "The patch goes first: two is the least"
    more = [Choice("training.hours", hours, "As asked; it is turned into steps when the training begins.")] if hours else []
    if found.accumulate > 1:
        more.append(Choice("training.accumulate", found.accumulate, "One patch at a time: two do not fit into the memory."))
    return (
        Choice("optimiser.learning_rate", rate, f"AdamW: {origin}."),
        Choice("optimiser.weight_decay", 0.01, "Likewise."),
        Choice("schedule.kind", "cosine", "Down to 0 at the last step, so the last weights are the ones to keep."),
        Choice("schedule.warmup_steps", max(1, min(500, max(20, steps // 80), steps // 5)), f"A few of the {steps} steps."),
        length,
        *more,
        Choice("training.batch", found.batch, f"{batch}; {memory}."),
        Choice("training.validate_every", max(1, steps // share), f"{share} times; nothing is chosen by it."),
        Choice("training.clip_gradient", 12.0, "A guard against single bad steps (nnU-Net's)."),
        Choice("training.keep", "last", "The validation cases are what is reported, so nothing is chosen on them."),
    )


def _overlap(median: Three, patch: Shape) -> Choice:
    windows = math.prod(max(1, math.ceil((m - p) / (p / 2)) + 1) for m, p in zip(median, patch, strict=True))
    few = windows <= 27
    reason = f"The median case takes {plural(windows, 'window')} at an overlap of 0.5" + (
        "." if few else ": 0.25 takes a third and loses next to nothing."
    )
    return Choice("inference.overlap", 0.5 if few else 0.25, reason)


def _round(steps: float) -> int:
    """To two figures."""
    unit = 10 ** max(0, math.floor(math.log10(steps)) - 1)
    return int(round(steps / unit) * unit)
