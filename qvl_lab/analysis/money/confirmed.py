"""What a setting saves, and what it costs by the rounds in which that was confirmed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from qvl_lab.analysis.stats.estimates import (
    Estimate,
    estimate,
    in_both,
    paired_ratio,
    ratio_half_width,
    surely_less,
)

#: Rounds in which both took part, from which on their pairs tell what one saves.
FEWEST_ROUNDS = 3
#: How far the 95% interval of a confirmed ratio may reach to either side: a number that a headline
#: names should not be off by more.
WIDEST = 0.1
_SECONDS = "s_per_100_images"
#: Columns of seconds by round, the one that counts first.
_ROUNDS = ("confirmed_s", "round_s")


def is_confirmed(current: pd.Series, best: pd.Series) -> bool:
    """Whether their ratio was measured head to head, and is known to 10% to either side."""
    return head_to_head(current, best) and half_width(saving(current, best)) <= WIDEST


def head_to_head(current: pd.Series, best: pd.Series) -> bool:
    """Whether the two were measured in alternation after they were chosen."""
    return shared_rounds(current, best, "confirmed_s") >= FEWEST_ROUNDS


def half_width(saved: Estimate) -> float:
    """How far the interval of the ratio behind a saving reaches to either side, as a share."""
    if saved.low is None or saved.high is None:
        return math.inf
    return ratio_half_width(Estimate(1 - saved.value, 1 - saved.high, 1 - saved.low))


def surely_cheaper(row: pd.Series, than: pd.Series) -> bool:
    """Whether a confirmation leaves no doubt that a setting takes less than another."""
    return surely_less(than.get("confirmed_s"), row.get("confirmed_s"), FEWEST_ROUNDS)


def shared_rounds(current: pd.Series, best: pd.Series, column: str) -> int:
    """In how many rounds of a column both took part."""
    return len(in_both(current.get(column), best.get(column))[0])


def saving(current: pd.Series, best: pd.Series) -> Estimate:
    """The share saved, with its 95% interval.

    It comes from the rounds of a confirmation, if both rows have one, else from the rounds of
    the sweep, in either case pair by pair, so that what slows a whole round cancels. Rows that
    were not measured in rounds get the widest interval that both rows' intervals allow.
    """
    if current["key"] == best["key"]:
        return Estimate(0.0, 0.0, 0.0)
    if pairs := _pairs(current, best):
        ratio = paired_ratio(*pairs)
        assert ratio.low is not None
        assert ratio.high is not None
        return Estimate(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
    bounds = [current[f"{_SECONDS}_low"], current[f"{_SECONDS}_high"]]
    bounds += [best[f"{_SECONDS}_low"], best[f"{_SECONDS}_high"]]
    value = 1 - best[_SECONDS] / current[_SECONDS]
    if any(pd.isna(b) for b in bounds):
        return Estimate(value, None, None)
    low, high, best_low, best_high = bounds
    return Estimate(value, 1 - best_high / low, 1 - best_low / high)


def paired_with(rows: pd.DataFrame, current: pd.Series) -> pd.DataFrame:
    """The rows with times, rates and costs that differ from today's by just what is saved.

    Medians of two settings differ by more than the settings do where the machine was slower in
    some rounds, and the cheapest of many looks cheaper than it is. So today's setting takes what
    it took in the confirmation, if there is one, and another one that times one less their
    :func:`saving`. Intervals keep their width, times of single stages are as they were measured.

    Parameters
    ----------
    rows : DataFrame
        From :func:`qvl_lab.analysis.frame.frame`, priced or not.
    current : Series
        Today's row of it.

    Returns
    -------
    DataFrame
        A copy; rows that took part in no round with today's setting are as they were.
    """
    result = rows.copy()
    today = _own(current)
    if today is None:
        return result
    for position, (_, row) in enumerate(rows.iterrows()):
        same = row["key"] == current["key"]
        if not same and _pairs(current, row) is None:
            continue
        own = _own(row)
        assert own is not None
        value = today.value * (1 - saving(current, row).value)
        scale = value / own.value
        ends = {"_low": own.low, "": own.value, "_high": own.high}
        _rescale(result, position, {e: s * scale for e, s in ends.items() if s is not None})
    return result


def _pairs(current: pd.Series, row: pd.Series) -> tuple[list[float], list[float]] | None:
    """Seconds of both in the rounds from which a saving comes: a confirmation's, or the sweep's."""
    for column in _ROUNDS:
        pairs = in_both(current.get(column), row.get(column))
        if len(pairs[0]) >= FEWEST_ROUNDS:
            return pairs
    return None


def _own(row: pd.Series) -> Estimate | None:
    """Seconds per 100 answers in a confirmation, or else in the sweep; None without rounds."""
    for column in _ROUNDS:
        rounds = row.get(column)
        if isinstance(rounds, Mapping) and len(rounds) >= FEWEST_ROUNDS:
            return estimate(list(rounds.values()))
    return None


def _rescale(rows: pd.DataFrame, position: int, seconds: Mapping[str, float]) -> None:
    """Give a row other seconds per 100 answers, and the rates and costs that follow from them."""
    before, columns = float(rows[_SECONDS].iloc[position]), list(rows.columns)
    names = [str(name) for name in rows if str(name).startswith("cost_")]
    per_second = {
        name: rows[name].iloc[position] / before
        for name in names
        if not name.endswith(("_low", "_high"))
    }
    opposite = {"": "", "_low": "_high", "_high": "_low"}
    for end, value in seconds.items():
        found = {_SECONDS + end: value, f"images_per_s{opposite[end]}": 100 / value}
        found |= {name + end: cost * value for name, cost in per_second.items()}
        for name, number in found.items():
            rows.iloc[position, columns.index(name)] = number
