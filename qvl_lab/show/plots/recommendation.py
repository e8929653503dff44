"""What to run instead: from today's cost to the recommended one, and cost against memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots import points
from qvl_lab.show.plots.shared import CELL, memory_gib, note, readings


@fonts.styled
def waterfall(recommendation: Recommendation, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """From today's cost to the recommended one, lever by lever.

    Money per 100 images if the frame that the recommendation came from was priced, else seconds.
    The outer bars carry their 95% intervals.
    """
    bars = _bars(recommendation, lang)
    ax = fonts.new_axes((max(6.2, 1.6 * len(bars) + 1), 4.4)) if ax is None else ax
    for x, bar in enumerate(bars):
        ax.bar(x, bar.end - bar.start, bottom=bar.start, width=0.62, color=bar.colour)
        if bar.interval:
            error = [[bar.end - bar.interval[0]], [bar.interval[1] - bar.end]]
            ax.errorbar(x, bar.end, yerr=error, color="#333333", capsize=4, elinewidth=1)
        if x + 1 < len(bars):
            ax.plot([x + 0.31, x + 0.69], [bar.end, bar.end], color="#888888", lw=0.8)
        note(ax, bar.words, (x, bar.top), (0, 4), ha="center")
    highest = max(bar.top for bar in bars)
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

    @property
    def top(self) -> float:
        return max(self.start, self.end, *self.interval)


_OUTER, _CHEAPER, _DEARER = "#7A7A7A", "#009E73", "#D55E00"


def _bars(recommendation: Recommendation, lang: str) -> list[_Bar]:
    today, best = recommendation.current, recommendation.best
    column = quantities.cost_or_time(today.to_frame().T)
    factor = today[column] / today["s_per_100_images"]
    bars, position = [_outer("today", today, column, lang)], today
    for step in recommendation.steps:
        names = [
            wording.changed(n, position[n], v, lang)
            for n, v in step.changed.items()
            if wording.is_seen(position, n) and wording.is_seen(step.row, n)
        ]
        names = list(filter(None, names)) or [label("by_task", lang)]
        start, end = step.before_s * factor, step.after_s * factor
        size = quantities.amount(abs(end - start), column, lang)
        words = f"{'+' if end > start else '−'}{size}\n{quantities.percent(start, end)}"
        colour = _DEARER if end > start else _CHEAPER
        bars.append(_Bar("\n".join(names), start, end, words, colour))
        position = step.row
    last = _outer("recommended", best, column, lang)
    words = f"{last.words}\n{quantities.percent(bars[0].end, last.end)}"
    return [*bars, last._replace(words=words)]


def _outer(key: str, row: pd.Series, column: str, lang: str) -> _Bar:
    value, *interval = (float(row[column + suffix]) for suffix in ("", "_low", "_high"))
    known = () if np.isnan(interval).any() else tuple(interval)
    name = "\n".join([label(key, lang), *wording.setting(row, lang).split(label("between", lang))])
    return _Bar(name, 0.0, value, quantities.amount(value, column, lang), _OUTER, known)


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
    change = quantities.percent(bars[0].end, bars[-1].end)
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
        _points(ax, known, points.kind_markers(frame, data), lang)
    for key, row in points.named(recommendation).items():
        points.name_point(ax, key, row, memory_gib(row.to_frame().T).iloc[0], lang)
    ax.set_xlabel(wording.axis(frame, metric, lang))
    ax.set_ylabel(wording.axis(frame, "vram", lang))
    memory = wording.title(frame, "vram", lang)
    words = {"cost": wording.title(frame, metric, lang), "memory": memory[0].lower() + memory[1:]}
    ax.set_title(label("tradeoff_title", lang, **words))
    return ax


def _points(ax: Axes, data: pd.DataFrame, markers: dict[str, str], lang: str) -> None:
    points.scatter(ax, data, "memory", markers)
    best = points.front(data, "memory", higher_is_better=False)
    line = points.front_line(ax, best, "memory", lang)
    handles = [*points.handles(data, markers, lang), *line]
    fonts.legend_beside(ax, handles, label("size_is_batch", lang))
    points.cost_axis(ax, data, lang)
    ax.set_ylim(0, data["memory"].max() * 1.3)  # room for the names
    fonts.number_axis(ax.yaxis, lang)
