"""Pages of cases: image, reference and predictions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uxnet.draw.frame import draw_frame, frame_of
from uxnet.draw.page import INK, blank_figure
from uxnet.draw.slices import Limits, Picture, Plane, best_slice, edge_letters, robust_limits, slice_picture
from uxnet.errors import InputError
from uxnet.labels import Labels
from uxnet.volume import Volume


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
    dpi: int = 150,
) -> None:
    """A page of pictures: a row a case, the image first, then a column a label map, and a legend of the labels' colours.

    Args:
        path: ends in .png or .svg.
        columns: their titles; one for the image and one for each map of the rows.
        note: a sentence for the foot of the page, for example what was shown.
        limits, fill: as for `slice_picture`.
        dpi: dots an inch of a .png; a panel is 2.9 inches wide.

    Raises:
        InputError: if there are no rows, a row has another number of maps than there are columns, or the file cannot be written.
    """
    if not rows:
        raise InputError(f"{path}: there are no cases to draw")
    for row in rows:
        if len(row.maps) != len(columns) - 1:
            raise InputError(f"{path}: the case {row.name} has {len(row.maps)} label maps, the columns are {', '.join(columns)}")
    pictures = [_row_pictures(row, labels, limits, fill, dpi) for row in rows]
    width, gap, under = 2.9, 0.06, 0.26
    heights = [width * max(p.shape[0] for p in line) / line[0].shape[1] for line in pictures]
    # A tall row gets narrower panels instead of more page.
    heights = [min(h, 1.05 * width) for h in heights]
    names, each = [row.name for row in rows], width + gap
    frame = frame_of(labels, title=title, columns=columns, names=names, heights=heights, note=note, column_inch=each, points=9.5)
    total_w, total_h = frame.width, frame.head + sum(h + under for h in heights) + frame.foot
    with blank_figure(path, (total_w, total_h), dpi) as figure:
        top, middles = total_h - frame.head, []
        for row, line, height in zip(rows, pictures, heights, strict=True):
            top -= height
            middles.append(top + height / 2)
            for n, picture in enumerate(line):
                x = frame.left + n * each
                axes = figure.add_axes((x / total_w, top / total_h, width / total_w, height / total_h))
                panel(axes, picture, edge_letters(row.plane) if n == 0 else None)
                if n and n <= len(row.texts):
                    middle = (x + width / 2) / total_w
                    figure.text(middle, (top - 0.05) / total_h, row.texts[n - 1], ha="center", va="top", fontsize=8.5, color=INK)
            top -= under
        draw_frame(figure, frame, labels, column_inch=each, panel_inch=width, middles=middles)


def _row_pictures(row: Row, labels: Labels, limits: Limits | None, fill: float, dpi: int) -> list[Picture]:
    first = next((m for m in row.maps if m is not None), None)
    index = row.index
    if index is None and first is not None:
        index = best_slice(first, row.plane, labels.background)
    window = limits or robust_limits(row.image)
    # A little finer than the panel that it is shown in.
    side, outline = round(512 * dpi / 150), max(1, round(2 * dpi / 150))

    def cut(label_map: Volume | None = None) -> Picture:
        of = None if label_map is None else labels
        return slice_picture(
            row.image, row.plane, index, label_map=label_map, labels=of, limits=window, side_px=side, outline_px=outline, fill=fill
        )

    plain = cut()
    drawn = [np.zeros_like(plain) if one is None else cut(one) for one in row.maps]
    return [plain, *drawn]


def panel(axes: Any, picture: Picture, letters: tuple[str, str, str, str] | None) -> None:
    """A picture on axes without a frame, dark where it does not reach, with letters at its left, right, top and bottom."""
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
    # At least a dozen pixels high: an L that loses its foot is an I, and means below.
    size = max(8.0, 12 * 72 / axes.figure.dpi)
    style = {"transform": axes.transAxes, "fontsize": size, "fontweight": "bold", "color": "#d0d7de", "path_effects": halo}
    for letter, x, y in zip(letters or (), (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.965, 0.035), strict=False):
        axes.text(x, y, letter, ha="center", va="center", **style)
