"""Which cases train, validate and test in each fold: made once, written to a file, and read again from it.

Persons stay whole: none is ever in two parts of one fold. Within that, persons are dealt so that every class is in every held-out
part where possible, and the parts are of about the same size.

    5x80-20      five folds; fold k validates on fifth k and trains on the rest
    5x80-10-10   five folds; half of fifth k's persons validate, the other half test

Over the five folds every person is held out exactly once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from uxnet.dataset.manifest import Manifest, some
from uxnet.errors import DatasetError, shortened
from uxnet.events import Report, Warn, silent
from uxnet.io import read_json, write_json

PROTOCOLS = ("5x80-20", "5x80-10-10")

_FOLDS = 5
_DEALS = 24


@dataclass(frozen=True)
class Fold:
    """Names of cases, each part sorted; `test` may be empty."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def scored(self) -> tuple[str, ...]:
        """The cases that tell how good a model of this fold is: its test cases, or where it has none, those that validate."""
        return self.test or self.validation


@dataclass(frozen=True)
class Split:
    """The folds of a dataset; `grouped_by` is "person" where persons were known, else "case"."""

    protocol: str
    seed: int
    grouped_by: str
    folds: tuple[Fold, ...]


@dataclass(frozen=True)
class Gap:
    """A class that no case shows in a part ("train", "validation" or "test") of a fold, counted from 0."""

    fold: int
    part: str
    class_name: str


def make_split(manifest: Manifest, class_presence: Mapping[str, Collection[str]], *, protocol: str = "5x80-20", seed: int = 0) -> Split:
    """Deals the dataset's persons into folds; the same for the same seed, in whatever order the cases stand.

    Args:
        class_presence: case -> names of the classes it shows, as `check.Inspection.class_presence()`. Cases that it leaves out
            are dealt as if they showed none.
        protocol: one of PROTOCOLS.

    Where a class is in fewer persons than there are parts it cannot be in each of them; `gaps` lists where it is not.

    Raises:
        DatasetError: if the protocol is not known, or there are too few persons for it.
    """
    if protocol not in PROTOCOLS:
        raise DatasetError(f"{protocol!r} is no protocol for folds; known are {', '.join(PROTOCOLS)}")
    halved = protocol == "5x80-10-10"
    cases_of: dict[str, list[str]] = {}
    for case in manifest.cases:
        cases_of.setdefault(case.person, []).append(case.name)
    least = 2 if halved else 1
    if len(cases_of) < _FOLDS * least:
        who = "persons" if manifest.grouped_by == "person" else "cases"
        raise DatasetError(
            f"{manifest.root}: {len(cases_of)} {who} are too few for {protocol}, which needs {_FOLDS * least}; "
            "add cases, write a split file of your own (see docs/datasets.md), or train one network on all (`uxnet train`, fold all)"
        )
    deck = {
        person: _Hand(len(names), Counter(c for name in names for c in class_presence.get(name, ()))) for person, names in cases_of.items()
    }
    everyone, folds = sorted(deck), []
    for fifth in _deal(deck, everyone, _FOLDS, least, f"{seed}"):
        validation, test = _deal(deck, fifth, 2, 1, f"{seed} halves {fifth}") if halved else (fifth, [])
        held_out = {*validation, *test}
        parts = ([p for p in everyone if p not in held_out], validation, test)
        folds.append(Fold(*(tuple(sorted(name for person in part for name in cases_of[person])) for part in parts)))
    return Split(protocol, seed, manifest.grouped_by, tuple(folds))


def gaps(split: Split, class_presence: Mapping[str, Collection[str]]) -> tuple[Gap, ...]:
    """Where a class that some case shows is missing; scores of that class on that part of that fold do not exist."""
    classes = sorted({name for shown in class_presence.values() for name in shown})
    return tuple(
        Gap(k, part, name)
        for k, fold in enumerate(split.folds)
        for part, cases in _parts(fold).items()
        for name in classes
        if cases and not any(name in class_presence.get(case, ()) for case in cases)
    )


