"""One unit of a cross-validation: a network on a fold, in a process of its own, from its training to its record.

A unit leaves its run in DIR/runs/NAME-foldK and one small file, DIR/records/NAME-foldK.json. It can be killed at any moment: what was
trained is gone on with, scans that were segmented are known by their content, and the record is whole or not there.
"""

from __future__ import annotations

import os
import shutil
import statistics
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uxnet
from uxnet.cohort.run import Scan, predict
from uxnet.dataset.check import Inspection
from uxnet.dataset.folds import read_split
from uxnet.dataset.manifest import Case, Manifest
from uxnet.errors import UxnetError
from uxnet.evaluation import Evaluation, evaluate_pairs
from uxnet.evaluation.scores import DIGITS, RECORD_SCHEMA, RECORD_VERSION
from uxnet.events import Event, Report, Warn
from uxnet.io import alone, write_json
from uxnet.io.checked import read_as
from uxnet.io.records import Record, append_record, read_records
from uxnet.io.schemas import MetricsLine, Peaks, WarningLine
from uxnet.machine import bind_to, reset_peak, take_peak
from uxnet.model.file import read_model
from uxnet.recipe import Recipe

_TOGETHER = 10  # steps that are timed as one: single steps are recorded to the hundredth of a second


@dataclass(frozen=True)
class Unit:
    """A network on a fold, and all that another process has to know for it.

    name: the network's entry; network, settings: what it is.
    recipe: with that network and the budget put in.
    inspection: of the dataset, checked once for all units.
    out: the cross-validation's folder; cache: of the prepared cases, None for one of its own.
    facts: what the record begins with: all that is known beforehand, the key among it.
    init: a model whose weights to begin with.
    earlier_key: what versions before canonical JSON would have said for the record's key.
    """

    name: str
    fold: int
    recipe: Recipe
    inspection: Inspection
    out: Path
    cache: Path | None
    tolerance_mm: float
    keep_labels: bool
    facts: Mapping[str, Any]
    init: Path | None = None
    earlier_key: str = ""

    @property
    def manifest(self) -> Manifest:
        """The dataset."""
        return self.inspection.manifest

    @property
    def title(self) -> str:
        """NAME-foldK."""
        return f"{self.name}-fold{self.fold}"

    @property
    def run(self) -> Path:
        """The folder that it trains in."""
        return self.out / "runs" / self.title

    @property
    def record(self) -> Path:
        """The file that says what it found."""
        return self.out / "records" / f"{self.title}.json"


@dataclass(frozen=True)
class Place:
    """Where a unit works: threads that compute, and the device."""

    threads: int
    device: str


