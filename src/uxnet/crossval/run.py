"""Cross-validation of several networks on one dataset by one recipe: independent units, each a network on a fold.

Everything but the network is the same for all: cases, split, preparation, patches, augmentation, loss, optimiser, schedule, seed and
budget. A fold's test cases are used once, for its record. The folder can be filled in pieces, on different days and machines: what has a
record is not done again, and a record of another cross-validation is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from uxnet.crossval.plan import (
    PROTOCOL,
    Budget,
    Entry,
    chosen_split,
    entries_of,
    make_units,
    publish,
    records_there,
    refuse_another_recipe,
    with_beginnings,
)
from uxnet.crossval.summary import write_summary
from uxnet.crossval.unit import Unit, begin, do_unit
from uxnet.dataset.cache import build_cache
from uxnet.dataset.check import check_dataset, warn_and_refuse
from uxnet.dataset.manifest import read_dataset
from uxnet.dataset.sides import check_trained_sides
from uxnet.errors import Cancelled, UsageError, plural
from uxnet.evaluation.metrics import check_settings
from uxnet.events import Event, Note, Progress, Report, Warn, silent
from uxnet.jobs import Cluster, Finished, shard, work
from uxnet.machine import bound_to, usable_cores
from uxnet.model.catalogue import recipe_of
from uxnet.model.file import read_model, warn_of_leaks
from uxnet.recipe import Recipe

__all__ = ["PROTOCOL", "Budget", "Entry", "Outcome", "cross_validate", "default_jobs", "entries_of", "with_beginnings"]


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: "done", "already" (its record was there) or "failed", with the error."""

    name: str
    fold: int
    status: Literal["done", "already", "failed"]
    record: Path | None
    error: str = ""


