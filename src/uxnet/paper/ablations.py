"""Table 3 of the paper, the 3D UX-Net changed in one thing at a time: what was run is found by its settings, never by its name."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from uxnet.evaluation.scores import MEAN, Scores
from uxnet.paper.printed import PaperRow, paper
from uxnet.paper.records import (
    ABLATED,
    Mean,
    Trial,
    ablation_of,
    block_of,
    init_of,
    mean_dice,
    network_of,
    settings_of,
    settings_text,
)
from uxnet.paper.scores import OF, common_notes, left_out, run_section
from uxnet.paper.text import NOT_PRINTED, NOT_RUN, Cell, Entry, Feet, PaperTable, Section, Status

SAME = "Use Depth Conv., Kernel 7 and Use DCS 1x1x1 are one network, and share what was run."
BLOCK = "The table cannot tell the block of Eq. 1 from the authors' code: both print as 53.0 M parameters."


def ablation_table(trials: Sequence[Trial]) -> PaperTable:
    """Table 3: a row an ablation, a group of columns a dataset; further networks of that kind that were run stand below."""
    facts, feet = paper(), Feet()
    challenges = [facts.challenges[name] for name in OF["table3"]]
    taken = [t for t in trials if t.challenge is None or t.challenge in challenges]
    kept = {t.letter: [s for s in t.scores if network_of(s) in ("uxnet", "swinunetr")] for t in taken}
    matched = {t.letter: _matched(kept[t.letter]) for t in taken}
    counted = _counts()
    head = ["row", *ABLATED, "M parameters, paper", "M parameters, counted"]
    for challenge in challenges:
        head.append(f"{challenge.title}, paper")
        own = [t for t in taken if t.challenge is challenge]
        head += (
            [f"{challenge.title}, ours"] if not own else [f"{challenge.title}, ours {t.letter}{x}" for t in own for x in ("", " − paper")]
        )
    head += [f"{t.dataset}, ours {t.letter}" for t in taken if t.challenge is None]
    lines, entries = [], []
    for n, row in enumerate(facts.table3):
        params, agrees, why = counted[n]
        mark = "" if agrees else feet.mark(f"{row.title}: {why}")
        line = [
            Cell(row.title),
            *(Cell(str(row.settings.get(key, "-"))) for key in ABLATED),
            Cell(f"{row.params_m:.1f}", mark),
            Cell(f"{params:.2f}"),
        ]
        entries.append(Entry("", row.title, "params_m", "paper", row.params_m, "printed"))
        off = None if row.params_m is None else params - row.params_m
        entries.append(Entry("", row.title, "params_m", "ours", params, "counted", against_paper=off, note="" if agrees else why))
        found, said = _dices(row, taken, {letter: rows.get(n) for letter, rows in matched.items()}, feet)
        lines.append((*line, *found))
        entries += said
    for letter, name, scores in _further(taken, kept, matched):
        row = PaperRow(name, network_of(scores), {})
        changed = ablation_of(scores) if row.network == "uxnet" else {}
        line = [
            Cell(row.title),
            *(Cell(str(changed.get(key, "-"))) for key in ABLATED),
            Cell(NOT_PRINTED),
            Cell(f"{scores.records[0]['parameters'] / 1e6:.2f}"),
        ]
        found, said = _dices(row, taken, {t.letter: scores if t.letter == letter else None for t in taken}, feet)
        lines.append((*line, *found))
        entries += said
    section = Section("Mean Dice, with (folds, cases) for ours", tuple(head), tuple(lines), "llrl" + "r" * (len(head) - 4))
    more = [run_section((t, s) for t in taken for s in kept[t.letter])] if taken else []
    notes = [f"Paper: {facts.source}", *common_notes(taken), "Parameters are counted with 5 classes, as FLARE 2021 has.", SAME, BLOCK]
    notes += left_out(trials, taken, {t.letter: t.scores for t in taken})
    rest = {t.letter: [s.name for s in t.scores if s not in kept[t.letter]] for t in taken}
    notes += [f"Left out of {letter}: {', '.join(names)}, which is not of this table." for letter, names in rest.items() if names]
    title = "Table 3: ablations of the 3D UX-Net"
    return PaperTable("table3", title, (section, *more), tuple(entries), tuple(notes), feet.all())


@functools.cache
def _counts() -> list[tuple[float, bool, str]]:
    """Millions of parameters of each row, whether the printed ones are the same, and why not."""
    from uxnet.paper.networks import ablations

    rows = [row for row in ablations() if row.printed.parameters_m is not None]
    return [(row.parameters / 1e6, bool(row.parameters_agree), " ".join(row.notes)) for row in rows]


def _matched(scores: Sequence[Scores]) -> dict[int, Scores]:
    """Number of a row -> what was run of it: of several the one that is nearest to what the paper's row is."""
    found: dict[int, Scores] = {}
    for n, row in enumerate(paper().table3):
        fitting = [
            s for s in scores if network_of(s) == row.network and (row.network != "uxnet" or ablation_of(s) == {**ABLATED, **row.settings})
        ]
        fitting.sort(key=_off_the_papers)
        if fitting:
            found[n] = fitting[0]
    return found