def write_split(path: Path, split: Split) -> None:
    """Writes the split as JSON, whole or not at all."""
    write_json(path, {"format": "uxnet split", "version": 1, **asdict(split)})


def read_split(path: Path, manifest: Manifest) -> Split:
    """The split in a file, checked against the dataset.

    A hand-written file needs only "folds": a list of {"train": [...], "validation": [...]}, "test" where wanted.

    Raises:
        DatasetError: if the file is missing or not of that form, names a case that the dataset does not have, has an empty train
            or validation part, or a case or person in two parts of one fold; the message names them.
    """
    try:
        data = read_json(path, DatasetError)
    except DatasetError as error:
        raise DatasetError(f"{error}, or remove it to make a new split") from error
    if not isinstance(data.get("folds"), list) or not data["folds"]:
        raise DatasetError(f'{path}: a split has a list of "folds", and this file has none')
    if data.get("version", 1) != 1:
        raise DatasetError(f"{path}: it is a split of version {data['version']!r}, this uxnet reads version 1")
    folds = tuple(_read_fold(fold, f"{path}: fold {k}") for k, fold in enumerate(data["folds"]))
    try:
        protocol, seed = str(data.get("protocol", "own")), int(data.get("seed", 0))
    except (TypeError, ValueError) as error:
        raise DatasetError(f'{path}: "seed" must be a whole number, not {data["seed"]!r}') from error
    person_of = {case.name: case.person for case in manifest.cases}
    for k, fold in enumerate(folds):
        _refuse_leaks(fold, person_of, f"{path}: fold {k}")
    return Split(protocol, seed, str(data.get("grouped_by", manifest.grouped_by)), folds)


def split_for(
    manifest: Manifest,
    path: Path,
    class_presence: Mapping[str, Collection[str]],
    *,
    protocol: str | None = None,
    seed: int = 0,
    write: bool = True,
    report: Report = silent,
) -> Split:
    """The split in the file; where there is no such file, one is made (of `protocol`, else 5x80-20) and, if `write`, written there.

    Warns where the file leaves cases of the dataset out, or where a class is missing from a part of a fold.

    Raises:
        DatasetError: as `make_split` and `read_split`, or if the file is of another protocol than the one asked for.
    """
    if path.exists():
        split = read_split(path, manifest)
        if protocol is not None and split.protocol != protocol:
            raise DatasetError(f"{path}: it holds a {split.protocol} split, but {protocol} is asked for; name another file or remove it")
        unused = [c.name for c in manifest.cases if not any(c.name in p for f in split.folds for p in _parts(f).values())]
        if unused:
            report(Warn(f"{path}: in no fold: {some(unused)}; remove the file to make a new split of the whole dataset"))
    else:
        split = make_split(manifest, class_presence, protocol=protocol or PROTOCOLS[0], seed=seed)
        if write:
            write_split(path, split)
    where: dict[str, list[str]] = {}
    for gap in gaps(split, class_presence):
        where.setdefault(gap.class_name, []).append(f"{gap.part} of fold {gap.fold}")
    for name, parts in where.items():
        report(Warn(f"{path}: no case shows {name!r} in {', '.join(parts)}; it has no score there"))
    return split


@dataclass(frozen=True)
class _Hand:
    """What dealing one person adds to a part: cases, and for each class the cases that show it."""

    cases: int
    shows: Mapping[str, int]


def _deal(deck: Mapping[str, _Hand], persons: list[str], parts: int, least: int, seed: str) -> list[list[str]]:
    """The best of several deals: fewest (class, part) pairs missing, then even in size, then even in every class.

    One greedy deal can paint itself into a corner when classes overlap; a few others, dealt in other orders, mostly do not.
    """
    deals = (_deal_once(deck, sorted(persons), parts, least, f"{seed} deal {n}") for n in range(_DEALS))
    return min(deals, key=lambda dealt: _unevenness(deck, dealt))