def cross_validate(
    dataset: str | Path,
    recipe: str | Path | Recipe,
    out: str | Path,
    entries: Sequence[Entry] = (),
    *,
    init_from: str | Path | None = None,
    budget: Budget | None = None,
    folds: Sequence[int] | None = None,
    part: str | None = None,
    jobs: int | None = None,
    threads: int = 1,
    device: str = "auto",
    cluster: str | None = None,
    split: str | Path | None = None,
    protocol: str | None = None,
    group_by: str | None = None,
    cache: str | Path | None = None,
    tolerance_mm: float = 1.0,
    keep_labels: bool = False,
    report: Report = silent,
) -> list[Outcome]:
    """Trains and tests every network on every fold, and writes a record of each, summary.json and README.md.

    A unit that fails, or whose process dies twice over it, is reported and the rest goes on.

    Args:
        recipe: its network gives place to each entry's, in every stage; all else is the same for all. Of an entry that is the recipe's
            own network, each stage keeps its own.
        out: its folder: recipe.toml, split.json, records/, README.md, summary.json; and runs/ and cache/, which need not be kept.
        entries: the networks; none takes the recipe's own.
        init_from: a model whose weights every entry begins with that names none (`Entry.init`), wherever they fit; None begins afresh.
        budget: of every unit, by default the recipe's steps.
        folds: which ones, from 0; by default all.
        part: "i/n" does every n-th unit, see `jobs.shard`. Units go by folds, then by entries.
        jobs: units at a time, each in a process of its own; by default as many as fit on the cores, one a GPU on CUDA.
        threads: that a unit computes with, on cores of its own where the system can.
        device: "auto", "cpu", "cuda" or "mps". On a cluster, "auto" is the CPU.
        cluster: works on this Ray cluster, see `jobs.Cluster`, with `jobs` units at a time (None: as many as it holds).
        split: a file with the folds, which have no test case in common; by default out/split.json. Where no fold has test cases, the
            validation cases are scored, and nothing may be chosen on them: the last weights, no early stop, no plateau schedule.
        protocol: of a split that is made, by person: "5x80-10-10" (None, too), or "5x80-20", without test cases.
        cache: of the prepared cases; by default out/cache. Of a recipe with two stages each unit has its own.
        tolerance_mm: of the surface Dice.
        keep_labels: keep the label maps of the test cases, in out/runs/NAME-foldK/test.

    Returns:
        One outcome a unit (of the part), in their order.

    Raises:
        DatasetError: if the dataset has errors, the split is of another protocol, has no such fold, test cases in some folds only, or a
            test case of two folds.
        RecipeError: if an entry or the recipe asks for what cannot be, or something is chosen on cases that are scored.
        UsageError: if jobs, threads, the tolerance or the budget cannot be.
        InputError: if `out` holds another recipe, split or record.
        ModelError: if a model to begin with cannot be read, is of another network, or hardly anything of it fits.
        Cancelled: out of `report`.
    """
    if threads < 1 or (jobs is not None and jobs < 1):
        raise UsageError("jobs and threads must be at least 1")
    check_settings(tolerance_mm, "skip")
    if cluster is not None and device == "auto":
        # What its machines have is not known here, and a GPU that is not asked for is not reserved.
        report(Warn("on a cluster, units compute on CPUs unless a GPU is asked for, which is then reserved for each: device=cuda"))
        device = "cpu"
    ray = None if cluster is None else Cluster.computing_on(device, cluster, threads)
    recipe, out = recipe if isinstance(recipe, Recipe) else recipe_of(recipe), Path(out).absolute()
    manifest = read_dataset(Path(dataset).absolute(), group_by=group_by)
    report(Note(manifest.summary))
    check_trained_sides(recipe.stages, manifest.labels, report)
    # Of a cluster's devices this machine may have none.
    jobs_here = jobs or default_jobs("cpu" if cluster else device, threads)
    readers = _readers("cpu" if cluster else device, jobs_here, threads)
    inspection = check_dataset(manifest, workers=readers, report=report)
    warn_and_refuse(inspection, report)
    refuse_another_recipe(out / "recipe.toml", recipe)
    chosen = chosen_split(out / "split.json", Path(split) if split else None, inspection, recipe, report, protocol)
    begin_with = Path(init_from) if init_from else None
    units = make_units(manifest, inspection, chosen, recipe, out, entries, budget or Budget(), folds, threads, tolerance_mm, begin_with)
    init = {unit.init for unit in units if unit.init}
    held_out = {name for unit in units for name in (*chosen.folds[unit.fold].validation, *chosen.folds[unit.fold].test)}
    known = inspection.fingerprint
    warn_of_leaks([read_model(path) for path in sorted(init)], held_out, manifest.name, known.sha256, report, known.label_maps)
    shared = None if len(recipe.stages) > 1 else Path(cache or out / "cache").absolute()
    units = [replace(unit, cache=shared, keep_labels=keep_labels) for unit in units]
    there = records_there(out / "records", units)
    mine = units if part is None else shard(units, part)
    # Not before: what a refused call left here would stand in the way of the corrected one.
    publish(out, recipe, chosen)
    outcomes = {u.title: Outcome(u.name, u.fold, "already", u.record) for u in mine if u.title in there}
    todo = [unit for unit in mine if unit.title not in there]
    if todo and shared is not None:
        needed = {name for unit in todo for name in chosen.folds[unit.fold].train}
        cases = [case for case in manifest.cases if case.name in needed]
        build_cache(cases, recipe.stages[0].prepare, manifest.labels, shared, workers=readers, report=report)
    if outcomes:
        report(Note(f"{len(outcomes)} of {plural(len(mine), 'unit')} {'was' if len(outcomes) == 1 else 'were'} done already"))
    crew = _on_cluster(todo, ray, jobs or 0, threads, device, report) if ray else _here(todo, jobs_here, threads, device, report)
    with closing(crew) as finished:
        for done in finished:
            unit = done.item
            status: Literal["done", "failed"] = "failed" if done.error else "done"
            outcomes[unit.title] = Outcome(unit.name, unit.fold, status, done.result, _without(done.error, unit))
            report(Warn(f"{unit.title} failed: {done.error}") if done.error else Note(f"{unit.title}: {unit.record}"))
            report(Progress("units", len(outcomes), len(mine)))
    write_summary(out)
    return [outcomes[unit.title] for unit in mine]


