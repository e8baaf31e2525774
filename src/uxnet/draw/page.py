"""The page that figures are drawn on: colours, plain axes, and files that are the same every time.

matplotlib is imported where it is used: it is slow to import, and those who only segment do not need it.
"""

from __future__ import annotations

from bisect import bisect_right
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

_LIGHTEST = 0.6  # luminance, 0..1, of a line that shows on white


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
            # Nor is a name between dollar signs a formula; those of ticks on logarithmic axes are matplotlib's own.
            text.set_parse_math(r"\mathdefault" in text.get_text())
        try:
            with atomic(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def hex_colour(colour: tuple[int, int, int]) -> str:
    """(red, green, blue), 0..255, as matplotlib takes it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def line_colour(colour: tuple[int, int, int]) -> str:
    """A label's colour for lines on white: its own, and darker where it is too light to be seen there."""
    light = sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
    darker = min(1.0, (_LIGHTEST / max(light, 1e-9)) ** (1 / 2.2))
    red, green, blue = (round(part * darker) for part in colour)
    return hex_colour((red, green, blue))


def line_inch(lines: int, points: float) -> float:
    """The height of some lines of text, in inches."""
    return 1.25 * points / 72 * lines


def text_inch(text: str, points: float, bold: bool = False) -> float:
    """The width of a line of text in the page's font, in inches, at most: letters made of pixels are up to 7 % wider than drawn."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=points, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(printable(text), font, ismath=False)[0]) * 1.07 / 72


def wrapped(text: str, width_inch: float, points: float, bold: bool = False) -> list[str]:
    """A text in lines of no more than a width: broken between words, and within one that is longer, behind "_" and the like if it can be.

    Its own line breaks stay. An empty text has one empty line.
    """

    def fits(line: str) -> bool:
        return text_inch(line, points, bold) <= width_inch

    lines = []
    for paragraph in printable(text).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if fits(f"{line} {word}" if line else word):
                line = f"{line} {word}" if line else word
                continue
            lines += [line] if line else []
            line = word
            while len(line) > 1 and not fits(line):
                most = max(1, bisect_right([text_inch(line[:n], points, bold) for n in range(1, len(line))], width_inch))
                behind = max((n for n in range(most // 2, most + 1) if n and line[n - 1] in "_-./"), default=most)
                lines.append(line[:behind])
                line = line[behind:]
        lines.append(line)
    return lines


def plain_axes(axes: Any) -> None:
    """Pale horizontal lines and no frame."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8.5, length=3)
