"""`uxnet doctor`: whether this machine trains right, and in which precision it trains fastest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from uxnet.doctor.examine import Examined, Way
    from uxnet.recipe import Recipe

EXAMPLES = """examples:
  uxnet doctor
  uxnet doctor --recipe hippocampus
  uxnet doctor --recipe my.toml --device cuda --json doctor.json
  uxnet doctor --network uxnet swinunetr --quick
"""

_USUAL = "hippocampus"  # whose patch and batch the narrow networks get


def run(
    *,
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None,
    network: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = (),
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    in_channels: Annotated[int, tyro.conf.arg(metavar="N")] = 1,
    classes: Annotated[int, tyro.conf.arg(metavar="N")] = 3,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    precision: tuple[Literal["float32", "bfloat16", "float16"], ...] = (),
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    rounds: Annotated[int, tyro.conf.arg(metavar="N")] = 3,
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> int:
    """Find out whether this machine trains right, and in which precision it trains fastest.

    Every layer with weights (convolutions, transposed and depthwise ones among them, and linear layers) runs alone as a training step
    calls it, forwards and backwards, and is held against float64: in each precision that the device computes in, with kernels in
    channels-last memory, as training keeps them, and in contiguous memory. What is off by more than rounding explains is named. Then
    whole steps are timed, forwards and backwards, the precisions taking turns.

    Without --recipe, the networks (all nine, or those of --network) are the narrow ones, at the patch and batch of the recipe
    hippocampus. Processors without bfloat16 instructions emulate it, very slowly: there it is left out unless the recipe or
    --precision names it.

    The exit code is 1 if a precision that training would take, by precision = "auto" or because the recipe names it, is wrong here.

    Args:
        recipe: a recipe in the box or a TOML file: its networks at its patch and batch, and the precision that it names.
        network: other networks than the recipe's, one or several.
        set: set a key of the recipe, such as training.batch=1; may be given again and again.
        in_channels: channels of the images, which a recipe does not say.
        classes: output channels, the background among them.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: examine these, too.
        quick: check one layer of each kind (class, kernel, stride, depthwise or not, a side smaller than the kernel or not) only.
        rounds: that steps are timed in.
        threads: threads that compute; 0 takes one a core.
        json: write everything that was found to this file.
    """
    from uxnet.cli.render import Terminal, reporting
    from uxnet.errors import UsageError
    from uxnet.io import write_json

    if min(in_channels, classes, rounds) < 1 or threads < 0:
        raise UsageError("give at least one channel, class and round, and no negative number of threads")
    recipes, console = _recipes(recipe, network, set), Terminal()
    with Terminal(stderr=True).status("loading torch"):
        from uxnet.doctor.examine import examine, machine
        from uxnet.inference.engines.torch import set_threads, stage_network
        from uxnet.machine import usable_cores
    set_threads(threads or usable_cores())
    facts = machine(device)
    show_machine(console, facts)
    found: list[Examined] = []
    for one in recipes:
        for number, stage in enumerate(one.stages):
            shape = (stage.training.batch // stage.training.accumulate, stage.in_channels(in_channels), *stage.sampling.patch)
            title = f"{stage.network.name}, stage {number}" if len(one.stages) > 1 else stage.network.name
            with reporting(Terminal(stderr=True)) as report:
                found.append(
                    examine(
                        stage_network(stage, in_channels, classes),
                        shape,
                        title=title,
                        asked=stage.training.precision,
                        device=device,
                        precisions=precision,
                        quick=quick,
                        rounds=rounds,
                        report=report,
                    )
                )
            show(console, found[-1])
    right = all(one.right for one in found)
    if json:
        write_json(json, {"right": right, "machine": facts, "quick": quick, "networks": [one.to_dict() for one in found]})
        console.print(f"written: {json}", soft_wrap=True, highlight=False, markup=False)
    return 0 if right else 1


def _recipes(recipe: str | None, networks: Sequence[str], overrides: Sequence[str]) -> list[Recipe]:
    from uxnet.recipe import load_recipe, with_network, with_overrides

    base = load_recipe(recipe or _USUAL)
    if recipe is None:
        from uxnet.networks.build import NETWORKS

        networks, overrides = networks or list(NETWORKS), ["network.settings.size=narrow", *overrides]
    chosen = [with_network(base, name) for name in networks] or [base]
    return [with_overrides(one, overrides) for one in chosen]


def show_machine(console: Console, facts: Mapping[str, Any]) -> None:
    """Prints what computes here."""
    extras = (f"{name} {'yes' if there else 'no'}" for name, there in facts["extras"].items())
    rows = {
        "versions": ", ".join(f"{name} {version or 'missing'}" for name, version in facts["versions"].items()),
        "system": facts["system"],
        "processor": f"{facts['processor']} ({', '.join(facts['instructions']) or 'instructions unknown'}), {facts['threads']} threads",
        "memory": f"{facts['free_memory_gb']} GB free",
        "GPUs": ", ".join(facts["gpus"]) or "none",
        "device": facts["device"],
        "compiler": facts["compiler"] or "none; torch.compile needs one",
        "extras": ", ".join(extras),
        "cache": f"{facts['cache']['folder']}, {facts['cache']['free_gb']} GB free on its disk",
    }
    for name, value in rows.items():
        console.print(f"{name:<10} {value}", soft_wrap=True, highlight=False, markup=False)


def show(console: Console, one: Examined) -> None:
    """Prints what was found about a network: a line a precision and memory layout, the layers that are wrong, and the verdict."""
    from rich import box
    from rich.table import Table

    from uxnet.errors import plural

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column(f"{one.title} on {'x'.join(map(str, one.shape))}")
    for head in ("layers\nright", "largest error\nby tolerance", "seconds\na step", "by the\nfirst"):
        table.add_column(head, justify="right", no_wrap=True)
    for way in one.ways:
        table.add_row(*_cells(way), style="bold" if way is one.way else "", end_section=way is one.ways[-1])
    console.print(table)
    for way in one.ways:
        for check in way.wrong:
            console.print(f"WRONG: {check.sentence}", soft_wrap=True, highlight=False, markup=False, style="red")
        moved = [check for check in way.checks if not check.same]
        if moved and way is one.way:
            console.print(
                f"{plural(len(moved), 'layer')} {'does' if len(moved) == 1 else 'do'} not give the same bits twice in {way.precision}",
                highlight=False,
                markup=False,
            )
    console.print(one.sentence, soft_wrap=True, highlight=False, markup=False, style="green" if one.right else "red")


def _cells(way: Way) -> list[str]:
    worst = max((max(check.errors.values()) for check in way.checks), default=0.0)
    right = f"{len(way.checks) - len(way.wrong)}/{len(way.checks)}"
    return [f"{way.precision}, {way.memory}", right, f"{worst:.2f}", f"{way.seconds:.3g}", f"{way.ratio:.2f}"]
