"""What is fuzzed: sound files, made here, and what the commands do when they read them."""

from __future__ import annotations

import functools
import inspect
import json
import random
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from fuzz_changes import changed_bytes, changed_json, changed_nifti, changed_toml

from uxnet.geometry import Geometry
from uxnet.io import read_geometry, read_image, read_labels, read_labels_file, write_image, write_json, write_labels
from uxnet.labels import Label, Labels
from uxnet.recipe import load_recipe, recipe_from_dict, recipe_to_dict, recipe_to_toml, with_overrides
from uxnet.volume import Volume

SETTINGS = {"widths": [2, 4], "depths": [1, 1], "hidden": 4, "kernel": 3}
STAGE = {
    "network": {"name": "uxnet", "settings": SETTINGS},
    "prepare": {"intensity": [{"scale": "zscore"}]},
    "sampling": {"patch": [8, 8, 8]},
    "training": {"steps": 4, "batch": 1, "validate_every": 2, "precision": "float32", "hours": 0.5},
    "inference": {"overlap": 0.0},
}
LABELS = Labels((Label("left a", 1), Label("right a", 2)), pairs=(("left a", "right a"),))
NAMES = [f"c{n}" for n in range(5)]
SIZES = (0, -1, 1, 2, 3, 8, 64, 4096, 10**6, 10**9, 2**31, 10**18, 0.5, True, "", [8, 8, 8], [4096] * 3, [10**6] * 4, [2, 2, 2, 10**9])


@dataclass(frozen=True)
class Target:
    """A folder of sound files, what changes a copy of it, and what reads that."""

    name: str
    base: Path
    change: Callable[[random.Random, Path], None]
    read: Callable[[Path], object]


def _json_target(folder: Path, file: str, read: Callable[[Path], object], name: str = "") -> Target:
    return Target(name or Path(file).name, folder, lambda rng, work: _change_json(rng, work / file), read)


def _change_json(rng: random.Random, path: Path) -> None:
    if path.suffix != ".jsonl":
        path.write_bytes(changed_json(rng, json.loads(path.read_text())))
        return
    lines = path.read_bytes().splitlines()
    for n in rng.sample(range(len(lines)), min(len(lines), rng.choice((1, 2)))):
        lines[n] = changed_json(rng, json.loads(lines[n]))
    path.write_bytes(b"\n".join(lines) + b"\n")


def _change_bytes(rng: random.Random, path: Path) -> None:
    path.write_bytes(changed_bytes(rng, path.read_bytes()))


# ---- NIfTI


def nifti(folder: Path) -> list[Target]:
    """An image and a label map, packed or not."""
    folder.mkdir(parents=True)
    _scan(folder / "image.nii", seed=1)
    _label_map(folder / "labels.nii")

    def change(file: str, rng: random.Random, work: Path) -> None:
        blob = changed_nifti(rng, (work / file).read_bytes())
        (work / f"{file}{'.gz' if blob[:1] == bytes([31]) else ''}").write_bytes(blob)

    def read(file: str, reader: Callable, work: Path) -> None:
        path = work / f"{file}.gz"
        reader(path if path.exists() else work / file)

    readers = {"image": ("image.nii", read_image), "labels": ("labels.nii", read_labels), "geometry": ("image.nii", read_geometry)}
    return [Target(n, folder, functools.partial(change, f), functools.partial(read, f, r)) for n, (f, r) in readers.items()]


def _scan(path: Path, seed: int, shape: tuple[int, int, int] = (10, 11, 12)) -> None:
    geometry = Geometry(shape, np.diag([1.0, 1.0, 1.5, 1.0]))
    write_image(path, Volume(np.random.default_rng(seed).normal(50, 20, (1, *shape)).astype(np.float32), geometry))


def _label_map(path: Path, shape: tuple[int, int, int] = (10, 11, 12)) -> None:
    array = np.zeros((1, *shape), np.uint8)
    array[0, 2:5, 2:6, 3:7], array[0, 6:9, 3:7, 4:8] = 1, 2
    write_labels(path, Volume(array, Geometry(shape, np.diag([1.0, 1.0, 1.5, 1.0]))))


