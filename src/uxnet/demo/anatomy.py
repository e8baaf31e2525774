"""A made-up abdomen as implicit shapes, painted onto a fine grid: tissue attenuation in HU and a label for every point.

Nobody's anatomy: all positions and sizes are round numbers of ours, in nominal millimetres around the middle of the body (x to the
right, y to the front, z to the top of the patient), varied by a random generator. Attenuations are typical of contrast-enhanced CT.
Structures are painted in order, later ones over earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rng = np.random.Generator

_STRIDE = 6
AIR, LUNG, FAT = -1000.0, -830.0, -100.0
SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER, PANCREAS, AORTA = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Part:
    """An implicit solid: `field(x, y, z)` is roughly the distance to its surface in mm, negative inside; `low`..`high` bounds it."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    field: Callable[[Array, Array, Array], Array]


Shape = tuple[Part, ...]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Canvas:
    """What is painted on: grids (I, J, K), written in place; `blank` makes one.

    Args:
        points_mm: (3, I, J, K) float32, where each point of the grid lies in the nominal body, in mm.
        sparse_mm: every sixth of them along each axis, to find boxes of the grid.
        slack_mm: (3,), how far in x, y and z a point can be from the nearest sparse one.
        hu: (I, J, K) float32.
        labels: (I, J, K) uint8.
    """

    points_mm: Array
    sparse_mm: Array
    slack_mm: Array
    hu: Array
    labels: NDArray[np.uint8]


def blank(points_mm: Array) -> Canvas:
    """A canvas of air over points (3, I, J, K), in mm."""
    sparse = np.ascontiguousarray(points_mm[:, ::_STRIDE, ::_STRIDE, ::_STRIDE])
    # Half a step along each axis of the grid, and a little for its bends.
    slack = np.array([1.0 + sum(np.abs(np.diff(p, axis=axis)).max() for axis in range(3)) / 2 for p in sparse], dtype=np.float32)
    shape = points_mm.shape[1:]
    return Canvas(points_mm, sparse, slack, np.full(shape, AIR, dtype=np.float32), np.zeros(shape, dtype=np.uint8))


@dataclass(frozen=True)
class Solid:
    """A shape on a canvas: the distances to its surface in mm, negative inside, over a box of the grid that holds it."""

    box: Box
    distance_mm: Array


@dataclass(frozen=True)
class Contrast:
    """One case's attenuations in HU. All follow one strength of enhancement, so that organs of different cases overlap."""

    liver: float
    spleen: float
    kidney: float
    pancreas: float
    aorta: float
    vein: float
    muscle: float
    wall: float


def draw_contrast(rng: Rng) -> Contrast:
    """Attenuations for a case: unenhanced tissue plus its share of a common enhancement, and some variation of its own."""
    strength = rng.uniform(0.8, 1.2)
    own = rng.normal(0, 4, 8)
    base = np.array([56, 48, 36, 44, 44, 44, 52, 40])
    share = np.array([48, 74, 136, 36, 132, 90, 6, 36])
    return Contrast(*(float(v) for v in base + share * strength + own))


def abdomen(canvas: Canvas, rng: Rng) -> None:
    """Paints a whole abdomen."""
    contrast = draw_contrast(rng)
    cavity, thorax, surface = _walls(canvas, rng, contrast)
    _chest(canvas, rng, contrast, thorax, surface)
    _spine(canvas, rng, contrast)
    _bowel(canvas, rng, contrast, cavity)
    _stomach(canvas, rng, contrast, cavity)
    _liver(canvas, rng, contrast, cavity)
    _spleen(canvas, rng, contrast, cavity)
    _kidneys(canvas, rng, contrast, cavity)
    _vessels(canvas, rng, contrast)
    _pancreas(canvas, rng, contrast)


