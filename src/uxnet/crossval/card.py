"""A model and what was measured become a file for the box and its card.

What can be read is read: structures, training and split from the model, scores with intervals and the worst cases from records of
`uxnet crossval` or a file of `uxnet evaluate`. What cannot (title, intended use, limits, how crops are found in whole scans) is a TOML
file of facts, whose keys are the card's.
"""

from __future__ import annotations

import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uxnet.errors import InputError, ModelError, RecipeError
from uxnet.evaluation.metrics import METRICS
from uxnet.evaluation.scores import MEAN, Scores, read_scores
from uxnet.evaluation.statistics import bootstrap_mean, mean_of_counted
from uxnet.io import atomic, sha256
from uxnet.model.catalogue import MOST_BYTES, Card, Evaluation, Failure, Score, Training, write_card
from uxnet.model.file import Model, cases_seen, read_model, read_weights, seen_by, variants, write_model
from uxnet.recipe import from_plain, to_plain

_WORST = 5
_DIGITS = 4


def make_card(name: str, model: Path, records: Sequence[str], facts: Path, out: Path, *, half: bool = False, worst: int = _WORST) -> Card:
    """Puts a model and its card into a folder, as `out`/NAME.uxnet and NAME.toml.

    Args:
        name: in the box.
        model: the file.
        records: what `read_scores` takes; all of one network.
        facts: TOML, with keys of `Card`. `[failures]` may say of a case what went wrong, in other words than the volumes'.
        half: store weights in 16 bits, a file of half the size. They are computed with as before.
        worst: how many of the worst cases the card names.

    Raises:
        InputError: if facts or records cannot be read or are not about this model, the file is too large for the box, or `half` would
            lose its variants.
        ModelError: if the model cannot be read, or has numbers that 16 bits cannot hold.
    """
    if not name.isidentifier():
        raise InputError(f"{name!r}: a name in the box is a word of letters, digits and _")
    described, said = read_model(model), _read_facts(facts)
    if half and variants(described):
        raise InputError(
            f"{model}: its int8 variants were made of weights that are not rounded, and would be lost by half=True; leave it out, or name "
            "the model without variants"
        )
    scores = _of_one_network(read_scores(records), described)
    told = dict(said.get("failures", {}))
    target = out / f"{name}.uxnet"
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / target.name
        _halved(described, stored) if half else shutil.copyfile(model, stored)
        if stored.stat().st_size > MOST_BYTES:
            hint = "" if half else "; half=True stores its weights in half the bytes"
            size = stored.stat().st_size / 1e6
            raise InputError(f"{model}: {size:.1f} MB, and models in the box are of at most {MOST_BYTES / 1e6:g} MB{hint}")
        card = _card(described, said, _evaluation(scores, described, told, worst), sha256(stored), half)
        # The card takes its place first, and the model only if it did: without room for both, what was there stays. If the process dies
        # between the two, the card's hash is not the model's, which is noticed.
        with atomic(target) as temporary:
            shutil.copyfile(stored, temporary)
            write_card(target.with_suffix(".toml"), card)
    return card


def _card(model: Model, said: Mapping[str, Any], evaluation: Evaluation, content: str, half: bool) -> Card:
    read = {
        "sha256": content,
        "structures": model.labels.classes,
        "data": _data(model) | said.get("data", {}),
        "training": to_plain(_training(model, half)),
        "evaluation": to_plain(evaluation),
    }
    try:
        card: Card = from_plain(Card, {key: value for key, value in said.items() if key != "failures"} | read)
    except RecipeError as error:
        raise InputError(f"the facts of the card: {error}") from error
    return card


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as the facts of a card ({error})") from error


def _of_one_network(found: Sequence[Scores], model: Model) -> Scores:
    """The scores of the model's network; several networks may have been tested together.

    Raises:
        InputError: if there are none, or of several, or of other structures.
    """
    from uxnet.networks.build import other_settings  # its room imports torch

    network = model.recipe.stages[0].network
    settings = dict(network.settings)

    def of_model(record: Mapping[str, Any]) -> bool:
        return record.get("network") == network.name and not other_settings(network.name, dict(record.get("settings") or {}), settings)

    own = [s for s in found if not s.records or of_model(s.records[0])]
    if len(own) != 1:
        names = ", ".join(s.name for s in found)
        raise InputError(f"{len(own)} of the scored networks ({names}) are {network.name} {settings}, the model's; name the records of one")
    if own[0].classes != model.labels.classes:
        raise InputError(f"the records score {', '.join(own[0].classes)}, the model segments {', '.join(model.labels.classes)}")
    return own[0]


