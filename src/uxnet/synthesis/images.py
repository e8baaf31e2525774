"""Synthetic images from label maps: a random image whose labels are known exactly, of any contrast and resolution.

The recipe is that of SynthSeg (Billot, Greve, Puonti, Thielscher, Van Leemput, Fischl, Dalca and Iglesias, "SynthSeg: Segmentation of
brain MRI scans of any contrast and resolution without retraining", Medical Image Analysis 86, 2023, 102789), section 3: deform a label
map, draw an intensity for each of its values, and spoil the image as scanners do. The code is our own, and so are the ranges.

Labels are deformed once, by nearest neighbour, and everything follows from the deformed map: image and labels cannot disagree. What
happens is a function of (seed, the map's name, the image's number); each effect draws from a stream of its own, so that one setting does
not move the draws of another. Nothing here calls BLAS, whose sums may depend on the number of threads.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import RecipeError, UsageError
from uxnet.geometry import Geometry, axis_order, resampled
from uxnet.volume import Volume

Floats = NDArray[np.float32]
Parts = NDArray[np.uint8 | np.uint16]
Rng = np.random.Generator

EDITION = 1
"""Raised whenever the same seed would give other voxels, so that folders of two kinds are not mixed."""

_FWHM = 2.3548  # of a Gaussian of deviation 1: a slice's profile is as wide as the slice is thick
_LIMITS = {"blank": 1.0, "strip": 1.0, "mirror": 1.0, "scale": 0.9, "shear": 0.3}


@dataclass(frozen=True)
class Synthesis:
    """How far images may vary. Everything is drawn evenly from 0 (or from minus to plus) up to what stands here, unless it says otherwise.

    rotation_deg, scale, shear, shift_mm: about and along each axis.
    warp: largest deviation, in mm, of a smooth deformation whose bumps are `warp_cell_mm` apart; an eighth of that is the most.
    deviation: of the intensities within a structure; mean intensities lie between 0 and 1.
    blank: how often the background is exactly 0; otherwise it has an intensity as any structure has.
    bias: largest deviation of the logarithm of a smooth field that the image is multiplied by, with bumps `bias_cell_mm` apart.
    blur: largest deviation of a blur, in voxels, whatever the resolution.
    thickest_mm: a third of the images have thick slices along one axis, a third a coarser grid in all: up to that many mm.
    noise: of the image, added at the resolution that it has by then.
    gamma: deviation of the logarithm of the exponent that the image, brought to 0..1, is raised to (normally distributed).
    strip: how often everything outside the brain (or the labelled structures) is black, as in scans without their skull.
    mirror: how often left and right trade places, where it is known which values do.

    Raises:
        RecipeError: if a number is negative or too large.
    """

    rotation_deg: float = 15.0
    scale: float = 0.15
    shear: float = 0.02
    shift_mm: float = 8.0
    warp: float = 4.0
    warp_cell_mm: float = 40.0
    deviation: float = 0.1
    blank: float = 0.5
    bias: float = 0.4
    bias_cell_mm: float = 70.0
    blur: float = 0.8
    thickest_mm: float = 6.0
    noise: float = 0.06
    gamma: float = 0.3
    strip: float = 0.3
    mirror: float = 0.5

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), _LIMITS.get(field.name, math.inf)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most or math.isinf(value):
                raise RecipeError(
                    f"{field.name}: a number from 0 {'up' if math.isinf(most) else f'to {most:g}'} was expected, not {value!r}"
                )
        # Folds need a slope near 1; here its deviation is at most 0.15.
        if self.warp > self.warp_cell_mm / 8:
            raise RecipeError(
                f"warp: {self.warp:g} mm over bumps of {self.warp_cell_mm:g} mm could fold; at most an eighth of warp_cell_mm"
            )
        if self.bias_cell_mm == 0:
            raise RecipeError("bias_cell_mm: must be above 0")


def synthesis_from_words(words: Sequence[str]) -> Synthesis:
    """Settings from KEY=VALUE; the others stay as they are.

    Raises:
        UsageError: if a word cannot be read, or names no setting; the message names them all.
        RecipeError: if a value is out of its range.
    """
    known = [field.name for field in fields(Synthesis)]
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key.strip() not in known:
            raise UsageError(f"{word!r} sets nothing; write KEY=VALUE, with one of {', '.join(known)}")
        try:
            given[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{key.strip()}: {value!r} is no number") from error
    return Synthesis(**given)


@dataclass(frozen=True)
class Scheme:
    """What the values of label maps mean here.

    becomes: value -> output label, 1..255; what is not in it becomes background.
    pairs: (left, right) values that trade places in a mirrored image and have the same intensity; none where that is not known.
    mirrored: whether images may be mirrored.
    brain: values that keep their intensity in an image without skull; None if nothing is ever stripped.
    """

    becomes: Mapping[int, int]
    pairs: tuple[tuple[int, int], ...] = ()
    mirrored: bool = False
    brain: frozenset[int] | None = None


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A label map ready to be drawn: `values[parts]` are its voxels, (I, J, K), stored along R, A, S as nearly as whole axes can."""

    parts: Parts
    values: tuple[int, ...]
    geometry: Geometry


