"""A review's headline as numbers, for a dashboard or a check in CI."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from qvl_lab.analysis.frame import SETTINGS
from qvl_lab.show.quantities import counts_images
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.sections.money import month_of_row


def headline_numbers(context: ReportContext) -> dict[str, Any]:
    """What the first page says, as plain numbers.

    Returns
    -------
    dict
        ``unit`` ("100 images" or "100 answers") and ``currency`` of ``cost_today`` and
        ``cost_recommended``, each with ``_low`` and ``_high``; where no price is known these are
        None, and ``s_today`` and ``s_recommended`` per 100 answers remain. ``saving`` (a share)
        with ``saving_low`` and ``saving_high``, ``within_noise``, ``confirmed``; ``today`` and
        ``recommended``, the settings; ``quality_today``, ``quality_recommended`` (0-1);
        ``price``, as quoted; with a monthly volume ``month``, the sums by use and kept on.
        Unknown is None; empty if nothing was measured.
    """
    advice = context.recommendation
    if advice is None:
        return {}
    numbers: dict[str, Any] = {
        "unit": "100 images" if counts_images(context.frame) else "100 answers",
        "currency": context.currency if context.priced else None,
        "price": context.frame.attrs["price"],
    }
    for name, row in {"today": advice.current, "recommended": advice.best}.items():
        for end in ("", "_low", "_high"):
            cost = row[context.cost + end] if context.priced else None
            numbers[f"cost_{name}{end}"] = _plain(cost)
        numbers[f"s_{name}"] = _plain(row["s_per_100_images"])
        numbers[f"quality_{name}"] = _plain(row["quality"])
        numbers[name] = {key: _plain(row[key]) for key in SETTINGS if pd.notna(row[key])}
    value, low, high = advice.saving
    numbers |= {"saving": value, "saving_low": low, "saving_high": high}
    numbers = {key: _plain(value) for key, value in numbers.items()}
    numbers |= {"within_noise": bool(advice.within_noise), "confirmed": bool(advice.confirmed)}
    return numbers | _month(context)


def _month(context: ReportContext) -> dict[str, Any]:
    images, advice = context.options.monthly_images, context.recommendation
    if images is None or advice is None or not context.priced:
        return {}
    rows = {"today": advice.current, "recommended": advice.best}
    sums = {name: month_of_row(context, row, images) for name, row in rows.items()}
    return {"month": {"images": images} | {name: vars(found) for name, found in sums.items()}}


def _plain(value: Any) -> Any:
    """The value as JSON knows it; None for what is unknown."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return None if value is pd.NA else value
