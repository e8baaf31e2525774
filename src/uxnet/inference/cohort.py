"""Cohorts: many scans in one call, on as many processes or machines as there are; what is done is not done again, and what is bad
does not stop the rest."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uxnet.errors import InputError, ModelError
from uxnet.events import Event, Note, Progress, Report, Warn, silent
from uxnet.inference.average import Averaged, check_same
from uxnet.inference.ledger import Making, making, read_ledger, unexplained
from uxnet.inference.located import labels_of, load_located
from uxnet.inference.memory import in_gb
from uxnet.inference.scans import Scan, find_scans
from uxnet.inference.segment import with_inference
from uxnet.inference.segmenter import Segmenter, load_segmenter
from uxnet.inference.settings import Settings
from uxnet.inference.unit import CannotLoadError, Desk, Load, Outcome, Unit, Written, do_scan
from uxnet.io import is_nifti, read_json, sha256, write_json
from uxnet.io.files import sync_folder
from uxnet.jobs import Cluster, shard, work
from uxnet.labels import Labels
from uxnet.machine import usable_cores
from uxnet.model import Model, read_model
from uxnet.records import Record, append_record

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
    made_of = making(paths, crew.settings, probabilities, _table(labels.to_dict()))
    meaning = _meaning(labels, described, made_of)
    # Of all shards: each of them is to refuse what the others do.
    known = read_ledger(out)
    call = _units(scans, out, made_of, overwrite, known)
    units = call if part is None else shard(call, part)
    _refuse(call, units, out, meaning, overwrite, known)

    out.mkdir(parents=True, exist_ok=True)
    if _read_json(out / "labels.json") != meaning:
        write_json(out / "labels.json", meaning)
    stem = "predict" if part is None else f"predict.{part.replace('/', '-of-')}"
    outcomes: dict[str, Outcome] = {}
    # Closed at once where `report` raises: no worker may write on while its parts are taken away.
    with _no_parts_left(units), closing(_outcomes(crew, units, out / f"{stem}.jsonl", report)) as finished:
        for outcome in finished:
            outcomes[outcome.name] = outcome
            _tell(outcome, outcomes, len(units), crew, report)
    ordered = [outcomes[unit.scan.name] for unit in units]
    try:
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


def _outcomes(crew: _Crew, units: Sequence[Unit], ledger: Path, report: Report) -> Generator[Outcome, None, None]:
    """What becomes of each scan, as they finish; recorded, and its outputs in their places."""
    start = functools.partial(_desk, crew.load, crew.abreast)
    heard = report if crew.workers <= 1 and crew.cluster is None else _several(report)
    try:
        with closing(
            work(do_scan, units, crew.workers, start=start, report=heard, abreast=crew.abreast, cluster=crew.cluster)
        ) as finished_units:
            for finished in finished_units:
                if finished.result is None:
                    files = finished.item.scan.files
                    written = Written(Outcome(finished.item.scan.name, _words(files), "failed", error=f"{files[0]}: {finished.error}"))
                else:
                    written = finished.result
                yield _committed(finished.item, written, ledger)
    except CannotLoadError as error:
        raise error.args[0] from error


def _several(report: Report) -> Report:
    """A `report` for many at once: the steps of each would only get in each other's way, and what all of them say is said once."""
    said = set()

    def hear(event: Event) -> None:
        if isinstance(event, Note | Warn) and event not in said:
            said.add(event)
            report(event)

    return hear


# ---- what is there, and what takes its place


def _units(scans: Sequence[Scan], out: Path, made_of: Making, overwrite: bool, known: Mapping[str, Record]) -> list[Unit]:
    run = secrets.token_hex(4)
    endings = ["", "_probs"] if made_of.probabilities else [""]
    return [
        Unit(
            scan=scan,
            outputs=tuple(out / f"{scan.name}{ending}.nii.gz" for ending in endings),
            # Hidden from those who read the folder, and of this run alone.
            parts=tuple(out / f".{scan.name}{ending}.{run}.part.nii.gz" for ending in endings),
            making=made_of,
            known=known.get(scan.name),
            overwrite=overwrite,
        )
        for scan in scans
    ]


