"""What a run's validations say about it: classes that were lost, classes that were never found, scores that no longer rise.

Pure functions of the validations so far, so that a run that was interrupted and resumed decides what one that was not does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Dices = Mapping[str, float | None]
"""A validation: the mean Dice of each class; None where no case showed or predicted it."""

FOUND = 0.5
"""A class whose mean Dice reached this was found.

It stands well above what comes and goes while a network learns. In a run of 240 steps on phantoms, validated every six, the left kidney
rose to 0.28, lay below 0.02 for 27 validations and came back; the right one fell from 0.43 to 0.00 and ended at 0.89. Nothing had
collapsed: the network had yet to tell them apart. What chance gives is less: a class that fills a tenth of a scan has a Dice of 0.18 if
it is predicted everywhere.
"""

LOST = 0.1
"""A class is lost below this share of its best Dice. One case that fails costs the mean of a few a part, not nine tenths."""

NEVER = 0.01
"""A class whose mean Dice never rose above this was not found at all: a few voxels fall into it by chance."""

ENOUGH = 1 / 3
"""The share of a run's steps by which each class should have been found at least a little."""


@dataclass(frozen=True)
class SummaryRow:
    """A class, or the mean: its Dice with the weights that were kept, its best Dice and at which step; None where it was not scored."""

    name: str
    kept: float | None
    best: float | None
    best_step: int | None


def lost_classes(history: Sequence[Dices]) -> dict[str, int]:
    """For how many validations in a row each class has been lost that was found before (`FOUND`, `LOST`); the others are not named.

    Args:
        history: the validations so far, in order. One in which a class could not be scored says nothing about it.
    """
    lost = {}
    for name in _names(history):
        best, row = 0.0, 0
        for dices in history:
            dice = dices.get(name)
            if dice is None:
                continue
            best = max(best, dice)
            row = row + 1 if best >= FOUND and dice < LOST * best else 0
        if row:
            lost[name] = row
    return lost


def lost_message(history: Sequence[Dices], lost: Mapping[str, int]) -> str:
    """A sentence on what `lost_classes` gave: which classes, since when, and what to do."""
    parts = []
    for name, row in lost.items():
        dices = [d for d in (validation.get(name) for validation in history) if d is not None]
        parts.append(f"{name} (Dice {max(dices):.2f} at best, {dices[-1]:.2f} {_validations(row)})")
    return (
        f"lost after it had been found: {', '.join(parts)}; try a lower optimiser.learning_rate, training.clip_gradient = 12, "
        'or sampling.balance = "class"'
    )


def never_found(history: Sequence[Dices], share_of_steps: float) -> tuple[str, ...]:
    """The classes that no validation found (`NEVER`), at the first validation after a third of the run (`ENOUGH`); else none.

    So each run names them once. A class that some validation could not score is in none of the validation cases, and is not named.

    Args:
        history: the validations so far, evenly spaced, in order.
        share_of_steps: of the run's steps that are done, 0..1; the last of `history` was made there.
    """
    before = share_of_steps * (len(history) - 1) / max(1, len(history))
    # Shares are quotients of steps: a third of them may be a rounding error less than a third.
    if not history or share_of_steps < ENOUGH - 1e-9 or before >= ENOUGH - 1e-9:
        return ()
    scores = {name: [dices.get(name) for dices in history] for name in _names(history)}
    return tuple(name for name, dices in scores.items() if all(d is not None and d < NEVER for d in dices))


def never_found_message(names: Sequence[str]) -> str:
    """A sentence on what `never_found` gave, and what to do."""
    return (
        f"not found in any validation so far, with a third of the steps done: {', '.join(names)}; what is small or what few cases show is "
        'learnt late: try sampling.balance = "class", a larger sampling.foreground, or more training.steps'
    )


def better(score: float, best: float) -> bool:
    """Whether a score is better than the best so far (-inf for none): by more than a ten-thousandth of it, as torch's
    ReduceLROnPlateau has it."""
    return best == -math.inf or score > best + 1e-4 * abs(best)


def stalled(scores: Sequence[float | None]) -> int:
    """How many validations in a row, up to the last, brought no `better` score; one without a score brought none."""
    best, row = -math.inf, 0
    for score in scores:
        if score is not None and better(score, best):
            best, row = score, 0
        else:
            row += 1
    return row


def stops_early(scores: Sequence[float | None], stop_after: int) -> bool:
    """Whether a run with these validations ends before its last step (`training.stop_after`; 0 for never)."""
    return stop_after > 0 and stalled(scores) >= stop_after


def stalled_message(scores: Sequence[float | None]) -> str:
    """A sentence on a run that `stalled`."""
    counted = [score for score in scores if score is not None]
    best = f"no better Dice than {max(counted):.4f}" if counted else "no Dice at all"
    return f"{best} {_validations(stalled(scores))}; training.stop_after = 0 goes on all the same"


def summary_rows(records: Sequence[Mapping[str, Any]], kept_step: int) -> tuple[SummaryRow, ...]:
    """The table at the end of a training: a row a class, in their order, then the mean.

    Args:
        records: of a run's `metrics.jsonl`, in order; those of kind "validation" count.
        kept_step: the step whose weights were kept.
    """
    validations = [record for record in records if record["kind"] == "validation"]
    columns = [(name, [v["classes"].get(name) for v in validations]) for name in _names([v["classes"] for v in validations])]
    columns.append(("mean", [v["dice"] for v in validations]))
    steps = [int(v["step"]) for v in validations]
    rows = []
    for name, dices in columns:
        scored = [(dice, -step) for dice, step in zip(dices, steps, strict=True) if dice is not None]
        best, step = max(scored, default=(None, 0))  # of equals the first
        kept = next((dice for dice, at in zip(dices, steps, strict=True) if at == kept_step), None)
        rows.append(SummaryRow(name, kept, best, -step if scored else None))
    return tuple(rows)


def _names(history: Sequence[Dices]) -> list[str]:
    return list(dict.fromkeys(name for dices in history for name in dices))


def _validations(row: int) -> str:
    return "in the last validation" if row == 1 else f"in {row} validations in a row"
