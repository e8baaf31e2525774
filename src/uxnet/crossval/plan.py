"""What a cross-validation consists of: its networks, its budget, its units, and the files that say so."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from uxnet.crossval.best_fold import model_to_begin_with
from uxnet.crossval.unit import Unit, rounded
from uxnet.dataset.check import Inspection
from uxnet.dataset.folds import Split, read_split, split_for, write_split
from uxnet.dataset.manifest import Manifest, some
from uxnet.errors import DatasetError, InputError, ModelError, RecipeError, UsageError
from uxnet.evaluation.scores import COMMON, read_record, record_files
from uxnet.events import Report, silent
from uxnet.io import atomic
from uxnet.model.file import read_model
from uxnet.recipe import Network, Recipe, load_recipe, other_keys, recipe_to_toml, toml_value
from uxnet.recipe.identity import canonical_json, earlier_sha256, recipe_sha256

PROTOCOL = "5x80-10-10"
"""Of the split, where none is there or given."""

OWN = "recipe"
"""The name by which entries ask for the recipe's own network."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Entry:
    """A network that takes part: the name it goes by, which network it is, its settings, and a model whose weights it begins with."""

    name: str
    network: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    init: Path | None = None


@dataclass(frozen=True)
class Budget:
    """How long each unit trains; with neither, as many steps as the recipe says.

    steps: of each stage.
    core_seconds: of training, validations included, on as many threads as a unit has; before the first step some are measured, and the
        time becomes a number of steps.
    """

    steps: int | None = None
    core_seconds: float | None = None


def entries_of(networks: Sequence[str], variants: Sequence[str] = (), size: str = "paper") -> tuple[Entry, ...]:
    """Entries from words.

    Args:
        networks: names of networks.
        variants: NAME=NETWORK:KEY=VALUE:KEY=VALUE..., values as TOML writes them, quotes around a word may be left out. The network
            `recipe` is the recipe's own, with its settings there.
        size: "paper" or "narrow", of all others that do not set it.

    Raises:
        UsageError: if one cannot be read, there is no such network or setting, or two have the same name.
    """
    from uxnet.networks.build import check_asked  # its room imports torch

    entries = [Entry(name, name, {"size": size}) for name in networks]
    for variant in variants:
        name, equals, rest = variant.partition("=")
        network, *pairs = rest.split(":")
        if not equals or not network or not all("=" in pair for pair in pairs):
            raise UsageError(f"{variant!r} is no variant; write NAME=NETWORK:KEY=VALUE, such as uxnet-k9=uxnet:kernel=9")
        settings = {key.strip(): toml_value(value.strip()) for key, _, value in (pair.partition("=") for pair in pairs)}
        usual = {} if network.strip() == OWN else {"size": size}
        entries.append(Entry(name.strip(), network.strip(), {**usual, **settings}))
    names = [entry.name for entry in entries]
    for entry in entries:
        if entry.network != OWN:
            check_asked(entry.network, entry.settings)
    for n, name in enumerate(names):
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no name for a network here: letters, digits, '.', '_' and '-' (it becomes part of file names)")
        if name in names[:n]:
            raise UsageError(f"two networks are called {name}; give one of them another name by a variant")
    return tuple(entries)


def with_beginnings(entries: Sequence[Entry], models: Sequence[str], report: Report = silent) -> tuple[Entry, ...]:
    """Entries, some of which begin with the weights of a model.

    Args:
        models: NAME=MODEL, the name of an entry, and whatever `model_to_begin_with` takes.

    Raises:
        UsageError: if one cannot be read, or names no entry.
        ModelError, InputError: as `model_to_begin_with`.
    """
    given: dict[str, Path] = {}
    for word in models:
        name, equals, path = word.partition("=")
        if not equals or not path.strip():
            raise UsageError(f"{word!r}: write NAME=MODEL, such as finetuned=runs/synthetic/model.uxnet")
        if name.strip() not in {entry.name for entry in entries}:
            there = ", ".join(entry.name for entry in entries) or "none; name the networks or variants"
            raise UsageError(f"{word!r}: no network here is called {name.strip()!r}; there are: {there}")
        given[name.strip()] = model_to_begin_with(Path(path.strip()), report)
    return tuple(replace(entry, init=given.get(entry.name, entry.init)) for entry in entries)


# ---- what is to be done


