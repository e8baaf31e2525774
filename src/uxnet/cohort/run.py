"""Cohorts: many scans in one call, on as many processes or machines as there are; what is done is not done again, and what is bad
does not stop the rest."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import uxnet
from uxnet.cohort.ledger import Making, making, read_ledger
from uxnet.cohort.outputs import Claims, names_in, planned_units, read_if_there, refuse_losses, stale_names, table_hash
from uxnet.cohort.scans import Scan, find_scans
from uxnet.cohort.unit import CannotLoadError, Desk, Load, Outcome, Unit, Written, do_scan
from uxnet.errors import InputError, ModelError
from uxnet.events import Event, Note, Progress, Report, Warn, silent
from uxnet.inference.ensemble import Averaged, check_same
from uxnet.inference.localise import labels_of, load_located
from uxnet.inference.memory import in_gb
from uxnet.inference.segment import with_inference
from uxnet.inference.segmenter import Segmenter, load_segmenter
from uxnet.inference.settings import Settings
from uxnet.io import claimed, lock_path, sha256, token_of, write_json
from uxnet.io.files import sync_folder
from uxnet.io.records import append_record
from uxnet.jobs import Cluster, shard, work
from uxnet.labels import Labels
from uxnet.machine import usable_cores
from uxnet.model.file import Model, read_model, seen_by

__all__ = ["Outcome", "Scan", "find_scans", "predict", "read_models"]

# CPUs that a worker asks a cluster for where nobody says; Ray takes fewer where no machine has so many.
_CLUSTER_THREADS = 4


def predict(
    models: Segmenter | Sequence[Path],
    scans: Sequence[Scan],
    out: Path,
    *,
    settings: Settings | None = None,
    workers: int | None = None,
    part: str | None = None,
    cluster: str | None = None,
    probabilities: bool = False,
    overwrite: bool = False,
    report: Report = silent,
) -> list[Outcome]:
    """Segments every scan into `out` as NAME.nii.gz, on its own grid, and writes labels.json and predict.json beside them.

    What is there already and was made from the same content (input, models, settings, version) is left as it is: the same call again
    takes up what an interrupted one left. A scan that fails, or whose process dies twice over it, is reported, and the rest goes on.

    Args:
        models: model files; several are folds whose logits are averaged. Or a model that is loaded: then this process does it all.
        settings: how scans are segmented; those of a loaded model are its own.
        workers: processes, each with a model of its own. 0 works in this one, in order. None takes 0 for a single scan and else 1: a
            process that dies then costs one scan. While a process segments a scan, it reads the next and writes the last, unless
            there is a limit of memory. On a cluster, None takes as many as it holds.
        part: "i/n" does every n-th scan in the order of names, beginning with the i-th.
        cluster: works on this Ray cluster, see `jobs.Cluster`; its machines must see the same files. On one, a worker asks for as many
            CPUs as `settings.threads`, by default 4, and for a GPU if `settings.device` names one.
        probabilities: write NAME_probs.nii.gz, too.
        overwrite: replace what is there but was made from something else, instead of refusing before anything is computed.

    Returns:
        One outcome a scan (of the part), in their order.

    Raises:
        InputError: if an output would overwrite an input, or a file that nothing explains, or `out` is a dataset, or holds label maps
            of another model; also with `overwrite`, if their values mean something else and the call does not replace all of them.
        ModelError, DeviceError: if the models cannot be loaded, or do not belong together.
        RecipeError: if the settings ask for what the recipe does not say.
        UsageError: if a GPU of a cluster is asked for by its number.
    """
    settings = models.settings if isinstance(models, Segmenter) else settings or Settings()
    paths = [models.model.path] if isinstance(models, Segmenter) else list(models)
    described = [models.model] if isinstance(models, Segmenter) else read_models(paths)
    if cluster is not None:
        # Its workers may be in another folder.
        paths, out = [path.absolute() for path in paths], out.absolute()
        scans = [replace(scan, files=tuple(file.absolute() for file in scan.files)) for scan in scans]
    with_inference(described[0].recipe.stages, overlap=settings.overlap, skip_air=settings.skip_air)  # refused before anything is done
    scans = scans if part is None else sorted(scans, key=lambda scan: scan.name)
    ours = scans if part is None else shard(scans, part)
    crew = _crew(models if isinstance(models, Segmenter) else paths, settings, workers, cluster, len(ours))
    if crew.settings.located:
        if probabilities:
            raise InputError("probabilities are of crops only, not of whole scans; leave them out, or cut the scans out yourself")
        paths = [*paths, crew.settings.located.localiser]
        described = [*described, read_model(crew.settings.located.localiser)]
    labels = labels_of(described[0].labels, crew.settings.located.whole) if crew.settings.located else described[0].labels
    made_of = making(paths, crew.settings, probabilities, table_hash(labels.to_dict()))
    meaning = _meaning(labels, described, made_of)
    there = names_in(out)
    # Of all shards: each of them is to refuse what the others do.
    known = read_ledger(out, report)
    call = planned_units(scans, out, made_of, overwrite, known)
    units = call if part is None else shard(call, part)
    refuse_losses(call, units, out, there, meaning, overwrite, known)

    out.mkdir(parents=True, exist_ok=True)
    if read_if_there(out / "labels.json") != meaning:
        write_json(out / "labels.json", meaning)
    stem = "predict" if part is None else f"predict.{part.replace('/', '-of-')}"
    outcomes: dict[str, Outcome] = {}
    # Closed at once where `report` raises: no worker may write on while its parts are taken away.
    with Claims(out) as claims, closing(_outcomes(crew, units, out / f"{stem}.jsonl", claims, report)) as finished:
        for outcome in finished:
            outcomes[outcome.name] = outcome
            _tell(outcome, outcomes, len(units), crew, report)
    ordered = [outcomes[unit.scan.name] for unit in units]
    try:
        with claimed(lock_path(out, token_of(f"{stem}.json")), wait=True):
            _write_summary(out / f"{stem}.json", ordered, paths, described, made_of, crew)
    except OSError as error:  # on a full disk the scans' outcomes are still worth being told
        report(Warn(f"{out / stem}.json: cannot be written ({error.strerror or error}); {stem}.jsonl tells what was done"))
    return ordered


def read_models(paths: Sequence[Path]) -> list[Model]:
    """The models of a prediction, without their tensors.

    Raises:
        ModelError: if one cannot be read, there is none, or they do not mean the same, so that nothing can be averaged.
    """
    models = [read_model(path) for path in paths]
    if not models:
        raise ModelError("no model: name at least one .uxnet file")
    check_same(models)
    return models


# ---- who does it


@dataclass(frozen=True)
class _Crew:
    """Who works and how: `load` makes the model in each of `workers` processes (0: this one), `abreast` scans at a time in each."""

    load: Load
    settings: Settings
    workers: int
    abreast: int
    cluster: Cluster | None


def _crew(models: Segmenter | Sequence[Path], settings: Settings, workers: int | None, cluster: str | None, scans: int) -> _Crew:
    if isinstance(models, Segmenter):
        if any(isinstance(engine, Averaged) and len(engine.engines) > 1 for engine in models.engines):
            raise InputError("a loaded segmenter of several models does not say which files it is of; give the files instead")
        if workers or cluster:
            raise InputError("a model that is loaded already works in its own process; give its file instead for others to load")
        return _Crew(functools.partial(_loaded, models), settings, 0, 1, None)
    if workers is not None and workers < 0:
        raise InputError(f"{workers} workers: give 0 to work in this process, or the number of processes")
    if cluster is not None:
        settings = replace(settings, threads=settings.threads or _CLUSTER_THREADS)
        asked = Cluster.computing_on(settings.device, cluster, settings.threads)
        workers = workers or 0
    else:
        asked = None
        workers = min(int(scans > 1) if workers is None else workers, scans)
        if workers > 1 and not settings.threads:
            settings = replace(settings, threads=max(1, usable_cores() // workers))
    # A second scan in hand would break the limit; in this process each scan's memory and errors are plainly its own.
    abreast = 2 if settings.memory_limit is None and (workers or asked) and scans > 1 else 1
    if asked is None:
        settings = replace(settings, sharing=max(1, workers))
    load = load_located if settings.located else load_segmenter
    return _Crew(functools.partial(load, tuple(models), settings), settings, workers, abreast, asked)


def _loaded(model: Segmenter, report: Report) -> Segmenter:
    return model


def _desk(load: Load, abreast: int, report: Report) -> Desk:
    return Desk(load, abreast > 1)


def _outcomes(crew: _Crew, units: Sequence[Unit], ledger: Path, claims: Claims, report: Report) -> Generator[Outcome, None, None]:
    """What becomes of each scan, as they finish; recorded, and its outputs in their places. What others have in hand comes last."""
    start = functools.partial(_desk, crew.load, crew.abreast)
    heard = report if crew.workers <= 1 and crew.cluster is None else _several(report)
    waiting, others = list(units), list[Unit]()
    try:
        while waiting:
            taken = work(
                do_scan, waiting, crew.workers, start=start, report=heard, abreast=crew.abreast, cluster=crew.cluster, admit=claims.take
            )
            with closing(taken) as finished_units:
                for finished in finished_units:
                    if finished.result is None and finished.error is None:
                        others.append(finished.item)
                        continue
                    outcome = _committed(finished.item, finished.result or _lost(finished.item, finished.error), ledger)
                    claims.release(finished.item)
                    yield outcome
            waiting = claims.wait(others, report)
            others = [unit for unit in others if unit.scan.name not in claims.held]
    except CannotLoadError as error:
        raise error.args[0] from error


def _lost(unit: Unit, error: Exception | None) -> Written:
    """Of a scan over which its process died."""
    return Written(Outcome(unit.scan.name, tuple(map(str, unit.scan.files)), "failed", error=f"{unit.scan.files[0]}: {error}"))


def _several(report: Report) -> Report:
    """A `report` for many at once: the steps of each would only get in each other's way, and what all of them say is said once."""
    said = set()

    def hear(event: Event) -> None:
        if isinstance(event, Note | Warn) and event not in said:
            said.add(event)
            report(event)

    return hear


