"""The demo: from nothing to scans that are segmented, scored and shown on a page; with a dataset of one's own, the same on that."""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uxnet.cohort.run import Scan, predict
from uxnet.dataset.folds import read_split
from uxnet.dataset.manifest import Case, Manifest, read_dataset
from uxnet.demo.intensity import fit as fit_intensities
from uxnet.demo.phantoms import write_phantoms
from uxnet.draw import Plane, Row, comparison_figure
from uxnet.errors import DatasetError, plural
from uxnet.evaluation import Evaluation, evaluate_pairs, write_evaluation
from uxnet.events import Note, Report, silent
from uxnet.io import atomic, read_image, read_labels, write_labels
from uxnet.prepare.intensity import normalise
from uxnet.recipe import Recipe, load_recipe
from uxnet.volume import Volume

PHANTOMS = 24
"""Cases of the default demo; a fifth of them is held out."""

_SHOWN = 4
_CLASSIFIER = "by intensity alone"


@dataclass(frozen=True)
class Demo:
    """What the demo leaves: its page, the scores of the network and of the intensity classifier, and how long it took."""

    page: Path
    network: Evaluation
    intensity: Evaluation | None
    seconds: float


def run_demo(
    out: Path,
    *,
    data: Path | None = None,
    recipe: Recipe | None = None,
    fold: int = 0,
    cases: int = PHANTOMS,
    workers: int = 1,
    device: str = "auto",
    report: Report = silent,
) -> Demo:
    """Trains on one part of a dataset, segments and scores the other, and writes a page of pictures.

    Whatever an earlier, interrupted call finished in `out` is kept.

    Args:
        out: folder for everything: data, run, predictions, metrics, pictures, index.html.
        data: a dataset; None makes labelled phantoms.
        recipe: by default "phantom", which has a fixed seed and number of steps.
        fold: the part that is held out.
        cases: phantoms to make.
        workers: processes that draw, check and prepare cases, see `training.run.train`.

    Raises:
        UxnetError: as making phantoms, training, prediction and evaluation raise it.
    """
    from uxnet.inference.segmenter import load_segmenter
    from uxnet.inference.settings import Settings
    from uxnet.training.run import train

    started = time.monotonic()
    phantoms = data is None
    if data is None:
        data = out / "data"
        report(Note(f"making {cases} labelled phantoms: synthetic shapes with CT-like numbers, not patients"))
        write_phantoms(data, cases, workers=workers, report=report)
    manifest = read_dataset(data)
    recipe = recipe or load_recipe("phantom")
    run = out / "run"
    model = train(manifest, recipe, run, fold=fold, resume=(run / "recipe.toml").exists(), device=device, workers=workers, report=report)

    split = read_split(run / "split.json", manifest).folds[fold]
    held_out = [manifest.case(name) for name in split.test or split.validation]
    predict(
        load_segmenter([model], Settings(device=device), report),
        [Scan(case.name, case.images) for case in held_out],
        out / "predictions",
        overwrite=True,
        report=report,
    )
    network = _score(held_out, out / "predictions", manifest)
    write_evaluation(out / "metrics.json", network)
    intensity = None
    if len(manifest.channel_names) == 1 and not manifest.labels.regions:
        _classify_by_intensity([manifest.case(name) for name in split.train], held_out, manifest, recipe, out / "by_intensity")
        intensity = _score(held_out, out / "by_intensity", manifest)
    shown = _pick(network, held_out)
    pictures = _pictures(shown, manifest, recipe, out, network, intensity, phantoms)
    seconds = time.monotonic() - started
    page, curves = out / "index.html", sorted(run.glob("**/curves.png"))  # one a stage
    with atomic(page) as temporary:
        temporary.write_text(_page(manifest, recipe, network, intensity, [pictures, *curves], phantoms, len(split.train)), encoding="utf-8")
    return Demo(page, network, intensity, seconds)


def _score(cases: Sequence[Case], predictions: Path, manifest: Manifest) -> Evaluation:
    pairs = [(case.name, predictions / f"{case.name}.nii.gz", case.labels) for case in cases if case.labels is not None]
    evaluation = evaluate_pairs(pairs, manifest.labels)
    if evaluation.failures:
        raise DatasetError(f"{evaluation.failures[0].name}: {evaluation.failures[0].message}")
    return evaluation


def _classify_by_intensity(train: Sequence[Case], held_out: Sequence[Case], manifest: Manifest, recipe: Recipe, out: Path) -> None:
    """The baseline: each voxel by its intensity alone, as well as histograms of the training cases can tell.

    Intensities are normalised as the network's are: a fair baseline knows as much of a scan's scale.
    """

    def read(case: Case) -> Volume:
        volume = read_image(*case.images)
        return volume.with_array(normalise(volume.array, recipe.stages[0].prepare.intensity, volume.name))

    volumes = [(read(case), read_labels(case.labels)) for case in train if case.labels is not None]
    classifier = fit_intensities(volumes, manifest.labels)
    for case in held_out:
        write_labels(out / f"{case.name}.nii.gz", classifier.segment(read(case)))


