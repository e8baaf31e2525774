"""Pictures: slices with outlines, comparisons, training curves, box plots.

Slices are shown as radiologists look at them, whatever the axes of the file: axial from below (the patient's right on the left of the
picture, front at the top), coronal from the front, sagittal from the patient's left (front on the left of the picture). Voxels keep
their true proportions. Oblique grids are shown along their own axes, under the names of the nearest patient axes.

matplotlib is imported where it is used: it is slow to import, and those who only segment do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uxnet.errors import InputError
from uxnet.geometry import axis_order
from uxnet.io import atomic
from uxnet.labels import Labels
from uxnet.volume import Volume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plane = Literal["axial", "coronal", "sagittal"]
Picture = NDArray[np.uint8]
Limits = tuple[float, float]

# The axis of a RAS array that a plane cuts, and the letters at the left, right, top and bottom of its picture.
_CUTS: dict[str, tuple[int, tuple[str, str, str, str]]] = {
    "axial": (2, ("R", "L", "A", "P")),
    "coronal": (1, ("R", "L", "S", "I")),
    "sagittal": (0, ("A", "P", "S", "I")),
}
_INK, _GREY, _GRID, _ACCENT = "#1f2933", "#7b8794", "#e4e7eb", "#0b6e99"
# Okabe and Ito's colours, which colour-blind people can tell apart; their yellow is too light for lines on white.
_CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")


@dataclass(frozen=True)
class Row:
    """One row of `comparison_figure`.

    Args:
        name: the case, written at the left.
        image: (C, I, J, K); its first channel is shown.
        maps: label maps (1, I, J, K) on the image's grid, one a column after the image; None leaves a panel dark.
        texts: what is written under each map, for example its Dice; may be empty.
        plane: which plane is shown.
        index: the slice, counted along the patient's axis (to the right, front or top); by default the best of the first map.
    """

    name: str
    image: Volume
    maps: tuple[Volume | None, ...]
    texts: tuple[str, ...] = ()
    plane: Plane = "axial"
    index: int | None = None


def edge_letters(plane: Plane) -> tuple[str, str, str, str]:
    """The patient's sides at the left, right, top and bottom of a picture of this plane: R, L, A, P, S, I."""
    return _CUTS[plane][1]


def best_slice(volume: Volume, plane: Plane, background: int = 0) -> int:
    """The slice of a label map with the most different labels and, among those, the most labelled voxels.

    Counted along the patient's axis, as `slice_picture` takes it. The middle one where nothing is labelled.
    """
    planes = np.moveaxis(_ras(volume), _CUTS[plane][0], 0)
    values = [v for v in np.unique(planes) if v != background]
    if not values:
        return int(planes.shape[0]) // 2
    counts = np.array([(planes == v).sum(axis=(1, 2)) for v in values])
    kinds, voxels = (counts > 0).sum(axis=0), counts.sum(axis=0)
    return int(np.lexsort((voxels, kinds))[-1])


def robust_limits(volume: Volume, channel: int = 0) -> Limits:
    """An intensity window (low, high): the 0.5th and 99.5th percentile."""
    values = volume.array[channel]
    low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    return float(low), float(high) if high > low else float(low) + 1.0


def slice_picture(
    image: Volume,
    plane: Plane = "axial",
    index: int | None = None,
    *,
    label_map: Volume | None = None,
    labels: Labels | None = None,
    limits: Limits | None = None,
    channel: int = 0,
    side_px: int = 512,
    outline_px: int = 2,
    fill: float = 0.0,
) -> Picture:
    """One slice in grey with the outlines of its labels in their colours, as RGB (H, W, 3) uint8.

    Args:
        image: (C, I, J, K) along any axes.
        index: counted along the patient's axis; by default the best slice of `label_map`, or the middle one.
        label_map: (1, I, J, K) values on the image's grid; needs `labels`.
        limits: the window (low, high) that is shown from black to white; robust percentiles by default.
        side_px: the longer side of the picture; the other follows from the true proportions.
        outline_px: the outlines' width; they run inside the labels, so that neighbours both show. 0 for none.
        fill: how much of the labels' colour covers their inside, 0..1.

    Raises:
        InputError: if the index lies outside, or the label map's grid is not the image's.
    """
    axis = _CUTS[plane][0]
    count = _ras(image).shape[axis]
    if index is None:
        background = labels.background if labels else 0
        index = count // 2 if label_map is None else best_slice(label_map, plane, background)
    if not 0 <= index < count:
        raise InputError(f"{image.name}: there is no {plane} slice {index}; there are {count}, from 0 on")
    low, high = limits or robust_limits(image, channel)
    sides = _display_shape(image, plane, side_px)
    grey = _stretched(_cut(image, plane, index, channel).astype(np.float32), sides)
    grey = np.clip((grey - low) / max(high - low, 1e-6), 0, 1)
    rgb: NDArray[np.float32] = np.repeat(grey[:, :, None], 3, axis=2) * 255
    if label_map is not None and labels is not None:
        if label_map.geometry.shape != image.geometry.shape:
            raise InputError(
                f"{label_map.name}: its grid {label_map.geometry.shape} is not that of {image.name}, {image.geometry.shape}; "
                "only a label map on the image's own grid can be drawn over it"
            )
        shown = _smooth_labels(_cut(label_map, plane, index, 0), sides, labels)
        edge = _edge(shown, outline_px)
        for n, label in enumerate(labels.foreground, start=1):
            colour = np.array(labels.colour(label.name), dtype=np.float32)
            inside = shown == n
            rgb[inside] = (1 - fill) * rgb[inside] + fill * colour
            rgb[inside & edge] = colour
    return np.rint(rgb).astype(np.uint8)


