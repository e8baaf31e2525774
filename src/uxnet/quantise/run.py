"""int8 by quantisation after training: a variant of each network in the model's file, with the Dice that it costs.

NNCF puts a quantiser before each chosen layer of the float32 graph and sets its range from windows of a few cases; nothing is trained.
Chosen is what takes the time and bears it: dense convolutions, transposed ones and matrix products. Depthwise convolutions and
elementwise operations stay in float32: on the 3D UX-Net, quantising them made each window slower and the logits' error greater.

Weights get 7 of the 8 bits. Without VNNI, x86 processors add products of 8 bits pairwise in 16, which saturate where both are large; with
7 they cannot. So what is measured here holds on other processors, too. NNCF's correction of biases is off: behind norms, which remove any
bias, it does nothing, and without them (RAP-Net) it shifted the logits nine times as far as quantisation itself did.

Dice is measured on cases that calibrated nothing, through the same `segment` as prediction: on those that the model's training held out
where its file names them and the dataset has them, else on others, which the model may have been trained on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import uxnet
from uxnet.dataset.manifest import Manifest, read_dataset
from uxnet.errors import DeviceError, InputError, ModelError
from uxnet.events import Note, Progress, Report, silent
from uxnet.inference.engines.choose import load_engines
from uxnet.inference.engines.openvino import convert, graph_bytes
from uxnet.inference.engines.quiet import quiet_openvino, without_telemetry
from uxnet.inference.settings import Settings
from uxnet.inference.stitch import Engine
from uxnet.model.file import Model, read_model, with_variants
from uxnet.quantise.calibration import Cases, calibration_windows, choose_cases
from uxnet.quantise.cost import Cost, cost_of, segment_all

Layers = Literal["dense", "inner", "convolutions"]
LADDER: tuple[Layers, ...] = ("dense", "inner", "convolutions")
"""Which layers are quantised, from most to fewest. "dense": convolutions (not depthwise ones), transposed convolutions and matrix
products. "inner": without those that see the scan and those that give the logits. "convolutions": of these, the convolutions alone."""

_CHOSEN = ("Convolution", "ConvolutionBackpropData", "MatMul")
# What else NNCF would quantise.
_FLOATING = (
    *("GroupConvolution", "GroupConvolutionBackpropData", "BatchNormInference", "MVN", "NormalizeL2", "GroupNormalization"),
    *("Add", "Subtract", "Multiply", "Divide", "Maximum", "Minimum", "Power", "SquaredDifference", "FloorMod"),
    *("AvgPool", "AdaptiveAvgPool", "ReduceMean", "Interpolate", "ScaledDotProductAttention"),
)
_TIMED = 7  # windows


@dataclass(frozen=True)
class Quantised:
    """What quantising a model gave.

    layers: the rung of the ladder that held.
    windows: that calibrated each stage.
    seconds: of a window in float32 and in int8, measured in turns on this machine; one pair a stage.
    bytes: of all stages' graphs in float32 and in int8.
    """

    path: Path
    layers: Layers
    windows: tuple[int, ...]
    cases: Cases
    cost: Cost
    seconds: tuple[tuple[float, float], ...]
    bytes: tuple[int, int]


def quantise(
    path: str | Path,
    dataset: str | Path | Manifest,
    out: str | Path,
    *,
    windows: int = 64,
    cases: int = 20,
    scored: int = 0,
    max_drop: float = 0.005,
    layers: Layers = "dense",
    threads: int = 0,
    seed: int = 0,
    report: Report = silent,
) -> Quantised:
    """Writes a model with an int8 variant of every stage, for the engine openvino.

    Where the Dice of a class, or the mean, falls by more than `max_drop`, the next more careful choice of layers is tried; where none
    holds, nothing is written.

    Args:
        path: a model file.
        dataset: labelled cases like those that it was trained on.
        out: the file to write; the model itself stays as it is, unless it is the same file.
        windows: that calibrate each stage, drawn from (seed, step, sample), half of them around labelled voxels.
        cases: the most that they are drawn from.
        scored: the most cases on which Dice is measured; 0 takes all that were held out.
        layers: where the ladder begins.
        threads: that compute; 0 takes one a core.

    Raises:
        DeviceError: if NNCF or OpenVINO is missing.
        ModelError: if int8 costs more Dice than it may, or a network cannot be converted or quantised.
        DatasetError: if the dataset is not like the model's, or has too few cases.
    """
    if windows < 1 or cases < 1 or scored < 0 or not (math.isfinite(max_drop) and max_drop >= 0):
        raise InputError("give at least one window and one case to calibrate with, and a fall of Dice (max_drop) of 0 or more")
    nncf, out = quiet_nncf(), Path(out)
    model = read_model(Path(path))
    manifest = dataset if isinstance(dataset, Manifest) else read_dataset(dataset)
    chosen = choose_cases(model, manifest, cases, scored, seed)
    report(Note(chosen.sentence))
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the result: what is made on the way, prepared scans among it, may be too much for the system's folder.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".quantise-") as place:
        bench = _prepare(nncf, model, chosen, windows, seed, threads, Path(place), report)
        tried: dict[str, float] = {}
        for rung in LADDER[LADDER.index(layers) :]:
            facts = _facts(rung, bench, seed, manifest)
            parts, engines, cost = _attempt(bench, rung, facts)
            report(Note(f"{rung}: mean Dice {cost.float32:.4f} in float32, {cost.int8:.4f} in int8; {cost.differ:.3%} of labels differ"))
            tried[rung] = cost.worst
            if cost.worst <= max_drop:
                seconds = tuple(_seconds(a, b, files) for a, b, files in zip(bench.exact, engines, bench.drawn, strict=True))
                facts |= {"dice": cost.to_dict(), "tried": tried, "seconds": _timing(seconds, bench.settings.cores)}
                _write(model, parts, out, facts)
                sizes = (sum(map(_size, map(graph_bytes, bench.graphs))), sum(map(_size, parts)))
                return Quantised(out, rung, tuple(map(len, bench.drawn)), chosen, cost, seconds, sizes)
    falls = ", ".join(f"{rung} {fall:.4f}" for rung, fall in tried.items())
    raise ModelError(
        f"{path}: in int8 the Dice of a class or of all falls by more than {max_drop:g}, whichever layers are quantised ({falls}); nothing "
        "was written. Use float32 or bfloat16, calibrate with more windows, or allow more (max_drop)"
    )


@dataclass(frozen=True)
class _Bench:
    """What every attempt needs, a list entry a stage.

    graphs: in float32, each an `openvino.Model`.
    exact: the engines that compute them.
    drawn: files of the windows that calibrate.
    before: the label maps that they give the scored cases.
    """

    nncf: ModuleType
    model: Model
    cases: Cases
    settings: Settings
    folder: Path
    graphs: list[Any]
    exact: list[Engine]
    drawn: list[list[Path]]
    before: list[Path]
    report: Report


def _prepare(nncf: ModuleType, model: Model, cases: Cases, windows: int, seed: int, threads: int, folder: Path, report: Report) -> _Bench:
    settings = Settings(device="cpu", engine="openvino", precision="float32", threads=threads, cache=folder / "engines")
    exact = load_engines(model, settings, report)
    drawn = calibration_windows(model, cases.calibration, exact, folder, windows=windows, seed=seed, report=report)
    graphs = [convert(model, stage) for stage in range(len(drawn))]
    task, cores = "segmenting in float32", settings.cores
    before = segment_all(cases.scored, exact, model, folder / "float32", task=task, threads=cores, report=report)
    return _Bench(nncf, model, cases, settings, folder, graphs, exact, drawn, before, report)


def _attempt(bench: _Bench, layers: Layers, facts: Mapping[str, Any]) -> tuple[list[tuple[bytes, bytes]], list[Engine], Cost]:
    """The quantised graphs as OpenVINO's files, engines that compute them, and what they cost."""
    quantised = [_quantised(bench.nncf, graph, files, layers, bench.report) for graph, files in zip(bench.graphs, bench.drawn, strict=True)]
    parts = [graph_bytes(graph) for graph in quantised]
    # Scored as it will be used: written to a model file and loaded from there.
    candidate = _write(bench.model, parts, bench.folder / f"{layers}.uxnet", facts)
    engines = load_engines(read_model(candidate), replace(bench.settings, precision="int8"), bench.report)
    task, cores = "segmenting in int8", bench.settings.cores
    after = segment_all(bench.cases.scored, engines, bench.model, bench.folder / layers, task=task, threads=cores, report=bench.report)
    return parts, engines, cost_of(bench.cases.scored, bench.before, after, bench.model.labels)


