"""Records of cross-validations as the paper's tables need them: sorted into cross-validations, their networks matched to rows.

Records are put side by side only where they agree in recipe, split, dataset, budget, classes and scoring. Whatever else is given stands
beside them under a letter of its own, and nothing is tested across letters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uxnet.errors import InputError
from uxnet.evaluation.compare import compare
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.scores import COMMON, MEAN, Scores, read_record, read_scores, record_files, with_one_hash
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.paper.printed import Challenge, challenge_of, paper

ALPHA = 0.01
"""The paper's level of significance."""

ABLATED: Mapping[str, Any] = {"convolution": "depthwise", "kernel": 7, "scaling": "dcs"}
"""The settings of the 3D UX-Net that table 3 changes, as they are by default."""


@dataclass(frozen=True)
class Trial:
    """A cross-validation: networks on equal terms.

    letter: what tables call it: A, B, ...
    dataset: its name in the records; challenge: which of the paper's datasets that is, None for another.
    heads: class -> head of its column: the paper's where it is the paper's dataset, else its own name.
    scores: a network each, in the order of the files.
    folders: where the records of each network lie, by its name: the cross-validation's folder.
    facts: of one of the records, what all agree in.
    """

    letter: str
    dataset: str
    challenge: Challenge | None
    heads: Mapping[str, str]
    scores: tuple[Scores, ...]
    folders: Mapping[str, tuple[Path, ...]]
    facts: Mapping[str, Any]

    @property
    def mean_head(self) -> str:
        """Head of the mean's column."""
        return self.challenge.mean if self.challenge else "Mean"

    @property
    def columns(self) -> dict[str, str]:
        """Head of a column -> class, in the order of the table, the mean last."""
        own = {head: name for name, head in self.heads.items()}
        order = self.challenge.columns if self.challenge else own
        return {head: own[head] for head in order} | {self.mean_head: MEAN}

    def terms(self) -> str:
        """What its networks had in common, in a sentence."""
        first, budget = self.facts, self.facts["budget"]
        if "core_seconds" in budget:
            spent = f"{budget['core_seconds']:g} core-seconds"
        else:
            spent = f"{' + '.join(map(str, budget['steps']))} step{'' if budget['steps'] == [1] else 's'}"
        kept = "last step" if first["keep"] == "last" else "best validation"
        return (
            f"{self.letter}: {self.dataset}, recipe {first['recipe']}, {first['protocol']} (split {first['split_sha256'][:8]}), "
            f"patch {'x'.join(map(str, first['patch']))}, {spent} a network and fold, weights of the {kept}; made by uxnet crossval, "
            f"{self._beginnings()}."
        )

    def _beginnings(self) -> str:
        begun = [f"{s.name} with those of {init['model']}" for s in self.scores if (init := init_of(s))]
        if len(begun) == len(self.scores):
            return f"which began {', '.join(begun)}"
        return "which begins with fresh weights" + (f", {', '.join(begun)}" if begun else "")


@dataclass(frozen=True)
class Mean:
    """A mean Dice, and over what: `cases` that count, of `folds`. `value` is None where no case counts."""

    value: float | None
    folds: int
    cases: int


def read_trials(sources: Mapping[str, Sequence[str | Path]]) -> tuple[Trial, ...]:
    """The cross-validations in folders, by the datasets of the paper first, then by the order in which they appear.

    Args:
        sources: folders of cross-validations or of records, or records; by the name of the paper's dataset that they are of, or ""
            where their own name and classes decide.

    Raises:
        InputError: if there is no record in one of them, one cannot be read, or its classes are not those of the dataset it is said
            to be of.
    """
    groups: dict[str, list[tuple[Path, str]]] = {}
    files = [(path, said) for said, paths in sources.items() for source in paths for path in _records_in(Path(source))]
    every = [read_record(path) for path, _ in files]
    for (path, said), record in zip(files, with_one_hash(every, every), strict=True):
        scored = [record["evaluation"]["tolerance_mm"], record["evaluation"]["empty"], list(record["cases"][0]["classes"])]
        key = json.dumps([said, *(record[key] for key in COMMON), *scored])
        if path not in [known for known, _ in groups.setdefault(key, [])]:
            groups[key].append((path, said))
    trials = [_trial([path for path, _ in group], group[0][1], every) for group in groups.values()]
    order = [*paper().challenges, ""]
    trials.sort(key=lambda t: order.index(t.challenge.name if t.challenge else ""))
    return tuple(
        Trial(chr(ord("A") + n) if n < 26 else f"A{n}", t.dataset, t.challenge, t.heads, t.scores, t.folders, t.facts)
        for n, t in enumerate(trials)
    )


def _records_in(source: Path) -> list[Path]:
    if source.is_file():
        return [source.absolute()]
    if not source.is_dir():
        raise InputError(f"{source}: there is no such file or folder")
    files = record_files(source / "records" if (source / "records").is_dir() else source)
    if not files:
        raise InputError(f"{source}: there are no records of uxnet crossval in this folder")
    return [path.absolute() for path in files]


