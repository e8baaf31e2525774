"""A model, loaded and ready to segment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uxnet.errors import ModelError
from uxnet.events import Report, silent
from uxnet.inference.segment import segment
from uxnet.inference.stitch import Engine
from uxnet.io import read_image
from uxnet.labels import Labels
from uxnet.model import Model, read_model, read_weights
from uxnet.volume import Volume


class Segmenter:
    """A model with the engines that compute its stages."""

    def __init__(self, model: Model, engines: Sequence[Engine]) -> None:
        self.model = model
        self.engines = engines

    @property
    def labels(self) -> Labels:
        """What the integers of its label maps mean."""
        return self.model.labels

    def segment(self, scan: str | Path | Sequence[str | Path] | Volume, report: Report = silent) -> Volume:
        """The label map of a scan, on the scan's own grid.

        Args:
            scan: a file, one file a channel in the model's order, or a Volume.

        Returns:
            (1, I, J, K) values of the smallest integer type; `uxnet.write_labels` writes it.

        Raises:
            VolumeError: if a file cannot be used.
            ModelError: if the scan has another number of channels than the model was trained on.
        """
        volume = scan if isinstance(scan, Volume) else read_image(*_paths(scan))
        if volume.channels != len(self.model.channels):
            raise ModelError(
                f"{volume.name}: it has {volume.channels} channels, the model takes {len(self.model.channels)} "
                f"({', '.join(self.model.channels)})"
            )
        return segment(volume, self.engines, self.model.recipe.stages, self.model.labels, report)


def load_model(path: str | Path, *, device: str = "auto", precision: str = "auto") -> Segmenter:
    """A model file, ready to segment.

    Args:
        path: a `.uxnet` file.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "float32", "bfloat16" or "float16".

    Raises:
        ModelError: if the file is missing, damaged, or holds weights that do not fit its network.
        DeviceError: if this machine has no such device.
    """
    # torch takes seconds: only when something is computed
    from uxnet.inference.engine_torch import TorchEngine, load_weights, stage_network

    model, engines = read_model(Path(path)), []
    for number, stage in enumerate(model.recipe.stages):
        network = stage_network(stage, len(model.channels), model.labels.out_channels)
        load_weights(network, read_weights(model, number), str(path))
        engines.append(TorchEngine(network, device, precision))
    return Segmenter(model, engines)


def _paths(scan: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(scan)] if isinstance(scan, str | Path) else [Path(p) for p in scan]
