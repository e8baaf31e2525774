"""Whole-batch augmentation on the device where the batch is. What happens to a sample is a function of (seed, step, sample).

Samples are computed one after the other, by the same calls whatever stands beside them in the batch: sums over a whole batch are
rounded otherwise than over a part of it, and a step that is shared out between processes would no longer be the step of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from uxnet.recipe import Augmentation

Matrix = NDArray[np.float64]

_STREAM = 1  # apart from the sampler's random numbers, which have the same seed, step and sample
# Voxels that each thread of a processor resamples at a time: what is computed on the way to a voxel stays in its cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class _Drawn:
    """What happens to one sample.

    matrix: (3, 3), from the result's voxel offsets from the centre to the source's, along (i, j, k); None without rotation and scaling.
    mirrored: axes, before which the matrix has its effect.
    happens: shift, scale, gamma, noise, blur, each as far as the numbers of these names say, from -1 or 0 to 1.
    """

    matrix: Matrix | None
    mirrored: tuple[bool, bool, bool]
    happens: tuple[bool, bool, bool, bool, bool]
    shift: float
    scale: float
    gamma: float
    noise: float
    blur: float
    noise_seed: int


def augment(
    images: Tensor,
    indices: Tensor,
    settings: Augmentation,
    seed: int,
    step: int,
    spacing_mm: Sequence[float] = (),
    masks: int = 0,
    *,
    samples: Sequence[int] | None = None,
    lateral: int | None = None,
    pairs: Sequence[tuple[int, int]] = (),
) -> tuple[Tensor, Tensor]:
    """A batch, rotated, scaled, mirrored and changed in intensity, each sample on its own.

    Args:
        images: (N, C, I, J, K) floating point.
        indices: (N, I, J, K) label indices, any integer type; moved with the image, nearest neighbour.
        settings: what may happen and how far.
        seed, step: with the sample's number they decide everything.
        spacing_mm: of the voxels, so that a rotation turns and does not shear where they are not cubes; empty takes them as cubes.
        masks: how many of the last channels are masks, which stay masks: moved as the labels are, their intensity left alone.
        samples: the numbers of the N samples in the step's whole batch; 0 to N - 1 if not given.
        lateral: the axis, 0 to 2, along which mirroring trades the patient's left for the right (`dataset.sides.lateral_axis`).
        pairs: label indices that trade places then (`dataset.sides.paired_indices`); none for a stage that is asked about one structure.

    Returns:
        Both, of the same shapes and types.

    Raises:
        ValueError: if there are not as many numbers as samples.
    """
    numbers = range(len(images)) if samples is None else samples
    scans: list[Tensor] = []
    targets: list[Tensor] = []
    for image, target, number in zip(images, indices, numbers, strict=True):
        drawn = _draw(np.random.default_rng((seed, step, number, _STREAM)), settings, spacing_mm)
        if drawn.matrix is not None:
            image, target = _moved(image, target, drawn.matrix, drawn.mirrored, masks)
        elif any(drawn.mirrored):
            axes = [axis - 3 for axis, mirrored in enumerate(drawn.mirrored) if mirrored]
            image, target = image.flip(axes), target.flip(axes)
        if pairs and lateral is not None and drawn.mirrored[lateral]:
            target = _traded(target, pairs)
        if masks:
            scans.append(torch.cat((_intensity(image[:-masks], drawn, settings), image[-masks:])))
        else:
            scans.append(_intensity(image, drawn, settings))
        targets.append(target)
    return torch.stack(scans), torch.stack(targets)


def _draw(rng: np.random.Generator, settings: Augmentation, spacing_mm: Sequence[float]) -> _Drawn:
    # All numbers are drawn in any case, so that one setting does not move the draws of another.
    chances = rng.random(20).tolist()
    both_ways = [2 * chance - 1 for chance in chances]
    moves = chances[0] < settings.affine_probability and (any(settings.rotation_deg) or settings.scale > 0)
    i, j, k = (mirror and chance < 0.5 for mirror, chance in zip(settings.mirror, chances[1:4], strict=True))
    angles = [math.radians(most * by) for most, by in zip(settings.rotation_deg, both_ways[4:7], strict=True)]
    sizes = [1 + settings.scale * by for by in (both_ways[7:10] if settings.anisotropic else [both_ways[7]] * 3)]
    shifts, scales, gammas, noises, blurs = (chance < settings.intensity_probability for chance in chances[10:15])
    return _Drawn(
        matrix=_matrix(angles, sizes, spacing_mm) if moves else None,
        mirrored=(i, j, k),
        happens=(shifts, scales, gammas, noises, blurs),
        shift=both_ways[15],
        scale=both_ways[16],
        gamma=both_ways[17],
        noise=chances[18],
        blur=chances[19],
        noise_seed=int(rng.integers(2**62)),
    )


def _matrix(angles: Sequence[float], sizes: Sequence[float], spacing_mm: Sequence[float]) -> Matrix:
    (ci, cj, ck), (si, sj, sk) = map(math.cos, angles), map(math.sin, angles)
    about_i = np.array(((1, 0, 0), (0, ci, -si), (0, si, ci)))
    about_j = np.array(((cj, 0, -sj), (0, 1, 0), (sj, 0, cj)))
    about_k = np.array(((ck, -sk, 0), (sk, ck, 0), (0, 0, 1)))
    matrix: Matrix = about_i @ about_j @ about_k / np.array(sizes)
    if len(spacing_mm):
        # Turned in millimetres, said in voxels.
        matrix = matrix * np.array(spacing_mm)[None, :] / np.array(spacing_mm)[:, None]
    return matrix


def _moved(image: Tensor, indices: Tensor, matrix: Matrix, mirrored: Sequence[bool], masks: int) -> tuple[Tensor, Tensor]:
    """One sample, (C, I, J, K) and (I, J, K), mirrored and read at the places that the matrix says; beyond the patch its edge goes on.

    Images are read linearly, masks and labels at the nearest voxel. This is torch's grid_sample but for rounding, and on processors
    several times as fast: places are sums of two numbers, and voxels are looked up by their number.
    """
    shape = indices.shape
    rows, steps = _sums(shape, matrix, mirrored)
    rows, steps = rows.to(image.device), steps.to(image.device)
    sources, linear = [channel.reshape(-1) for channel in image], len(image) - masks
    moved = torch.empty(image.shape, dtype=image.dtype, device=image.device)
    labels = torch.empty(shape, dtype=indices.dtype, device=indices.device)
    for planes in _chunks(shape, image.device):
        first, beyond = _places(rows[:, planes], steps, shape)
        into = (planes.stop - planes.start, *shape[1:])
        for channel, source in enumerate(sources[:linear]):
            moved[channel, planes] = _between(source, first, beyond, shape).view(into)
        nearest = _numbers(beyond.round_(), shape).add_(first)
        for channel, source in enumerate(sources[linear:], start=linear):
            moved[channel, planes] = source.index_select(0, nearest).view(into)
        labels[planes] = indices.reshape(-1).index_select(0, nearest).view(into)
    return moved, labels


def _sums(shape: Sequence[int], matrix: Matrix, mirrored: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """(3, I, J, 1) and (3, 1, 1, K) float32, whose sums are the places along the source's axes that the result's voxels are read at."""
    signs = (-1.0 if mirror else 1.0 for mirror in mirrored)
    i, j, k = (
        (column * sign)[:, None] * (np.arange(side) - (side - 1) / 2) for column, sign, side in zip(matrix.T, signs, shape, strict=True)
    )
    middle = (np.array(shape)[:, None] - 1) / 2
    rows = (i + middle)[:, :, None, None] + j[:, None, :, None]
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(k[:, None, None].astype(np.float32))


def _chunks(shape: Sequence[int], device: torch.device) -> Iterator[slice]:
    """Planes of the result that are computed at a time."""
    most = _CHUNK * torch.get_num_threads() if device.type == "cpu" else math.prod(shape)
    planes = max(1, most // (shape[1] * shape[2]))
    for start in range(0, shape[0], planes):
        yield slice(start, min(start + planes, shape[0]))


def _places(rows: Tensor, steps: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For each voxel the number of the source's voxel before its place, (V,) int32, and how far beyond that it lies, (3, V), 0 to 1."""
    places = (rows + steps).reshape(3, -1)
    for place, side in zip(places.unbind(), shape, strict=True):
        # A hair before the last voxel, so that there is always one after the one before.
        place.clamp_(0, float(np.nextafter(np.float32(side - 1), np.float32(0))))
    beyond = places.frac()
    return _numbers(places.sub_(beyond), shape), beyond


