"""Medians and intervals of a few repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, combinations_with_replacement
from statistics import fmean, median, stdev
from typing import NamedTuple

#: From how many pairs on Wilcoxon's signed ranks can leave out 2.5% at each end.
SIGNED_RANKS_FROM = 6


class Estimate(NamedTuple):
    """A middle value and its 95% interval; bounds are None where one value tells nothing."""

    value: float
    low: float | None
    high: float | None

    @property
    def holds_zero(self) -> bool:
        """Whether the interval is known and leaves the sign open."""
        return self.low is not None and self.high is not None and self.low <= 0 <= self.high

    def __repr__(self) -> str:
        bounds = (
            "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        )
        return f"{self.value:.4g}{bounds}"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Median of positive repeats with a 95% interval; None without values.

    The interval is Student's t on the logarithms, so that it stays positive and a time and its
    inverse agree. It widens to take in the median if the repeats are so skewed that it would not.
    """
    if not values:
        return None
    middle = median(values)
    if len(values) < 2:
        return Estimate(middle, None, None)
    logs = [math.log(v) for v in values]
    half = student_t(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    low, high = (math.exp(fmean(logs) + sign * half) for sign in (-1, 1))
    return Estimate(middle, min(low, middle), max(high, middle))


def in_both(
    first: Mapping[int, float] | None, second: Mapping[int, float] | None
) -> tuple[list[float], list[float]]:
    """Values by round at the rounds that both have, in order, as :func:`paired_ratio` takes them.

    What is no mapping has no rounds.
    """
    first, second = (found if isinstance(found, Mapping) else {} for found in (first, second))
    shared = sorted(first.keys() & second.keys())
    return [first[n] for n in shared], [second[n] for n in shared]


def paired_ratio(before: Sequence[float], after: Sequence[float]) -> Estimate:
    """``after`` over ``before``, pair by pair, with a 95% interval.

    Both values of a pair were measured in the same round, so what slows the whole round cancels.
    From six pairs on, value and interval are those of Hodges and Lehmann (1963, Annals of
    Mathematical Statistics 34) for the logarithms of the ratios, with the exact distribution of
    Wilcoxon's signed ranks: one disturbed round among them hardly moves the value. With fewer,
    which are too few for ranks, they are the geometric mean and Student's t. One pair has no
    bounds.

    Raises
    ------
    ValueError
        If the two are not equally long, or empty.
    """
    logs = [math.log(b / a) for a, b in zip(before, after, strict=True)]
    if not logs:
        raise ValueError("no pair to compare")
    if len(logs) < SIGNED_RANKS_FROM:
        middle = fmean(logs)
        if len(logs) < 2:
            return Estimate(math.exp(middle), None, None)
        half = student_t(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
        return Estimate(math.exp(middle), math.exp(middle - half), math.exp(middle + half))
    walsh = sorted((x + y) / 2 for x, y in combinations_with_replacement(logs, 2))
    outside = _outside(len(logs))
    bounds = walsh[outside], walsh[-1 - outside]
    return Estimate(math.exp(median(walsh)), *(math.exp(bound) for bound in bounds))


def ratio_half_width(ratio: Estimate) -> float:
    """How far a ratio's interval reaches to either side, as a share; infinite without bounds."""
    if ratio.low is None or ratio.high is None:
        return math.inf
    return math.log(ratio.high / ratio.low) / 2


def surely_less(
    first: Mapping[int, float] | None, second: Mapping[int, float] | None, fewest: int
) -> bool:
    """Whether the second takes less beyond doubt, in at least so many rounds of both."""
    pairs = in_both(first, second)
    high = paired_ratio(*pairs).high if len(pairs[0]) >= fewest else None
    return high is not None and high < 1


@cache
def _outside(count: int) -> int:
    """How many of the sorted means of two lie below a 95% interval of ``count`` differences.

    The largest k for which a sum of signed ranks of k or less has a probability of at most 2.5%.
    """
    ways = [1] + [0] * (count * (count + 1) // 2)  # of each sum of ranks from 1 to count
    for rank in range(1, count + 1):
        for total in range(len(ways) - 1, rank - 1, -1):
            ways[total] += ways[total - rank]
    below = list(accumulate(ways))
    return sum(total <= 0.025 * (1 << count) for total in below) - 1


@cache
def student_t(freedom: int) -> float:
    """The 97.5% point of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))