# ---- models


def _write_model(path: Path) -> None:
    import torch

    from uxnet.model.file import write_model
    from uxnet.networks.build import build

    torch.manual_seed(0)
    recipe = recipe_from_dict({"name": "tiny", "stages": [STAGE]})
    weights = {key: value.numpy() for key, value in build("uxnet", 1, LABELS.out_channels, settings=SETTINGS).state_dict().items()}
    provenance = {
        "versions": {"uxnet": "0"},
        "precision": "float32",
        "dataset": {"name": "Tiny", "licence": "CC0", "fingerprint": {"sha256": "1" * 64}},
        "split": {"fold": 0, "train": ["a"], "validation": ["b"], "test": []},
        "training": {"step": 4, "steps": 4, "skipped": 0, "seconds": 1.5},
        "validation": {"dice": 0.5, "classes": {"left a": 0.5, "right a": None}},
        "seen": [{"dataset": "Other", "fingerprint": None, "cases": ["z"]}],
    }
    write_model(path, [weights], recipe=recipe, labels=LABELS, channels=["MR"], provenance=provenance)


def models(folder: Path) -> list[Target]:
    """A model file: its description changed, or its bytes."""
    from uxnet.networks.build import NETWORKS, architecture

    folder.mkdir(parents=True)
    _write_model(folder / "model.uxnet")
    settings = {name: list(inspect.signature(architecture(name).network).parameters)[2:] for name in NETWORKS}

    def described(rng: random.Random, work: Path) -> None:
        path = work / "model.uxnet"
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts["model.json"] = changed_json(rng, json.loads(parts["model.json"]))
        with zipfile.ZipFile(path, "w") as archive:
            for name, blob in parts.items():
                archive.writestr(name, blob)

    def recipes(rng: random.Random, work: Path) -> None:
        """The recipe in the description: what the network is built from."""
        path = work / "model.uxnet"
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        description = json.loads(parts["model.json"])
        marker = json.dumps("\N{BLACK SQUARE}recipe")
        if rng.random() < 0.5:  # any network, with settings of its own
            name = rng.choice(list(settings))
            own = {key: rng.choice(SIZES) for key in settings[name] if rng.random() < 0.3}
            description["recipe"]["stages"][0]["network"] = {"name": name, "settings": own}
            recipe = json.dumps(description["recipe"]).encode()
        else:
            recipe = changed_json(rng, description["recipe"])
        description["recipe"] = "\N{BLACK SQUARE}recipe"
        parts["model.json"] = json.dumps(description).encode().replace(marker.encode(), recipe)
        with zipfile.ZipFile(path, "w") as archive:
            for name, blob in parts.items():
                archive.writestr(name, blob)

    def read(work: Path) -> None:
        from uxnet.inference.segmenter import load_model
        from uxnet.model.file import cases_seen, read_model, seen_by, variants

        model = read_model(work / "model.uxnet")
        variants(model)
        seen_by([model])
        cases_seen(model, "Tiny")
        load_model(work / "model.uxnet", engine="torch", device="cpu", precision="float32", threads=1)

    return [
        Target("model.json", folder, described, read),
        Target("recipe in a model", folder, recipes, read),
        Target("bytes of a model", folder, lambda rng, work: _change_bytes(rng, work / "model.uxnet"), read),
    ]


# ---- recipes


