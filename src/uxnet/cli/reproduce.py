"""`uxnet reproduce`: the paper's tables and figures, with what was run beside what it prints."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console
    from rich.table import Table

    from uxnet.paper.text import PaperTable, Section

EXAMPLES = """examples:
  uxnet reproduce table1 --feta cv_feta/ --flare cv_flare/ -o paper/
  uxnet reproduce table1 --records cv_hippocampus/
  uxnet reproduce table3 --records cv_ablations/ -o paper/
  uxnet reproduce table4 -o paper/
  uxnet reproduce table5 --dataset inspection.json --dataset Task04_Hippocampus/ -o paper/
  uxnet reproduce figure3 --records cv/ --over seconds -o paper/
  uxnet reproduce transfer --records cv_50/ --records cv_200/ --records cv_800/ -o paper/
  uxnet reproduce figure4 --records cv/ --dataset Task04_Hippocampus/ --note "Data: ..., CC BY-SA 4.0" -o paper/
"""

What = Literal["table1", "table2", "table3", "table4", "table5", "figure3", "figure4", "transfer"]
_MADE_OF_RECORDS: tuple[What, ...] = ("table1", "table2", "table3", "figure3", "figure4", "transfer")
_USED_BY: dict[str, tuple[What, ...]] = {
    **dict.fromkeys(("records", "feta", "flare", "amos"), _MADE_OF_RECORDS),
    "dataset": ("table5", "figure4"),
    "over": ("figure3",),
    "band": ("figure3", "transfer"),
    **dict.fromkeys(("cases", "rows", "plane"), ("figure4",)),
    "note": ("figure3", "figure4", "transfer"),
    "workers": ("table5",),
}
_TEXT = 24  # columns of a terminal that a text which wraps has at least
Folders = Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")]


def run(
    what: Annotated[What, tyro.conf.Positional],
    *,
    records: Folders = (),
    feta: Folders = (),
    flare: Folders = (),
    amos: Folders = (),
    dataset: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = (),
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None,
    over: Literal["steps", "seconds"] = "steps",
    band: Literal["range", "interval"] = "range",
    cases: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "",
    rows: Annotated[int, tyro.conf.arg(metavar="N")] = 3,
    plane: Literal["axial", "coronal", "sagittal"] = "axial",
    note: Annotated[str, tyro.conf.arg(metavar="TEXT")] = "",
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
) -> int:
    """Make the paper's tables and figures again: what it prints beside what was run.

    Tables 1 to 3 and figures 3 and 4 are made of records of uxnet crossval, table 4 of the recipes in the box, table 5 of datasets or
    of what uxnet inspect wrote about them. Nothing is trained. What was not run is said to be so. Records that differ in dataset,
    split, recipe, budget or scoring stand under letters of their own and are not compared with each other. A flag that does nothing
    for what is asked for is refused.

    Args:
        what: table1 (nine networks on FeTA and FLARE), table2 (AMOS), table3 (ablations), table4 (hyperparameters), table5
            (datasets), figure3 (validation curves), figure4 (slices), transfer (not in the paper: test Dice against the budget, for
            cross-validations that differ in their budgets alone, such as from scratch and fine-tuned).
        records: a folder of a cross-validation, or of its records. It counts as FeTA, FLARE or AMOS where both its dataset's name and
            its classes say so; otherwise its own classes stand beside the paper's other datasets. May be given again and again.
        feta: the same, for records that are of FeTA 2021 whatever their dataset is called.
        flare: the same for FLARE 2021.
        amos: the same for AMOS 2022.
        dataset: for table5 a dataset's folder or an inspection.json, and as many as you like; for figure4 the dataset's folder.
        output: folder that gets NAME.md, NAME.csv and NAME.tex of a table, or NAME.png and NAME.svg of a figure. Figures need it.
        over: what figure3's curves run over: optimiser steps, or core-seconds of training.
        band: of figure3 and transfer over folds: lowest to highest, or the 95 % interval of the mean.
        cases: figure4's test cases; by default --rows of them, from the lowest mean Dice of the networks to the highest.
        rows: how many cases figure4 shows.
        plane: of figure4.
        note: a line for the foot of a figure, such as whose the data are.
        workers: processes that read the datasets of table5.
    """
    from uxnet.cli.render import Terminal, reporting
    from uxnet.errors import UsageError
    from uxnet.paper.tables import paper_table, read_trials, write_table

    console = Terminal()
    _refuse_unused(
        what,
        {
            "records": records,
            "feta": feta,
            "flare": flare,
            "amos": amos,
            "dataset": dataset,
            "over": over,
            "band": band,
            "cases": cases,
            "rows": rows,
            "plane": plane,
            "note": note,
            "workers": workers,
        },
    )
    if rows < 1:
        raise UsageError(f"--rows {rows}: a figure shows at least 1 case")
    trials = read_trials({"": records, "FeTA2021": feta, "FLARE2021": flare, "AMOS2022": amos})
    if what == "figure3" or what == "figure4" or what == "transfer":
        from uxnet.paper.figures import figure_notes
        from uxnet.paper.tables import curve_figure, slice_figure, transfer_figure

        if output is None:
            raise UsageError(f"{what}: say by -o which folder gets {what}.png and {what}.svg")
        if what == "figure3":
            paths = curve_figure(output, trials, over=over, band=band, note=note)
        elif what == "transfer":
            paths = transfer_figure(output, trials, band=band, note=note)
        else:
            if len(dataset) != 1:
                raise UsageError("figure4 needs the folder of the cases' images: give it by --dataset")
            names = [name.strip() for name in cases.split(",") if name.strip()]
            paths = slice_figure(output, trials, dataset[0], cases=names, rows=rows, plane=plane, note=note)
        for line in figure_notes(trials, None if what == "figure4" else band):
            console.print(line, highlight=False, markup=False)
    else:
        with reporting(Terminal(stderr=True), lines=False) as report:
            table = paper_table(what, trials, dataset, workers=workers, report=report)
        show(console, table)
        paths = write_table(output, table) if output else []
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)
    return 0


def _refuse_unused(what: What, given: Mapping[str, object]) -> None:
    """Refuses what changes nothing in this table or figure, and was perhaps meant to."""
    from uxnet.errors import UsageError

    usual = inspect.signature(run).parameters
    unused = [name for name, value in given.items() if value != usual[name].default and what not in _USED_BY[name]]
    if unused:
        raise UsageError(f"{what} does not use --{unused[0]}; it is for {', '.join(_USED_BY[unused[0]])}")


def show(console: Console, table: PaperTable) -> None:
    """Prints the sections of a table, its notes and its footnotes."""
    console.print(f"{table.title}\n", style="bold", highlight=False, markup=False)
    for section in table.sections:
        for n, part in enumerate(_parts(section, console.width)):
            console.print(_table(section, part, section.title if n == 0 else None))
    for line in table.notes:
        console.print(f"- {line}", style="dim", highlight=False, markup=False)
    for mark, line in table.footnotes:
        console.print(f"[{mark}] {line}", highlight=False, markup=False)


def _parts(section: Section, width: int) -> list[list[int]]:
    """The columns of a section in parts that fit a terminal, each with the columns that say what a row is."""
    widths = [_width(section, n) + 2 for n in range(len(section.head))]
    named = [n for n, align in enumerate(section.align) if align == "l" and n < 2]
    parts, free = [list(named)], width - sum(widths[n] for n in named)
    left = free
    for n in range(len(section.head)):
        if n in named:
            continue
        if widths[n] > left and len(parts[-1]) > len(named):
            parts.append(list(named))
            left = free
        parts[-1].append(n)
        left -= widths[n]
    return parts


def _width(section: Section, n: int) -> int:
    """Of a column: its longest cell, or the longest line of its head."""
    if section.align[n] == "p":
        return min(_TEXT, max([len(section.head[n]), *(len(row[n].text) for row in section.rows)]))
    cells = [len(row[n].text) + (len(row[n].feet) + 3 if row[n].feet else 0) for row in section.rows]
    return max([*cells, *map(len, _head(section, n).splitlines())], default=0)


def _head(section: Section, n: int) -> str:
    """The head of a column in lines not much wider than its cells."""
    return textwrap.fill(section.head[n], max(12, *(len(row[n].text) for row in section.rows), 0), break_long_words=False)


def _table(section: Section, columns: Sequence[int], title: str | None) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    colours = {"not run": "yellow", "not read": "yellow", "not printed": "dim"}
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for n in columns:
        wraps = section.align[n] == "p"
        made.add_column(
            escape(section.head[n] if wraps else _head(section, n)),
            justify="right" if section.align[n] == "r" else "left",
            overflow="fold",
            no_wrap=not wraps,
            min_width=_width(section, n) if wraps else None,
        )
    for row in section.rows:
        shown = []
        for cell in (row[n] for n in columns):
            text = escape(cell.text) + (f"[dim] {escape(f'[{cell.feet}]')}[/]" if cell.feet else "")
            shown.append(f"[{colours[cell.text]}]{text}[/]" if cell.text in colours else text)
        made.add_row(*shown)
    return made
