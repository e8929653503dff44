"""A line through costs, its intervals, and where it reaches a value."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import linregress, t

from qvl_lab.analysis.stats.linear_fit import LinearFit


def test_a_line_is_that_of_scipy():
    rng = np.random.default_rng(1)
    h = pd.Series(np.linspace(0, 0.9, 10))
    cost = 2 - 1.2 * h + rng.normal(0, 0.05, 10)
    line, known = LinearFit.through(h, cost), linregress(h, cost)
    assert line is not None
    assert (line.base, line.slope) == pytest.approx((known.intercept, -known.slope))
    half = t.ppf(0.975, 8)
    bounds = line.bounds()
    expected = (line.slope - half * known.stderr, line.slope + half * known.stderr)
    assert bounds["slope"] == pytest.approx(expected)
    width = half * known.intercept_stderr
    assert bounds["base"] == pytest.approx((line.base - width, line.base + width))


def test_one_hit_rate_makes_no_line_and_two_no_interval():
    assert LinearFit.through(pd.Series([0.3, 0.3]), pd.Series([1.0, 2.0])) is None
    line = LinearFit.through(pd.Series([0.0, 0.5]), pd.Series([1.0, 0.8]))
    assert line is not None
    assert line.reaches(0.9, 0.0) == (pytest.approx(0.25), None, None)
    assert line.bounds() == {"base": (None, None), "slope": (None, None)}


def test_at_the_ends_of_fiellers_interval_line_and_target_just_may_be_equal():
    rng = np.random.default_rng(2)
    h = pd.Series(np.linspace(0, 0.9, 8))
    line = LinearFit.through(h, 1 - 0.5 * h + rng.normal(0, 0.03, 8))
    assert line is not None and line.variance is not None
    value, low, high = line.reaches(0.9, 0.0004)
    assert low is not None and high is not None and value is not None
    assert low < value < high
    for end in (low, high):
        away = (end - line.mean) ** 2 / line.spread
        error = np.sqrt(line.variance * (1 / 8 + away) + 0.0004)
        assert abs(line.at(end) - 0.9) / error == pytest.approx(t.ppf(0.975, 6))


def test_nine_in_ten_intervals_hold_the_true_hit_rate():
    rng = np.random.default_rng(3)
    h = pd.Series(np.linspace(0, 0.9, 10))
    held = 0
    for _ in range(200):
        line = LinearFit.through(h, 1 - 0.5 * h + rng.normal(0, 0.03, 10))
        reference = rng.normal(0.9, 0.03, 10)
        assert line is not None
        _, low, high = line.reaches(reference.mean(), reference.var(ddof=1) / 10)
        held += low is not None and high is not None and low <= 0.2 <= high
    assert held >= 180


def test_a_line_that_may_not_fall_has_no_bounds():
    noisy = LinearFit.through(pd.Series([0, 0.3, 0.6, 0.9]), pd.Series([1.0, 1.3, 0.7, 0.95]))
    assert noisy is not None
    value, low, high = noisy.reaches(0.9, 0.0)
    assert value is not None
    assert (low, high) == (None, None)
    rising = LinearFit.through(pd.Series([0, 0.3, 0.6]), pd.Series([1.0, 1.1, 1.2]))
    assert rising is not None
    assert rising.reaches(0.9, 0.0) == (None, None, None)
