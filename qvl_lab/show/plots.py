"""Figures from a frame of runs: DataFrame in, Axes or Figure out.

A function with an ``ax`` draws into it, or into a new pyplot figure. One that returns a Figure
leaves it unregistered with pyplot, so that a notebook shows it once, as the cell's value. Chinese
falls back to English where no font can draw it (:func:`qvl_lab.show.fonts.figure_language`).

Legends lie outside the axes: give axes of a figure with ``layout="constrained"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullLocator

from qvl_lab.analysis.cost import cost_column
from qvl_lab.analysis.recommend import Recommendation, peak_memory_bytes
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.records import STAGES
from qvl_lab.show import fonts, text
from qvl_lab.show.text import label

METRICS = ("images_per_s", "vram", "cost", "ttft_s", "s_per_100_images")
#: A stage has the same colour in every figure.
STAGE_COLOURS = dict(
    zip(
        (*STAGES, "other"),
        "#E69F00 #F0E442 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7 #BBBBBB".split(),
        strict=True,
    )
)
_MARKERS, _DASHES = "osD^vP*", ("-", "--", ":", "-.")
_CELL = ("precision", "resolution", "batch_size")


# ---- curves over batch size


@fonts.styled
def curve(frame: pd.DataFrame, metric: str, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """A metric over batch size: one line per resolution, 95% intervals as bars.

    Other settings that differ within the frame get lines of their own. What was not measured is
    marked along the panel's top, at its batch size.

    Parameters
    ----------
    frame : DataFrame
        From :func:`qvl_lab.analysis.frame.frame`, priced for ``metric="cost"``.
    metric : str
        One of METRICS.

    Raises
    ------
    UnknownNameError
        If the metric or the language is unknown.
    ConfigError
        If a cost is asked of an unpriced frame, or the frame is empty.
    """
    data = _readings(frame, metric, ["batch_size", "resolution"])
    ax = fonts.new_axes((7.6, 4.2)) if ax is None else ax
    _panel(ax, data, data, lang)
    ax.set_title(text.title(frame, metric, lang))
    ax.set_ylabel(text.axis(frame, metric, lang))
    ax.set_xlabel(label("batch_axis", lang))
    fonts.legend_beside(ax, _legend(data, lang), label("resolution", lang))
    return ax


@fonts.styled
def curves(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("images_per_s", "vram", "cost"),
    lang: str = "en",
) -> Figure:
    """:func:`curve` for several metrics (rows) and each precision (columns), one legend for all.

    Cost is left out if the frame has not been priced.
    """
    metrics = [m for m in metrics if m != "cost" or text.money_sign(frame)] or list(metrics)
    tables = [_readings(frame, m, _CELL) for m in metrics]
    precisions = text.precisions(frame)
    figure, grid = fonts.new_grid(len(metrics), len(precisions), (3.7, 2.4), sharey="row")
    for metric, data, axes in zip(metrics, tables, grid, strict=True):
        for precision, ax in zip(precisions, axes, strict=True):
            _panel(ax, data[data["precision"] == precision], data, lang)
        axes[0].set_ylabel(text.axis(frame, metric, lang))
    for precision, top, bottom in zip(precisions, grid[0], grid[-1], strict=True):
        top.set_title(precision)
        bottom.set_xlabel(label("batch_axis", lang))
    title, columns = label("resolution", lang), 1 + 2 * len(precisions)
    handles = _legend(tables[0], lang)
    figure.legend(handles=handles, title=title, ncols=columns, loc="outside lower center")
    return figure


def _readings(frame: pd.DataFrame, metric: str, drawn: Sequence[str]) -> pd.DataFrame:
    """One row per run, sorted: settings, status, how to draw them, and what was read.

    ``value``, ``low`` and ``high`` are NaN where unknown. ``other`` names what differs besides
    the settings ``drawn``; ``place`` numbers the unmeasured runs at one place of the x axis.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    if frame.empty:
        raise ConfigError("the frame has no rows to draw; measure something or filter less")
    frame = frame.reset_index(drop=True)
    data = frame[[*_CELL, "status"]].copy()
    for column, suffix in {"value": "", "low": "_low", "high": "_high"}.items():
        data[column] = _column(frame, metric, suffix).where(data["status"] == "ok")
    data["other"] = text.others(frame, drawn)
    data["order"] = data["resolution"].map(text.resolution_order)
    data = data.sort_values(["order", "other", "batch_size"], kind="stable")
    data["colour"] = data["resolution"].map(_cycle(data["resolution"], fonts.PALETTE))
    data["marker"] = data["resolution"].map(_cycle(data["resolution"], _MARKERS))
    data["dashes"] = data["other"].map(_cycle(data["other"], _DASHES))
    panel = [name for name in ("precision", "batch_size") if name in drawn]
    data["place"] = data[data["status"] != "ok"].groupby(panel).cumcount()
    data.attrs = {"metric": metric, "sign": text.money_sign(frame) if metric == "cost" else ""}
    return data