def make_units(
    manifest: Manifest,
    inspection: Inspection,
    split: Split,
    recipe: Recipe,
    out: Path,
    entries: Sequence[Entry],
    budget: Budget,
    folds: Sequence[int] | None,
    threads: int,
    tolerance_mm: float,
    init_from: Path | None = None,
) -> list[Unit]:
    """Every network on every fold, by folds, then by entries. Units know no cache yet.

    `init_from` is the model that entries begin with that have none of their own.

    Raises:
        DatasetError: if the split has no such fold.
        ModelError: if a model to begin with cannot be read, is of another network, or hardly anything of it fits.
        RecipeError: if a network cannot be built or does not take the recipe's patch, or the recipe's budget cannot be.
        UsageError: if the given budget cannot be.
    """
    own = recipe.stages[-1].network
    chosen = range(len(split.folds)) if folds is None else list(dict.fromkeys(folds))
    if not chosen:
        raise DatasetError("no fold is named; leave the folds out to take all")
    for fold in chosen:
        if not 0 <= fold < len(split.folds):
            raise UsageError(f"{out / 'split.json'}: it has the folds 0 to {len(split.folds) - 1}, not {fold}")
    budgeted, said = _with_budget(recipe, budget, threads)
    common = {
        "recipe": recipe.name,
        "recipe_sha256": recipe_sha256(recipe),
        "recipe_toml_sha256": earlier_sha256(recipe),  # by which records of earlier versions know it
        "protocol": split.protocol,
        "split_sha256": _sha256(json.dumps([asdict(fold) for fold in split.folds])),
        "dataset": manifest.name,
        "licence": manifest.licence,
        "dataset_sha256": inspection.fingerprint.sha256,
        "labels_sha256": _sha256(json.dumps({k: v for k, v in manifest.labels.to_dict().items() if k != "colours"})),
        "budget": said,
        "keep": recipe.stages[-1].training.keep,
    }
    made = []
    for asked in entries or (Entry(own.name, OWN),):
        entry, changed = _known(asked, own, init_from), _with_entry(budgeted, asked)
        facts = {"name": entry.name, "network": entry.network, "settings": rounded(dict(entry.settings)), **common}
        facts |= {} if split.folds[0].test else {"scored": "validation"}
        facts |= {"init": beginning(entry.init, entry, changed, manifest)} if entry.init else {}
        made.append((entry, changed, facts | _cost(changed, manifest, entry)))
    units = []
    for fold in chosen:
        for entry, changed, facts in made:
            decides = [manifest.labels.to_dict(), facts["split_sha256"], fold, facts["dataset_sha256"], said, tolerance_mm]
            # Without a model to begin with, keys are what they were before there could be one.
            decides += [facts["init"]["weights_sha256"]] if entry.init else []
            key, earlier = (_sha256(json.dumps([text, *decides])) for text in (canonical_json(changed), recipe_to_toml(changed)))
            title = {"name": entry.name, "fold": fold, "key": key}
            init = entry.init.absolute() if entry.init else None
            units.append(Unit(entry.name, fold, changed, inspection, out, None, tolerance_mm, False, title | facts, init, earlier))
    return units


def _known(entry: Entry, own: Network, init_from: Path | None) -> Entry:
    """The entry with the recipe's own network (of its last stage) put in where it says so, and with the model that all begin with where
    it has none.
    """
    if entry.network == OWN:
        entry = replace(entry, network=own.name, settings={**own.settings, **entry.settings})
    return replace(entry, init=entry.init or init_from)


