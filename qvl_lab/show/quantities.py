"""Written quantities: numbers, money, changes, scores."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from qvl_lab.analysis.money.cost import cost_column, symbol
from qvl_lab.errors import ConfigError
from qvl_lab.show.locale import label


def number(value: float, like: float | None = None) -> str:
    """About three significant digits without an exponent: 1,234, 56.7, 3.10, 0.042.

    With the decimals of ``like``, if it is given: a value and its bounds are written alike.
    """
    return f"{value:,.{_decimals(value if like is None else like)}f}"


def _decimals(value: float) -> int:
    size = abs(value)
    if size == 0 or size >= 100:
        return 0
    return 1 if size >= 10 else 2 if size >= 0.1 else 1 - math.floor(math.log10(size))


def money(value: float, currency: str, like: float | None = None) -> str:
    """An amount with its currency's sign, the minus before it: "¥3.10", "−$0.42"."""
    return f"{'−' if value < 0 else ''}{symbol(currency)}{number(abs(value), like)}"


def percent(before: float, after: float) -> str:
    """A signed change; a decimal where rounding would say "nothing" or "everything"."""
    change = 100 * (after / before - 1)
    digits = 1 if 0 < abs(change) < 1 or -100 < change < -99 else 0
    sign = "+" if change > 0 else "−" if change < 0 else "±"
    return f"{sign}{abs(change):.{digits}f}%"


def points(value: float) -> str:
    """A difference of quality in signed percentage points: "−1.3"."""
    sign = "+" if value > 0 else "−" if value < 0 else "±"
    return f"{sign}{100 * abs(value):.1f}"


def score(value: Any) -> str:
    """A quality from 0 to 1: "0.95"; "?" if unknown."""
    return "?" if pd.isna(value) else f"{value:.2f}"


def amount(value: float, column: str, lang: str, like: float | None = None) -> str:
    """A value of a frame's cost or time column: "¥3.10", "12.3 s"; ``like`` as of number."""
    if column.startswith("cost_"):
        return money(value, _currency(column), like)
    return label("seconds", lang, value=number(value, like))


def cost_or_time(frame: pd.DataFrame) -> str:
    """The frame's cost column, or its seconds per 100 images if it has not been priced."""
    try:
        return cost_column(frame)
    except ConfigError:
        return "s_per_100_images"


def counts_images(frame: pd.DataFrame) -> bool:
    """Whether :func:`cost_or_time` counts images; where it counts answers, an image has several
    questions, or it is not known how many.
    """
    column = cost_or_time(frame)
    if column.startswith("cost_"):
        return column.endswith("_per_100_images")
    return one_question(frame)


def one_question(frame: pd.DataFrame) -> bool:
    """Whether every image is asked one question, so that speeds count images as well as answers."""
    if "questions_per_image" not in frame:
        return True
    known = pd.to_numeric(frame["questions_per_image"]).dropna()  # not of what was not measured
    return bool(len(known)) and bool(known.eq(1).all())


def money_sign(frame: pd.DataFrame) -> str:
    """The sign of the frame's money; "" if it has not been priced."""
    column = cost_or_time(frame)
    return symbol(_currency(column)) if column.startswith("cost_") else ""


def _currency(column: str) -> str:
    return column.split("_")[1].upper()  # cost_CUR_per_100_...
