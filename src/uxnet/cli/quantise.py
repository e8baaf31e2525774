"""`uxnet quantise`: a model with int8 variants of its networks, and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from uxnet.quantise.run import Quantised

EXAMPLES = """examples:
  uxnet quantise runs/hippocampus/model.uxnet --data Task04_Hippocampus/
  uxnet quantise hippocampus --data Task04_Hippocampus/ -o hippocampus.int8.uxnet     a model in the box
  uxnet predict runs/hippocampus/model.int8.uxnet scan.nii.gz -o out/ --precision int8
"""


def run(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    *,
    data: Annotated[Path, tyro.conf.arg(metavar="DATASET")],
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="MODEL")] = None,
    windows: Annotated[int, tyro.conf.arg(metavar="N")] = 64,
    cases: Annotated[int, tyro.conf.arg(metavar="N")] = 20,
    scored: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    max_drop: Annotated[float, tyro.conf.arg(metavar="DICE")] = 0.005,
    layers: Literal["dense", "inner", "convolutions"] = "dense",
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    group_by: Annotated[str | None, tyro.conf.arg(metavar="PATTERN")] = None,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Add int8 variants of its networks to a model, and print the Dice that they cost.

    Nothing is trained: the ranges of int8 are taken from windows of the dataset's cases. Dice is then measured in float32 and in int8,
    on the cases that validated the model in training if DATASET has them, else on a fifth of the persons, held out; never on those
    that the windows are from. If the Dice of a class, or of all, falls by more than --max-drop, fewer layers are quantised (dense, then
    inner, then convolutions); if it still does, nothing is written and the exit code is 1.

    The new file holds everything that MODEL holds, and is used with `uxnet predict --precision int8` on a CPU. How much faster int8 is
    depends on the processor (one with AVX-512 VNNI, AVX-VNNI or AMX gains most); both times are printed. It needs NNCF:
    pip install 'uxnet[quantise]'.

    Args:
        model: a .uxnet file, or the name of a model in the box if there is no such file or folder.
        data: a dataset with the labels that the model knows.
        output: the file to write; by default MODEL with .int8.uxnet for .uxnet, beside it; of a model in the box, in this folder.
        windows: that the ranges are taken from, half of them around labelled voxels.
        cases: the most that windows are taken from.
        scored: the most cases to measure Dice on; 0 takes all.
        max_drop: by how much Dice may fall.
        layers: what is quantised first: all dense layers (convolutions that are not depthwise, transposed ones, matrix products), those
            without the first and the last (inner), or of these the convolutions alone.
        threads: threads that compute; 0 takes one a core.
        group_by: regular expression that finds the person in a case's name, as for `uxnet train`.
        overwrite: replace the output if it is there already; it may then be MODEL itself.
    """
    from uxnet.cli.render import Terminal, reporting
    from uxnet.dataset.manifest import read_dataset
    from uxnet.errors import InputError
    from uxnet.model.catalogue import resolve
    from uxnet.quantise.run import quantise

    out = output or model.with_name(f"{model.name.removesuffix('.uxnet')}.int8.uxnet")
    if out.exists() and not overwrite:
        raise InputError(f"{out}: is there already; name another file with -o, or say --overwrite")
    with reporting(Terminal(stderr=True)) as report:
        done = quantise(
            resolve(model),
            read_dataset(data, group_by=group_by),
            out,
            windows=windows,
            cases=cases,
            scored=scored,
            max_drop=max_drop,
            layers=layers,
            threads=threads,
            report=report,
        )
    show(Terminal(), done)
    return 0


def show(console: Console, done: Quantised) -> None:
    """Prints what int8 costs and gains, and which file was written."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    cost = done.cost
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("class", overflow="fold")
    for name in ("Dice float32", "Dice int8", "difference", "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, one in cost.classes.items():
        table.add_row(escape(name), f"{one.float32:.4f}", f"{one.int8:.4f}", f"{one.difference:+.4f}", str(one.cases))
    table.add_section()
    table.add_row("mean", f"{cost.float32:.4f}", f"{cost.int8:.4f}", f"{cost.int8 - cost.float32:+.4f}", str(cost.cases), style="bold")
    console.print(table)
    console.print(f"labels that differ: {cost.differ:.3%} of voxels; quantised: {done.layers}", highlight=False)
    for stage, (before, after) in enumerate(done.seconds):
        where = f"stage {stage}: " if len(done.seconds) > 1 else ""
        gain = f"{before / after:.2f} times as fast" if after < before else "not faster on this processor"
        console.print(f"{where}a window takes {before:.3g} s in float32, {after:.3g} s in int8 ({gain})", highlight=False)
    before, after = (size / 1e6 for size in done.bytes)
    console.print(f"networks: {before:.1f} MB in float32, {after:.1f} MB in int8", highlight=False)
    console.print(f"written: {escape(str(done.path))}", soft_wrap=True, highlight=False)
