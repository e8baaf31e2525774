"""The engine for CPUs: OpenVINO, without torch once a network has been converted.

A network is converted once for each window, and compiled once for each precision and processor; both are kept in a cache folder, named
by a hash of everything that they depend on (`engine_cache.py`). What is torn, foreign or of another version in there is made anew.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import DeviceError, ModelError
from uxnet.inference.engines.cache import Cache, cache_name
from uxnet.inference.engines.quiet import quiet_openvino
from uxnet.model.file import Model

_GRAPH = 1  # counts up when the same weights become another graph
_HINTS = {"float32": "f32", "bfloat16": "bf16", "int8": "f32", "int8 and bfloat16": "bf16"}
_INT8 = ("int8", "int8 and bfloat16")


class OpenVINOEngine:
    """Computes windows with a compiled network.

    Args:
        compiled: an `openvino.CompiledModel` of one window.
        precision: one of those of `open_engine`.
    """

    def __init__(self, compiled: Any, precision: str) -> None:
        self.precision = precision
        self.compiled = compiled
        self._request = compiled.create_infer_request()

    def infer(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, C, I, J, K) float32 -> logits (N, out_channels, I, J, K) float32.

        Raises:
            DeviceError: if there is not the memory for it.
        """
        answers = []
        for window in batch:
            try:
                found = self._request.infer([np.ascontiguousarray(window[np.newaxis])], share_inputs=True, share_outputs=True)[0]
            except RuntimeError as error:
                raise DeviceError(f"OpenVINO could not compute a window of {batch.shape[2:]}: {error}") from error
            # The array is OpenVINO's own and is written to again; a single window is used up before that.
            answers.append(found if len(batch) == 1 else found.copy())
        return answers[0] if len(answers) == 1 else np.concatenate(answers)


def open_engine(model: Model, stage: int, precision: str, *, threads: int, cache: Cache) -> OpenVINOEngine:
    """The engine of one stage of a model.

    Args:
        precision: "float32", "bfloat16", "int8" (with float32 where nothing is quantised) or "int8 and bfloat16"; int8 is a variant that
            the model file must hold (`uxnet quantise`).
        threads: that compute.
        cache: where what was made before is found, and what is made is kept.

    Raises:
        ModelError: if the weights are damaged, the network cannot be converted, or there is no such variant.
        DeviceError: if OpenVINO is not installed or cannot compile the network.
    """
    openvino = quiet_openvino()
    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],  # without it, OpenVINO takes bfloat16 by itself where there is any
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    name = cache_name(model.recipe.name, key(model, stage, precision, this_machine(), threads), "blob")
    blob = cache.read(name)
    if blob is not None:
        try:
            # A blob keeps neither threads nor precision: without them, a float32 engine would compute in bfloat16 where there is any.
            return OpenVINOEngine(core.import_model(blob, "CPU", properties), precision)
        except (RuntimeError, TypeError):
            pass  # of another build, though of the same version: compiled anew
    graph = _read_graph(core, model, stage, precision, cache)
    try:
        compiled = core.compile_model(graph, "CPU", properties)
    except RuntimeError as error:
        raise DeviceError(f"{model.path}: OpenVINO cannot compile its network here ({error}); choose the engine torch") from error
    cache.write(name, compiled.export_model().getvalue())
    return OpenVINOEngine(compiled, precision)


def key(model: Model, stage: int, precision: str, *more: Any) -> str:
    """A hash of everything that a graph depends on, and of what else is given.

    The weights count by the hash that the model file declares; they are checked against it when they are read.
    """
    declared, recipe = model.description["stages"][stage], model.recipe.stages[stage]
    variant = [v for v in model.description.get("variants", []) if v.get("precision") == "int8"] if precision in _INT8 else []
    parts = {
        "graph": _GRAPH,
        "openvino": str(quiet_openvino().__version__),
        "weights": declared["sha256"],
        "network": [recipe.network.name, _plain(recipe.network.settings)],
        "channels": [declared["in_channels"], declared["out_channels"]],
        "window": list(recipe.window),
        "variant": variant,
        "more": [precision, *map(str, more)] if more else [],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _read_graph(core: Any, model: Model, stage: int, precision: str, cache: Cache) -> Any:
    """The graph: shipped with the model, kept in the cache, or converted by torch."""
    if precision in _INT8:
        from uxnet.model.file import read_variant

        return _graph_of(core, *read_variant(model, "int8", stage))
    name = cache_name(model.recipe.name, key(model, stage, precision), "graph")
    kept = cache.read(name)
    if kept is not None:
        length = int.from_bytes(kept[:8], "little")
        return _graph_of(core, kept[8 : 8 + length], kept[8 + length :])
    graph = convert(model, stage)
    xml, weights = graph_bytes(graph)
    cache.write(name, len(xml).to_bytes(8, "little") + xml + weights)
    return graph


def convert(model: Model, stage: int) -> Any:
    """The network of one stage as an `openvino.Model` in float32. Imports torch.

    Raises:
        ModelError: if the weights are damaged, or OpenVINO cannot express the network.
    """
    from uxnet.inference.engines.graph import to_openvino
    from uxnet.inference.engines.torch import trained_network

    settings = model.recipe.stages[stage]
    return to_openvino(trained_network(model, stage), settings.in_channels(len(model.channels)), settings.window)


def graph_bytes(graph: Any) -> tuple[bytes, bytes]:
    """An `openvino.Model` as the two files of OpenVINO's own format: description (XML) and numbers."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        quiet_openvino().save_model(graph, str(path), compress_to_fp16=False)
        return path.read_bytes(), path.with_suffix(".bin").read_bytes()


def _graph_of(core: Any, xml: bytes, weights: bytes) -> Any:
    openvino = quiet_openvino()
    try:
        return core.read_model(xml, openvino.Tensor(np.frombuffer(weights, dtype=np.uint8).copy()))
    except RuntimeError as error:
        raise ModelError(f"the graph cannot be read by openvino {openvino.__version__} ({error})") from error


def this_machine() -> str:
    """What of this machine decides what is compiled on it, and what its lower precision is worth."""
    core = quiet_openvino().Core()
    return json.dumps(
        [platform.system(), core.get_property("CPU", "FULL_DEVICE_NAME"), core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in sorted(settings)}