def _column(frame: pd.DataFrame, metric: str, suffix: str) -> pd.Series:
    if metric == "vram":  # a peak over all repeats: it has no interval
        return _memory_gib(frame) if not suffix else pd.Series(np.nan, frame.index)
    name = cost_column(frame) if metric == "cost" else metric
    return pd.to_numeric(frame[name + suffix]).astype(float)


def _panel(ax: Axes, data: pd.DataFrame, whole: pd.DataFrame, lang: str) -> None:
    """Draw ``data`` on axes that fit ``whole``, all of the figure's row."""
    for _, rows in data.dropna(subset=["value"]).groupby(["order", "other"]):
        error = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])
        bars: dict[str, Any] = {"yerr": error, "capsize": 2.5, "elinewidth": 1}
        ax.errorbar(rows["batch_size"], rows["value"], **bars, **_line(rows))
    for row in data.dropna(subset=["place"]).to_dict("records"):
        y = 0.96 - _PLACE * row["place"]  # in shares of the panel; x in data
        looks = _miss(row["status"], row["colour"])
        ax.plot(row["batch_size"], y, transform=ax.get_xaxis_transform(), clip_on=False, **looks)
    _batch_axis(ax, whole, lang)
    _value_axis(ax, whole, lang)
    _hatch_oom(ax, data)
    if data["value"].isna().all():
        tried = (data["status"] == "ok").any()
        fonts.say(ax, label("not_measured" if tried else "nothing_measured", lang))


#: Height of one mark along a panel's top, in shares of the panel.
_PLACE = 0.065
_MISSES = {"oom": "x", "skipped": "o", "error": "d"}
_OOM_REGION: dict[str, Any] = {"fc": "none", "ec": "#CFCFCF", "hatch": "////", "lw": 0}


def _line(rows: pd.DataFrame) -> dict[str, Any]:
    first = rows.iloc[0]
    return {"color": first["colour"], "marker": first["marker"], "linestyle": first["dashes"]}


def _miss(status: str, colour: str) -> dict[str, Any]:
    looks = {"marker": _MISSES[status], "color": colour, "linestyle": "none", "mew": 1.4}
    return looks if status == "oom" else looks | {"markerfacecolor": "white", "mew": 1.1}


def _legend(data: pd.DataFrame, lang: str) -> list[Any]:
    """Handles: the lines, what their bars are, then the marks of what was not measured."""
    handles: list[Any] = []
    for (_, other), rows in data.groupby(["order", "other"]):
        name = text.resolution(rows["resolution"].iloc[0], lang)
        handles.append(
            Line2D([], [], label=" · ".join(filter(None, [name, str(other)])), **_line(rows))
        )
    if data["low"].notna().any():
        bar: dict[str, Any] = {"marker": "|", "ms": 10, "color": "#555555", "ls": "none"}
        handles.append(Line2D([], [], label=label("interval", lang), **bar))
    for status in _MISSES:
        if (data["status"] == status).any():
            handles.append(Line2D([], [], label=label(status, lang), **_miss(status, "#555555")))
    if (data["status"] == "oom").any():
        handles.append(Patch(label=label("oom_region", lang), **_OOM_REGION))
    return handles