def _numbers(ijk: Tensor, shape: Sequence[int]) -> Tensor:
    """The number of each voxel in C order, int32, of its three indices, (3, V) whole numbers in float32, which are used up."""
    exact = math.prod(shape) <= 1 << 24  # as far as every whole number is a float
    i, j, k = ijk.unbind() if exact else ijk.to(torch.int32).unbind()
    return i.mul_(shape[1]).add_(j).mul_(shape[2]).add_(k).to(torch.int32)


def _between(source: Tensor, first: Tensor, beyond: Tensor, shape: Sequence[int]) -> Tensor:
    """Read linearly between the eight voxels from `first` on."""
    offsets = [0]
    for step, side in zip((shape[1] * shape[2], shape[2], 1), shape, strict=True):
        offsets = [offset + far for offset in offsets for far in (0, step if side > 1 else 0)]
    values = [source[offset:].index_select(0, first) for offset in offsets]
    for weight in beyond.unbind()[::-1]:
        values = [near.lerp_(far, weight) for near, far in zip(values[::2], values[1::2], strict=True)]
    return values[0]


def _traded(indices: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    top = max(max(pair) for pair in pairs)
    becomes = np.arange(top + 1)
    for a, b in pairs:
        becomes[a], becomes[b] = b, a
    table = torch.from_numpy(becomes).to(device=indices.device, dtype=indices.dtype)
    return torch.where(indices <= top, table[indices.clamp(max=top).long()], indices)


def _intensity(image: Tensor, drawn: _Drawn, settings: Augmentation) -> Tensor:
    """One sample (C, I, J, K); each channel alike, but for the noise."""
    shifts, scales, gammas, noisy, blurs = drawn.happens
    offset = settings.intensity_offset * drawn.shift if shifts else 0.0
    shifts, noisy = shifts and settings.intensity_shift > 0, noisy and settings.noise > 0
    deviation = _deviation(image) if shifts or noisy else image.new_zeros(())
    if settings.blur and blurs and drawn.blur > 0.05:
        image = _blurred(image, settings.blur * drawn.blur)
    if noisy:
        generator = torch.Generator(image.device).manual_seed(drawn.noise_seed)
        noise = torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
        image = noise.mul_(deviation * (settings.noise * drawn.noise)).add_(image)
    if scales and settings.intensity_scale:
        mean = image.mean()
        image = (image - mean).mul_(1 + settings.intensity_scale * drawn.scale).add_(mean)
    if gammas and settings.gamma:
        low, high = torch.aminmax(image)
        unit = (image - low).div_((high - low).clamp_min(1e-6))
        # A power; its own kernel takes twice as long.
        image = unit.log_().mul_(math.exp(settings.gamma * drawn.gamma)).exp_().mul_(high - low).add_(low)
    if shifts:
        image = image + deviation * (settings.intensity_shift * drawn.shift)
    if offset:
        image = image + offset
    return image


def _deviation(image: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(image - image.mean())
    return length / math.sqrt(max(1, image.numel() - 1))


def _blurred(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, math.ceil(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = image.unsqueeze(1)
    for axis in range(3):
        shape, pad = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = len(kernel)
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        x = F.conv3d(F.pad(x, pad, mode="replicate"), kernel.view(shape))
    return x.squeeze(1)
