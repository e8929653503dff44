"""How good the answers are: over resolution, against cost, and what a lower precision changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from qvl_lab.analysis.frame import task_column
from qvl_lab.analysis.money.recommend import Recommendation, with_quality
from qvl_lab.analysis.quality import tradeoffs
from qvl_lab.analysis.stats.intervals import NOISE_FROM
from qvl_lab.errors import ConfigError
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots import points
from qvl_lab.show.plots.shared import CELL, MARKERS, cycle, interval_handle, readings
from qvl_lab.show.plots.vs_resolution import places, side_axis

#: Black is for the mean.
_COLOURS = [colour for colour in fonts.PALETTE if colour != "#000000"]
_MEAN: dict[str, Any] = {"color": "#000000", "marker": "o", "lw": 3.2, "ms": 6.5, "zorder": 3}


# ---- over resolution


@fonts.styled
def quality(
    frame: pd.DataFrame, ax: Axes | None = None, *, lang: str = "en", **settings: Any
) -> Axes:
    """Quality over resolution: one line per task, a thick one for their mean, 95% intervals.

    Points of one resolution lie side by side, so that their bars do not hide each other.

    Parameters
    ----------
    frame : DataFrame
        From :func:`qvl_lab.analysis.frame.frame`, of a workload with answers.
    settings
        Which rows to draw, ``precision="bf16"``; by default those that
        :func:`qvl_lab.analysis.quality.tradeoffs.at_each_resolution` chooses.

    Raises
    ------
    ConfigError
        If no such row has a quality.
    """
    rows = tradeoffs.at_each_resolution(frame, **settings)
    ax = fonts.new_axes((8.4, 4.4)) if ax is None else ax
    at, lines = places(rows["resolution"]), _task_lines(rows, lang)
    shifts = _mean_in_the_middle(_shifts(len(lines), at))
    for shift, (column, looks) in zip(shifts, lines.items(), strict=True):
        _bars(ax, rows["resolution"].map(at) + shift, rows, column, **looks)
    side_axis(ax, at, lang)
    ax.set_ylim(-0.03, 1.03)
    fonts.number_axis(ax.yaxis, lang)
    ax.set_ylabel(wording.quality_axis(rows, lang))
    batch = label("batch", lang, n=rows["batch_size"].iloc[0])
    title = [label("quality_title", lang), rows["precision"].iloc[0], batch]
    title.append(wording.items(rows["quality_items"], lang))
    ax.set_title(label("between", lang).join(title))
    handles: list[Any] = [Line2D([], [], **looks) for looks in lines.values()]
    handles += _interval(rows["quality_low"], lang)
    fonts.legend_beside(ax, handles, label("task", lang))
    return ax


def _task_lines(rows: pd.DataFrame, lang: str) -> dict[str, dict[str, Any]]:
    """How to draw each column, the mean first; of a single task the mean would hide its line."""
    tasks = list(dict.fromkeys(task for scores in rows["scores"] for task in scores))
    lines = {}
    for i, (task, marker) in enumerate(cycle(tasks, MARKERS).items()):
        looks = {"color": _COLOURS[i % len(_COLOURS)], "marker": marker, "lw": 1.3}
        lines[task_column(task)] = looks | {"label": wording.task(task, lang)}
    mean = {"quality": _MEAN | {"label": label("tasks_mean", lang)}}
    return mean | lines if len(tasks) > 1 else lines


def _mean_in_the_middle(shifts: list[float]) -> list[float]:
    """The first line's step aside is the middle one."""
    middle = len(shifts) // 2
    return [shifts[middle], *shifts[:middle], *shifts[middle + 1 :]]


def _shifts(count: int, at: dict[str, float]) -> list[float]:
    """Steps aside for ``count`` points at one place: no wider than bars need, nor than half the
    way to the next place.
    """
    places = sorted(at.values())
    nearest = float(np.diff(places).min()) if len(at) > 1 else 1.0
    step = min(0.02 * (places[-1] - places[0]) or 0.1, nearest * 0.5 / count)
    return [step * (i - (count - 1) / 2) for i in range(count)]


def _interval(lows: pd.Series, lang: str) -> list[Any]:
    """The legend's entry for the bars, if there are any."""
    return [interval_handle(label("interval_items", lang))] if lows.notna().any() else []