def _evaluation(scores: Scores, model: Model, told: Mapping[str, str], worst: int) -> Evaluation:
    persons = {case: scores.persons.get(case, case) for case in scores.cases}
    several = len(set(persons.values())) < len(persons)
    means = {case: scores.value(case) for case in scores.cases}
    failing = sorted((dice, case) for case, dice in means.items() if dice is not None)[:worst]
    return Evaluation(
        what=_relation(scores, model),
        cases=len(scores.cases),
        persons=len(set(scores.persons.values())),
        by="person" if several else "case",
        tolerance_mm=scores.tolerance_mm,
        scores=tuple(_score(name, scores, persons) for name in (*scores.classes, MEAN)),
        failures=tuple(Failure(case, round(dice, _DIGITS), told.get(case) or _what(case, scores)) for dice, case in failing),
    )


def _score(name: str, scores: Scores, persons: Mapping[str, str]) -> Score:
    """A structure's means with their intervals: over persons, each the mean of its cases, since two sides of one are alike."""
    found = {}
    for metric in METRICS:
        gathered: dict[str, list[float | None]] = {}
        for case in scores.cases:
            gathered.setdefault(persons[case], []).append(scores.value(case, metric, name))
        interval = bootstrap_mean(mean_of_counted(values) for values in gathered.values())
        found[metric] = tuple(round(value, _DIGITS) for value in interval if value is not None)
    return Score(name, **found)


def _relation(scores: Scores, model: Model) -> str:
    """How the scored cases stand to those that the model was trained on, in words."""
    trained = model.provenance.get("split", {}).get("train")
    # What uxnet evaluate scored has no dataset, only names.
    of_records = [(record.get("dataset"), record.get("dataset_sha256")) for record in scores.records]
    datasets = of_records or [(part["dataset"], part["fingerprint"]) for part in seen_by([model])]
    seen = len(scores.cases.keys() & {case for dataset in datasets for case in cases_seen(model, *dataset)})
    folds = len(scores.records)
    siblings = f"{folds} models of the same recipe, each on test cases of a fold"
    by = siblings if folds > 1 else "one model, on test cases of a fold" if folds else "uxnet evaluate"
    if trained is None:
        return f"Measured with {by}. Whether the model in the box was trained on any of these cases is not known."
    if not seen:
        return f"Measured with {by}. The model in the box was trained on none of these cases."
    return (
        f"Measured with {by}. The model in the box was trained on {seen} of these {len(scores.cases)} cases: "
        "the scores are those of its siblings, and an estimate of its own."
    )


def _what(case: str, scores: Scores) -> str:
    """What went wrong, as far as numbers say it: of the worst structure its Dice, and its volume beside the reference's."""
    values = scores.cases[case]
    dices = {c: values[c]["dice"] for c in scores.classes}
    _, name = min((1.0 if dice is None else dice, c) for c, dice in dices.items())
    rows = [row["classes"][name] for record in scores.records for row in record["cases"] if row["case"] == case]
    text = f"{name}: Dice {dices[name] or 0:.3f}"
    if values[name]["hd95_mm"] is not None:
        text += f", HD95 {values[name]['hd95_mm']:.1f} mm"
    if rows and rows[0].get("reference_ml") and rows[0].get("predicted_ml") is not None:
        text += f", {rows[0]['predicted_ml']:.2f} ml where the reference has {rows[0]['reference_ml']:.2f} ml"
    return text


def _data(model: Model) -> dict[str, Any]:
    dataset, split = model.provenance.get("dataset", {}), model.provenance.get("split", {})
    return {"name": dataset.get("name", "unknown"), "licence": dataset.get("licence") or "not stated", "cases": len(split.get("train", []))}


def _training(model: Model, half: bool) -> Training:
    stages = model.recipe.stages
    split = model.provenance.get("split", {})
    counts = {part: len(split.get(part, [])) for part in ("train", "validation", "test")}
    words = ", ".join(f"{count} {part}" for part, count in counts.items() if count)
    fold = f"fold {split['fold']}: " if "fold" in split else ""
    ran = model.provenance.get("stages", [model.provenance])
    return Training(
        recipe=model.recipe.name,
        network=stages[0].network.name,
        parameters=sum(int(stage["parameters"]) for stage in model.description["stages"]),
        steps=tuple(int(r.get("training", {}).get("steps", s.training.steps)) for r, s in zip(ran, stages, strict=True)),
        batch=tuple(stage.training.batch for stage in stages),
        precision=str(model.provenance.get("precision", "unknown")),
        split=f"{fold}{words or 'not known'}",
        weights="float16" if half else "float32",
    )


def _halved(model: Model, path: Path) -> None:
    """The model with its weights rounded to 16 bits."""
    stages = []
    for stage in range(len(model.recipe.stages)):
        tensors = read_weights(model, stage)
        with np.errstate(over="ignore"):
            halved = {key: array.astype(np.float16) if array.dtype == np.float32 else array for key, array in tensors.items()}
        broken = [key for key, array in halved.items() if not np.isfinite(array).all()]
        if broken:
            raise ModelError(f"{model.path}: {broken[0]} holds numbers that 16 bits cannot; leave out half=True")
        stages.append(halved)
    provenance = {**model.provenance, "weights": "rounded to float16"}
    write_model(path, stages, recipe=model.recipe, labels=model.labels, channels=model.channels, provenance=provenance)