def recipes(folder: Path) -> list[Target]:
    """TOML of a small recipe and of those that are bundled, and values given for single keys."""
    folder.mkdir(parents=True)
    for name in ("phantom", "hippocampus-rapnet", "feta2021-paper"):
        (folder / f"{name}.toml").write_text(recipe_to_toml(load_recipe(name)), encoding="utf-8")

    def change(rng: random.Random, work: Path) -> None:
        path = rng.choice(sorted(work.glob("*.toml")))
        path.rename(work / "mine.toml")
        (work / "mine.toml").write_bytes(changed_toml(rng, tomllib.loads((work / "mine.toml").read_text(encoding="utf-8"))))

    def read(work: Path) -> None:
        recipe = load_recipe(work / "mine.toml")
        recipe_to_toml(with_overrides(recipe, ["training.steps=3"]))
        recipe_from_dict(recipe_to_dict(recipe))

    def override(rng: random.Random, work: Path) -> None:
        blob = changed_toml(rng, {"training": {"steps": 3, "hours": 0.5}, "sampling": {"patch": [8, 8, 8]}})
        (work / "override").write_bytes(blob)

    def read_override(work: Path) -> None:
        lines = (work / "override").read_text(encoding="utf-8", errors="replace").splitlines()
        keys = ("training.steps", "sampling.patch", "network.settings.kernel", "stages.0.training.hours")
        with_overrides(load_recipe("phantom"), [f"{key}={line.partition('=')[2]}" for key, line in zip(keys, lines, strict=False)])

    return [Target("recipe.toml", folder, change, read), Target("overrides", folder, override, read_override)]


# ---- JSON


def jsons(folder: Path) -> list[Target]:
    """Every JSON file that a command reads."""
    data = _dataset(folder / "data")
    _write_model(folder / "model.uxnet")
    return [
        *_of_datasets(folder, data),
        *_of_scores(folder),
        *_of_predictions(folder, data),
        *_of_runs(folder, data),
        *_of_caches(folder, data),
    ]


def _dataset(root: Path) -> Path:
    for n, name in enumerate(NAMES):
        _scan(root / "imagesTr" / f"{name}.nii.gz", n)
        _label_map(root / "labelsTr" / f"{name}.nii.gz")
    cases = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in NAMES]
    labels = {"0": "background", "1": "left a", "2": "right a"}
    described = {"name": "Tiny", "licence": "CC0", "reference": "none", "modality": {"0": "MR"}, "labels": labels, "numTraining": 5}
    write_json(root / "dataset.json", {**described, "colours": {"left a": [1, 2, 3]}, "training": cases, "merged": {"1": 1, "2": 1}})
    return root


def _of_datasets(folder: Path, data: Path) -> list[Target]:
    from uxnet.cohort.scans import find_scans
    from uxnet.crossval.summary import folds_of
    from uxnet.dataset.folds import make_split, read_split, write_split
    from uxnet.dataset.manifest import read_dataset
    from uxnet.demo.phantoms import _claim as claim_phantoms
    from uxnet.demo.phantoms import _description
    from uxnet.synthesis.folder import _claim as claim_synthetic
    from uxnet.synthesis.folder import find_label_maps
    from uxnet.synthesis.merging import choose_merge, merge_from_file

    manifest = read_dataset(data)
    plain = folder / "plain"
    raw = folder / "nnunet"
    for name in NAMES:
        _scan(raw / "imagesTr" / f"{name}_0000.nii.gz", 1)
        _label_map(raw / "labelsTr" / f"{name}.nii.gz")
    labels = {"background": 0, "whole": [1, 2], "right a": [2]}
    ours = {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz", "numTraining": 5}
    write_json(raw / "dataset.json", ours)
    write_json(data / "subjects.json", {name: f"p{name}" for name in NAMES})
    write_json(plain / "labels.json", LABELS.to_dict())
    write_json(plain / "merge.json", {"names": {"1": "both"}, "map": {"1": 1, "2": 1}})
    write_json(plain / "scans.json", {"one": "a.nii.gz", "two": ["a.nii.gz", "b.nii.gz"]})
    write_json(plain / "channels.json", {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "a"}})
    write_split(plain / "split.json", make_split(manifest, {}))
    said = {"schema": 1, "edition": 1, "source": "Tiny", "seed": 0, "spacing_mm": None, "settings": {"noise": [0.0, 1.0]}}
    said |= {"merge": {"names": {"1": "a"}, "map": {"1": 1}}, "freesurfer": False, "mirrored": False, "stripped": False}
    said["maps"] = {"a": "1" * 64}
    write_json(folder / "synthetic" / "synthesis.json", said)
    (folder / "phantoms").mkdir()
    write_json(folder / "phantoms" / "dataset.json", _description(folder / "phantoms", 0))

    def merged(work: Path) -> None:
        find_label_maps(work)
        for given in (None, "merged"):
            choose_merge(work, given, (), [0, 1, 2])

    def split(work: Path) -> None:
        folds_of(work)
        read_split(work / "split.json", manifest)

    return [
        _json_target(data, "dataset.json", read_dataset),
        _json_target(data, "dataset.json", merged, "dataset.json of label maps"),
        _json_target(data, "subjects.json", read_dataset),
        _json_target(raw, "dataset.json", read_dataset, "dataset.json of nnU-Net"),
        _json_target(plain, "labels.json", lambda work: read_labels_file(work / "labels.json")),
        _json_target(plain, "merge.json", lambda work: merge_from_file(work / "merge.json")),
        _json_target(plain, "scans.json", lambda work: find_scans([work / "scans.json"], 2)),
        _json_target(plain, "channels.json", _convert),
        _json_target(plain, "split.json", split),
        _json_target(folder / "synthetic", "synthesis.json", lambda work: claim_synthetic(work, said)),
        _json_target(folder / "phantoms", "dataset.json", lambda work: claim_phantoms(work, 0), "dataset.json of phantoms"),
    ]


