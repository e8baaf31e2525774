"""Pictures of validations: of the same cases, few, small, and whole or not there."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxnet.errors import InputError
from uxnet.events import silent
from uxnet.geometry import Geometry
from uxnet.io.records import append_record
from uxnet.labels import Label, Labels
from uxnet.recipe import Training
from uxnet.training import progress as showing
from uxnet.training.pictures import PICTURES, Shown, choose_cases, keep_slice, picture, picture_due
from uxnet.volume import Volume

LABELS = Labels((Label("a", 1), Label("b", 2)))


def shown(name="case", dice=0.5):
    rng, shape = np.random.default_rng(len(name)), (20, 16, 12)
    geometry = Geometry(shape, np.diag([1.0, 1.0, 2.0, 1.0]))
    reference = np.zeros((1, *shape), dtype=np.uint8)
    reference[0, 4:9, 4:12, 7:10] = 1
    reference[0, 10:16, 4:12, 8] = 2
    image = Volume((rng.normal(0, 0.1, (2, *shape)) + reference).astype(np.float32), geometry)
    return Shown(name, image, Volume(reference, geometry), Volume(np.roll(reference, 1, axis=1), geometry), dice)


@given(st.integers(1, 400))
def test_pictures_are_few_and_evenly_spread_with_the_first_and_the_last(total):
    due = [number for number in range(1, total + 1) if picture_due(number, total)]
    assert due[0] == 1
    assert due[-1] == total
    assert len(due) == min(total, PICTURES)
    gaps = np.diff(due)
    assert not gaps.size or gaps.max() - gaps.min() <= 1


@given(st.sets(st.text("abc012", min_size=1, max_size=4)), st.integers(1, 5), st.randoms())
def test_the_same_cases_are_shown_whatever_their_order(names, count, random):
    chosen = choose_cases(sorted(names), count)
    mixed = list(names)
    random.shuffle(mixed)
    assert choose_cases(mixed, count) == chosen == tuple(sorted(set(chosen)))
    assert set(chosen) <= names
    assert len(chosen) == min(count, len(names))


def test_a_slice_is_all_that_a_picture_needs(tmp_path):
    cases = [shown("one"), shown("three", None)]
    kept = [keep_slice(case, LABELS) for case in cases]
    assert [case.reference.geometry.shape for case in kept] == [(20, 16, 1)] * 2
    assert kept[0].image.array.shape == (1, 20, 16, 1)
    for name, some in (("whole", cases), ("kept", kept)):
        picture(tmp_path / f"{name}.png", some, LABELS, "a run, step 10", limits=(0, 2))
    assert (tmp_path / "whole.png").read_bytes() == (tmp_path / "kept.png").read_bytes()


def test_a_picture_is_small_and_carries_the_dice(tmp_path):
    picture(tmp_path / "new" / "step_10.svg", [shown("one", 0.8765), shown("two", None)], LABELS, "step 10")
    text = (tmp_path / "new" / "step_10.svg").read_text()
    assert all(f"<!-- {word} -->" in text for word in ("Dice 0.876", "no class to score", "reference", "prediction", "one", "step 10"))
    picture(tmp_path / "a.png", [shown(n * "x") for n in (1, 2, 3)], LABELS)
    assert (tmp_path / "a.png").stat().st_size < 600_000


def test_the_validation_at_which_a_run_stops_early_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(showing, "curves", lambda *_, **__: None)
    monkeypatch.setattr(showing, "picture", lambda path, *_: drawn.append(path.name))
    drawn, case = [], shown("one")
    with showing.Showing(tmp_path, "a run", Training(steps=400, validate_every=10, stop_after=3), LABELS, ["one"], False, silent) as page:
        page.case("one", case.image, case.reference, case.predicted, {"a": 0.5})
        for step, dice in zip((10, 20, 30, 40), (0.5, 0.4, 0.3, 0.4), strict=True):
            record = {"kind": "validation", "step": step, "dice": dice, "classes": {"a": dice}}
            append_record(tmp_path / "metrics.jsonl", record)
            page.record(record)
    assert drawn == ["step_0000010.png", "step_0000040.png"]


def test_what_cannot_be_drawn_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match="no cases"):
        picture(tmp_path / "a.png", [], LABELS)
    other = shown()
    small = Volume(np.zeros((1, 4, 4, 4), dtype=np.uint8), Geometry((4, 4, 4), np.eye(4)))
    with pytest.raises(InputError, match="grid"):
        picture(tmp_path / "a.png", [replace(other, predicted=small)], LABELS)
    assert list(tmp_path.iterdir()) == []