# ---- what is there, and what takes its place


def _committed(unit: Unit, written: Written, ledger: Path) -> Outcome:
    """The outcome, once its record is kept and its outputs are in their places."""
    if written.record is None:
        return written.outcome
    try:
        # First: what no record knows any more would stay for good. What someone has changed is theirs.
        for stale in (unit.outputs[0].with_name(name) for name in stale_names(unit)):
            if unit.known and stale.is_file() and sha256(stale) == unit.known["outputs"][stale.name].get("sha256"):
                stale.unlink()
        append_record(ledger, written.record)
        for part, output in reversed(list(zip(unit.parts, unit.outputs, strict=True))):
            os.replace(part, output)
        sync_folder(ledger.parent)
    except (OSError, InputError) as error:
        said = f"{unit.outputs[0]}: cannot be written ({getattr(error, 'strerror', None) or error})"
        return replace(written.outcome, status="failed", output=None, probabilities=None, error=said)
    return written.outcome


# ---- what is told


def _tell(outcome: Outcome, outcomes: Mapping[str, Outcome], total: int, crew: _Crew, report: Report) -> None:
    if outcome.status == "failed":
        report(Warn(f"failed: {outcome.error}"))
    elif outcome.status == "done":
        peak = outcome.peak_memory_mb
        memory = f", peak memory {peak} MB" if peak is not None else ""
        kept = ", logits kept in half precision" if "half" in outcome.keep else ""
        report(Note(f"{outcome.name}: {outcome.seconds:.1f} s{memory}{kept} -> {outcome.output}"))
        limit = crew.settings.memory_limit
        if peak is not None and limit is not None and peak * 1e6 > limit:
            report(
                Warn(
                    f"{outcome.name}: it took {peak} MB of memory, more than the limit of {in_gb(limit)}, which does not hold for loading, "
                    "preparing, the self-check and a second stage"
                )
            )
    counts = {status: sum(o.status == status for o in outcomes.values()) for status in ("already", "failed")}
    values: dict[str, float | int | str] = {status: count for status, count in counts.items() if count}
    done = [o.seconds for o in outcomes.values() if o.status == "done"]
    if done and len(outcomes) < total:
        values["seconds_left"] = sum(done) / len(done) * (total - len(outcomes)) / max(1, crew.workers)
    report(Progress("scans", len(outcomes), total, values))
    if len(outcomes) == total and counts["already"]:
        others = [o for o in outcomes.values() if o.status == "already" and o.threads not in (None, crew.settings.cores)]
        threads = (
            f", {len(others)} of them on other numbers of threads than {crew.settings.cores}, which may change a voxel" if others else ""
        )
        report(Note(f"{counts['already']} of {total} {'was' if total == 1 else 'were'} done already{threads}"))


