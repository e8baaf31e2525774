"""`uxnet crossval`: several networks, on every fold of a dataset, on equal terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from uxnet.errors import Preempted
from uxnet.events import Event, Report

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from uxnet.crossval.run import Outcome

EXAMPLES = """examples:
  uxnet crossval Task04_Hippocampus/ --recipe hippocampus --networks uxnet,unet,swinunetr --size narrow --steps 1200 -o cv
  uxnet crossval Task04_Hippocampus/ --recipe hippocampus --networks all --size narrow --core-seconds 3600 -o cv
  uxnet crossval data/ --recipe my.toml -o cv                               the recipe's own network
  uxnet crossval data/ --recipe my.toml --protocol 5x80-20 -o cv            every case scored, none chosen on
  uxnet crossval data/ --recipe my.toml --variant released=uxnet --variant text=uxnet:block=paper --folds 0,1 -o cv
  uxnet crossval data/ --recipe my.toml --variant scratch=recipe --variant tuned=recipe --init tuned=model.uxnet -o cv
  uxnet crossval data/ --recipe my.toml --networks uxnet,unet -o cv --shard 3/10     the third of ten jobs of an array
  uxnet crossval data/ --recipe my.toml --networks uxnet,unet -o cv --ray auto       on a Ray cluster
"""


def run(
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    *,
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME|FILE|MODEL")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")],
    networks: Annotated[str, tyro.conf.arg(metavar="A,B,...")] = "",
    variant: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=NETWORK:KEY=VALUE")] = (),
    size: Literal["paper", "narrow"] = "paper",
    init_from: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    init: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=MODEL")] = (),
    steps: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    core_seconds: Annotated[float | None, tyro.conf.arg(metavar="S")] = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    folds: Annotated[str, tyro.conf.arg(metavar="K,L,...")] = "",
    shard: Annotated[str | None, tyro.conf.arg(metavar="I/N")] = None,
    jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    threads: Annotated[int, tyro.conf.arg(metavar="T")] = 1,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS")] = None,
    split: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    protocol: Literal["5x80-10-10", "5x80-20"] | None = None,
    group_by: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    tolerance_mm: Annotated[float, tyro.conf.arg(metavar="MM")] = 1.0,
    keep_labels: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Train and test several networks on every fold of a dataset, on equal terms, and compare them.

    Five folds of 80 % training, 10 % validation and 10 % test, by person, or of 80 % and 20 % (--protocol). Cases, preparation,
    patches, augmentation, loss, optimiser, schedule, seed and budget are the same for all networks. Each network on each fold is a
    unit: it trains in DIR/runs/NAME-foldK, segments the fold's test cases, which are used for nothing else, and leaves
    DIR/records/NAME-foldK.json with its scores, curve, cost and machine. DIR/README.md and DIR/summary.json are made anew from all
    records that are there.

    The same command again does what is missing: a unit that was interrupted goes on where it was, one that has a record is left as it
    is. So DIR can be filled in pieces, on different days and machines. Records of another split, recipe, dataset or budget are
    refused. A unit that fails is named, and the rest goes on; the exit code is then 1.

    Args:
        dataset: a folder in one of the layouts that uxnet inspect knows.
        recipe: a recipe in the box, a TOML file, or a model, whose own is taken; its network gives place to each of those that are
            compared.
        output: the cross-validation's folder. recipe.toml, split.json, records/, README.md and summary.json are what is worth keeping.
        networks: names of networks, with commas between them, or all (uxnet networks lists them); by default the recipe's own, as it
            is there. Each has its own settings of the size that --size says.
        variant: a network with other settings, under a name of its own, such as uxnet-k9=uxnet:kernel=9:scaling=mlp; values as TOML
            writes them. The network `recipe` is the recipe's own, as it is there. May be given again and again.
        size: of the networks: as in the paper, or narrow enough for a CPU.
        init_from: begin with the weights of this model (a .uxnet file, the name of one in the box, or a folder of uxnet crossval: the
            fold that did best in its validation), wherever they fit, as uxnet train does; every network that --init does not name.
        init: the same for one network, by the name it goes by here. May be given again and again: --variant scratch=recipe
            --variant finetuned=recipe --init finetuned=MODEL compares fresh weights with those of MODEL.
        steps: optimiser steps of each unit, instead of the recipe's.
        core_seconds: train each unit for so long on one core instead, validations included: with T threads for S / T seconds. Some
            steps are measured first, and the time is turned into a number of steps.
        set: set a key of the recipe, such as training.validate_every=200; may be given again and again.
        folds: numbers of the folds to do, from 0, with commas between them; by default all.
        shard: do part I of N of the units; for jobs that share DIR, such as those of a job array.
        jobs: units side by side, each in a process of its own; by default as many as the cores (or GPUs) hold. With --ray, by default
            as many as the cluster holds.
        threads: that each unit computes with, held to cores of its own where the system can.
        device: auto, cpu, cuda or mps. With --ray, auto is the CPU; cuda reserves a GPU for each unit.
        ray: do the units on a Ray cluster (pip install 'uxnet[ray]'): auto (the one that this machine belongs to), HOST:PORT, or
            local, which begins one on this machine. Its machines must see the same files.
        split: a file with the folds. By default DIR/split.json, made if it is not there.
        protocol: of the split that is made. 5x80-10-10, by default, tests half of all cases. 5x80-20 has no test cases: the validation
            cases, over five folds every case, are scored, and the recipe may choose nothing on them (training.keep = "last").
        group_by: a regular expression that finds the person in a case's name. By default subjects.json in DATASET says who is who.
        cache: folder for the prepared cases, shared by all units. By default cache in DIR.
        tolerance_mm: how far apart two surfaces may lie, in mm, and still agree in the NSD.
        keep_labels: keep the label maps of the test cases, in DIR/runs/NAME-foldK/test.
    """
    from uxnet.cli.render import Terminal, reporting
    from uxnet.cli.train import asked_to_leave
    from uxnet.crossval.best_fold import model_to_begin_with
    from uxnet.crossval.run import Budget, cross_validate, entries_of, with_beginnings
    from uxnet.model.catalogue import recipe_of
    from uxnet.recipe import with_overrides

    chosen = with_overrides(recipe_of(recipe), set)
    asked = asked_to_leave()
    with reporting(Terminal(stderr=True)) as report:
        entries = with_beginnings(entries_of(_names(networks), variant, size), init, report)
        outcomes = cross_validate(
            dataset,
            chosen,
            output,
            entries,
            init_from=model_to_begin_with(init_from, report) if init_from else None,
            budget=Budget(steps, core_seconds),
            folds=_numbers(folds),
            part=shard,
            jobs=jobs,
            threads=threads,
            device=device,
            cluster=ray,
            split=split,
            protocol=protocol,
            group_by=group_by,
            cache=cache,
            tolerance_mm=tolerance_mm,
            keep_labels=keep_labels,
            report=_leaving(report, asked),
        )
    show(Terminal(), outcomes, output)
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def show(console: Console, outcomes: Sequence[Outcome], output: Path) -> None:
    """Prints what all records come to, and what became of the units of this call."""
    from rich.markup import escape

    from uxnet.cli.compare import show as show_comparison
    from uxnet.cli.compare import table
    from uxnet.crossval.summary import compared, cost_rows, equal_terms, incomplete
    from uxnet.errors import plural
    from uxnet.evaluation.scores import read_scores, record_files

    if record_files(output / "records"):
        scores = read_scores([output])
        console.print(table(*cost_rows(scores, short=True)))
        comparison = compared(scores)
        if comparison is not None:
            show_comparison(console, comparison)
        console.print(f"[dim]{escape(equal_terms(scores))}[/]", highlight=False)
        if missing := incomplete(output, scores):
            console.print(f"[yellow]{escape(missing)}[/]", highlight=False)
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    for outcome in failed:
        console.print(f"[red]failed:[/] {outcome.name} on fold {outcome.fold}: {escape(outcome.error)}", soft_wrap=True, highlight=False)
    already = sum(outcome.status == "already" for outcome in outcomes)
    told = f"[{'red' if failed else 'green'}]{len(outcomes) - len(failed)} of {plural(len(outcomes), 'unit')} done[/]"
    told += f", {already} of them before" if already else ""
    console.print(f"{told}; written: {escape(str(output / 'README.md'))}", soft_wrap=True, highlight=False)


def _names(text: str) -> list[str]:
    from uxnet.networks.build import NETWORKS

    names = [name.strip() for name in text.split(",") if name.strip()]
    return list(NETWORKS) if names == ["all"] else names


def _numbers(text: str) -> list[int] | None:
    from uxnet.errors import UsageError

    if not text:
        return None
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--folds {text!r}: give numbers with commas between them, such as 0,1,2") from error


def _leaving(report: Report, asked: Callable[[], int]) -> Report:
    """A report that leaves when the system wants the machine back: units go on from their last checkpoints."""

    def leaving(event: Event) -> None:
        report(event)
        if asked():
            raise Preempted("stopped; records and checkpoints are kept, the same command goes on")

    return leaving
