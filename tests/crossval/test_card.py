"""A model and its records become a card."""

import json

import numpy as np
import pytest
from made_records import made_record, write_records

from uxnet.crossval import card as making
from uxnet.crossval.card import make_card
from uxnet.errors import InputError
from uxnet.evaluation.statistics import bootstrap_mean
from uxnet.model.catalogue import read_card
from uxnet.model.file import read_model, read_weights, variants, with_variants, write_model

CLASSES = ("bright", "dark")
FACTS = """
title = "Things"
description = "Segments things."
licence = "CC0"
intended_use = "Tests."
input = "Noise."
limits = ["Knows noise only."]
made_by = ["uxnet train tiny/"]
[data]
attribution = "nobody"
[failures]
case_2 = "moved while it was scanned"
"""


@pytest.fixture
def facts(tmp_path):
    path = tmp_path / "facts.toml"
    path.write_text(FACTS)
    return path


def records(folder, tiny_recipe, dices, **more):
    """One fold a case; cases 2k and 2k + 1 are one person's."""
    settings = dict(tiny_recipe.stages[0].network.settings)
    made = []
    for fold, dice in enumerate(dices):
        record = made_record("tiny", fold, {f"case_{fold}": dice}, classes=CLASSES, network="uxnet", settings=settings, **more)
        record["cases"][0]["person"] = f"person {fold // 2}"
        made.append(record)
    return write_records(folder, made)


def test_what_can_be_read_is_read(tmp_path, tiny_model, tiny_recipe, facts):
    dices = [(0.9, 0.7), (0.8, 0.8), (0.2, 0.4), (0.9, 0.9)]
    cv = records(tmp_path / "cv", tiny_recipe, dices)
    card = make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box", worst=2)
    assert read_card("tiny", tmp_path / "box") == card
    assert (tmp_path / "box" / "tiny.uxnet").read_bytes() == tiny_model().read_bytes()
    assert (card.title, card.structures, card.data.name, card.data.attribution) == ("Things", CLASSES, "Tiny", "nobody")
    assert (card.training.recipe, card.training.network, card.training.steps) == ("tiny", "uxnet", (8,))
    assert card.training.split == "1 train, 1 validation"
    # By person: each the mean of its cases.
    evaluation = card.evaluation
    assert (evaluation.cases, evaluation.persons, evaluation.by) == (4, 2, "person")
    bright, dark, mean = evaluation.scores
    np.testing.assert_allclose(bright.dice, bootstrap_mean([0.85, 0.55]), atol=1e-4)
    np.testing.assert_allclose(dark.dice[0], 0.7)
    np.testing.assert_allclose(mean.dice, bootstrap_mean([0.8, 0.6]), atol=1e-4)
    assert [(one.case, one.dice) for one in evaluation.failures] == [("case_2", 0.3), ("case_0", 0.8)]
    assert evaluation.failures[0].what == "moved while it was scanned"
    assert evaluation.failures[1].what == "dark: Dice 0.700, HD95 3.0 mm, 1.00 ml where the reference has 1.00 ml"
    assert "4 models of the same recipe" in evaluation.what
    assert "trained on none of these cases" in evaluation.what


def test_cases_that_the_model_was_trained_on_are_said(tmp_path, tiny_model, tiny_recipe, facts):
    cv = records(tmp_path / "cv", tiny_recipe, [0.9, 0.8])
    text = (cv / "records" / "tiny-fold0.json").read_text().replace("case_0", "a")
    (cv / "records" / "tiny-fold0.json").write_text(text)
    # A case of that name in another dataset is another case.
    card = make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "other")
    assert "trained on none of these cases" in card.evaluation.what
    for path in (cv / "records").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "Tiny"}))
    card = make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box")
    assert "trained on 1 of these 2 cases" in card.evaluation.what


def test_records_of_networks_with_deep_supervision_are_those_of_models_without(tmp_path, tiny_model, tiny_recipe, facts):
    told, settings = read_model(tiny_model()), dict(tiny_recipe.stages[0].network.settings)
    on = not read_model(told.path).recipe.stages[0].network.settings.get("deep_supervision", False)
    made = [
        made_record("tiny", 0, {"case_0": 0.9}, classes=CLASSES, network="uxnet", settings=settings | {"deep_supervision": on}),
        made_record("wide", 0, {"case_0": 0.9}, classes=CLASSES, network="uxnet", settings=settings | {"hidden": 99}),
    ]
    card = make_card("tiny", told.path, [str(write_records(tmp_path / "cv", made))], facts, tmp_path / "box")
    assert card.evaluation.cases == 1