def anatomy(labels: Volume, scheme: Scheme) -> Anatomy:
    """A label map, in the form that images are drawn from; it holds the map once, in a byte a voxel (two beyond 256 values)."""
    order = axis_order(labels.geometry, "RAS")
    array = order.apply(labels.array[0])
    other = {a: b for pair in scheme.pairs for a, b in (pair, pair[::-1])}
    found = {0}.union(*(np.unique(plane).tolist() for plane in array))
    # A structure that only one side shows is the other side's in a mirrored image.
    values = tuple(sorted(found | {other[value] for value in found if value in other}))
    parts = np.empty(array.shape, dtype=np.uint8 if len(values) <= 256 else np.uint16)
    for n, plane in enumerate(array):
        parts[n] = np.searchsorted(values, plane)
    return Anatomy(parts, values, order.apply_to(labels.geometry))


def synthetic(
    source: Anatomy, scheme: Scheme, settings: Synthesis, *, seed: int, name: str, number: int, spacing_mm: float | None = None
) -> tuple[Volume, Volume]:
    """Image number `number` of a label map; the same arguments give the same bytes.

    Args:
        name: of the label map; with the seed and the number it decides everything.
        spacing_mm: of the grid, which covers the map's field of view; None for the map's own.

    Returns:
        The image, (1, I, J, K) uint8, over the whole range of 0..255, and its labels, (1, I, J, K) uint8, on the same grid.
    """

    def stream(what: str) -> Rng:
        told = hashlib.sha256(json.dumps([seed, name, number, what]).encode()).digest()
        return np.random.default_rng(int.from_bytes(told[:16], "little"))

    grid = resampled(source.geometry, source.geometry.spacing_mm if spacing_mm is None else (spacing_mm,) * 3)
    mirror = scheme.mirrored and stream("mirror").random() < settings.mirror
    parts = _deformed(source, grid, settings, stream, mirror)
    if mirror:
        parts = _table(source.values, {a: b for pair in scheme.pairs for a, b in (pair, pair[::-1])}, parts.dtype)[parts]
    image = _drawn(parts, source.values, scheme, settings, stream("intensities"))
    _bias(image, grid, settings, stream("bias"))
    image = _acquired(image, grid.spacing_mm, settings, stream)
    kept = _kept(parts, source.values, scheme, settings, stream("strip"))
    # NIfTI keeps an affine in 32 bits: rounding it here makes what is written equal to what is in memory.
    placed = Geometry(grid.shape, grid.affine_ras.astype(np.float32).astype(np.float64))
    labels = np.array([scheme.becomes.get(value, 0) for value in source.values], dtype=np.uint8)[parts]
    return Volume(_bytes(image, kept, settings, stream("gamma"))[None], placed), Volume(labels[None], placed)


# ---- where everything lies


def _deformed(source: Anatomy, grid: Geometry, settings: Synthesis, stream: Any, mirror: bool) -> Parts:
    """The parts at the voxels of `grid`, moved; what comes from outside the map is background. A plane at a time."""
    step, sides = np.array(source.geometry.spacing_mm), source.parts.shape
    matrix, shift = _affine(settings, stream("affine"))
    if mirror:
        matrix = matrix * np.array([-1.0, 1.0, 1.0])
    # From millimetres about the middle of the grid to the map's voxels.
    matrix, shift = matrix / step[:, None], shift / step + (np.array(sides) - 1) / 2
    x, y, z = ((np.arange(n) - (n - 1) / 2) * d for n, d in zip(grid.shape, grid.spacing_mm, strict=True))
    rest = [(matrix[a, 1] * y[:, None] + matrix[a, 2] * z + shift[a]).astype(np.float32) for a in range(3)]
    rng = stream("warp")
    bends = _smooth_planes(rng, grid, 3, settings.warp_cell_mm, settings.warp * rng.random()) if settings.warp else None
    flat, nothing = source.parts.reshape(-1), source.values.index(0)
    moved = np.empty(grid.shape, dtype=source.parts.dtype)
    for i in range(grid.shape[0]):
        bend = next(bends) if bends else None
        inside, number = np.ones(grid.shape[1:], dtype=bool), np.zeros(grid.shape[1:], dtype=np.int64)
        for a in range(3):
            place = rest[a] + np.float32(matrix[a, 0] * x[i] + 0.5)
            if bend is not None:
                place += bend[a] / np.float32(step[a])
            index = np.floor(place, out=place).astype(np.int64)
            inside &= (index >= 0) & (index < sides[a])
            number = number * sides[a] + np.clip(index, 0, sides[a] - 1)
        moved[i] = np.where(inside, flat[number], flat.dtype.type(nothing))
    return moved


