"""Tables 1, 2 and 3 of the paper, with what was run here beside its figures."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uxnet.errors import plural
from uxnet.evaluation.scores import MEAN, Scores
from uxnet.paper.printed import Challenge, PaperRow, doubt, paper
from uxnet.paper.records import (
    ALPHA,
    Trial,
    init_of,
    is_plain,
    mean_dice,
    network_of,
    settings_text,
    stars,
)
from uxnet.paper.text import NOT_PRINTED, NOT_RUN, Cell, Entry, Feet, PaperTable, Section, Status, cells

if TYPE_CHECKING:
    from uxnet.paper.networks import Row

TITLES = {
    "table1": "Table 1: nine networks on FeTA 2021 and FLARE 2021",
    "table2": "Table 2: fine-tuning on AMOS 2022",
}
OF = {"table1": ("FeTA2021", "FLARE2021"), "table2": ("AMOS2022",), "table3": ("FeTA2021", "FLARE2021")}
"""The datasets of a table."""

SWAPPED = (
    "FLARE 2021: the organisers number 1 liver and 3 spleen, the authors' list has them the other way about and renumbers nothing: the "
    "printed columns Spleen and Liver may have each other's name."
)
RERUN = "Independent reruns of the authors' scripts, with folds of their own, report 0.813 on FeTA 2021 and 0.926 on FLARE 2021."
ABSTRACT = "The abstract's 0.938 on FLARE 2021 is table 3's kernel of 13, not this network's."
GAIN = (
    "By the printed organs the 3D UX-Net is 2.0 % above SwinUNETR (0.8985 and 0.8805), not 2.27 %. The table's caption says AMOS 2021; the "
    "data are those of AMOS 2022."
)
FINE_TUNED = (
    "The paper's networks were trained on FLARE 2021 first; a cross-validation begins with fresh weights, so its figures here are those "
    "of training from scratch."
)
BEGUN = "The paper's networks were trained on FLARE 2021 first; with which weights ours began stands under What was run."


@dataclass(frozen=True)
class _Line:
    """A line of a table of Dices: whose it is, its cells, and what they were made over."""

    row: str
    source: str
    cells: tuple[Cell, ...]
    folds: str = ""
    cases: str = ""


def score_table(name: str, trials: Sequence[Trial]) -> PaperTable:
    """Table 1 or 2.

    Args:
        name: "table1" or "table2".
        trials: from `read_trials`; none is a table that says so.
    """
    facts, feet = paper(), Feet()
    rows = facts.table1 if name == "table1" else facts.table2
    challenges = [facts.challenges[dataset] for dataset in OF[name]]
    taken = [t for t in trials if t.challenge is None or t.challenge in challenges]
    chosen = {t.letter: [s for s in t.scores if is_plain(s)] for t in taken}
    won = {t.letter: stars(t, chosen[t.letter]) for t in taken}
    sections, entries = [], []
    if name == "table1":
        section, counted = _costs(rows, feet)
        sections.append(section)
        entries += counted
    for challenge in challenges:
        own = [t for t in taken if t.challenge is challenge]
        lines, found = _dice_lines(rows, challenge, own, chosen, won, feet)
        head = ("network", "values", *challenge.columns, challenge.mean, "folds", "cases")
        sections.append(_section(f"{challenge.title}, Dice", head, lines))
        entries += found
    for trial in (t for t in taken if t.challenge is None):
        section, found = _other_dataset(rows, challenges, trial, chosen[trial.letter], won[trial.letter])
        sections.append(section)
        entries += found
    if taken:
        sections.append(run_section((t, s) for t in taken for s in chosen[t.letter]))
    notes = [*_notes(name, taken, chosen), *left_out(trials, taken, chosen)]
    return PaperTable(name, TITLES[name], tuple(sections), tuple(entries), tuple(notes), feet.all())


def _section(title: str, head: Sequence[str], lines: Sequence[_Line]) -> Section:
    made = []
    for n, line in enumerate(lines):
        first = "" if n and lines[n - 1].row == line.row else line.row
        made.append((Cell(first), Cell(line.source), *line.cells, Cell(line.folds), Cell(line.cases)))
    return Section(title, tuple(head), tuple(made), "ll" + "r" * (len(head) - 2))


# ---- parameters and FLOPs


@functools.cache
def _counted() -> Mapping[str, Row]:
    """The nine networks, counted as table 1 has them."""
    from uxnet.paper.networks import survey

    return {row.name: row for row in survey()}


def _costs(rows: Sequence[PaperRow], feet: Feet) -> tuple[Section, list[Entry]]:
    counted = _counted()
    head = ("network", "M parameters, paper", "M parameters, counted", "FLOPs (G), paper", "GMac by the paper's way of counting", "GMac")
    lines, entries = [], []
    for row in rows:
        ours = counted[row.network]
        differs = False in (ours.parameters_agree, ours.flops_agree)
        mark = feet.mark(f"{row.title}: {' '.join(ours.notes)}") if differs else ""
        params, flops = ours.parameters / 1e6, ours.macs.paper / 1e9
        marks = ["" if agrees else mark for agrees in (ours.parameters_agree, ours.flops_agree)]
        printed = (ours.printed.parameters_m or NOT_PRINTED, ours.printed.flops_g or NOT_PRINTED)
        texts = (row.title, printed[0], f"{params:.2f}", printed[1], f"{flops:.2f}", f"{ours.macs.true / 1e9:.2f}")
        feet_of = ("", marks[0], "", marks[1], "", "")
        lines.append(tuple(Cell(text, foot) for text, foot in zip(texts, feet_of, strict=True)))
        note = " ".join(ours.notes)
        for column, said, value in (("params_m", row.params_m, params), ("flops_g", row.flops_g, flops)):
            entries.append(Entry("", row.title, column, "paper", said, "printed"))
            off = None if said is None else value - said
            entries.append(Entry("", row.title, column, "ours", value, "counted", against_paper=off, note=note))
        entries.append(Entry("", row.title, "gmac_true", "ours", ours.macs.true / 1e9, "counted"))
    return Section("Parameters and multiply-accumulates", head, tuple(lines), "lrrrrr"), entries


# ---- Dice


def _dice_lines(
    rows: Sequence[PaperRow],
    challenge: Challenge,
    trials: Sequence[Trial],
    chosen: Mapping[str, Sequence[Scores]],
    won: Mapping[str, Mapping[str, str]],
    feet: Feet,
) -> tuple[list[_Line], list[Entry]]:
    """Of one of the paper's datasets: a line for the paper, one for each of ours, and one for their difference."""
    heads = [*challenge.columns, challenge.mean]
    lines: list[_Line] = []
    entries: list[Entry] = []
    for row in (*rows, *_unlisted(rows, trials, chosen)):
        printed = row.dice.get(challenge.name, {})
        doubted = feet.mark(doubt(row, challenge)) if printed else ""
        starred = challenge.name in row.stars
        shown = []
        for head in heads:
            mean = head == challenge.mean
            text = f"{printed[head]:.3f}{'*' if starred and mean else ''}" if printed else NOT_PRINTED
            shown.append(Cell(text, doubted if mean else ""))
            status: Status = "printed" if printed else "not printed"
            entries.append(Entry(challenge.name, row.title, head, "paper", printed.get(head), status, star=starred and mean))
        lines.append(_Line(row.title, "paper", tuple(shown), "", ""))
        if not trials:
            lines.append(_Line(row.title, "ours", tuple(Cell(NOT_RUN) for _ in heads), "0", "0"))
            entries += [Entry(challenge.name, row.title, head, "ours", None, "not run") for head in heads]
        for trial in trials:
            same = [s for s in chosen[trial.letter] if network_of(s) == row.network]
            if not same:
                lines.append(_Line(row.title, f"ours {trial.letter}", tuple(Cell(NOT_RUN) for _ in heads), "0", "0"))
                entries += [Entry(challenge.name, row.title, head, f"ours {trial.letter}", None, "not run") for head in heads]
            for s in same:
                source = f"ours {trial.letter}" + (f", {s.name}" if len(same) > 1 else "")
                ours, found = _our_line(row, trial, s, source, won[trial.letter], printed)
                lines.append(ours)
                entries += found
                if printed:
                    lines.append(_differences(row, source, found))
    return lines, entries