def _bars(
    ax: Axes, x: pd.Series, data: pd.DataFrame, column: str, scale: float = 1, **looks: Any
) -> None:
    """A column at ``x`` with bars from its ``_low`` to its ``_high``, where they are known."""
    value, low, high = (
        scale * data[column + end].astype(float).to_numpy() for end in ("", "_low", "_high")
    )
    looks |= {"yerr": np.array([value - low, high - value]), "capsize": 2, "elinewidth": 1}
    ax.errorbar(x.to_numpy(float), value, **looks)


# ---- against cost


@fonts.styled
def quality_cost(
    frame: pd.DataFrame,
    recommendation: Recommendation | None = None,
    ax: Axes | None = None,
    *,
    min_quality: float | None = None,
    lang: str = "en",
) -> Axes:
    """Cost per 100 images (seconds if unpriced) against quality, one point per setting.

    Looks as in :func:`tradeoff`. The step line joins the settings that no other one beats in
    both. They have 95% intervals of their quality, as have today's and the recommended one, which
    are named.

    Parameters
    ----------
    min_quality : float, optional
        A limit to draw (0-1); by default the one that the recommendation kept.

    Raises
    ------
    ConfigError
        If ``min_quality`` is above 1.
    """
    if min_quality is None and recommendation is not None:
        min_quality = recommendation.min_quality
    if min_quality is not None and min_quality > 1:
        raise ConfigError(f"min_quality is a share from 0 to 1, not {min_quality}")
    metric = "cost" if quantities.money_sign(frame) else "s_per_100_images"
    data = readings(frame, metric, CELL, lang)
    data["key"] = frame["key"].reset_index(drop=True)
    data[_SCORES] = frame[_SCORES].reset_index(drop=True).astype(float)
    known = data.dropna(subset=["value", "quality"])
    ax = fonts.new_axes((8.4, 4.8)) if ax is None else ax
    title = [label("quality_cost_title", lang, cost=wording.title(frame, metric, lang))]
    if known.empty:
        ax.set(xticks=[], yticks=[])
        fonts.say(ax, label("no_quality" if data["value"].any() else "nothing_measured", lang))
    else:
        named = points.named(recommendation)
        handles = _points(ax, known, named, points.kind_markers(frame, data, lang), lang)
        handles += _limit(ax, min_quality, lang)
        fonts.legend_beside(ax, handles, label("size_is_batch", lang))
        _cost_axes(ax, known, named, wording.axis(frame, metric, lang), lang)
        title.append(wording.items(known["quality_items"], lang))
    if known.empty:
        ax.set_xlabel(wording.axis(frame, metric, lang))
    ax.set_ylabel(wording.quality_axis(frame, lang))
    ax.set_title(label("between", lang).join(title))
    return ax


_SCORES = ["quality", "quality_low", "quality_high", "quality_items"]


def _points(
    ax: Axes,
    data: pd.DataFrame,
    named: dict[str, pd.Series],
    markers: dict[str, points.Marker],
    lang: str,
) -> list[Any]:
    points.scatter(ax, data, "quality", markers, lang)
    front = points.front(data, "quality", higher_is_better=True)
    handles: list[Any] = points.handles(data, markers, lang)
    handles += points.front_line(ax, front, "quality", lang)
    keys = [row["key"] for row in named.values()]
    barred = data[data.index.isin(front.index) | data["key"].isin(keys)]
    looks: dict[str, Any] = {"fmt": "none", "ecolor": "#666666", "zorder": 1}
    _bars(ax, barred["value"], barred, "quality", **looks)
    return [*handles, *_interval(barred["quality_low"], lang)]


def _limit(ax: Axes, limit: float | None, lang: str) -> list[Any]:
    if limit is None:
        return []
    words = label("min_quality_line", lang, value=quantities.number(limit))
    return [ax.axhline(limit, color="#D55E00", lw=1.2, ls=(0, (6, 3)), zorder=0.9, label=words)]


def _cost_axes(
    ax: Axes, data: pd.DataFrame, named: dict[str, pd.Series], cost: str, lang: str
) -> None:
    points.cost_axis(ax, data, cost, lang)
    ax.set_ylim(-0.03, 1.3 if named else 1.03)  # room for the names
    ax.set_yticks(np.arange(6) / 5)
    fonts.number_axis(ax.yaxis, lang)
    for key, row in named.items():
        if pd.notna(row["quality"]):
            points.name_point(ax, key, row, float(row["quality"]), lang)


