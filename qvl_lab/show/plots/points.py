"""A point per setting: colour is resolution, marker precision (and what else tells settings
apart), size batch size. A point whose times are not to be relied on is hollow and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.textpath import TextPath

from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import MARKERS, doubt_handles, is_wide, name_doubt

#: A shape's name as matplotlib knows it, or its outline.
Marker = str | Path


def kinds(data: pd.DataFrame, lang: str) -> pd.Series:
    """What a marker stands for: "bf16", or "bf16 · fast engine" where more differs."""
    dot = label("between", lang)
    pairs = zip(data["precision"].map(str), data["other"], strict=True)
    return pd.Series([dot.join(filter(None, pair)) for pair in pairs], data.index, dtype=object)


def kind_markers(frame: pd.DataFrame, data: pd.DataFrame, lang: str) -> dict[str, Marker]:
    """A marker for each kind of the readings, the most exact precision first.

    No two are alike: of more kinds than shapes each has a number.
    """
    order = wording.precisions(frame)
    ranks = data["precision"].map(order.index)
    by_rank = ranks.sort_values(kind="stable").index  # not by words: those of a language
    found = list(dict.fromkeys(kinds(data, lang)[by_rank]))
    shapes = MARKERS if len(found) <= len(MARKERS) else map(_numeral, range(1, len(found) + 1))
    return dict(zip(found, shapes, strict=False))


def _numeral(number: int) -> Path:
    """A number as a marker's outline, its middle at the point."""
    outline = TextPath((0, 0), str(number), size=10, prop=FontProperties(family="DejaVu Sans"))
    box = outline.get_extents()
    middle = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    return Path(outline.vertices - middle, outline.codes)


def scatter(ax: Axes, data: pd.DataFrame, y: str, markers: Mapping[str, Marker], lang: str) -> None:
    """Readings by their ``value`` and a column; ``markers`` are those of :func:`kind_markers`."""
    for (colour, kind), rows in data.groupby([data["colour"], kinds(data, lang)]):
        doubtful = (rows["doubt"] != "").to_numpy()
        looks: dict[str, Any] = {"marker": markers[str(kind)], "alpha": 0.85}
        looks["facecolors"] = ["white" if doubted else colour for doubted in doubtful]
        looks["edgecolors"] = [colour if doubted else "white" for doubted in doubtful]
        looks["linewidths"] = [1.3 if doubted else 0.5 for doubted in doubtful]
        sizes = 30 + 26 * np.log2(rows["batch_size"].to_numpy(float))
        ax.scatter(rows["value"], rows[y], s=sizes, **looks)
        for row in rows[doubtful].to_dict("records"):
            name_doubt(ax, row["doubt"], (row["value"], row[y]))


def front(data: pd.DataFrame, y: str, *, higher_is_better: bool) -> pd.DataFrame:
    """The Pareto front of a low ``value`` and a good ``y``, the cheapest first; of twins, one."""
    ordered = data.sort_values(["value", y], ascending=[True, not higher_is_better])
    good = ordered[y] if higher_is_better else -ordered[y]
    return ordered[good > good.cummax().shift(fill_value=-np.inf)]


def front_line(ax: Axes, data: pd.DataFrame, y: str, lang: str) -> list[Line2D]:
    """Steps: a beaten point is dearer and worse than another one; nothing lies between them.

    A single point that beats all others has no line.
    """
    if len(data) < 2:
        return []
    looks: dict[str, Any] = {
        "color": "#333333",
        "lw": 1,
        "ls": "--",
        "zorder": 1,
        "drawstyle": "steps-post",
    }
    (line,) = ax.plot(data["value"], data[y], label=label("front", lang), **looks)
    return [line]


def named(recommendation: Recommendation | None) -> dict[str, pd.Series]:
    """The rows that figures name, by the name's text; one where they are the same."""
    if recommendation is None:
        return {}
    today, best = recommendation.current, recommendation.best
    if today["key"] == best["key"]:
        return {"today_recommended": today}
    return {"today": today, "recommended": best}


def handles(data: pd.DataFrame, markers: Mapping[str, Marker], lang: str) -> list[Line2D]:
    """For the legend: each resolution's colour, each kind's marker, what a hollow point is."""
    shown = data[["resolution", "colour"]].drop_duplicates().to_numpy()
    names: list[tuple[str, str, Any]] = [
        (wording.resolution(name, lang), colour, "s") for name, colour in shown
    ]
    names += [(name, "#777777", marker) for name, marker in markers.items()]
    found = [Line2D([], [], label=n, color=c, marker=m, ls="none") for n, c, m in names]
    return found + doubt_handles(data, lang)


def cost_axis(ax: Axes, data: pd.DataFrame, words: str, lang: str) -> None:
    """Cost, or time, from left to right; from zero, or logarithmic where it ranges wide."""
    log = is_wide(data["value"])
    ax.set_xlabel(label("log_axis", lang, axis=words) if log else words)
    low, high = data["value"].min(), data["value"].max()
    ax.set_xscale("log" if log else "linear")
    ax.set_xlim(low / 1.3 if log else 0, high * (1.3 if log else 1.1))
    fonts.number_axis(ax.xaxis, lang, sign=data.attrs["sign"], log=log)


def name_point(ax: Axes, key: str, row: pd.Series, y: float, lang: str) -> None:
    """Ring a point; its name goes to the top corner, today's right, where the dear settings are."""
    column = quantities.cost_or_time(row.to_frame().T)
    at = (float(row[column]), y)
    if np.isnan(at).any():
        return
    named = label(
        "named_point", lang, who=label(key, lang), amount=quantities.amount(at[0], column, lang)
    )
    ax.scatter(*at, s=330, facecolors="none", edgecolors="#111111", lw=1.4)
    x, side = (0.02, "left") if key == "recommended" else (0.98, "right")
    looks: dict[str, Any] = {"arrowprops": {"arrowstyle": "-", "shrinkB": 9, "color": "#111111"}}
    where: dict[str, Any] = {
        "xytext": (x, 0.98),
        "textcoords": "axes fraction",
        "va": "top",
        "linespacing": 1.35,
    }
    words = "\n".join([named, *wording.setting_lines(row, lang)])
    ax.annotate(words, at, ha=side, fontsize=9, **looks, **where)
