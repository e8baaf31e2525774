"""How scans are segmented: everything that the caller decides and the recipe does not, as one small value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uxnet.machine import usable_cores
from uxnet.model.catalogue import Whole

Mirror = tuple[bool, bool, bool]


@dataclass(frozen=True)
class Located:
    """That scans are whole, and where their structures lie is to be found first: the localiser's file, and what the card says."""

    localiser: Path
    whole: Whole


@dataclass(frozen=True)
class Settings:
    """The settings of a prediction.

    device: "auto", "cpu", "cuda", "cuda:N" or "mps".
    engine: "auto" (openvino on a CPU, else torch), "openvino" or "torch".
    precision: "auto", "float32", "bfloat16", "float16" or "int8".
    threads: that compute; 0 takes one a core.
    cache: folder of compiled engines; None takes the user's own cache folder.
    overlap: least share of a side that neighbouring windows have in common; None takes the recipe's.
    mirror: axes (i, j, k) of the prepared image that are mirrored as well, and the answers averaged.
    largest: names of the classes of which only the largest connected component is kept.
    skip_air: leave out windows that hold nothing above the recipe's `crop_above`; None takes the recipe's choice.
    memory_limit: bytes that the process may take at its peak; None takes what the machine has free.
    sharing: processes that segment on this machine side by side, and share what it has free.
    located: scans are whole heads (or whatever the model in the box says), see `located.py`; None for scans as the model knows them.
    """

    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    threads: int = 0
    cache: Path | None = None
    overlap: float | None = None
    mirror: Mirror = (False, False, False)
    largest: tuple[str, ...] = ()
    skip_air: bool | None = None
    memory_limit: int | None = None
    sharing: int = 1
    located: Located | None = None

    @property
    def cores(self) -> int:
        """How many threads compute."""
        return self.threads or usable_cores()

    def deciding(self) -> dict[str, Any]:
        """What can change a label: all but where things lie and how much of the machine is used.

        Threads are not among it, though on CPUs they change a voxel here and there: a folder may be finished on another machine. Records
        say of each scan how many there were.
        A limit of memory is among it where there is one: within it, logits may be kept in half precision.
        """
        decides = {
            key: value for key, value in asdict(self).items() if key not in ("threads", "cache", "memory_limit", "sharing", "located")
        }
        if self.memory_limit is not None:
            decides["memory_limit"] = self.memory_limit
        # The localiser's content is told among the models.
        return decides | ({"located": asdict(self.located.whole)} if self.located else {})


PLAIN = Settings()
"""The recipe's own way, on whatever this machine computes with."""
