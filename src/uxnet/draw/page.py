"""The page that figures are drawn on: colours, plain axes, and files that are the same every time.

matplotlib is imported where it is used: it is slow to import, and those who only segment do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uxnet.errors import InputError, printable
from uxnet.io import atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, GRID, ACCENT = "#1f2933", "#7b8794", "#e4e7eb", "#0b6e99"
# Okabe and Ito's colours, which colour-blind people can tell apart; their yellow is too light for lines on white.
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c564b")


@contextmanager
def blank_figure(path: Path, size_inch: tuple[float, float], dpi: int = 150) -> Iterator[Figure]:
    """A blank figure that is saved, whole or not at all, when the block ends without an error.

    Raises:
        InputError: if the path ends in neither .png nor .svg, or cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise InputError(f"{path}: pictures are written as .png or .svg")
    # No dates, versions or random ids: the same figures give the same file.
    metadata: dict[str, None] = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": "uxnet", "font.family": "DejaVu Sans", "font.size": 9.5, "axes.labelcolor": INK}):
        figure = Figure(figsize=size_inch, facecolor="white")
        yield figure
        for text in figure.findobj(Text):
            text.set_text(printable(text.get_text()))  # names of files may hold what no font has
        try:
            with atomic(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def plain_axes(axes: Any) -> None:
    """Pale horizontal lines and no frame."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
