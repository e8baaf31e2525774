"""A comparison in words, as tables in Markdown, as rows in CSV, and as plain JSON values."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.evaluation.compare import Comparison, PairedTest, Standing
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.paired import EXACT
from uxnet.evaluation.scores import MEAN
from uxnet.evaluation.statistics import CONFIDENCE, RESAMPLES, SEED, Interval
from uxnet.io import atomic

_DIGITS = {"dice": 4, "hd95_mm": 2, "nsd": 4}
TITLES = {"dice": "Dice", "hd95_mm": "HD95, mm", "nsd": "NSD"}
"""Of the metrics, for tables."""


def verdict(comparison: Comparison) -> list[str]:
    """Who is best, and whether the reference network can be told from the others, in words."""
    ranked, own = comparison.ranked(), comparison.reference
    top, mine = ranked[0], comparison.standing(own)
    if top.interval.mean is None:
        return ["No case counts in Dice, so nothing can be said."]
    leaders = [s.name for s in ranked if s.rank == 1]
    counted = _counted(comparison, leaders)
    if len(ranked) == 1:
        return [f"{own} has a mean Dice of {top.interval.mean:.4f} over {counted}; there is no other network to hold it against."]
    share = "have the same highest mean Dice" if len(leaders) > 1 else "has the highest mean Dice"
    best = f"{_listed(leaders)} {share}, {top.interval.mean:.4f}, over {counted}"
    if mine.interval.mean is None:
        best += f"; {own} has none, since no {comparison.by} counts for it"
    elif own not in leaders:
        over = "" if mine.n == top.n else f" over {_counted(comparison, [own])}"
        best += f"; {own} has {mine.interval.mean:.4f}{over} and is number {mine.rank} of {sum(s.rank is not None for s in ranked)}"
    tests = [t for t in comparison.tests if (t.metric, t.class_name) == ("dice", MEAN)]
    sides = {side: [t.other for t in tests if t.favours(comparison.alpha) == side] for side in (1, -1, 0)}
    words = [f"significantly {what} than {_listed(sides[s])}" for s, what in ((1, "better"), (-1, "worse")) if sides[s]]
    words += [f"not to be told from {_listed(sides[0])}"] if sides[0] else []
    several = f"Holm's correction for {len(tests)} comparisons" if len(tests) > 1 else "one comparison"
    lines = [f"{best}.", f"By Wilcoxon's signed-rank test ({several}, level {comparison.alpha:g}), {own} is {'; '.join(words)}."]
    lines.append(_who_wins(comparison, leaders, sides))
    for metric, what in (("hd95_mm", "lowest mean HD95"), ("nsd", "highest mean NSD")):
        first = comparison.ranked(metric)[0]
        if first.interval.mean is not None:
            unit = f"{first.interval.mean:.2f} mm" if metric == "hd95_mm" else f"{first.interval.mean:.4f}"
            names = [s.name for s in comparison.ranked(metric) if s.rank == 1]
            against = "" if own in names else f", {_beside(comparison, names[0], metric)}"
            lines.append(f"The {what}, {unit}, is that of {_listed(names)}{against}.")
    return lines


def p_text(p: float | None) -> str:
    """A p value for a reader."""
    return "-" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


# ---- words


def _who_wins(comparison: Comparison, leaders: Sequence[str], sides: Mapping[int, Sequence[str]]) -> str:
    own = comparison.reference
    if own in leaders:
        if not sides[0] and not sides[-1]:
            return f"In Dice, {own} wins against every other network."
        against = f"In Dice, {own} cannot be said to win against {_listed([*sides[0], *sides[-1]])}"
        return f"{against}, though its mean is the highest." if len(leaders) == 1 else f"{against}."
    top = leaders[0]
    test = comparison.against(top)
    p = f"p {'= ' if test.p_holm is None or test.p_holm >= 1e-4 else ''}{p_text(test.p_holm)}"
    won = test.favours(comparison.alpha)
    if won < 0:
        return f"In Dice, {top} wins against {own}: the difference is significant ({p})."
    if won > 0:
        return f"{top} has the higher mean Dice, but in most cases {own} is significantly the better ({p}): the two measures disagree."
    return f"The difference in Dice between {top} and {own} is not significant ({p}): neither can be said to be the better one."


def _counted(comparison: Comparison, names: Sequence[str]) -> str:
    """How many cases or persons count for each of these networks in mean Dice."""
    numbers = list(dict.fromkeys(comparison.standing(name).n for name in names))
    return f"{_listed(list(map(str, numbers)))} {comparison.by}{'' if numbers == [1] else 's'}"


def _beside(comparison: Comparison, top: str, metric: str) -> str:
    """How the best network in another metric stands to the reference network there."""
    words = {-1: "significantly better than", 0: "not to be told from", 1: "in most cases significantly worse than"}
    return f"{words[comparison.against(top, metric).favours(comparison.alpha)]} {comparison.reference}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ---- tables


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """As plain JSON values."""
    return {
        "against": comparison.reference,
        "classes": list(comparison.classes),
        "by": comparison.by,
        "n": comparison.n,
        "settings": {
            "tolerance_mm": comparison.tolerance_mm,
            "empty": comparison.empty,
            "test": f"Wilcoxon signed-rank, two-sided, zero differences left out, exact up to {EXACT} others",
            "correction": "Holm",
            "alpha": comparison.alpha,
            "confidence": CONFIDENCE,
            "resamples": RESAMPLES,
            "seed": SEED,
        },
        "verdict": verdict(comparison),
        "notes": list(comparison.notes),
        "networks": [_flat(asdict(s), "interval", "mean", s.interval) for s in comparison.standings],
        "tests": [_flat(asdict(t), "difference", "median_difference", t.difference) for t in comparison.tests],
    }


def legend(comparison: Comparison) -> str:
    """What the figures of the tables are."""
    own = comparison.reference
    means = (
        f"Means over {comparison.by}s with {CONFIDENCE:.0%} bootstrap intervals; rank by mean, and in parentheses the mean of the ranks "
        f"within {comparison.by}s. n: {comparison.by}s that count in mean Dice; where another score has others, n stands behind it. "
        f"NSD at {comparison.tolerance_mm:g} mm. -: nothing counts, or no significant difference."
    )
    tests = (
        f" Tests: Wilcoxon's signed-rank, two-sided, zero differences left out, of {own} against each other network; p after Holm's "
        "correction (over networks; for classes over networks and classes); r: rank-biserial correlation, above 0 where "
        f"{own} is better; difference: median of {own} - other."
    )
    return means + (tests if comparison.tests else "")


def standing_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of means: a row a network, the best in mean Dice first."""
    head = ["network", "rank", "n", *(TITLES[m] for m in METRICS), *comparison.classes]
    rows = []
    for s in comparison.ranked():
        own = [(one.n, interval_text(one.interval, _DIGITS[m])) for m in METRICS for one in [comparison.standing(s.name, m)]]
        single = [comparison.standing(s.name, "dice", c) for c in comparison.classes]
        own += [(one.n, "-" if one.interval.mean is None else f"{one.interval.mean:.4f}") for one in single]
        rows.append([s.name, _rank(s), str(s.n), *(text if n in (0, s.n) else f"{text}, n = {n}" for n, text in own)])
    return head, rows


