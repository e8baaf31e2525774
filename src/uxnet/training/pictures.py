"""Pictures of a run's validations: what the network makes of the same few cases, every now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from uxnet.draw import Limits, Plane, Row, best_slice, comparison_figure, one_slice
from uxnet.labels import Labels
from uxnet.volume import Volume

CASES = 3
"""Cases on a picture: what is seen at a glance."""

PICTURES = 10
"""Most pictures of a run."""

# A panel is then 260 pixels wide; a picture costs half of one at the usual 150.
_DPI = 90


@dataclass(frozen=True)
class Shown:
    """A case on a picture.

    Args:
        name: the case.
        image: (C, I, J, K); its first channel is shown.
        reference: (1, I, J, K) values, on the image's grid.
        predicted: likewise.
        dice: the case's mean over its classes; None where none counts.
    """

    name: str
    image: Volume
    reference: Volume
    predicted: Volume
    dice: float | None


def keep_slice(case: Shown, labels: Labels, plane: Plane = "axial") -> Shown:
    """The case with one slice left, the one that shows most of the reference: what a picture needs, without its volumes' memory."""
    index = best_slice(case.reference, plane, labels.background)
    image, reference, predicted = (one_slice(v, plane, index) for v in (case.image, case.reference, case.predicted))
    return Shown(case.name, image, reference, predicted, case.dice)


def picture(path: Path, shown: Sequence[Shown], labels: Labels, title: str = "", limits: Limits | None = None) -> None:
    """Draws a page, whole or not at all: a row a case; image, reference and prediction, with the Dice under the prediction.

    Args:
        path: ends in .png or .svg; its folder is made.
        limits: intensities shown as black and as white; by default each image's 0.5th and 99.5th percentile.

    Raises:
        InputError: if there are no cases, or the file cannot be written.
    """
    rows = []
    for case in shown:
        dice = "no class to score" if case.dice is None else f"Dice {case.dice:.3f}"
        rows.append(Row(case.name, case.image, (case.reference, case.predicted), ("", dice)))
    comparison_figure(path, rows, labels, title=title, limits=limits, dpi=_DPI)


def picture_due(number: int, total: int, most: int = PICTURES) -> bool:
    """Whether the validation `number` (from 1) of `total` is one to draw: at most `most`, evenly spread, the first and the last always.

    Of a run that may stop early the caller draws the last one in any case.
    """
    if number <= 1 or number >= total or total <= most:
        return True
    # The pictures lie at equal shares of the way from the first to the last; each validation that passes one draws it.
    passed, before = ((n - 1) * (most - 1) // (total - 1) for n in (number, number - 1))
    return passed > before


def choose_cases(names: Sequence[str], count: int = CASES) -> tuple[str, ...]:
    """The cases that are shown: evenly spread over the sorted names, so the same ones whatever the order they come in."""
    names = sorted(names)
    if len(names) <= count:
        return tuple(names)
    if count == 1:
        return (names[0],)
    return tuple(names[n * (len(names) - 1) // (count - 1)] for n in range(count))
