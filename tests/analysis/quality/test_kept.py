"""Whether quality is kept: shown, not shown or lost, and how many answers would tell."""

from __future__ import annotations

import pytest

from qvl_lab.analysis.quality.kept import may_be_recommended, more_answers, quality_kept
from qvl_lab.analysis.stats.intervals import compare


def answers(right: int, of: int) -> list[list[float]]:
    return [[1.0] * right + [0.0] * (of - right)]


@pytest.mark.parametrize(
    ("before", "after", "of", "kept", "recommended"),
    [
        (160, 160, 160, "shown", True),
        (36, 36, 36, "not shown", True),
        (36, 35, 36, "not shown", False),
        (30, 33, 36, "not shown", True),
        (1000, 995, 1000, "shown", True),
        (100, 99, 100, "not shown", False),
        (1000, 970, 1000, "lost", False),
        (36, 20, 36, "lost", False),
        (20, 36, 36, "shown", True),
    ],
)
def test_what_pairs_show_of_a_loss_of_two_points(before, after, of, kept, recommended):
    pair = compare(answers(before, of), answers(after, of))
    assert quality_kept(pair, 0.02) == kept
    assert may_be_recommended(pair, 0.02) == recommended


def test_a_hundred_and_fifty_pairs_without_an_error_show_two_points():
    pair = compare(answers(36, 36), answers(36, 36))
    assert pair.count + more_answers(pair, 0.02) == pytest.approx(150, abs=15)
    assert more_answers(pair, 0.05) < more_answers(pair, 0.02)


def test_more_answers_like_these_would_show_it():
    """Half a point lost of 1,000: asked as many as it says, the interval is narrow enough."""
    pair = compare(answers(400, 400), answers(398, 400))
    more = more_answers(pair, 0.01)
    times = (400 + more) / 400
    asked = compare(
        answers(int(400 * times), int(400 * times)), answers(int(398 * times), int(400 * times))
    )
    assert quality_kept(pair, 0.01) == "not shown"
    assert quality_kept(asked, 0.01) == "shown"


def test_no_number_of_answers_shows_that_a_loss_is_none():
    pair = compare(answers(36, 36), answers(35, 36))
    assert more_answers(pair, 0.02) is None
    assert more_answers(compare([[]], [[]]), 0.02) is None
    assert more_answers(compare(answers(36, 36), answers(36, 36)), 0.0) is None
    assert more_answers(compare(answers(160, 160), answers(160, 160)), 0.02) == 0
