"""The fingerprint of a dataset: sizes, spacings, intensities and class volumes, of each case and over all of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.geometry import Shape, Spacing


@dataclass(frozen=True)
class Intensities:
    """The distribution of one channel's voxels, in the image's own units; `p00_5` is the 0.5th percentile."""

    minimum: float
    p00_5: float
    median: float
    p99_5: float
    maximum: float
    mean: float
    std: float


@dataclass(frozen=True)
class Spread:
    """The median, least and greatest of one figure over the cases."""

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class CaseFacts:
    """What one case is like; sizes and orientation are the image's own, before any reorientation.

    `intensities` has one entry a channel; `foreground` the same over the voxels of all foreground labels (empty where there are
    none, or the grids differ). `voxels` and `volumes_ml` go by class (label or region) and are empty where the label map cannot be
    read. The digests are of the voxels, not of the files. `affine_ras` has the four rows of the image's affine.
    """

    name: str
    shape: Shape
    spacing_mm: Spacing
    orientation: str
    channels: int
    intensities: tuple[Intensities, ...]
    foreground: tuple[Intensities, ...]
    voxels: Mapping[str, int]
    volumes_ml: Mapping[str, float]
    image_sha256: str
    labels_sha256: str
    affine_ras: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Fingerprint:
    """The facts of every case whose image can be read, by name, and what they come to together."""

    cases: tuple[CaseFacts, ...]
    classes: tuple[str, ...]
    channel_names: tuple[str, ...]

    @property
    def sizes_vox(self) -> tuple[Spread, ...]:
        """Voxels along (i, j, k); empty without cases."""
        return tuple(spread([case.shape[axis] for case in self.cases]) for axis in range(3)) if self.cases else ()

    @property
    def spacings_mm(self) -> tuple[Spread, ...]:
        """Spacing along (i, j, k); empty without cases."""
        return tuple(spread([case.spacing_mm[axis] for case in self.cases]) for axis in range(3)) if self.cases else ()

    @property
    def orientations(self) -> dict[str, int]:
        """Orientation -> cases, the most frequent first."""
        return dict(Counter(case.orientation for case in self.cases).most_common())

    def intensities(self, channel: int, *, foreground: bool = False) -> dict[str, Spread]:
        """The spread of each figure of `Intensities` over the cases, for one channel; empty where no case has it."""
        every = [case.foreground if foreground else case.intensities for case in self.cases]
        found = [entry[channel] for entry in every if channel < len(entry)]
        return {f.name: spread([getattr(entry, f.name) for entry in found]) for f in fields(Intensities)} if found else {}

    def volume_ml(self, name: str) -> Spread | None:
        """The volume of a class over the cases that show it; None where none does."""
        volumes = [case.volumes_ml[name] for case in self.cases if case.voxels.get(name)]
        return spread(volumes) if volumes else None

    def cases_with(self, name: str) -> int:
        """How many cases show a class."""
        return sum(bool(case.voxels.get(name)) for case in self.cases)

    @property
    def label_maps(self) -> dict[str, str]:
        """Case -> sha256 of its label map's voxels, of cases that show a class: maps of background alone are all alike."""
        return {case.name: case.labels_sha256 for case in self.cases if any(case.voxels.values())}

    @property
    def sha256(self) -> str:
        """One digest of all voxels and names; grids (spacing, affines) are not in it."""
        lines = sorted(f"{case.name} {case.image_sha256} {case.labels_sha256}" for case in self.cases)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "sha256": self.sha256,
            "sizes_vox": [asdict(s) for s in self.sizes_vox],
            "spacings_mm": [asdict(s) for s in self.spacings_mm],
            "orientations": self.orientations,
            "intensities": {
                name: {
                    "image": {k: asdict(s) for k, s in self.intensities(c).items()},
                    "foreground": {k: asdict(s) for k, s in self.intensities(c, foreground=True).items()},
                }
                for c, name in enumerate(self.channel_names)
            },
            "classes": {
                name: {"cases": self.cases_with(name), "volume_ml": asdict(volume) if (volume := self.volume_ml(name)) else None}
                for name in self.classes
            },
            "cases": [asdict(case) for case in self.cases],
        }


def intensities_of(voxels: NDArray[np.floating[Any]]) -> Intensities:
    """The distribution of an array of any shape, float; it must not be empty."""
    low, p00_5, median, p99_5, high = np.percentile(voxels, (0, 0.5, 50, 99.5, 100))
    mean, std = voxels.mean(dtype=np.float64), voxels.std(dtype=np.float64)
    return Intensities(*(float(x) for x in (low, p00_5, median, p99_5, high, mean, std)))


def spread(values: Sequence[float]) -> Spread:
    """Of at least one number."""
    return Spread(float(np.median(values)), float(min(values)), float(max(values)))