def _affine(settings: Synthesis, rng: Rng) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(3, 3) and (3,) mm: where a voxel of the image is read."""
    turns = np.deg2rad(settings.rotation_deg) * rng.uniform(-1, 1, 3)
    (ci, cj, ck), (si, sj, sk) = np.cos(turns), np.sin(turns)
    about_i = np.array([[1, 0, 0], [0, ci, -si], [0, si, ci]])
    about_j = np.array([[cj, 0, sj], [0, 1, 0], [-sj, 0, cj]])
    about_k = np.array([[ck, -sk, 0], [sk, ck, 0], [0, 0, 1]])
    sheared = np.eye(3)
    sheared[~np.eye(3, dtype=bool)] = settings.shear * rng.uniform(-1, 1, 6)
    matrix = about_i @ about_j @ about_k @ sheared / (1 + settings.scale * rng.uniform(-1, 1, 3))
    return matrix, settings.shift_mm * rng.uniform(-1, 1, 3)


def _smooth_planes(rng: Rng, grid: Geometry, count: int, cell_mm: float, deviation: float) -> Iterator[Floats]:
    """A smooth random field, `count` numbers a voxel, plane by plane along the first axis: (count, J, K).

    Cubic B-splines on a lattice of points `cell_mm` apart. The deviation is over the voxels of many fields.
    """
    lattice = [math.ceil(n * d / cell_mm) + 3 for n, d in zip(grid.shape, grid.spacing_mm, strict=True)]
    field = rng.normal(0, 1, (count, *lattice)).astype(np.float32)
    # 151/315 is the mean over a cell of the sum of a cubic B-spline's squared weights.
    field *= np.float32(deviation / (151 / 315) ** 1.5)
    along_i, along_j, along_k = (_spline(n, points) for n, points in zip(grid.shape, lattice, strict=True))
    field = np.einsum("xabc,kc->xabk", field, along_k)
    field = np.einsum("xabk,jb->xajk", field, along_j)
    for weights in along_i:
        (near,) = np.nonzero(weights)
        plane = field[:, near[0]] * weights[near[0]]
        for point in near[1:]:
            plane += field[:, point] * weights[point]
        yield plane


def _spline(n: int, points: int) -> Floats:
    """(n, points): the weight of each lattice point at each voxel."""
    gap = np.abs(np.linspace(0, points - 3 - 1e-6, n)[:, None] + 1 - np.arange(points))
    weights: Floats = np.where(gap < 1, 2 / 3 - gap**2 + gap**3 / 2, np.where(gap < 2, (2 - gap) ** 3 / 6, 0)).astype(np.float32)
    return weights


# ---- what it looks like


def _drawn(parts: Parts, values: Sequence[int], scheme: Scheme, settings: Synthesis, rng: Rng) -> Floats:
    """An intensity for every voxel, normally distributed within each value."""
    means, deviations = rng.random(len(values)), settings.deviation * rng.random(len(values))
    if rng.random() < settings.blank:
        means[values.index(0)] = deviations[values.index(0)] = 0
    for left, right in scheme.pairs:
        if left in values and right in values:
            means[values.index(right)] = means[values.index(left)]
            deviations[values.index(right)] = deviations[values.index(left)]
    image = rng.standard_normal(parts.shape, dtype=np.float32)
    image *= deviations.astype(np.float32)[parts]
    image += means.astype(np.float32)[parts]
    return image


def _bias(image: Floats, grid: Geometry, settings: Synthesis, rng: Rng) -> None:
    if settings.bias:
        planes = _smooth_planes(rng, grid, 1, settings.bias_cell_mm, settings.bias * rng.random())
        for plane, (field,) in zip(image, planes, strict=True):
            plane *= np.exp(field)


def _acquired(image: Floats, spacing_mm: Sequence[float], settings: Synthesis, stream: Any) -> Floats:
    """What a scanner of a random resolution makes of it: blurred, sampled at its voxels with noise, and brought back to the grid."""
    from scipy import ndimage  # slow to import

    rng = stream("resolution")
    blur = settings.blur * rng.random()
    coarse = _resolution(spacing_mm, settings.thickest_mm, rng)
    shape = image.shape
    for axis, (fine, wide) in enumerate(zip(spacing_mm, coarse, strict=True)):
        deviation = math.hypot(blur, wide / fine / _FWHM if wide > fine else 0.0)
        if deviation > 0.05:
            image = ndimage.gaussian_filter1d(image, deviation, axis, output=np.float32, mode="nearest", truncate=3)
        if wide > fine:
            image = _between(image, axis, _centres(max(1, round(shape[axis] * fine / wide)), shape[axis], wide / fine))
    noise = stream("noise")
    level = np.float32(settings.noise * noise.random())
    if level:
        image += level * noise.standard_normal(image.shape, dtype=np.float32)
    for axis, (fine, wide) in enumerate(zip(spacing_mm, coarse, strict=True)):
        if wide > fine:
            image = _between(image, axis, _centres(shape[axis], image.shape[axis], fine / wide))
    return image


def _resolution(spacing_mm: Sequence[float], thickest_mm: float, rng: Rng) -> list[float]:
    """The spacing at which the image is taken: the grid's, thick slices along one axis, or coarser along all."""
    kind, axis, share = rng.integers(3), rng.integers(3), rng.random()
    thick = [max(fine, fine + share * (thickest_mm - fine)) for fine in spacing_mm]
    if kind == 0:
        return list(spacing_mm)
    return [wide if kind == 2 or n == axis else fine for n, (fine, wide) in enumerate(zip(spacing_mm, thick, strict=True))]


