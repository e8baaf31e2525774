"""`uxnet demo`: the whole way, on phantoms or on a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

EXAMPLES = """examples:
  uxnet demo -o demo
  uxnet demo -o demo-mri --data Task04_Hippocampus/ --recipe hippocampus
  uxnet demo -o quick --set training.steps=50
"""


def run(
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = Path("demo"),
    data: Annotated[Path | None, tyro.conf.arg(metavar="DATASET")] = None,
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME|FILE")] = None,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
) -> int:
    """Train a small 3D UX-Net, segment and score scans it has not seen, and write a page of pictures.

    Without DATASET nothing is needed and nothing is downloaded: labelled phantoms of a CT-like abdomen are made, the same ones every
    time. They are synthetic shapes, not patients. With a fixed seed and number of steps this takes about five minutes on two cores.
    Beside the network stands a classifier that knows each voxel's intensity alone.

    DIR holds index.html (open it in a browser), pictures.png, metrics.json, predictions/, run/ (with model.uxnet) and data/. An
    interrupted demo goes on where it was.

    Args:
        output: folder for everything.
        data: a dataset to use instead of phantoms; a fifth of its persons is held out.
        recipe: a recipe in the box (phantom, hippocampus, hippocampus-rapnet) or a TOML file; phantom by default, with DATASET
            you must choose.
        set: set a key of the recipe, such as training.steps=500; may be given again and again.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from rich.markup import escape

    from uxnet.cli.render import Terminal, duration, reporting
    from uxnet.errors import UsageError
    from uxnet.recipe import load_recipe, with_overrides

    if data is not None and recipe is None:
        raise UsageError(f"{data}: say by which recipe to train on it, for example --recipe hippocampus")
    chosen = with_overrides(load_recipe(recipe or "phantom"), set)
    console = Terminal(stderr=True)
    with reporting(console) as report:
        from uxnet.demo.run import run_demo
        from uxnet.machine import usable_cores

        demo = run_demo(output, data=data, recipe=chosen, device=device, workers=usable_cores(), report=report)
    out = Terminal()
    from uxnet.cli.evaluate import show

    show(out, demo.network)
    if demo.intensity is not None:
        alone = demo.intensity.overall().dice.interval.mean
        ours = demo.network.overall().dice.interval.mean
        out.print(f"mean Dice {ours:.3f} by the network, {alone:.3f} by each voxel's intensity alone", highlight=False)
    if data is None:
        out.print("These are synthetic phantoms: they show that everything works, not how well patients are segmented.")
    out.print(f"{duration(demo.seconds)}; open {escape(str(demo.page))}", soft_wrap=True, highlight=False)
    return 0
