"""Left and right: which axis a mirrored image trades them along, which labels trade places then, and whether names say so."""

from __future__ import annotations

from collections.abc import Iterable

from uxnet.errors import LabelsError, RecipeError, shortened
from uxnet.events import Note, Report, silent
from uxnet.labels import Labels, is_chamber, unpaired_sides
from uxnet.recipe import Stage


def lateral_axis(orientation: str) -> int:
    """The axis, 0 to 2, that runs between the patient's left and right: 0 of "RAS", 2 of "AIL".

    Raises:
        ValueError: if no letter is R or L.
    """
    axes = [axis for axis, letter in enumerate(orientation) if letter in "RL"]
    if len(axes) != 1:
        raise ValueError(f"{orientation!r} is no orientation: one of its letters is R or L")
    return axes[0]


def check_trained_sides(stages: Iterable[Stage], labels: Labels, report: Report = silent) -> None:
    """Whether training may mirror left and right: not where names say a side and nobody said what they become then.

    Stages that are asked about one structure at a time have no sides. The heart's chambers keep their names, which a note says.

    Raises:
        RecipeError: if a stage mirrors the axis between left and right, and some name says a side but is in no pair.
    """
    mirrored = [stage for stage in stages if not stage.prior and stage.augment.mirror[lateral_axis(stage.prepare.orientation)]]
    if not mirrored or labels.pairs_said:
        return
    lone = unpaired_sides(labels)
    if lone:
        axis, named = "ijk"[lateral_axis(mirrored[0].prepare.orientation)], shortened(map(repr, lone), 6)
        raise RecipeError(
            f"augment.mirror: axis {axis} runs between left and right, and mirrored along it {named} would be on the wrong side: the "
            'names say a side, and have no counterpart. Say in labels.json which trade places ("pairs": [["NAME", "NAME"], ...], or [] '
            "if none do), or do not mirror that axis"
        )
    paired = {name for pair in labels.pairs for name in pair}
    chambers = [name for name in labels.classes if is_chamber(name) and name not in paired]
    if chambers:
        told = f"{shortened(map(repr, chambers), 6)} are taken for parts of the heart, which stay what they are in a mirrored image"
        report(Note(f'augment.mirror: {told}; if they trade places, say so as "pairs" in labels.json'))


def paired_indices(labels: Labels) -> tuple[tuple[int, int], ...]:
    """The label indices that trade places in a mirrored image, from the names in `labels.pairs`.

    Paired labels trade their indices. Paired regions trade the labels that only one of them has: these have to be paired themselves,
    but where there is one on either side. Then every region has to be the union of what its partner's labels become (its own, where it
    has none): a network that predicts regions is then shown sides that are true.

    Raises:
        LabelsError: if a label would have two partners, or the regions are paired and what their labels become is not said.
    """
    index = {label.name: number for number, label in enumerate(labels.foreground, start=1)}
    of_value = {label.value: number for number, label in enumerate(labels.foreground, start=1)}
    members = {region.name: {of_value[value] for value in region.values} for region in labels.regions}
    partner: dict[int, int] = {}
    for left, right in labels.pairs:
        if left in index and right in index:
            _join(partner, index[left], index[right], labels)
        elif not (left in members and right in members):
            raise LabelsError(f"{left!r} and {right!r} are a pair of a label and a region; pair labels with labels, regions with regions")
    regions = [(left, right) for left, right in labels.pairs if left in members and right in members]
    for left, right in regions:
        here, there = (sorted(a - b - partner.keys()) for a, b in ((members[left], members[right]), (members[right], members[left])))
        if len(here) == len(there) == 1:
            _join(partner, here[0], there[0], labels)
    opposite = {a: b for pair in regions for a, b in (pair, pair[::-1])}
    for name, own in members.items():
        other = opposite.get(name, name)
        if {partner.get(number, number) for number in own} != members[other]:
            said = f"the region {name!r} becomes {other!r}" if other != name else f"the region {name!r} stays what it is"
            raise LabelsError(
                f"in a mirrored image {said}, but what its labels ({_names(labels, own)}) become is not said; name their pairs, too"
            )
    return tuple(sorted((a, b) for a, b in partner.items() if a < b))


def _join(partner: dict[int, int], left: int, right: int, labels: Labels) -> None:
    for a, b in ((left, right), (right, left)):
        if a == b or partner.get(a, b) != b:
            others = _names(labels, {b, partner.get(a, b)})
            raise LabelsError(f"the label {_names(labels, {a})} can be paired with one other, not with {others}")
        partner[a] = b


def _names(labels: Labels, indices: Iterable[int]) -> str:
    return " and ".join(repr(labels.foreground[index - 1].name) for index in sorted(indices))
