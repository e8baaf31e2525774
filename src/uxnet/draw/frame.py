"""What stands around the panels of a page: its title, the names of columns and rows, the legend and the note, in lines that fit.

All lengths are inches, so that long texts make the page larger and not the panels smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uxnet.draw.page import GREY, GRID, INK, hex_colour, line_inch, text_inch, wrapped
from uxnet.labels import Labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN = 0.1
_TITLE, _LEGEND, _NOTE = 12.0, 8.5, 8.0  # points
_ROW = 1.6 * _LEGEND / 72  # of the legend
_PATCH = 3.2 * _LEGEND / 72  # a colour of the legend, with the gaps beside it


@dataclass(frozen=True)
class Frame:
    """The texts around a page's panels, each with the line breaks that it needs, and the room that they take.

    legend: (columns, names); left, head, foot: beside, above and below the panels; width: of the page.
    """

    title: str
    columns: tuple[str, ...]
    names: tuple[str, ...]
    note: str
    legend: tuple[int, tuple[str, ...]]
    left: float
    head: float
    foot: float
    width: float
    points: float


def frame_of(
    labels: Labels,
    *,
    title: str,
    columns: Sequence[str],
    names: Sequence[str],
    heights: Sequence[float],
    note: str,
    column_inch: float,
    points: float,
) -> Frame:
    """The frame of a page.

    Args:
        names, heights: of the rows.
        column_inch: the width of a column, with the gap beside it.
        points: the size of the names of columns and rows.
    """
    named = [wrapped(name, height, points) for name, height in zip(names, heights, strict=True)]
    left = 0.15 + line_inch(max(map(len, named)), points)
    width = left + len(columns) * column_inch
    titles, notes = wrapped(title, width - 2 * _MARGIN, _TITLE, bold=True), wrapped(note, width - 2 * _MARGIN, _NOTE)
    heads = [wrapped(column, column_inch - _MARGIN, points) for column in columns]
    most = width - 2 * _MARGIN - _PATCH
    entries = [wrapped(label.name, most, _LEGEND) for label in labels.foreground]
    widest = max(text_inch(line, _LEGEND) for lines in entries for line in lines) + _PATCH
    across = max(1, min(len(entries), int((width - 2 * _MARGIN) / widest)))
    down = -(-len(entries) // across)
    legend = down * (_ROW + line_inch(max(map(len, entries)) - 1, _LEGEND)) + 0.12
    return Frame(
        title="\n".join(titles),
        columns=tuple(map("\n".join, heads)),
        names=tuple(map("\n".join, named)),
        note="\n".join(notes),
        legend=(across, tuple(map("\n".join, entries))),
        left=left,
        head=0.14 + line_inch(max(map(len, heads)), points) + (line_inch(len(titles), _TITLE) + _MARGIN if title else 0),
        foot=legend + _MARGIN + (line_inch(len(notes), _NOTE) + _MARGIN if note else 0),
        width=width,
        points=points,
    )


def draw_frame(figure: Figure, frame: Frame, labels: Labels, *, column_inch: float, panel_inch: float, middles: Sequence[float]) -> None:
    """Writes it.

    Args:
        middles: where the middle of each row is, above the foot of the page.
    """
    from matplotlib.patches import Patch

    height = float(figure.get_figheight())

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / frame.width, y / height, text, **{"color": INK, **style})

    if frame.title:
        write(_MARGIN, height - _MARGIN, frame.title, fontsize=_TITLE, fontweight="bold", va="top")
    for n, column in enumerate(frame.columns):
        middle = frame.left + n * column_inch + panel_inch / 2
        write(middle, height - frame.head + 0.06, column, fontsize=frame.points, ha="center", va="bottom")
    for name, middle in zip(frame.names, middles, strict=True):
        write(frame.left / 2, middle, name, fontsize=frame.points, rotation=90, ha="center", va="center", multialignment="center")
    across, names = frame.legend
    patches = [
        Patch(facecolor=hex_colour(labels.colour(label.name)), edgecolor=GRID, linewidth=0.5, label=name)
        for label, name in zip(labels.foreground, names, strict=True)
    ]
    under = line_inch(frame.note.count("\n") + 1, _NOTE) + _MARGIN if frame.note else 0.0
    figure.legend(
        handles=patches,
        loc="lower center",
        bbox_to_anchor=(0.5, (under + _MARGIN / 2) / height),
        ncols=across,
        frameon=False,
        fontsize=_LEGEND,
        handlelength=0.9,
        columnspacing=1.2,
        borderaxespad=0.0,
    )
    if frame.note:
        write(_MARGIN, _MARGIN / 2, frame.note, fontsize=_NOTE, va="bottom", color=GREY)
