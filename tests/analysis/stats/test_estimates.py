"""Medians and intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvl_lab.analysis.stats.estimates import Estimate, estimate

#: Student's t, 97.5%, for 2 degrees of freedom: from a printed table.
T_2 = 4.30265
POSITIVE = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=9)


def test_three_repeats_by_hand():
    """Logarithms 0, 1, 2: mean 1, standard deviation 1."""
    found = estimate([1.0, math.e, math.e**2])
    assert found.value == math.e
    assert found.low == pytest.approx(math.exp(1 - T_2 / math.sqrt(3)), rel=1e-5)
    assert found.high == pytest.approx(math.exp(1 + T_2 / math.sqrt(3)), rel=1e-5)


def test_two_repeats_by_hand():
    """Logarithms 0 and 2 ln 2: mean ln 2, standard deviation sqrt(2) ln 2; t is 12.7062."""
    half = 12.7062 * math.log(2)
    found = estimate([1, 4])
    assert found.value == 2.5
    assert found.low == pytest.approx(math.exp(math.log(2) - half), rel=1e-4)
    assert found.high == pytest.approx(math.exp(math.log(2) + half), rel=1e-4)


def test_one_repeat_has_no_interval_and_none_no_estimate():
    assert estimate([3.5]) == Estimate(3.5, None, None)
    assert estimate([]) is None


def test_equal_repeats_have_an_interval_of_no_width():
    assert estimate([2.0, 2.0, 2.0]) == pytest.approx((2.0, 2.0, 2.0))


def test_the_order_of_repeats_does_not_matter():
    assert estimate([3, 1, 2]) == pytest.approx(estimate([1, 2, 3]))


@given(POSITIVE)
def test_the_interval_is_positive_and_holds_the_median(values):
    found = estimate(values)
    assert found.value == pytest.approx(np.median(values))
    assert 0 <= found.low <= found.value <= found.high


def test_the_interval_widens_to_a_skewed_median():
    """101 logarithms are 0 and 99 are -1: the median is 0, the mean -0.495 give or take 0.07."""
    found = estimate([1.0] * 101 + [math.exp(-1)] * 99)
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(math.exp(-0.495 - 0.07), rel=0.01)


@given(st.lists(st.floats(1e-2, 1e2), min_size=3, max_size=3))
def test_a_time_and_its_inverse_agree(values):
    time, speed = estimate(values), estimate([1 / v for v in values])
    assert speed.value == pytest.approx(1 / time.value)
    assert speed.low == pytest.approx(1 / time.high, rel=1e-6)
    assert speed.high == pytest.approx(1 / time.low, rel=1e-6)


@pytest.mark.parametrize("repeats", [3, 5])
def test_the_interval_covers_the_truth_in_95_percent(repeats):
    """2,000 simulated sweeps: one standard error of the share is 0.5%; 3 of them are allowed."""
    rng = np.random.default_rng(7)
    samples = np.exp(rng.normal(math.log(10), 0.2, (2000, repeats))).tolist()
    found = [estimate(sample) for sample in samples]
    covered = np.mean([e.low <= 10 <= e.high for e in found])
    assert covered == pytest.approx(0.95, abs=0.015)
