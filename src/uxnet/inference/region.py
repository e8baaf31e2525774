"""A model of crops that takes whole scans, too, each for what its extent says it is: as `uxnet predict` does, for Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from uxnet.errors import ModelError, UsageError
from uxnet.events import Note, Report, as_warnings
from uxnet.geometry import Geometry
from uxnet.inference.localise import LocatedSegmenter, is_whole, load_localiser, load_located, localiser_of
from uxnet.inference.segment import Ready
from uxnet.inference.segmenter import Segmenter, load_segmenter
from uxnet.inference.settings import Located, Settings
from uxnet.io import read_geometry
from uxnet.labels import Labels
from uxnet.model.catalogue import card_of
from uxnet.volume import Volume

Region = Literal["auto", "crop", "head"]


class RegionSegmenter:
    """Segments crops and whole scans; which of them a scan is goes by its extent.

    Args:
        crops: the model of crops.
        settings: with `located`; the localiser is loaded for the first whole scan.
    """

    def __init__(self, crops: Segmenter, settings: Settings) -> None:
        self.crops, self.settings, self.whole = crops, settings, localiser_of(settings).whole
        self.model = crops.model

    @property
    def labels(self) -> Labels:
        """Only there to be refused: the values of crops and of whole scans mean different things.

        Raises:
            ModelError: always.
        """
        raise ModelError(
            f"{self.model.path}: what its values mean depends on the scan, a crop or a whole one: each label map that it gives has "
            '`labels`; or load the model for one region, "crop" or "head"'
        )

    @cached_property
    def heads(self) -> LocatedSegmenter:
        """The segmenter of whole scans, loaded when it is first asked for."""
        return LocatedSegmenter(load_localiser(self.settings, as_warnings), self.crops, self.whole)

    def prepare(self, scan: str | Path | Sequence[str | Path] | Volume, report: Report = as_warnings) -> Ready:
        """A scan, read and prepared for what it is taken for; `segment` takes it.

        Raises:
            VolumeError, ModelError, MemoryLimitError: as `Segmenter.prepare`.
        """
        if isinstance(scan, Volume):
            return self._of(scan.geometry).prepare(scan, report)
        paths = [scan] if isinstance(scan, str | Path) else list(scan)
        return self._of(read_geometry(paths[0])).prepare(paths, report)

    def segment(
        self,
        scan: str | Path | Sequence[str | Path] | Volume | Ready,
        report: Report = as_warnings,
        *,
        probabilities: str | Path | None = None,
    ) -> Volume:
        """The label map of a crop or a whole scan, on its own grid; its `labels` say what the values mean.

        Args:
            scan: a file, one file a channel in the model's order, a Volume, or what `prepare` gave.
            probabilities: as for `Segmenter.segment`; of whole scans there are none.

        Returns:
            (1, I, J, K) values of the smallest integer type; `uxnet.write_labels` writes it.

        Raises:
            VolumeError, ModelError, MemoryLimitError: as `Segmenter.segment`, or `LocatedSegmenter.segment` for a whole scan.
        """
        ready = scan if isinstance(scan, Ready) else self.prepare(scan, report)
        which = self._of(ready.volume.geometry)
        if isinstance(which, LocatedSegmenter):
            report(Note(f"{ready.volume.name}: taken for a whole scan, {' and '.join(self.whole.sides)} are located first"))
        return which.segment(ready, report, probabilities=probabilities)

    def _of(self, geometry: Geometry) -> Segmenter | LocatedSegmenter:
        return self.heads if is_whole(geometry, self.whole) else self.crops


def load_for_region(file: Path, settings: Settings, region: Region) -> Segmenter | LocatedSegmenter | RegionSegmenter:
    """A model, ready for crops, for whole scans, or for both if its card says how crops are found in whole scans.

    Raises:
        UsageError: if there is no such region, or whole scans are asked for of a model whose card does not say how.
        ModelError, DeviceError: as `load_segmenter`.
    """
    if region not in get_args(Region):
        raise UsageError(f"there is no region {region!r}; give one of {', '.join(get_args(Region))}")
    card = card_of(file)
    if card is None or card.whole is None:
        if region == "head":
            raise UsageError(f"{file}: no card beside it says how crops are found in whole scans, so it cannot be loaded for heads")
        return load_segmenter([file], settings, as_warnings)
    if region == "crop":
        return load_segmenter([file], settings, as_warnings)
    localiser = file.with_name(f"{card.whole.localiser}.uxnet").absolute()
    located = replace(settings, located=Located(localiser, card.whole))
    if region == "head":
        return load_located([file], located, as_warnings)
    return RegionSegmenter(load_segmenter([file], settings, as_warnings), located)