def _hatch_oom(ax: Axes, data: pd.DataFrame) -> None:
    """Hatch from half a step before the smallest batch that ran out of memory."""
    oom = data.loc[data["status"] == "oom", "batch_size"]
    if oom.empty:
        return
    smaller = data.loc[data["batch_size"] < oom.min(), "batch_size"]
    left, right = ax.get_xlim()
    left = float(np.sqrt(oom.min() * smaller.max())) if len(smaller) else left
    ax.axvspan(left, right, zorder=0, **_OOM_REGION)


def _batch_axis(ax: Axes, data: pd.DataFrame, lang: str) -> None:
    batches = sorted(data["batch_size"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(batches, [str(b) for b in batches])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)


def _value_axis(ax: Axes, data: pd.DataFrame, lang: str) -> None:
    """From zero, or logarithmic for times and money that range wide; room above for marks."""
    values = data[["value", "low", "high"]].to_numpy(float)
    log = data.attrs["metric"] not in ("images_per_s", "vram") and _is_wide(data["value"])
    if np.isnan(values).all():
        ax.set_yticks([])
        return
    low, high = np.nanmin(values) / 1.2, np.nanmax(values) * 1.06
    free = 1 - _PLACE * (data["place"].fillna(-2).max() + 2)
    ax.set_yscale("log" if log else "linear")
    ax.set_ylim(*((low, low * (high / low) ** (1 / free)) if log else (0, high / free)))
    fonts.number_axis(ax.yaxis, lang, sign=data.attrs["sign"], log=log)


# ---- what fits


@fonts.styled
def feasible(frame: pd.DataFrame, *, precision: str | None = None, lang: str = "en") -> Figure:
    """Batch size against resolution: cost per 100 images, or images/s if unpriced.

    Each cell shows its best setting. What ran out of memory or was skipped is hatched; a thick
    line separates it from what was measured. One panel per precision, or the one named.

    Raises
    ------
    UnknownNameError
        If the frame has no such precision.
    """
    chosen = text.precisions(frame)
    if precision is not None:
        if precision not in chosen:
            raise UnknownNameError("precision", precision, chosen)
        chosen, frame = [precision], frame[frame["precision"] == precision]
    metric = "cost" if text.money_sign(frame) else "images_per_s"
    data = _readings(frame, metric, _CELL)
    size = (1.5 + 0.72 * data["batch_size"].nunique(), 1.1 + 0.5 * data["order"].nunique())
    figure, grid = fonts.new_grid(1, len(chosen), size, sharey=True)
    colours = _colours(data)
    for name, ax in zip(chosen, grid[0], strict=True):
        _heat_map(ax, data, name, colours, lang)
        ax.set_title(name)
        ax.set_xlabel(label("batch_axis", lang))
    grid[0][0].set_ylabel(label("resolution", lang))
    figure.suptitle(label("feasible_title", lang, what=label(f"what_{metric}", lang)))
    if data["value"].notna().any():
        bar = figure.colorbar(colours, ax=grid, label=text.axis(frame, metric, lang), pad=0.02)
        fonts.number_axis(bar.ax.yaxis, lang, log=isinstance(colours.norm, LogNorm))
    notes = _notes(data, text.differing(frame, _CELL), lang)
    figure.legend(handles=notes, loc="outside lower center", ncols=2)
    return figure


def _colours(data: pd.DataFrame) -> ScalarMappable:
    """Bright is good: cheap, or fast."""
    low, high = data["value"].min(), data["value"].max()
    low, high = (low * 0.9, high * 1.1) if low == high else (low, high)
    norm = LogNorm(low, high) if _is_wide(data["value"]) else Normalize(low, high)
    return ScalarMappable(norm, "viridis_r" if data.attrs["metric"] == "cost" else "viridis")


def _heat_map(
    ax: Axes, data: pd.DataFrame, precision: str, colours: ScalarMappable, lang: str
) -> None:
    names, batches = list(data["resolution"].unique()), sorted(data["batch_size"].unique())
    status = np.full((len(names), len(batches)), "", dtype=object)
    for cell in _cells(data[data["precision"] == precision]).to_dict("records"):
        y, x = names.index(cell["resolution"]), batches.index(cell["batch_size"])
        status[y, x] = cell["status"]
        _cell(ax, (x, y), cell["status"], cell["value"], colours, lang)
    ax.add_collection(LineCollection(_boundary(status), colors=_LIMIT, linewidths=3.5))
    ax.set(xlim=(-0.5, len(batches) - 0.5), ylim=(-0.5, len(names) - 0.5))
    ax.set_xticks(range(len(batches)), [str(b) for b in batches])
    ax.set_yticks(range(len(names)), [text.resolution(n, lang) for n in names])
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _cells(data: pd.DataFrame) -> pd.DataFrame:
    """The best measured run of each cell; without one, what stopped it."""
    ranks = data["status"].map({"ok": 0, "oom": 1, "error": 2, "skipped": 3})
    by = ["rank", "value"]
    ranked = data.assign(rank=ranks).sort_values(by, ascending=[True, data.attrs["sign"] != ""])
    return ranked.drop_duplicates(["resolution", "batch_size"])


_LIMIT = "#D55E00"
_MISS_CELLS = {"oom": ("#F3D9CC", "////"), "skipped": ("#F4F4F4", "//"), "error": ("#DDDDDD", "")}


def _cell(
    ax: Axes, at: tuple[int, int], status: str, value: float, colours: ScalarMappable, lang: str
) -> None:
    known, corner = pd.notna(value), (at[0] - 0.5, at[1] - 0.5)
    face: Any = colours.to_rgba(np.asarray(value)) if known else "none"
    if not known:
        colour, hatch = _MISS_CELLS.get(status, ("w", ""))
        ax.add_patch(Rectangle(corner, 1, 1, facecolor=colour, hatch=hatch, ec="#C9C9C9", lw=0))
    ax.add_patch(Rectangle(corner, 1, 1, facecolor=face, ec="white", lw=1))
    missing = {"oom": "cell_oom", "ok": "not_measured"}.get(status, status)
    words = text.number(value) if known else label(missing, lang)
    dark = known and np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
    ax.text(*at, words, ha="center", va="center", fontsize=9, color="w" if dark else "#222222")


def _boundary(status: np.ndarray) -> list[list[tuple[float, float]]]:
    """Edges between measured cells and those that do not fit."""
    fits = (status == "ok").astype(int) - np.isin(status, ["oom", "skipped"])
    beside = np.argwhere(fits[:, :-1] * fits[:, 1:] < 0)
    above = np.argwhere(fits[:-1] * fits[1:] < 0)
    edges = [[(x + 0.5, y - 0.5), (x + 0.5, y + 0.5)] for y, x in beside]
    return edges + [[(x - 0.5, y + 0.5), (x + 0.5, y + 0.5)] for y, x in above]


def _notes(data: pd.DataFrame, mixed: Sequence[str], lang: str) -> list[Any]:
    notes = []
    if data["status"].isin(["oom", "skipped"]).any() and (data["status"] == "ok").any():
        notes.append(Line2D([], [], color=_LIMIT, lw=3.5, label=label("limit_line", lang)))
    if mixed:
        words = label("best_of_cell", lang, names=", ".join(mixed))
        notes.append(Line2D([], [], linestyle="none", label=words))
    return notes


# ---- where the time goes


@fonts.styled
def stages(
    frame: pd.DataFrame, ax: Axes | None = None, *, normalise: bool = False, lang: str = "en"
) -> Axes:
    """Seconds per image by stage, one stacked bar per row of the frame, the first on top.

    The total at a bar's end is the sum of its stages (medians over repeats). With ``normalise``
    the bars are shares of it. A row that was not measured keeps its place and says why.
    """
    names = [f"stage_{name}_s" for name in STAGE_COLOURS]
    seconds = frame[names].apply(pd.to_numeric).astype(float).fillna(0.0).to_numpy()
    total = seconds.sum(axis=1)
    widths = seconds * (100 / np.where(total > 0, total, 1))[:, None] if normalise else seconds
    ends = widths.cumsum(axis=1)
    ax = fonts.new_axes((8, 1.9 + 0.42 * len(frame))) if ax is None else ax
    for i, (name, colour) in enumerate(STAGE_COLOURS.items()):
        looks: dict[str, Any] = {"color": colour, "ec": "white", "lw": 0.5, "height": 0.7}
        looks["label"] = label(f"stage_{name}", lang)
        ax.barh(range(len(frame)), widths[:, i], left=ends[:, i] - widths[:, i], **looks)
    for y, status in enumerate(frame["status"]):
        missing = label("not_measured" if status == "ok" else status, lang)
        words = text.amount(total[y], "", lang) if total[y] > 0 else missing
        _note(ax, words, (ends[y, -1], y), (4, 0), va="center")
    _stage_axes(ax, frame, ends.max(initial=0), lang)
    ax.set_xlabel(label("stages_share_axis" if normalise else "stages_axis", lang))
    return ax


def _stage_axes(ax: Axes, frame: pd.DataFrame, longest: float, lang: str) -> None:
    rows = zip((row for _, row in frame.iterrows()), text.others(frame, _CELL), strict=True)
    names = [" · ".join(filter(None, [text.setting(row, lang), other])) for row, other in rows]
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, longest * 1.14 or 1))  # room for the totals
    fonts.number_axis(ax.xaxis, lang)
    ax.grid(axis="y", visible=False)
    ax.set_title(label("stages_title", lang))
    # below the axis label: the pad is in font sizes, whatever the number of bars
    ax.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.45, 0), borderaxespad=4.2)