# ---- lower precision


@fonts.styled
def precision_loss(frame: pd.DataFrame, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """What each precision changes in quality against the most exact one, item by item.

    In percentage points with 95% intervals, below zero is worse. Filled where the paired test
    gives p < 0.05, hollow where the difference may be chance; size is batch size.

    Parameters
    ----------
    frame : DataFrame
        From :func:`qvl_lab.analysis.frame.frame`, of a workload with answers.

    Raises
    ------
    ConfigError
        If no setting has a quality.
    """
    rows = with_quality(frame)
    data = tradeoffs.precision_loss(rows).dropna(subset=["difference"])
    data = _in_lanes(data, wording.precisions(rows))
    beside = data["lane"].nunique() * data["resolution"].nunique()
    ax = fonts.new_axes((max(8.4, 2.6 + 0.08 * beside), 4.4)) if ax is None else ax
    title = [label("loss_title", lang, against=wording.precisions(rows)[0])]
    if data.empty:
        ax.set(xticks=[], yticks=[])
        fonts.say(ax, label("one_precision", lang))
    else:
        _losses(ax, data, wording.precisions(rows), lang)
        title.append(wording.items(data["items"], lang))
    ax.set_xlabel(label("side_axis", lang))
    ax.set_ylabel(wording.quality_axis(rows, lang, loss=True))
    ax.set_title(label("between", lang).join(title))
    return ax


def _losses(ax: Axes, data: pd.DataFrame, precisions: Sequence[str], lang: str) -> None:
    colours, markers = cycle(precisions, fonts.PALETTE), cycle(precisions, MARKERS)
    names = sorted(set(data["resolution"]), key=wording.resolution_order)
    at = {name: float(i) for i, name in enumerate(names)}
    shifts = _shifts(data["lane"].max() + 1, at)
    for _, rows in data.groupby(["lane", "sure"]):
        precision, batch, lane, sure = rows[["precision", "batch_size", "lane", "sure"]].iloc[0]
        looks = {"color": colours[precision], "marker": markers[precision], "ls": "none"}
        looks |= {"ms": 3.5 + 0.75 * np.log2(batch)} | ({} if sure else {"mfc": "white"})
        _bars(ax, rows["resolution"].map(at) + shifts[lane], rows, "difference", 100, **looks)
    ax.axhline(0, color="#222222", lw=1, zorder=1)
    side_axis(ax, at, lang)
    fonts.number_axis(ax.yaxis, lang, change=True)
    shown = [(n, colours[n], markers[n]) for n in precisions if n in set(data["precision"])]
    _loss_legend(ax, data, shown, lang)


def _in_lanes(data: pd.DataFrame, precisions: Sequence[str]) -> pd.DataFrame:
    """With a lane for each precision and batch size, so that points keep their order at a place."""
    data = data.rename(columns={end: f"difference_{end}" for end in ("low", "high")})
    data["sure"] = data["p_value"] < NOISE_FROM
    twins = data.groupby(["precision", "batch_size", "resolution"]).cumcount()
    order = data["precision"].map(list(precisions).index)
    data["lane"] = data.groupby([order, data["batch_size"], twins]).ngroup()
    return data


def _loss_legend(
    ax: Axes, data: pd.DataFrame, shown: Sequence[tuple[str, str, str]], lang: str
) -> None:
    """Precisions (name, colour, marker), what filled and hollow markers say, and the bars."""
    handles: list[Any] = [
        Line2D([], [], label=n, color=colour, marker=marker, ls="none")
        for n, colour, marker in shown
    ]
    for key, sure, face in (("beyond_noise", True, None), ("within_noise", False, "white")):
        if (data["sure"] == sure).any():
            looks: dict[str, Any] = {"color": "#777777", "marker": "o", "mfc": face, "ls": "none"}
            handles.append(Line2D([], [], label=label(key, lang), **looks))
    handles += _interval(data["difference_low"], lang)
    batches = data["batch_size"].unique()
    one, several = label("batch", lang, n=batches[0]), label("size_is_batch", lang)
    fonts.legend_beside(ax, handles, several if len(batches) > 1 else one)
