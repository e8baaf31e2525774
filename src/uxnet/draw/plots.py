"""Plots of numbers: training curves and box plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uxnet.draw.page import ACCENT, CYCLE, GREY, GRID, INK, blank_figure, line_inch, plain_axes, text_inch, wrapped
from uxnet.errors import InputError

Point = tuple[int, float]
Numbers = NDArray[np.float64]
Series = tuple[Numbers, Numbers]

_PALE = "#c3cad1"
# Eight colours are told apart; more curves than that differ in their dashes and markers, too.
_DASHES, _MARKERS = ("-", (0, (5, 1.5)), (0, (1.5, 1.2))), ("o", "s", "^")
_MOST_NAMED, _LOWEST_NAMED = 16, 12
# So many points of a curve make markers a blur.
_MANY = 25


def curves(
    path: Path,
    *,
    losses: Sequence[Point],
    scores: Mapping[str, Sequence[Point]],
    title: str = "",
    colours: Mapping[str, str] | None = None,
    rates: Sequence[Point] = (),
    seconds: Sequence[Point] = (),
) -> None:
    """Training curves side by side: the loss over steps, with the learning rate under it, and Dice over steps.

    Values that are not finite are left out.

    Args:
        path: ends in .png or .svg.
        losses: (step, loss). Many of them are drawn pale, with their running mean over them; values that span more than a factor of
            20 get a logarithmic axis.
        scores: name -> (step, Dice). The one called "mean" stands out. The legend gives the last value of each, the best on top; of
            more than 16 only those with the lowest last values have a name and a colour.
        colours: name -> any colour that matplotlib knows.
        rates: (step, learning rate); without any there is no such panel.
        seconds: (step, seconds since the beginning); the panels get a second axis with the time.

    Raises:
        InputError: if the file cannot be written.
    """
    shown = {name: series for name, series in ((name, _series(points)) for name, points in scores.items()) if series[0].size}
    if "mean" in shown and len(shown) == 2 and _same(*shown.values()):
        del shown["mean"]  # of one class alone it says nothing else
    series = [_series(losses), _series(rates), *shown.values()]
    last = max((float(steps[-1]) for steps, _ in series if steps.size), default=1.0)
    names = _named(shown)
    longest = max(text_inch(f"{name}  0.00", 8.5) for name in (*names, "00 others"))
    # Everything is laid out in inches, so that a long legend makes the page larger, not the panels smaller.
    panel, gap, left, legend = 3.75, 0.62, 0.62, 0.75 + longest
    width, lift = left + 2 * panel + gap + legend, 1.25 if rates else 0.0
    titles = wrapped(title, width - 0.24, 12, bold=True)
    head = 0.3 + (0.1 + line_inch(len(titles), 12) if title else 0.0) + (0.2 if seconds else 0.0)
    tall = max(2.45 + lift, 0.185 * (len(names) + 2))
    height = head + tall + 0.52
    with blank_figure(path, (width, height)) as figure:

        def add(x: float, y: float, h: float) -> Any:
            return figure.add_axes((x / width, y / height, panel / width, h / height))

        if title:
            figure.text(0.12 / width, 1 - 0.1 / height, "\n".join(titles), fontsize=12, fontweight="bold", va="top", color=INK)
        loss_axes = add(left, 0.52 + lift, tall - lift)
        dice_axes = add(left + panel + gap, 0.52, tall)
        panels = [(loss_axes, "loss"), (dice_axes, "Dice")]
        _draw_loss(loss_axes, *series[0])
        if rates:
            rate_axes = add(left, 0.52, 0.8)
            _draw_rate(rate_axes, *series[1])
            panels.append((rate_axes, "learning rate"))
        _draw_scores(dice_axes, shown, names, colours or {})
        for axes, name in panels:
            axes.set_xlim(0, last * 1.02)
            timed = bool(seconds) and name != "learning rate"
            axes.set_title(name, loc="left", fontsize=10, color=INK, pad=20 if timed else 6)
            if name != "loss" or not rates:
                axes.set_xlabel("step")
            plain_axes(axes)
            if timed:
                _add_times(axes, *_series(seconds))


def _draw_loss(axes: Any, steps: Numbers, values: Numbers) -> None:
    window = len(values) // 25
    if window > 1:
        axes.plot(steps, values, color=ACCENT, alpha=0.25, linewidth=0.8)
        axes.plot(steps, _running_mean(values, window), color=ACCENT, linewidth=1.8)
    else:
        axes.plot(steps, values, color=ACCENT, linewidth=1.8, marker="o", markersize=2.5)
    if values.size and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    elif values.size and values.min() >= 0:
        axes.set_ylim(bottom=0)


def _draw_rate(axes: Any, steps: Numbers, values: Numbers) -> None:
    axes.plot(steps, values, color=GREY, linewidth=1.5)
    top = float(values.max()) if values.size and values.max() > 0 else 1.0
    axes.set_ylim(0, top * 1.12)
    axes.set_yticks([0, top], ["0", f"{top:.1e}".replace("e-0", "e-")])


def _draw_scores(axes: Any, shown: Mapping[str, Series], names: Sequence[str], colours: Mapping[str, str]) -> None:
    """The curves of `names` in their colours, the others pale; and the legend."""
    handles = {}
    named = [name for name in shown if name in names and name != "mean"]
    for name, (steps, values) in shown.items():
        style: dict[str, Any] = {"color": _PALE, "linewidth": 0.8, "zorder": 2}
        if name == "mean":
            style = {"color": INK, "linewidth": 2.6, "zorder": 4, "marker": "o", "markersize": 4}
        elif name in named:
            turn, place = divmod(named.index(name), len(CYCLE))
            style = {"color": colours.get(name, CYCLE[place]), "linewidth": 1.3, "zorder": 3}
            style |= {"linestyle": _DASHES[turn % 3], "marker": _MARKERS[turn % 3], "markersize": 3.2}
        if len(steps) > _MANY:
            style.pop("marker", None)
        handles[name] = axes.plot(steps, values, **style)[0]
    lowest = min((float(values.min()) for _, values in shown.values()), default=0.0)
    # Curves that all run near the top are told apart by a shorter axis; its foot is labelled.
    axes.set_ylim(max(0.0, np.floor(lowest * 10 - 1) / 10), 1)
    if not shown:
        axes.text(0.5, 0.5, "no validation yet", transform=axes.transAxes, ha="center", va="center", fontsize=8.5, color=GREY)
        return
    texts = {name: f"{name}  {shown[name][1][-1]:.2f}" for name in names}
    others = [name for name in shown if name not in names]
    entries = [handles[name] for name in names] + [handles[name] for name in others[:1]]
    writing = [*texts.values(), *([f"{len(others)} others"] if others else [])]
    axes.legend(entries, writing, loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, fontsize=8.5, handlelength=2.6)


def _named(shown: Mapping[str, Series]) -> list[str]:
    """What the legend names: the mean, and the classes (of very many: those that score lowest) with the best on top."""
    classes = sorted((name for name in shown if name != "mean"), key=lambda name: -float(shown[name][1][-1]))
    kept = classes if len(classes) <= _MOST_NAMED else classes[-_LOWEST_NAMED:]
    return [*(["mean"] if "mean" in shown else []), *kept]


def _add_times(axes: Any, steps: Numbers, seconds: Numbers) -> None:
    """A second axis above: when which step was done."""
    if steps.size < 2 or seconds[-1] <= 0:
        return
    unit, scale = next(((name, s) for name, s in (("d", 86400), ("h", 3600), ("min", 60)) if seconds[-1] >= 2 * s), ("s", 1))
    rough = float(seconds[-1]) / scale / 6
    power = 10 ** np.floor(np.log10(rough))
    every = next(f * power for f in (1, 2, 5, 10) if f * power >= rough)
    times = np.arange(every, seconds[-1] / scale + 1e-9, every)
    above = axes.twiny()
    above.set_xlim(axes.get_xlim())
    # Where the time begins is known, though no record stands there.
    places = np.interp(times * scale, np.concatenate([[0.0], seconds]), np.concatenate([[0.0], steps]))
    above.set_xticks(places, [f"{time:g} {unit}" for time in times])
    above.tick_params(colors=GREY, labelsize=7.5, length=3, pad=1)
    for side, spine in above.spines.items():
        spine.set_visible(side == "top")
        spine.set_color(GRID)


def _same(one: Series, other: Series) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


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
    # In inches: a box has room for a name of usual length, and longer names are broken.
    width = max(4.0, 1.2 + 0.95 * len(values))
    titles = wrapped(title, width - 0.24, 12, bold=True)
    texts = [wrapped(name, (width - 0.74) / len(values) - 0.08, 8.5) for name in scores]
    head, foot = 0.2 + (line_inch(len(titles), 12) if title else 0.0), 0.3 + line_inch(max(map(len, texts)) + 1, 8.5)
    height = head + 2.6 + foot
    with blank_figure(path, (width, height)) as figure:
        axes = figure.add_axes((0.62 / width, foot / height, 1 - 0.74 / width, 2.6 / height))
        if title:
            figure.text(0.12 / width, 1 - 0.1 / height, "\n".join(titles), fontsize=12, fontweight="bold", va="top", color=INK)
        line = {"color": ACCENT, "linewidth": 1.2}
        axes.boxplot(
            values,
            positions=places,
            widths=0.5,
            showfliers=False,
            patch_artist=True,
            boxprops={"facecolor": "#d7e8f0", "edgecolor": ACCENT, "linewidth": 1.2},
            medianprops={"color": INK, "linewidth": 2},
            whiskerprops=line,
            capprops=line,
        )
        for place, series in zip(places, values, strict=True):
            # Golden-ratio steps spread the points evenly and the same way every time.
            spread = (np.arange(series.size) * 0.618034 % 1 - 0.5) * 0.34
            axes.plot(place + spread, series, "o", markersize=3, color=INK, alpha=0.55, markeredgewidth=0, zorder=3)
        names = ["\n".join((*lines, f"n = {v.size}")) for lines, v in zip(texts, values, strict=True)]
        axes.set_xticks(places, names, fontsize=8.5)
        axes.set_ylabel(ylabel)
        axes.set_ylim(0, 1.02)
        plain_axes(axes)


def _series(points: Sequence[Point]) -> Series:
    both = np.array(points, dtype=np.float64).reshape(-1, 2)
    both = both[np.isfinite(both).all(axis=1)]
    return both[:, 0], both[:, 1]


def _running_mean(values: Numbers, window: int) -> Numbers:
    # Divided by what the window really holds, so that the ends are not pulled down.
    kernel = np.ones(window)
    mean: Numbers = np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")
    return mean