def _refuse(
    call: Sequence[Unit], units: Sequence[Unit], out: Path, meaning: Mapping[str, Any], overwrite: bool, known: Mapping[str, Record]
) -> None:
    """Refuses, before anything is computed, what would be lost or mixed up.

    Args:
        call: the units of all shards.
        units: those of this one. Only of them it is known that nobody is writing their outputs.
        known: the folder's records.
    """
    if (out / "dataset.json").exists() or any((out / part).is_dir() for part in ("imagesTr", "labelsTr")):
        raise InputError(f"{out}: is the folder of a dataset, whose labels labels.json would be taken for; choose another folder")
    inputs = {file.resolve() for unit in call for file in unit.scan.files}
    written: dict[Path, str] = {}
    for unit in call:
        for output in unit.outputs:
            if output.resolve() in inputs:
                raise InputError(f"{output}: the output would replace an input; choose another folder")
            if written.setdefault(output, unit.scan.name) != unit.scan.name:
                raise InputError(f"{output}: the output of two scans, {written[output]} and {unit.scan.name}; rename one of them")
    refused = [] if overwrite else [(unit.outputs, why) for unit in units if (why := unexplained(unit.outputs, unit.known, unit.making))]
    if refused:
        first = next(path for path in refused[0][0] if path.exists())
        raise InputError(
            f"{first}: exists already, and {refused[0][1]} ({len(refused)} such outputs); choose another folder, or give --overwrite"
        )
    # One folder, one meaning: labels.json speaks for every label map beside it.
    labels = out / "labels.json"
    there = (_read_json(labels) or {}) if labels.exists() else None
    # Whose they are says the content of the models, not its file's name; earlier versions wrote only that.
    whose = "model" if there and "models" not in there else "models"
    if there is not None and not overwrite and (_table(there) != _table(meaning) or there.get(whose) != meaning[whose]):
        raise InputError(f"{labels}: speaks of another model's label maps; choose another folder, or give --overwrite")
    strange = _of_another_table(call, out, None if there is None else _table(there), inputs, known)
    if strange:
        raise InputError(
            f"{strange[0]}: its values mean something else than this model's, and this call does not replace it ({len(strange)} such "
            "files); choose another folder, since labels.json speaks for all label maps of one"
        )


def _of_another_table(
    call: Sequence[Unit], out: Path, told: str | None, inputs: Collection[Path], known: Mapping[str, Record]
) -> list[Path]:
    """Label maps in the folder that the call leaves as they are and whose values mean something else.

    Args:
        told: the table of the folder's labels.json, which counts for maps that no record knows; None if there is no such file.
    """
    if not out.is_dir() or not call:
        return []
    tables = {name: record.get("table", told) for record in known.values() for name in record["outputs"]}
    replaced = {path.name for unit in call for path in unit.outputs} | {name for unit in call for name in _stale(unit)}
    table = call[0].making.table
    others = [path for path in sorted(out.iterdir()) if path.name.endswith(".nii.gz") and is_nifti(path) and path.name not in replaced]
    return [path for path in others if tables.get(path.name, told) not in (None, table) and path.resolve() not in inputs]


def _stale(unit: Unit) -> list[str]:
    """Names of files that an earlier call wrote for the scan and that this one does not: probabilities that nobody asks for any more."""
    names = {path.name for path in unit.outputs}
    return [name for name in unit.known["outputs"] if name not in names and Path(name).name == name] if unit.known else []


def _committed(unit: Unit, written: Written, ledger: Path) -> Outcome:
    """The outcome, once its record is kept and its outputs are in their places."""
    if written.record is None:
        return written.outcome
    try:
        # First: what no record knows any more would stay for good. What someone has changed is theirs.
        for stale in (unit.outputs[0].with_name(name) for name in _stale(unit)):
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


@contextmanager
def _no_parts_left(units: Sequence[Unit]) -> Iterator[None]:
    """Whoever was stopped or died in the block leaves nothing half written."""
    try:
        yield
    finally:
        for folder, run in {(part.parent, part.name.split(".")[-4]) for unit in units for part in unit.parts}:
            # Those of writers of parts, too, whose names hold the part's.
            for left in [path for path in folder.iterdir() if f".{run}.part." in path.name]:
                left.unlink(missing_ok=True)


# ---- what is told


def _tell(outcome: Outcome, outcomes: Mapping[str, Outcome], total: int, crew: _Crew, report: Report) -> None:
    if outcome.status == "failed":
        report(Warn(outcome.error))
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
        report(Note(f"{counts['already']} of {total} were done already"))


def _meaning(labels: Labels, models: Sequence[Model], made_of: Making) -> dict[str, Any]:
    """labels.json: what the values mean, and whose answer they are."""
    names = [", ".join(dict.fromkeys(names)) for names in ([m.path.name for m in models], [m.recipe.name for m in models])]
    told = {**labels.to_dict(), "model": names[0], "model_name": names[1], "models": made_of.models}
    meaning: dict[str, Any] = json.loads(json.dumps(told))
    return meaning


def _table(described: Mapping[str, Any]) -> str:
    """The hash of what values mean, of `Labels.to_dict` or labels.json."""
    table = [described.get(key) for key in ("background", "foreground", "regions", "ignore")]
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _write_summary(
    path: Path, outcomes: Sequence[Outcome], paths: Sequence[Path], models: Sequence[Model], made_of: Making, crew: _Crew
) -> None:
    """predict.json: this call's scans, and those that earlier ones left there; models and settings of the call, and of each scan."""
    names = {outcome.name for outcome in outcomes}
    earlier = (_read_json(path) or {}).get("scans", [])
    kept = [scan for scan in earlier if isinstance(scan, dict) and scan.get("name") not in names] if isinstance(earlier, list) else []
    summary = {
        "uxnet": made_of.version,
        "models": [
            {"file": str(file), "name": model.recipe.name, "sha256": content}
            for file, model, content in zip(paths, models, made_of.models, strict=True)
        ],
        "settings": json.loads(json.dumps(asdict(crew.settings), default=str)),
        "workers": crew.workers,
        "scans": kept + [asdict(outcome) | {"made_with": made_of.record()} for outcome in outcomes],
    }
    write_json(path, summary)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except InputError:
        return None


def _words(files: Sequence[Path]) -> tuple[str, ...]:
    return tuple(map(str, files))