# ---- what to run instead


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
        _note(ax, bar.words, (x, bar.top), (0, 4), ha="center")
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
    column = text.cost_or_time(today.to_frame().T)
    factor = today[column] / today["s_per_100_images"]
    bars, position = [_outer("today", today, column, lang)], today
    for step in recommendation.steps:
        names = [text.changed(n, position[n], v, lang) for n, v in step.changed.items()]
        start, end = step.before_s * factor, step.after_s * factor
        size = text.amount(abs(end - start), column, lang)
        words = f"{'+' if end > start else '−'}{size}\n{text.percent(start, end)}"
        colour = _DEARER if end > start else _CHEAPER
        bars.append(_Bar("\n".join(names), start, end, words, colour))
        position = step.row
    last = _outer("recommended", best, column, lang)
    words = f"{last.words}\n{text.percent(bars[0].end, last.end)}"
    return [*bars, last._replace(words=words)]


def _outer(key: str, row: pd.Series, column: str, lang: str) -> _Bar:
    value, *interval = (float(row[column + suffix]) for suffix in ("", "_low", "_high"))
    known = () if np.isnan(interval).any() else tuple(interval)
    name = "\n".join([label(key, lang), *text.setting(row, lang).split(label("between", lang))])
    return _Bar(name, 0.0, value, text.amount(value, column, lang), _OUTER, known)


