"""Whether a scan is one that a model was made for, asked before anything is computed.

A network answers whatever it is shown: of a whole head, one of crops finds hundreds of millilitres of hippocampus. So the extent of a
scan, its voxels and its kind of values are compared with what the model's card declares, or else with what its training cases were
like. What is beyond a card's limits is warned of, and refused where it is far beyond them; training cases do not say how much further a
model may be trusted, so that by them nothing is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import VolumeError
from uxnet.events import Report, Warn
from uxnet.geometry import Geometry
from uxnet.model.catalogue import Domain, Range, card_of
from uxnet.model.file import Model
from uxnet.volume import Volume

_FAR = 2.0  # so many times beyond a card's limits is no scan of its model's
_SLACK = 2.0  # so many times beyond what was trained on is worth a warning
_AIR_HU = (-5000.0, -500.0)  # air, and what scanners write outside of their field of view
_SOFT_HU = -250.0  # no tissue is darker
_ENOUGH = 0.005  # the share of voxels that tells air from noise; fingerprints have this percentile
_SAMPLED = 200_000  # voxels that are looked at for it


_ANY = Domain()


@dataclass(frozen=True)
class Limits:
    """What a scan is compared with.

    domain: the ranges; the default checks nothing.
    why: how the model stands to them, for messages: "was made for" or "was trained on".
    slack: how many times beyond a range a scan is warned of.
    far: how many times beyond one it is refused.
    otherwise: what else can be done with a scan of another extent.
    """

    domain: Domain = _ANY
    why: str = "was made for"
    slack: float = 1.0
    far: float = _FAR
    otherwise: str = ""


def limits_of(model: Model) -> Limits:
    """The limits that a model's card declares, or else those of its training cases, as far as it tells.

    Raises:
        ModelError: if the card of a bundled model is not as it should be.
    """
    card = card_of(model.path)
    if card is None or card.domain is None:
        return Limits(_trained_on(model), why="was trained on", slack=_SLACK, far=math.inf)
    otherwise = 'cut the crops out first, or have the structures located in whole scans (region "head")' if card.whole else ""
    return Limits(card.domain, otherwise=otherwise)


def check_scan(volume: Volume, model: Model, limits: Limits, report: Report) -> None:
    """Warns of a scan unlike those that the model was made for.

    Raises:
        VolumeError: if it is far from them.
    """
    domain = limits.domain
    if domain.sides_mm:
        _check_extent(volume, model, limits, report)
    if domain.spacing_mm:
        finest, coarsest = min(volume.geometry.spacing_mm), max(volume.geometry.spacing_mm)
        low, high = domain.spacing_mm
        if beyond := max(_beyond(finest, low, high), _beyond(coarsest, low, high)):
            voxels = " x ".join(f"{mm:.3g}" for mm in volume.geometry.spacing_mm)
            said = f"its voxels are of {voxels} mm, and {model.path.name} {limits.why} voxels of {_between(low, high)} mm"
            _judge(volume.name, said, beyond, limits, "use a scan of that resolution", report)
    for name, channel, expected in zip(model.channels, volume.array, domain.hounsfield, strict=False):
        if doubt := _doubt_of_values(channel, expected):
            report(Warn(f"{volume.name}: {name} {doubt} {model.path.name} {limits.why}: what is found is not to be trusted"))


def extent_mm(geometry: Geometry) -> tuple[float, ...]:
    """The sides of a scan in mm, the shortest first."""
    return tuple(sorted(n * mm for n, mm in zip(geometry.shape, geometry.spacing_mm, strict=True)))


def _check_extent(volume: Volume, model: Model, limits: Limits, report: Report) -> None:
    sides = extent_mm(volume.geometry)
    beyond = [_beyond(side, *limit) for side, limit in zip(sides, limits.domain.sides_mm, strict=True)]
    if not any(beyond):
        return
    size = " x ".join(f"{side:.0f}" for side in sides)
    known = " x ".join(_between(*limit) for limit in limits.domain.sides_mm)
    said = f"it is of {size} mm (the shortest side first), and {model.path.name} {limits.why} scans of {known} mm"
    _judge(volume.name, said, max(beyond), limits, limits.otherwise or "give a scan of the part of the body that it knows", report)


def _judge(name: str, said: str, beyond: float, limits: Limits, remedy: str, report: Report) -> None:
    if beyond > limits.far:
        raise VolumeError(f"{name}: not segmented: {said}; {remedy}")
    if beyond > limits.slack:
        report(Warn(f"{name}: {said}: look closely at what is found"))


def _beyond(value: float, low: float, high: float) -> float:
    """How many times a value is below or above a range; 0 within it."""
    if low <= value <= high:
        return 0.0
    return low / value if value < low else value / high


def _between(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g}-{high:.3g}"


def _doubt_of_values(channel: NDArray[Any], hounsfield: bool | None) -> str:
    """What speaks against the kind of values that a channel (I, J, K) should have, in words; empty if nothing does."""
    if hounsfield is None:
        return ""
    step = max(1, int((channel.size / _SAMPLED) ** (1 / 3)))
    sample = channel[::step, ::step, ::step]
    if not hounsfield:
        air = np.count_nonzero((sample > _AIR_HU[0]) & (sample < _AIR_HU[1])) / sample.size
        if air < _ENOUGH:
            return ""
        return f"looks like CT ({100 * air:.0f} % of its voxels are below {_AIR_HU[1]:g}, as air is), which is not what"
    if np.count_nonzero(sample < _SOFT_HU):
        return ""
    return f"has no voxel below {_SOFT_HU:g}, so it does not look like the CT with air (-1000 Hounsfield units) that"


def _trained_on(model: Model) -> Domain:
    """What a model says of the cases that it was trained on; models from elsewhere, and older ones, tell less or nothing."""
    found = model.provenance.get("dataset", {}).get("fingerprint", {})
    sides = [_range([one]) for one in _list(found.get("sides_mm"))]
    spacing = _range(_list(found.get("spacings_mm")))
    if spacing and all(stage.prepare.spacing_mm for stage in model.recipe.stages):
        spacing = (0.0, spacing[1])  # what is finer is brought to the same grid, and loses nothing
    values = found.get("intensities")
    air = [_air(values.get(name)) if isinstance(values, Mapping) else None for name in model.channels]
    return Domain(tuple(one for one in sides if one) if len(sides) == 3 and all(sides) else (), spacing, tuple(air))


def _air(of_channel: Any) -> bool | None:
    """Whether every training image of a channel shows air as CT does, or none does."""
    try:
        darkest = of_channel["image"]["p00_5"]
        return True if darkest["maximum"] < _AIR_HU[1] else False if darkest["minimum"] > _SOFT_HU else None
    except (KeyError, TypeError):
        return None


def _range(spreads: Sequence[Any]) -> Range | None:
    """From the least to the greatest of `fingerprint.Spread`s as JSON."""
    try:
        low, high = min(float(one["minimum"]) for one in spreads), max(float(one["maximum"]) for one in spreads)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (low, high) if 0 < low <= high < math.inf else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
