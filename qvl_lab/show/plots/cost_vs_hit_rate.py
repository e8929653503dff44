"""What caches save over the hit rate that was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qvl_lab.analysis.levers.cache_savings import (
    ARTICLE_IMAGES,
    ARTICLE_SAVING,
    break_even,
    hit_points,
)
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import MARKERS, doubt_handles, hollow_points, interval_handle

_GREY = "#555555"


@fonts.styled
def hit_rates(
    frame: pd.DataFrame,
    ax: Axes | None = None,
    *,
    images: int = ARTICLE_IMAGES,
    memory_gb: float | None = None,
    claim: float = ARTICLE_SAVING,
    lang: str = "en",
) -> Axes:
    """Cost per 100 images over the measured hit rate: points and a line for each cache.

    A grey line is the mean without a cache, a band its 95% interval; a dashed line is what the
    article says that caching saves. Diamonds along the top mark the hit rate from which each cache
    pays for its memory, with intervals. Seconds instead of money if the frame was not priced.

    Parameters
    ----------
    frame : DataFrame
        See :func:`qvl_lab.analysis.levers.cache_savings.hit_points`.
    images, memory_gb, claim
        See ``break_even``. Where the memory's share of a card is not
        known, nothing is marked.

    Raises
    ------
    ConfigError
        As :func:`qvl_lab.analysis.levers.cache_savings.break_even`.
    """
    column = quantities.cost_or_time(frame)
    points = hit_points(frame, column)
    points["doubt"] = [wording.doubt(frame.loc[index], lang) for index in points.index]
    found = break_even(frame, column=column, images=images, memory_gb=memory_gb, claim=claim)
    ax = fonts.new_axes((8.6, 4.4)) if ax is None else ax
    handles = _reference(ax, found.attrs, lang)
    for i, (_, row) in enumerate(found.iterrows()):
        mine = points[points["cache"] == row["cache"]]
        look: dict[str, Any] = {"color": fonts.PALETTE[i], "marker": MARKERS[i]}
        _cache(ax, mine, row, look)
        hollow_points(ax, 100 * mine["hit_rate"], mine.assign(value=mine["cost"]), **look)
        _mark(ax, row, look["color"], 0.96 - _PLACE * i)
        handles.append(Line2D([], [], label=label(f"cache_{row['cache']}", lang), **look))
    if points["low"].notna().any():
        handles.append(interval_handle(label("interval", lang)))
    handles += doubt_handles(points, lang)
    if found["break_even"].notna().any():
        words = label("hits_break_even", lang, n=images)
        handles.append(Line2D([], [], label=words, color=_GREY, **_MARK))
    metric = "cost" if column.startswith("cost_") else column
    ax.set(title=label("hits_title", lang, cost=wording.title(frame, metric, lang)))
    ax.set(xlabel=label("hits_axis", lang), ylabel=wording.axis(frame, metric, lang))
    most = max(points["cost"].max(), found.attrs["reference"])
    ax.set_ylim(0, 1.08 * most / (0.96 - _PLACE * len(found)))  # a wide interval may leave it
    fonts.number_axis(ax.yaxis, lang, sign=quantities.money_sign(frame))
    fonts.legend_beside(ax, handles, label("cache", lang))
    return ax


#: Height of one mark along the top, in shares of the panel.
_PLACE = 0.06
_MARK: dict[str, Any] = {"marker": "D", "markerfacecolor": "white", "ls": "none", "ms": 7}


def _reference(ax: Axes, known: dict[Any, Any], lang: str) -> list[Any]:
    """Draw what no cache costs and what was claimed; handles of both."""
    looks: dict[str, Any] = {"color": _GREY, "lw": 1.4}
    ax.axhline(known["reference"], **looks)
    if pd.notna(known["reference_low"]):
        ax.axhspan(known["reference_low"], known["reference_high"], color=_GREY, alpha=0.12, lw=0)
    dashed = looks | {"ls": "--", "lw": 1.2}
    ax.axhline((1 - known["claim"]) * known["reference"], **dashed)
    claimed = label("hits_claim", lang, percent=quantities.percent(1, 1 - known["claim"]))
    return [
        Line2D([], [], label=label("cache_off", lang), **looks),
        Line2D([], [], label=claimed, **dashed),
    ]


def _cache(ax: Axes, mine: pd.DataFrame, row: pd.Series, look: dict[str, Any]) -> None:
    """One cache: its points with intervals, and its line."""
    at = 100 * mine["hit_rate"]
    error = np.array([mine["cost"] - mine["low"], mine["high"] - mine["cost"]])
    ax.errorbar(at, mine["cost"], yerr=error, capsize=2.5, elinewidth=1, ls="none", **look)
    if pd.notna(row["slope"]):
        ends = np.array([at.min(), at.max()])
        ax.plot(ends, row["base"] - row["slope"] * ends / 100, color=look["color"], lw=1.2)


def _mark(ax: Axes, row: pd.Series, colour: str, y: float) -> None:
    """Where a cache begins to pay, at a height in shares of the panel; nothing if it never does."""
    if pd.isna(row["break_even"]):
        return
    value, low, high = (100 * row[f"break_even{end}"] for end in ("", "_low", "_high"))
    known = pd.notna(low) and pd.notna(high)
    bar = [[value - low], [high - value]] if known else None
    looks: dict[str, Any] = {"color": colour, "elinewidth": 1.4, "capsize": 3, "clip_on": False}
    ax.errorbar(value, y, xerr=bar, transform=ax.get_xaxis_transform(), **looks, **_MARK)
