"""`uxnet train`: one fold of a dataset by a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

EXAMPLES = """examples:
  uxnet train Task04_Hippocampus/ --recipe hippocampus --fold 0 -o runs/hippocampus
  uxnet train Task04_Hippocampus/ --recipe hippocampus -o runs/hippocampus --resume
  uxnet train data/ --recipe my.toml -o runs/mine --set training.steps=500 --set "sampling.patch=[64, 64, 64]"
"""


def run(
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    *,
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="RUN")],
    fold: Annotated[int, tyro.conf.arg(metavar="K")] = 0,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    protocol: Literal["5x80-20", "5x80-10-10"] | None = None,
    split: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    group_by: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None,
    cache: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> int:
    """Train a network on one fold of a dataset and write a model.

    The dataset is checked first; one with errors is refused and the errors are named. Its cases are prepared once and cached.
    Validation segments whole cases on their own grids and scores the foreground.

    RUN holds: recipe.toml (all of it, overrides included), split.json (every fold's cases), inspection.json, metrics.jsonl (a line
    a step and a validation), curves.png, checkpoints/ and, at the end, model.uxnet. A run that was interrupted, however rudely, goes
    on with --resume and ends with the same weights.

    Args:
        dataset: a folder in the layout of the Medical Segmentation Decathlon or of nnU-Net v2 (raw), or one with the
            folders images and labels.
        recipe: a recipe in the box (hippocampus, phantom) or a TOML file.
        output: the run's folder. One that holds a run already is refused without --resume.
        fold: which fold of the split is held out for validation, from 0.
        set: set a key of the recipe, such as training.steps=500; may be given again and again.
        resume: go on with the run in RUN; if there is none, start it.
        device: auto, cpu, cuda, cuda:N or mps.
        protocol: how cases are split if there is no split yet: five folds of 80 % training and 20 % validation (the default), or
            80/10/10 with a test part. Persons are kept whole.
        split: a file with the folds; made there if it does not exist. By default split.json in RUN.
        group_by: a regular expression that finds the person in a case's name. By default subjects.json in DATASET says who is who.
        cache: folder for the prepared cases, to be shared by runs of one dataset. By default cache in RUN.
        workers: processes that check and prepare cases. By default one a core.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import duration, reporting
    from uxnet.recipe import load_recipe, with_overrides

    chosen = with_overrides(load_recipe(recipe), set)
    console = Console(stderr=True)
    with console.status("loading torch"):
        from uxnet.training.run import train
    with reporting(console) as report:
        model = train(
            dataset,
            chosen,
            output,
            fold=fold,
            split=split,
            protocol=protocol,
            group_by=group_by,
            resume=resume,
            device=device,
            cache=cache,
            workers=workers or os.cpu_count() or 1,
            report=report,
        )
    from uxnet.model import read_model

    provenance = read_model(model).provenance
    table = Table(box=None, pad_edge=False)
    for name in ("class", "Dice"):
        table.add_column(name, justify="right" if name == "Dice" else "left")
    validation = provenance.get("validation", {})
    for name, value in {**validation.get("classes", {}), "mean": validation.get("dice")}.items():
        table.add_row(escape(name), "-" if value is None else f"{value:.4f}")
    out = Console()
    cases, training = len(provenance["split"]["validation"]), provenance["training"]
    took = duration(training["seconds"])
    out.print(f"weights of step {training['step']} of {training['steps']}, {took}; {cases} validation cases:", highlight=False)
    out.print(table)
    out.print(f"written: {escape(str(model))}", soft_wrap=True, highlight=False)
    return 0