def begin(threads: int, cores: Sequence[int], device: str, report: Report) -> Place:
    """What a process does before its first unit: it limits its threads, and takes the cores that it was given (none: any).

    It is called before torch is imported, which reads the variable once, and holds the cores for whatever threads are begun.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    bind_to(cores)
    return Place(threads, device)


def do_unit(place: Place, unit: Unit, report: Report) -> Path:
    """Trains, segments the fold's test cases (of a fold without, those that validate), scores them and writes the record.

    Returns:
        The record's path.

    Raises:
        UxnetError: whatever went wrong, with the code as well: other units must go on.
        Cancelled: out of `report`.
    """
    taken = UxnetError(f"{unit.run}: another process has this unit in hand; give each process a shard of its own")
    try:
        with alone(unit.run / "lock", taken):
            return _done(place, unit, report)
    except (UxnetError, OSError):
        raise
    except Exception as error:  # what one network does wrong must not take the others along
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = str(error).strip().splitlines()[:1] or [""]
        raise UxnetError(f"{type(error).__name__}: {said[0]} ({Path(where.filename).name}, line {where.lineno})") from error


def _done(place: Place, unit: Unit, report: Report) -> Path:
    from uxnet.inference.engines.torch import set_threads
    from uxnet.training.run import train

    set_threads(place.threads)
    warned = unit.run / "warnings.jsonl"  # kept there: what an earlier part of the run was warned of counts, too

    def heard(event: Event) -> None:
        if isinstance(event, Warn):
            append_record(warned, {"message": _without_paths(event.message, unit)})
        report(event)

    reset_peak()
    split = unit.out / "split.json"
    model = train(
        unit.manifest,
        unit.recipe,
        unit.run,
        fold=unit.fold,
        split=split,
        init_from=unit.init,
        resume=True,
        device=place.device,
        cache=unit.cache,
        threads=place.threads,
        inspection=unit.inspection,
        report=heard,
    )
    memory = _peaks(unit.run / "memory.json", place.device)
    test = [unit.manifest.case(name) for name in read_split(split, unit.manifest).folds[unit.fold].scored]
    evaluation, seconds = _tested(model, test, unit, place, heard)
    trained = _trained(model, unit)
    record = {
        "schema": RECORD_SCHEMA,
        "version": RECORD_VERSION,
        **unit.facts,
        **trained,
        **memory,
        "threads": place.threads,
        "machine": _machine(place.device),
        "versions": {"uxnet": uxnet.__version__, **read_model(model).provenance["versions"]},
        "evaluation": {"tolerance_mm": evaluation.tolerance_mm, "empty": evaluation.empty, "seconds_a_case": seconds},
        "warnings": list(dict.fromkeys(line["message"] for line in read_records(warned, WarningLine))),
        "cases": _cases(evaluation, test, unit.manifest.grouped_by == "person"),
    }
    write_json(unit.record, rounded(record))
    if not unit.keep_labels:
        shutil.rmtree(unit.run / "test", ignore_errors=True)
    if unit.cache is None:
        shutil.rmtree(unit.run / "cache", ignore_errors=True)
    return unit.record


def _tested(model: Path, test: Sequence[Case], unit: Unit, place: Place, report: Report) -> tuple[Evaluation, float]:
    """The scores of the test cases on their own grids, and the median seconds that one took to segment.

    torch computes them, in the precision of the training, as it computed the validations.

    Raises:
        UxnetError: if a case cannot be segmented or scored: means over the others would be another experiment's.
    """
    from uxnet.inference.segmenter import load_segmenter
    from uxnet.inference.settings import Settings

    precision = str(read_model(model).provenance["precision"])
    settings = Settings(device=place.device, engine="torch", precision=precision, threads=place.threads)
    segmenter = load_segmenter([model], settings, report)
    folder = unit.run / "test"
    outcomes = predict(segmenter, [Scan(case.name, case.images) for case in test], folder, overwrite=True, report=report)
    for outcome in outcomes:
        if outcome.status == "failed":
            raise UxnetError(f"test case {outcome.name}: {outcome.error}")
    pairs = [(case.name, folder / f"{case.name}.nii.gz", case.labels) for case in test if case.labels is not None]
    evaluation = evaluate_pairs(pairs, unit.manifest.labels, tolerance_mm=unit.tolerance_mm, report=report)
    for failure in evaluation.failures:
        raise UxnetError(f"test case {failure.name}: {failure.message}")
    return evaluation, statistics.median(outcome.seconds for outcome in outcomes)


def _trained(model: Path, unit: Unit) -> dict[str, Any]:
    """How the training went: of two stages the sums, and of the second, which is the whole, the curve."""
    found = read_model(model)
    provenance = found.provenance
    stages = [stage["training"] for stage in provenance.get("stages", [{"training": provenance["training"]}])]
    folders = [unit.run] if len(stages) == 1 else [unit.run / f"stage_{n}" for n in range(len(stages))]
    records = [read_records(folder / "metrics.jsonl", MetricsLine) for folder in folders]
    steps = sum(int(stage["steps"]) for stage in stages)
    # The model's recipe has the steps that a budget of time came to; `training.stop_after` may have ended the run before.
    planned = sum(stage.training.steps for stage in found.recipe.stages)
    return {
        "steps": steps,
        **({"planned_steps": planned} if planned > steps else {}),
        "kept_step": int(stages[-1]["step"]),
        "skipped_steps": sum(int(stage["skipped"]) for stage in stages),
        "seconds_training": sum(float(stage["seconds"]) for stage in stages),
        "seconds_a_step": seconds_a_step(records[-1]),
        "precision": provenance["precision"],
        "curve": curve(records[-1]),
    }


def seconds_a_step(records: Sequence[Record]) -> float | None:
    """The median time of a step, of runs of ten steps between which no validation lay; of fewer where there are no ten."""
    runs: list[list[float]] = [[]]
    for record in records:
        if record["kind"] == "validation":
            runs.append([])
        elif record["kind"] == "step":
            runs[-1].append(float(record["seconds"]))
    together = min(_TOGETHER, max(map(len, runs)) - 1)
    if together < 1:
        return None
    times = [
        (ends[n + together] - ends[n]) / together for ends in runs for n in range(0, len(ends) - together, together)
    ]  # an interruption adds nothing: seconds are those of all parts of a run
    return statistics.median(times)


def curve(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The validations of a run: step, seconds of training by then, mean Dice and Dice by class."""
    points, seconds = [], {int(r["step"]): float(r["seconds"]) for r in records if r["kind"] == "step"}
    for record in records:
        if record["kind"] == "validation":
            step = int(record["step"])
            points.append({"step": step, "seconds": seconds.get(step), "dice": record["dice"], "classes": record["classes"]})
    return points


def _peaks(kept: Path, device: str) -> dict[str, Any]:
    """The largest memory of the training in MB (10^6 bytes), of the process and of a GPU; over all parts of a run."""
    import torch

    peaks: dict[str, Any] = {"peak_memory_mb": take_peak(), "peak_gpu_memory_mb": None}
    if device.startswith("cuda"):
        peaks["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated(device) / 1e6)
    before = read_as(kept, Peaks) if kept.exists() else Peaks()
    peaks = {key: max((v for v in (value, getattr(before, key)) if v is not None), default=None) for key, value in peaks.items()}
    write_json(kept, peaks)
    return peaks


def _machine(device: str) -> dict[str, Any]:
    from uxnet.doctor.examine import machine

    found = machine(device)
    return {key: found[key] for key in ("processor", "instructions", "gpus")} | {"device": found["device"]}


def _cases(evaluation: Evaluation, test: Sequence[Case], persons_known: bool) -> list[dict[str, Any]]:
    """As in the JSON file of `uxnet evaluate`, without its paths, and with whose case it is where that is known."""
    persons = {case.name: {"person": case.person} if persons_known else {} for case in test}
    rows = []
    for case in evaluation.cases:
        classes = {c.name: {k: v for k, v in asdict(c).items() if k != "name"} | {"outcome": c.outcome.value} for c in case.classes}
        rows.append({"case": case.name, **persons[case.name], "classes": classes})
    return rows


def _without_paths(message: str, unit: Unit) -> str:
    """A warning as a file to be shared may hold it."""
    for folder in (unit.out, unit.manifest.root, *([unit.init.parent] if unit.init else [])):
        message = message.replace(f"{folder}{os.sep}", "").replace(f"{folder.absolute()}{os.sep}", "")
    return message


def rounded(value: Any) -> Any:
    """Plain JSON values with every number cut to 6 digits after the point."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    return value
