"""`uxnet info`: what a model is and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

EXAMPLES = """examples:
  uxnet info runs/hippocampus/model.uxnet
  uxnet info hippocampus                     a model in the box
  uxnet info model.uxnet --json > model.json
"""


def run(
    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    *,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    box: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
) -> int:
    """Print what a model is: its networks, labels, channels, preparation, training data, split and scores.

    The weights and variants are checked against the hashes that the file declares.

    Args:
        model: a .uxnet file, or the name of a model in the box if there is no such file or folder.
        json: print the whole description as JSON instead.
        box: folder of models with cards, instead of the ones that come with uxnet.
    """
    import json as json_module

    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import Terminal
    from uxnet.errors import printable
    from uxnet.model.catalogue import resolve
    from uxnet.model.file import read_model, read_variant, read_weights, variants

    described = read_model(resolve(model, box))
    for stage in range(len(described.recipe.stages)):
        read_weights(described, stage)
    for variant in variants(described):
        if variant["engine"] == "openvino":  # others are a newer version's
            read_variant(described, variant["precision"], variant["stage"])
    if json:
        print(printable(json_module.dumps(described.description, indent=1, ensure_ascii=False)))
        return 0

    console = Terminal()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        table.add_row(name, escape(text))

    given, provenance = described.description, described.provenance
    row("model", f"{given['name']} (uxnet {given['uxnet']}, schema {given['schema']})")
    row("channels", ", ".join(described.channels))
    row("labels", ", ".join(f"{label.value} {label.name}" for label in described.labels.foreground))
    if described.labels.regions:
        row("regions", ", ".join(f"{r.name} = {list(r.values)}, writes {r.writes}" for r in described.labels.regions))
    for stage, settings in zip(given["stages"], described.recipe.stages, strict=True):
        row("network", f"{stage['network']}, {stage['parameters']:,} parameters, {dict(settings.network.settings)}")
        spacing = " x ".join(f"{s:g}" for s in settings.prepare.spacing_mm) or "as it comes"
        row("input", f"{settings.prepare.orientation}, spacing {spacing} mm, windows {list(settings.window)}")
        row("intensity", "; ".join(str(i) for i in settings.prepare.intensity))
    dataset, split = provenance.get("dataset", {}), provenance.get("split", {})
    cases, licence = f"{len(split['train'])} cases" if "train" in split else "cases not known", dataset.get("licence") or "not stated"
    converted, origin = provenance.get("converted"), provenance.get("init_from")
    if converted:
        row("converted", f"from {converted['file']} (sha256 {converted['sha256'][:12]}...), prepared as {converted['preparation']} says")
        for assumed in converted.get("assumed", ()):
            row("assumed", str(assumed))
        row("trained on", "not known: the weights are from elsewhere")
    else:
        row("trained on", f"{dataset.get('name', 'unknown')}, {cases}, licence {licence}")
        if origin:
            row("began with", f"{origin['model']} (sha256 {origin['sha256'][:12]}...): {origin['summary']}")
        if teachers := provenance.get("teachers"):
            row("taught by", ", ".join(f"{teacher['model']} (sha256 {teacher['sha256'][:12]}...)" for teacher in teachers))
        for stage in provenance.get("stages", [provenance]):
            row("training", ", ".join(f"{key} {value}" for key, value in stage.get("training", {}).items()))
    row("versions", ", ".join(f"{key} {value}" for key, value in provenance.get("versions", {}).items()))
    validation = provenance.get("validation", {})
    if validation:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in validation.get("classes", {}).items() if value is not None)
        shown = "none" if validation.get("dice") is None else f"{validation['dice']:.4f}"
        row("validation", f"mean Dice {shown} over {len(split.get('validation', []))} cases ({scores})")
    for variant in variants(described):
        row("variant", _variant(variant, len(given["stages"])))
    row("weights", "intact: they have the sha256 that the file declares")
    console.print(table, highlight=False)
    return 0


def _variant(variant: Mapping[str, Any], stages: int) -> str:
    """A variant in one line: what it is and what it costs."""
    where = f" of stage {variant['stage']}" if stages > 1 else ""
    made = ", ".join(f"{key} {value}" for key, value in variant.get("made_with", {}).items())
    dice = variant.get("dice")
    cost = ""
    if dice:
        cost = f"; mean Dice {dice['int8']:.4f} instead of {dice['float32']:.4f} over {dice['cases']} cases"
    return f"{variant['precision']}{where} for {variant['engine']}, windows {variant['window']} ({made}){cost}"
