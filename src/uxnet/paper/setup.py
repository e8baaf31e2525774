"""Tables 4 and 5 of the paper: hyperparameters beside those of the recipes, and datasets beside what `uxnet inspect` finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from uxnet.dataset.check import check_dataset
from uxnet.dataset.manifest import read_dataset
from uxnet.errors import InputError
from uxnet.events import Report, silent
from uxnet.io import read_json
from uxnet.io.checked import as_kind
from uxnet.io.schemas import InspectedDataset
from uxnet.paper.printed import challenge_of, paper
from uxnet.paper.text import Cell, Entry, Feet, PaperTable, Section
from uxnet.recipe import load_recipe
from uxnet.recipe.settings import Stage

RECIPES: Mapping[str, tuple[str, ...]] = {"direct": ("feta2021", "flare2021", "amos2022"), "finetuning": ("amos2022-finetune",)}
READINGS = ("paper", "released")
NONE = "none"

AMBIGUOUS = (
    "In the text of the PDF the columns of table 4 run into each other; read are 2 sub-volumes and a batch of 2 for direct training, 1 and "
    "1 for fine-tuning, and no scheduler for fine-tuning."
)
NO_RATE = "Table 4 ticks dropout and gives no rate."
BATCH = "Batch size 2 with 2 sub-volumes is read as two patches a step, of one scan; two scans with two patches each would be 4."
SOURCES = (
    "Sources, from the comments of the recipes: T4, the paper's table 4; A.1, its appendix; other numbers, its sections; code, the "
    "authors' scripts at commit 14ea46b; ours, where neither says."
)
FLARE_SIZE = "The text says 511 cases; table 5 says 361, as many as are published with labels."
AMOS_LABELS = "The text says sixteen organs, which counts the background."


# ---- table 4


@dataclass(frozen=True)
class _Row:
    """A row of table 4: its name in the facts, the keys of a stage that it is about, and how a stage says it in the table's words.

    source: where it stands, if the comment above the first key does not say it.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Stage], str]
    source: str = ""


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def _rotation(stage: Stage) -> str:
    largest, axes = max(stage.augment.rotation_deg), [f"{a:g}" for a in stage.augment.rotation_deg]
    about = [name for name, angle in zip("xyz", stage.augment.rotation_deg, strict=True) if angle]
    same = len({a for a in stage.augment.rotation_deg if a}) <= 1
    return NONE if not largest else f"-{largest:g} to {largest:g} about {', '.join(about)}" if same else f"up to {', '.join(axes)}"


def _augmented(stage: Stage) -> str:
    a = stage.augment
    parts = {
        "intensity shift": a.intensity_shift or a.intensity_offset,
        "rotation": max(a.rotation_deg),
        "scaling": a.scale,
        "contrast": a.intensity_scale,
        "gamma": a.gamma,
        "noise": a.noise,
        "blur": a.blur,
        "mirroring": any(a.mirror),
    }
    return ", ".join(name for name, used in parts.items() if used) or NONE


def _scheduler(stage: Stage) -> str:
    return {"plateau": "ReduceLROnPlateau", "constant": NONE}.get(stage.schedule.kind, stage.schedule.kind)


def _crop(stage: Stage) -> str:
    above = stage.prepare.crop_above
    return "no crop" if above is None else f"to intensities above {above:g}"


def _setting(key: str, otherwise: Any) -> Callable[[Stage], Any]:
    return lambda stage: stage.network.settings.get(key, otherwise)


ROWS = (
    _Row("Encoder stages", ("network.settings.widths",), lambda s: str(len(_setting("widths", (48, 96, 192, 384))(s)))),
    _Row("Layer-wise channels", ("network.settings.widths",), lambda s: _listed(_setting("widths", (48, 96, 192, 384))(s))),
    _Row("Hidden dimensions", ("network.settings.hidden",), lambda s: str(_setting("hidden", 768)(s))),
    _Row("Patch size", ("sampling.patch",), lambda s: " x ".join(map(str, s.sampling.patch))),
    _Row("Sub-volumes cropped", ("sampling.per_case",), lambda s: str(s.sampling.per_case)),
    _Row("Training steps", ("training.steps",), lambda s: str(s.training.steps)),
    _Row("Batch size", ("training.batch",), lambda s: str(s.training.batch)),
    _Row("AdamW epsilon", ("optimiser.eps",), lambda s: f"{s.optimiser.eps:g}"),
    _Row("AdamW betas", ("optimiser.betas",), lambda s: _listed(s.optimiser.betas)),
    _Row("Peak learning rate", ("optimiser.learning_rate",), lambda s: f"{s.optimiser.learning_rate:g}"),
    _Row("Learning rate scheduler", ("schedule.kind",), _scheduler),
    _Row(
        "Factor and patience",
        ("schedule.factor", "schedule.patience"),
        lambda s: f"{s.schedule.factor:g}, {s.schedule.patience}" if s.schedule.kind == "plateau" else NONE,
    ),
    _Row("Dropout", ("network.settings.drop_path",), lambda s: f"{_setting('drop_path', 0.0)(s):g}"),
    _Row("Weight decay", ("optimiser.weight_decay",), lambda s: f"{s.optimiser.weight_decay:g}"),
    _Row("Data augmentation", ("augment",), _augmented, "see the rows below"),
    _Row("Cropped foreground", ("prepare.crop_above",), _crop),
    _Row("Intensity offset", ("augment.intensity_offset",), lambda s: f"{s.augment.intensity_offset:g}"),
    _Row("Rotation, degrees", ("augment.rotation_deg",), _rotation),
    _Row(
        "Scaling, each axis",
        ("augment.scale", "augment.anisotropic"),
        lambda s: f"{s.augment.scale:g}" if s.augment.anisotropic else f"{s.augment.scale:g}, all axes alike",
    ),
)
"""The rows of table 4, in its order."""