def _our_line(
    row: PaperRow, trial: Trial, scores: Scores, source: str, won: Mapping[str, str], printed: Mapping[str, float]
) -> tuple[_Line, list[Entry]]:
    """Ours, a mean a column; a column whose cases are fewer says how many count."""
    shown, entries = [], []
    whole = mean_dice(scores, MEAN)
    for head, name in trial.columns.items():
        mean = mean_dice(scores, name)
        star = won.get(name) == scores.name
        text = "no case counts" if mean.value is None else f"{mean.value:.3f}{'*' if star else ''}"
        shown.append(Cell(text if mean.cases == len(scores.cases) or mean.value is None else f"{text} (n = {mean.cases})"))
        off = None if mean.value is None or head not in printed else mean.value - printed[head]
        entries.append(
            Entry(
                trial.challenge.name if trial.challenge else trial.dataset,
                row.title,
                head,
                source,
                mean.value,
                "run",
                star,
                off,
                mean.folds,
                mean.cases,
                f"{scores.name}: {settings_text(scores)}",
            )
        )
    return _Line(row.title, source, tuple(shown), str(whole.folds), str(len(scores.cases))), entries


def _differences(row: PaperRow, source: str, entries: Sequence[Entry]) -> _Line:
    shown = tuple(Cell("" if e.against_paper is None else f"{e.against_paper:+.3f}".replace("-", "−")) for e in entries)
    return _Line(row.title, f"{source} − paper", shown)