def default_jobs(device: str, threads: int) -> int:
    """Units at a time where nobody says: one a GPU, or as many as have cores of their own."""
    from uxnet.devices import choose_device

    chosen = choose_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        import torch

        return max(1, torch.cuda.device_count())
    return max(1, usable_cores() // threads) if chosen.type == "cpu" else 1


def _readers(device: str, jobs: int, threads: int) -> int:
    """Processes that check and prepare cases, before units begin: on as many cores as these will have; all of them where GPUs compute."""
    from uxnet.devices import choose_device

    return min(usable_cores(), jobs * threads) if choose_device(device).type == "cpu" else usable_cores()


# ---- doing it


def _here(units: Sequence[Unit], jobs: int, threads: int, device: str, report: Report) -> Generator[Finished[Unit, Path], None, None]:
    """Units side by side, each in a fresh process: its peak memory is its own. A place is a number, and with it cores or a GPU."""
    places: SimpleQueue[int] = SimpleQueue()
    for n in range(jobs):
        places.put(n)
    cores, gpus, fits = _resources(device, threads, jobs)
    if not fits and units:
        report(
            Warn(
                f"{plural(jobs, 'job')} of {plural(threads, 'thread')} are more than this machine's cores; the times of their steps say "
                "little"
            )
        )
    speaking, stopped = threading.Lock(), threading.Event()

    def one(unit: Unit) -> Finished[Unit, Path]:
        place = places.get()
        try:
            start = partial(begin, threads, cores[place] if cores else (), gpus[place % len(gpus)] if gpus else device)
            with closing(work(do_unit, [unit], 1, start=start, report=heard_of(unit))) as finished:
                return next(finished)
        finally:
            places.put(place)

    said: set[str] = set()

    def heard_of(unit: Unit) -> Report:
        def hear(event: Event) -> None:
            if stopped.is_set():
                raise Cancelled("stopped")
            with speaking:
                _pass_on(event, unit, said, report)

        return hear

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, unit) for unit in units]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            # Whoever stops listening stops the others, too: at their next word.
            stopped.set()
            for future in futures:
                future.cancel()


def _on_cluster(
    units: Sequence[Unit], cluster: Cluster, jobs: int, threads: int, device: str, report: Report
) -> Generator[Finished[Unit, Path], None, None]:
    said: set[str] = set()
    start = partial(begin, threads, (), device)

    def heard(event: Event) -> None:
        _pass_on(event, None, said, report)

    yield from work(do_unit, units, jobs, start=start, report=heard, cluster=cluster)


def _pass_on(event: Event, unit: Unit | None, said: set[str], report: Report) -> None:
    """Progress and warnings, with whose they are; what is true of all units once."""
    title = f"{unit.title} " if unit else ""
    if isinstance(event, Progress):
        report(replace(event, task=f"{title}{event.task}"))
    elif isinstance(event, Warn) and event.message not in said:
        said.add(event.message)
        report(Warn(f"{title.rstrip()}: {event.message}" if unit else event.message))


def _resources(device: str, threads: int, jobs: int) -> tuple[list[tuple[int, ...]], list[str], bool]:
    """For each place its cores (empty where there are too few, or the system does not tell), and the GPUs, if they compute."""
    from uxnet.devices import choose_device

    gpus: list[str] = []
    if choose_device(device).type == "cuda":
        import torch

        gpus = [device] if ":" in device else [f"cuda:{n}" for n in range(torch.cuda.device_count())]
    if jobs * threads > usable_cores():
        return [], gpus, False
    mine = bound_to()
    return [tuple(mine[n * threads : (n + 1) * threads]) for n in range(jobs)], gpus, True


def _without(error: Exception | None, unit: Unit) -> str:
    return str(error).replace(f"{unit.out}/", "") if error else ""
