"""`uxnet inspect`: what is wrong with a dataset, and its fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from uxnet.dataset.check import Inspection
    from uxnet.dataset.fingerprint import Fingerprint, Spread

EXAMPLES = """examples:
  uxnet inspect Task04_Hippocampus/
  uxnet inspect Task04_Hippocampus/ --workers 4 -o inspection.json
  uxnet inspect scans/ --group-by '^(patient[0-9]+)'
"""


def run(
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None,
    group_by: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None,
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
) -> int:
    """Check every case of a dataset, and print its problems and its fingerprint.

    Errors, which training refuses: files that are missing or cannot be read, values that are not finite, images without label map
    or the reverse, grids that differ, label values that are no whole numbers or no labels, images that are constant, another number
    of channels. Warnings: label maps without foreground, the same image under two names, spacings far from the others', classes
    that no case shows, organs whose volumes do not fit their names.

    The fingerprint is the median and range over the cases of sizes, spacings, intensities and class volumes.

    The exit code is 0 if there are no errors, else 1.

    Args:
        dataset: a folder in the layout of the Medical Segmentation Decathlon, of nnU-Net (raw), of a MONAI datalist, or of FeTA 2021,
            FLARE 2021 or AMOS 2022 as downloaded. Without a dataset.json: one with the folders images and labels, whose files are matched
            by name, or BIDS with label maps. Which of them it was taken for stands in the first line.
        output: write everything, each case's figures too, to this JSON file.
        group_by: a regular expression that finds the person in a case's name (its first group, else the whole match).
            By default subjects.json in DATASET says who is who, else each case is a person.
        workers: processes that read cases; each holds one case in memory.
    """
    from rich.markup import escape

    from uxnet.cli.outputs import refuse_outputs
    from uxnet.cli.render import Terminal, reporting
    from uxnet.dataset.check import check_dataset
    from uxnet.dataset.manifest import read_dataset
    from uxnet.io import write_json

    refuse_outputs((output, ".json"))
    manifest = read_dataset(dataset, group_by=group_by)
    console = Terminal(at_least=76)
    console.print(f"[bold]{escape(manifest.summary)}[/]", soft_wrap=True, highlight=False)
    with reporting(Terminal(stderr=True), lines=False) as report:
        inspection = check_dataset(manifest, workers=workers, report=report)
    _print(console, inspection)
    if output:  # last: what was found is shown even where a full disk cannot take it
        write_json(output, inspection.to_dict())
        console.print(f"written: {escape(str(output))}", soft_wrap=True, highlight=False)
    return 1 if inspection.errors else 0


def _print(console: Console, inspection: Inspection) -> None:
    from uxnet.errors import plural

    fingerprint, cases = inspection.fingerprint, plural(len(inspection.manifest.cases), "case")
    if inspection.problems:
        console.print(_problems(inspection))
    if fingerprint.cases:
        console.print(_fingerprint(fingerprint))
    errors, warnings = len(inspection.errors), len(inspection.warnings)
    colour = "red" if errors else "yellow" if warnings else "green"
    total = f"{plural(errors, 'error')}, {plural(warnings, 'warning')} in {cases}"
    hint = "; training refuses this dataset until the errors are gone" if errors else ""
    console.print(f"[{colour}]{total}{hint}[/]", soft_wrap=True, highlight=False)


def _problems(inspection: Inspection) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from uxnet.dataset.check import relative

    table = Table(title="problems", title_justify="left", box=box.SIMPLE_HEAD, header_style="bold")
    table.add_column("case", overflow="fold")
    table.add_column("", no_wrap=True)
    table.add_column("what is wrong", overflow="fold", ratio=1)
    for problem in inspection.problems:
        colour = "red" if problem.severity == "error" else "yellow"
        where = "" if problem.path is None else f" [dim]({escape(relative(problem.path, inspection.manifest.root))})[/]"
        table.add_row(escape(problem.case or "all"), f"[{colour}]{problem.severity}[/]", escape(problem.message) + where)
    return table


def _fingerprint(fingerprint: Fingerprint) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="fingerprint", title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold", min_width=22)
    for name in ("median", "least", "greatest", "cases"):
        table.add_column(name, justify="right", no_wrap=True)
    count = str(len(fingerprint.cases))
    table.add_row("size, voxels", *_three(fingerprint.sizes_vox), count)
    table.add_row("spacing, mm", *_three(fingerprint.spacings_mm), count)
    for orientation, n in fingerprint.orientations.items():
        table.add_row("orientation", orientation, "", "", str(n))
    figures = {"p00_5": "0.5th percentile", "median": "median", "p99_5": "99.5th percentile", "mean": "mean", "std": "standard deviation"}
    for foreground in (False, True):
        for c, channel in enumerate(fingerprint.channel_names):
            spreads = fingerprint.intensities(c, foreground=foreground)
            entries = [case.foreground if foreground else case.intensities for case in fingerprint.cases]
            seen = str(sum(c < len(entry) for entry in entries))
            table.add_section()
            if spreads:
                table.add_row(f"[bold]{escape(channel)}, intensity in the {'foreground' if foreground else 'whole image'}[/]")
            for figure, text in figures.items() if spreads else ():
                table.add_row(f"  {text}", *_one(spreads[figure]), seen)
    table.add_section()
    table.add_row("[bold]volume of each class, ml, where it occurs[/]")
    for name in fingerprint.classes:
        volume = fingerprint.volume_ml(name)
        table.add_row(f"  {escape(name)}", *(_one(volume) if volume else ("-", "-", "-")), str(fingerprint.cases_with(name)))
    table.add_section()
    table.add_row("digest", fingerprint.sha256[:12], "", "", count)
    return table


def _one(spread: Spread) -> tuple[str, str, str]:
    return _figure(spread.median), _figure(spread.minimum), _figure(spread.maximum)


def _three(spreads: tuple[Spread, ...]) -> tuple[str, str, str]:
    """Axis by axis: the least size is that of each axis, not of one case."""
    median, least, greatest = ("x".join(column) for column in zip(*map(_one, spreads), strict=True))
    return median, least, greatest


def _figure(number: float) -> str:
    size = abs(number)
    return f"{number:.3g}" if size < 1000 and number != round(number) else f"{number:.0f}" if size < 1e7 else f"{number:.2e}"