def test_whether_cases_were_trained_on_is_not_known_of_a_model_that_does_not_say(tmp_path, tiny_model, tiny_recipe, facts):
    told = read_model(tiny_model())
    silent = tmp_path / "silent.uxnet"
    write_model(silent, [read_weights(told)], recipe=told.recipe, labels=told.labels, channels=told.channels, provenance={})
    card = make_card("tiny", silent, [str(records(tmp_path / "cv", tiny_recipe, [0.9]))], facts, tmp_path / "box")
    assert card.evaluation.what.endswith("Whether the model in the box was trained on any of these cases is not known.")


def test_half_the_bytes(tmp_path, tiny_model, tiny_recipe, facts, monkeypatch):
    cv = records(tmp_path / "cv", tiny_recipe, [0.9, 0.8])
    size = tiny_model().stat().st_size
    monkeypatch.setattr(making, "MOST_BYTES", size - 1)
    with pytest.raises(InputError, match=r"models in the box are of at most .* half=True stores its weights in half the bytes"):
        make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box")
    assert not (tmp_path / "box").exists()
    card = make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box", half=True)
    assert card.training.weights == "float16"
    whole, half = (read_weights(read_model(path)) for path in (tiny_model(), tmp_path / "box" / "tiny.uxnet"))
    for key, array in whole.items():
        assert half[key].dtype == (np.float16 if array.dtype == np.float32 else array.dtype)
        np.testing.assert_allclose(half[key], array, rtol=1e-3, atol=1e-6)


def test_half_the_bytes_would_lose_the_variants(tmp_path, tiny_model, tiny_recipe, facts):
    model, cv = read_model(tiny_model()), records(tmp_path / "cv", tiny_recipe, [0.9])
    stage = {"stage": 0, "window": [16, 16, 16], "weights_sha256": model.description["stages"][0]["sha256"]}
    with_variants(model.path, tmp_path / "int8.uxnet", [({"precision": "int8", **stage}, b"<net/>", b"x")])
    with pytest.raises(InputError, match=r"int8\.uxnet: its int8 variants .* would be lost by half=True"):
        make_card("tiny", tmp_path / "int8.uxnet", [str(cv)], facts, tmp_path / "box", half=True)
    make_card("tiny", tmp_path / "int8.uxnet", [str(cv)], facts, tmp_path / "box")
    assert len(variants(read_model(tmp_path / "box" / "tiny.uxnet"))) == 1


def test_a_model_and_its_card_come_together(tmp_path, tiny_model, tiny_recipe, facts, monkeypatch):
    def full(*_):
        raise OSError("no room")

    cv = records(tmp_path / "cv", tiny_recipe, [0.9])
    monkeypatch.setattr(making, "write_card", full)
    with pytest.raises(OSError, match="no room"):
        make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box")
    assert list((tmp_path / "box").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": {"size": "narrow"}}, r"0 of the scored networks \(tiny\) are uxnet"),
        ({"classes": ("left", "right")}, "the records score left, right, the model segments bright, dark"),
    ],
)
def test_other_records_are_refused(tmp_path, tiny_model, tiny_recipe, facts, changes, words):
    settings = dict(tiny_recipe.stages[0].network.settings)
    given = {"classes": CLASSES, "network": "uxnet", "settings": settings} | changes
    cv = write_records(tmp_path / "cv", [made_record("tiny", 0, {"case_0": 0.9}, **given)])
    with pytest.raises(InputError, match=words):
        make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("title =", "titel ="), "the facts of the card: titel: unknown key"),
        (('licence = "CC0"', ""), "the facts of the card: licence: is missing"),
        (("[data]", "[data"), "cannot be read as the facts of a card"),
    ],
)
def test_facts_that_are_wrong_are_named(tmp_path, tiny_model, tiny_recipe, facts, changed, words):
    facts.write_text(facts.read_text().replace(*changed))
    cv = records(tmp_path / "cv", tiny_recipe, [0.9])
    with pytest.raises(InputError, match=words):
        make_card("tiny", tiny_model(), [str(cv)], facts, tmp_path / "box")


def test_a_name_is_a_plain_word(tmp_path, tiny_model, facts):
    with pytest.raises(InputError, match=r"'a\.b': a name in the box is a word"):
        make_card("a.b", tiny_model(), [], facts, tmp_path)
