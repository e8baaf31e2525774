"""`uxnet predict`: scans in, label maps out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

EXAMPLES = """examples:
  uxnet predict model.uxnet scan.nii.gz -o out/
  uxnet predict model.uxnet imagesTs/ more/scan_7.nii.gz -o out/
  uxnet predict model.uxnet scans.json -o out/          scans.json: {"patient 1": ["t1.nii.gz", "t2.nii.gz"], ...}
"""


def run(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="OUT")],
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    device: Annotated[str, tyro.conf.arg(metavar="DEVICE")] = "auto",
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
) -> int:
    """Segment scans with a model.

    Each scan gives OUT/NAME.nii.gz, named after its input, on the input's own grid (shape, affine, sform and qform with their codes,
    units), in the smallest integer type. OUT/labels.json says what the values mean; OUT/predict.json lists every scan with its time
    and peak memory. A scan that cannot be segmented is named, and the rest goes on.

    The exit code is 0 if every scan was segmented, else 1.

    Args:
        model: a .uxnet file.
        inputs: NIfTI files, folders of them, or manifests (.json: {"name": "file"} or {"name": ["channel 0", "channel 1"]}).
            Files named NAME_0000, NAME_0001, ... are the channels of one scan.
        output: folder for the label maps.
        overwrite: replace label maps that are there already.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: of the computation; auto takes bfloat16 where the device has it.
    """
    from rich.console import Console
    from rich.markup import escape

    from uxnet.cli.render import reporting
    from uxnet.errors import InputError
    from uxnet.inference.cohort import find_scans, predict
    from uxnet.inference.segmenter import load_model
    from uxnet.model import read_model

    if not inputs:
        raise InputError("no input: name at least one file or folder to segment")
    scans = find_scans(inputs, len(read_model(model).channels))
    console = Console(stderr=True)
    with console.status("loading the model"):
        segmenter = load_model(model, device=device, precision=precision)
    with reporting(console) as report:
        outcomes = predict(segmenter, scans, output, overwrite=overwrite, report=report)
    failed = [outcome for outcome in outcomes if outcome.error]
    out = Console()
    for outcome in failed:
        out.print(f"[red]failed:[/] {escape(outcome.name)}: {escape(outcome.error)}", soft_wrap=True, highlight=False)
    colour = "red" if failed else "green"
    done = len(outcomes) - len(failed)
    out.print(f"[{colour}]{done} of {len(outcomes)} scans segmented[/] into {escape(str(output))}", soft_wrap=True, highlight=False)
    return 1 if failed else 0
