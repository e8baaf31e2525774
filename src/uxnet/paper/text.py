"""A table of the paper beside ours: as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uxnet.errors import InputError
from uxnet.io import atomic

Status = Literal["printed", "not printed", "run", "counted", "read", "not run", "not read", "another dataset"]

NOT_RUN = "not run"
NOT_PRINTED = "not printed"

CSV_HEAD = ("table", "dataset", "row", "column", "source", "value", "status", "star", "ours_minus_paper", "folds", "cases", "note")


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, and the letters of its footnotes."""

    text: str
    feet: str = ""


@dataclass(frozen=True)
class Section:
    """One of the tables that a table is told in.

    align: a letter a column: "l" left, "r" right, "p" text that wraps.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    align: str


@dataclass(frozen=True)
class Entry:
    """A row of the CSV file: one figure.

    source: "paper" or "ours", with the letter of the cross-validation where there is one.
    value: a number with all its digits, or a text; None where there is none, and `status` says why.
    against_paper: ours - paper, of the same dataset only.
    folds, cases: that it is the mean over.
    """

    dataset: str
    row: str
    column: str
    source: str
    value: float | str | None
    status: Status
    star: bool = False
    against_paper: float | None = None
    folds: int | None = None
    cases: int | None = None
    note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper's and what there is beside it.

    name: "table1" to "table5"; notes: sentences that a reader must know; footnotes: letter -> sentence, in the order of the letters.
    """

    name: str
    title: str
    sections: tuple[Section, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    footnotes: tuple[tuple[str, str], ...] = ()


class Feet:
    """Footnotes while a table is made: a sentence gets a letter, the same one whenever it is said again."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def mark(self, sentence: str) -> str:
        """The letter; empty for no sentence."""
        if not sentence:
            return ""
        return self._letters.setdefault(sentence, letter(len(self._letters)))

    def all(self) -> tuple[tuple[str, str], ...]:
        """(letter, sentence), in order."""
        return tuple((mark, sentence) for sentence, mark in self._letters.items())


def letter(n: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (letter(n // 26 - 1) if n >= 26 else "") + chr(ord("a") + n % 26)


def write_table(folder: Path, table: PaperTable) -> list[Path]:
    """Writes NAME.md, NAME.csv and NAME.tex into a folder, each whole or not at all.

    Raises:
        InputError: if one cannot be written.
    """
    texts = {".md": to_markdown(table), ".csv": to_csv(table), ".tex": to_latex(table)}
    paths = []
    for suffix, text in texts.items():
        path = folder / f"{table.name}{suffix}"
        try:
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        paths.append(path)
    return paths


def to_markdown(table: PaperTable) -> str:
    """The sections under headings, then notes and footnotes."""
    rule = {"l": "---", "p": "---", "r": "---:"}
    parts = [f"# {_md(table.title)}\n"]
    for section in table.sections:
        lines = [[_md(cell) for cell in section.head], [rule[a] for a in section.align]]
        lines += [[_md(c.text) + (f"<sup>{','.join(c.feet)}</sup>" if c.feet else "") for c in row] for row in section.rows]
        parts.append(f"## {_md(section.title)}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines))
    said = [f"- {_md(note)}" for note in table.notes] + [f"- <sup>{mark}</sup> {_md(text)}" for mark, text in table.footnotes]
    if said:
        parts.append("## Notes\n\n" + "\n".join(said) + "\n")
    return "\n".join(parts)


def to_csv(table: PaperTable) -> str:
    """A line a figure, numbers with all their digits; an empty value has its reason in `status`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEAD)
    for e in table.entries:
        cells: list[Any] = [table.name, e.dataset, e.row, e.column, e.source, e.value, e.status, "*" if e.star else ""]
        difference = None if e.against_paper is None else round(e.against_paper, 9)
        writer.writerow(["" if cell is None else cell for cell in [*cells, difference, e.folds, e.cases, e.note]])
    return text.getvalue()


def to_latex(table: PaperTable) -> str:
    """A fragment for \\input: a table environment a section, and the notes as a list behind them."""
    parts = ["% needs \\usepackage{booktabs} and \\usepackage{graphicx}; made by uxnet reproduce\n"]
    for n, section in enumerate(table.sections):
        kinds = "".join({"p": "p{0.24\\linewidth}"}.get(a, a) for a in section.align)
        rows = [tuple(Cell(name) for name in section.head), *section.rows]
        lines = [" & ".join(tex(c.text) + (f"\\textsuperscript{{{','.join(c.feet)}}}" if c.feet else "") for c in row) for row in rows]
        body = "".join(f"    {line} \\\\\n" for line in lines[1:])
        parts.append(
            "\\begin{table}[htbp]\n  \\centering\n"
            f"  \\caption{{{tex(table.title)}. {tex(section.title)}.}}\n  \\label{{tab:{table.name}-{n + 1}}}\n"
            f"  \\resizebox{{\\linewidth}}{{!}}{{%\n  \\begin{{tabular}}{{{kinds}}}\n    \\toprule\n    {lines[0]} \\\\\n    \\midrule\n"
            f"{body}    \\bottomrule\n  \\end{{tabular}}}}\n\\end{{table}}\n"
        )
    said = [f"  \\item {tex(note)}" for note in table.notes]
    said += [f"  \\item[\\textsuperscript{{{mark}}}] {tex(text)}" for mark, text in table.footnotes]
    if said:
        parts.append("\\begin{itemize}\n" + "\n".join(said) + "\n\\end{itemize}\n")
    return "\n".join(parts)


_TEX = {
    "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}",
    "-": "-", "−": "$-$", "×": "$\\times$", "±": "$\\pm$", "°": "$^\\circ$", "–": "--", "†": "$\\dagger$",
    "[": "{[}", "]": "{]}", '"': "''", "\n": " ",
}  # fmt: skip


def tex(text: str) -> str:
    """A text as LaTeX prints it. Brackets are held in braces: behind \\\\ or \\item a bare one would be an option."""
    escaped = "".join(_TEX.get(c, c) for c in text)
    # A star behind \\\\ is an option, too.
    return f"{{}}{escaped}" if escaped.startswith("*") else escaped


def _md(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]#])", r"\\\1", text).replace("\n", " ")


def cells(texts: Sequence[str]) -> tuple[Cell, ...]:
    """Texts as cells without footnotes."""
    return tuple(Cell(text) for text in texts)