def quiet_nncf() -> ModuleType:
    """The module `nncf`, imported so that it reports to nobody and logs errors alone.

    Raises:
        DeviceError: if it, or OpenVINO, is not installed.
    """
    quiet_openvino()
    try:
        with without_telemetry():  # NNCF then takes a stub of its own
            import nncf
    except ImportError as error:
        raise DeviceError(f"quantising needs NNCF, which cannot be loaded ({error}); pip install 'uxnet[quantise]'") from error
    nncf.set_log_level(logging.ERROR)
    module: ModuleType = nncf
    return module


def left_out(graph: Any, layers: Layers) -> list[str]:
    """Names of the layers of an `openvino.Model` that stay in float32 though they are of a type that is quantised."""
    chosen = [node for node in graph.get_ordered_ops() if node.get_type_name() in _CHOSEN]
    names = set()
    if layers != "dense":
        names |= {n.get_friendly_name() for n in chosen if _meets(n, "Parameter") or _meets(n, "Result")}
    if layers == "convolutions":
        names |= {n.get_friendly_name() for n in chosen if n.get_type_name() != "Convolution"}
    return sorted(names)


def _meets(node: Any, kind: str) -> bool:
    """Whether the input (kind "Parameter") or the output ("Result") is met from a layer before any other layer with weights is."""
    waiting, seen = [node], {node.get_friendly_name()}
    while waiting:
        for other in _neighbours(waiting.pop(), forwards=kind == "Result"):
            name = other.get_friendly_name()
            if other.get_type_name() == kind:
                return True
            if name not in seen and other.get_type_name() not in (*_CHOSEN, "GroupConvolution"):
                seen.add(name)
                waiting.append(other)
    return False


