"""`uxnet train`: one fold of a dataset by a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import tyro

EXAMPLES = """examples:
  uxnet train Task04_Hippocampus/ --recipe hippocampus --fold 0 -o runs/hippocampus
  uxnet train Task04_Hippocampus/ --recipe hippocampus -o runs/hippocampus --resume
  uxnet train Task04_Hippocampus/ --recipe hippocampus --network unet --set network.settings.size=narrow -o runs/unet
  uxnet train Task04_Hippocampus/ --recipe hippocampus-rapnet -o runs/rapnet
  uxnet train amos/ --recipe my.toml --init-from runs/flare/model.uxnet -o runs/amos
  uxnet train data/ --recipe my.toml -o runs/mine --set training.steps=500 --set "sampling.patch=[64, 64, 64]"
"""


def run(
    dataset: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")],
    *,
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME|FILE")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="RUN")],
    fold: Annotated[int, tyro.conf.arg(metavar="K")] = 0,
    network: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    init_from: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    init_kernels: Literal["trilinear", "centred"] = "trilinear",
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
        recipe: a recipe in the box (hippocampus, hippocampus-rapnet, phantom) or a TOML file.
        output: the run's folder. One that holds a run already is refused without --resume.
        fold: which fold of the split is held out for validation, from 0.
        network: another network than the recipe's, with its own settings instead of the recipe's (uxnet networks lists them).
        set: set a key of the recipe, such as training.steps=500; may be given again and again.
        init_from: begin with the weights of this model wherever they fit; heads for other labels begin anew. What became of each
            weight is printed, and written to RUN/transfer.json.
        init_kernels: how its kernels grow where this network's are larger: upsampled, or centred in zeros.
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
    from uxnet.recipe import load_recipe, with_network, with_overrides

    chosen = load_recipe(recipe)
    chosen = with_overrides(with_network(chosen, network) if network else chosen, set)
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
            init_from=init_from,
            init_kernels=init_kernels,
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
