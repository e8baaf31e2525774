"""Labelled phantoms: made-up CT-like abdomens, for demonstrations and tests without anyone's data.

They are drawings, not patients: no measured image went into them, and a score on them says nothing about real scans. They are made
so that attenuation alone does not tell the organs apart (organs overlap each other and unlabelled tissue) while shape and place do.
The grids are as unlike as those of real collections: anisotropic, some oblique, stored along any axes, some too small for the body.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uxnet.demo.anatomy import Array, Canvas, Rng, abdomen, blank
from uxnet.errors import DatasetError
from uxnet.events import Progress, Report, silent
from uxnet.geometry import Geometry, axis_order
from uxnet.io import read_json, write_image, write_json, write_labels
from uxnet.jobs import work
from uxnet.labels import Label, Labels
from uxnet.volume import Volume

# Raised whenever the same seed would give other voxels, so that folders of two kinds are not mixed.
_EDITION = 1
_ORIENTATIONS = ("RAS", "LPS", "LAS", "RPI", "AIL", "PIR", "SAR", "ILP")
_COLOURS = {
    "spleen": (230, 159, 0),
    "right kidney": (240, 228, 66),
    "left kidney": (86, 180, 233),
    "liver": (213, 94, 0),
    "pancreas": (0, 190, 130),
    "aorta": (230, 110, 180),
}
_FINE = 2


def phantom_labels() -> Labels:
    """The six labelled organs, with values 1..6, colours that colour-blind people can tell apart, and the kidneys as a pair."""
    return Labels(
        foreground=tuple(Label(name, value) for value, name in enumerate(_COLOURS, start=1)),
        pairs=(("left kidney", "right kidney"),),
        colours=tuple(_COLOURS.items()),
    )


def phantom(seed: int, index: int) -> tuple[Volume, Volume]:
    """Phantom number `index` of the series `seed`; the same two numbers give the same bytes.

    Returns:
        The image, (1, I, J, K) float32 of whole HU, and its label map, (1, I, J, K) uint8. A voxel's image is the mean over the
        points inside it and its label the commonest among them. Between 24 and 96 voxels a side.

    Raises:
        ValueError: if `seed` or `index` is negative.
    """
    rng = np.random.default_rng([seed, index])
    scale = rng.uniform(0.93, 1.06, 3) * rng.uniform(0.97, 1.03)
    grid = _grid(rng, scale)
    canvas = _canvas(rng, grid, scale)
    abdomen(canvas, rng)
    hu = _pooled(canvas.hu).mean(axis=-1, dtype=np.float32)
    # Eight points a voxel and few classes: counting each class beats sorting.
    points = _pooled(canvas.labels)
    votes = np.stack([(points == value).sum(axis=-1, dtype=np.uint8) for value in range(len(_COLOURS) + 1)])
    labels = votes.argmax(axis=0).astype(np.uint8)
    hu = _scanned(rng, hu, grid.spacing_mm)
    placed = Geometry(grid.shape, _placed(rng, grid.affine_ras))
    order = axis_order(placed, str(rng.choice(_ORIENTATIONS)))
    stored = order.apply_to(placed)
    # NIfTI keeps an affine in 32 bits: rounding it here makes what is written equal to what is in memory.
    geometry = Geometry(stored.shape, stored.affine_ras.astype(np.float32).astype(np.float64))
    image, truth = (np.ascontiguousarray(order.apply(array))[None] for array in (hu, labels))
    return Volume(image, geometry), Volume(truth, geometry)


def write_phantoms(folder: Path, count: int, *, seed: int = 0, workers: int = 1, report: Report = silent) -> None:
    """Writes phantoms 1..count of a series as a folder in the layout of the Medical Segmentation Decathlon.

    Cases that are there stay, so that an interrupted call can be repeated and a folder can grow; `dataset.json` lists the cases that
    are complete, at any moment.

    Args:
        folder: gets `imagesTr/phantom_001.nii.gz` (int16), `labelsTr/phantom_001.nii.gz` (uint8), ... and `dataset.json`.
        workers: processes to draw in.

    Raises:
        DatasetError: if the folder holds another dataset, or phantoms of another series.
        VolumeError: if a file cannot be written.
        ValueError: if `count` is below 1 or `seed` is negative.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"the count must be at least 1 and the seed at least 0, not {count} and {seed}")
    _claim(folder, seed)
    todo = [index for index in range(1, count + 1) if not all(path.is_file() for path in _paths(folder, index))]
    for done, finished in enumerate(work(functools.partial(_write_phantom, folder, seed), todo, workers), start=1):
        if finished.error is not None:
            raise finished.error
        report(Progress("phantoms", done, len(todo)))
    write_json(folder / "dataset.json", _description(folder, seed))


