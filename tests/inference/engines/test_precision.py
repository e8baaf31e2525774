"""A lower precision is taken if it was found right, and float32 with a warning if not."""

import numpy as np
import pytest

from uxnet.events import Note, Warn
from uxnet.inference.engines.precision import Cautious, check, differing, fullest_window, trusted
from uxnet.labels import Label, Labels, Region
from uxnet.recipe import Sampling, Stage

LABELS = Labels((Label("a", 1),))
STAGE = Stage(sampling=Sampling((4, 4, 4)))


class Threshold:
    def __init__(self, at):
        self.at, self.seen = at, []

    def infer(self, batch):
        self.seen.append(batch)
        return np.concatenate([np.zeros_like(batch), batch - self.at], axis=1)


def image():
    made = np.random.default_rng(0).uniform(0, 1, (1, 8, 8, 12)).astype(np.float32)
    made[:, :, :, :8] *= 0.1
    return made


@pytest.mark.parametrize(("at", "right"), [(0.5, True), (0.501, True), (0.8, False), (np.nan, False)])
def test_the_engine_that_is_right_is_taken(at, right):
    lower, exact, events, kept = Threshold(at), Threshold(0.5), [], []
    engine = Cautious(lower, lambda: exact, LABELS, keep=kept.append)
    trusted([engine, lower], image(), STAGE, events.append)
    assert engine.chosen is (lower if right else exact)
    assert [type(event) for event in events] == ([Note] if right else [Note, Warn])
    assert len(kept) == 1
    # Once is enough, and what was found before needs no computing.
    trusted([engine], image(), STAGE, events.append)
    assert len(exact.seen) == 1
    again = Cautious(lower, lambda: exact, LABELS, known=kept[0])
    trusted([again], image(), STAGE, events.append)
    assert again.chosen is engine.chosen
    assert len(exact.seen) == 1
    batch = np.ones((2, 1, 4, 4, 4), np.float32)
    np.testing.assert_array_equal(again.infer(batch), engine.chosen.infer(batch))


@pytest.mark.parametrize("at", [0.5, 0.8])
def test_a_guided_stage_is_checked_on_the_first_window_that_it_computes(at):
    lower, exact, events = Threshold(at), Threshold(0.5), []
    engine = Cautious(lower, lambda: exact, LABELS, guided=True, report=events.append)
    batch = np.random.default_rng(0).uniform(0, 1, (2, 1, 4, 4, 4)).astype(np.float32)
    right = Threshold(0.5 if at == 0.8 else at).infer(batch)
    for _ in range(2):
        np.testing.assert_array_equal(engine.infer(batch), right)
    assert engine.chosen is (exact if at == 0.8 else lower)
    assert [type(event) for event in events] == ([Note, Warn] if at == 0.8 else [Note])


def test_the_window_with_most_in_it_is_looked_at():
    window = fullest_window(image(), STAGE)
    assert window.shape == (1, 4, 4, 4)
    assert window.mean() > 0.4
    assert fullest_window(image()[:, :2], STAGE).shape == (1, 4, 4, 4)


def test_few_voxels_count_against_a_hundredth_of_the_window():
    exact = np.zeros((2, 10, 10, 10), np.float32)
    exact[0] = 1
    lower = exact.copy()
    lower[1, 0, 0, :5] = 2
    assert differing(lower, exact, LABELS) == pytest.approx(0.5)
    assert differing(exact, exact, LABELS) == 0


def test_regions_and_guided_stages_are_decided_by_their_own_rules():
    regions = Labels((Label("a", 1), Label("b", 2)), regions=(Region("all", (1, 2), 1), Region("core", (2,), 2)))
    exact = np.full((2, 4, 4, 4), -1, np.float32)
    exact[0, :2] = 1
    lower = exact.copy()
    lower[1, 0] = 1
    assert differing(lower, exact, regions) == pytest.approx(0.5)
    guided = np.stack([np.zeros((4, 4, 4)), np.ones((4, 4, 4))]).astype(np.float32)
    assert differing(guided, guided, regions, guided=True) == 0


def test_until_it_is_checked_the_lower_one_answers():
    lower = Threshold(0.5)
    engine = Cautious(lower, lambda: Threshold(0.5), LABELS)
    engine.infer(np.zeros((1, 1, 4, 4, 4), np.float32))
    assert len(lower.seen) == 1
    check(engine, np.ones((1, 4, 4, 4), np.float32), lambda event: None)
    assert engine.chosen is lower
