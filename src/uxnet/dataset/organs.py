"""Whether the names of organs fit their volumes: the check that catches labels that have each other's names.

FLARE's organisers number 1 liver, 2 kidney, 3 spleen; other lists of the same data say 1 spleen, 3 liver. Nothing in the files
contradicts either, but a spleen of 1.5 litres does. Only what holds for nearly every body, and for scans that show a part of it, is
asked: an organ that is many times as large as another is not the smaller one in most cases, and none is far above what organs of that
name reach. Organs of like size (a kidney and a spleen) cannot be told apart by volume.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from uxnet.dataset.fingerprint import Fingerprint
from uxnet.labels import side_of

# Means of adults, ml, women and men: liver 1411 and 1710, spleen 180 and 238, a kidney 157 and 193, pancreas 64 and 87, left adrenal
# gland 4.4 in women (Geraghty et al., Abdominal Imaging 29, 482-490, 2004, 149 CTs). A limit is three to four times the men's mean, of
# both sides together where there are two, since a label may mean both: enlarged spleens of single patients lie above it, but hardly a
# collection's median, unless by wrong names or units. There are no lower limits: a field of view may cut off most of an organ.
_AT_MOST_ML: Mapping[str, float] = {"liver": 5000, "spleen": 800, "kidney": 1200, "pancreas": 350, "adrenal gland": 40}

# (larger, smaller), about four times apart or more: in those means; a gall bladder's 30 to 50 ml; and in the brain at any age, where
# the medians of FeTA 2022's 120 cases are 61 ml of white matter, 8 of deep grey matter, 4 of cerebellum and 3 of brainstem (statistics
# of the OpenMEDLab's dataset pages), and an adult's about 500, 60, 130 and 25.
_ORDER: tuple[tuple[str, str], ...] = (
    ("liver", "spleen"),
    ("liver", "kidney"),
    ("liver", "pancreas"),
    ("liver", "gall bladder"),
    ("liver", "adrenal gland"),
    ("spleen", "adrenal gland"),
    ("kidney", "adrenal gland"),
    ("white matter", "cerebellum"),
    ("white matter", "deep grey matter"),
    ("white matter", "brainstem"),
)
_ALIKE = {"gallbladder": "gall bladder", "adrenal": "adrenal gland", "gray": "grey", "kidneys": "kidney", "brain stem": "brainstem"}


def doubtful_names(fingerprint: Fingerprint) -> Iterator[str]:
    """What the volumes say against the names of the classes, a sentence each; nothing where they fit, or name no known organ.

    Left and right are each compared. A case counts where it shows both organs.
    """
    shown = [{name: case.volumes_ml[name] for name, n in case.voxels.items() if n} for case in fingerprint.cases]
    yield from doubts_of(fingerprint.classes, shown)


def doubts_of(classes: Sequence[str], volumes_ml: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """As `doubtful_names`.

    Args:
        volumes_ml: of each case, the classes that it shows.
    """
    organ_of = {name: organ for name in classes if (organ := _organ(name))}
    for larger, smaller in _ORDER:
        for a in (name for name, organ in organ_of.items() if organ == larger):
            for b in (name for name, organ in organ_of.items() if organ == smaller):
                yield from _wrong_way_round(volumes_ml, a, b)
    for name, organ in organ_of.items():
        seen = [volumes[name] for volumes in volumes_ml if name in volumes]
        if seen and organ in _AT_MOST_ML and median(seen) > _AT_MOST_ML[organ]:
            yield (
                f"{name!r} has a median volume of {median(seen):.0f} ml, and hardly any {organ} has over {_AT_MOST_ML[organ]:.0f}: "
                "do the label values have the right names, and the spacings the right unit?"
            )


def _wrong_way_round(volumes_ml: Sequence[Mapping[str, float]], larger: str, smaller: str) -> Iterator[str]:
    both = [volumes for volumes in volumes_ml if larger in volumes and smaller in volumes]
    wrong = sum(volumes[larger] < volumes[smaller] for volumes in both)
    if 2 * wrong > len(both):
        a, b = (median(volumes[name] for volumes in both) for name in (larger, smaller))
        where = "the one case that shows" if len(both) == 1 else f"{wrong} of the {len(both)} cases that show"
        yield (
            f"{larger!r} is smaller than {smaller!r} in {where} both ({'' if len(both) == 1 else 'medians '}{a:.0f} and {b:.0f} ml): "
            f"do the label values have each other's names (a labels.json sets them right), or is {larger!r} cut off by the field of view?"
        )


def _organ(name: str) -> str:
    """The organ that a class is named after, without its side; empty where it is none that is known."""
    words = side_of(name)[1]
    for other, usual in _ALIKE.items():
        words = re.sub(rf"\b{other}\b(?! gland)", usual, words)
    return words if words in {organ for pair in _ORDER for organ in pair} else ""