def beginning(path: Path, entry: Entry, recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    """What a record says of the model that a network began with: its file's name, the hash of each stage's weights, its recipe and data.

    Raises:
        ModelError: if it cannot be read, or is of another network, or hardly anything of it fits.
    """
    from uxnet.training.begin import check_beginning

    model = read_model(path)
    theirs, ours = ([stage.network.name for stage in r.stages] for r in (model.recipe, recipe))
    if theirs[: len(ours)] != ours[: len(theirs)]:
        raise ModelError(f"{path}: its network is {theirs[0]}, that of {entry.name} is {ours[0]}; weights do not fit")
    try:
        check_beginning(recipe, manifest, path)
    except ModelError as error:
        raise ModelError(f"{entry.name}: {error}") from error
    return {
        "model": path.name,
        "weights_sha256": [str(stage["sha256"]) for stage in model.description["stages"]],
        "recipe": model.recipe.name,
        "dataset": str(dict(model.provenance.get("dataset") or {}).get("name", "")),
    }


def _with_budget(recipe: Recipe, budget: Budget, threads: int) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the budget put in, and the budget as records say it."""
    if budget.steps is not None and budget.core_seconds is not None:
        raise UsageError("a budget is of steps or of core-seconds, not of both")
    if min(budget.steps or 1, budget.core_seconds or 1) <= 0 or budget.steps == 0 or budget.core_seconds == 0:
        raise UsageError("a budget must be above 0")
    changes: dict[str, Any] = {"hours": 0.0}
    if budget.core_seconds is not None:
        changes = {"hours": budget.core_seconds / threads / 3600 / len(recipe.stages)}
    elif budget.steps is not None:
        changes |= {"steps": budget.steps}
    elif any(stage.training.hours for stage in recipe.stages):
        raise RecipeError("training.hours: networks are compared by steps or by core-seconds; give one of them, or set it to 0")
    changed = replace(recipe, stages=tuple(replace(s, training=replace(s.training, **changes)) for s in recipe.stages))
    if budget.core_seconds is not None:
        return changed, {"core_seconds": float(budget.core_seconds), "threads": threads, "validations": "included"}
    return changed, {"steps": [stage.training.steps for stage in changed.stages]}


def _with_entry(recipe: Recipe, entry: Entry) -> Recipe:
    """The recipe with the entry's network in every stage; of its own, each stage keeps the one that it has, with the entry's settings."""

    def network(own: Network) -> Network:
        return Network(own.name, {**own.settings, **entry.settings}) if entry.network == OWN else Network(entry.network, entry.settings)

    return replace(recipe, stages=tuple(replace(stage, network=network(stage.network)) for stage in recipe.stages))


def _cost(recipe: Recipe, manifest: Manifest, entry: Entry) -> dict[str, Any]:
    """Parameters, and multiply-accumulates (1e9) of a patch while training; of two stages the sums.

    Raises:
        RecipeError: if the network cannot be built, or does not take the patch.
    """
    import torch

    from uxnet.inference.engines.torch import stage_network
    from uxnet.networks.macs import count_macs

    parameters, macs = 0, 0.0
    for stage in recipe.stages:
        channels = len(manifest.channel_names)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                network = stage_network(stage, channels, manifest.labels.out_channels)
            # As many patches as a step computes at a time: batch norm may not take one alone.
            patches = stage.training.batch // stage.training.accumulate
            macs += count_macs(network.train(), (patches, stage.in_channels(channels), *stage.sampling.patch)).true / patches
        except RecipeError as error:
            raise RecipeError(f"{entry.name}: {error}") from error
        except (ValueError, RuntimeError) as error:
            patch = "x".join(map(str, stage.sampling.patch))
            raise RecipeError(f"{entry.name}: takes no patch of {patch}: {str(error).splitlines()[0]}") from error
        parameters += sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "gmac": macs / 1e9, "patch": list(recipe.stages[-1].sampling.patch)}


# ---- what is there


def refuse_another_recipe(path: Path, recipe: Recipe) -> None:
    """The recipe in the cross-validation's folder is this one, or none is there.

    Raises:
        InputError: if another one is there.
    """
    if path.exists() and (other := other_keys(load_recipe(path), recipe)):
        raise InputError(f"{path}: the cross-validation there has another recipe ({other}); go on with that one, or choose another folder")


def chosen_split(
    path: Path, given: Path | None, inspection: Inspection, recipe: Recipe, report: Report, protocol: str | None = None
) -> Split:
    """The split in the cross-validation's folder, or else in the file that is given, or else a new one. Nothing is written.

    Without test cases (of the protocol 5x80-20) the validation cases are scored, by a recipe that chooses nothing on them.

    Args:
        protocol: None takes that of the file that is there, or `PROTOCOL`.

    Raises:
        DatasetError: as `split_for`, or if some folds have test cases and others not, or two score the same case.
        InputError: if another one than the given is there.
        RecipeError: if the validation cases are scored, and the recipe chooses something on them.
    """
    manifest, file = inspection.manifest, path
    if given is not None:
        wanted = read_split(given, manifest)
        if not path.exists():
            file = given
        elif read_split(path, manifest).folds != wanted.folds:
            raise InputError(f"{path}: the cross-validation there has other folds than {given}; choose another folder")
    asked = protocol or (None if file.exists() else PROTOCOL)
    seed = recipe.stages[0].training.seed
    split = split_for(manifest, file, inspection.class_presence(), protocol=asked, seed=seed, write=False, report=report)
    untested = [n for n, fold in enumerate(split.folds) if not fold.test]
    if 0 < len(untested) < len(split.folds):
        raise DatasetError(
            f"{file}: fold {untested[0]} has no test cases, and others have; give every fold test cases, or none "
            "(its validation cases are then scored, and nothing is chosen on them)"
        )
    if untested:
        _refuse_choices(recipe, file)
    scored = Counter(name for fold in split.folds for name in fold.scored)
    twice = [name for name, n in scored.items() if n > 1]
    if twice:
        # Each case has one score in the end: of two nobody could say which.
        raise DatasetError(f"{file}: {'validation' if untested else 'test'} cases of more than one fold: {some(twice)}; leave each in one")
    return split


def _refuse_choices(recipe: Recipe, file: Path) -> None:
    """Nothing in the recipe is chosen on validation cases, since they are scored."""
    for n, stage in enumerate(recipe.stages):
        for key in stage.asks_validation:
            raise RecipeError(
                f"stages[{n}].{key}: asks the validation cases, which are scored, since no fold of {file} has test cases; change it in "
                f"the recipe, or take folds with test cases ({PROTOCOL})"
            )


def publish(out: Path, recipe: Recipe, split: Split) -> None:
    """Writes the recipe, as it is the same for all (the network in it is the recipe's own), and the split, where they are not there."""
    if not (out / "recipe.toml").exists():
        with atomic(out / "recipe.toml") as temporary:
            temporary.write_text(recipe_to_toml(recipe), encoding="utf-8")
    if not (out / "split.json").exists():
        write_split(out / "split.json", split)


def records_there(folder: Path, units: Sequence[Unit]) -> dict[str, Path]:
    """The records that are there, of whatever call, by their files' names.

    Raises:
        InputError: if one belongs to another cross-validation than these units, or is of another network of the same name.
    """
    wanted, by_title = units[0].facts, {unit.title: unit for unit in units}
    entries = {unit.name: unit.facts for unit in units}
    found = {}
    for path in record_files(folder):
        record = read_record(path)
        if f"{record.get('name')}-fold{record.get('fold')}" != path.stem:
            raise InputError(f"{path}: it is the record of {record.get('name')} on fold {record.get('fold')}; give it its name back")
        for key in COMMON:
            known_as = {"recipe_sha256": wanted["recipe_toml_sha256"]}.get(key)
            if record.get(key) not in (rounded(wanted[key]), known_as):
                raise InputError(
                    f"{path}: this record belongs to another cross-validation: its {key.removesuffix('_sha256')} is another "
                    f"({_shown(record.get(key))} instead of {_shown(wanted[key])}); choose another folder, or move the record away"
                )
        scored, tolerance = dict(record.get("evaluation") or {}), units[0].tolerance_mm
        if scored.get("tolerance_mm") != tolerance:
            raise InputError(
                f"{path}: its surface Dice has a tolerance of {scored.get('tolerance_mm')} mm, not {tolerance:g}; give the same "
                "tolerance_mm, or choose another folder"
            )
        same = entries.get(str(record["name"]))
        if same and any(record.get(key) != rounded(same[key]) for key in ("network", "settings")):
            raise InputError(
                f"{path}: this record is of another network of the same name ({record.get('network')} with {record.get('settings')}); "
                "give the variant another name"
            )
        if same and record.get("init") != same.get("init"):
            raise InputError(
                f"{path}: the network of this record began with {_begun(record.get('init'))}, not with {_begun(same.get('init'))}; "
                "give the entry another name"
            )
        unit = by_title.get(path.stem)
        if unit and record.get("key") not in (unit.facts["key"], unit.earlier_key):
            raise InputError(f"{path}: this record was made in another way than this call would make it; move it away")
        found[path.stem] = path
    return found


def _begun(init: Any) -> str:
    return f"{init['model']} ({init['weights_sha256'][0][:12]})" if isinstance(init, Mapping) else "fresh weights"


def _shown(value: Any) -> str:
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
