"""What the figures share: readings of a frame, and small helpers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qvl_lab.analysis.money.cost import cost_column
from qvl_lab.analysis.money.recommend import peak_memory_bytes
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label

METRICS = ("images_per_s", "vram", "cost", "ttft_s", "s_per_100_images")
#: The settings that most figures draw, each in its own way.
CELL = ("precision", "resolution", "batch_size")
MARKERS = "osD^vP*X<>ph"
#: What may have become of a setting that was not measured.
MISSED = ("oom", "skipped", "error", "busy")
_DASHES = ("-", "--", ":", "-.")


def readings(frame: pd.DataFrame, metric: str, drawn: Sequence[str], lang: str) -> pd.DataFrame:
    """One row per run, sorted: settings, status, how to draw them, and what was read.

    ``value``, ``low`` and ``high`` are NaN where unknown. ``other`` names what differs besides
    the settings ``drawn``; ``place`` numbers the unmeasured runs at one place of the x axis;
    ``doubt`` says why a run's times are not to be relied on. Resolutions by task are told apart
    as :func:`qvl_lab.show.wording.side` does.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    if frame.empty:
        raise ConfigError("the frame has no rows to draw; measure something or filter less")
    frame = frame.reset_index(drop=True)
    data = frame[[*CELL, "status"]].copy()
    data["resolution"] = [wording.side(row) for _, row in frame.iterrows()]
    for column, suffix in {"value": "", "low": "_low", "high": "_high"}.items():
        data[column] = _column(frame, metric, suffix).where(data["status"] == "ok")
    data["other"] = wording.others(frame, drawn, lang)
    data["doubt"] = [wording.doubt(row, lang) for _, row in frame.iterrows()]
    data["doubt"] = data["doubt"].where(data["value"].notna(), "")
    data["order"] = data["resolution"].map(wording.resolution_order)
    data["rank"] = wording.others(frame, drawn, "en")  # an order that all languages share
    data = data.sort_values(["order", "rank", "batch_size"], kind="stable")
    data["colour"] = data["resolution"].map(cycle(data["resolution"], fonts.PALETTE))
    told = "other" if data["other"].nunique() > 1 else "resolution"
    data["marker"] = data[told].map(cycle(data[told], MARKERS))
    told = "other" if data["resolution"].nunique() == 1 else "resolution"
    data["line_colour"] = data[told].map(cycle(data[told], fonts.PALETTE))
    data["dashes"] = data["other"].map(cycle(data["other"], _DASHES))
    panel = [name for name in ("precision", "batch_size") if name in drawn]
    data["place"] = data[data["status"] != "ok"].groupby(panel).cumcount()
    data.attrs = {
        "metric": metric,
        "sign": quantities.money_sign(frame) if metric == "cost" else "",
    }
    return data


def _column(frame: pd.DataFrame, metric: str, suffix: str) -> pd.Series:
    if metric == "vram":  # a peak over all repeats: it has no interval
        return memory_gib(frame) if not suffix else pd.Series(np.nan, frame.index)
    name = cost_column(frame) if metric == "cost" else metric
    return pd.to_numeric(frame[name + suffix]).astype(float)


def note(
    ax: Axes, words: str, at: tuple[float, float], offset: tuple[int, int], **looks: Any
) -> None:
    ax.annotate(
        words, at, xytext=offset, textcoords="offset points", fontsize=9, linespacing=1.3, **looks
    )


def memory_gib(frame: pd.DataFrame) -> pd.Series:
    return peak_memory_bytes(frame).astype(float) / 2**30


def interval_handle(words: str) -> Line2D:
    """A legend's entry for the bars."""
    return Line2D([], [], label=words, marker="|", ms=10, color="#555555", ls="none")


#: How a point looks whose times are not to be relied on.
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 1.3}


def hollow_points(ax: Axes, x: pd.Series, rows: pd.DataFrame, **looks: Any) -> None:
    """Draw the points in doubt once more, hollow, with the reason beside them."""
    doubtful = rows[rows["doubt"] != ""]
    for at, row in zip(x[doubtful.index], doubtful.to_dict("records"), strict=True):
        ax.plot(at, row["value"], linestyle="none", zorder=4, **looks, **HOLLOW)
        name_doubt(ax, row["doubt"], (at, row["value"]))


def name_doubt(ax: Axes, doubt: str, at: tuple[float, float]) -> None:
    """Why the point there is hollow."""
    looks: dict[str, Any] = {"fontsize": 8, "color": "#555555", "style": "italic"}
    looks["annotation_clip"] = True  # none for a point outside the axes
    ax.annotate(doubt, at, xytext=(6, -10), textcoords="offset points", **looks)


def doubt_handles(data: pd.DataFrame, lang: str) -> list[Line2D]:
    """The legend's entry for hollow points, if there are any."""
    if not (data["doubt"] != "").any():
        return []
    looks: dict[str, Any] = {"marker": "o", "color": "#777777", "linestyle": "none", **HOLLOW}
    return [Line2D([], [], label=label("hollow", lang), **looks)]


def is_wide(values: pd.Series) -> bool:
    """Whether a linear axis from zero would hide the small values."""
    return bool(values.min() > 0 and values.max() / values.min() > 8)


def cycle(names: Iterable[Any], looks: Sequence[str]) -> dict[Any, str]:
    return {name: looks[i % len(looks)] for i, name in enumerate(dict.fromkeys(names))}
