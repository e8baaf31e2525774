"""`uxnet compare`: networks on the same test cases, with intervals, ranks and paired tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from uxnet.evaluation.compare import Comparison

EXAMPLES = """examples:
  uxnet compare cv/
  uxnet compare cv/ --against swinunetr -o comparison.md --csv comparison.csv
  uxnet compare cv_a/ cv_b/records/unet-fold0.json --by person
  uxnet compare ours=a/metrics.json theirs=b/metrics.json --json > comparison.json
"""


def run(
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")],
    *,
    against: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    by: Literal["case", "person"] = "case",
    alpha: Annotated[float, tyro.conf.arg(metavar="P")] = 0.05,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None,
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    boxes: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Compare networks on the test cases that they have in common, matched by name.

    Prints for each network mean Dice, HD95 and NSD with 95 % bootstrap intervals, Dice by class, and its rank; then Wilcoxon's
    signed-rank test (two-sided) of one network against each other, p values after Holm's correction, the rank-biserial correlation and
    the median difference with its interval; and says in words who is best and whether the difference is significant, whoever it is.

    RUN is the folder of a cross-validation, some of its records, or a JSON file of uxnet evaluate (or the folder of a metrics.json).

    Args:
        runs: two networks or more, in however many files and folders. NAME=PATH gives what is in PATH a name.
        against: the network that is tested against each of the others; by default uxnet, or the first where there is none.
        by: what is counted: cases, as in the paper, or persons, each with the mean of its cases: two cases of one person are not
            independent.
        alpha: the level of significance.
        output: write the comparison to this Markdown file.
        csv: write a row a metric, class and network to this CSV file.
        boxes: draw a box plot of the mean Dice of every case that all networks have, a box a network, to this file (.png or .svg).
        json: print everything as JSON instead.
    """
    import json as json_module

    from uxnet.cli.outputs import refuse_outputs
    from uxnet.cli.render import Terminal
    from uxnet.errors import InputError, UsageError, printable
    from uxnet.evaluation.compare import compare
    from uxnet.evaluation.compare_text import to_dict, write_csv, write_markdown
    from uxnet.evaluation.scores import read_scores

    if not runs:
        raise UsageError("no runs: name what is to be compared, folders of cross-validations, records or files of uxnet evaluate")
    refuse_outputs((output, ".md"), (csv, ".csv"), (boxes, ".png or .svg"))
    scores = read_scores(runs)
    if len(scores) < 2:
        raise InputError(f"{scores[0].name}: comparing needs two networks or more")
    comparison = compare(scores, against, by=by, alpha=alpha)
    if output:
        write_markdown(output, comparison)
    if csv:
        write_csv(csv, comparison)
    if boxes:
        from uxnet.draw import boxes as draw_boxes

        shared = set.intersection(*(set(s.cases) for s in scores))
        dices = {s.name: [dice for case in sorted(shared) if (dice := s.value(case)) is not None] for s in scores}
        draw_boxes(boxes, {s.name: dices[s.name] for s in comparison.ranked()}, "Mean Dice of every test case that all have")
    if json:
        print(printable(json_module.dumps(to_dict(comparison), indent=1, ensure_ascii=False)))
        return 0
    console = Terminal()
    show(console, comparison)
    for path in filter(None, (output, csv, boxes)):
        console.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)
    return 0


def show(console: Console, comparison: Comparison) -> None:
    """Prints the tables of a comparison, what its figures are, and who is best in words."""
    from rich.markup import escape

    from uxnet.evaluation.compare_text import legend, standing_rows, test_rows, verdict

    console.print(table(*standing_rows(comparison)))
    head, rows = test_rows(comparison)
    if rows:
        console.print(table(head, rows))
    console.print(f"[dim]{escape(legend(comparison))}[/]", highlight=False)
    for line in verdict(comparison):
        console.print(f"[bold]{escape(line)}[/]", highlight=False)
    for line in comparison.notes:
        console.print(f"[yellow]note:[/] {escape(line)}", highlight=False)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table for the terminal: the first column to the left, the others to the right; intervals below their means."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for n, name in enumerate(head):
        made.add_column(escape(name), justify="right" if n else "left", overflow="fold")
    for row in rows:
        made.add_row(*(escape(cell.replace(" (", "\n(") if " to " in cell else cell) for cell in row))
    return made
