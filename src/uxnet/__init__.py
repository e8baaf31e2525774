"""uxnet: volumetric medical image segmentation around the 3D UX-Net.

    import uxnet

    model = uxnet.load_model("runs/hippocampus/model.uxnet")
    labels = model.segment("scan.nii.gz")          # a Volume on the scan's own grid
    uxnet.write_labels("labels.nii.gz", labels)

What is named here is the public surface; everything is imported when it is first asked for, so that `import uxnet` is quick. No name
here may be that of a module (`uxnet.prepare.way_out`): once imported, the module would stand in its place.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from uxnet.dataset.manifest import read_dataset as read_dataset
    from uxnet.evaluation.metrics import case_metrics as case_metrics
    from uxnet.geometry import Geometry as Geometry
    from uxnet.inference.segmenter import Segmenter as Segmenter
    from uxnet.inference.segmenter import load_model as load_model
    from uxnet.io import read_image as read_image
    from uxnet.io import read_labels as read_labels
    from uxnet.io import write_image as write_image
    from uxnet.io import write_labels as write_labels
    from uxnet.labels import Labels as Labels
    from uxnet.networks.uxnet import UXNet as UXNet
    from uxnet.recipe import load_recipe as load_recipe
    from uxnet.training.run import train as train
    from uxnet.volume import Volume as Volume

_PUBLIC = {
    "Geometry": "uxnet.geometry",
    "Labels": "uxnet.labels",
    "Segmenter": "uxnet.inference.segmenter",
    "UXNet": "uxnet.networks.uxnet",
    "Volume": "uxnet.volume",
    "case_metrics": "uxnet.evaluation.metrics",
    "load_model": "uxnet.inference.segmenter",
    "load_recipe": "uxnet.recipe",
    "read_dataset": "uxnet.dataset.manifest",
    "read_image": "uxnet.io",
    "read_labels": "uxnet.io",
    "train": "uxnet.training.run",
    "write_image": "uxnet.io",
    "write_labels": "uxnet.io",
}

__all__ = sorted([*_PUBLIC, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'uxnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