def _trial(files: Sequence[Path], said: str, every: Sequence[Mapping[str, Any]]) -> Trial:
    scores = read_scores(files)
    (facts,), classes = with_one_hash(scores[0].records[:1], every), scores[0].classes
    challenge = paper().challenges[said] if said else challenge_of(str(facts["dataset"]), classes)
    heads = challenge.heads(classes) if challenge else {name: name for name in classes}
    if heads is None:
        raise InputError(f"{files[0]}: its classes ({', '.join(classes)}) are not those of {said}; give them as records of another dataset")
    folders: dict[str, tuple[Path, ...]] = {}
    for path in files:
        name, root = str(read_record(path)["name"]), path.parent.parent if path.parent.name == "records" else path.parent
        folders[name] = tuple(dict.fromkeys((*folders.get(name, ()), root)))
    return Trial("", str(facts["dataset"]), challenge, heads, scores, folders, facts)


def mean_dice(scores: Scores, class_name: str) -> Mean:
    """Of a class, or of the mean over classes, taken within each case first; over the cases of all folds."""
    counted = [value for case in scores.cases if (value := scores.value(case, "dice", class_name)) is not None]
    return Mean(mean_of_counted(counted), len({r["fold"] for r in scores.records}), len(counted))


def stars(trial: Trial, scores: Sequence[Scores]) -> dict[str, str]:
    """Class, or the mean -> the network that is better than each of the others with p < 0.01; no entry where none is.

    Wilcoxon's signed-rank test on the cases that both have, two-sided, against every other network; other settings of the same network
    are no other network. All must fall below the level, so it needs no correction for their number (an intersection-union test).
    """
    if len({network_of(s) for s in scores}) < 2 or not set.intersection(*(set(s.cases) for s in scores)):
        return {}
    alone = [_dice_only(s) for s in scores]
    leaders: dict[str, list[str]] = {}
    for name in (*trial.heads, MEAN):
        means = {s.name: mean_dice(s, name).value for s in scores}
        found = {key: value for key, value in means.items() if value is not None}
        if len(found) == len(scores):
            leaders.setdefault(max(found, key=lambda key: found[key]), []).append(name)
    won = {}
    networks = {s.name: network_of(s) for s in scores}
    for leader, names in leaders.items():
        comparison = compare(alone, leader, alpha=ALPHA)
        for name in names:
            tests = [comparison.against(s.name, "dice", name) for s in scores if networks[s.name] != networks[leader]]
            if all(t.p is not None and t.p < ALPHA and (t.effect or 0) > 0 for t in tests):
                won[name] = leader
    return won


def _dice_only(scores: Scores) -> Scores:
    """Without the other metrics, whose bootstraps nobody asks for here."""
    cases = {
        case: {name: {m: values[name]["dice"] if m == "dice" else None for m in METRICS} for name in scores.classes}
        for case, values in scores.cases.items()
    }
    return replace(scores, cases=cases)


# ---- which network it is


def network_of(scores: Scores) -> str:
    """The network's name in `networks.build`."""
    return str(scores.records[0]["network"])


def settings_of(scores: Scores) -> Mapping[str, Any]:
    """The settings that the record states."""
    found: Mapping[str, Any] = scores.records[0]["settings"]
    return found


def ablation_of(scores: Scores) -> dict[str, Any]:
    """Convolution, kernel and scaling of a 3D UX-Net, whatever it is called; a kernel with one side for all is one number."""
    found = {key: settings_of(scores).get(key, default) for key, default in ABLATED.items()}
    sides = found["kernel"]
    if isinstance(sides, list | tuple):
        flat = [side for part in sides for side in (part if isinstance(part, list | tuple) else [part])]
        found["kernel"] = flat[0] if len(set(flat)) == 1 else list(sides)
    return found


def block_of(scores: Scores) -> str:
    """The reading of the 3D UX-Net's block: "released" or "paper"."""
    return str(settings_of(scores).get("block", "released"))


def is_plain(scores: Scores) -> bool:
    """Whether a network is one of table 1: none of those that table 3 changes the 3D UX-Net to."""
    return network_of(scores) != "uxnet" or ablation_of(scores) == ABLATED


def init_of(scores: Scores) -> Mapping[str, Any] | None:
    """What the record states of the model that the network began with; None where it began afresh."""
    return scores.records[0].get("init")


def settings_text(scores: Scores) -> str:
    """The settings as a reader reads them, and what the network began with; "defaults" where nothing is set."""
    said = ", ".join(f"{key} = {_value(value)}" for key, value in settings_of(scores).items()) or "defaults"
    init = init_of(scores)
    data = f", trained on {init['dataset']}" if init and init.get("dataset") else ""
    return f"{said}; begins with {init['model']} ({init['weights_sha256'][0][:12]}{data})" if init else said


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