def _convert(work: Path) -> None:
    from uxnet.convert.convert import _channels, _labels

    _channels(work / "channels.json", None, 2, _nothing)
    _labels(work / "channels.json", 2, _nothing)


def _nothing(_: object) -> None:
    """A report."""


def _record(name: str, fold: int, cases: Sequence[str], dice: float) -> dict:
    scored = {"dice": dice, "hd95_mm": 1.0, "nsd": dice, "predicted_ml": 1.0, "reference_ml": 1.0, "outcome": "found"}
    hashes = dict.fromkeys(("recipe_sha256", "split_sha256", "dataset_sha256", "labels_sha256"), "1" * 64)
    curve = [{"step": 2, "seconds": 1.0, "dice": 0.5, "classes": {"left a": 0.5}}, {"step": 4, "seconds": 2.0, "dice": 0.6, "classes": {}}]
    return {
        "schema": "uxnet crossval record", "version": 1, "name": name, "fold": fold, "key": "1" * 64, "network": name,
        "settings": {"kernel": 3}, "recipe": "tiny", **hashes, "protocol": "5x80-10-10", "dataset": "Tiny", "licence": "CC0",
        "budget": {"core_seconds": 60.0, "threads": 1, "validations": "included"}, "keep": "last", "parameters": 1000, "gmac": 1.5,
        "patch": [8, 8, 8], "steps": 4, "kept_step": 4, "skipped_steps": 0, "seconds_training": 3.5, "seconds_a_step": 0.5,
        "precision": "float32", "curve": curve, "peak_memory_mb": 300, "peak_gpu_memory_mb": None, "threads": 1,
        "machine": {"processor": "any", "instructions": ["avx2"], "gpus": [], "device": "cpu"}, "versions": {"uxnet": "0", "torch": "2"},
        "init": {"model": "m.uxnet", "weights_sha256": ["2" * 64], "recipe": "tiny", "dataset": "Other"},
        "evaluation": {"tolerance_mm": 1.0, "empty": "skip", "seconds_a_case": 0.1}, "warnings": ["one"],
        "cases": [{"case": case, "person": f"p{case}", "classes": {"left a": scored, "right a": scored}} for case in cases],
    }  # fmt: skip


