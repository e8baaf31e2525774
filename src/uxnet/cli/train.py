"""`uxnet train`: one fold of a dataset by a recipe."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from uxnet.errors import Cancelled, Preempted
from uxnet.events import Event, Progress, Report

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = """examples:
  uxnet train Task04_Hippocampus/ --recipe hippocampus --fold 0 -o runs/hippocampus
  uxnet train Task04_Hippocampus/ --recipe hippocampus -o runs/hippocampus --resume
  uxnet train Task04_Hippocampus/ --recipe hippocampus --network unet --set network.settings.size=narrow -o runs/unet
  uxnet train Task04_Hippocampus/ --recipe hippocampus-rapnet -o runs/rapnet
  uxnet train amos/ --recipe my.toml --init-from runs/flare/model.uxnet -o runs/amos
  uxnet train mine/ --recipe runs/a --init-from runs/a/model.uxnet -o runs/b     the recipe of a run, and its weights
  uxnet train data/ --recipe my.toml -o runs/mine --set training.steps=500 --set "sampling.patch=[64, 64, 64]"
  uxnet train data/ --recipe my.toml -o runs/mine --hours 2 --tensorboard
  torchrun --nproc-per-node 4 -m uxnet train data/ --recipe my.toml -o runs/mine --resume
"""


def run(
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    *,
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME|FILE|MODEL")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="RUN")],
    fold: Annotated[int | Literal["all"], tyro.conf.arg(metavar="K|all")] = 0,
    network: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    init_from: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    init_kernels: Literal["trilinear", "centred"] = "trilinear",
    teacher: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="MODEL")] = (),
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    hours: Annotated[float | None, tyro.conf.arg(metavar="H")] = None,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    protocol: Literal["5x80-20", "5x80-10-10"] | None = None,
    split: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    group_by: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
) -> int:
    """Train a network on one fold of a dataset and write a model.

    The dataset is checked first; one with errors is refused and the errors are named. Its cases are prepared once and cached.
    Validation segments whole cases on their own grids and scores the foreground.

    RUN holds: recipe.toml (all of it, overrides included), split.json (every fold's cases), inspection.json, metrics.jsonl (a line
    a step and a validation), curves.png, pictures/ of validation cases, checkpoints/ and, at the end, model.uxnet. A run that was
    interrupted, however rudely, goes on with --resume and ends with the same weights. SIGTERM and SIGUSR1 (a cluster that wants the
    machine back) save at once and leave with exit code 75.

    Started by torchrun or by SLURM's srun, all processes work on one run, each on its part of every batch.

    Args:
        dataset: a folder in one of the layouts that uxnet inspect knows.
        recipe: a recipe in the box (hippocampus, phantom, feta2021-paper, ...: docs/recipes.md), a TOML file, or a model, whose own is
            taken: a .uxnet file, a run's folder or a model in the box.
        output: the run's folder. One that holds a run already is refused without --resume.
        fold: which fold of the split is held out for validation, from 0; or all: every case trains and none validates, for a model whose
            settings are settled.
        network: another network than the recipe's, with its own settings instead of the recipe's (uxnet networks lists them).
        set: set a key of the recipe, such as training.steps=500; may be given again and again.
        init_from: begin with the weights of this model, a .uxnet file or the name of one in the box (uxnet models), wherever they fit;
            heads for other labels begin anew. Refused where less than a tenth of the encoder's parameters fit. Of a folder of uxnet
            crossval, the fold that did best in its validation. What became of each weight is printed, and written to RUN/transfer.json.
        init_kernels: how its kernels grow where this network's are larger: upsampled, or centred in zeros.
        teacher: learn what this model answers beside the labels, on every patch; given several times, the mean of their answers. Teachers
            have the dataset's labels and the recipe's preparation; their networks may be others. Recipe key loss.taught: how much.
        resume: go on with the run in RUN; if there is none, start it. With more training.steps than it had it goes on to these, where
            the learning rate so far would have been the same (schedule.kind constant or plateau).
        hours: train for about so long, validations included: measured before the first step, turned into a number of steps, and kept.
        device: auto, cpu, cuda, cuda:N or mps.
        strategy: of several processes: a whole network in each (ddp, the default), or one that is shared out (fsdp).
        tensorboard: also write RUN/tensorboard (needs pip install uxnet[track]).
        protocol: how cases are split if there is no split yet: five folds of 80 % training and 20 % validation (the default), or
            80/10/10 with a test part. Persons are kept whole.
        split: a file with the folds; made there if it does not exist. By default split.json in RUN.
        group_by: a regular expression that finds the person in a case's name. By default subjects.json in DATASET says who is who.
        cache: folder for the prepared cases, to be shared by runs of one dataset. By default cache in RUN.
        workers: processes that check and prepare cases; 0 works in this one. By default one a core.
        threads: that compute on a CPU; 0 takes one a core. Under torchrun it is for each process, by default 1. The last bits of the
            weights depend on it: resume a run with the number that it began with.
    """
    from uxnet.cli.render import Terminal, reporting
    from uxnet.model.catalogue import recipe_of, resolve
    from uxnet.recipe import with_network, with_overrides

    chosen = recipe_of(recipe)
    chosen = with_overrides(with_network(chosen, network) if network else chosen, set)
    if hours is not None:
        chosen = with_overrides(chosen, [f"training.hours={hours / len(chosen.stages)}"])
    console = Terminal(stderr=True)
    with console.status("loading torch"):
        from uxnet.crossval.best_fold import model_to_begin_with
        from uxnet.machine import usable_cores
        from uxnet.training.engine import is_first_process
        from uxnet.training.run import train
    asked = asked_to_leave("SIGINT")
    with reporting(console) as report, _interrupted(asked):
        model = train(
            dataset,
            chosen,
            output,
            fold=fold,
            split=split,
            protocol=protocol,
            group_by=group_by,
            init_from=model_to_begin_with(init_from, report) if init_from else None,
            init_kernels=init_kernels,
            teachers=[resolve(path) for path in teacher],
            resume=resume,
            device=device,
            strategy=strategy,
            cache=cache,
            workers=usable_cores() if workers is None else workers,
            threads=threads,
            tensorboard=tensorboard,
            stopping=lambda: asked() > 0,
            report=_leaving(report, asked),
        )
    if is_first_process():
        _print_summary(model, Terminal())
    return 0


def asked_to_leave(*more: str) -> Callable[[], int]:
    """Listens for SIGTERM, SIGUSR1 and `more` from now on; what it returns tells the first that has come, else 0.

    Ctrl-C (SIGINT) is listened for once: the second one stops the process as it always does.
    """
    came: list[int] = []

    def hear(number: int, _: object) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            print("\nstopping as soon as all is saved; press Ctrl-C again to stop at once", file=sys.stderr)

    for name in ("SIGTERM", "SIGUSR1", *more):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), hear)
    return lambda: came[0] if came else 0


@contextlib.contextmanager
def _interrupted(asked: Callable[[], int]) -> Iterator[None]:
    """Who was stopped by Ctrl-C was interrupted, and is not to be started again by whoever starts preempted jobs again."""
    try:
        yield
    except Preempted as error:
        if asked() == signal.SIGINT:
            raise Cancelled(str(error)) from error
        raise


def _leaving(report: Report, asked: Callable[[], int]) -> Report:
    """A report that leaves where nothing has to be saved: cases that are prepared stay, and before a validation all is saved."""

    def leaving(event: Event) -> None:
        report(event)
        if isinstance(event, Progress) and event.task != "training" and asked():
            raise Preempted(f"stopped while {event.task}; what was finished is kept, go on with --resume")

    return leaving


def _print_summary(model: Path, console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import duration
    from uxnet.errors import plural
    from uxnet.io.records import read_records
    from uxnet.io.schemas import MetricsLine
    from uxnet.model.file import read_model
    from uxnet.training.watch import stalled_message, summary_rows

    found = read_model(model)
    provenance, planned = found.provenance, found.recipe.stages[-1].training.steps
    training, cases = provenance["training"], len(provenance["split"]["validation"])
    stages = sorted(model.parent.glob("stage_*/metrics.jsonl"))
    records = read_records(stages[-1] if stages else model.parent / "metrics.jsonl", MetricsLine)
    rows = summary_rows(records, training["step"])
    table = Table(box=None, pad_edge=False)
    for name in ("class", "Dice", "best", "at step"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in rows:
        kept, best = ("-" if value is None else f"{value:.4f}" for value in (row.kept, row.best))
        table.add_row(escape(row.name), kept, best, "-" if row.best_step is None else str(row.best_step))
    if training["steps"] < planned:
        why = stalled_message([record["dice"] for record in records if record["kind"] == "validation"])
        console.print(f"stopped early, after {training['steps']} of {planned} steps: {why}", soft_wrap=True, highlight=False)
    took = duration(training["seconds"])
    console.print(f"weights of step {training['step']} of {training['steps']}, {took}; {plural(cases, 'validation case')}", highlight=False)
    if cases:
        console.print(table)
    console.print(f"written: {escape(str(model))}", soft_wrap=True, highlight=False)