def _unlisted(rows: Sequence[PaperRow], trials: Iterable[Trial], chosen: Mapping[str, Sequence[Scores]]) -> list[PaperRow]:
    """Networks that were run and are in no row of the table."""
    from uxnet.networks.build import NETWORKS

    run = {network_of(s) for t in trials for s in chosen[t.letter]}
    listed = {row.network for row in rows}
    return [PaperRow(entry.title, name, {}) for name, entry in NETWORKS.items() if name in run - listed]


def _other_dataset(
    rows: Sequence[PaperRow], challenges: Sequence[Challenge], trial: Trial, scores: Sequence[Scores], won: Mapping[str, str]
) -> tuple[Section, list[Entry]]:
    """Of a dataset that the paper has not: its classes, and the paper's means marked as those of other datasets."""
    others = [f"{c.title}, {c.mean}: paper, another dataset" for c in challenges]
    lines, entries = [], []
    for row in (*rows, *_unlisted(rows, [trial], {trial.letter: list(scores)})):
        means = tuple(Cell(f"{row.dice[c.name][c.mean]:.3f}" if c.name in row.dice else NOT_PRINTED) for c in challenges)
        for c in challenges:
            value = row.dice.get(c.name, {}).get(c.mean)
            status: Status = "not printed" if value is None else "another dataset"
            entries.append(Entry(trial.dataset, row.title, f"{c.title} {c.mean}", "paper", value, status))
        same = [s for s in scores if network_of(s) == row.network]
        if not same:
            lines.append(_Line(row.title, f"ours {trial.letter}", (*means, *(Cell(NOT_RUN) for _ in trial.columns)), "0", "0"))
            entries += [Entry(trial.dataset, row.title, head, f"ours {trial.letter}", None, "not run") for head in trial.columns]
        for s in same:
            source = f"ours {trial.letter}" + (f", {s.name}" if len(same) > 1 else "")
            ours, found = _our_line(row, trial, s, source, won, {})
            lines.append(_Line(row.title, source, (*means, *ours.cells), ours.folds, ours.cases))
            entries += found
    head = ("network", "values", *others, *trial.columns, "folds", "cases")
    return _section(f"{trial.dataset}, Dice (not a dataset of the paper)", head, lines), entries


