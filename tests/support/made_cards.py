"""Boxes of models that nobody trained."""

import shutil
from dataclasses import replace

from uxnet.io import sha256
from uxnet.model.catalogue import Card, Data, Evaluation, Failure, Score, Training, write_card
from uxnet.model.file import read_model

CARD = Card(
    title="Things in noise",
    description="Segments things.",
    sha256="0" * 64,
    structures=("bright", "dark"),
    licence="CC0",
    intended_use="Tests.",
    input="Noise.",
    data=Data("Tiny", "CC0", "nobody", 8, 4),
    training=Training("tiny", "uxnet", 1000, (8,), (2,), "float32", "fold 0: 8 train, 2 validation"),
    evaluation=Evaluation(
        what="Measured with nothing.",
        cases=3,
        persons=2,
        by="person",
        tolerance_mm=1.0,
        scores=(
            Score("bright", (0.9, 0.8, 0.95), (1.5, 1.0, 2.0), (0.97, 0.9, 1.0)),
            Score("dark", (0.5,)),
            Score("mean", (0.7, 0.6, 0.8)),
        ),
        failures=(Failure("case_01", 0.25, "took the dark thing for noise"),),
    ),
    limits=("Knows noise only.",),
    made_by=("uxnet train tiny/",),
)


def fill(box, name, model, **changes):
    """Puts a copy of a model and a card for it into a box."""
    box.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, box / f"{name}.uxnet")
    changes.setdefault("structures", read_model(model).labels.classes)
    card = replace(CARD, sha256=sha256(box / f"{name}.uxnet"), **changes)
    write_card(box / f"{name}.toml", card)
    return card
