"""BIDS: images in sub-*/[ses-*/]anat, label maps (*_dseg) beside them or in derivatives, and tables (*_dseg.tsv) that name the labels.

A label map belongs to the image of the same subject and session whose entities are its own, but for those that describe label maps
(desc, atlas, space, ...). BIDS does not say which of several images of a session a label map was drawn on, nor which of several label
maps is meant; neither is guessed.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from uxnet.dataset.cases import Case, Found, niftis
from uxnet.errors import DatasetError, plural, shortened
from uxnet.io import case_name, is_nifti, read_json

# Entities that tell label maps and their grids apart, not images.
_OF_LABELS = {"desc", "label", "atlas", "seg", "space", "res", "den"}
_WAY_OUT = 'list the pairs in a dataset.json: {"training": [{"image": "FILE", "label": "FILE"}, ...]}'

Entities = Mapping[str, str]


def bids_in(root: Path) -> Found | None:
    """The cases of a BIDS dataset; None where a folder is none.

    Raises:
        DatasetError: if there are no label maps, it is not clear which image or label map is meant, or a table cannot be read.
    """
    images = [path for folder in sorted({*root.glob("sub-*/*"), *root.glob("sub-*/ses-*/*")}) for path in niftis(folder)]
    if not images:
        return None
    labels = [path for path in images if _suffix(path) == "dseg"]
    if (root / "derivatives").is_dir():
        labels += sorted(path for path in (root / "derivatives").rglob("*_dseg.nii*") if is_nifti(path) and not path.is_dir())
    images = [path for path in images if _suffix(path) != "dseg"]
    if not labels:
        raise DatasetError(
            f"{root}: its folders are BIDS's ({images[0].relative_to(root)}), and no label map (*_dseg.nii.gz) lies in them or in "
            f"derivatives; {_WAY_OUT}"
        )
    label_of = _matched(root, images, labels)
    suffixes = Counter(_suffix(image) for image in label_of)
    if len(suffixes) > 1:
        one = next(iter(label_of.values()))
        raise DatasetError(
            f"{root}: in this BIDS dataset label maps such as {one.name} lie beside several kinds of image "
            f"({shortened(sorted(suffixes))}), and nothing says of which they are; {_WAY_OUT}"
        )
    kind = next(iter(suffixes), "")
    of_kind = [image for image in images if not kind or _suffix(image) == kind]
    lone = [path for path in labels if path not in set(label_of.values())]
    cases = [_case(image, (image,), label_of.get(image)) for image in of_kind] + [_case(path, (), path) for path in lone]
    others = Counter(_suffix(image) for image in images if image not in set(of_kind))
    said = shortened((plural(n, f"{suffix} image") for suffix, n in sorted(others.items())), 6)
    return Found(
        "bids",
        tuple(cases),
        guessed=images[0].relative_to(root).as_posix(),
        label_names=_label_names(root, labels),
        channels=(kind,) if kind else (),
        name=_name(root),
        persons=True,
        left_out=f"BIDS: left out: {said}, which have no label maps; read are the {kind} images" if others else "",
    )


def _case(path: Path, images: tuple[Path, ...], labels: Path | None) -> Case:
    name = case_name(path).rpartition("_")[0]
    return Case(name, images, labels, name.split("_")[0])


def _matched(root: Path, images: Sequence[Path], labels: Sequence[Path]) -> dict[Path, Path]:
    """Image -> its label map.

    Raises:
        DatasetError: if an image has several, or a label map fits several images of one kind.
    """
    near: dict[tuple[str | None, ...], list[Path]] = {}
    for image in images:
        near.setdefault(_whose(image), []).append(image)
    found: dict[Path, Path] = {}
    for path in labels:
        beside = near.get(_whose(path), [])
        beside = [image for image in beside if image.parent.name == path.parent.name] or beside
        fits = [image for image in beside if _own(image) == _own(path)] or [i for i in beside if _own(path).items() <= _own(i).items()]
        if len({_suffix(image) for image in fits}) < len(fits):
            names = shortened(image.name for image in fits)
            raise DatasetError(f"{root}: in this BIDS dataset {path.relative_to(root)} fits several images ({names}); {_WAY_OUT}")
        for image in fits:
            if image in found:
                both = f"{found[image].relative_to(root)} and {path.relative_to(root)}"
                raise DatasetError(f"{root}: in this BIDS dataset two label maps fit {image.name}, {both}; {_WAY_OUT}")
            found[image] = path
    return found


def _whose(path: Path) -> tuple[str | None, ...]:
    return tuple(_entities(path).get(key) for key in ("sub", "ses"))


def _own(path: Path) -> dict[str, str]:
    """The entities that tell images apart."""
    return {key: value for key, value in _entities(path).items() if key not in _OF_LABELS}


def _entities(path: Path) -> dict[str, str]:
    """The entities of a name: sub-01_rec-norm_T2w has {"sub": "01", "rec": "norm"}."""
    return dict(part.split("-", 1) for part in case_name(path).split("_")[:-1] if "-" in part)


def _suffix(path: Path) -> str:
    return case_name(path).rpartition("_")[2]


def _name(root: Path) -> str:
    path = root / "dataset_description.json"
    return str(read_json(path, DatasetError).get("Name") or "") if path.is_file() else ""


def _label_names(root: Path, labels: Iterable[Path]) -> dict[int, str]:
    """Value -> name, of the tables that apply to label maps: they lie beside or above them, and share what they say in their names.

    Raises:
        DatasetError: if two tables contradict each other, or one cannot be read.
    """
    names: dict[int, tuple[str, Path]] = {}
    labels = list(labels)
    for table in sorted(root.rglob("*dseg.tsv")):
        told = _entities(table).items()
        if not any(path.is_relative_to(table.parent) and told <= _entities(path).items() for path in labels):
            continue
        for value, name in _table(table).items():
            before, first = names.setdefault(value, (name, table))
            if before != name:
                raise DatasetError(f"{table}: the value {value} is {name!r} here and {before!r} in {first}; correct one")
    return {value: name for value, (name, _) in names.items() if value != 0}


def _table(path: Path) -> dict[int, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return {int(row["index"]): row["name"].strip() for row in csv.DictReader(file, delimiter="\t")}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f'{path}: it is no table with the columns "index" and "name" ({error!r}); correct it, or remove it') from error