# ---- what was run, and what must be said


def run_section(runs: Iterable[tuple[Trial, Scores]]) -> Section:
    """What was run: which settings, what it costs, how long it trained."""
    from uxnet.crossval.summary import cost

    head = ("", "name", "network", "settings", "M parameters", "GMac a patch", "folds", "cases", "steps", "minutes a fold")
    made = []
    for trial, scores in runs:
        c = cost(scores)
        minutes, steps = c["seconds_training"], c["steps"]
        figures = (
            f"{c['parameters'] / 1e6:.2f}",
            f"{c['gmac']:.2f}",
            ", ".join(map(str, c["folds"])),
            str(c["cases"]),
            "not recorded" if steps is None else f"{steps:g}",
            "not recorded" if minutes is None else f"{minutes / 60:.1f}",
        )
        made.append(cells((trial.letter, scores.name, network_of(scores), settings_text(scores), *figures)))
    return Section("What was run", head, tuple(made), "lllprrrrrr")


def _notes(name: str, trials: Sequence[Trial], chosen: Mapping[str, Sequence[Scores]]) -> list[str]:
    said = [f"Paper: {paper().source}", *common_notes(trials)]
    said.append(
        f"*: p < {ALPHA} by Wilcoxon's signed-rank test, two-sided, against each of the other networks of the column; the paper has it at "
        "the means of the 3D UX-Net, against all others. Ours is tested in every column, on the same test cases."
    )
    for trial in trials:
        scores = chosen[trial.letter]
        if len({network_of(s) for s in scores}) < 2:
            said.append(f"{trial.letter}: there are no two networks, so nothing can be tested.")
            continue
        shared = set.intersection(*(set(s.cases) for s in scores))
        # Of n pairs the test gives no p below 2 / 2^n.
        if 2 / 2 ** len(shared) >= ALPHA:
            said.append(f"{trial.letter}: {plural(len(shared), 'case')} in common: too few for any star.")
        if any(len(s.cases) != len(shared) for s in scores):
            said.append(f"{trial.letter}: the networks were not all run on the same folds, so their means are over different cases.")
    if any(network_of(s) == "rapnet" for t in trials for s in chosen[t.letter]):
        said.append("RAP-Net is a method of two phases; by a recipe of one stage it is the network of one phase alone.")
    begun = any(init_of(s) for t in trials for s in chosen[t.letter])
    return said + ([RERUN, ABSTRACT, SWAPPED] if name == "table1" else [GAIN, BEGUN if begun else FINE_TUNED])


def common_notes(trials: Sequence[Trial]) -> list[str]:
    """What was run, and that cross-validations under different letters are not comparable."""
    if not trials:
        return ["No records were given, so nothing of ours was run: uxnet crossval makes them."]
    said = [trial.terms() for trial in trials]
    if len(trials) > 1:
        said.append(
            "The letters are cross-validations that differ in dataset, split, recipe, budget or scoring; they are not compared with "
            "each other."
        )
    if any(t.challenge for t in trials):
        said.append("Ours − paper compares means over different cases: which cases the paper's folds had is not published.")
    return said


def left_out(trials: Sequence[Trial], taken: Sequence[Trial], chosen: Mapping[str, Sequence[Scores]]) -> list[str]:
    """What was given and does not belong into the table."""
    said = [f"Left out: {t.letter}, {t.dataset}, which is not of this table." for t in trials if t not in taken]
    for trial in taken:
        rest = [s.name for s in trial.scores if s not in chosen[trial.letter]]
        if rest:
            said.append(f"Left out of {trial.letter}: {', '.join(rest)}, with settings that table 3 is about.")
    return said
