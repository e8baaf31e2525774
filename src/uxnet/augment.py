"""Whole-batch augmentation on the device where the batch is. What happens to a sample is a function of (seed, step, sample)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from uxnet.recipe import Augmentation

Matrix = NDArray[np.float64]

_STREAM = 1  # apart from the sampler's random numbers, which have the same seed, step and sample


def augment(
    images: Tensor, indices: Tensor, settings: Augmentation, seed: int, step: int, spacing_mm: Sequence[float] = (), masks: int = 0
) -> tuple[Tensor, Tensor]:
    """A batch, rotated, scaled, mirrored and changed in intensity, each sample on its own.

    Args:
        images: (N, C, I, J, K) floating point.
        indices: (N, I, J, K) label indices, any integer type; moved with the image, nearest neighbour.
        settings: what may happen and how far.
        seed, step: with the sample's number they decide everything.
        spacing_mm: of the voxels, so that a rotation turns and does not shear where they are not cubes; empty takes them as cubes.
        masks: how many of the last channels are masks of 0 and 1, which stay masks: moved, but their intensity left alone.

    Returns:
        Both, of the same shapes and types.
    """
    draws = [np.random.default_rng((seed, step, sample, _STREAM)) for sample in range(len(images))]
    spatial = [_matrix(rng, settings, spacing_mm) for rng in draws]
    # The others are left out rather than moved by nothing: reading them anew would round them.
    moving = {sample: matrix for sample, matrix in enumerate(spatial) if matrix is not None}
    if moving:
        samples = list(moving)
        moved, labels = _moved(images[samples], indices[samples], list(moving.values()))
        images, indices = images.clone(), indices.clone()
        images[samples], indices[samples] = moved, labels
    scans, priors = images[:, : images.shape[1] - masks], images[:, images.shape[1] - masks :]
    changed = torch.stack([_intensity(scan, rng, settings) for scan, rng in zip(scans, draws, strict=True)])
    return (torch.cat((changed, priors.round()), dim=1) if masks else changed), indices


def _matrix(rng: np.random.Generator, settings: Augmentation, spacing_mm: Sequence[float]) -> Matrix | None:
    """(3, 3), from the result's voxel offsets from the centre to the source's, along (i, j, k); None for the identity."""
    # All numbers are drawn in any case, so that one setting does not move the draws of another.
    turns, chance = rng.random() < settings.affine_probability, rng.random(3)
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * np.array(settings.rotation_deg))
    sizes = 1 + settings.scale * rng.uniform(-1, 1, 3)
    mirrored = [m and c < 0.5 for m, c in zip(settings.mirror, chance, strict=True)]
    moves = turns and (any(settings.rotation_deg) or settings.scale > 0)
    if not moves and not any(mirrored):
        return None
    matrix = np.eye(3)
    if moves:
        for axis, angle in enumerate(angles):
            a, b = [x for x in range(3) if x != axis]
            turn = np.eye(3)
            turn[a, a] = turn[b, b] = math.cos(angle)
            turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
        matrix = matrix @ np.diag(1 / (sizes if settings.anisotropic else np.full(3, sizes[0])))
        if len(spacing_mm):
            # Turned in millimetres, said in voxels.
            matrix = matrix * np.array(spacing_mm)[None, :] / np.array(spacing_mm)[:, None]
    return matrix @ np.diag([-1.0 if m else 1.0 for m in mirrored])


def _moved(images: Tensor, indices: Tensor, matrices: list[Matrix]) -> tuple[Tensor, Tensor]:
    """Both read at the places that the matrices say: images linearly, indices nearest; beyond the patch its edge goes on."""
    shape = images.shape[2:]
    # grid_sample counts axes from the last to the first, and in units of half a side.
    half = np.array([side / 2 for side in shape])
    theta = np.zeros((len(matrices), 3, 4), dtype=np.float32)
    for n, matrix in enumerate(matrices):
        in_halves = matrix * half[None, :] / half[:, None]
        theta[n, :, :3] = in_halves[::-1, ::-1]
    grid = F.affine_grid(torch.from_numpy(theta).to(images.device), [len(images), 1, *shape], align_corners=False)
    moved = F.grid_sample(images, grid.to(images.dtype), mode="bilinear", padding_mode="border", align_corners=False)
    as_float = indices.to(images.dtype).unsqueeze(1)
    labels = F.grid_sample(as_float, grid.to(images.dtype), mode="nearest", padding_mode="border", align_corners=False)
    return moved, labels.squeeze(1).round().to(indices.dtype)


def _intensity(image: Tensor, rng: np.random.Generator, settings: Augmentation) -> Tensor:
    """One sample (C, I, J, K); each channel alike, but for the noise."""
    happens = rng.random(5) < settings.intensity_probability
    shift, scale, gamma = rng.uniform(-1, 1, 3)
    noise, blur = rng.random(2)
    noise_seed = int(rng.integers(2**62))
    deviation = image.std() if (settings.intensity_shift or settings.noise) else None
    if settings.blur and happens[4] and blur > 0.05:
        image = _blurred(image, settings.blur * blur)
    if settings.noise and happens[3] and deviation is not None:
        generator = torch.Generator(image.device).manual_seed(noise_seed)
        image = image + torch.randn(image.shape, generator=generator, device=image.device) * (deviation * settings.noise * noise)
    if settings.intensity_scale and happens[1]:
        mean = image.mean()
        image = (image - mean) * (1 + settings.intensity_scale * scale) + mean
    if settings.gamma and happens[2]:
        low, high = image.amin(), image.amax()
        image = ((image - low) / (high - low).clamp_min(1e-6)) ** math.exp(settings.gamma * gamma) * (high - low) + low
    if settings.intensity_shift and happens[0] and deviation is not None:
        image = image + deviation * settings.intensity_shift * shift
    return image


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