def place(canvas: Canvas, shape: Shape, reach_mm: float = 0.0) -> Solid:
    """Measures the union of a shape's parts on the canvas; right up to `reach_mm` outside it."""
    boxes = [_box(canvas, part.low - reach_mm, part.high + reach_mm) for part in shape]
    found = [box for box in boxes if box is not None]
    if not found:
        return Solid((slice(0, 0),) * 3, np.empty((0, 0, 0), dtype=np.float32))
    start = [min(box[axis].start for box in found) for axis in range(3)]
    stop = [max(box[axis].stop for box in found) for axis in range(3)]
    distance = np.full([b - a for a, b in zip(start, stop, strict=True)], np.inf, dtype=np.float32)
    for part, box in zip(shape, boxes, strict=True):
        if box is None:
            continue
        x, y, z = (canvas.points_mm[(axis, *box)] for axis in range(3))
        here = distance[tuple(slice(s.start - a, s.stop - a) for s, a in zip(box, start, strict=True))]
        np.minimum(here, part.field(x, y, z), out=here)
    i, j, k = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return Solid((i, j, k), distance)


def fill(canvas: Canvas, solid: Solid, hu: float, label: int = 0, *, within: Mask | None = None, grow_mm: float = 0.0) -> None:
    """Paints a solid, made larger by `grow_mm`, where `within` is true."""
    inside = solid.distance_mm < grow_mm
    if within is not None:
        inside &= within[solid.box]
    canvas.hu[solid.box][inside] = hu
    canvas.labels[solid.box][inside] = label


def paint(canvas: Canvas, shape: Shape, hu: float, label: int = 0, *, within: Mask | None = None) -> None:
    """Paints a shape where `within` is true."""
    fill(canvas, place(canvas, shape), hu, label, within=within)


