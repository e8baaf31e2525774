"""Curves of several networks, each a mean over runs with a band around it: the paper's figure 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from uxnet.draw.page import CYCLE, GREY, INK, blank_figure, line_inch, plain_axes, text_inch, wrapped
from uxnet.errors import InputError

Band = Literal["range", "interval"]
Numbers = NDArray[np.float64]
Run = Sequence[tuple[float, float]]

BANDS: Mapping[str, str] = {
    "range": "the lowest to the highest run",
    "interval": "the 95 % interval of the mean (Student's t)",
}
"""What a band is, in words."""

# Colours come round after eight; then the dashes differ, too.
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
_CONFIDENCE = 0.95
_MANY = 25  # points of a curve that make markers a blur
_BEGINNING = 0.25  # of the x axis: what lies lower there than all that follows may be cut off
_LINE_INCH = 0.165


@dataclass(frozen=True)
class BandPanel:
    """One panel: name of a network -> its runs, each (x, y) with rising x; points that are not finite are left out."""

    title: str
    curves: Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Banded:
    """A mean curve: x, mean, low and high, (n,) each; `runs` it is of. low = high = mean where there is one run."""

    x: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    runs: int


def banded(runs: Sequence[Run], band: Band = "range") -> Banded | None:
    """The mean over runs, and a band.

    Runs that were not measured at the same x are interpolated linearly between their points, from the last of their first points to the
    first of their last: nowhere is a run continued.

    Returns:
        None where the runs have no point, or no stretch of x in common.
    """
    series = [found for found in map(_finite, runs) if found.size]
    if not series:
        return None
    every = np.unique(np.concatenate([s[:, 0] for s in series]))
    first, last = max(s[0, 0] for s in series), min(s[-1, 0] for s in series)
    x = every[(every >= first) & (every <= last)]
    if not x.size:
        return None
    values = np.stack([np.interp(x, s[:, 0], s[:, 1]) for s in series])
    mean, n = values.mean(axis=0), len(series)
    if band == "range" or n == 1:
        return Banded(x, mean, values.min(axis=0), values.max(axis=0), n)
    from scipy import stats  # slow to import

    half = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return Banded(x, mean, mean - half, mean + half, n)


def bands(
    path: Path,
    panels: Sequence[BandPanel],
    *,
    xlabel: str = "step",
    ylabel: str = "validation Dice",
    band: Band = "range",
    title: str = "",
    note: str = "",
    strong: str = "",
    names: Sequence[str] = (),
) -> None:
    """Panels side by side: for each network the mean over its runs with a band, and its name at the end of its curve.

    Colours can be told apart by the colour-blind and are a network's own in every panel. What has no stretch of x in common is drawn as
    thin lines, a run each. Steep beginnings are cut off where showing them would crowd all that follows, and the foot of the page says so.

    Args:
        path: ends in .png or .svg.
        band: what the band is, see `BANDS`.
        note: a sentence for the foot of the page; what the band is stands before it.
        strong: the name that has the thicker line.
        names: in the order of their colours; by default as they appear.

    Raises:
        InputError: if there is no curve, or the file cannot be written.
    """
    if not any(_finite(run).size for panel in panels for runs in panel.curves.values() for run in runs):
        raise InputError(f"{path}: there are no curves to draw")
    known = list(dict.fromkeys([*names, *(name for panel in panels for name in panel.curves)]))
    longest = max(text_inch(f"{name}  0.000", 8.5) for panel in panels for name in panel.curves)
    # In inches, so that long names make the page larger and not the panels smaller.
    panel_w, left, right = 3.9, 0.72, 0.6 + longest
    most = max(len(panel.curves) for panel in panels)
    drawn = [_limits([s for runs in panel.curves.values() for s in map(_finite, runs) if s.size]) for panel in panels]
    said = f"Line: mean over the runs (folds). Band: {BANDS[band]}; a single run has none."
    cut = ["What lies below an axis is cut off."] if any(limits.cut for limits in drawn) else []
    width = len(panels) * (left + panel_w + right)
    lines = wrapped("\n".join([said, *cut, *note.splitlines()]), width - 0.24, 8)
    titles = wrapped(title, width - 0.24, 12, bold=True)
    called = [f"{chr(ord('a') + n)}) {panel.title}" if len(panels) > 1 else panel.title for n, panel in enumerate(panels)]
    heads = [wrapped(name, panel_w + right - 0.1, 10) for name in called]
    head = 0.16 + line_inch(max(map(len, heads)), 10) + (line_inch(len(titles), 12) + 0.1 if title else 0)
    tall, foot = max(2.9, _LINE_INCH * (most + 1)), 0.58 + 0.16 * len(lines)
    height = head + tall + foot
    with blank_figure(path, (width, height)) as figure:
        if title:
            figure.text(0.12 / width, 1 - 0.1 / height, "\n".join(titles), fontsize=12, fontweight="bold", va="top", color=INK)
        for n, panel in enumerate(panels):
            x = left + n * (left + panel_w + right)
            axes = figure.add_axes((x / width, foot / height, panel_w / width, tall / height))
            axes.set_title("\n".join(heads[n]), loc="left", fontsize=10, color=INK, pad=6)
            _draw(axes, panel, known, band, strong, tall, drawn[n])
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel if n == 0 else "")
            plain_axes(axes)
        figure.text(0.12 / width, 0.08 / height, "\n".join(lines), fontsize=8, va="bottom", color=GREY)


@dataclass(frozen=True)
class _End:
    """Where a curve ends, and how it is drawn."""

    x: float
    y: float
    style: Mapping[str, Any]


@dataclass(frozen=True)
class _Limits:
    """The axes of a panel: x from 0 to `right`, y from `low` to `high`; `cut` says that something lies below."""

    right: float
    low: float
    high: float
    cut: bool


def _limits(series: Sequence[Numbers]) -> _Limits:
    """All that is there, in tenths; where the beginnings alone would take more than half of the height, what follows them."""
    every = np.concatenate(series) if series else np.array([[1.0, 0.0], [1.0, 1.0]])
    right, lowest, highest = float(every[:, 0].max()), float(every[:, 1].min()), float(every[:, 1].max())
    late = every[every[:, 0] >= _BEGINNING * right, 1].min()
    cut = bool(highest - late < (highest - lowest) / 2)
    in_all, parts = (float(late), 20) if cut else (lowest, 10)
    low = max(0.0, np.floor(in_all * parts) / parts)
    high = min(1.0, max(low + 1 / parts, np.ceil(highest * parts + 1e-9) / parts))
    return _Limits(right * 1.02 or 1.0, low, high, lowest < low)


def _draw(axes: Any, panel: BandPanel, known: Sequence[str], band: Band, strong: str, tall_inch: float, limits: _Limits) -> None:
    """The curves of a panel, the strong one on top, and their names at its right edge."""
    ends: dict[str, _End] = {}
    for name, runs in panel.curves.items():
        turn, place = divmod(known.index(name), len(CYCLE))
        style = {"color": CYCLE[place], "linestyle": _DASHES[turn % len(_DASHES)]}
        top, made = 5 if name == strong else 3, banded(runs, band)
        if made is None:
            alone = [s for s in map(_finite, runs) if s.size]
            for s in alone:
                axes.plot(s[:, 0], s[:, 1], linewidth=0.7, alpha=0.8, zorder=top, **style)
            if alone:
                ends[name] = _End(float(max(s[-1, 0] for s in alone)), _mean([float(s[-1, 1]) for s in alone]), style)
            continue
        if made.runs > 1:
            axes.fill_between(made.x, made.low, made.high, color=CYCLE[place], alpha=0.14, linewidth=0, zorder=top - 1)
        marker = {"marker": "o", "markersize": 3.2} if made.x.size <= _MANY else {}
        axes.plot(made.x, made.mean, linewidth=2.4 if name == strong else 1.5, zorder=top, **style, **marker)
        ends[name] = _End(float(made.x[-1]), float(made.mean[-1]), style)
    axes.set_ylim(limits.low, limits.high)
    axes.set_xlim(0, limits.right)
    _name_ends(axes, ends, limits.low, limits.high, tall_inch)


def _name_ends(axes: Any, ends: Mapping[str, _End], low: float, high: float, tall_inch: float) -> None:
    """Each name beside the end of its curve, moved apart where they would cover each other, with a line that leads there."""
    left, right = axes.get_xlim()
    order = sorted(ends, key=lambda name: -ends[name].y)
    places = spread_out([ends[name].y for name in order], _LINE_INCH / tall_inch * (high - low), low, high)
    # Samples long enough that dashes show.
    turn, begin, text = (right + (right - left) * share for share in (0.04, 0.1, 0.11))
    for name, place in zip(order, places, strict=True):
        end = ends[name]
        axes.plot((end.x, turn), (end.y, place), color=end.style["color"], linewidth=0.8, clip_on=False, zorder=1)
        axes.plot((turn, begin), (place, place), linewidth=2.0, clip_on=False, zorder=1, **end.style)
        axes.text(text, place, f"{name}  {end.y:.3f}", fontsize=8.5, color=INK, va="center")


def spread_out(values: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Falling values moved as little as possible (least squares) so that neighbours are `step` apart, then together into the limits.

    Those that crowd each other are laid out evenly around their middle; more of them than fit reach beyond the limits.
    """
    groups: list[list[float]] = []  # of values without their steps: within a group all have one place, the mean
    for n, value in enumerate(values):
        groups.append([value + n * step])
        while len(groups) > 1 and _mean(groups[-2]) < _mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = [_mean(group) for group in groups for _ in group]
    places = [place - n * step for n, place in enumerate(places)]
    for n in range(len(places)):
        places[n] = min(places[n], high - n * step)
    for n in range(len(places)):
        places[n] = max(places[n], low + (len(places) - 1 - n) * step)
    return places


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finite(run: Run) -> Numbers:
    """(n, 2) points with rising x."""
    points = np.array(list(run), dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    ordered: Numbers = points[np.argsort(points[:, 0], kind="stable")]
    return ordered