def hyperparameter_table() -> PaperTable:
    """Table 4: the paper's column, and the values of the recipes in the box that read the paper and its authors' scripts.

    Raises:
        RecipeError: if a recipe cannot be read.
    """
    facts, feet = paper(), Feet()
    sections, entries = [], []
    for scenario, title in (("direct", "Direct training"), ("finetuning", "Fine-tuning")):
        printed, lines = facts.hyperparameters[scenario], []
        stages = {r: {d: load_recipe(f"{d}-{r}").stages[0] for d in RECIPES[scenario]} for r in READINGS}
        for row in ROWS:
            mark = feet.mark({"Dropout": NO_RATE, "Batch size": BATCH if scenario == "direct" else ""}.get(row.name, ""))
            line = [Cell(row.name), Cell(printed[row.name], mark)]
            entries.append(Entry(scenario, row.name, "", "paper", printed[row.name], "printed"))
            for reading in READINGS:
                values = {dataset: row.read(stage) for dataset, stage in stages[reading].items()}
                said = [f"{value} †" if _differs(printed[row.name], value) else value for value in values.values()]
                line.append(Cell(_grouped(dict(zip(values, said, strict=True)))))
                note = f"{', '.join(row.keys)}: {row.source or _source(reading, scenario, row.keys[0])}"
                entries += [
                    Entry(f"{dataset}-{reading}", row.name, "", f"recipe, {reading}", v, "read", note=note) for dataset, v in values.items()
                ]
            sources = [row.source or _source(reading, scenario, row.keys[0]) for reading in READINGS]
            shown = sources[0] if len(set(sources)) == 1 else "; ".join(f"{r}: {s}" for r, s in zip(READINGS, sources, strict=True))
            lines.append((*line, Cell(", ".join(row.keys)), Cell(shown)))
        head = ("hyperparameter", "paper", "paper recipes", "released recipes", "keys", "source")
        of = f"{title}: recipes {', '.join(RECIPES[scenario])}, each in the readings paper and released"
        sections.append(Section(of, head, tuple(lines), "lppplp"))
    notes = [f"Paper: {facts.source}", "†: differs from the paper's table.", SOURCES, AMBIGUOUS]
    return PaperTable("table4", "Table 4: hyperparameters", tuple(sections), tuple(entries), tuple(notes), feet.all())


def _differs(printed: str, value: str) -> bool:
    """Whether a value is not the printed one. What is ticked without a figure differs only from nothing at all."""
    if printed.startswith("ticked"):
        return value in ("0", NONE, "no crop")
    return value.partition(" about ")[0] != printed


