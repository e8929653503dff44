"""Paired ratios: what slows a whole round cancels, and one bad round hardly moves the value."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from scipy import stats

from qvl_lab.analysis.stats.estimates import SIGNED_RANKS_FROM, _outside, paired_ratio


def test_what_slows_a_whole_round_cancels():
    before = [10.0, 30.0, 12.0, 11.0]
    ratio = paired_ratio(before, [b / 2 for b in before])
    assert ratio == pytest.approx((0.5, 0.5, 0.5))


def test_few_pairs_get_students_t():
    before, after = [10.0, 11.0, 12.0], [5.0, 5.2, 6.3]
    logs = np.log(np.array(after) / np.array(before))
    low, high = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
    ratio = paired_ratio(before, after)
    assert ratio == pytest.approx((math.exp(logs.mean()), math.exp(low), math.exp(high)))


@pytest.mark.parametrize("count", range(SIGNED_RANKS_FROM, 15))
def test_at_most_five_percent_of_the_signed_ranks_lie_outside(count):
    # under symmetry each of the 2^n signs is equally likely
    ranks = np.arange(1, count + 1)
    signs = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
    sums = signs @ ranks
    outside = _outside(count)
    assert (sums <= outside).mean() <= 0.025 < (sums <= outside + 1).mean()


def test_the_interval_holds_the_truth_in_95_percent():
    random = Random(0)
    held = 0
    for _ in range(1000):
        before = [math.exp(random.gauss(0, 0.05)) for _ in range(8)]
        after = [0.5 * math.exp(random.gauss(0, 0.05)) for _ in range(8)]
        ratio = paired_ratio(before, after)
        held += ratio.low <= 0.5 <= ratio.high
    assert 0.94 <= held / 1000 <= 0.98


def test_one_bad_round_hardly_moves_the_value():
    before = [10.0, 10.1, 9.9, 10.05, 9.95, 10.0, 10.02, 9.98]
    after = [b / 2 for b in before]
    after[3] *= 40
    assert paired_ratio(before, after).value == pytest.approx(0.5, rel=0.02)


def test_one_pair_has_no_bounds_and_none_is_an_error():
    assert paired_ratio([2.0], [1.0]) == (0.5, None, None)
    with pytest.raises(ValueError, match="no pair"):
        paired_ratio([], [])
    with pytest.raises(ValueError, match="zip"):
        paired_ratio([1.0], [1.0, 2.0])