def comparison_figure(
    path: Path,
    rows: Sequence[Row],
    labels: Labels,
    *,
    columns: Sequence[str] = ("image", "reference", "prediction"),
    title: str = "",
    note: str = "",
    limits: Limits | None = None,
    fill: float = 0.0,
) -> None:
    """A page of pictures: a row a case, the image first, then a column a label map, and a legend of the labels' colours.

    Args:
        path: ends in .png or .svg.
        columns: their titles; one for the image and one for each map of the rows.
        note: a sentence for the foot of the page, for example what was shown.
        limits, fill: as for `slice_picture`.

    Raises:
        InputError: if there are no rows, a row has another number of maps than there are columns, or the file cannot be written.
    """
    if not rows:
        raise InputError(f"{path}: there are no cases to draw")
    for row in rows:
        if len(row.maps) != len(columns) - 1:
            raise InputError(f"{path}: the case {row.name} has {len(row.maps)} label maps, the columns are {', '.join(columns)}")
    pictures = [_row_pictures(row, labels, limits, fill) for row in rows]
    width, left, gap, under = 2.9, 0.32, 0.06, 0.26
    heights = [width * max(p.shape[0] for p in line) / line[0].shape[1] for line in pictures]
    # A tall row gets narrower panels instead of more page.
    heights = [min(h, 1.05 * width) for h in heights]
    head, foot = 0.36 + (0.34 if title else 0), 0.42 + (0.24 if note else 0)
    total_w = left + len(columns) * (width + gap)
    total_h = head + sum(h + under for h in heights) + foot
    with _figure(path, (total_w, total_h)) as figure:
        if title:
            figure.text(0.012, 1 - 0.16 / total_h, title, fontsize=12, fontweight="bold", va="top", color=_INK)
        top = total_h - head
        for n, column in enumerate(columns):
            middle = (left + n * (width + gap) + width / 2) / total_w
            figure.text(middle, (top + 0.07) / total_h, column, fontsize=10.5, ha="center", va="bottom", color=_INK)
        for row, line, height in zip(rows, pictures, heights, strict=True):
            top -= height
            figure.text(0.16 / total_w, (top + height / 2) / total_h, row.name, rotation=90, ha="center", va="center", color=_INK)
            for n, picture in enumerate(line):
                x = left + n * (width + gap)
                axes = figure.add_axes((x / total_w, top / total_h, width / total_w, height / total_h))
                _panel(axes, picture, edge_letters(row.plane) if n == 0 else None)
                if n and n <= len(row.texts):
                    middle = (x + width / 2) / total_w
                    figure.text(middle, (top - 0.05) / total_h, row.texts[n - 1], ha="center", va="top", fontsize=8.5, color=_INK)
            top -= under
        _colour_legend(figure, labels, (foot - 0.2) / total_h)
        if note:
            figure.text(0.012, 0.1 / total_h, note, fontsize=8.5, va="bottom", color=_GREY)