def _of_scores(folder: Path) -> list[Target]:
    from uxnet.crossval.best_fold import model_to_begin_with
    from uxnet.crossval.summary import write_summary
    from uxnet.evaluation import evaluate_pairs
    from uxnet.evaluation.compare import compare
    from uxnet.evaluation.compare_text import to_dict, to_markdown
    from uxnet.evaluation.evaluate import write_evaluation
    from uxnet.evaluation.scores import read_scores
    from uxnet.paper.records import read_trials, settings_text, stars

    cv = folder / "cv"
    for name, dice in (("uxnet", 0.8), ("unet", 0.7)):
        for fold in (0, 1):
            write_json(cv / "records" / f"{name}-fold{fold}.json", _record(name, fold, [f"c{fold}", f"d{fold}", f"e{fold}"], dice))
            (cv / "runs" / f"{name}-fold{fold}").mkdir(parents=True)
            (cv / "runs" / f"{name}-fold{fold}" / "model.uxnet").write_bytes(b"")
    write_json(cv / "split.json", {"folds": [{"train": ["a"], "validation": ["b"], "test": ["c"]}] * 2})
    evaluated = folder / "evaluated"
    pairs = []
    for name in NAMES:
        _label_map(folder / "maps" / f"{name}.nii.gz")
        pairs.append((name, folder / "maps" / f"{name}.nii.gz", folder / "maps" / f"{name}.nii.gz"))
    for name in ("one", "two"):
        (evaluated / name).mkdir(parents=True)
        write_evaluation(evaluated / name / "metrics.json", evaluate_pairs(pairs, LABELS))

    def compared(work: Path) -> None:
        found = compare(read_scores([work / "one", work / "two"]))
        json.dumps(to_dict(found), allow_nan=False)
        to_markdown(found)

    def summary(work: Path) -> None:
        write_summary(work)

    def best(work: Path) -> None:
        model_to_begin_with(work / "uxnet")

    def trials(work: Path) -> None:
        for trial in read_trials({"": [work]}):
            stars(trial, trial.scores)
            trial.terms()
            for scores in trial.scores:
                settings_text(scores)

    record = "records/uxnet-fold0.json"
    return [
        _json_target(evaluated, "one/metrics.json", compared),
        _json_target(cv, record, summary, "record, summary"),
        _json_target(cv, record, best, "record, best fold"),
        _json_target(cv, record, trials, "record, the paper's tables"),
        _json_target(cv, "split.json", summary, "split.json, summary"),
    ]


def _of_predictions(folder: Path, data: Path) -> list[Target]:
    from uxnet.cohort.run import predict
    from uxnet.cohort.scans import find_scans
    from uxnet.evaluation.evaluate import evaluate_files
    from uxnet.inference.segmenter import load_model, load_segmenter

    segmenter = load_model(folder / "model.uxnet", engine="torch", device="cpu", precision="float32", threads=1)
    other = load_segmenter([folder / "model.uxnet"], replace(segmenter.settings, largest=("left a",)))
    scans = find_scans([data / "imagesTr"], 1)
    out = folder / "predicted"
    predict(segmenter, scans[:2], out, report=_nothing)

    def again(work: Path) -> None:
        predict(segmenter, scans[:2], work, report=_nothing)

    def more(work: Path) -> None:
        predict(segmenter, scans[2:3], work, report=_nothing)

    def otherwise(work: Path) -> None:
        predict(other, scans[:2], work, report=_nothing)

    def evaluated(work: Path) -> None:
        evaluate_files(work, data / "labelsTr", report=_nothing)

    return [
        _json_target(out, "predict.jsonl", again),
        _json_target(out, "predict.jsonl", otherwise, "predict.jsonl, other settings"),
        _json_target(out, "predict.json", more),
        _json_target(out, "predict.json", evaluated, "predict.json, evaluate"),
        _json_target(out, "labels.json", more, "labels.json of predictions"),
        _json_target(out, "labels.json", evaluated, "labels.json of predictions, evaluate"),
    ]


