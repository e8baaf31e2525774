import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uxnet.recipe import Schedule
from uxnet.training.schedule import learning_rate

PEAK = 3e-3


def rates(schedule, steps=100, scores=()):
    return [learning_rate(schedule, PEAK, step, steps, scores) for step in range(steps + 1)]


def test_cosine_goes_from_the_full_rate_to_the_floor():
    got = rates(Schedule("cosine", floor=0.1))
    assert got[0] == pytest.approx(PEAK)
    assert got[50] == pytest.approx(PEAK * 0.55)
    assert got[100] == pytest.approx(PEAK * 0.1)
    assert all(a > b for a, b in itertools.pairwise(got))
    assert rates(Schedule("cosine"))[99] == pytest.approx(0, abs=PEAK * 1e-3)


@pytest.mark.parametrize("kind", ["cosine", "plateau", "constant"])
def test_warmup_rises_to_the_full_rate(kind):
    got = rates(Schedule(kind, warmup_steps=10))
    assert got[:10] == pytest.approx([PEAK * (n + 1) / 10 for n in range(10)])
    assert got[10] == pytest.approx(PEAK)
    if kind != "cosine":
        assert set(got[9:]) == {PEAK}
    else:
        assert got[55] == pytest.approx(PEAK / 2)
        assert got[100] == pytest.approx(0, abs=1e-12)


def test_a_warmup_of_the_whole_run_and_a_run_of_one_step():
    for steps in (1, 5):
        for step in range(steps):
            assert 0 < learning_rate(Schedule("cosine", warmup_steps=steps), PEAK, step, steps, []) <= PEAK
    assert learning_rate(Schedule("cosine"), PEAK, 0, 1, []) == PEAK


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.5, 0.50001, 0.5001, 0.0])), max_size=60),
    patience=st.integers(0, 6),
    factor=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_plateau_is_torchs(scores, patience, factor):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, mode="max", factor=factor, patience=patience, threshold=1e-4, threshold_mode="rel", eps=0
    )
    schedule = Schedule("plateau", patience=patience, factor=factor)
    for n, score in enumerate(scores, start=1):
        torchs.step(score)
        assert learning_rate(schedule, 1.0, n, 1000, scores[:n]) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)


def test_a_validation_without_score_is_one_that_brought_nothing_better():
    schedule = Schedule("plateau", patience=1, factor=0.5)
    assert learning_rate(schedule, 1.0, 9, 10, [None, None]) == 0.5
    assert learning_rate(schedule, 1.0, 9, 10, [0.4, None, 0.6, None]) == 1.0
    assert math.isclose(learning_rate(schedule, 1.0, 9, 10, [0.4, None, 0.4, None, None]), 0.25)
