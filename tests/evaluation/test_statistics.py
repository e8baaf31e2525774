"""Bootstrap intervals."""

import numpy as np
import pytest
from scipy import stats

from uxnet.evaluation import bootstrap_mean
from uxnet.evaluation.statistics import bootstrap_median


def test_nothing_and_one_case_have_no_interval():
    assert bootstrap_mean([]) == (None, None, None)
    assert bootstrap_mean([None, None]) == (None, None, None)
    assert bootstrap_mean([None, 0.5]) == (0.5, None, None)


def test_cases_that_do_not_count_have_no_say():
    assert bootstrap_mean([0.1, None, 0.7, 0.4]) == bootstrap_mean([0.1, 0.7, 0.4])


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap_mean([0.25] * 9) == (0.25, 0.25, 0.25)


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=30).tolist()
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_agrees_with_scipy():
    values = np.random.default_rng(5).beta(8, 2, size=40)
    mean, low, high = bootstrap_mean(values, resamples=20000)
    interval = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile").confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(interval), abs=2e-3)
    assert low < mean < high


def test_more_confidence_is_wider():
    values = np.random.default_rng(6).normal(size=25)
    narrow, wide = bootstrap_mean(values, confidence=0.5), bootstrap_mean(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_blocks_change_nothing(monkeypatch):
    values = np.random.default_rng(7).normal(size=50)
    whole = bootstrap_mean(values)
    monkeypatch.setattr("uxnet.evaluation.statistics._BLOCK", 333)
    assert bootstrap_mean(values) == pytest.approx(whole)


def test_the_median_has_the_interval_of_scipy():
    values = np.random.default_rng(3).normal(size=41)
    median, low, high = bootstrap_median(values, resamples=20000)
    interval = stats.bootstrap((values,), np.median, n_resamples=20000, method="percentile").confidence_interval
    assert median == np.median(values)
    assert (low, high) == pytest.approx(tuple(interval), abs=0.06)
    assert bootstrap_median([2.0]) == (2.0, None, None)
    assert bootstrap_median([]) == (None, None, None)
