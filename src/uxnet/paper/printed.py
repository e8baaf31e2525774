"""What the paper prints in its tables 1 to 5 (Lee et al., ICLR 2023, arXiv:2209.15076), digit for digit, from paper_tables.json.

Figures of the table that turn out to be something else are told by `doubt`, which computes what can be computed. The counts of
parameters and FLOPs are audited in `networks.survey`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

DIGITS = 3
"""Of a printed Dice."""


@dataclass(frozen=True)
class Challenge:
    """One of the paper's three datasets, as its tables of Dice have it.

    name, title: "FeTA2021", "FeTA 2021"; word: what the name of such a dataset has in it.
    columns: head of a column -> names of its class, in the table's order, without the mean.
    mean: head of the mean's column.
    """

    name: str
    title: str
    word: str
    columns: Mapping[str, Sequence[str]]
    mean: str

    def heads(self, classes: Sequence[str]) -> dict[str, str] | None:
        """Class -> head of its column; None where the classes are not those of this dataset."""
        known = {plain(name): head for head, names in self.columns.items() for name in names}
        found = {name: known.get(plain(name), "") for name in classes}
        return found if sorted(found.values()) == sorted(self.columns) else None


@dataclass(frozen=True)
class PaperRow:
    """A row of tables 1 to 3.

    title: as printed; network: its name in `networks.build`; settings: of table 3, what tells the row apart.
    dice: dataset -> head of a column -> Dice, the mean among them.
    stars: datasets whose mean has a star: p < 0.01, Wilcoxon signed-rank against all others.
    """

    title: str
    network: str
    dice: Mapping[str, Mapping[str, float]]
    params_m: float | None = None
    flops_g: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    stars: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overview:
    """A column of table 5; texts as printed, `cases` its sample size."""

    modality: str
    region: str
    size: str
    spacing: str
    cases: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Paper:
    """The facts: `hyperparameters` (table 4) by scenario ("direct", "finetuning") and row."""

    source: str
    challenges: Mapping[str, Challenge]
    table1: tuple[PaperRow, ...]
    table2: tuple[PaperRow, ...]
    table3: tuple[PaperRow, ...]
    hyperparameters: Mapping[str, Mapping[str, str]]
    overviews: Mapping[str, Overview]


@functools.cache
def paper() -> Paper:
    """The facts in the box."""
    data = json.loads((resources.files("uxnet.paper") / "paper_tables.json").read_text(encoding="utf-8"))
    tables = {key: tuple(PaperRow(**{**row, "stars": tuple(row["stars"])}) for row in data[key]) for key in ("table1", "table2", "table3")}
    return Paper(
        source=data["source"],
        challenges={name: Challenge(name=name, **facts) for name, facts in data["datasets"].items()},
        hyperparameters=data["table4"],
        overviews={name: Overview(**{**facts, "labels": tuple(facts["labels"])}) for name, facts in data["table5"].items()},
        **tables,
    )


def plain(name: str) -> str:
    """A name for comparing: small letters, American spelling made British, everything else a space."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower().replace("gray", "grey")).strip()


def challenge_of(dataset: str, classes: Sequence[str]) -> Challenge | None:
    """The paper's dataset of that name and with those classes; None where it is another: both must fit."""
    for challenge in paper().challenges.values():
        if challenge.word in plain(dataset).replace(" ", "") and challenge.heads(classes):
            return challenge
    return None


def mean_of_row(row: PaperRow, challenge: Challenge) -> float:
    """The mean of the printed Dices of a row."""
    printed = row.dice[challenge.name]
    return sum(printed[head] for head in challenge.columns) / len(challenge.columns)


def doubt(row: PaperRow, challenge: Challenge) -> str:
    """A sentence where the printed mean is not the mean of its row; empty where it is, or the row is a mean alone."""
    printed = row.dice[challenge.name]
    if not set(challenge.columns) <= set(printed):
        return ""
    mean, said = mean_of_row(row, challenge), printed[challenge.mean]
    # A thousandth of the last digit: printed digits in binary are not exact.
    if abs(mean - said) <= 0.5 * 10**-DIGITS + 1e-6:
        return ""
    # Entries and mean are rounded: each may be off by half a digit.
    explained = abs(mean - said) <= 10**-DIGITS + 1e-6
    reason = "rounding of the entries may be why" if explained else "rounding of the entries is not why"
    return f"{challenge.title}: the {len(challenge.columns)} printed values of {row.title} average {mean:.4f}, not {said:.3f}; {reason}."