def _centres(n: int, of: int, step: float) -> NDArray[np.float64]:
    """Where n voxels lie, in indices of a grid of `of` with the same middle; `step` is their spacing in its voxels."""
    centres: NDArray[np.float64] = (np.arange(n, dtype=np.float64) - (n - 1) / 2) * step + (of - 1) / 2
    return centres


def _between(image: Floats, axis: int, places: NDArray[np.float64]) -> Floats:
    """Read linearly at places along an axis; beyond the edge the edge goes on."""
    last = image.shape[axis] - 1
    places = np.clip(places, 0, last)
    low = np.minimum(np.floor(places).astype(int), max(0, last - 1))
    share = (places - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    near: Floats = image.take(low, axis)
    far: Floats = image.take(np.minimum(low + 1, last), axis)
    far -= near
    far *= share
    near += far
    return near


def _kept(parts: Parts, values: Sequence[int], scheme: Scheme, settings: Synthesis, rng: Rng) -> NDArray[np.bool_] | None:
    """The voxels that a stripped image keeps: the brain and up to two voxels around it, as stripping is not exact; None keeps all."""
    from scipy import ndimage

    chance, margin = rng.random(), int(rng.integers(3))
    if scheme.brain is None or chance >= settings.strip:
        return None
    kept: NDArray[np.bool_] = np.array([value in scheme.brain for value in values])[parts]
    if not kept.any():
        return None
    return np.asarray(ndimage.binary_dilation(kept, iterations=margin)) if margin else kept


def _bytes(image: Floats, kept: NDArray[np.bool_] | None, settings: Synthesis, rng: Rng) -> NDArray[np.uint8]:
    """Brought to 0..1, raised to a random power, and rounded to 0..255; 0 where nothing is kept."""
    shown = image if kept is None else image[kept]
    low, high = float(shown.min()), float(shown.max())
    image = np.clip((image - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)
    exponent = math.exp(settings.gamma * float(rng.standard_normal()))
    if settings.gamma:
        image = image ** np.float32(exponent)
    if kept is not None:
        image *= kept
    levels: NDArray[np.uint8] = np.rint(image * np.float32(255)).astype(np.uint8)
    return levels


def _table(values: Sequence[int], becomes: Mapping[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Index of a value -> index of what it becomes; `values` holds both."""
    return np.array([values.index(becomes.get(value, value)) for value in values], dtype=dtype)
