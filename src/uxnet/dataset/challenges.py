"""The three challenges of the paper (section 5, appendix A.2), read as their organisers hand out the data.

    feta    sub-001/anat/sub-001_rec-mial_T2w.nii.gz and ..._dseg.nii.gz, participants.tsv        (FeTA 2021, release feta_2.1)
    flare   TrainingImg/train_000_0000.nii.gz and TrainingMask/train_000.nii.gz                   (FLARE 2021)
    amos    dataset.json, imagesTr/amos_0001.nii.gz and labelsTr/amos_0001.nii.gz, ...            (AMOS 2022, amos22.zip)

The layouts were held against public descriptions and against how others' code names these files, not against the downloads, which
stand behind registrations: FeTA's reconstructions are `mial` or `irtk`, one a subject; AMOS's readme says that numbers below 500 are
CT and others MR, while its dataset.json says CT of all and writes "arota". Values and names are the organisers'.

Folders and names alone are others' too. So some label maps are looked at: only where their values are the challenge's, and their volumes
such as its organs have, are they given its names.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uxnet.dataset.bids import bids_in
from uxnet.dataset.cases import Case, Found, by_name, channel_names, label_maps, niftis, some, values_of
from uxnet.dataset.layouts import folders
from uxnet.dataset.lists import listed, listed_cases
from uxnet.dataset.organs import doubts_of
from uxnet.errors import DatasetError, plural, shortened
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

_FETA_IMAGE = re.compile(r"sub-[^_]+_rec-(mial|irtk)_T2w")
_FLARE_IMAGE = re.compile(r"train_\d+(_0000)?")
_AMOS_CASE = re.compile(r"amos_(\d+)")
_AMOS_FIRST_MR = 500
_AMOS_TABLE = {"0": "background"} | {str(label.value): label.name for label in AMOS_LABELS.foreground}
_SPELT = {"arota": "aorta"}
_LOOKED_AT = 5  # label maps

# Of all organs of a case together, in ml: 20 weeks before birth a brain has about 50 ml, at birth 400; a liver alone has over 1,000.
_BRAIN_ML, _ABDOMEN_ML = (20.0, 1000.0), (100.0, 10_000.0)


def challenge_in(root: Path, data: Mapping[str, Any], where: Path) -> Found | None:
    """The challenge whose layout a folder has, or what its folders hold instead; None where they are none of a challenge's.

    Args:
        root: the folder.
        data: its dataset.json; empty where there is none.
        where: that file.

    Raises:
        DatasetError: if it is a challenge's, but its files contradict each other.
    """
    if not data and (root / "TrainingImg").is_dir() and (root / "TrainingMask").is_dir():
        return _flare(root)
    if not data and any(_FETA_IMAGE.fullmatch(case_name(path)) for path in root.glob("sub-*/anat/sub-*_T2w.nii*")):
        return _feta(root)
    # nnU-Net's raw layout has "channel_names" and a channel a file, whatever the cases are called.
    if isinstance(data.get("training"), list) and data["training"] and "channel_names" not in data:
        cases = listed_cases(root, data, where)
        if cases and all(_AMOS_CASE.fullmatch(case.name) for case in cases):
            return _amos(root, data, cases, where)
    return None


def _feta(root: Path) -> Found | None:
    files = [path for folder in sorted(root.glob("sub-*/anat")) for path in niftis(folder)]

    def of(ending: str, what: str) -> dict[str, Path]:
        kind = [path for path in files if case_name(path).endswith(ending)]
        return by_name(kind, what, lambda path: case_name(path).removesuffix(ending))

    images, labels = of("_T2w", "an image"), of("_dseg", "a label map")
    cases = tuple(
        Case(name, (images[name],) if name in images else (), labels.get(name), name.split("_")[0]) for name in sorted({*images, *labels})
    )
    foreign = next((f"{path.name} is none of its names" for path in images.values() if not _FETA_IMAGE.fullmatch(case_name(path))), "")
    if why := foreign or _misfit(cases, FETA_LABELS, _BRAIN_ML):
        found = bids_in(root)
        return found and replace(found, doubts=(_not_a("FeTA 2021", "sub-*_rec-mial_T2w or rec-irtk", why), *found.doubts))
    listed = _participants(root / "participants.tsv")
    unknown = [] if listed is None else [case.name for case in cases if case.person not in listed]
    if unknown:
        raise DatasetError(f"{root / 'participants.tsv'}: it does not list {some(unknown)}; add them, or remove their folders")
    return Found(
        "feta",
        cases,
        guessed=f"names such as {next(iter(images))}_T2w, and label values 1 to 7",
        labels=FETA_LABELS,
        channels=("T2w MRI",),
        name="FeTA2021",
        reference="FeTA 2021; Payette et al., Scientific Data 8, 167 (2021)",
        persons=True,
    )


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


def _flare(root: Path) -> Found:
    def bare(path: Path) -> str:
        channel = CHANNEL_NAME.fullmatch(case_name(path))
        return channel[1] if channel and channel[2] == "0000" else case_name(path)

    files = niftis(root / "TrainingImg")
    images = by_name(files, "an image", bare)
    labels = by_name(niftis(root / "TrainingMask"), "a label map")
    cases = tuple(Case(name, (images[name],) if name in images else (), labels.get(name), name) for name in sorted({*images, *labels}))
    foreign = next((f"{path.name} is none of its names" for path in files if not _FLARE_IMAGE.fullmatch(case_name(path))), "")
    if why := foreign or _misfit(cases, FLARE_LABELS, _ABDOMEN_ML):
        found = folders(root, root / "TrainingImg", root / "TrainingMask")
        return replace(found, doubts=(_not_a("FLARE 2021", "TrainingImg and TrainingMask", why), *found.doubts))
    return Found(
        "flare",
        cases,
        guessed="the folders TrainingImg and TrainingMask, and label values 1 to 4",
        labels=FLARE_LABELS,
        channels=("CT",),
        name="FLARE2021",
        reference="MICCAI FLARE 2021, flare.grand-challenge.org",
    )


def _amos(root: Path, data: Mapping[str, Any], cases: list[Case], where: Path) -> Found | None:
    """None where its labels or its modality are others'."""
    table = data.get("labels")
    if not _of_amos(table) or channel_names(where, data) not in ((), ("CT",)):
        return None
    if not table and (why := _misfit(cases, AMOS_LABELS, _ABDOMEN_ML, all_seen=False)):
        found = listed(root, data, where)
        return replace(found, doubts=(_not_a("AMOS 2022", "amos_NNNN", why), *found.doubts))
    ct = tuple(case for case in cases if _number(case) < _AMOS_FIRST_MR)
    mr = len(cases) - len(ct)
    if not ct:
        raise DatasetError(
            f"{where}: all {mr} cases have numbers from {_AMOS_FIRST_MR} on, which are MR in AMOS, and only its CT cases "
            "are read as AMOS; to train on MR, list the files under other names than amos_NNNN"
        )
    said = [f"{mr} MR {'case' if mr == 1 else 'cases'} (numbers from {_AMOS_FIRST_MR} on)"] if mr else []
    for key in ("validation", "test"):
        entries = data.get(key)
        said += [f"its {key} list ({len(entries)})"] if isinstance(entries, list) and entries else []
    left_out = f"AMOS: left out: {', '.join(said)}; read are the {plural(len(ct), 'CT case')} of its training list" if said else ""
    return Found(
        "amos",
        ct,
        guessed="cases that are all called amos_NNNN",
        labels=AMOS_LABELS if not table or {k: _SPELT.get(v, v) for k, v in table.items()} == _AMOS_TABLE else None,
        channels=("CT",),
        name="AMOS2022",
        reference="AMOS 2022; Ji et al., arXiv:2206.08023",
        left_out=left_out,
    )