def _write_phantom(folder: Path, seed: int, index: int) -> None:
    image_path, labels_path = _paths(folder, index)
    image, labels = phantom(seed, index)
    write_image(image_path, image.with_array(image.array.astype(np.int16)))
    write_labels(labels_path, labels)


def _claim(folder: Path, seed: int) -> None:
    path = folder / "dataset.json"
    if path.is_file():
        series = read_json(path, DatasetError).get("phantoms")
        if series != _series(seed):
            what = f"phantoms of another series ({series})" if series else "another dataset"
            raise DatasetError(f"{path}: this folder holds {what}; choose another folder for the phantoms of seed {seed}")
        return
    write_json(path, _description(folder, seed))


def _series(seed: int) -> dict[str, int]:
    return {"seed": seed, "edition": _EDITION}


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    name = f"phantom_{index:03d}.nii.gz"
    return folder / "imagesTr" / name, folder / "labelsTr" / name


def _description(folder: Path, seed: int) -> dict[str, Any]:
    images = sorted((folder / "imagesTr").glob("phantom_*.nii.gz"))
    names = [path.name for path in images if (folder / "labelsTr" / path.name).is_file()]
    labels = phantom_labels()
    return {
        "name": "uxnet phantoms",
        "description": "Synthetic CT-like phantoms of an abdomen, drawn by a program: not patients, nobody's data. "
        "A score on them says nothing about real scans.",
        "reference": "uxnet",
        "licence": "CC0-1.0",
        "release": f"{_EDITION}.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background"} | {str(label.value): label.name for label in labels.foreground},
        "colours": {name: list(colour) for name, colour in labels.colours},
        "pairs": [list(pair) for pair in labels.pairs],
        "phantoms": _series(seed),
        "numTraining": len(names),
        "numTest": 0,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }


def _grid(rng: Rng, scale: NDArray[np.float64]) -> Geometry:
    """A grid around the body's middle, in the body's own frame: near RAS, spacing in mm, oblique in two of five cases."""
    narrow = rng.uniform() < 0.25
    plane = round(float(rng.uniform(2.5, 2.9) if narrow else rng.uniform(3.2, 4.0)), 2)
    slices = round(float(rng.uniform(3.0, 6.0)), 2)
    wanted = np.array([318, 220, rng.uniform(130, 185)]) * scale / (plane, plane, slices)
    sides = np.clip(np.rint(wanted), (64, 48, 24), (96, 80, 48)).astype(int)
    turn = np.deg2rad(rng.uniform(-12, 12, 3)) if rng.uniform() < 0.4 else np.zeros(3)
    # A narrow field of view is not centred, either: it cuts the liver or the spleen.
    middle = np.array([rng.uniform(-18, 18) if narrow else rng.uniform(-4, 4), rng.uniform(-4, 4), rng.uniform(2, 28)])
    affine = np.eye(4)
    affine[:3, :3] = _rotation(turn) @ np.diag((plane, plane, slices))
    affine[:3, 3] = middle - affine[:3, :3] @ ((sides - 1) / 2)
    return Geometry((int(sides[0]), int(sides[1]), int(sides[2])), affine)


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    (a, b, c), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -sa], [0, sa, a]])
    about_y = np.array([[b, 0, sb], [0, 1, 0], [-sb, 0, b]])
    about_z = np.array([[c, -sc, 0], [sc, c, 0], [0, 0, 1]])
    turned: NDArray[np.float64] = about_x @ about_y @ about_z
    return turned


