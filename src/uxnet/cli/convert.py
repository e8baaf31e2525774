"""`uxnet convert`: weights from elsewhere as a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

EXAMPLES = """examples:
  uxnet convert FLARE.pth -o flare.uxnet --recipe my.toml --labels dataset.json
  uxnet convert swin_unetr.pt -o swin.uxnet --recipe my.toml --set merging=old
  uxnet convert mine.pt -o mine.uxnet --recipe my.toml           torch.save(uxnet.UXNet(1, 3).state_dict(), "mine.pt")
  uxnet convert segresnet.pt -o seg.uxnet --recipe my.toml --set groups=4 --set activation=leaky_relu --set slope=0.2
  uxnet convert unetr.pth -o unetr.uxnet --recipe my.toml --set heads=12 --set "patch=[96, 96, 96]"
"""


def run(
    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="MODEL")],
    recipe: Annotated[str, tyro.conf.arg(metavar="NAME|FILE|MODEL")],
    labels: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    network: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Make a model of weights from elsewhere: of any of the nine networks as this package has it (a UXNet's own state_dict()), of the
    authors' released 3D UX-Net checkpoints, or of MONAI's SwinUNETR, UNETR, SegResNet and UNet.

    Takes state dicts as torch saves them, with or without "state_dict" around and "module." before their names, and safetensors. The
    file need not be trusted: a process of its own opens it, with limited memory, and reads nothing but tensors. The network, its
    widths and its number of classes are read from the weights; weights that are missing or unknown are named and nothing is written.
    What weights do not show is assumed, and each assumption is said.

    Args:
        checkpoint: a .pth, .pt or .safetensors file.
        output: the .uxnet file to write.
        recipe: a recipe in the box (hippocampus, phantom), a TOML file or a model, whose own is taken; its spacing, orientation,
            intensities and windows become the model's. It must be given, since weights do not show what images were prepared like, and
            other intensities or spacings than those in training give wrong labels without a word.
        labels: a dataset.json (Decathlon or nnU-Net v2) or labels.json with the names of the classes. By default they are numbered.
        network: which network it is (uxnet networks lists them). By default the names of the weights say which.
        set: a setting of the network that goes before what the weights show, or that they do not show, such as
            network.settings.groups=4, or groups=4 for short: merging=old or merging=corrected (SwinUNETR of MONAI up to 1.4, or from 1.5
            on), heads and patch (UNETR, TransBTS), groups, activation and slope (SegResNet); may be given again and again.
        overwrite: replace MODEL if it is there already.
    """
    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import Terminal, reporting
    from uxnet.convert.convert import convert
    from uxnet.model.catalogue import recipe_of
    from uxnet.model.file import read_model
    from uxnet.recipe import Recipe, with_overrides

    chosen = recipe_of(recipe)
    given = [f"network.settings.{s.removeprefix('network.settings.')}" for s in set]
    settings = with_overrides(Recipe("given"), given).stages[0].network.settings
    with reporting(Terminal(stderr=True)) as report:
        convert(checkpoint, output, recipe=chosen, labels=labels, network=network, settings=settings, overwrite=overwrite, report=report)
    described = read_model(output)
    (stage,), (given,) = described.recipe.stages, described.description["stages"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in {
        "network": f"{stage.network.name}, {given['parameters']:,} parameters",
        "settings": ", ".join(f"{key} {value}" for key, value in stage.network.settings.items()),
        "channels": ", ".join(described.channels),
        "classes": ", ".join(described.labels.classes),
        "windows": " x ".join(map(str, stage.window)),
    }.items():
        table.add_row(name, escape(text))
    out = Terminal()
    out.print(table, highlight=False)
    out.print(f"written: {escape(str(output))}", soft_wrap=True, highlight=False)
    return 0
