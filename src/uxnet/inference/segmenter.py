"""A model, loaded and ready to segment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import ModelError, VolumeError
from uxnet.events import Report, Spent, Warn, as_warnings, silent
from uxnet.inference.domain import Limits, check_scan, limits_of
from uxnet.inference.engines.choose import load_engines
from uxnet.inference.engines.precision import trusted
from uxnet.inference.ensemble import Averaged, check_mirror, check_same
from uxnet.inference.memory import expect_room, planner
from uxnet.inference.segment import Ready, make_ready, segment, with_inference
from uxnet.inference.settings import PLAIN, Settings
from uxnet.inference.stitch import Engine
from uxnet.io import mapped_array, read_image, write_probabilities
from uxnet.labels import Labels
from uxnet.model.catalogue import resolve
from uxnet.model.file import Model, read_model
from uxnet.volume import Volume

if TYPE_CHECKING:
    from uxnet.inference.localise import LocatedSegmenter
    from uxnet.inference.region import Region, RegionSegmenter


class Segmenter:
    """A model with the engines that compute its stages, and the settings of the prediction.

    Args:
        limits: what its scans are compared with; None takes those of the model's card or of its training cases.
    """

    def __init__(self, model: Model, engines: Sequence[Engine], settings: Settings = PLAIN, limits: Limits | None = None) -> None:
        self.model = model
        self.limits = limits_of(model) if limits is None else limits
        self.engines = engines
        self.settings = settings
        self.stages = with_inference(model.recipe.stages, overlap=settings.overlap, skip_air=settings.skip_air)

    @property
    def labels(self) -> Labels:
        """What the integers of its label maps mean."""
        return self.model.labels

    def prepare(self, scan: str | Path | Sequence[str | Path] | Volume, report: Report = as_warnings) -> Ready:
        """A scan, read and prepared; `segment` takes it. Several may be prepared while another is segmented.

        Args:
            scan: a file, one file a channel in the model's order, or a Volume.
            report: hears what is done; by default warnings become Python's, and the rest is not heard.

        Raises:
            VolumeError: if a file cannot be used, all channels are constant, or the scan is far from what the model was made for.
            ModelError: if the scan has another number of channels than the model was trained on.
            MemoryLimitError: if the scan alone would take more memory than it may.
        """
        started = time.perf_counter()
        if not isinstance(scan, Volume):
            expect_room(_paths(scan), self.settings.memory_limit)
        volume = scan if isinstance(scan, Volume) else read_image(*_paths(scan), compact=True, report=report)
        report(Spent("read", time.perf_counter() - started))
        if volume.channels != len(self.model.channels):
            raise ModelError(
                f"{volume.name}: it has {volume.channels} channels, the model takes {len(self.model.channels)} "
                f"({', '.join(self.model.channels)})"
            )
        check_scan(volume, self.model, self.limits, report)
        constant = volume.constant_channels()
        if len(constant) == volume.channels:
            raise VolumeError(f"{volume.name}: every voxel is {volume.array.flat[0]:g}, so it shows nothing; export it again")
        if constant:
            named = " and ".join(self.model.channels[c] for c in constant)
            report(Warn(f"{volume.name}: {named} is constant; is it missing? What is found without it is not to be trusted"))
        return make_ready(volume, self.stages[0], self.settings.cores, report)

    def segment(
        self,
        scan: str | Path | Sequence[str | Path] | Volume | Ready,
        report: Report = as_warnings,
        *,
        probabilities: str | Path | None = None,
    ) -> Volume:
        """The label map of a scan, on the scan's own grid.

        Args:
            scan: a file, one file a channel in the model's order, a Volume, or what `prepare` gave.
            report: hears what is done; by default warnings become Python's, and the rest is not heard.
            probabilities: a file (.nii.gz) for the probability of each class, on the scan's own grid; of models with one stage.

        Returns:
            (1, I, J, K) values of the smallest integer type, which mean what its `labels` say; `uxnet.write_labels` writes it.

        Raises:
            VolumeError: if a file cannot be used, or the scan is far from what the model was made for.
            ModelError: if the scan has another number of channels than the model was trained on.
            MemoryLimitError: if it would take more memory than it may.
        """
        if probabilities is not None and len(self.stages) > 1:
            raise ModelError(f"{self.model.path}: its second stage decides by votes, which are no probabilities; leave them out")
        ready = scan if isinstance(scan, Ready) else self.prepare(scan, report)
        trusted(_members(self.engines[0]), ready.image, self.stages[0], report)
        plan = planner(
            batch=self.stages[0].inference.batch,
            threads=self.settings.cores,
            limit=self.settings.memory_limit,
            report=report,
            name=ready.volume.name,
            sharing=self.settings.sharing,
        )
        with _probability_file(probabilities, ready, self.model) as probs:
            found = segment(
                ready, self.engines, self.stages, self.labels, report, threads=self.settings.cores, plan=plan, probabilities=probs
            )
        started = time.perf_counter()
        if self.settings.largest:
            from uxnet.inference.postprocess import keep_largest  # and scipy with it

            keep_largest(found.array[0], self.labels, self.settings.largest)
            report(Spent("components", time.perf_counter() - started))
        return replace(found, labels=self.labels)


def load_model(
    path: str | Path,
    *,
    region: Region = "auto",
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    threads: int = 0,
    cache: str | Path | None = None,
) -> Segmenter | LocatedSegmenter | RegionSegmenter:
    """A model file, ready to segment.

    A model of crops whose card says how they are found in whole scans (such as "hippocampus") takes both, as `uxnet predict` does: each
    label map then says by its `labels` what its values mean, and they are not the same for crops and whole scans. All other models give
    a `Segmenter`, which has `labels` itself.

    Args:
        path: a `.uxnet` file, the name of a bundled model, or the folder of a training run.
        region: of such a model of crops: "auto" takes each scan for what its extent says, "crop" all for crops, "head" for whole scans.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: "auto", "float32", "bfloat16", "float16" or "int8".
        engine: "auto" (openvino on a CPU, else torch), "openvino" or "torch".
        threads: that compute; 0 takes one a core.
        cache: folder of compiled engines; None takes the user's own cache folder.

    Raises:
        ModelError: if the file is missing, damaged, or holds weights that do not fit its network.
        DeviceError: if this machine has no such device.
        UsageError: if there is no bundled model of that name, or the model knows no such region.
    """
    from uxnet.inference.region import load_for_region  # its module is made of this one

    where = None if cache is None else Path(cache)
    settings = Settings(device=device, engine=engine, precision=precision, threads=threads, cache=where)
    return load_for_region(resolve(Path(path)), settings, region)


def load_segmenter(models: Sequence[str | Path], settings: Settings = PLAIN, report: Report = silent) -> Segmenter:
    """One model, or several whose logits are averaged, ready to segment.

    Args:
        models: `.uxnet` files; several (the folds of a cross-validation) must agree in labels, channels, preparation and windows.
        settings: how.

    Raises:
        ModelError: if a file is missing or damaged, or several do not fit together.
        DeviceError: if this machine has not what was asked for.
        RecipeError: if mirroring was asked for that would confuse left and right.
    """
    read = [read_model(Path(path)) for path in models]
    check_same(read)
    first = read[0]
    columns = list(zip(*(load_engines(model, settings, report) for model in read), strict=True))
    engines: list[Engine] = []
    for stage, column in zip(first.recipe.stages, columns, strict=True):
        swap = None
        if any(settings.mirror):
            found = check_mirror(settings.mirror, stage.prepare.orientation, first.labels, stage.augment.mirror, report)
            swap = None if stage.prior else found
        alone = len(column) == 1 and not any(settings.mirror)
        engines.append(column[0] if alone else Averaged(column, settings.mirror, swap))
    return Segmenter(first, engines, settings)


def _members(engine: Engine) -> Sequence[Engine]:
    return engine.engines if isinstance(engine, Averaged) else (engine,)


def _paths(scan: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(scan)] if isinstance(scan, str | Path) else [Path(p) for p in scan]


@contextlib.contextmanager
def _probability_file(path: str | Path | None, ready: Ready, model: Model) -> Iterator[NDArray[np.uint8] | None]:
    """A mapped file to be filled with probabilities, which then becomes the compressed one."""
    if path is None:
        yield None
        return
    shape = (model.labels.out_channels, *ready.volume.geometry.shape)
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    # Channel after channel, each as NIfTI stores it.
    stored, file = mapped_array(shape[:1] + shape[:0:-1], np.uint8, folder, str(path))
    with file:
        probabilities = stored.transpose(0, 3, 2, 1)
        yield probabilities
        names = model.labels.classes if model.labels.regions else ("background", *model.labels.classes)
        write_probabilities(Path(path), probabilities, ready.volume, names)