def _pick(evaluation: Evaluation, cases: Sequence[Case]) -> list[Case]:
    """Cases from the worst to the best, evenly chosen: a page of the best alone would flatter."""
    ranked = [case.name for case in evaluation.worst(len(cases))]
    count = min(_SHOWN, len(ranked))
    chosen = [ranked[round(n * (len(ranked) - 1) / max(1, count - 1))] for n in range(count)]
    by_name = {case.name: case for case in cases}
    return [by_name[name] for name in chosen]


def _pictures(
    cases: Sequence[Case],
    manifest: Manifest,
    recipe: Recipe,
    out: Path,
    network: Evaluation,
    intensity: Evaluation | None,
    phantoms: bool,
) -> Path:
    rows: list[Row] = []
    for case in cases:
        if case.labels is None:
            continue
        maps = [read_labels(case.labels), read_labels(out / "predictions" / f"{case.name}.nii.gz")]
        texts = ["", f"Dice {_dice(network, case.name)}"]
        if intensity is not None:
            maps.append(read_labels(out / "by_intensity" / f"{case.name}.nii.gz"))
            texts.append(f"Dice {_dice(intensity, case.name)}")
        plane: Plane = "coronal" if phantoms and len(rows) % 2 else "axial"
        rows.append(Row(case.name, read_image(*case.images), tuple(maps), tuple(texts), plane))
    columns = ("image", "reference", _network_name(recipe), *((_CLASSIFIER,) if intensity is not None else ()))
    what = "synthetic phantoms, not patients" if phantoms else f"{manifest.name}, {manifest.licence or 'licence not stated'}"
    title = "Held-out cases, from the worst to the best"
    # Shown as the network sees it: through the recipe's intensity window, where there is one.
    clip = recipe.stages[0].prepare.intensity[0].clip
    limits = (clip[0], clip[1]) if clip else None
    path = out / "pictures.png"
    comparison_figure(path, rows, manifest.labels, columns=columns, title=title, note=what, limits=limits)
    return path


def _network_name(recipe: Recipe) -> str:
    from uxnet.networks.build import NETWORKS

    return NETWORKS[recipe.stages[0].network.name].title


def _dice(evaluation: Evaluation, name: str) -> str:
    value = next(case for case in evaluation.cases if case.name == name).mean("dice")
    return "-" if value is None else f"{value:.3f}"


def _page(
    manifest: Manifest,
    recipe: Recipe,
    network: Evaluation,
    intensity: Evaluation | None,
    pictures: Sequence[Path],
    phantoms: bool,
    trained_on: int,
) -> str:
    """One HTML file with its pictures inside."""
    if phantoms:
        what = (
            "These are <strong>phantoms</strong>: synthetic shapes with CT-like numbers, made by this program. They show that the "
            "whole way works on this machine. They say nothing about how well it segments patients."
        )
    else:
        what = f"Data: {html.escape(manifest.name)}, licence {html.escape(manifest.licence or 'not stated')}."
    head = "<tr><th>structure</th><th>Dice</th><th>HD95, mm</th><th>NSD</th>"
    head += "<th>Dice by intensity alone</th></tr>" if intensity is not None else "</tr>"
    baseline = dict(zip((s.name for s in intensity.classes()), intensity.classes(), strict=True)) if intensity is not None else {}
    lines = [_line(s.name, s, baseline.get(s.name)) for s in network.classes()]
    lines.append(_line("mean", network.overall(), intensity.overall() if intensity is not None else None))
    steps = " and ".join(str(stage.training.steps) for stage in recipe.stages)
    images = "\n".join(f'<img alt="{p.stem}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}">' for p in pictures)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>uxnet demo: {html.escape(manifest.name)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #d8dee6; }}
th:first-child, td:first-child {{ text-align: left; }} tr:last-child td {{ font-weight: 600; }} img {{ width: 100%; margin: 1rem 0; }}
</style>
<h1>uxnet demo: {html.escape(manifest.name)}</h1>
<p>{what}</p>
<p>A {html.escape(_network_name(recipe))} trained on {plural(trained_on, "case")} for {steps} step{"" if steps == "1" else "s"}; scored on
{plural(len(network.cases), "case")} that it was not trained on, on their own grids. Not a medical device.</p>
<table>{head}
{"".join(lines)}</table>
<p>HD95: 95th percentile of surface distances. NSD: share of the surface within {network.tolerance_mm:g} mm.</p>
{images}
</html>
"""


def _line(name: str, summary: Any, baseline: Any) -> str:
    cells = [_cell(summary.dice, 3), _cell(summary.hd95_mm, 1), _cell(summary.nsd, 3)]
    cells += [_cell(baseline.dice, 3)] if baseline is not None else []
    return f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"


def _cell(score: Any, digits: int) -> str:
    mean = score.interval.mean
    return "-" if mean is None else f"{mean:.{digits}f}"