def _waterfall_words(
    ax: Axes, recommendation: Recommendation, bars: Sequence[_Bar], lang: str
) -> None:
    frame = recommendation.current.to_frame().T
    sign = text.money_sign(frame)
    fonts.number_axis(ax.yaxis, lang, sign=sign)
    ax.set_ylabel(text.axis(frame, "cost" if sign else "s_per_100_images", lang))
    ax.set_xticks(range(len(bars)), [bar.name for bar in bars], linespacing=1.35)
    ax.tick_params(axis="x", length=0)
    ax.set_xlabel(label("waterfall_percent", lang), fontsize=9, color="#555555")
    ax.grid(axis="x", visible=False)
    change = text.percent(bars[0].end, bars[-1].end)
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
    metric = "cost" if text.money_sign(frame) else "s_per_100_images"
    data = _readings(frame, metric, _CELL)
    data["memory"] = _memory_gib(frame.reset_index(drop=True))
    known = data.dropna(subset=["value", "memory"])
    ax = fonts.new_axes((8.4, 4.8)) if ax is None else ax
    if known.empty:
        ax.set(xticks=[], yticks=[])
        fonts.say(ax, label("not_measured" if data["value"].any() else "nothing_measured", lang))
    else:
        _points(ax, known, _cycle(text.precisions(frame), _MARKERS), lang)
        _tradeoff_axes(ax, known, lang)
    if recommendation is not None:
        _name_point(ax, "today", recommendation.current, lang)
        _name_point(ax, "recommended", recommendation.best, lang)
    ax.set_xlabel(text.axis(frame, metric, lang))
    ax.set_ylabel(text.axis(frame, "vram", lang))
    memory = text.title(frame, "vram", lang)
    words = {"cost": text.title(frame, metric, lang), "memory": memory[0].lower() + memory[1:]}
    ax.set_title(label("tradeoff_title", lang, **words))
    return ax


