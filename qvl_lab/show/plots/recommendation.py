"""What to run instead: from today's cost to the recommended one, and cost against memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from qvl_lab.analysis.money.confirmed import saving
from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.analysis.money.steps import Step
from qvl_lab.analysis.money.waterfall_steps import sure_steps
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots import points
from qvl_lab.show.plots.shared import CELL, memory_gib, note, readings


@fonts.styled
def waterfall(recommendation: Recommendation, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """From today's cost to the recommended one, lever by lever.

    Money per 100 images if the frame that the recommendation came from was priced, else seconds.
    The outer bars carry their 95% intervals. A step is one whose interval leaves no doubt about its
    sign, others are merged into it; a bar is hollow, and says why, where a setting beside it is
    unstable or was disturbed, or where even the merged step may be noise.
    """
    bars = _bars(recommendation, lang)
    ax = fonts.new_axes((max(6.2, 1.6 * len(bars) + 1), 4.4)) if ax is None else ax
    # an outlying interval is cut rather than let flatten the bars
    highest = min(max(bar.top for bar in bars), 1.6 * max(max(bar.start, bar.end) for bar in bars))
    for x, bar in enumerate(bars):
        looks: dict[str, Any] = {"color": bar.colour}
        if bar.doubt:
            looks = {"facecolor": "white", "edgecolor": bar.colour, "hatch": "///", "lw": 1.4}
        ax.bar(x, bar.end - bar.start, bottom=bar.start, width=0.62, **looks)
        if bar.interval:
            error = [[bar.end - bar.interval[0]], [bar.interval[1] - bar.end]]
            ax.errorbar(x, bar.end, yerr=error, color="#333333", capsize=4, elinewidth=1)
        if x + 1 < len(bars):
            ax.plot([x + 0.31, x + 0.69], [bar.end, bar.end], color="#888888", lw=0.8)
        cut = bar.top > highest  # then the bar of its interval passes the words
        place = {"ha": "left" if cut else "center"}
        note(ax, bar.words, (x, min(bar.top, highest)), (6 if cut else 0, 4), **place)
    ax.set(xlim=(-0.6, len(bars) - 0.4), ylim=(0, 1.17 * highest))  # room for two lines
    _waterfall_words(ax, recommendation, bars, lang)
    return ax


class _Bar(NamedTuple):
    name: str
    start: float
    end: float
    words: str
    colour: str
    interval: tuple[float, ...] = ()
    doubt: str = ""

    @property
    def top(self) -> float:
        return max(self.start, self.end, *self.interval)


_OUTER, _CHEAPER, _DEARER = "#7A7A7A", "#009E73", "#D55E00"


def _bars(recommendation: Recommendation, lang: str) -> list[_Bar]:
    today, best = recommendation.current, recommendation.best
    column = quantities.cost_or_time(today.to_frame().T)
    factor = today[column] / today["s_per_100_images"]
    bars, position = [_outer("today", today, column, lang)], today
    for step in sure_steps(today, recommendation.steps):
        doubt = _step_doubt(position, step, lang)
        names = [*_changes(position, step, lang), doubt]
        start, end = step.before_s * factor, step.after_s * factor
        size = quantities.amount(abs(end - start), column, lang)
        words = f"{'+' if end > start else '−'}{size}\n{quantities.percent(start, end)}"
        colour = _DEARER if end > start else _CHEAPER
        bars.append(_Bar(_lines(names), start, end, words, colour, doubt=doubt))
        position = step.row
    last = _outer("recommended", best, column, lang)
    words = f"{last.words}\n{_change(recommendation, lang)}"
    return [*bars, last._replace(words=words)]


def _changes(position: pd.Series, step: Step, lang: str) -> list[str]:
    """What a step changes: "batch 1 → 8", "512 px → by task: proposed"."""
    names = []
    for name, value in step.changed.items():
        if name == "resolution":
            names.append(
                wording.changed(name, wording.side(position), wording.side(step.row), lang)
            )
        elif wording.is_seen(position, name) and wording.is_seen(step.row, name):
            names.append(wording.changed(name, position[name], value, lang))
    return list(filter(None, names)) or [wording.resolution(wording.side(step.row), lang)]


def _step_doubt(position: pd.Series, step: Step, lang: str) -> str:
    """Why a step is not to be relied on: one of its ends, or that it may be noise; or ""."""
    known = wording.doubt(step.row, lang) or wording.doubt(position, lang)
    return known or (label("noise", lang) if saving(position, step.row).holds_zero else "")


def _change(recommendation: Recommendation, lang: str) -> str:
    """The whole change: "−60%", or that it is within noise."""
    found = recommendation.saving
    return label("noise", lang) if found.holds_zero else quantities.percent(1, 1 - found.value)


def _lines(words: Sequence[str]) -> str:
    return "\n".join(filter(None, words))


def _outer(key: str, row: pd.Series, column: str, lang: str) -> _Bar:
    value, *interval = (float(row[column + suffix]) for suffix in ("", "_low", "_high"))
    known = () if np.isnan(interval).any() else tuple(interval)
    doubt = wording.doubt(row, lang)
    lines = wording.setting(row, lang).split(label("between", lang))
    name = _lines([label(key, lang), *lines, doubt])
    words = quantities.amount(value, column, lang)
    return _Bar(name, 0.0, value, words, _OUTER, known, doubt)


def _waterfall_words(
    ax: Axes, recommendation: Recommendation, bars: Sequence[_Bar], lang: str
) -> None:
    frame = recommendation.current.to_frame().T
    sign = quantities.money_sign(frame)
    fonts.number_axis(ax.yaxis, lang, sign=sign)
    ax.set_ylabel(wording.axis(frame, "cost" if sign else "s_per_100_images", lang))
    ax.set_xticks(range(len(bars)), [bar.name for bar in bars], linespacing=1.35)
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel(label("waterfall_percent", lang), fontsize=9, color="#555555")
    ax.grid(axis="x", visible=False)
    change = _change(recommendation, lang)
    same = recommendation.current["key"] == recommendation.best["key"]
    ax.set_title(label("waterfall_same" if same else "waterfall_title", lang, change=change))


@fonts.styled
def tradeoff(
    frame: pd.DataFrame,
    recommendation: Recommendation | None = None,
    ax: Axes | None = None,
    *,
    lang: str = "en",
) -> Axes:
    """Cost per 100 images (seconds if unpriced) against peak memory, one point per setting.

    Colour is resolution, marker precision, size batch size. The step line joins the settings that
    no other one beats in both; today's and the recommended one are named.
    """
    metric = "cost" if quantities.money_sign(frame) else "s_per_100_images"
    data = readings(frame, metric, CELL, lang)
    data["memory"] = memory_gib(frame.reset_index(drop=True))
    known = data.dropna(subset=["value", "memory"])
    ax = fonts.new_axes((8.4, 4.8)) if ax is None else ax
    if known.empty:
        ax.set(xticks=[], yticks=[])
        fonts.say(ax, label("not_measured" if data["value"].any() else "nothing_measured", lang))
    else:
        cost = wording.axis(frame, metric, lang)
        _points(ax, known, points.kind_markers(frame, data, lang), cost, lang)
    for key, row in points.named(recommendation).items():
        points.name_point(ax, key, row, memory_gib(row.to_frame().T).iloc[0], lang)
    if known.empty:
        ax.set_xlabel(wording.axis(frame, metric, lang))
    ax.set_ylabel(wording.axis(frame, "vram", lang))
    memory = wording.title(frame, "vram", lang)
    words = {"cost": wording.title(frame, metric, lang), "memory": memory[0].lower() + memory[1:]}
    ax.set_title(label("tradeoff_title", lang, **words))
    return ax


def _points(
    ax: Axes, data: pd.DataFrame, markers: dict[str, points.Marker], cost: str, lang: str
) -> None:
    points.scatter(ax, data, "memory", markers, lang)
    best = points.front(data, "memory", higher_is_better=False)
    line = points.front_line(ax, best, "memory", lang)
    handles = [*points.handles(data, markers, lang), *line]
    fonts.legend_beside(ax, handles, label("size_is_batch", lang))
    points.cost_axis(ax, data, cost, lang)
    low, high = data["memory"].min(), data["memory"].max()
    bottom = 0.0 if low < high / 2 else max(0.0, low - (high - low) / 2 - high / 50)
    ax.set_ylim(bottom, high + 0.3 * (high - bottom))  # room for the names
    fonts.number_axis(ax.yaxis, lang)