def _placed(rng: Rng, affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """The body lies anywhere in the scanner's frame."""
    moved = affine.copy()
    moved[:3, 3] += np.round(rng.uniform((-40, -60, -400), (40, 60, 400)), 1)
    return moved


def _canvas(rng: Rng, grid: Geometry, scale: NDArray[np.float64]) -> Canvas:
    """Points inside every voxel of `grid`, taken to the nominal body: scaled, and moved by a smooth random deformation."""
    fine = tuple(n * _FINE for n in grid.shape)
    to_voxels = np.diag([1 / _FINE] * 3 + [1.0])
    to_voxels[:3, 3] = (1 / _FINE - 1) / 2
    affine = np.diag([*(1 / scale), 1.0]) @ grid.affine_ras @ to_voxels
    extent = np.array(grid.shape) * grid.spacing_mm
    points = _smooth_noise(rng, fine, extent / 55, 5.0) + _smooth_noise(rng, fine, extent / 24, 1.2)
    i, j, k = (np.arange(n, dtype=np.float64) for n in fine)
    for axis in range(3):
        a, b, c, d = affine[axis]
        points[axis] += (a * i[:, None, None] + (b * j[:, None] + c * k + d)).astype(np.float32)
    return blank(points)


def _smooth_noise(rng: Rng, shape: tuple[int, ...], cells: NDArray[np.float64], sd_mm: float) -> Array:
    """A smooth random displacement (3, I, J, K) in mm: cubic B-splines on a lattice of about `cells` cells a side."""
    counts = [int(np.ceil(c)) + 3 for c in cells]
    field = rng.normal(0, 1, (3, *counts)).astype(np.float32)
    for sums, n, count in zip(("xabc,na->xnbc", "xabc,nb->xanc", "xabc,nc->xabn"), shape, counts, strict=True):
        place = np.linspace(0, count - 3 - 1e-6, n)
        gap = np.abs(place[:, None] + 1 - np.arange(count))
        weights = np.where(gap < 1, 2 / 3 - gap**2 + gap**3 / 2, np.where(gap < 2, (2 - gap) ** 3 / 6, 0)).astype(np.float32)
        # Not by BLAS: its sums may depend on the number of threads, and the phantoms are to be the same bytes.
        field = np.einsum(sums, field, weights)
    # 151/315 is the mean over a cell of the sum of a cubic B-spline's squared weights.
    smooth: Array = field * np.float32(sd_mm / (151 / 315) ** 1.5)
    return smooth


def _pooled(array: NDArray[Any]) -> NDArray[Any]:
    """(2 I, 2 J, 2 K) -> (I, J, K, 8): the points of each voxel."""
    i, j, k = (n // _FINE for n in array.shape)
    return array.reshape(i, _FINE, j, _FINE, k, _FINE).transpose(0, 2, 4, 1, 3, 5).reshape(i, j, k, _FINE**3)


def _scanned(rng: Rng, hu: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """What a scanner adds: uneven tissue, cupping, faint streaks from the spine, correlated noise; whole HU from -1024 up."""
    tissue = np.clip((hu + 200) / 200, 0, 1)
    uneven = ndimage.gaussian_filter(rng.normal(0, 1, hu.shape).astype(np.float32), [8 / s for s in spacing_mm])
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in hu.shape[:2]), indexing="ij")
    cupping = rng.uniform(-8, 8) * (x**2 + y**2 - 0.5) + rng.uniform(-4, 4) * x + rng.uniform(-4, 4) * y
    angle = np.rint((np.arctan2(y + 0.45, x) / (2 * np.pi) + 0.5) * 180).astype(int) % 180
    rays = ndimage.gaussian_filter(rng.normal(0, 1, (180, hu.shape[2])), (1.5, 0.7), mode=("wrap", "nearest"))
    streaks = rays[angle] / rays.std() * rng.uniform(1, 5)
    noise = ndimage.gaussian_filter(rng.normal(0, 1, hu.shape).astype(np.float32), (0.5, 0.5, 0.3))
    noise *= rng.uniform(8, 17) / noise.std()
    scanned = hu + tissue * (5 * uneven / uneven.std() + cupping[:, :, None] + streaks) + noise
    rounded: Array = np.maximum(np.rint(scanned), -1024).astype(np.float32)
    return rounded
