"""Volume: an image or label map, its geometry, and where it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.geometry import Geometry

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Source:
    """Where a volume came from, and what a file on the same grid must repeat.

    `nifti_header` is the header of the NIfTI file as it was (little-endian): its sform and qform with their codes and its units go
    into whatever is written on this grid, bit for bit.
    """

    path: Path
    nifti_header: bytes | None = None


@dataclass(frozen=True, eq=False)
class Volume:
    """An array (C, I, J, K) on a grid. Images are float32 and may have several channels; label maps are integers with C = 1.

    Raises:
        ValueError: if the array's last three axes are not the geometry's.
    """

    array: NDArray[Any]
    geometry: Geometry
    source: Source | None = None

    def __post_init__(self) -> None:
        if self.array.ndim != 4 or self.array.shape[1:] != self.geometry.shape:
            raise ValueError(f"an array (C, I, J, K) over the grid {self.geometry.shape} was expected, not {self.array.shape}")

    @property
    def channels(self) -> int:
        """The number of channels."""
        return int(self.array.shape[0])

    def constant_channels(self) -> list[int]:
        """The channels in which every voxel has the same value."""
        few = self.array[:, ::8, ::8, ::8]  # most channels are told by these
        some = [c for c in range(self.channels) if few[c].min() == few[c].max()]
        return [c for c in some if self.array[c].min() == self.array[c].max()]

    def sha256(self) -> str:
        """A hash of the voxels, their type and the array's shape; not of the grid."""
        digest = hashlib.sha256(f"{self.array.dtype.str} {self.array.shape}".encode())
        digest.update(np.ascontiguousarray(self.array).data)
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """The path it came from, for messages."""
        return str(self.source.path) if self.source else "a volume from memory"

    def with_array(self, array: NDArray[Any]) -> Volume:
        """Another array on the same grid, from the same source."""
        return replace(self, array=array)
