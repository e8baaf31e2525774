"""What beginning with another model's weights is worth: test Dice against the budget, and validation Dice on the way, in one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.evaluation.scores import COMMON
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.paper.bands import Band, BandPanel, bands
from uxnet.paper.figures import KINDS, NO_RECORDS, validations
from uxnet.paper.records import Trial

Run = list[tuple[float, float]]


def transfer_figure(folder: Path, trials: Sequence[Trial], *, band: Band = "range", note: str = "") -> list[Path]:
    """Cross-validations that differ in their budgets alone, as curves over it, an entry a curve with a band over folds.

    The first panel: mean Dice of the test cases of each fold, after trainings of several lengths; each point is a training of its own,
    with a schedule of its own. The second: the validation Dice during the longest. In the first a curve is of the folds that were trained
    with every budget that its entry has records of; what is left out or was not trained stands at the foot of the page.

    Args:
        folder: gets transfer.png and transfer.svg.
        note: for the foot of the page.

    Raises:
        InputError: if there are no records, they differ in more than their budgets or not in those, no fold has every budget, or a file
            cannot be written.
    """
    if not trials:
        raise InputError(NO_RECORDS)
    _refuse_others(trials)
    ordered = sorted(trials, key=lambda trial: _length(trial.facts["budget"]))
    timed = "core_seconds" in ordered[0].facts["budget"]
    unit = "core-seconds" if timed else "steps"
    tested, missing = _tested(ordered, unit)
    last = ordered[-1]
    during = {s.name: [validations(record, "seconds" if timed else "steps") for record in s.records] for s in last.scores}
    panels = [
        BandPanel("test cases, a training a point", tested),
        BandPanel(
            f"validation cases during {_length(last.facts['budget']):g} {unit}", {n: runs for n, runs in during.items() if any(runs)}
        ),
    ]
    said = f"{last.dataset}. Dice: mean over the classes, then over the cases of a fold."
    paths = [folder / f"transfer{kind}" for kind in KINDS]
    for path in paths:
        bands(
            path,
            [panel for panel in panels if panel.curves],
            xlabel=f"{unit} of training",
            ylabel="Dice",
            band=band,
            title="Transfer",
            note="\n".join(filter(None, (said, *missing, note))),
            names=list(dict.fromkeys((*tested, *during))),
        )
    return paths


def _tested(trials: Sequence[Trial], unit: str) -> tuple[dict[str, list[Run]], list[str]]:
    """Entry -> its folds, each with a point for every budget; and sentences on what is missing.

    A fold that lacks a budget is left out: between two trainings nothing may be interpolated, and a mean over other folds at each point
    would rise and fall with the folds.
    """
    lengths = [_length(trial.facts["budget"]) for trial in trials]
    found: dict[str, dict[int, dict[float, float]]] = {}
    for length, trial in zip(lengths, trials, strict=True):
        for scores in trial.scores:
            for record in scores.records:
                dice = mean_of_counted(scores.value(str(case["case"])) for case in record["cases"])
                if dice is not None:
                    found.setdefault(scores.name, {}).setdefault(int(record["fold"]), {})[length] = dice
    tested, said = {}, []
    for name, folds in found.items():
        own = sorted({length for points in folds.values() for length in points})
        none = [f"{length:g}" for length in lengths if length not in own]
        lacking = {fold: [f"{length:g}" for length in own if length not in points] for fold, points in sorted(folds.items())}
        left_out = [f"{fold} (lacks {', '.join(what)})" for fold, what in lacking.items() if what]
        said += [f"{name}: no training of {', '.join(none)} {unit}."] if none else []
        said += [f"{name}: folds left out, since they lack trainings (of so many {unit}): {', '.join(left_out)}."] if left_out else []
        tested[name] = [sorted(points.items()) for fold, points in sorted(folds.items()) if not lacking[fold]]
        if not tested[name]:
            raise InputError(f"{name}: no fold was trained with each of {', '.join(f'{length:g}' for length in own)} {unit}")
    return tested, said


def _refuse_others(trials: Sequence[Trial]) -> None:
    first = trials[0]
    for trial in trials[1:]:
        differs = [key.removesuffix("_sha256") for key in COMMON if key != "budget" and trial.facts[key] != first.facts[key]]
        if ("core_seconds" in trial.facts["budget"]) != ("core_seconds" in first.facts["budget"]):
            differs.append("kind of budget (steps, core-seconds)")
        if differs:
            raise InputError(
                f"the records of {first.letter} ({first.dataset}) and {trial.letter} ({trial.dataset}) differ in {', '.join(differs)}; "
                "this figure is of cross-validations that differ in their budgets alone"
            )
    if len({_length(trial.facts["budget"]) for trial in trials}) < len(trials):
        raise InputError(f"two of {', '.join(trial.letter for trial in trials)} have the same budget; give the records of each budget once")
    made: dict[str, Any] = {}
    for scores in (s for trial in trials for s in trial.scores):
        record = scores.records[0]
        what = [record["network"], record["settings"], record.get("init")]
        if made.setdefault(scores.name, what) != what:
            raise InputError(f"{scores.name}: under two budgets this name is of different networks, or they began with different weights")


def _length(budget: Mapping[str, Any]) -> float:
    return float(budget["core_seconds"]) if "core_seconds" in budget else float(sum(budget["steps"]))
