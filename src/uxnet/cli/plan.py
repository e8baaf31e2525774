"""`uxnet plan`: a recipe for a dataset, each of its keys with a reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from uxnet.planning.recipe_for import Machine, Planned

EXAMPLES = """examples:
  uxnet plan Task04_Hippocampus/ -o hippocampus.toml
  uxnet plan amos/ -o amos.toml --memory 12GB --device cuda --size paper
  uxnet plan scans/ -o scans.toml --network nnunet --hours 8
  uxnet train Task04_Hippocampus/ --recipe hippocampus.toml -o runs/planned
"""


_BUSY = 0.3  # cores that others keep busy, from which on it is said


def run(
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")],
    memory: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    size: Literal["auto", "paper", "narrow"] = "auto",
    network: Annotated[str, tyro.conf.arg(metavar="NAME")] = "uxnet",
    steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    hours: Annotated[float | None, tyro.conf.arg(metavar="H")] = None,
    spacing: Annotated[tuple[float, float, float] | None, tyro.conf.arg(metavar="I J K")] = None,
    timed: bool = True,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    group_by: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None,
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
) -> int:
    """Write a recipe for a dataset: spacing, intensities, patch, widths, strides and kernels, augmentation, batch and length.

    Every case is read and checked as `uxnet inspect` does; a dataset with errors is refused and the errors are named. The recipe is a
    TOML file in which every key stands under the reason for it, with this dataset's numbers. Read it, change what you know better, and
    train it.

    The patch is as large as the memory allows, by a prediction of what a training step takes; on a CPU it is no larger than its cores
    train on in a few seconds. The time is of this machine: the fastest of several short steps, scaled.

    Args:
        dataset: a folder in one of the layouts that uxnet inspect knows.
        output: the recipe, a .toml file. One that is there already is refused without --overwrite.
        memory: what the training process may take, such as 4GB. By default most of what is free: RAM, or that of the GPU.
        device: what it will be trained on: auto, cpu, cuda, cuda:N or mps.
        size: of the network. By default the paper's where a GPU has room for it, else narrow.
        network: another network than the 3D UX-Net, with settings of its own (uxnet networks lists them).
        steps: of the training, instead of what the rule gives.
        hours: how long the training may take; it counts the steps out when it begins.
        spacing: in mm, left-right, front-back and up-down, instead of what the rule gives.
        timed: measure how long a step takes.
        overwrite: write over a recipe that is there.
        group_by: a regular expression that finds the person in a case's name.
            By default subjects.json in DATASET says who is who, else each case is a person.
        workers: processes that read cases; each holds one case in memory.
    """
    from uxnet.cli.render import Terminal, reporting
    from uxnet.dataset.check import check_dataset, warn_and_refuse
    from uxnet.dataset.folds import too_few
    from uxnet.dataset.manifest import read_dataset
    from uxnet.errors import InputError, UsageError
    from uxnet.events import Note, Warn
    from uxnet.inference.memory import parse_size
    from uxnet.io import atomic
    from uxnet.networks.build import check_asked

    if output.suffix != ".toml" or output.is_dir():
        raise UsageError(f"{output}: name a file to write that ends in .toml, for example {output.with_suffix('.toml')}")
    if output.exists() and not overwrite:
        raise InputError(f"{output}: is there already; write over it with --overwrite, or name another file")
    if not all(0 < number < math.inf for number in (*(spacing or ()), *(n for n in (steps, hours) if n is not None))):
        raise UsageError("--steps, --hours, --spacing: must be above 0, and finite")
    check_asked(network)
    limit = parse_size(memory) if memory else None
    manifest = read_dataset(dataset, group_by=group_by)
    console = Terminal(stderr=True)
    with reporting(console, lines=False) as report:
        report(Note(manifest.summary))
        inspection = check_dataset(manifest, workers=workers, report=report)
        warn_and_refuse(inspection, report)
        if few := too_few(manifest):
            report(Warn(few))
        with console.status("loading torch"):
            from uxnet.planning.recipe_for import plan_recipe, this_machine

            machine = this_machine(device, limit)
        planned = plan_recipe(
            inspection,
            machine,
            network=network,
            size=size,
            steps=steps,
            hours=hours,
            spacing_mm=spacing,
            timed=timed,
            workers=workers,
            report=report,
        )
    cost = _cost(planned, machine)
    head = [f"Planned by `uxnet plan` for {manifest.name}; every key stands under its reason. Change what you know better.", cost]
    with atomic(output) as temporary:
        temporary.write_text(planned.plan.to_toml(head), encoding="utf-8")
    _print(Terminal(), planned, cost, output)
    return 0


def _cost(planned: Planned, machine: Machine) -> str:
    from uxnet.cli.render import duration
    from uxnet.errors import plural
    from uxnet.inference.memory import in_gb

    training = planned.plan.recipe.stages[0].training
    text = f"Memory about {in_gb(planned.memory)} of the {in_gb(machine.memory)} allowed on {machine.device} in {machine.precision}; "
    text += f"{planned.gmac:.3g} GMac forward a step"
    time = planned.time
    if time is None:
        return text + "."
    whole = (
        f"{training.hours:g} h"
        if training.hours
        else f"{duration(time.seconds * training.steps)} for {training.steps:,} {'step' if training.steps == 1 else 'steps'}"
    )
    how = f"the fastest of {time.measured} short measurements"
    if machine.on_cpu:
        how = f"{plural(time.threads, 'thread')}, {how}"
        busy = f"other processes kept {time.others:.1f} of {plural(machine.cores, 'core')} busy, without them it may be faster"
        how += f"; {busy}" if time.others > _BUSY else ""
    return f"{text}, about {time.seconds:.2g} s a step on this machine ({how}), {whole} without validations."


def _print(console: Console, planned: Planned, cost: str, written: Path) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(planned.plan.name), title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("key", overflow="fold")
    table.add_column("value", overflow="fold", max_width=30)
    table.add_column("why", overflow="fold", ratio=1)
    before = ""
    for choice in planned.plan.choices:
        if before and choice.key.split(".")[0] != before:
            table.add_section()
        before = choice.key.split(".")[0]
        table.add_row(escape(choice.key), escape(_short(choice.value)), f"[dim]{escape(choice.reason)}[/]")
    console.print(table)
    console.print(escape(cost), soft_wrap=True, highlight=False)
    console.print(f"written: {escape(str(written))}", soft_wrap=True, highlight=False)


def _short(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_short, value)) + "]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return str(value)
