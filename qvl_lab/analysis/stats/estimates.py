"""Medians and intervals of a few repeats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev
from typing import NamedTuple


class Estimate(NamedTuple):
    """A middle value and its 95% interval; bounds are None where one value tells nothing."""

    value: float
    low: float | None
    high: float | None

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
    from scipy.stats import t

    logs = [math.log(v) for v in values]
    half = float(t.ppf(0.975, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    low, high = (math.exp(fmean(logs) + sign * half) for sign in (-1, 1))
    return Estimate(middle, min(low, middle), max(high, middle))