def test_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of tests: of the mean over classes in each metric, and of each class in Dice."""
    head = ["against", "score", "n", "difference", "r", "p", "p, Holm", "better"]
    wanted = [*((m, MEAN) for m in METRICS), *(("dice", c) for c in comparison.classes if len(comparison.classes) > 1)]
    names = [s.name for s in comparison.ranked() if s.name != comparison.reference]
    rows = []
    for metric, class_name in wanted:
        for name in names:
            t = comparison.against(name, metric, class_name)
            score = TITLES[metric].split(",")[0] + ("" if class_name == MEAN else f", {class_name}")
            effect = "-" if t.effect is None else f"{t.effect:+.2f}"
            difference = interval_text(t.difference, _DIGITS[metric], signed=True)
            rows.append([name, score, str(t.n), difference, effect, p_text(t.p), p_text(t.p_holm), _better(comparison, t)])
    return head, rows


def to_markdown(comparison: Comparison, level: int = 2) -> str:
    """The verdict, the two tables and what their figures are, as Markdown with headings of this level."""
    mark = "#" * level
    tests = test_rows(comparison)
    against = f"{mark} {comparison.reference} against each other network\n\n{markdown_table(*tests)}\n" if tests[1] else ""
    said = "\n".join(f"- {line}" for line in (*verdict(comparison), *comparison.notes))
    return (
        f"{mark} Who is best\n\n{said}\n\n{mark} Scores\n\nThe columns of the classes are Dice.\n\n"
        f"{markdown_table(*standing_rows(comparison))}\n{against}{legend(comparison)}\n"
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first column to the left, the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def write_markdown(path: Path, comparison: Comparison) -> None:
    """`to_markdown` as a page of its own.

    Raises:
        InputError: if the file cannot be written.
    """
    try:
        with atomic(path) as temporary:
            temporary.write_text(f"# Comparison\n\n{to_markdown(comparison)}", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_csv(path: Path, comparison: Comparison) -> None:
    """A row a metric, class and network, with its test where it is not the reference network.

    Raises:
        InputError: if the file cannot be written.
    """
    own = ("n_paired", "p", "p_holm", "rank_biserial", "median_difference", "difference_low", "difference_high")
    head = ("metric", "class", "network", "mean", "low", "high", "n", "rank", "mean_rank", *own)
    try:
        with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            for s in comparison.standings:
                cells: list[Any] = [s.metric, s.class_name, s.name, *s.interval, s.n, s.rank, s.mean_rank]
                if s.name != comparison.reference:
                    t = comparison.against(s.name, s.metric, s.class_name)
                    cells += [t.n, t.p, t.p_holm, t.effect, *t.difference]
                writer.writerow(["" if cell is None else cell for cell in cells] + [""] * (len(head) - len(cells)))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def interval_text(interval: Interval, digits: int, signed: bool = False) -> str:
    """A mean or median and its interval for a reader."""
    if interval.mean is None:
        return "-"
    sign = "+" if signed else ""
    low, high = interval.low, interval.high
    between = "" if low is None or high is None else f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
    return f"{interval.mean:{sign}.{digits}f}{between}"


def _rank(standing: Standing) -> str:
    if standing.rank is None:
        return "-"
    return f"{standing.rank}" + ("" if standing.mean_rank is None else f" ({standing.mean_rank:.2f})")


def _better(comparison: Comparison, test: PairedTest) -> str:
    return {1: comparison.reference, -1: test.other, 0: "-"}[test.favours(comparison.alpha)]


def _flat(values: dict[str, Any], key: str, name: str, interval: Interval) -> dict[str, Any]:
    values.pop(key)
    return values | {name: interval.mean, "low": interval.low, "high": interval.high}
