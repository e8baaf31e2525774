"""`uxnet models`: what is in the box, the card of a model, and how a model gets into it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

# What draws and computes is imported where it is used, so that `--help` answers at once.
if TYPE_CHECKING:
    from rich.console import Console

    from uxnet.model.catalogue import Card, Domain

EXAMPLES = """examples:
  uxnet models
  uxnet models hippocampus
  uxnet models --json
  uxnet models hippocampus --make M.uxnet --records cv --facts facts.toml -o src/uxnet/models     makes file and card for the box
"""


def run(
    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None,
    *,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    box: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    make: Annotated[Path | None, tyro.conf.arg(metavar="MODEL")] = None,
    records: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = (),
    facts: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="DIR")] = None,
    half: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> int:
    """List the models that come with uxnet, or print the card of one: data and licence, scores, failures, limits.

    `uxnet predict NAME scan.nii.gz -o out/` segments with one. A model whose card is missing or damaged is left out of the list and named,
    and the exit code is 1.

    Args:
        name: a model in the box.
        json: print the card, or a list of all of them, as JSON instead.
        box: folder of models with cards, instead of the ones that come with uxnet.
        make: put this model file under NAME into the folder of --output, with a card.
        records: what the card's scores are read from: a folder of uxnet crossval, records of it, or a JSON file of uxnet evaluate; can be
            given several times. Of several networks the model's is taken.
        facts: a TOML file with what of the card cannot be read from anywhere else (docs/models.md).
        output: the folder that the model and its card are written to.
        half: store the weights of the model in 16 bits.
    """
    import json as json_module

    from rich.markup import escape

    from uxnet.cli.render import Terminal
    from uxnet.errors import UsageError, printable
    from uxnet.model.catalogue import in_the_box, names, no_such, read_card
    from uxnet.recipe import to_plain

    console = Terminal()
    if make or records or facts or output:
        if not (name and make and records and facts and output):
            raise UsageError("to make a card, give a name, --make MODEL, --records, --facts and --output")
        from uxnet.crossval.card import make_card

        card = make_card(name, make, records, facts, output, half=half)
        console.print(f"written: {output / name}.uxnet and {output / name}.toml", soft_wrap=True, highlight=False)
        _print_card(console, name, card)
        return 0
    if name and name not in names(box):
        raise UsageError(no_such(name, box))
    cards, broken = ({name: read_card(name, box)}, []) if name else _cards(box)
    if json:
        told = [{"name": one, "bytes": _bytes(one, box), **to_plain(card)} for one, card in cards.items()]
        print(printable(json_module.dumps(told[0] if name else told, indent=1, ensure_ascii=False)))
    elif name:
        _print_card(console, name, cards[name])
    elif cards:
        _print_list(console, cards, box)
    elif not broken:
        console.print(f"there is no model {in_the_box(box)}", highlight=False)
    for why in broken:
        Terminal(stderr=True).print(f"[red]left out:[/] {escape(why)}", soft_wrap=True, highlight=False)
    return 1 if broken else 0


def _cards(box: Path | None) -> tuple[dict[str, Card], list[str]]:
    """Of every model in the box that has one; and what is wrong with the others."""
    from uxnet.errors import ModelError
    from uxnet.model.catalogue import names, read_card

    cards, broken = {}, []
    for name in names(box):
        try:
            cards[name] = read_card(name, box)
        except ModelError as error:
            broken.append(str(error))
    return cards, broken


def _bytes(name: str, box: Path | None) -> int:
    from uxnet.model.catalogue import model_file

    return model_file(name, box).stat().st_size


def _print_list(console: Console, cards: dict[str, Card], box: Path | None) -> None:
    from rich import box as boxes
    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import with_interval

    table = Table(box=boxes.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("name", no_wrap=True)
    table.add_column("structures", overflow="fold")
    for title in ("mean Dice", "size"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("licence", overflow="fold")
    for name, card in cards.items():
        dice = with_interval(next((score.dice for score in card.evaluation.scores if score.structure == "mean"), ()), 3)
        size = f"{_bytes(name, box) / 1e6:.1f} MB"
        table.add_row(name, escape("\n".join(card.structures)), dice, size, escape(card.licence.partition(" (")[0]))
    console.print(table)
    console.print("[dim]uxnet models NAME prints a model's card. Not medical devices.[/]", highlight=False)


def _print_card(console: Console, name: str, card: Card) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{escape(card.title)}[/]  ({name})", highlight=False)
    console.print(f"[bold]{escape(card.not_for)}[/]\n", highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in _rows(card):
        table.add_row(what, escape(text))
    console.print(table, highlight=False)
    console.print()
    _print_scores(console, card)
    for title, lines in (
        ("worst cases", [f"{one.case}, mean Dice {one.dice:.3f}: {one.what}" for one in card.evaluation.failures]),
        ("known limits", card.limits),
        ("made by", card.made_by),
    ):
        if lines:
            console.print(f"\n[bold]{title}[/]")
        for line in lines:
            console.print(f"  {escape(line)}", highlight=False)


def _rows(card: Card) -> list[tuple[str, str]]:
    """The card's sentences, each with what it is about."""
    trained = card.training
    steps, batch = (" + ".join(map(str, numbers)) for numbers in (trained.steps, trained.batch))
    persons = f" of {card.data.persons} persons" if card.data.persons else ""
    of = f"{card.data.cases} cases{persons}" if card.data.cases else "cases not known"
    rows = [
        ("what", card.description),
        ("structures", ", ".join(card.structures)),
        ("input", card.input),
        ("", _domain(card.domain)),
        ("intended use", card.intended_use),
        ("licence", card.licence),
        ("trained on", f"{card.data.name}, {of}, {card.data.licence}"),
        ("attribution", card.data.attribution),
        ("training", f"recipe {trained.recipe}, {trained.network}, {trained.parameters:,} parameters, {steps} steps of {batch} patches"),
        ("", f"computed in {trained.precision}, weights kept in {trained.weights}; {trained.split}"),
    ]
    if card.whole:
        rows.append(("whole scans", f"{' and '.join(card.whole.sides)} are found by {card.whole.localiser} first"))
    rows.append(("sha256", card.sha256))
    return [(what, text) for what, text in rows if text]