def curves(
    path: Path,
    *,
    losses: Sequence[tuple[int, float]],
    scores: Mapping[str, Sequence[tuple[int, float]]],
    title: str = "",
    colours: Mapping[str, str] | None = None,
) -> None:
    """Training curves side by side: the loss over steps, and Dice over steps.

    Args:
        path: ends in .png or .svg.
        losses: (step, loss). Many of them are drawn pale, with their running mean over them; values that span more than a factor of
            20 get a logarithmic axis.
        scores: name -> (step, Dice). The one called "mean" stands out.
        colours: name -> any colour that matplotlib knows.

    Raises:
        InputError: if the file cannot be written.
    """
    with _figure(path, (9.6, 3.6)) as figure:
        loss_axes = figure.add_axes((0.07, 0.15, 0.38, 0.68))
        dice_axes = figure.add_axes((0.53, 0.15, 0.31, 0.68))
        if title:
            figure.text(0.012, 0.975, title, fontsize=12, fontweight="bold", va="top", color=_INK)
        steps, values = _series(losses)
        window = len(values) // 25
        if window > 1:
            loss_axes.plot(steps, values, color=_ACCENT, alpha=0.25, linewidth=0.8)
            loss_axes.plot(steps, _running_mean(values, window), color=_ACCENT, linewidth=1.8)
        else:
            loss_axes.plot(steps, values, color=_ACCENT, linewidth=1.8, marker="o", markersize=2.5)
        if values.size and values.min() > 0 and values.max() > 20 * values.min():
            loss_axes.set_yscale("log")
        elif values.size and values.min() >= 0:
            loss_axes.set_ylim(bottom=0)
        cycle = {name: _CYCLE[n % len(_CYCLE)] for n, name in enumerate(n for n in scores if n != "mean")}
        for name, series in sorted(scores.items(), key=lambda item: item[0] != "mean"):
            steps, values = _series(series)
            main = name == "mean"
            colour = _INK if main else (colours or {}).get(name, cycle[name])
            width, order = (2.4, 3) if main else (1.2, 2)
            dice_axes.plot(steps, values, color=colour, linewidth=width, zorder=order, marker="o", markersize=width + 1, label=name)
        lowest = min((value for series in scores.values() for _, value in series if np.isfinite(value)), default=0.0)
        # Curves that all run near the top are told apart by a shorter axis; its foot is labelled.
        dice_axes.set_ylim(max(0.0, np.floor(lowest * 10 - 1) / 10), 1)
        if scores:
            dice_axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=8.5)
        for axes, name in ((loss_axes, "loss"), (dice_axes, "Dice")):
            axes.set_title(name, loc="left", fontsize=10, color=_INK)
            axes.set_xlabel("step")
            _plain(axes)


def boxes(path: Path, scores: Mapping[str, Sequence[float]], title: str = "", *, ylabel: str = "Dice") -> None:
    """A box plot: one box a name, from the first to the third quartile with the median, and every case as a point.

    Values that are not finite (a structure that neither map has) are left out; the number of cases stands under each name.

    Args:
        path: ends in .png or .svg.
        scores: name -> a value a case, 0..1.

    Raises:
        InputError: if there is nothing to draw, or the file cannot be written.
    """
    if not scores:
        raise InputError(f"{path}: there are no scores to draw")
    values = [np.array([v for v in series if np.isfinite(v)], dtype=np.float64) for series in scores.values()]
    places = np.arange(1, len(values) + 1)
    with _figure(path, (max(4.0, 1.2 + 0.95 * len(values)), 3.9)) as figure:
        axes = figure.add_axes((0.62 / figure.get_figwidth(), 0.2, 1 - 0.74 / figure.get_figwidth(), 0.66))
        if title:
            figure.text(0.12 / figure.get_figwidth(), 0.975, title, fontsize=12, fontweight="bold", va="top", color=_INK)
        line = {"color": _ACCENT, "linewidth": 1.2}
        axes.boxplot(
            values,
            positions=places,
            widths=0.5,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": "#d7e8f0", "edgecolor": _ACCENT, "linewidth": 1.2},
            medianprops={"color": _INK, "linewidth": 2},
            whiskerprops=line,
            capprops=line,
        )
        for place, series in zip(places, values, strict=True):
            # Golden-ratio steps spread the points evenly and the same way every time.
            spread = (np.arange(series.size) * 0.618034 % 1 - 0.5) * 0.34
            axes.plot(place + spread, series, "o", markersize=3, color=_INK, alpha=0.55, markeredgewidth=0, zorder=3)
        names = [f"{name.replace(' ', chr(10), 1)}\nn = {v.size}" for name, v in zip(scores, values, strict=True)]
        axes.set_xticks(places, names, fontsize=8.5)
        axes.set_ylabel(ylabel)
        axes.set_ylim(0, 1.02)
        _plain(axes)


def _ras(volume: Volume, channel: int = 0) -> NDArray[Any]:
    return axis_order(volume.geometry, "RAS").apply(volume.array[channel])


def _cut(volume: Volume, plane: Plane, index: int, channel: int) -> NDArray[Any]:
    """A slice (rows, columns) the way it is shown: both axes of a RAS slice run against the picture's."""
    flat: NDArray[Any] = np.take(_ras(volume, channel), index, axis=_CUTS[plane][0])
    return flat[::-1, ::-1].T