def _off_the_papers(scores: Scores) -> tuple[bool, ...]:
    """Sorts what was run of a row: first what began afresh, then what has the paper's size, the released block, no other setting."""
    settings = settings_of(scores)
    more = settings.keys() - {"size", "block", *ABLATED}
    return init_of(scores) is not None, settings.get("size", "paper") != "paper", block_of(scores) != "released", bool(more)


def _further(
    trials: Sequence[Trial], kept: Mapping[str, Sequence[Scores]], matched: Mapping[str, Mapping[int, Scores]]
) -> list[tuple[str, str, Scores]]:
    """(letter, title, scores) of what was run and is in no row."""
    return [
        (t.letter, f"{s.name} ({t.letter})" + ("" if block_of(s) == "released" else f", block = {block_of(s)}"), s)
        for t in trials
        for s in kept[t.letter]
        if not any(s is known for known in matched[t.letter].values())
    ]


def _dices(row: PaperRow, trials: Sequence[Trial], run: Mapping[str, Scores | None], feet: Feet) -> tuple[list[Cell], list[Entry]]:
    """The cells of a row behind its parameters, and their lines of the CSV file."""
    shown: list[Cell] = []
    entries: list[Entry] = []
    for name in OF["table3"]:
        challenge = paper().challenges[name]
        printed = row.dice.get(name, {}).get(challenge.mean)
        shown.append(Cell(NOT_PRINTED if printed is None else f"{printed:.3f}"))
        status: Status = "not printed" if printed is None else "printed"
        entries.append(Entry(name, row.title, challenge.mean, "paper", printed, status))
        own = [t for t in trials if t.challenge is challenge]
        if not own:
            shown.append(Cell(NOT_RUN))
            entries.append(Entry(name, row.title, challenge.mean, "ours", None, "not run"))
        for trial in own:
            cell, entry = _ours(row, trial, run[trial.letter], printed, feet)
            off = entry.against_paper
            shown += [cell, Cell(NOT_RUN if entry.value is None else NOT_PRINTED if off is None else f"{off:+.3f}".replace("-", "−"))]
            entries.append(entry)
    for trial in (t for t in trials if t.challenge is None):
        cell, entry = _ours(row, trial, run[trial.letter], None, feet)
        shown.append(cell)
        entries.append(entry)
    return shown, entries


def _ours(row: PaperRow, trial: Trial, scores: Scores | None, printed: float | None, feet: Feet) -> tuple[Cell, Entry]:
    dataset, source = trial.challenge.name if trial.challenge else trial.dataset, f"ours {trial.letter}"
    if scores is None:
        return Cell(NOT_RUN), Entry(dataset, row.title, trial.mean_head, source, None, "not run")
    mean: Mean = mean_dice(scores, MEAN)
    note = f"{scores.name}: {settings_text(scores)}"
    # The row has the paper's title: which network stands there, of what size and begun with what, has to be beside it.
    mark = feet.mark(f"{trial.letter}: {note}.")
    if mean.value is None:
        none = Entry(dataset, row.title, trial.mean_head, source, None, "run", folds=mean.folds, cases=0, note=note)
        return Cell("no case counts", mark), none
    off = None if printed is None else mean.value - printed
    entry = Entry(dataset, row.title, trial.mean_head, source, mean.value, "run", False, off, mean.folds, mean.cases, note)
    return Cell(f"{mean.value:.3f} ({mean.folds}, {mean.cases})", mark), entry
