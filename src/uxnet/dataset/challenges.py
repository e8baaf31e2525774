"""The three challenges of the paper (section 5, appendix A.2), read as their organisers hand out the data.

    feta    sub-001/anat/sub-001_rec-mial_T2w.nii.gz and ..._dseg.nii.gz, participants.tsv        (FeTA 2021, release feta_2.1)
    flare   TrainingImg/train_000_0000.nii.gz and TrainingMask/train_000.nii.gz                   (FLARE 2021)
    amos    dataset.json, imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz, ...            (AMOS 2022, amos22.zip)

The layouts were held against public descriptions and against how others' code names these files, not against the downloads, which
stand behind registrations: FeTA's reconstructions are `mial` or `irtk`, one a subject; AMOS's readme says that numbers below 500 are
CT and others MR, while its dataset.json says CT of all and writes "arota". Values and names are the organisers'.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uxnet.dataset.cases import Case, by_name, listed_cases, niftis, some
from uxnet.errors import DatasetError
from uxnet.io import CHANNEL_NAME, case_name
from uxnet.labels import Colour, Label, Labels

_ABDOMEN: Mapping[str, Colour] = {
    "spleen": (230, 159, 0),
    "kidney": (240, 228, 66),
    "right kidney": (240, 228, 66),
    "left kidney": (86, 180, 233),
    "gall bladder": (0, 158, 115),
    "esophagus": (204, 121, 167),
    "liver": (213, 94, 0),
    "stomach": (0, 114, 178),
    "aorta": (230, 40, 60),
    "postcava": (70, 70, 220),
    "pancreas": (0, 210, 140),
    "right adrenal gland": (150, 90, 40),
    "left adrenal gland": (140, 230, 255),
    "duodenum": (185, 150, 255),
    "bladder": (255, 225, 160),
    "prostate/uterus": (150, 150, 150),
}
_BRAIN: Mapping[str, Colour] = {
    "external cerebrospinal fluid": (86, 180, 233),
    "grey matter": (204, 121, 167),
    "white matter": (240, 228, 66),
    "ventricles": (0, 114, 178),
    "cerebellum": (230, 159, 0),
    "deep grey matter": (0, 158, 115),
    "brainstem": (213, 94, 0),
}


def _numbered(names: tuple[str, ...], colours: Mapping[str, Colour], pairs: tuple[tuple[str, str], ...] = ()) -> Labels:
    foreground = tuple(Label(name, value) for value, name in enumerate(names, start=1))
    return Labels(foreground, pairs=pairs, colours=tuple((name, colours[name]) for name in names))


FETA_LABELS = _numbered(tuple(_BRAIN), _BRAIN)
"""FeTA 2021: 1 external cerebrospinal fluid ... 7 brainstem (Payette et al. 2021)."""

FLARE_LABELS = _numbered(("liver", "kidney", "spleen", "pancreas"), _ABDOMEN)
"""FLARE 2021 as its organisers number it; both kidneys are one label."""

FLARE_LABELS_OF_THE_AUTHORS = _numbered(("spleen", "kidney", "liver", "pancreas"), _ABDOMEN)
"""The order of the paper's table 1 and of its authors' list: with the organisers' files, liver and spleen have each other's name."""

AMOS_LABELS = _numbered(
    tuple(name for name in _ABDOMEN if name != "kidney"),
    _ABDOMEN,
    (("left adrenal gland", "right adrenal gland"), ("left kidney", "right kidney")),
)
"""AMOS 2022: 1 spleen, 2 right kidney ... 15 prostate/uterus (Ji et al. 2022)."""

_AMOS_CASE = re.compile(r"amos_(\d+)")
_AMOS_FIRST_MR = 500


@dataclass(frozen=True)
class Challenge:
    """What a challenge's folder holds.

    labels: None where the folder's dataset.json names others than the organisers.
    persons: whether `Case.person` says who is who.
    left_out: a sentence on cases that are there but are not read; empty where all are.
    """

    layout: str
    name: str
    cases: tuple[Case, ...]
    labels: Labels | None
    channel: str
    reference: str
    persons: bool = False
    left_out: str = ""


def challenge_in(root: Path, data: Mapping[str, Any]) -> Challenge | None:
    """The challenge whose layout a folder has; None where it has none of them.

    Args:
        root: the folder.
        data: its dataset.json; empty where there is none.

    Raises:
        DatasetError: if it has one of them, but its files contradict each other.
    """
    if not data and (root / "TrainingImg").is_dir() and (root / "TrainingMask").is_dir():
        return _flare(root)
    if not data and any(root.glob("sub-*/anat/sub-*_rec-*_T2w.nii*")):
        return _feta(root)
    # nnU-Net's raw layout has "channel_names" and a channel a file, whatever the cases are called.
    if isinstance(data.get("training"), list) and data["training"] and "channel_names" not in data:
        cases = listed_cases(root, data)
        if cases and all(_AMOS_CASE.fullmatch(case.name) for case in cases):
            return _amos(root, data, cases)
    return None


def _feta(root: Path) -> Challenge:
    files = [path for folder in sorted(root.glob("sub-*/anat")) for path in niftis(folder)]

    def of(ending: str, what: str) -> dict[str, Path]:
        kind = [path for path in files if case_name(path).endswith(ending)]
        return by_name(kind, what, lambda path: case_name(path).removesuffix(ending))

    images, labels = of("_T2w", "an image"), of("_dseg", "a label map")
    cases = tuple(
        Case(name, (images[name],) if name in images else (), labels.get(name), name.split("_")[0]) for name in sorted({*images, *labels})
    )
    listed = _participants(root / "participants.tsv")
    unknown = [] if listed is None else [case.name for case in cases if case.person not in listed]
    if unknown:
        raise DatasetError(f"{root / 'participants.tsv'}: it does not list {some(unknown)}; add them, or remove their folders")
    reference = "FeTA 2021; Payette et al., Scientific Data 8, 167 (2021)"
    return Challenge("feta", "FeTA2021", cases, FETA_LABELS, "T2w MRI", reference, persons=True)


def _participants(path: Path) -> set[str] | None:
    """The subjects of a BIDS participants.tsv; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return {row["participant_id"].strip() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise DatasetError(f'{path}: it is no table with a column "participant_id" ({error!r}); correct it, or remove it') from error


def _flare(root: Path) -> Challenge:
    def bare(path: Path) -> str:
        channel = CHANNEL_NAME.fullmatch(case_name(path))
        return channel[1] if channel and channel[2] == "0000" else case_name(path)

    images = by_name(niftis(root / "TrainingImg"), "an image", bare)
    labels = by_name(niftis(root / "TrainingMask"), "a label map")
    cases = tuple(Case(name, (images[name],) if name in images else (), labels.get(name), name) for name in sorted({*images, *labels}))
    return Challenge("flare", "FLARE2021", cases, FLARE_LABELS, "CT", "MICCAI FLARE 2021, flare.grand-challenge.org")


def _amos(root: Path, data: Mapping[str, Any], cases: list[Case]) -> Challenge:
    ct = tuple(case for case in cases if _number(case) < _AMOS_FIRST_MR)
    mr = len(cases) - len(ct)
    if not ct:
        raise DatasetError(
            f"{root / 'dataset.json'}: all {mr} cases have numbers from {_AMOS_FIRST_MR} on, which are MR in AMOS, and only its CT cases "
            "are read as AMOS; to train on MR, list the files under other names than amos_NNNN"
        )
    said = [f"{mr} MR {'case' if mr == 1 else 'cases'} (numbers from {_AMOS_FIRST_MR} on)"] if mr else []
    for key in ("validation", "test"):
        listed = data.get(key)
        said += [f"its {key} list ({len(listed)})"] if isinstance(listed, list) and listed else []
    left_out = f"AMOS: left out: {', '.join(said)}; read are the {len(ct)} CT cases of its training list" if said else ""
    labels = AMOS_LABELS if _are_amos(data.get("labels")) else None
    return Challenge("amos", "AMOS2022", ct, labels, "CT", "AMOS 2022; Ji et al., arXiv:2206.08023", left_out=left_out)


def _number(case: Case) -> int:
    return int(case.name.removeprefix("amos_"))


def _are_amos(table: Any) -> bool:
    """Whether a dataset.json's labels are the organisers', or there are none."""
    if not table:
        return True
    ours = {str(label.value): label.name for label in AMOS_LABELS.foreground} | {"0": "background"}
    return isinstance(table, dict) and {str(k): "aorta" if v == "arota" else v for k, v in table.items()} == ours
