"""Which labels come of which values of a label map, and which values are each other's left and right.

A table is read from a file, from a dataset.json, or from words; without one every value is a label of its own.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uxnet.errors import DatasetError, InputError, LabelsError, UsageError
from uxnet.io import read_json
from uxnet.labels import Label, Labels, labels_from_dataset_json, side_of

_MOST = 255
"""The largest label: label maps are bytes."""

# FreeSurfer's numbers of the left hemisphere's structures, with the right's (FreeSurferColorLUT.txt); the last two pairs are in SynthSeg's
# label maps. Cortical areas (1001.., 2001..) follow a rule, see `_opposite`.
_LEFT = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 17, 18, 19, 20, 25, 26, 27, 28, 30, 31, 78, 81, 96, 136, 137)
_RIGHT = (41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 62, 63, 79, 82, 97, 163, 164)
_OUTSIDE_BRAIN = {0, 1, 24, 40, 165, 257, 258, 259}
"""Of FreeSurfer's numbers: background, exteriors, CSF, skull, head, eyes. SynthSeg counts what lies outside the brain from 500 to 999."""

_TRUE_SIDES = 0.95


@dataclass(frozen=True)
class Merge:
    """labels: of the output, values 1..255. table: (input value, output value), 0 for background; other values are background, too."""

    labels: Labels
    table: tuple[tuple[int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """In the form of a merge file."""
        return {
            "names": {str(label.value): label.name for label in self.labels.foreground},
            "map": {str(value): output for value, output in self.table},
        }


def choose_merge(folder: Path, given: str | None, words: Sequence[str], values: Sequence[int]) -> Merge:
    """The table that was asked for.

    Args:
        folder: of the label maps, whose dataset.json may hold tables.
        given: a JSON or TOML file, or the key of a table in dataset.json; None if nothing was said.
        words: NAME=VALUE+VALUE, instead of a table.
        values: that occur in the label maps; without a table, those are the labels, by their names in dataset.json where it has them.

    Raises:
        InputError: if both a table and words are given, there is no such table, or it contradicts itself.
    """
    if given and words:
        raise UsageError("labels are given by a table or one by one, not by both")
    if words:
        return merge_from_words(words)
    description = folder / "dataset.json"
    data = read_json(description, DatasetError) if description.is_file() else {}
    if given is None:
        return _own_labels(description, data, values)
    if isinstance(data.get(given), dict):
        return merge_from_description(description, data, given)
    if Path(given).is_file():
        return merge_from_file(Path(given))
    tables = [key for key, value in data.items() if isinstance(value, dict) and key not in ("labels", "modality")]
    there = f"; tables in {description}: {', '.join(tables)}" if tables else ""
    raise InputError(f"{given}: there is no such file, and no such table in the folder's dataset.json{there}")


def merge_from_file(path: Path) -> Merge:
    """The table in a JSON or TOML file: {"names": {"1": "grey matter"}, "map": {"3": 1, "42": 1}}.

    Raises:
        InputError: if it cannot be read or contradicts itself.
    """
    if path.suffix.lower() == ".toml":
        try:
            data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as TOML ({error}); correct the file") from error
    else:
        data = read_json(path)
    if not isinstance(data.get("map"), dict) or not isinstance(data.get("names"), dict):
        raise InputError(f'{path}: needs the tables "names" ({{"1": "grey matter"}}) and "map" ({{"3": 1, "42": 1}})')
    return _merge(str(path), data["map"], data["names"])


def merge_from_description(path: Path, data: Mapping[str, Any], key: str) -> Merge:
    """A table in a dataset.json. Its names are in the table of the same name without "to_", else in "labels", else "label 1", ...

    Raises:
        InputError: if it contradicts itself.
    """
    named = data.get(key.removeprefix("to_")) if key.startswith("to_") else None
    if not isinstance(named, dict):
        try:
            found = labels_from_dataset_json(data) if "labels" in data else None
        except LabelsError as error:
            raise InputError(f"{path}: {error}") from error
        named = {label.value: label.name for label in found.foreground} if found else {v: f"label {v}" for v in data[key].values()}
    return _merge(f"{path}: {key}", data[key], named)


def merge_from_words(words: Sequence[str]) -> Merge:
    """Labels 1, 2, ... from NAME=VALUE+VALUE, such as "left hippocampus=17".

    Raises:
        InputError: if one cannot be read, or two share a name or a value.
    """
    table: dict[int, int] = {}
    names: dict[int, str] = {}
    for number, word in enumerate(words, start=1):
        name, _, rest = word.rpartition("=")
        if not name.strip() or not re.fullmatch(r"\s*-?\d+\s*(\+\s*-?\d+\s*)*", rest):
            raise UsageError(f'label "{word}": write NAME=VALUE or NAME=VALUE+VALUE, such as "left hippocampus=17"')
        for value in map(int, rest.split("+")):
            if value in table:
                raise InputError(f'label "{word}": the value {value} belongs to {names[table[value]]!r} already')
            table[value] = number
        names[number] = name.strip()
    return _merge("labels", table, names)


def _own_labels(path: Path, data: Mapping[str, Any], values: Sequence[int]) -> Merge:
    """Each value a label: as dataset.json names them, or by their numbers; counted from 1 where they do not fit into bytes."""
    try:
        known = labels_from_dataset_json(data).foreground if "labels" in data else ()
    except LabelsError as error:
        raise InputError(f"{path}: {error}") from error
    labels = known or tuple(Label(f"label {value}", value) for value in values if value != 0)
    fits = all(0 < label.value <= _MOST for label in labels)
    own = {label.value: label.value if fits else number for number, label in enumerate(labels, start=1)}
    return _merge(str(path.parent), own, {own[label.value]: label.name for label in labels})


def _merge(where: str, table: Mapping[Any, Any], names: Mapping[Any, Any]) -> Merge:
    becomes = {_whole(key, where): _whole(value, where) for key, value in table.items()}
    named = {_whole(key, where): str(name) for key, name in names.items()}
    if any(not 0 <= output <= _MOST for output in becomes.values()):
        raise InputError(f"{where}: labels must be 0 (background) to {_MOST}, not {sorted(set(becomes.values()))}; number them otherwise")
    if becomes.get(0):
        raise InputError(f"{where}: the value 0, the background, cannot become {named.get(becomes[0], becomes[0])!r}; leave it out")
    outputs = sorted(set(becomes.values()) - {0})
    if not outputs:
        raise InputError(f"{where}: it leaves nothing but background; let at least one value become a label")
    nameless = [output for output in outputs if output not in named]
    if nameless:
        raise InputError(f"{where}: there is no name for {', '.join(map(str, nameless))}; add it to the names")
    reserved = [named[output] for output in outputs if named[output].lower() in ("background", "ignore")]
    if reserved:
        raise InputError(f"{where}: a label cannot be called {reserved[0]!r}, which means something else in a dataset.json; rename it")
    try:
        Labels(tuple(Label(named[output], output) for output in outputs))  # refuses names that occur twice
    except LabelsError as error:
        raise InputError(f"{where}: {error}") from error
    # As a dataset.json is read, so that names of left and right are a pair here, too.
    return Merge(labels_from_dataset_json({"labels": {named[output]: output for output in outputs}}), tuple(becomes.items()))


def _whole(value: Any, where: str) -> int:
    try:
        number = float(value)
        if number.is_integer():
            return int(number)
    except (TypeError, ValueError):
        pass
    raise InputError(f"{where}: {value!r} is no whole number; labels and values are")


# ---- left and right


def freesurfer_pairs(maps: Sequence[Mapping[int, float]]) -> tuple[tuple[int, int], ...]:
    """(left, right) values, where the maps are numbered as FreeSurfer's; none where they are not.

    Numbers alone do not tell: other numberings use them, too. Every value of one side must have its counterpart in some map, and in nearly
    all maps the left one must lie further left.

    Args:
        maps: of each map, value -> mean position to the right, in mm.
    """
    found = set[int]().union(*maps)
    pairs = sorted({(min(v, o), max(v, o)) for v in found if (o := _opposite(v)) is not None})
    if not {(2, 41), (3, 42)} & set(pairs) or any(left not in found or right not in found for left, right in pairs):
        return ()
    sides = [one[left] < one[right] for one in maps for left, right in pairs if left in one and right in one]
    return tuple(pairs) if sum(sides) >= _TRUE_SIDES * len(sides) else ()


def _opposite(value: int) -> int | None:
    if value in _LEFT:
        return _RIGHT[_LEFT.index(value)]
    if value in _RIGHT:
        return _LEFT[_RIGHT.index(value)]
    # Areas of cortex and of the white matter below it; those of 2009 have five digits.
    for first, step in ((1000, 1000), (3000, 1000), (11100, 1000), (13100, 1000)):
        size = 1000 if first < 10_000 else 100
        if first <= value < first + size:
            return value + step
        if first + step <= value < first + step + size:
            return value - step
    return None


def named_pairs(merge: Merge) -> tuple[tuple[int, int], ...]:
    """(left, right) values, from labels whose names say their side and that come of one value each."""
    of = {label.name: [v for v, output in merge.table if output == label.value] for label in merge.labels.foreground}
    return tuple((of[a][0], of[b][0]) for a, b in merge.labels.pairs if len(of[a]) == len(of[b]) == 1)


def one_sided(merge: Merge, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Labels whose names say a side, and whose values have no known counterpart: mirroring would make them false."""
    moved = {value for pair in pairs for value in pair}
    sided = [label for label in merge.labels.foreground if side_of(label.name)[0]]
    return [label.name for label in sided if any(output == label.value and v not in moved for v, output in merge.table)]


def brain_values(values: Sequence[int]) -> frozenset[int]:
    """Of FreeSurfer's values, those of the brain."""
    return frozenset(value for value in values if value not in _OUTSIDE_BRAIN and not 500 <= value < 1000)