def _neighbours(node: Any, *, forwards: bool) -> list[Any]:
    if forwards:
        return [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]
    return [value.get_node() for value in node.input_values()]


def _quantised(nncf: ModuleType, graph: Any, files: Sequence[Path], layers: Layers, report: Report) -> Any:
    """The graph, an `openvino.Model`, with quantisers before the chosen layers, calibrated by windows."""
    seen = 0

    def window(path: Path) -> NDArray[np.float32]:
        nonlocal seen
        seen += 1
        report(Progress("calibrating", min(seen, len(files)), len(files)))
        loaded: NDArray[np.float32] = np.load(path)
        return loaded

    options = {
        # Activations with an offset: after GELU and leaky ReLU what is below 0 is little, but there.
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "ignored_scope": nncf.IgnoredScope(names=left_out(graph, layers), types=list(_FLOATING), validate=False),
        "advanced_parameters": nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE, disable_bias_correction=True),
    }
    try:
        # NNCF draws bars on the standard output, which belongs to whoever calls.
        with contextlib.redirect_stdout(io.StringIO()):
            return nncf.quantize(graph.clone(), nncf.Dataset(files, window), subset_size=len(files), **options)
    except (RuntimeError, ValueError, TypeError, KeyError, nncf.ValidationError) as error:
        raise ModelError(f"NNCF {nncf.__version__} cannot quantise this network ({error}); use it in float32 or bfloat16") from error


def _write(model: Model, parts: Sequence[tuple[bytes, bytes]], out: Path, facts: Mapping[str, Any]) -> Path:
    """The model with an int8 variant of each stage."""
    variants = []
    for stage, (xml, numbers) in enumerate(parts):
        own = {
            "precision": "int8",
            "stage": stage,
            "window": list(model.recipe.stages[stage].window),
            "weights_sha256": model.description["stages"][stage]["sha256"],
        }
        variants.append(({**own, **facts}, xml, numbers))
    with_variants(model.path, out, variants)
    return out


def _facts(layers: Layers, bench: _Bench, seed: int, manifest: Manifest) -> dict[str, Any]:
    cases = bench.cases
    return {
        "made_with": {"openvino": str(quiet_openvino().__version__), "nncf": str(bench.nncf.__version__), "uxnet": uxnet.__version__},
        "calibration": {
            "layers": layers,
            "windows": [len(files) for files in bench.drawn],
            "seed": seed,
            "dataset": manifest.name,
            "cases": [case.name for case in cases.calibration],
            "scored": {"origin": cases.origin, "cases": [case.name for case in cases.scored]},
        },
    }


def _seconds(float32: Engine, int8: Engine, files: Sequence[Path]) -> tuple[float, float]:
    """Seconds a window, the medians of turns: whatever else the machine does meets both."""
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(_TIMED + 1):
        window = np.load(files[turn % len(files)])
        for engine, times in zip((float32, int8), spent, strict=True):
            started = time.perf_counter()
            engine.infer(window)
            times.append(time.perf_counter() - started)
    # The first turn takes memory.
    return statistics.median(spent[0][1:]), statistics.median(spent[1][1:])


def _timing(seconds: Sequence[tuple[float, float]], threads: int) -> dict[str, Any]:
    processor = str(quiet_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME"))
    return {"a_window": [{"float32": a, "int8": b} for a, b in seconds], "threads": threads, "processor": processor}


def _size(parts: tuple[bytes, bytes]) -> int:
    return sum(map(len, parts))
