"""Left and right: which axis a mirrored image trades them along, and which labels trade places then."""

from __future__ import annotations

from collections.abc import Iterable

from uxnet.errors import LabelsError
from uxnet.labels import Labels


def lateral_axis(orientation: str) -> int:
    """The axis, 0 to 2, that runs between the patient's left and right: 0 of "RAS", 2 of "AIL".

    Raises:
        ValueError: if no letter is R or L.
    """
    axes = [axis for axis, letter in enumerate(orientation) if letter in "RL"]
    if len(axes) != 1:
        raise ValueError(f"{orientation!r} is no orientation: one of its letters is R or L")
    return axes[0]


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