def _meaning(labels: Labels, models: Sequence[Model], made_of: Making) -> dict[str, Any]:
    """labels.json: what the values mean, and whose answer they are."""
    names = [", ".join(dict.fromkeys(names)) for names in ([m.path.name for m in models], [m.recipe.name for m in models])]
    told = {**labels.to_dict(), "model": names[0], "model_name": names[1], "models": made_of.models}
    meaning: dict[str, Any] = json.loads(json.dumps(told))
    return meaning


def _write_summary(
    path: Path, outcomes: Sequence[Outcome], paths: Sequence[Path], models: Sequence[Model], made_of: Making, crew: _Crew
) -> None:
    """predict.json: this call's scans, and those that earlier ones left there; models and settings of the call, and of each scan."""
    names = {outcome.name for outcome in outcomes}
    earlier = (read_if_there(path) or {}).get("scans", [])
    told = [scan for scan in (earlier if isinstance(earlier, list) else []) if isinstance(scan, dict) and isinstance(scan.get("name"), str)]
    kept = [scan for scan in told if scan["name"] not in names]
    summary = {
        "uxnet": uxnet.__version__,
        "models": [
            {"file": str(file), "name": model.recipe.name, "sha256": content, "seen": seen_by([model])}
            for file, model, content in zip(paths, models, made_of.models, strict=True)
        ],
        "settings": json.loads(json.dumps(asdict(crew.settings), default=str)),
        "workers": crew.workers,
        "scans": kept + [asdict(outcome) | {"made_with": made_of.record()} for outcome in outcomes],
    }
    write_json(path, summary)
