"""Labels: what the integers of a label map mean.

A label map on disk holds *values* (any integers, contiguous or not). Networks, caches and losses see *indices*: 0 the background,
1..n the foreground labels in their order, n + 1 voxels to ignore. `encode` and `decode` go between the two.

Regions (nnU-Net's word) are unions of labels that a network predicts instead of the labels themselves: one sigmoid channel each, so
that they may overlap, written in a given order, later ones over earlier ones.
"""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from uxnet.errors import LabelsError, shortened, shown

Colour = tuple[int, int, int]
Side = Literal["left", "right"]
IntArray = NDArray[np.integer[Any]]

# Okabe and Ito's colours, which colour-blind people can tell apart; for labels that are given none.
_PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)


@dataclass(frozen=True)
class Label:
    """One structure: its name and its integer value in label maps."""

    name: str
    value: int


@dataclass(frozen=True)
class Region:
    """A union of label values that is predicted as one channel; `writes` is the value it leaves in a label map."""

    name: str
    values: tuple[int, ...]
    writes: int


@dataclass(frozen=True)
class Labels:
    """The labels of a dataset or model.

    Args:
        foreground: in the order of their indices 1..n.
        background: the value of everything else.
        regions: if given, what is predicted instead of the labels; in the order in which they are written.
        pairs: (left, right) names of structures that change places in a mirrored image.
        ignore: a value whose voxels count neither in losses, nor in sampling, nor in metrics.
        colours: name -> (red, green, blue), 0..255; names without one get a colour of their own.
        pairs_said: whether somebody said what the pairs are ("pairs" in a file), so that names need not be asked for their sides.

    Raises:
        LabelsError: if names or values occur twice, or a region, pair or colour names something that is not there.
    """

    foreground: tuple[Label, ...]
    background: int = 0
    regions: tuple[Region, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    ignore: int | None = None
    colours: tuple[tuple[str, Colour], ...] = ()
    pairs_said: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        if not self.foreground:
            raise LabelsError("a set of labels needs at least one besides the background")
        names = [label.name for label in self.foreground]
        values = [self.background, *(label.value for label in self.foreground), *([] if self.ignore is None else [self.ignore])]
        regions = [r.name for r in self.regions]
        for what, items in (("name", names), ("value", list(map(str, values))), ("region", regions)):
            twice = sorted(x for x, count in Counter(items).items() if count > 1)
            if twice:
                raise LabelsError(f"the {what} {', '.join(twice)} occurs more than once among the labels")
        known = {label.value for label in self.foreground}
        for value in (*values, *(region.writes for region in self.regions)):
            if not -(2**63) <= value < 2**63:
                raise LabelsError(f"the value {shown(value)} is beyond 64 bits, and no label map holds it")
        for region in self.regions:
            if not region.values or not set(region.values) <= known:
                raise LabelsError(f"region {region.name!r} unites the values {list(region.values)}; known are {sorted(known)}")
        sayable = set(names) | set(self.classes)
        for name in [*(n for pair in self.pairs for n in pair), *(n for n, _ in self.colours)]:
            if name not in sayable:
                raise LabelsError(f"{name!r} is named in a pair or colour but is no label; labels are {', '.join(sorted(sayable))}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is predicted and scored: the regions where there are any, else the foreground labels."""
        return tuple(r.name for r in self.regions) or tuple(label.name for label in self.foreground)

    @property
    def out_channels(self) -> int:
        """Channels of a network for these labels: one a region, or one a label and one for the background."""
        return len(self.regions) or len(self.foreground) + 1

    @property
    def ignore_index(self) -> int | None:
        """The index of voxels to ignore (n + 1), None where there is no such label."""
        return None if self.ignore is None else len(self.foreground) + 1

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The smallest integer type that holds every value."""
        values = [self.background, *(label.value for label in self.foreground), *(r.writes for r in self.regions)]
        values += [] if self.ignore is None else [self.ignore]
        for candidate in ("uint8", "int8", "uint16", "int16", "int32"):
            info = np.iinfo(candidate)
            if min(values) >= info.min and max(values) <= info.max:
                return np.dtype(candidate)
        return np.dtype("int64")

    def colour(self, name: str) -> Colour:
        """The colour of a label or region, as (red, green, blue), 0..255."""
        given = dict(self.colours)
        if name in given:
            return given[name]
        order = [*(label.name for label in self.foreground), *(r.name for r in self.regions)]
        place = order.index(name)
        if place < len(_PALETTE):
            return _PALETTE[place]
        # Steps of the golden angle keep neighbours in the list far apart in hue.
        r, g, b = colorsys.hsv_to_rgb(place * 0.381966 % 1.0, 0.75 if place % 2 else 0.9, 1.0 if place % 3 else 0.85)
        return (round(r * 255), round(g * 255), round(b * 255))

    def encode(self, values: IntArray) -> NDArray[np.uint8 | np.uint16]:
        """Values -> indices, of any shape, as uint8 (uint16 beyond 254 labels).

        Raises:
            LabelsError: if a value is neither a label, the background nor the ignore label; the message names them.
        """
        found = np.unique(values)
        table = {self.background: 0, **{label.value: i + 1 for i, label in enumerate(self.foreground)}}
        if self.ignore is not None:
            table[self.ignore] = len(self.foreground) + 1
        unknown = [v for v in found.tolist() if v not in table]
        if unknown:
            raise LabelsError(f"the values {shortened(unknown, 12)} are no labels; labels are {shortened(sorted(table), 12)}")
        dtype = np.uint8 if len(self.foreground) < 255 else np.uint16
        index_of: NDArray[Any] = np.array([table[v] for v in found.tolist()], dtype=dtype)
        if values.dtype.kind in "iu" and found.size and found[0] >= 0 and found[-1] < 1 << 16:
            # A table is several times faster than a search, and label maps have millions of voxels.
            lookup: NDArray[Any] = np.zeros(int(found[-1]) + 1, dtype=dtype)
            lookup[found] = index_of
            return lookup[values]
        return index_of[np.searchsorted(found, values)]

    def decode(self, indices: IntArray) -> IntArray:
        """Indices -> values, in the smallest integer type that holds them all."""
        values = [self.background, *(label.value for label in self.foreground)]
        if self.ignore is not None:
            values.append(self.ignore)
        return np.array(values, dtype=self.dtype)[indices]

    def mask(self, values: IntArray, name: str) -> NDArray[np.bool_]:
        """Where a label map of values shows the class (label or region) `name`.

        Raises:
            LabelsError: if there is no such class.
        """
        return np.isin(values, self.members(name))

    def members(self, name: str) -> tuple[int, ...]:
        """The values that make up the class `name`."""
        for region in self.regions:
            if region.name == name:
                return region.values
        for label in self.foreground:
            if label.name == name:
                return (label.value,)
        raise LabelsError(f"{name!r} is no label; labels are {', '.join(self.classes)}")

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `labels_from_dict` reads it back."""
        return {
            "background": self.background,
            "foreground": [{"name": label.name, "value": label.value} for label in self.foreground],
            "regions": [{"name": r.name, "values": list(r.values), "writes": r.writes} for r in self.regions],
            "pairs": [list(pair) for pair in self.pairs],
            "ignore": self.ignore,
            "colours": {name: list(colour) for name, colour in self.colours},
        }


def labels_from_dict(data: Mapping[str, Any]) -> Labels:
    """The labels that `Labels.to_dict` gave.

    Raises:
        LabelsError: if something is missing or of the wrong kind.
    """
    try:
        return Labels(
            foreground=tuple(Label(str(d["name"]), _integer(d["value"], d["name"])) for d in data["foreground"]),
            background=int(data["background"]),
            regions=tuple(Region(str(r["name"]), tuple(map(int, r["values"])), int(r["writes"])) for r in data["regions"]),
            pairs=tuple((str(a), str(b)) for a, b in data["pairs"]),
            ignore=None if data["ignore"] is None else int(data["ignore"]),
            colours=tuple((str(n), (int(r), int(g), int(b))) for n, (r, g, b) in data["colours"].items()),
            pairs_said="model" not in data,  # those beside predictions were read from names
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise LabelsError(f"the labels are not described as expected: {error!r}") from error


def labels_from_json(data: Mapping[str, Any]) -> Labels:
    """The labels of a `dataset.json`, which has a "labels" table, or those that `Labels.to_dict` gave.

    Raises:
        LabelsError: as `labels_from_dict` and `labels_from_dataset_json`.
    """
    return labels_from_dict(data) if "foreground" in data and "labels" not in data else labels_from_dataset_json(data)


def labels_from_dataset_json(data: Mapping[str, Any]) -> Labels:
    """The labels in a `dataset.json`: the Decathlon's {"0": "background", "1": "name"} or nnU-Net v2's {"name": 1}; values may be text.

    In nnU-Net's form a list of values is a region and `regions_class_order` says what each writes; the name "ignore" is the ignore
    label. Colours ({"name": [r, g, b]}) and pairs ([["left", "right"], ...]; [] for none) are taken where given as `colours` and
    `pairs`; otherwise pairs are found from names that differ only in their side (`side_of`).

    Raises:
        LabelsError: if the labels are missing or contradict themselves.
    """
    found = data.get("labels")
    if not isinstance(found, Mapping) or not found:
        raise LabelsError('there is no "labels" table')
    # Numbers as text are values on either side; where both are, the Decathlon's form is the one that has text there by rule.
    if all(isinstance(v, str) for v in found.values()) and (_are_numbers(found) or not _are_numbers(found.values())):
        named = {str(name): _integer(value, name) for value, name in found.items()}
        if len(named) < len(found):
            raise LabelsError("two label values have the same name")
    else:
        named = {str(name): value for name, value in found.items()}
    background = next((name for name in named if name.lower() == "background"), None)
    ignore = next((name for name in named if name.lower() == "ignore"), None)
    rest = {name: value for name, value in named.items() if name not in (background, ignore)}
    zero = next(
        (name for name, value in rest.items() for v in (value if isinstance(value, list) else [value]) if _integer(v, name) == 0), None
    )
    if zero is not None and (background is None or _integer(named[background], background) == 0):
        raise LabelsError(
            f'the value 0 is called {zero!r}, and 0 must be the background: call it "background", or give {zero!r} another value, here and '
            "in the label maps"
        )
    regions: tuple[Region, ...] = ()
    if any(isinstance(value, list) for value in rest.values()):
        unions = {n: tuple(_integer(x, n) for x in (v if isinstance(v, list) else [v])) for n, v in rest.items()}
        order = data.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(unions):
            raise LabelsError('labels with regions need a "regions_class_order" that gives one value a region')
        regions = tuple(Region(n, v, _integer(w, n)) for (n, v), w in zip(unions.items(), order, strict=True))
        single = {v[0]: n for n, v in unions.items() if len(v) == 1}
        foreground = tuple(Label(single.get(v, f"label {v}"), v) for v in sorted({v for u in unions.values() for v in u}))
    else:
        foreground = tuple(Label(n, v) for n, v in sorted(((n, _integer(v, n)) for n, v in rest.items()), key=lambda x: x[1]))
    names = {label.name for label in foreground} | {r.name for r in regions}
    said = data.get("pairs") is not None
    try:
        pairs = tuple((str(a), str(b)) for a, b in data["pairs"]) if said else _left_right(names)
        colours = tuple((str(n), (int(r), int(g), int(b))) for n, (r, g, b) in (data.get("colours") or {}).items())
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise LabelsError(f'"pairs" or "colours" are not as expected: {error}') from error
    return Labels(
        foreground=foreground,
        background=0 if background is None else _integer(named[background], background),
        regions=regions,
        pairs=pairs,
        ignore=None if ignore is None else _integer(named[ignore], ignore),
        colours=colours,
        pairs_said=said,
    )


# ---- left and right

# Strongest first: in "ctx-lh-G_insular_l" the first says the side.
_SIDES: tuple[Mapping[str, Side], ...] = (
    {"left": "left", "right": "right"},
    {"lh": "left", "lt": "left", "rh": "right", "rt": "right"},
    {"l": "left", "r": "right"},
)
_NOT_SIDES = {"bright", "upright", "cleft", "leftover", "leftmost", "rightmost"}
_SPINE = {"vertebra", "vertebrae", "vertebral", "lumbar", "spine", "spinal", "disc", "disk"}
_HEART = {"ventricle", "ventricles", "ventricular", "vent", "atrium", "atria", "atrial", "myocardium", "myo", "heart", "cardiac"}
_GLUED, _OTHER = re.compile(r"([LlRr])([a-z]{3}.*)"), {"L": "R", "l": "r", "R": "L", "r": "l"}
_BRAIN = re.compile(r"\b(lat|lateral) vent|\b(brain|cerebr\w*|choroid|horn)\b")


def side_of(name: str) -> tuple[Side | None, str]:
    """The side that the name of a structure says, and the name without it, in small letters with spaces: None where it says none.

    "Left-Kidney", "Kidney_L", "lh kidney" and "LKidney" are the left "kidney". Letters count where they stand alone: L1 is a vertebra,
    LV no left V. A name of both sides says none, and neither does one of the heart's chambers, which are no mirror images.
    """
    side, rest = _parted(name)
    return (None, rest) if side is None or _of_heart(rest) else (side, rest)


def is_chamber(name: str) -> bool:
    """Whether the left or right of a name tells one of the heart's chambers: a mirrored body has it on the other side."""
    side, rest = _parted(name)
    return side is not None and _of_heart(rest)


def unpaired_sides(labels: Labels) -> tuple[str, ...]:
    """The names, of labels and of regions, that say a side but are in no pair, sorted."""
    paired = {name for pair in labels.pairs for name in pair}
    names = {*labels.classes, *(label.name for label in labels.foreground)} - paired
    return tuple(sorted(name for name in names if side_of(name)[0]))


def _left_right(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Names that differ in their side alone; where several have one side and one rest, nobody knows which belong together."""
    found: dict[str, dict[Side, list[str]]] = {}
    known = set(names)
    for name in sorted(known):
        side, rest = side_of(name)
        # A letter that is written together with the rest is a side where the other's name is there, too.
        if side is None and (glued := _GLUED.fullmatch(name)) and _OTHER[glued[1]] + glued[2] in known:
            side, rest = _SIDES[2][glued[1].lower()], name[1:]
        if side is not None:
            found.setdefault(rest, {"left": [], "right": []})[side].append(name)
    both = (sides for sides in found.values() if len(sides["left"]) == len(sides["right"]) == 1)
    return tuple(sorted((sides["left"][0], sides["right"][0]) for sides in both))


def _parted(name: str) -> tuple[Side | None, str]:
    words = _words(name)
    for tokens in _SIDES:
        said = {tokens[word] for word in words if word in tokens}
        rest = [word for word in words if word not in tokens]
        # "L 1" is a vertebra, too.
        letters = "l" in tokens
        if letters and rest and (_SPINE & set(rest) or all(word.isdigit() for word in rest)):
            said = set()
        if said:
            return (said.pop() if len(said) == 1 else None), " ".join(rest)
    return None, " ".join(words)


def _words(name: str) -> list[str]:
    """In small letters; cut where no letter or digit stands, where small letters become large ("kidneyL", "LKidney"), and around a left
    or right that is written together with the rest ("leftkidney")."""
    cut = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})", " ", name)
    words = []
    for word in re.split(r"[\W_]+", cut.lower()):
        words += [word] if word in _NOT_SIDES else re.split(r"(?<=^left)|(?<=^right)|(?=left$)|(?=right$)", word)
    return [word for word in words if word]


def _of_heart(rest: str) -> bool:
    return bool(_HEART & set(rest.split())) and not _BRAIN.search(rest)


def _are_numbers(texts: Iterable[Any]) -> bool:
    return all(str(text).strip().isdecimal() for text in texts)


def _integer(value: Any, name: object) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not number.is_integer():
        raise LabelsError(f"the label {name!r} has the value {shown(value)}, which is no whole number")
    return int(number)