def _grouped(values: Mapping[str, str]) -> str:
    """One text where all datasets have the same, else each text with its datasets."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{', '.join(d for d, v in values.items() if v == text)}: {text}" for text in dict.fromkeys(values.values()))


def _source(reading: str, scenario: str, key: str) -> str:
    """The comments above a key in the recipes of a reading: of all datasets that say the same, once."""
    found = {d: comment_above(f"{d}-{reading}", key) for d in RECIPES[scenario]}
    return _grouped({d: text or "no comment" for d, text in found.items()})


def comment_above(recipe: str, key: str) -> str:
    """What a recipe in the box says above a key of its first stage: the last comment before it in its block of lines.

    Of a key that the recipe leaves out it is the first comment in its table; empty where there is none.

    Args:
        recipe: its name; key: such as "optimiser.weight_decay".
    """
    text = (resources.files("uxnet") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")
    table, _, name = key.rpartition(".")
    inside, comment, fresh, first = False, "", False, ""
    for line in map(str.strip, text.splitlines()):
        header = re.fullmatch(r"\[+stages(?:\.([\w.]+))?\]+", line)
        if line.startswith("#"):
            words = line.lstrip("# ")
            comment, fresh = f"{comment} {words}" if fresh else words, True
            continue
        if header or not line:
            comment = ""
        if header:
            inside = header[1] == table
        elif inside and re.match(rf"{re.escape(name)}\s*=", line):
            return comment.rstrip(".")
        elif inside and line:
            first = first or comment
        fresh = False
    return first.rstrip(".")


# ---- table 5


def overview_table(sources: Sequence[str | Path], *, workers: int = 1, report: Report = silent) -> PaperTable:
    """Table 5: what the paper says of its datasets, and what is in ours.

    Args:
        sources: inspection.json of `uxnet inspect -o`, or of a run; folders with one; or datasets, which are read.
        workers: processes that read cases.

    Raises:
        InputError: if one is neither.
        DatasetError: if a dataset cannot be read.
    """
    facts, feet = paper(), Feet()
    found = [_inspection(Path(source), workers, report) for source in sources]
    of: dict[str, list[dict[str, Any]]] = {}
    for inspection in found:
        classes = [str(label["name"]) for label in inspection["labels"]["foreground"]]
        challenge = challenge_of(str(inspection["dataset"]), classes)
        of.setdefault(challenge.name if challenge else "", []).append(inspection)
    sections, entries = [], []
    feet_of = {"FLARE2021": ("cases", FLARE_SIZE), "AMOS2022": ("labels", AMOS_LABELS)}
    for name, overview in facts.overviews.items():
        printed = {
            "modality": overview.modality,
            "region": overview.region,
            "size, voxels": overview.size,
            "spacing, mm": overview.spacing,
            "cases": str(overview.cases),
            "labels": ", ".join(overview.labels),
        }
        where, doubted = feet_of.get(name, ("", ""))
        marks = {where: feet.mark(doubted)} if where else {}
        section, said = _overview(facts.challenges[name].title, name, printed, marks, of.get(name, []))
        sections.append(section)
        entries += said
    for inspection in of.get("", []):
        section, said = _overview(f"{inspection['dataset']} (not a dataset of the paper)", str(inspection["dataset"]), {}, {}, [inspection])
        sections.append(section)
        entries += said
    notes = [f"Paper: {facts.source}", "Ours: least and greatest along each axis of the files as they are stored, by uxnet inspect."]
    if not found:
        notes.append("No dataset was given, so nothing of ours was read: give a dataset's folder, or the inspection.json of uxnet inspect.")
    return PaperTable("table5", "Table 5: datasets", tuple(sections), tuple(entries), tuple(notes), feet.all())


def _overview(
    title: str, dataset: str, printed: Mapping[str, str], marks: Mapping[str, str], inspections: Sequence[Mapping[str, Any]]
) -> tuple[Section, list[Entry]]:
    ours = [_described(i) for i in inspections]
    head = ["", *(["paper"] if printed else []), *(f"ours: {i['dataset']}" for i in inspections)]
    head += [] if ours else ["ours"]
    lines, entries = [], []
    for row in ("modality", "region", "size, voxels", "spacing, mm", "cases", "labels"):
        line = [Cell(row)]
        if printed:
            line.append(Cell(printed[row], marks.get(row, "")))
            entries.append(Entry(dataset, row, "", "paper", printed[row], "printed"))
        for facts in ours:
            off = int(facts[row]) - int(printed[row]) if printed and row == "cases" else None
            line.append(Cell(facts[row] + (f" ({off:+d})".replace("-", "−") if off else "")))
            unknown = facts[row] == "not in the files"
            value = None if unknown else facts[row]
            entries.append(Entry(dataset, row, "", "ours", value, "not read" if unknown else "read", against_paper=off))
        if not ours:
            line.append(Cell("not read"))
            entries.append(Entry(dataset, row, "", "ours", None, "not read"))
        lines.append(tuple(line))
    return Section(title, tuple(head), tuple(lines), "l" + "p" * (len(head) - 1)), entries


def _described(inspection: Mapping[str, Any]) -> dict[str, str]:
    """The rows of table 5 of an inspection."""
    facts = inspection["fingerprint"]
    sizes = [(f"{s['minimum']:.0f}", f"{s['maximum']:.0f}") for s in facts["sizes_vox"]]
    spacings = [(f"{s['minimum']:.2f}", f"{s['maximum']:.2f}") for s in facts["spacings_mm"]]
    return {
        "modality": ", ".join(inspection["channel_names"]) or "not in the files",
        "region": "not in the files",
        "size, voxels": _ranges(sizes),
        "spacing, mm": _ranges(spacings),
        "cases": str(inspection["cases"]),
        "labels": ", ".join(str(label["name"]) for label in inspection["labels"]["foreground"]),
    }


def _ranges(pairs: Sequence[tuple[str, str]]) -> str:
    return " x ".join(low if low == high else f"{low}-{high}" for low, high in pairs) or "not in the files"


def _inspection(source: Path, workers: int, report: Report) -> dict[str, Any]:
    """The inspection that a path stands for, checked for what is read of it."""
    if source.is_dir() and not (source / "inspection.json").is_file():
        return check_dataset(read_dataset(source), workers=workers, report=report).to_dict()
    path = source / "inspection.json" if source.is_dir() else source
    data = read_json(path)
    try:
        as_kind(data, InspectedDataset)
    except ValueError as wrong:
        raise InputError(f"{path}: {wrong}; it is no inspection of uxnet inspect: make it anew") from wrong
    return data
