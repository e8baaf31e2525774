"""What a cross-validation's records say together: summary.json and README.md, made anew from all that are there."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uxnet.evaluation.compare import Comparison, compare
from uxnet.evaluation.compare_text import markdown_table, to_dict, to_markdown
from uxnet.evaluation.scores import COMMON, Scores, differences, read_scores, record_files
from uxnet.io import atomic, write_json
from uxnet.io.checked import read_as
from uxnet.io.schemas import Folds

_MEDIANS = ("steps", "seconds_training", "seconds_a_step", "peak_memory_mb", "peak_gpu_memory_mb")


def write_summary(out: Path) -> None:
    """Writes out/summary.json and out/README.md, if there is any record."""
    if not record_files(out / "records"):
        return
    scores = read_scores([out])
    comparison = compared(scores)
    first = scores[0].records[0]
    summary = {
        "dataset": first["dataset"],
        "recipe": first["recipe"],
        "protocol": first["protocol"],
        **{key: first[key] for key in COMMON},
        "missing_folds": missing_folds(folds_of(out), scores),
        "networks": [cost(s) for s in scores],
        "comparison": None if comparison is None else to_dict(comparison),
    }
    write_json(out / "summary.json", summary)
    with atomic(out / "README.md") as temporary:
        temporary.write_text(_page(scores, comparison, first, incomplete(out, scores)), encoding="utf-8")


def compared(scores: Sequence[Scores]) -> Comparison | None:
    """Their comparison; None before all networks have a fold in common."""
    return compare(scores) if set.intersection(*(set(s.cases) for s in scores)) else None


def folds_of(out: Path) -> int:
    """How many folds a cross-validation has."""
    return len(read_as(out / "split.json", Folds).folds)


def missing_folds(folds: int, scores: Sequence[Scores]) -> dict[str, list[int]]:
    """Network -> the folds, of so many, that it has no record of; networks that have all are left out."""
    missing = {s.name: [fold for fold in range(folds) if fold not in [r["fold"] for r in s.records]] for s in scores}
    return {name: folds for name, folds in missing.items() if folds}


def incomplete(out: Path, scores: Sequence[Scores]) -> str:
    """What is missing, in words; empty where every network has a record of every fold."""
    folds = folds_of(out)
    missing = missing_folds(folds, scores)
    if not missing:
        return ""
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, lacking in missing.items():
        alike.setdefault(tuple(lacking), []).append(name)
    told = [f"{', '.join(names)} on {_folds(lacking)}" for lacking, names in alike.items()]
    there = sorted({r["fold"] for s in scores for r in s.records})
    return f"Not complete: {_folds(there)} of {folds}; missing: {'; '.join(told)}."


def _folds(numbers: Sequence[int]) -> str:
    return f"fold{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def cost(scores: Scores) -> dict[str, Any]:
    """What a network is and what it took: medians over its folds."""
    first = scores.records[0]
    medians = {}
    for key in _MEDIANS:
        values = [r[key] for r in scores.records if r.get(key) is not None]
        medians[key] = statistics.median(values) if values else None
    return {
        "name": scores.name,
        "network": first["network"],
        "settings": first["settings"],
        **({"init": first["init"]} if first.get("init") else {}),
        "folds": [r["fold"] for r in scores.records],
        "cases": len(scores.cases),
        "parameters": first["parameters"],
        "gmac": first["gmac"],
        **medians,
        "skipped_steps": sum(r["skipped_steps"] for r in scores.records),
        "warnings": sum(len(r["warnings"]) for r in scores.records),
    }


def cost_rows(scores: Sequence[Scores], short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of costs; a `short` one is without the networks' settings."""
    head = [
        "network",
        *([] if short else ["settings"]),
        "folds",
        "cases",
        "parameters",
        "GMac",
        "steps",
        "s a step",
        "min training",
        "peak MB",
        "warnings",
    ]
    rows = []
    for c in map(cost, scores):
        settings = ", ".join(f"{key} = {value}" for key, value in c["settings"].items())
        what = c["network"] if c["network"] != c["name"] else ""
        settings += f"; begins with {c['init']['model']}" if "init" in c else ""
        rows.append(
            [
                c["name"],
                *([] if short else [": ".join(filter(None, (what, settings))) or "-"]),
                ", ".join(map(str, c["folds"])),
                str(c["cases"]),
                f"{c['parameters']:,}",
                f"{c['gmac']:.2f}",
                f"{c['steps']:g}",
                "-" if c["seconds_a_step"] is None else f"{c['seconds_a_step']:.3g}",
                f"{c['seconds_training'] / 60:.1f}",
                "-" if c["peak_memory_mb"] is None else f"{c['peak_memory_mb']:g}",
                str(c["warnings"]),
            ]
        )
    return head, rows


def equal_terms(scores: Sequence[Scores]) -> str:
    """What was the same for all networks of a cross-validation, which of them begin with the weights of a model, and what their records
    were made with where that differs, in words.
    """
    first = scores[0].records[0]
    budget = first["budget"]
    if "core_seconds" in budget:
        threads = budget["threads"]
        spent = (
            f"{budget['core_seconds']:g} core-seconds of training ({threads} thread{'' if threads == 1 else 's'}, validations included), "
            "turned into steps by measuring some before the first"
        )
    else:
        spent = f"{' and '.join(map(str, budget['steps']))} step{'' if budget['steps'] == [1] else 's'}"
    kept = "of the last step" if first["keep"] == "last" else "of the best validation"
    kept_whole = ", persons kept whole" if all(s.persons for s in scores) else ""
    same = (
        f"The same for all networks: cases and folds (`split.json`, {first['protocol']}{kept_whole}), and of the recipe "
        f"`{first['recipe']}` (`recipe.toml`) everything but the network: preparation, patches, augmentation, loss, optimiser, schedule, "
        f"seed. The budget of each is {spent}. The weights that are tested are those {kept}; {_used(first)}."
    )
    begun = [_begins(s.name, s.records[0]["init"]) for s in scores if s.records[0].get("init")]
    return " ".join([same, *begun, *differences(scores)])


def _used(record: Mapping[str, Any]) -> str:
    """What else the cases were used for on which a record's scores rest."""
    if record.get("scored") == "validation":
        return "the validation cases of each fold are those that are scored: they gave its curve as well, and nothing was chosen on them"
    return "a fold's test cases are used for nothing else"


def _begins(name: str, init: Mapping[str, Any]) -> str:
    data = f", trained on {init['dataset']}" if init["dataset"] else ""
    whose = f"recipe {init['recipe']}{data}; SHA-256 {init['weights_sha256'][0][:12]}"
    return f"{name} begins with the weights of {init['model']} ({whose}), whose training is not in its budget."


def _page(scores: Sequence[Scores], comparison: Comparison | None, first: Mapping[str, Any], missing: str) -> str:
    title = f"# Cross-validation on {first['dataset']}\n\n"
    text = title + f"{equal_terms(scores)}\n\nMade by `uxnet crossval` from the files in `records/`.\n"
    if missing:
        text += f"\n{missing}\n"
    text += (
        f"\n## What they took\n\n{markdown_table(*cost_rows(scores))}\n"
        f"GMac: 1e9 multiply-accumulates of a patch of {'x'.join(map(str, first['patch']))} while training. Steps, times and memory "
        "(resident, of the unit's process) are medians over folds.\n\n"
    )
    if comparison is not None:
        return text + to_markdown(comparison)
    return text