def _of_runs(folder: Path, data: Path) -> list[Target]:
    from uxnet.crossval.unit import _peaks, curve, seconds_a_step
    from uxnet.dataset.check import check_dataset
    from uxnet.dataset.manifest import read_dataset
    from uxnet.io.records import append_record, keep_records, read_records
    from uxnet.io.schemas import MetricsLine, WarningLine
    from uxnet.paper.setup import overview_table
    from uxnet.training.budget import within_budget
    from uxnet.training.content import refuse_changed_cases
    from uxnet.training.loop import RunFiles
    from uxnet.training.progress import draw_curves
    from uxnet.training.run import _refuse_another_beginning
    from uxnet.training.watch import never_found, stalled_message, summary_rows

    run = folder / "run"
    inspection = check_dataset(read_dataset(data))
    write_json(run / "inspection.json", inspection.to_dict())
    for step in range(1, 5):
        line = {
            "kind": "step",
            "step": step,
            "loss": 1.0 / step,
            "learning_rate": 0.1,
            "gradient_norm": 1.0,
            "skipped": 0,
            "seconds": step / 2,
        }
        append_record(run / "metrics.jsonl", line)
        if step % 2 == 0:
            scored = {"left a": 0.5, "right a": None}
            append_record(
                run / "metrics.jsonl", {"kind": "validation", "step": step, "dice": 0.5, "classes": scored, "cases": {"c0": scored}}
            )
    write_json(run / "budget.json", {"hours": 0.5, "steps": 4, "seconds_a_step": 0.5, "seconds_a_validation": 0.5})
    stage = {"weights_sha256": "1" * 64, "summary": "all", "copied": ["a"], "adapted": {}, "fresh": {}, "skipped": []}
    write_json(run / "transfer.json", {"model": "m.uxnet", "sha256": "2" * 64, "summary": "all", "stages": [stage], "seen": []})
    write_json(run / "memory.json", {"peak_memory_mb": 300, "peak_gpu_memory_mb": None})
    append_record(run / "warnings.jsonl", {"message": "one"})
    (run / "recipe.toml").write_text(recipe_to_toml(recipe_from_dict({"name": "tiny", "stages": [STAGE]})))
    (recipe,) = recipe_from_dict({"name": "tiny", "stages": [STAGE]}).stages

    def metrics(work: Path) -> None:
        path = work / "metrics.jsonl"
        keep_records(path, lambda record: record["step"] <= 4, MetricsLine, _nothing)
        records = read_records(path, MetricsLine)
        summary_rows(records, 2)
        seconds_a_step(records)
        curve(records)
        scored = [record for record in records if record["kind"] == "validation"]
        never_found([record["classes"] for record in scored], 0.5)
        stalled_message([record["dice"] for record in scored])

    def drawn(work: Path) -> None:
        draw_curves(work / "curves.png", read_records(work / "metrics.jsonl", MetricsLine), "run")

    def budget(work: Path) -> None:
        within_budget(recipe, None, [], lambda: 0.0, engine=None, files=RunFiles(work), report=_nothing)

    return [
        _json_target(run, "inspection.json", lambda work: refuse_changed_cases(work / "inspection.json", inspection, NAMES)),
        _json_target(
            run, "inspection.json", lambda work: overview_table([work / "inspection.json"]), "inspection.json, the paper's tables"
        ),
        _json_target(run, "metrics.jsonl", metrics),
        _json_target(run, "metrics.jsonl", drawn, "metrics.jsonl, curves"),
        _json_target(run, "budget.json", budget),
        _json_target(run, "transfer.json", lambda work: _refuse_another_beginning(work, None)),
        _json_target(run, "memory.json", lambda work: _peaks(work / "memory.json", "cpu")),
        _json_target(run, "warnings.jsonl", lambda work: [r["message"] for r in read_records(work / "warnings.jsonl", WarningLine)]),
    ]


def _of_caches(folder: Path, data: Path) -> list[Target]:
    from uxnet.dataset.cache import build_cache
    from uxnet.dataset.manifest import read_dataset

    manifest = read_dataset(data)
    (stage,) = recipe_from_dict({"name": "tiny", "stages": [STAGE]}).stages
    cases = manifest.cases[:1]
    build_cache(cases, stage.prepare, manifest.labels, folder / "cache")
    (described,) = (folder / "cache").glob("c0.*.json")
    build = functools.partial(build_cache, cases, stage.prepare, manifest.labels, workers=0)
    return [_json_target(folder / "cache", described.name, build, "cache/NAME.KEY.json")]


PARTS: dict[str, Callable[[Path], list[Target]]] = {"nifti": nifti, "models": models, "recipes": recipes, "json": jsons}
