"""`uxnet synthesise`: a training dataset of synthetic images from label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

EXAMPLES = """examples:
  uxnet synthesise brain_label_maps/ -o synthetic --merge to_feta7 --spacing 2
  uxnet synthesise labels/ -o hippocampi --label "left hippocampus=17" --label "right hippocampus=53" --images-per-map 20
  uxnet synthesise labels/ -o synthetic --merge classes.json --set thickest_mm=9 --set strip=0 --workers 4
  uxnet train synthetic/ --recipe my.toml -o runs/synthetic
"""


def run(
    labelmaps: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LABELMAPS")],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")],
    images_per_map: Annotated[int, tyro.conf.arg(metavar="N")] = 8,
    merge: Annotated[str | None, tyro.conf.arg(metavar="FILE|KEY")] = None,
    label: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="NAME=V+V")] = (),
    spacing: Annotated[float | None, tyro.conf.arg(metavar="MM")] = None,
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0,
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")] = (),
    mirror: Literal["auto", "yes", "no"] = "auto",
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> int:
    """Make a training dataset of synthetic images from label maps, after SynthSeg (Billot et al., Medical Image Analysis 2023).

    Each image is a label map, turned, scaled and bent at random, with a random intensity for each of its values, blurred, sampled with
    thick slices or coarsely, with a bias field, noise and a random gamma, sometimes without what lies outside the brain. Its labels are
    those of the same deformed map. A network that trains on such images learns shapes, not the contrast of one scanner.

    Labels are what a table says (--merge or --label); values that it does not name become background, but have an intensity of their own.
    Without a table each value is a label.

    DIR is a dataset in the layout of the Medical Segmentation Decathlon. All images of a label map count as one person's in folds. The
    same command gives the same files, whatever the number of workers, and makes only what is missing. A label map that cannot be read
    is left out and named; the exit code is then 1.

    Args:
        labelmaps: a folder with a dataset.json that lists label maps, or with labelsTr or labels, or with NIfTI files. Values may be
            any whole numbers.
        output: the dataset's folder; synthesis.json in it says how it was made.
        images_per_map: images of each label map. May be raised later: those that are there stay.
        merge: which labels come of which values: a JSON or TOML file with the tables "names" ({"1": "grey matter"}) and "map"
            ({"3": 1, "42": 1}), or the key of such a map in LABELMAPS/dataset.json.
        label: instead of --merge: a label and its values, such as "hippocampi=17+53". The first is 1, the next 2, ...
        spacing: of the images in mm, the same along all axes. By default that of each label map.
        seed: another seed gives other images.
        set: set how far images vary, such as noise=0 (docs/synthesis.md lists the keys); may be given again and again.
        mirror: mirror half of the images, left and right values trading places: auto does so where the values are FreeSurfer's.
        name: of the dataset; by default that of the label maps and "synthetic".
        workers: processes, each of which holds one case. By default one a core.
    """
    from rich.markup import escape

    from uxnet.cli.render import Terminal, reporting
    from uxnet.machine import usable_cores
    from uxnet.synthesis.folder import synthesise
    from uxnet.synthesis.images import synthesis_from_words

    with reporting(Terminal(stderr=True)) as report:
        made = synthesise(
            labelmaps,
            output,
            images_per_map=images_per_map,
            merge=merge,
            words=label,
            spacing_mm=spacing,
            seed=seed,
            settings=synthesis_from_words(set),
            mirror={"auto": None, "yes": True, "no": False}[mirror],
            name=name,
            workers=usable_cores() if workers is None else workers,
            report=report,
        )
    console = Terminal()
    for which, why in made.failures:
        console.print(f"[red]failed:[/] {escape(which)}: {escape(why)}", soft_wrap=True, highlight=False)
    there = f", {made.already} were there" if made.already else ""
    colour = "red" if made.failures else "green"
    console.print(f"[{colour}]{made.images} images made{there}[/]; written: {escape(str(output))}", soft_wrap=True, highlight=False)
    return 1 if made.failures else 0
