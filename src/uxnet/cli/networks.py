"""`uxnet networks`: the networks of the paper's Table 1 or 3, counted, beside what the paper prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from uxnet.paper.networks import Row

EXAMPLES = """examples:
  uxnet networks
  uxnet networks --ablations
  uxnet networks --patch 32 48 32 --classes 3 --size narrow
  uxnet networks --json > networks.json
"""


def run(
    *,
    patch: Annotated[tuple[int, int, int], tyro.conf.arg(metavar="I J K")] = (96, 96, 96),
    classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    in_channels: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    size: Literal["paper", "narrow"] = "paper",
    ablations: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """Count the nine networks of the paper's Table 1: parameters, and multiply-accumulates of one patch.

    GMac are 1e9 multiply-accumulates of the operations that run, in one forward pass of one patch while training (nnU-Net's auxiliary
    heads run then). Beside them stands the same count by the paper's convention, which charges transposed convolutions for every
    voxel of their output, adds norms, activations and biases, and does not see attention; then what the paper prints. Below the
    table stands why the two differ where they do.

    Nothing is computed: any patch takes seconds and no memory.

    Args:
        patch: sides of the patch in voxels.
        classes: output channels, the background among them.
            By default 8 (FeTA), what the paper's FLOPs are for; 5 (FLARE) with --ablations.
        in_channels: channels of the image.
        size: the networks as in the paper, or as `size = "narrow"` in a recipe makes them.
        ablations: count the rows of Table 3 instead (the paper prints their parameters only), and the block of the text's Eq. 1.
        json: print a list of objects as JSON instead, with name, parameters, gmac, paper_convention_gmac, paper_parameters_m,
            paper_flops_g, note and what was counted.
    """
    import json as json_module

    from uxnet.cli.render import Terminal
    from uxnet.paper import networks as survey

    count, usual = (survey.ablations, survey.TABLE_3_CLASSES) if ablations else (survey.survey, survey.TABLE_1_CLASSES)
    rows = count(usual if classes is None else classes, in_channels, patch, size)
    if json:
        print(json_module.dumps([row.to_dict() for row in rows], indent=1, ensure_ascii=False))
        return 0
    _print(Terminal(), rows)
    return 0


def _print(console: Console, rows: Sequence[Row]) -> None:
    from rich.markup import escape

    first = rows[0]
    console.print(_table(rows))
    sides, channels = "x".join(map(str, first.patch)), "1 channel" if first.in_channels == 1 else f"{first.in_channels} channels"
    legend = f"GMac: 1e9 multiply-accumulates of a patch of {sides}, {channels}, {first.classes} classes (the background is one)"
    console.print(f"[dim]{legend}, while training[/]", highlight=False)
    if any(False in (row.parameters_agree, row.flops_agree) for row in rows):
        console.print("[dim]* differs from what is counted here[/]", highlight=False)
    console.print()
    for titles, note in _notes(rows):
        console.print(f"[bold]{escape(titles)}:[/] {escape(note)}" if titles else escape(note), highlight=False)


def _table(rows: Sequence[Row]) -> Table:
    import json

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    # Table 3 has no FLOPs, so there the paper's way of counting them has nothing to stand beside.
    flops = any(row.printed.flops_g for row in rows)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("network" if flops else "row of Table 3", no_wrap=True)
    table.add_column("name" if flops else "settings", no_wrap=True)
    heads = ("parameters", "GMac", "GMac as\nthe paper\ncounts", "paper,\nM params", "paper,\nGMac")
    for head in heads if flops else (*heads[:2], heads[3]):
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        changed = ", ".join(f"{key} = {json.dumps(value)}" for key, value in row.settings.items() if key != "size")
        cells = [escape(row.title), escape(row.name if flops else changed), f"{row.parameters:,}", _gmac(row.macs.true)]
        cells += [_gmac(row.macs.paper)] if flops else []
        cells += [_printed(row.printed.parameters_m, row.parameters_agree)]
        cells += [_printed(row.printed.flops_g, row.flops_agree)] if flops else []
        table.add_row(*cells)
    return table


def _gmac(macs: int) -> str:
    return f"{macs / 1e9:.2f}" if macs < 1e14 else f"{macs / 1e9:.4g}"


def _printed(figure: str | None, agrees: bool | None) -> str:
    """A figure of the paper's; the digits stay below each other whether or not a mark follows."""
    colour = {True: "green", False: "yellow", None: "default"}[agrees]
    return f"[{colour}]{figure or '-'}{'*' if agrees is False else ' '}[/]"


def _notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(titles, note): networks with the same note share it, and what holds for all stands first, without their names."""
    common = [note for note in rows[0].notes if all(note in row.notes for row in rows)]
    shared: dict[str, list[str]] = {}
    for row in rows:
        note = " ".join(n for n in row.notes if n not in common)
        if note:
            shared.setdefault(note, []).append(row.title)
    return [*(("", note) for note in common), *((", ".join(titles), note) for note, titles in shared.items())]
