"""Time and memory of the nine networks, side by side: one training step and one inference window of each.

    python benchmarks/networks.py [--size narrow] [--patch 32 48 32] [--batch 2] [--rounds N] [-o FILE.json]

Each network has a process of its own, so that its peak memory is its own; what the process held before the network ran is taken off.
The machines that this runs on are noisy: the processes take turns, each round measures every network once, and what is printed is the
median over the rounds of each network's time divided by the 3D UX-Net's of the same round. Below 1 is faster.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

OURS = "uxnet"


def serve(name: str, size: str, patch: tuple[int, int, int], batch: int, pipe) -> None:
    """Measures one network whenever it is asked to: (seconds of a step, of a window, peak memory in MB)."""
    import torch

    from uxnet.networks.build import build

    torch.manual_seed(0)
    network = build(name, 1, 3, patch, {"size": size}).to(memory_format=torch.channels_last_3d)
    image = torch.randn(batch, 1, *patch).contiguous(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.AdamW(network.parameters())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send(sum(p.numel() for p in network.parameters()))
    while pipe.recv():
        started = time.perf_counter()
        outputs = network.train()(image)
        loss = sum(o.square().mean() for o in (outputs if isinstance(outputs, list) else [outputs]))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        stepped = time.perf_counter()
        with torch.inference_mode():
            network.eval()(image[:1])
        done = time.perf_counter()
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6
        pipe.send((stepped - started, done - stepped, peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("narrow", "paper"), default="narrow")
    parser.add_argument("--patch", type=int, nargs=3, default=(32, 48, 32), metavar=("I", "J", "K"))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()

    import torch

    from uxnet.networks.build import NETWORKS, build
    from uxnet.networks.macs import count_macs

    patch = tuple(given.patch)
    context = multiprocessing.get_context("spawn")
    pipes, parameters = {}, {}
    for name in NETWORKS:
        pipes[name], theirs = context.Pipe()
        context.Process(target=serve, args=(name, given.size, patch, given.batch, theirs), daemon=True).start()
        parameters[name] = pipes[name].recv()
    measured = {name: [] for name in NETWORKS}
    for turn in range(given.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            result = pipe.recv()
            if turn:  # the first round warms up
                measured[name].append(result)
    for pipe in pipes.values():
        pipe.send(False)

    rows = []
    for name, results in measured.items():
        with torch.device("meta"):
            macs = count_macs(build(name, 1, 3, patch, {"size": given.size}).eval(), (1, 1, *patch)).true
        peak = round(max(peak for *_, peak in results))
        row = {"network": name, "parameters": parameters[name], "gmac": macs / 1e9, "peak_memory_mb": peak}
        for index, what in enumerate(("step", "window")):
            ratios = [mine[index] / ours[index] for mine, ours in zip(results, measured[OURS], strict=True)]
            row[f"{what}_seconds"] = statistics.median(r[index] for r in results)
            row[f"{what}_ratio"] = statistics.median(ratios)
        rows.append(row)

    threads = torch.get_num_threads()
    table = Table(title=f"{given.size}, {patch}, steps of {given.batch}, {threads} threads, float32, median of {given.rounds} rounds")
    for column in ("network", "parameters, M", "GMac a window", "step, s", "times ours", "window, s", "times ours", "memory of a step, MB"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in rows:
        times = [f"{row['step_seconds']:.2f}", f"{row['step_ratio']:.2f}", f"{row['window_seconds']:.3f}", f"{row['window_ratio']:.2f}"]
        table.add_row(row["network"], f"{row['parameters'] / 1e6:.2f}", f"{row['gmac']:.2f}", *times, str(row["peak_memory_mb"]))
    Console(width=120).print(table)
    if given.output:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": threads}
        asked = {"size": given.size, "patch": patch, "batch": given.batch, "rounds": given.rounds}
        given.output.write_text(json.dumps({"machine": machine, **asked, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