def _deal_once(deck: Mapping[str, _Hand], persons: list[str], parts: int, least: int, seed: str) -> list[list[str]]:
    """Persons with the rarest class first, each to the part that has the fewest cases of that class."""
    rng = random.Random(seed)
    rng.shuffle(persons)
    # Large persons first: the small ones then even out what they leave.
    waiting = sorted(persons, key=lambda person: -deck[person].cases)
    dealt: list[list[str]] = [[] for _ in range(parts)]
    cases, shows = [0] * parts, [Counter[str]() for _ in range(parts)]
    while waiting:
        left = Counter(name for person in waiting for name in deck[person].shows)
        rarest = min(left, key=lambda name: (left[name], name), default=None)
        person = next(p for p in waiting if rarest is None or rarest in deck[p].shows)
        waiting.remove(person)
        short = [part for part in range(parts) if len(dealt[part]) < least]
        # Every part gets its least number of persons, however large one person is.
        open_parts = short if len(waiting) < sum(least - len(dealt[part]) for part in short) else list(range(parts))
        hand = deck[person]
        ranks = {
            part: (
                shows[part][rarest] if rarest is not None else 0,
                -sum(not shows[part][name] for name in hand.shows),
                cases[part],
                rng.random(),
            )
            for part in open_parts
        }
        chosen = min(open_parts, key=ranks.__getitem__)
        dealt[chosen].append(person)
        cases[chosen] += hand.cases
        shows[chosen].update(hand.shows)
    return [sorted(part) for part in dealt]


def _unevenness(deck: Mapping[str, _Hand], dealt: list[list[str]]) -> tuple[int, int, int]:
    sizes = [sum(deck[person].cases for person in part) for part in dealt]
    shows: list[Counter[str]] = [sum((Counter(deck[person].shows) for person in part), Counter()) for part in dealt]
    classes = {name for part in shows for name in part}
    missing = sum(not part[name] for part in shows for name in classes)
    ranges = [max(part[name] for part in shows) - min(part[name] for part in shows) for name in classes]
    return missing, max(sizes) - min(sizes), sum(ranges)


def _parts(fold: Fold) -> dict[str, tuple[str, ...]]:
    return {"train": fold.train, "validation": fold.validation, "test": fold.test}


def _read_fold(data: Any, where: str) -> Fold:
    parts = {}
    for part in ("train", "validation", "test"):
        names = data.get(part, []) if isinstance(data, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DatasetError(f'{where}: "{part}" must be a list of the names of cases')
        if not names and part != "test":
            raise DatasetError(f'{where}: "{part}" is empty; it needs at least one case')
        parts[part] = tuple(sorted(names))
    return Fold(**parts)


def _refuse_leaks(fold: Fold, person_of: Mapping[str, str], where: str) -> None:
    parts = _parts(fold)
    for part, names in parts.items():
        unknown = [name for name in names if name not in person_of]
        if unknown:
            raise DatasetError(f"{where}: {some(unknown)} in {part!r} cannot be found in the dataset; correct the file or remove it")
        if len(set(names)) < len(names):
            twice = [name for name, n in Counter(names).items() if n > 1]
            raise DatasetError(f"{where}: more than once in {part!r}: {some(twice)}; remove the repetition")
    for (a, first), (b, second) in combinations(parts.items(), 2):
        both = sorted(set(first) & set(second))
        if both:
            raise DatasetError(f"{where}: {some(both)} would be in {a!r} and in {b!r}; leave each in one of them")
        shared = sorted({person_of[name] for name in first} & {person_of[name] for name in second})
        if shared:
            cases = sorted(name for name in (*first, *second) if person_of[name] in shared)
            raise DatasetError(
                f"{where}: {some(cases)} are of the same persons ({shortened(shared, 8)}) but lie in {a!r} and in {b!r}; "
                "a person belongs in one part, or the scores are too good"
            )
