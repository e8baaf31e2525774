"""One training step of the 3D UX-Net, in the ways that it could be computed, side by side in one process.

    python benchmarks/training_step.py [--rounds N] [-o FILE.json]

The machines that this runs on are noisy: each round measures every way once, in turn, and what is printed is the median over the rounds
of each way's time divided by the first one's of the same round. Below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from uxnet.devices import cpu_computes_bfloat16
from uxnet.networks import blocks
from uxnet.networks.cpu import kernels as kernels_cpu
from uxnet.networks.uxnet import UXNet
from uxnet.recipe import load_recipe


def step(network: nn.Module, image: torch.Tensor, bf16: bool) -> None:
    """Forward, backward; the optimiser's own time is the same for all."""
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = network(image).float().square().mean()
    loss.backward()


def torchs_kernels(*_: object) -> bool:
    """In place of `kernels_cpu.pays`: never."""
    return False


def ways() -> dict[str, tuple[torch.memory_format, bool, bool, bool]]:
    """Name -> (memory format, our gradients, torch's own instance norm, bf16)."""
    found = {
        "channels last, our gradients (ours)": (torch.channels_last_3d, True, False, False),
        "channels last, torch's kernels": (torch.channels_last_3d, False, False, False),
        "contiguous, group norm": (torch.contiguous_format, False, False, False),
        "channels last, instance norm": (torch.channels_last_3d, False, True, False),
        "contiguous, instance norm (as released)": (torch.contiguous_format, False, True, False),
    }
    if cpu_computes_bfloat16():
        found["channels last, group norm, bf16"] = (torch.channels_last_3d, False, False, True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()

    stage = load_recipe("hippocampus").stages[0]
    torch.manual_seed(0)
    image = torch.randn(stage.training.batch, 1, *stage.sampling.patch)
    pays, ours, torchs = kernels_cpu.pays, blocks.instance_norm, nn.functional.instance_norm
    seconds: dict[str, list[float]] = {name: [] for name in ways()}
    for turn in range(arguments.rounds + 1):
        for name, (memory, gradients, instance, bf16) in ways().items():
            network = UXNet(1, 3, **stage.network.settings).to(memory_format=memory)
            blocks.instance_norm = torchs if instance else ours
            kernels_cpu.pays = pays if gradients else torchs_kernels
            started = time.perf_counter()
            step(network, image.to(memory_format=memory), bf16)
            if turn:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    blocks.instance_norm, kernels_cpu.pays = ours, pays

    first = next(iter(seconds))
    rows = [
        {
            "way": name,
            "seconds": statistics.median(times),
            "ratio": statistics.median(t / f for t, f in zip(times, seconds[first], strict=True)),
        }
        for name, times in seconds.items()
    ]
    table = Table(title=f"one step, {tuple(image.shape)}, {torch.get_num_threads()} threads, median of {arguments.rounds} rounds")
    for column in ("way", "seconds", "times ours"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        table.add_row(row["way"], f"{row['seconds']:.2f}", f"{row['ratio']:.2f}")
    Console().print(table)
    if arguments.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        arguments.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