def _domain(domain: Domain | None) -> str:
    """By what scans are checked, in words."""
    if domain is None:
        return ""
    parts = []
    if domain.sides_mm:
        sides = " x ".join(f"{low:g}-{high:g}" for low, high in domain.sides_mm)
        parts.append(f"scans of {sides} mm (the shortest side first)")
    if domain.spacing_mm:
        parts.append("voxels of {:g}-{:g} mm".format(*domain.spacing_mm))
    if domain.hounsfield:
        parts.append(" and ".join({True: "CT in Hounsfield units", False: "no CT", None: "any values"}[one] for one in domain.hounsfield))
    return f"checked: {', '.join(parts)}" if parts else ""


def _print_scores(console: Console, card: Card) -> None:
    from rich import box as boxes
    from rich.markup import escape
    from rich.table import Table

    from uxnet.cli.render import with_interval

    evaluation = card.evaluation
    table = Table(box=boxes.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    table.add_column("structure", overflow="fold")
    for title in ("Dice", "HD95 mm", f"NSD {evaluation.tolerance_mm:g} mm"):
        table.add_column(title, justify="right", no_wrap=True)
    for score in evaluation.scores:
        table.add_row(escape(score.structure), with_interval(score.dice, 3), with_interval(score.hd95_mm, 2), with_interval(score.nsd, 3))
    console.print(table)
    of = f" of {evaluation.persons} persons" if evaluation.persons else ""
    over = f"{evaluation.cases} cases{of}; mean (95 % bootstrap interval over {evaluation.by}s)"
    console.print(f"[dim]{over}[/]", highlight=False)
    console.print(escape(evaluation.what), highlight=False)