def _display_shape(volume: Volume, plane: Plane, side_px: int) -> tuple[int, int]:
    geometry = axis_order(volume.geometry, "RAS").apply_to(volume.geometry)
    across, down = (n * s for a, (n, s) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True)) if a != _CUTS[plane][0])
    scale = side_px / max(across, down)
    return max(1, round(down * scale)), max(1, round(across * scale))


def _stretched(flat: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Linear, with pixels as areas: the picture's border is the outermost voxels' border, not their centres."""
    rows, columns = (np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in zip(shape, flat.shape, strict=True))
    grid = np.meshgrid(rows, columns, indexing="ij")
    stretched: NDArray[np.float32] = ndimage.map_coordinates(flat, grid, order=1, mode="nearest")
    return stretched


def _smooth_labels(flat: NDArray[Any], shape: tuple[int, int], labels: Labels) -> NDArray[np.int64]:
    """Indices 0..n at the picture's size: each label is stretched linearly and the strongest wins, so outlines show no stairs."""
    values = [label.value for label in labels.foreground]
    present = [n for n, value in enumerate(values, start=1) if (flat == value).any()]
    strength = np.zeros((len(present) + 1, *shape), dtype=np.float32)
    for n, index in enumerate(present, start=1):
        strength[n] = _stretched((flat == values[index - 1]).astype(np.float32), shape)
    strength[0] = 1 - strength[1:].sum(axis=0)
    indices: NDArray[np.int64] = np.array([0, *present])[strength.argmax(axis=0)]
    return indices


def _edge(shown: NDArray[np.int64], width_px: int) -> NDArray[np.bool_]:
    if width_px < 1:
        return np.zeros(shown.shape, dtype=np.bool_)
    size = 2 * width_px + 1
    edge: NDArray[np.bool_] = ndimage.maximum_filter(shown, size) != ndimage.minimum_filter(shown, size)
    return edge


def _row_pictures(row: Row, labels: Labels, limits: Limits | None, fill: float) -> list[Picture]:
    first = next((m for m in row.maps if m is not None), None)
    index = row.index
    if index is None and first is not None:
        index = best_slice(first, row.plane, labels.background)
    window = limits or robust_limits(row.image)
    plain = slice_picture(row.image, row.plane, index, limits=window)
    drawn = [
        np.zeros_like(plain)
        if one is None
        else slice_picture(row.image, row.plane, index, label_map=one, labels=labels, limits=window, fill=fill)
        for one in row.maps
    ]
    return [plain, *drawn]


def _panel(axes: Any, picture: Picture, letters: tuple[str, str, str, str] | None) -> None:
    from matplotlib.patheffects import withStroke

    axes.imshow(picture, interpolation="antialiased")
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    # The panel keeps its size and the picture its proportions: what is left over is dark.
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_visible(False)
    halo = [withStroke(linewidth=2, foreground="black")]
    style = {"transform": axes.transAxes, "fontsize": 8, "color": "#d0d7de", "path_effects": halo}
    for letter, x, y in zip(letters or (), (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.965, 0.035), strict=False):
        axes.text(x, y, letter, ha="center", va="center", **style)


def _colour_legend(figure: Figure, labels: Labels, y: float) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=_hex(labels.colour(label.name)), label=label.name) for label in labels.foreground]
    # 8.5 points of writing take about 0.075 inches a letter; the patch and the gap take five letters more.
    longest = max(len(label.name) for label in labels.foreground) + 5
    columns = max(1, min(len(patches), int(figure.get_figwidth() / (0.075 * longest))))
    figure.legend(
        handles=patches,
        loc="center",
        bbox_to_anchor=(0.5, y),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=0.9,
        columnspacing=1.2,
    )


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _series(points: Sequence[tuple[int, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    both = np.array(points, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    # Divided by what the window really holds, so that the ends are not pulled down.
    kernel = np.ones(window)
    mean: NDArray[np.float64] = np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
    return mean


def _plain(axes: Any) -> None:
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_GREY)
    axes.tick_params(colors=_INK, labelsize=8.5, length=3)


@contextmanager
def _figure(path: Path, size_inch: tuple[float, float]) -> Iterator[Figure]:
    """A blank figure that is saved, whole or not at all, when the block ends without an error."""
    import matplotlib
    from matplotlib.figure import Figure

    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"{path}: pictures are written as .png or .svg")
    # No dates, versions or random ids: the same figures give the same file.
    metadata: dict[str, None] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "uxnet", "font.family": "DejaVu Sans", "font.size": 9.5, "axes.labelcolor": _INK}):
        figure = Figure(figsize=size_inch, facecolor="white")
        yield figure
        try:
            with atomic(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
