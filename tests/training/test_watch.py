"""What validations say about a run: a function of them and of nothing else."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uxnet.recipe import Schedule
from uxnet.training import watch
from uxnet.training.schedule import learning_rate
from uxnet.training.watch import lost_classes, lost_message, never_found, stalled, summary_rows

DICE = st.none() | st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.4, 0.5, 0.9, 1.0]) | st.floats(0, 1)
HISTORIES = st.lists(st.fixed_dictionaries({"a": DICE, "b": DICE}), max_size=12)


def of(*dices):
    return [{"a": dice} for dice in dices]


def test_a_class_that_was_found_and_is_gone_is_lost():
    assert lost_classes(of(0.3, 0.8, 0.0)) == {"a": 1}
    assert lost_classes(of(0.8, 0.05, 0.01, 0.0)) == {"a": 3}
    assert lost_classes(of(0.8, 0.0, 0.0, 0.3)) == {}  # back again
    assert lost_classes(of(0.8, 0.0, 0.3, 0.0)) == {"a": 1}
    assert lost_classes(of(0.8, 0.2, 0.2, 0.2)) == {}  # worse, but there


def test_what_comes_and_goes_while_a_network_learns_is_not_lost():
    # The left kidney of a run on phantoms, validated every six steps.
    assert lost_classes(of(0.172, 0.284, 0.228, 0.073, 0.186, 0.0, 0.0, 0.0, 0.0, 0.0)) == {}
    assert lost_classes(of(0.0, 0.0, 0.0)) == {}
    assert lost_classes([]) == {}


def test_a_validation_that_could_not_score_a_class_says_nothing_about_it():
    assert lost_classes(of(0.8, 0.0, None, 0.0)) == {"a": 2}
    assert lost_classes(of(0.8, None, None)) == lost_classes(of(None)) == {}


@given(HISTORIES)
def test_only_found_classes_are_lost_and_each_validation_changes_the_count_by_one_or_ends_it(history):
    lost = lost_classes(history)
    for name, row in lost.items():
        dices = [v[name] for v in history if v[name] is not None]
        assert max(dices) >= watch.FOUND
        assert 1 <= row < len(dices)
        assert row == len(dices) or dices[-row - 1] >= watch.LOST * max(dices)
    again = {name: row + 1 for name, row in lost.items()}
    gone = lost_classes([*history, {"a": 0.0, "b": 0.0}])
    assert {name: gone[name] for name in lost} == again
    assert lost_classes([*history, {"a": 0.5, "b": 0.5}]) == {}
    alone = {name: lost_classes([{name: v[name]} for v in history]) for name in "ab"}
    assert lost == alone["a"] | alone["b"]  # no class matters to another


def test_the_sentence_says_what_was_lost_and_what_to_do():
    history = of(0.8, 0.85, 0.01, 0.0)
    text = lost_message(history, lost_classes(history))
    assert "a (Dice 0.85 at best, 0.00 in 2 validations in a row)" in text
    assert "learning_rate" in text
    assert "\n" not in text


@pytest.mark.parametrize("total", [1, 2, 3, 4, 7, 10, 12, 80])
def test_classes_never_found_are_named_once_and_not_before_a_third_of_the_run(total):
    validation = {"a": 0.004, "b": 0.3, "absent": None}
    told = [number for number in range(1, total + 1) if never_found([validation] * number, number / total)]
    assert told == [math.ceil(total / 3)]
    assert never_found([validation] * told[0], told[0] / total) == ("a",)


def test_a_class_that_was_found_once_or_is_in_no_case_is_not_never_found():
    assert never_found([{"a": 0.2}, {"a": 0.0}], 0.4) == ()
    assert never_found([{"a": None}, {"a": 0.0}], 0.4) == ()
    assert never_found([], 1.0) == ()
    assert "sampling.balance" in watch.never_found_message(["a"])


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_a_run_stalls_when_its_rate_would_first_drop(scores):
    first = next((n for n in range(1, len(scores) + 1) if stalled(scores[:n]) > 2), None)
    schedule = Schedule("plateau", factor=0.5, patience=2, warmup_steps=0)
    dropped = (n for n in range(1, len(scores) + 1) if learning_rate(schedule, 1.0, n, 100, scores[:n]) < 1)
    assert first == next(dropped, None)


def test_a_better_score_ends_a_stall_and_an_equal_one_does_not():
    assert [stalled(s) for s in ([], [0.5], [0.5, 0.5], [0.5, None, 0.4], [0.5, 0.4, 0.6], [None, None])] == [0, 0, 1, 2, 0, 2]
    assert "no better Dice than 0.5000 in 2 validations in a row" in watch.stalled_message([0.5, 0.5, 0.4])
    assert "no Dice at all" in watch.stalled_message([None])


def test_the_table_says_what_was_kept_and_what_was_best():
    def validation(step, **classes):
        dices = [dice for dice in classes.values() if dice is not None]
        return {"kind": "validation", "step": step, "dice": sum(dices) / len(dices), "classes": classes}

    records = [
        validation(10, a=0.9, b=None),
        {"kind": "step", "step": 11, "loss": 1.0},
        validation(20, a=0.5, b=None),
        validation(30, a=0.9, b=None),
    ]
    a, b, mean = summary_rows(records, kept_step=20)
    assert (a.name, a.kept, a.best, a.best_step) == ("a", 0.5, 0.9, 10)
    assert (b.name, b.kept, b.best, b.best_step) == ("b", None, None, None)
    assert (mean.name, mean.kept, mean.best, mean.best_step) == ("mean", 0.5, 0.9, 10)
    assert summary_rows(records, kept_step=15)[0].kept is None
    assert [row.name for row in summary_rows([], 0)] == ["mean"]
