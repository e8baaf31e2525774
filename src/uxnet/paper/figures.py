"""Figures 3 and 4 of the paper from what was run: validation curves, and slices of test cases with their differences enlarged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from uxnet.dataset.manifest import Manifest, read_dataset
from uxnet.draw import Plane
from uxnet.errors import InputError
from uxnet.evaluation.scores import Scores
from uxnet.evaluation.statistics import mean_of_counted
from uxnet.io import read_image, read_labels
from uxnet.paper.bands import BANDS, Band, BandPanel, bands
from uxnet.paper.records import Trial, init_of, network_of, settings_of, settings_text
from uxnet.paper.zoomed import RULE, ZoomedRow, most_different, zoomed_figure
from uxnet.volume import Volume

Over = Literal["steps", "seconds"]

KINDS = (".png", ".svg")
STRONG = "3D UX-Net"
NO_RECORDS = "a figure needs records of uxnet crossval: give a cross-validation's folder"


# ---- figure 3


def curve_figure(folder: Path, trials: Sequence[Trial], *, over: Over = "steps", band: Band = "range", note: str = "") -> list[Path]:
    """Figure 3: the mean validation Dice of each network, a panel a cross-validation, with a band over the folds that all networks have.

    Args:
        folder: gets figure3.png and figure3.svg.
        over: optimiser steps, or core-seconds of training (seconds times threads, validations included; of a budget of
            one core's time, the steps' share of it). Networks of two stages have no curve over seconds, and the foot of the page says so.
        note: for the foot of the page.

    Raises:
        InputError: if there are no records, they have no curves, or a file cannot be written.
    """
    if not trials:
        raise InputError(NO_RECORDS)
    panels, shares = [], []
    for trial in trials:
        titles = network_titles(trial.scores)
        folds = shared_folds(trial.scores)
        curves = {titles[s.name]: [validations(r, over) for r in s.records if r["fold"] in folds] for s in trial.scores}
        more = [titles[s.name] for s in trial.scores if folds_of(s) > set(folds)]
        if more:
            have = "has" if len(more) == 1 else "have"
            shares.append(
                f"{trial.letter}: of the folds that all networks have ({', '.join(map(str, folds))}); {', '.join(more)} {have} more."
            )
        if any(not folds_of(s) >= set(folds) for s in trial.scores):
            shares.append(f"{trial.letter}: the networks have no fold in common, so their curves are of different cases.")
        counted = f"{len(folds)} fold{'' if len(folds) == 1 else 's'}"
        panels.append(BandPanel(f"{trial.dataset} ({trial.letter}), {counted}", {n: runs for n, runs in curves.items() if any(runs)}))
    if not any(panel.curves for panel in panels):
        raise InputError("none of the records has a validation that was timed" if over == "seconds" else "none of the records has a curve")
    names = list(dict.fromkeys(_in_order([name for panel in panels for name in panel.curves])))
    said = "Dice: mean over the classes, on the validation cases of each fold."
    staged = [f"{s.name} ({trial.letter})" for trial in trials for s in trial.scores if any(map(of_second_stage, s.records))]
    missing = f"Not shown, since only the second of two stages was timed: {', '.join(staged)}."
    second = f"Of two stages, steps are those of the second: {', '.join(staged)}."
    told = "" if not staged else missing if over == "seconds" else second
    paths = [folder / f"figure3{kind}" for kind in KINDS]
    for path in paths:
        bands(
            path,
            panels,
            xlabel="step" if over == "steps" else "core-seconds of training",
            band=band,
            title="Validation curves",
            note="\n".join(filter(None, (said, *shares, told, note))),
            strong=STRONG,
            names=names,
        )
    return paths


def shared_folds(scores: Sequence[Scores]) -> list[int]:
    """The folds that all networks have a record of: means over others are no comparison. Where they have none in common, all folds."""
    folds = [folds_of(s) for s in scores]
    return sorted(set.intersection(*folds) or set.union(*folds))


def folds_of(scores: Scores) -> set[int]:
    """The folds that a network has a record of."""
    return {int(record["fold"]) for record in scores.records}


def validations(record: Mapping[str, Any], over: Over) -> list[tuple[float, float]]:
    """The validations of a fold, (steps or core-seconds, mean Dice); those whose time is not known have no place over seconds."""
    points: list[tuple[float, float]] = []
    if over == "seconds" and of_second_stage(record):
        return points
    for point in _curve(record):
        x = point["step"] if over == "steps" else _core_seconds(point, record)
        if x is not None and point["dice"] is not None:
            points.append((float(x), float(point["dice"])))
    return points


def of_second_stage(record: Mapping[str, Any]) -> bool:
    """Whether a record's curve is of the second of two stages alone: it then ends before the steps do, since the last step is validated.

    Its steps and seconds begin with that stage, and how long the first took is not known.
    """
    curve = _curve(record)
    return bool(curve) and record.get("steps") not in (None, curve[-1]["step"])


def _curve(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    curve = record.get("curve")
    return curve if isinstance(curve, list) else []


def _core_seconds(point: Mapping[str, Any], record: Mapping[str, Any]) -> float | None:
    """Of training until a validation. A budget of one core's time is shared out evenly over the steps that it was to pay for: what a clock
    on the wall said counts other work on the machine, too.
    """
    threads, budget = int(record.get("threads") or 1), record.get("budget", {})
    if threads == 1 and "core_seconds" in budget:
        return float(budget["core_seconds"] * point["step"] / record.get("planned_steps", record["steps"]))
    return None if point["seconds"] is None else float(point["seconds"] * threads)


def network_titles(scores: Sequence[Scores]) -> dict[str, str]:
    """Name in the records -> what pictures call it: the network's title in the paper; of several the one without settings of its own.

    All others, and those that begin with the weights of a model, have their own names.
    """
    from uxnet.networks.build import NETWORKS

    titles = {s.name: NETWORKS[network_of(s)].title if network_of(s) in NETWORKS else s.name for s in scores}
    usual = {s.name for s in scores if set(settings_of(s)) <= {"size"}}
    began = {s.name: init_of(s) is not None for s in scores}
    found = {}
    for name, title in titles.items():
        same = [other for other in titles if titles[other] == title]
        first = [other for other in same if other in usual] or same
        found[name] = title if first == [name] and not began[name] else name
    return found


def _in_order(names: Sequence[str]) -> list[str]:
    """The 3D UX-Net first, so that it has the first colour; the others in the order of table 1."""
    from uxnet.networks.build import NETWORKS

    order = [STRONG, *(entry.title for entry in NETWORKS.values())]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


# ---- figure 4


def slice_figure(
    folder: Path,
    trials: Sequence[Trial],
    dataset: str | Path,
    *,
    cases: Sequence[str] = (),
    rows: int = 3,
    plane: Plane = "axial",
    note: str = "",
) -> list[Path]:
    """Figure 4: a row a test case, the ground truth and each network's label map, each with the same box enlarged.

    Label maps are those that `uxnet crossval --keep-labels` kept. A network without one of a case has a dark panel.

    Args:
        folder: gets figure4.png and figure4.svg.
        dataset: the folder of the cases' images and label maps.
        cases: which ones; by default `rows` of those that all networks have, evenly spaced by the networks' mean Dice from the lowest
            to the highest.
        note: an attribution, for the foot of the page.

    Raises:
        InputError: if there are no records or label maps, the cases are not in the dataset, or a file cannot be written.
        DatasetError: if the dataset cannot be read.
    """
    if not trials:
        raise InputError(NO_RECORDS)
    manifest = read_dataset(Path(dataset))
    fitting = [t for t in trials if t.dataset == manifest.name]
    if len(fitting) != 1:
        there = ", ".join(f"{t.letter}: {t.dataset}" for t in trials)
        raise InputError(f"{dataset}: it is {manifest.name}, and the records are of {there}; give those of one cross-validation on it")
    trial = fitting[0]
    kept = {s.name: {case: path for case in s.cases if (path := label_map(trial, s, case))} for s in trial.scores}
    shown = [s for s in _by_title(trial) if kept[s.name]]
    if not shown:
        raise InputError(f"{trial.dataset}: no label map of a test case is there; a cross-validation keeps them with keep_labels=True")
    chosen = list(cases) or chosen_cases(shown, {name: list(paths) for name, paths in kept.items()}, rows)
    if not chosen:
        raise InputError("the networks have no test case in common whose label maps are all there; name the cases to show")
    titles = network_titles(trial.scores)
    drawn = [_row(manifest, shown, kept, case, plane) for case in chosen]
    how = (
        ""
        if cases
        else f"Cases: of the {_common(kept, shown)} that all networks segmented, evenly from the lowest to the highest mean Dice."
    )
    licence = f" ({manifest.licence})" if manifest.licence else ""
    first = f"{manifest.name}{licence}, {trial.terms().split(', ', 1)[1].split('; made by')[0]}."
    left_out = [titles[s.name] for s in trial.scores if s not in shown]
    missing = f"No label maps were kept of {', '.join(left_out)}." if left_out else ""
    text = "\n".join(filter(None, (first, RULE, how + (" " + missing if missing else ""), note)))
    paths = [folder / f"figure4{kind}" for kind in KINDS]
    for path in paths:
        zoomed_figure(path, drawn, manifest.labels, columns=("ground truth", *(titles[s.name] for s in shown)), note=text)
    return paths


def label_map(trial: Trial, scores: Scores, case: str) -> Path | None:
    """The label map that a cross-validation kept of a test case; None where it kept none."""
    for record in scores.records:
        if any(c["case"] == case for c in record["cases"]):
            for root in trial.folders.get(scores.name, ()):
                path = root / "runs" / f"{record['name']}-fold{record['fold']}" / "test" / f"{case}.nii.gz"
                if path.is_file():
                    return path
    return None


def chosen_cases(scores: Sequence[Scores], kept: dict[str, list[str]], rows: int) -> list[str]:
    """`rows` of the cases that all networks have, evenly spaced in the order of their mean Dice over the networks, lowest first."""
    shared = sorted(set.intersection(*(set(kept[s.name]) for s in scores)))
    means = {case: mean_of_counted(s.value(case) for s in scores) for case in shared}
    order = sorted(shared, key=lambda case: (-1.0 if means[case] is None else float(means[case] or 0.0), case))
    if rows >= len(order):
        return order
    if rows == 1:
        return [order[len(order) // 2]]
    return [order[round(n * (len(order) - 1) / (rows - 1))] for n in range(rows)]


def _by_title(trial: Trial) -> list[Scores]:
    """In the order of table 1, the 3D UX-Net last, as the paper has it."""
    from uxnet.networks.build import NETWORKS

    order = list(NETWORKS)
    return sorted(trial.scores, key=lambda s: order.index(network_of(s)) if network_of(s) in order else len(order))


def _row(manifest: Manifest, scores: Sequence[Scores], kept: dict[str, dict[str, Path]], case: str, plane: Plane) -> ZoomedRow:
    if case not in {c.name for c in manifest.cases}:
        raise InputError(f"{case}: there is no such case in {manifest.root}")
    facts = manifest.case(case)
    if facts.labels is None:
        raise InputError(f"{case}: it has no label map in {manifest.root}")
    image, truth = read_image(*facts.images), read_labels(facts.labels)
    maps: list[Volume | None] = [read_labels(kept[s.name][case]) if case in kept[s.name] else None for s in scores]
    if not any(maps):
        raise InputError(f"{case}: no network has a label map of this case; it is no test case, or its label map was not kept")
    spot = most_different(truth, [one for one in maps if one is not None], plane, background=manifest.labels.background)
    texts = [""]
    for s, one in zip(scores, maps, strict=True):
        dice = s.value(case) if case in s.cases else None
        texts.append("not run" if one is None else "no class counts" if dice is None else f"Dice {dice:.3f}")
    return ZoomedRow(case, image, (truth, *maps), tuple(texts), plane, spot)


def _common(kept: dict[str, dict[str, Path]], scores: Sequence[Scores]) -> int:
    return len(set.intersection(*(set(kept[s.name]) for s in scores)))


def figure_notes(trials: Sequence[Trial], band: Band | None = None) -> list[str]:
    """What a reader of a figure must know: what was run, with which settings, and what a band is."""
    said = [trial.terms() for trial in trials]
    said += [f"{t.letter}: {s.name} is {network_of(s)} ({settings_text(s)})." for t in trials for s in t.scores]
    return said + ([f"The band is {BANDS[band]}."] if band else [])
