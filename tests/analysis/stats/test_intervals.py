"""Intervals of mean scores, and settings compared pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binomtest, permutation_test

from qvl_lab.analysis.stats import intervals
from qvl_lab.analysis.stats.intervals import Comparison, chance_below, compare, interval
from qvl_lab.errors import ConfigError

# ---- intervals


def right_or_wrong(rng, share, groups, items):
    return (rng.random((groups, items)) < share).astype(float)


def graded(rng, mean, groups, items, concentration=3):
    return rng.beta(mean * concentration, (1 - mean) * concentration, (groups, items))


def mostly_extreme(rng, mean, groups, items):
    """Scores as of anls: right, half of the rest nothing, half anything from 0.5 to 1."""
    wrong = (1 - mean) / (0.5 * 1 + 0.5 * 0.25)
    drawn = rng.random((groups, items))
    some = np.where(drawn < wrong / 2, 0.0, rng.uniform(0.5, 1, drawn.shape))
    return np.where(drawn < wrong, some, 1.0)


@pytest.mark.parametrize(
    ("scores", "mean", "groups", "items"),
    [
        (right_or_wrong, 0.5, 1, 20),
        (right_or_wrong, 0.9, 1, 20),
        (right_or_wrong, 0.98, 1, 20),
        (right_or_wrong, 0.95, 1, 50),
        (right_or_wrong, 0.98, 1, 100),
        (right_or_wrong, 0.98, 6, 20),
        (right_or_wrong, 0.8, 6, 50),
        (graded, 0.5, 1, 20),
        (graded, 0.95, 1, 20),
        (graded, 0.8, 3, 20),
        (mostly_extreme, 0.9, 1, 30),
        (mostly_extreme, 0.97, 3, 20),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_interval_holds_the_truth_in_95_percent(scores, mean, groups, items):
    """600 simulated data sets: one standard error of the share is 0.9%; 0.92 to 0.98 is allowed."""
    rng = np.random.default_rng(7)
    samples = [scores(rng, mean, groups, items) for _ in range(600)]
    # one seed for all would give all the same error of resampling
    found = [interval(sample, seed=number) for number, sample in enumerate(samples)]
    assert 0.92 <= np.mean([low <= mean <= high for _, low, high in found]) <= 0.98


@pytest.mark.parametrize(("right", "items"), [(20, 20), (19, 20), (10, 20), (0, 30), (97, 100)])
def test_one_group_of_right_or_wrong_has_the_interval_of_a_uniform_prior(right, items):
    scores = [1.0] * right + [0.0] * (items - right)
    mean, low, high = interval([scores], resamples=40_000)
    bounds = beta.ppf([0.025, 0.975], right + 1, items - right + 1)
    assert mean == right / items
    assert low == pytest.approx(min(bounds[0], mean), abs=0.004)
    assert high == pytest.approx(max(bounds[1], mean), abs=0.004)


def test_all_right_is_not_certain_and_more_items_say_more():
    lows = [interval([[1.0] * items])[1] for items in (5, 20, 100)]
    assert lows == sorted(lows)
    assert lows[1] == pytest.approx(0.025 ** (1 / 21), abs=0.01)


def test_the_mean_is_that_of_the_groups():
    mean, low, high = interval([[1.0] * 30, [0.0, 1.0]])
    assert mean == 0.75
    assert low < 0.75 < high


def test_groups_that_are_all_right_are_not_pulled_to_the_middle_one_by_one():
    """Six groups of 20 say about as much as one of 120."""
    six, one = interval([[1.0] * 20] * 6), interval([[1.0] * 120])
    assert six[1] == pytest.approx(one[1], abs=0.01)


def test_narrow_scores_have_a_narrow_interval():
    """Standard error 0.02 / sqrt(50): an interval of right-or-wrong scores is 30 times as wide."""
    scores = np.random.default_rng(0).normal(0.7, 0.02, 50)
    _, low, high = interval([scores])
    assert 2 * 1.96 * 0.02 / math.sqrt(50) < high - low < 0.03


def test_a_wider_level_is_wider_and_a_seed_repeats():
    scores = [[0.2, 0.9, 1.0, 0.4], [1.0, 1.0, 0.0]]
    assert interval(scores, seed=3) == interval(scores, seed=3) != interval(scores, seed=4)
    _, low, high = interval(scores, level=0.8)
    assert interval(scores)[1] < low < high < interval(scores)[2]


def test_groups_and_items_without_scores_are_left_out():
    assert interval([[], [1.0, None, 0.0], [None]]) == interval([[1.0, 0.0]])
    assert all(math.isnan(value) for value in interval([]))
    assert all(math.isnan(value) for value in interval([[], [None]]))


@given(st.lists(st.lists(st.floats(0, 1), max_size=6), min_size=1, max_size=3))
@settings(max_examples=50)
def test_the_interval_is_in_range_and_holds_the_mean(groups):
    mean, low, high = interval(groups, resamples=50)
    assert math.isnan(mean) or 0 <= low <= mean <= high <= 1


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, "1"])
def test_a_score_out_of_range_is_an_error(value):
    with pytest.raises(ConfigError, match="a score must be a number from 0 to 1, not"):
        interval([[1.0, value]])


@pytest.mark.parametrize("setting", [{"level": 1.0}, {"level": 95}, {"resamples": 0}])
def test_settings_out_of_range_are_errors(setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} must be"):
        interval([[1.0]], **setting)


# ---- pairs


def test_a_difference_by_hand():
    """Group means 1/2 to 1 and 1/2 to 1/4; of 3 unequal pairs every sign is as likely."""
    found = compare([[0, 1], [1, 0, 0.5, 0.5]], [[1, 1], [0, 0, 0.5, 0.5]])
    assert found.difference == pytest.approx((0.5 - 0.25) / 2)
    assert found.count == 6
    assert found.low < found.difference < found.high
    # terms 1/2 and 1/4: only -1/4 and 1/4, or wider, come out, so nothing is less extreme
    assert found.p_value == 1.0
    assert found.within_noise


def test_pairs_with_a_failed_item_are_left_out():
    found = compare([[None, 1.0, 0.0], [None]], [[1.0, None, 1.0], [1.0]])
    assert found == compare([[0.0]], [[1.0]])
    assert (found.difference, found.count) == (1.0, 1)


def test_no_pairs_show_no_difference():
    found = compare([[None]], [[1.0]])
    assert math.isnan(found.difference) and math.isnan(found.low) and math.isnan(found.high)
    assert (found.p_value, found.count, found.within_noise) == (1.0, 0, True)


def test_equal_scores_have_p_1_and_an_interval_of_some_width():
    found = compare([[1.0] * 15 + [0.3] * 5], [[1.0] * 15 + [0.3] * 5])
    assert (found.difference, found.p_value, found.count) == (0.0, 1.0, 20)
    assert -0.2 < found.low < -0.05 < 0.05 < found.high < 0.2


def test_exchanging_the_settings_turns_the_sign():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 2, 30))
    there, back = compare(a, b), compare(b, a)
    assert there.difference == pytest.approx(-back.difference)
    assert there.low == pytest.approx(-back.high, abs=0.02)
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)


@pytest.mark.parametrize(("better", "worse"), [(5, 0), (6, 0), (9, 1), (8, 4), (3, 3), (30, 12)])
def test_right_or_wrong_pairs_have_the_p_value_of_mcnemar(better, worse):
    """The exact test is the sign test of the unequal pairs; above 12 of them ours is drawn."""
    a = [0.0] * better + [1.0] * worse + [1.0] * 40
    b = [1.0] * better + [0.0] * worse + [1.0] * 40
    exact = binomtest(better, better + worse).pvalue
    drawn = better + worse > intervals.EXACT_UP_TO
    assert compare([a], [b]).p_value == pytest.approx(exact, abs=0.003 if drawn else 1e-12)


def test_a_drawn_p_value_is_never_zero():
    assert compare([[0.0] * 40], [[1.0] * 40]).p_value == 1 / (intervals.SIGN_DRAWS + 1)


@pytest.mark.parametrize(("sizes", "tolerance"), [((5, 6), 1e-12), ((15, 25), 0.015)])
def test_graded_pairs_have_the_p_value_of_scipy(sizes, tolerance):
    rng = np.random.default_rng(5)
    a = [rng.random(size) for size in sizes]
    b = [np.clip(group + rng.normal(0.08, 0.2, group.size), 0, 1) for group in a]
    weights = np.concatenate([np.full(size, 1 / size / len(sizes)) for size in sizes])
    reference = permutation_test(
        (np.concatenate(b), np.concatenate(a)),
        lambda x, y: weights @ (x - y),
        permutation_type="samples",
        n_resamples=9_999,
        rng=1,
        vectorized=False,
    )
    found = compare(a, b)
    assert found.difference == pytest.approx(reference.statistic)
    assert found.p_value == pytest.approx(reference.pvalue, abs=tolerance)


def simulated(rng, effect: float, groups: int, items: int) -> list[Comparison]:
    """400 comparisons of scores in steps of 1/32, whose differences are exact."""
    a = rng.integers(10, 20, (400, groups, items)) / 32
    b = a + effect + rng.integers(-9, 10, a.shape) / 32
    pairs = enumerate(zip(a, b, strict=True))
    return [compare(x, y, resamples=500, seed=seed) for seed, (x, y) in pairs]


@pytest.mark.parametrize(("groups", "items"), [(1, 10), (3, 20)], ids=["exact", "drawn"])
def test_without_a_difference_5_percent_are_called_one(groups, items):
    """400 comparisons: one standard error is 1.1%; two and a half are allowed."""
    found = simulated(np.random.default_rng(2), 0.0, groups, items)
    assert np.mean([not c.within_noise for c in found]) == pytest.approx(0.05, abs=0.0275)
    assert np.mean([c.low <= 0 <= c.high for c in found]) == pytest.approx(0.95, abs=0.03)


def test_a_clear_difference_is_found():
    """3/32 with a standard error of 0.171 / sqrt(40) = 0.027: found in 93%, by the normal law."""
    found = simulated(np.random.default_rng(2), 3 / 32, 2, 20)
    assert np.mean([not c.within_noise for c in found]) == pytest.approx(0.93, abs=0.04)
    assert np.mean([c.low <= 3 / 32 <= c.high for c in found]) == pytest.approx(0.95, abs=0.03)


def test_pairs_of_right_or_wrong_hold_the_truth_and_seldom_call_chance_a_difference():
    """A tenth of the items turns either way; the exact test is cautious with so few."""
    rng = np.random.default_rng(4)
    drawn = rng.random((400, 3, 30))
    a = np.where(drawn < 0.1, 0.0, 1.0)
    b = np.where((drawn >= 0.1) & (drawn < 0.2), 0.0, 1.0)
    found = [compare(x, y, resamples=500) for x, y in zip(a, b, strict=True)]
    assert np.mean([not c.within_noise for c in found]) <= 0.05
    assert 0.92 <= np.mean([c.low <= 0 <= c.high for c in found]) <= 0.98


def test_other_items_are_no_pairs():
    with pytest.raises(ConfigError, match=r"groups of \[2, 1\] and \[2, 2\]"):
        compare([[1, 1], [1]], [[1, 1], [1, 0]])


# ---- questions about one image

#: 60 images of one question and 120 of three: 420 questions, as in the packaged set.
QUESTIONS = [1] * 60 + [3] * 120


def image_wise(rng, failing: float) -> list[list[float]]:
    """Scores by task, right but for images that fail with all their questions."""
    failed = rng.random(len(QUESTIONS)) < failing
    groups: list[list[float]] = [[], [], []]
    for asked, fails in zip(QUESTIONS, failed, strict=True):
        for task in range(asked):
            groups[task].append(0.0 if fails else 1.0)
    return groups


IMAGES = [[i for i, asked in enumerate(QUESTIONS) if asked > task] for task in range(3)]


@pytest.mark.slow
def test_images_that_fail_as_a_whole_seldom_raise_a_false_alarm():
    """At most 7% at a nominal 5%; without the images it is more than twice as much."""
    rng = np.random.default_rng(11)
    pairs = [(image_wise(rng, 0.06), image_wise(rng, 0.06)) for _ in range(400)]
    found = [compare(a, b, resamples=400, images=IMAGES) for a, b in pairs]
    assert np.mean([not c.within_noise for c in found]) <= 0.07
    assert 0.92 <= np.mean([c.low <= 0 <= c.high for c in found]) <= 0.985
    blind = [compare(a, b, resamples=400) for a, b in pairs]
    assert np.mean([not c.within_noise for c in blind]) > 0.12


def test_the_interval_of_a_score_holds_the_truth_where_images_fail_as_a_whole():
    rng = np.random.default_rng(12)
    found = [
        interval(image_wise(rng, 0.1), resamples=400, seed=seed, images=IMAGES)
        for seed in range(300)
    ]
    assert 0.92 <= np.mean([low <= 0.9 <= high for _, low, high in found]) <= 0.985


def test_all_scores_of_an_image_change_sides_together():
    """Two images of three questions: four ways of exchanging, two as extreme as what was seen."""
    worse, better = [[0.0] * 6], [[1.0] * 6]
    assert compare(worse, better).p_value == 2 / 2**6
    found = compare(worse, better, images=[["a", "a", "a", "b", "b", "b"]])
    assert (found.p_value, found.count, found.better, found.worse) == (0.5, 6, 6, 0)
    across = compare([[0.0], [0.0]], [[1.0], [1.0]], images=[["a"], ["a"]])
    assert across.p_value == 1.0


def test_an_image_of_several_questions_says_less_than_as_many_images():
    scores = [[1.0, 1.0, 0.0, 0.0] * 10]
    wide = interval(scores, images=[[n // 2 for n in range(40)]])
    narrow = interval(scores)
    assert wide[0] == narrow[0]
    assert wide[1] < narrow[1] < narrow[2] < wide[2]
    kept = [
        compare([[1.0] * 60], [[1.0] * 60], images=i).low
        for i in (None, [[n // 3 for n in range(60)]])
    ]
    assert kept[1] == pytest.approx(3 * kept[0], rel=0.25)


def test_images_of_one_question_each_change_nothing():
    a, b = [[1.0, 0.0, 1.0], [0.5, None]], [[1.0, 1.0, 0.0], [1.0, 1.0]]
    images = [[1, 2, 3], [4, 5]]
    assert compare(a, b, images=images) == compare(a, b)
    assert interval(a, images=images) == interval(a)


def test_images_are_named_score_by_score():
    with pytest.raises(ConfigError, match="one image for each score"):
        interval([[1.0, 0.0]], images=[[1]])


def test_the_chance_of_a_loss_falls_with_the_pairs_that_show_none():
    """Of n equal pairs it is half of exp(-limit (n + 2)), by the two imagined items."""
    for count in (10, 60, 150):
        ones = [[1.0] * count]
        expected = 0.5 * math.exp(-0.02 * (count + 2))
        assert chance_below(ones, ones, -0.02, resamples=20_000) == pytest.approx(
            expected, abs=0.01
        )
    assert chance_below([[1.0] * 40], [[0.0] * 40], -0.02) == 1.0
    assert math.isnan(chance_below([[None]], [[1.0]], -0.02))
