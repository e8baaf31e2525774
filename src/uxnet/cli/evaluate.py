"""`uxnet evaluate`: predictions against references, as a table, JSON and CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from uxnet.evaluation import Evaluation, Summary

EXAMPLES = """examples:
  uxnet evaluate predictions/ labelsTs/ -o metrics.json
  uxnet evaluate case_01.nii.gz labelsTs/case_01.nii.gz --tolerance-mm 2
  uxnet evaluate predictions/ labelsTr/ --fold 0 --split runs/fold_0/split.json     what was held out in fold 0
  uxnet evaluate predictions/ labelsTs/ --labels dataset.json --empty one -o metrics.json --csv rows.csv
"""


def run(
    predicted: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PRED")],
    reference: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="REF")],
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None,
    csv: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    labels: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    tolerance_mm: Annotated[float, tyro.conf.arg(metavar="MM")] = 1.0,
    empty: Literal["skip", "one"] = "skip",
    only_predicted: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    fold: Annotated[int | None, tyro.conf.arg(metavar="K")] = None,
    split: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> int:
    """Compare predicted label maps with their references.

    Prints, for each class and for the mean over classes, Dice, HD95 (the larger of the two directed 95th percentiles of the surface
    distances, mm) and NSD (surface Dice at the tolerance), each with a 95 % bootstrap interval over cases; then the worst cases and
    what failed. A class that is in the reference but not predicted scores Dice 0, NSD 0 and, as HD95, the image's diagonal.

    The exit code is 0 if every reference (of the fold, or with a prediction, where that is asked for) was evaluated, else 1: a file
    that is missing, damaged or on another grid is named at the end, and the rest goes on. It is 2 if the arguments are wrong.

    Args:
        predicted: a predicted label map (.nii or .nii.gz), or a folder of them.
        reference: its reference, or a folder of references. Two folders are matched by file name.
            A reference without a prediction is a failure; a prediction without a reference is named and left out.
        output: write everything to this JSON file, and one row a case and class to a CSV file of the same name beside it.
        csv: write the CSV file here instead of beside the JSON file.
        labels: a dataset.json (Medical Segmentation Decathlon or nnU-Net) that says what the values mean.
            By default labels.json or dataset.json in REF or the folder above, else labels.json in PRED, else classes are named by their
            values.
        tolerance_mm: how far apart two surfaces may lie, in mm, and still agree in the NSD.
        empty: what a class counts that is neither in the reference nor predicted: nothing (skip) or as perfect (one).
            A class predicted where there is none gets Dice 0, NSD 0 and as HD95 nothing (skip) or the image's diagonal (one).
            A class that no reference shows has no score with skip; its false positives are counted.
        only_predicted: evaluate the references that have a prediction; the others are counted and are no failures.
        fold: evaluate the cases that fold K of --split held out: its test cases, or where it has none, those that validate.
        split: the split.json of uxnet train or uxnet crossval, for --fold.
    """
    from uxnet.cli.fold import cases_of_fold
    from uxnet.cli.outputs import refuse_outputs
    from uxnet.cli.render import Terminal, reporting
    from uxnet.errors import UsageError
    from uxnet.evaluation import evaluate_files, is_another_file, write_evaluation, write_evaluation_csv

    beside = output.with_suffix(".csv") if output and not csv else None
    csv = csv or beside
    refuse_outputs((output, ".json"), (csv, ".csv"), inputs=(labels, split))
    if beside and is_another_file(beside):
        raise UsageError(f"{beside}: is another file, and a table of the results goes there; name {output} otherwise, or give --csv")

    cases = cases_of_fold(fold, split)
    if cases is not None and not (predicted.is_dir() and reference.is_dir()):
        raise UsageError(f"--fold {fold}: PRED and REF must be folders, of which it takes the fold's cases")

    with reporting(Terminal(stderr=True), lines=False) as report:
        evaluation = evaluate_files(
            predicted,
            reference,
            labels=labels,
            tolerance_mm=tolerance_mm,
            empty=empty,
            only_predicted=only_predicted,
            cases=cases,
            report=report,
        )
    console = Terminal(at_least=76)
    show(console, evaluation)  # first: what it took to find out is not lost where a file cannot be written
    if output:
        write_evaluation(output, evaluation)
    if csv:
        write_evaluation_csv(csv, evaluation)
    for path in filter(None, (output, csv)):
        console.print(f"written: {path}", soft_wrap=True, highlight=False, markup=False)
    return 1 if evaluation.failures else 0


def show(console: Console, evaluation: Evaluation) -> None:
    """Prints the table of an evaluation, its worst cases and its failures."""
    from rich.markup import escape

    from uxnet.errors import plural, shortened

    if evaluation.cases:
        console.print(_table(evaluation, interval_below=console.width < 110))
        console.print(f"[dim]{_legend(evaluation)}[/]", highlight=False)
    worst = evaluation.worst() if len(evaluation.cases) > 1 else ()
    if worst:
        shown = ", ".join(f"{escape(case.name)} {case.mean('dice'):.3f}" for case in worst)
        console.print(f"lowest mean Dice: {shown}", soft_wrap=True, highlight=False)
    done, failed = len(evaluation.cases), len(evaluation.failures)
    missing = [failure for failure in evaluation.failures if failure.missing]
    for failure in evaluation.failures:
        if not failure.missing or len(missing) == 1:
            console.print(f"[red]failed:[/] {escape(failure.name)}: {escape(failure.message)}", soft_wrap=True, highlight=False)
    if len(missing) > 1:
        of = f"{len(missing)} of {done + failed} references have no prediction"
        which = escape(shortened((failure.name for failure in missing), 3))
        console.print(f"[red]failed:[/] {of}: {which}", soft_wrap=True, highlight=False)
        console.print("--only-predicted leaves them out; --fold K --split FILE takes the cases of one fold", style="dim", highlight=False)
    total = f"{done} of {plural(done + failed, 'case')} evaluated" + (f", {failed} failed (not in the means above)" if failed else "")
    if evaluation.left_out:
        total += f"; {plural(len(evaluation.left_out), 'reference')} without a prediction left out"
    console.print(f"[{'red' if failed else 'green'}]{total}[/]", highlight=False)


def _table(evaluation: Evaluation, interval_below: bool) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("class", overflow="fold")
    for name in ("Dice", "HD95 mm", f"NSD {evaluation.tolerance_mm:g} mm"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("n", "missed", "false\npos."):
        table.add_column(name, justify="right", no_wrap=True)
    gap = "\n" if interval_below else " "
    for summary in evaluation.classes():
        table.add_row(escape(summary.name), *_cells(summary, gap))
    table.add_section()
    table.add_row("mean", *_cells(evaluation.overall(), gap), style="bold")
    return table


def _cells(summary: Summary, gap: str) -> list[str]:
    from uxnet.cli.render import with_interval

    scores = [with_interval(s.interval, digits, gap) for s, digits in ((summary.dice, 3), (summary.hd95_mm, 2), (summary.nsd, 3))]
    return [*scores, str(summary.dice.n), str(summary.missed), str(summary.false_positives)]


def _legend(evaluation: Evaluation) -> str:
    from uxnet.errors import plural

    absent = sum(summary.absent for summary in evaluation.classes())
    counted = "nothing" if evaluation.empty == "skip" else "as perfect"
    lines = ["mean (95 % bootstrap interval over cases); n: cases that count in Dice"]
    if evaluation.overall().missed:
        lines.append("a missed class counts the image's diagonal as its HD95")
    if absent:
        lines.append(f"in neither map: {plural(absent, 'time')}, counts {counted}")
    if any(summary.dice.n == 0 for summary in evaluation.classes()):
        lines.append("-: no score, since no case counts")
    return "; ".join(lines)