def _not_a(challenge: str, names: str, why: str) -> str:
    return (
        f"the files are named as in {challenge} ({names}), but this is not taken for it: {why}. Where no labels.json or table in the "
        "folder names them, its labels are called label 1, label 2 and so on"
    )


def _misfit(cases: Sequence[Case], labels: Labels, total_ml: tuple[float, float], *, all_seen: bool = True) -> str:
    """Why some of the label maps are not a challenge's; empty where they could be, or none can be read.

    Args:
        total_ml: least and most that the organs of a case have together.
        all_seen: whether these cases must show every label.
    """
    name_of = {label.value: label.name for label in labels.foreground}
    with_map = [case for case in cases if case.labels is not None]
    step = max(1, len(with_map) // _LOOKED_AT)
    volumes = []
    for labelled in itertools.islice(label_maps(with_map[::step]), _LOOKED_AT):
        ml = labelled.geometry.voxel_mm3 / 1000
        volumes.append({value: n * ml for value, n in values_of(labelled).items() if value != labels.background})
    if not volumes:
        return ""
    seen = {value for shown in volumes for value in shown}
    if other := sorted(seen - set(name_of)):
        return f"the label maps hold {shortened(other)}, which is none of its values"
    if all_seen and (lacking := sorted(set(name_of) - seen)):
        return f"the label maps show no {shortened(name_of[value] for value in lacking)} ({shortened(lacking)})"
    largest = max(sum(shown.values()) for shown in volumes)
    if not total_ml[0] <= largest <= total_ml[1]:
        return f"all that is labelled has at most {largest:.3g} ml a case, where its organs have {total_ml[0]:g} to {total_ml[1]:g}"
    named = [{name_of[value]: size for value, size in shown.items()} for shown in volumes]
    return next(doubts_of(labels.classes, named), "").partition(":")[0]


def _number(case: Case) -> int:
    return int(case.name.removeprefix("amos_"))


def _of_amos(table: Any) -> bool:
    """Whether a dataset.json's labels are all called as AMOS's, under whatever values; or there are none."""
    if not table:
        return True
    words = {str(word) for word in (*table, *table.values())} if isinstance(table, dict) else {""}
    return {_SPELT.get(word, word) for word in words if not word.isdecimal()} <= set(_AMOS_TABLE.values())