def _points(ax: Axes, data: pd.DataFrame, markers: dict[str, str], lang: str) -> None:
    for (colour, precision), rows in data.groupby(["colour", "precision"]):
        sizes = 22 + 26 * np.log2(rows["batch_size"].to_numpy(float))
        looks: dict[str, Any] = {"color": colour, "marker": markers[str(precision)], "ec": "white"}
        ax.scatter(rows["value"], rows["memory"], s=sizes, lw=0.5, alpha=0.85, **looks)
    # a beaten point lies above and to the right of another one; nothing lies between the steps
    ordered = data.sort_values(["value", "memory"])
    front = ordered[ordered["memory"] < ordered["memory"].cummin().shift(fill_value=np.inf)]
    looks = {"color": "#333333", "lw": 1, "ls": "--", "zorder": 1, "drawstyle": "steps-post"}
    (line,) = ax.plot(front["value"], front["memory"], label=label("front", lang), **looks)
    shown = data[["resolution", "colour"]].drop_duplicates().to_numpy()
    names = [(text.resolution(name, lang), colour, "s") for name, colour in shown]
    names += [(name, "#777777", marker) for name, marker in markers.items()]
    handles = [Line2D([], [], label=n, color=c, marker=m, ls="none") for n, c, m in names]
    fonts.legend_beside(ax, [*handles, line], label("size_is_batch", lang))


def _tradeoff_axes(ax: Axes, data: pd.DataFrame, lang: str) -> None:
    log = _is_wide(data["value"])
    low, high = data["value"].min(), data["value"].max()
    ax.set_xscale("log" if log else "linear")
    ax.set_xlim(low / 1.3 if log else 0, high * (1.3 if log else 1.1))
    ax.set_ylim(0, data["memory"].max() * 1.3)  # room for the names
    fonts.number_axis(ax.xaxis, lang, sign=data.attrs["sign"], log=log)
    fonts.number_axis(ax.yaxis, lang)


def _name_point(ax: Axes, key: str, row: pd.Series, lang: str) -> None:
    """Ring a point; its name goes to the top corner, today's right, where the dear settings are."""
    column = text.cost_or_time(row.to_frame().T)
    at = (float(row[column]), float(_memory_gib(row.to_frame().T).iloc[0]))
    if np.isnan(at).any():
        return
    named = label(
        "named_point", lang, who=label(key, lang), amount=text.amount(at[0], column, lang)
    )
    ax.scatter(*at, s=330, facecolors="none", edgecolors="#111111", lw=1.4)
    x, side = (0.98, "right") if key == "today" else (0.02, "left")
    looks: dict[str, Any] = {"arrowprops": {"arrowstyle": "-", "shrinkB": 9, "color": "#111111"}}
    where: dict[str, Any] = {
        "xytext": (x, 0.98),
        "textcoords": "axes fraction",
        "va": "top",
        "linespacing": 1.35,
    }
    ax.annotate(f"{named}\n{text.setting(row, lang)}", at, ha=side, fontsize=9, **looks, **where)


# ---- shared by the figures


def _note(
    ax: Axes, words: str, at: tuple[float, float], offset: tuple[int, int], **looks: Any
) -> None:
    ax.annotate(
        words, at, xytext=offset, textcoords="offset points", fontsize=9, linespacing=1.3, **looks
    )


def _memory_gib(frame: pd.DataFrame) -> pd.Series:
    return peak_memory_bytes(frame).astype(float) / 2**30


def _is_wide(values: pd.Series) -> bool:
    """Whether a linear axis from zero would hide the small values."""
    return bool(values.min() > 0 and values.max() / values.min() > 8)


def _cycle(names: Iterable[Any], looks: Sequence[str]) -> dict[Any, str]:
    return {name: looks[i % len(looks)] for i, name in enumerate(dict.fromkeys(names))}
