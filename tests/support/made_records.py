"""Records of cross-validations that nobody ran, as `uxnet crossval` writes them."""

import json

import numpy as np

from uxnet.evaluation.scores import RECORD_SCHEMA, RECORD_VERSION

FETA = (
    "external cerebrospinal fluid", "grey matter", "white matter", "ventricles", "cerebellum", "deep grey matter", "brainstem",
)  # fmt: skip
FLARE = ("liver", "kidney", "spleen", "pancreas")
HIPPOCAMPUS = ("Anterior", "Posterior")


def made_record(name, fold, dices, *, classes=HIPPOCAMPUS, network=None, settings=None, dataset="Hippocampus", **more):
    """A record as a dict. dices: case -> Dice of every class, one number for all or one a class; None does not count."""
    cases = []
    for case, dice in dices.items():
        row = dice if isinstance(dice, list | tuple) else [dice] * len(classes)
        values = {
            c: {"dice": d, "hd95_mm": None if d is None else 3.0, "nsd": d, "predicted_ml": 1.0, "reference_ml": 1.0, "outcome": "found"}
            for c, d in zip(classes, row, strict=True)
        }
        cases.append({"case": case, "person": case, "classes": values})
    steps = [100, 200, 300, 400]
    mean = float(np.mean([d for row in dices.values() for d in (row if isinstance(row, list | tuple) else [row]) if d is not None] or [0]))
    curve = [{"step": s, "seconds": s / 10, "dice": mean * (1 - 0.5 * 0.5 ** (s / 100)), "classes": {}} for s in steps]
    record = {
        "schema": RECORD_SCHEMA,
        "version": RECORD_VERSION,
        "name": name,
        "fold": fold,
        "key": f"{name}{fold}",
        "network": network or name,
        "settings": settings if settings is not None else {"size": "narrow"},
        "recipe": "hippocampus",
        "recipe_sha256": "1" * 64,
        "protocol": "5x80-10-10",
        "split_sha256": "2" * 64,
        "dataset": dataset,
        "licence": "CC-BY-SA 4.0",
        "dataset_sha256": "3" * 64,
        "labels_sha256": "4" * 64,
        "budget": {"steps": [400]},
        "keep": "last",
        "parameters": 6_000_000,
        "gmac": 12.5,
        "patch": [32, 48, 32],
        "steps": 400,
        "kept_step": 400,
        "skipped_steps": 0,
        "seconds_training": 40.0,
        "seconds_a_step": 0.1,
        "precision": "float32",
        "curve": curve,
        "peak_memory_mb": 900,
        "peak_gpu_memory_mb": None,
        "threads": 2,
        "machine": {"processor": "any", "instructions": [], "gpus": [], "device": "cpu"},
        "versions": {"uxnet": "0"},
        "evaluation": {"tolerance_mm": 1.0, "empty": "skip", "seconds_a_case": 1.0},
        "warnings": [],
        "cases": cases,
    }
    return record | more


def write_records(out, records):
    """The folder of a cross-validation with these records."""
    (out / "records").mkdir(parents=True, exist_ok=True)
    for record in records:
        (out / "records" / f"{record['name']}-fold{record['fold']}.json").write_text(json.dumps(record))
    return out


def made_trial(out, networks, *, folds=5, each=4, seed=0, **more):
    """A cross-validation: name -> (mean Dice, network, settings), or a mean Dice alone; cases are harder or easier for all alike."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 0.02, folds * each)
    records = []
    for name, given in networks.items():
        mean, network, settings = given if isinstance(given, tuple) else (given, name, None)
        noise = rng.normal(0, 0.002, folds * each)
        for fold in range(folds):
            numbers = range(fold * each, (fold + 1) * each)
            dices = {f"case_{n:02d}": round(float(np.clip(mean + hard[n] + noise[n], 0, 1)), 6) for n in numbers}
            records.append(made_record(name, fold, dices, network=network, settings=settings, **more))
    return write_records(out, records)