def _box(canvas: Canvas, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box | None:
    """A box of the grid that holds all its points between `low` and `high`; not quite the smallest one."""
    near = np.ones(canvas.sparse_mm.shape[1:], dtype=np.bool_)
    for p, a, b, slack in zip(canvas.sparse_mm, low, high, canvas.slack_mm, strict=True):
        near &= (p >= a - slack) & (p <= b + slack)
    if not near.any():
        return None
    spans = []
    for axis, n in enumerate(canvas.hu.shape):
        hit = np.flatnonzero(near.any(axis=tuple(a for a in range(3) if a != axis))) * _STRIDE
        spans.append(slice(max(int(hit[0]) - _STRIDE + 1, 0), min(int(hit[-1]) + _STRIDE, n)))
    return spans[0], spans[1], spans[2]


def ellipsoid(centre: ArrayLike, semi_mm: ArrayLike, turn_deg: tuple[float, float] = (0.0, 0.0), power: float = 2.0) -> Shape:
    """A superellipsoid, turned about the z axis and then about the y axis."""
    c, s = np.asarray(centre, dtype=np.float64), np.asarray(semi_mm, dtype=np.float64)
    a, b = np.deg2rad(turn_deg)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn = (about_y @ about_z).astype(np.float32)
    reach = np.full(3, s.max()) if a or b else s

    def field(x: Array, y: Array, z: Array) -> Array:
        d = [x - np.float32(c[0]), y - np.float32(c[1]), z - np.float32(c[2])]
        own = [turn[0, m] * d[0] + turn[1, m] * d[1] + turn[2, m] * d[2] for m in range(3)]
        rho = _norm([u / np.float32(t) for u, t in zip(own, s, strict=True)], power)
        distance: Array = np.sqrt(d[0] ** 2 + d[1] ** 2 + d[2] ** 2) * (1 - 1 / np.maximum(rho, 1e-3))
        return distance

    return (Part(c - reach, c + reach, field),)


def tube(course: ArrayLike, radii_mm: ArrayLike, *, steps: int = 5) -> Shape:
    """A bent tube along a smooth curve through the points (n, 3) of `course`, with a radius at each of them."""
    nodes = np.column_stack([np.asarray(course, dtype=np.float64), np.asarray(radii_mm, dtype=np.float64)])
    ends = np.vstack([2 * nodes[0] - nodes[1], nodes, 2 * nodes[-1] - nodes[-2]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    # Catmull-Rom: a curve through its points without solving for anything.
    pieces = [
        0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        for p0, p1, p2, p3 in zip(ends[:-3], ends[1:-2], ends[2:-1], ends[3:], strict=True)
    ]
    curve = np.vstack([*pieces, nodes[-1:]]).astype(np.float32)

    return tuple(_segment(a, b) for a, b in pairwise(curve))


def _segment(start: Array, end: Array) -> Part:
    """A rod with round ends; `start` and `end` are (x, y, z, radius)."""
    (ax, ay, az, ar), (bx, by, bz, br) = start, end
    ux, uy, uz = bx - ax, by - ay, bz - az
    length2 = ux**2 + uy**2 + uz**2 + np.float32(1e-6)

    def field(x: Array, y: Array, z: Array) -> Array:
        dx, dy, dz = x - ax, y - ay, z - az
        along = np.clip((dx * ux + dy * uy + dz * uz) / length2, 0, 1)
        dx -= along * ux
        dy -= along * uy
        dz -= along * uz
        distance: Array = np.sqrt(dx * dx + dy * dy + dz * dz) - (ar + along * (br - ar))
        return distance

    reach = max(ar, br)
    return Part(np.minimum(start, end)[:3] - reach, np.maximum(start, end)[:3] + reach, field)


def _norm(terms: Sequence[Array], power: float) -> Array:
    if power == 2:
        root: Array = np.sqrt(terms[0] ** 2 + sum(u**2 for u in terms[1:]))
        return root
    total: Array = terms[0] * 0
    for u in terms:
        total += np.abs(u) ** np.float32(power)
    return total ** np.float32(1 / power)


def _near(rng: Rng, place: ArrayLike, sd_mm: float = 4.0) -> NDArray[np.float64]:
    where = np.asarray(place, dtype=np.float64)
    return where + np.clip(rng.normal(0, sd_mm, where.shape), -2 * sd_mm, 2 * sd_mm)


def _sized(rng: Rng, size: ArrayLike, share: float = 0.08) -> NDArray[np.float64]:
    return np.asarray(size, dtype=np.float64) * rng.uniform(1 - share, 1 + share)


def _walls(canvas: Canvas, rng: Rng, contrast: Contrast) -> tuple[Mask, Mask, Array]:
    """Skin, fat rim, muscle wall and ribs; gives the abdominal cavity, the thoracic one, and the height above the diaphragm."""
    x, y, z = canvas.points_mm
    half, deep = np.float32(155), np.float32(106)
    rho = _norm([x / half, y / deep], 2.3)
    depth = np.hypot(x, y) * (1 / np.maximum(rho, 1e-3) - 1)
    rim = np.float32(rng.uniform(9, 24)) * (1 + np.float32(0.3) * y / deep)
    wall = np.float32(rng.uniform(9, 13))
    canvas.hu[depth > 0] = 15
    canvas.hu[depth > 2] = FAT - 5
    canvas.hu[depth > rim] = contrast.muscle
    inside = depth > rim + wall
    canvas.hu[inside] = FAT
    # Ribs: rods in the muscle wall, one every 27 mm, falling towards the front, above a costal margin that rises to the breastbone.
    turn = (z + np.float32(0.45) * y + np.float32(rng.uniform(0, 27))) % 27 - np.float32(13.5)
    rod = np.hypot(depth - rim - wall / 2, turn)
    caged = (z > 25 + np.float32(0.8) * y) & (np.abs(x) > 30)
    canvas.hu[caged & (rod < 5.5)] = rng.uniform(380, 520)
    canvas.hu[caged & (rod < 3.2)] = rng.uniform(140, 220)
    top = rng.uniform(94, 108)
    domes = [top - 75 * (((x - cx) / 88) ** 2 + ((y + 5) / 92) ** 2) for cx, top in ((66, top), (-72, top - rng.uniform(4, 14)))]
    surface: Array = z - np.maximum(*domes)
    chest = inside & (surface > 0) & (z > 5)
    return inside & ~chest & (surface < -3), chest, surface


def _chest(canvas: Canvas, rng: Rng, contrast: Contrast, thorax: Mask, surface: Array) -> None:
    """Lungs and the heart's lower face above the diaphragm, which is a thin sheet of muscle."""
    x, y, _ = canvas.points_mm
    lungs = thorax & ((np.abs(x) > 30) | (y > -8))
    canvas.hu[lungs] = LUNG + rng.uniform(-40, 40)
    canvas.hu[lungs & (surface < 3)] = contrast.muscle
    heart = ellipsoid(_near(rng, (-18, 32, 118)), (58, 42, 34), (-20, 0))
    solid = place(canvas, heart, 4)
    fill(canvas, solid, FAT, within=thorax, grow_mm=4)
    fill(canvas, solid, contrast.vein + 10, within=thorax)


def _spine(canvas: Canvas, rng: Rng, contrast: Contrast) -> None:
    """Vertebrae with discs, canal and processes, and the muscles beside them."""
    for side in (-1, 1):
        paint(canvas, ellipsoid((side * 34, -76, 0), (29, 17, 400), power=2.6), contrast.muscle)
        psoas = tube([(side * 27, -48, 20), (side * 33, -46, -40), (side * 42, -38, -120)], _sized(rng, (5, 15, 20)))
        paint(canvas, psoas, contrast.muscle)
    start, spongy, shell = rng.uniform(0, 34), rng.uniform(140, 230), rng.uniform(350, 480)
    paint(canvas, ellipsoid((0, -74, 0), (15, 13, 400), power=2.4), shell)
    for n in range(-5, 6):
        z = 34 * n + start
        paint(canvas, ellipsoid((0, -48, z + 17), (21, 16, 6), power=3), 85)
        body = place(canvas, ellipsoid((0, -48, z), (24, 19, 15), power=2.8))
        fill(canvas, body, shell)
        fill(canvas, body, spongy, grow_mm=-2.5)
        paint(canvas, ellipsoid((0, -70, z), (42, 5, 6), power=2.5), spongy)
        paint(canvas, tube([(0, -84, z), (0, -95, z - 9)], (4.5, 5)), shell)
    paint(canvas, ellipsoid((0, -73, 0), (9, 8, 400)), 25)


def _loop(canvas: Canvas, rng: Rng, contrast: Contrast, cavity: Mask, course: ArrayLike, radii: ArrayLike, gas: float) -> None:
    """A hollow organ: a wall of 3 mm around something of any attenuation, with gas above a level where there is gas."""
    gut = place(canvas, tube(course, radii, steps=4))
    fill(canvas, gut, contrast.wall + rng.normal(0, 8), within=cavity)
    fill(canvas, gut, rng.uniform(5, 85), within=cavity, grow_mm=-3)
    if rng.uniform() < gas:
        level = float(np.mean(np.asarray(course, dtype=np.float64)[:, 1])) + rng.uniform(-4, 10)
        fill(canvas, gut, -920, within=cavity & (canvas.points_mm[1] > level), grow_mm=-3)


def _bowel(canvas: Canvas, rng: Rng, contrast: Contrast, cavity: Mask) -> None:
    """The colon as a frame with pouches, and loops of small bowel in it: unlabelled, of any soft-tissue attenuation, some with gas."""
    for _ in range(16):
        middle = rng.uniform((-78, -5, -115), (78, 58, -14))
        swing = rng.normal(0, 1, 3) * (18, 14, 12)
        course = np.array([middle - swing, middle + rng.normal(0, 9, 3), middle + swing])
        _loop(canvas, rng, contrast, cavity, course, rng.uniform(8, 13) * rng.uniform(0.9, 1.1, 3), 0.25)
    frame = [(101, -18, -110), (103, -12, -62), (92, 22, -34), (52, 56, -46), (0, 62, -50), (-52, 56, -28), (-92, 26, -4)]
    frame += [(-107, -12, -18), (-106, -22, -64), (-104, -20, -110)]
    bends = _near(rng, frame, 5)
    for a, b in ((0, 3), (2, 5), (4, 7), (6, 10)):
        dense = np.array([(1 - t) * bends[m] + t * bends[m + 1] for m in range(a, min(b, 9)) for t in (0, 0.33, 0.67)])
        _loop(canvas, rng, contrast, cavity, dense, rng.uniform(14, 20) * (1 + 0.16 * (-1.0) ** np.arange(len(dense))), 0.6)


def _stomach(canvas: Canvas, rng: Rng, contrast: Contrast, cavity: Mask) -> None:
    course = _near(rng, [(-58, 6, 76), (-68, 22, 52), (-60, 44, 28), (-30, 55, 10), (4, 50, 0)], 4)
    _loop(canvas, rng, contrast, cavity, course, _sized(rng, (24, 29, 25, 18, 12), 0.15), 0.75)


def _liver(canvas: Canvas, rng: Rng, contrast: Contrast, cavity: Mask) -> None:
    right = ellipsoid(_near(rng, (78, 2, 38)), _sized(rng, (62, 84, 84)), (rng.uniform(-8, 8), rng.uniform(0, 10)), 2.2)
    left = ellipsoid(_near(rng, (14, 40, 62)), _sized(rng, (76, 32, 36), 0.15), (0, rng.uniform(-4, 12)))
    # The face that looks down and to the left, on which stomach, gallbladder and kidney lie.
    slope, floor = rng.uniform(0.5, 0.75), rng.uniform(-30, -8)
    lobes = _above(right + left, slope, floor)
    liver = place(canvas, lobes, 2)
    fill(canvas, liver, FAT, within=cavity, grow_mm=2)
    fill(canvas, liver, contrast.liver, LIVER, within=cavity)
    paint(canvas, ellipsoid((38, -62, 14), (32, 34, 62)), FAT, within=canvas.labels == LIVER)
    own = canvas.labels == LIVER
    for end in ((110, 40, 58), (115, -25, 62), (60, 45, 75)):
        branch = np.array([(32, 0, 82), (62, 8, 68), _near(rng, end, 8)])
        paint(canvas, tube(branch, (6, 5, 3)), contrast.vein, LIVER, within=own)
    for _ in range(int(rng.integers(0, 3))):
        cyst = ellipsoid(rng.uniform((50, -40, 10), (110, 45, 80)), rng.uniform(5, 11, 3))
        paint(canvas, cyst, rng.uniform(5, 60), LIVER, within=own)
    gallbladder = place(canvas, ellipsoid(_near(rng, (47, 50, 4)), _sized(rng, (14, 22, 17), 0.2), (20, 0)), 2)
    fill(canvas, gallbladder, contrast.wall, within=cavity, grow_mm=2)
    fill(canvas, gallbladder, rng.uniform(2, 20), within=cavity)


def _above(shape: Shape, slope: float, floor: float) -> Shape:
    """The part of a shape above a plane that rises towards the patient's left by `slope`; at x = 80 its height is `floor` mm."""

    def bounded(part: Part) -> Part:
        down = float(np.hypot(1, slope))
        return Part(part.low, part.high, lambda x, y, z: np.maximum(part.field(x, y, z), (floor - slope * (x - 80) + 0.15 * y - z) / down))

    return tuple(bounded(part) for part in shape)


def _spleen(canvas: Canvas, rng: Rng, contrast: Contrast, cavity: Mask) -> None:
    turn = (rng.uniform(12, 26), rng.uniform(-14, 0))
    spleen = place(canvas, ellipsoid(_near(rng, (-97, -26, 46)), _sized(rng, (25, 46, 46), 0.14), turn, 2.3), 2.5)
    fill(canvas, spleen, FAT, within=cavity, grow_mm=2.5)
    fill(canvas, spleen, contrast.spleen, SPLEEN, within=cavity)


def _kidneys(canvas: Canvas, rng: Rng, contrast: Contrast, cavity: Mask) -> None:
    """Cortex, a little darker medulla, and a sinus of fat and urine that opens to the middle and the front."""
    shared = _sized(rng, (27, 25, 51), 0.1)
    for side, z, label in ((1, -18, RIGHT_KIDNEY), (-1, -4, LEFT_KIDNEY)):
        centre = _near(rng, (side * 68, -42, z))
        tilt = (-side * rng.uniform(15, 35), -side * rng.uniform(6, 14))
        kidney = place(canvas, ellipsoid(centre, _sized(rng, shared, 0.05), tilt, 2.2), 6)
        fill(canvas, kidney, FAT, within=cavity, grow_mm=6)
        fill(canvas, kidney, contrast.kidney, label, within=cavity)
        fill(canvas, kidney, contrast.kidney - 14, label, within=cavity, grow_mm=-7)
        sinus = place(canvas, ellipsoid(centre + np.array((-side * 15, 9, 0)), (15, 9, 20), (tilt[0], 0)))
        fill(canvas, sinus, -55)
        fill(canvas, sinus, rng.uniform(0, 30), grow_mm=-5)
        hilum = centre + np.array((-side * 14, 8, 4))
        course = np.array([hilum, (side * 35, -12, z + 14), (side * 15, -8, z + 18)])
        paint(canvas, tube(course, (5, 5, 5)), contrast.vein)


def _vessels(canvas: Canvas, rng: Rng, contrast: Contrast) -> None:
    """The aorta, labelled, and vessels that look like it and are not: the caval and portal veins and the mesenteric artery."""
    xs, ys = np.clip(rng.normal(0, 3, (2, 5)), -6, 6)
    trunk = [(-11 + a, -13 + b, z) for a, b, z in zip(xs, ys, (-140, -70, 0, 70, 140), strict=True)]
    aorta = place(canvas, tube(trunk, rng.uniform(10, 13) * np.array((0.9, 0.95, 1, 1.05, 1.1))), 2)
    trunk = [(21, -14, -140), (22, -15, -40), (24, -14, 20), (28, -6, 70), (26, 4, 120)]
    cava = place(canvas, tube(trunk, _sized(rng, (11, 11, 12, 13, 13))), 2)
    for vessel in (cava, aorta):
        fill(canvas, vessel, FAT, grow_mm=2)
    fill(canvas, cava, contrast.vein)
    fill(canvas, aorta, contrast.aorta, AORTA)
    course = _near(rng, [(-70, -8, 40), (-30, 12, 28), (8, 12, 14), (30, 6, 34), (56, 8, 50)], 2)
    portal = place(canvas, tube(course, (4, 5, 6.5, 6.5, 5)))
    # Inside the liver its vessels belong to it, as annotators have it.
    for label in (0, LIVER):
        fill(canvas, portal, contrast.vein + 8, label, within=canvas.labels == label)
    artery = place(canvas, tube([(-8, 0, 14), (-6, 14, -10), (-2, 20, -60), (2, 24, -110)], (4, 4, 3.5, 3)), 4)
    fill(canvas, artery, FAT, within=canvas.labels == 0, grow_mm=4)
    fill(canvas, artery, contrast.aorta)


def _pancreas(canvas: Canvas, rng: Rng, contrast: Contrast) -> None:
    course = _near(rng, [(40, 14, -18), (36, 20, 2), (8, 30, 13), (-24, 27, 22), (-54, 8, 31), (-74, -8, 38)], 3)
    pancreas = place(canvas, tube(course, _sized(rng, (13, 16, 12, 13, 13, 10), 0.12)), 3)
    fill(canvas, pancreas, FAT, within=canvas.labels == 0, grow_mm=3)
    fill(canvas, pancreas, contrast.pancreas, PANCREAS, within=canvas.labels == 0)
