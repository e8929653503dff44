"""Figures from a frame of runs: DataFrame in, Axes or Figure out.

A function with an ``ax`` draws into it, or into a new pyplot figure. One that returns a Figure
leaves it unregistered with pyplot, so that a notebook shows it once, as the cell's value. Chinese
falls back to English where no font can draw it (:func:`qvl_lab.show.fonts.figure_language`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from qvl_lab.analysis.cost import cost_column, symbol
from qvl_lab.analysis.frame import SETTINGS
from qvl_lab.analysis.recommend import PRECISION_ORDER, Recommendation, peak_memory_bytes
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.records import STAGES
from qvl_lab.show import text
from qvl_lab.show.fonts import PALETTE, families, figure_language, style
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
#: Beyond this ratio of largest to smallest a linear axis hides the small values.
_WIDE = 8
_MISSES = {"oom": "x", "skipped": "o", "error": "d"}
_MARKERS = "osD^vP*"
_DASHES = ("-", "--", ":", "-.")

P = ParamSpec("P")
R = TypeVar("R")


def _styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Give ``draw`` the project's look, and a ``lang`` that the installed fonts can draw."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> R:
        lang, _ = figure_language(str(kwargs.get("lang", "en")))
        with style(lang):
            return draw(*args, **cast(Any, kwargs | {"lang": lang}))

    return styled


# ---- curves over batch size


@_styled
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
        If a cost is asked of an unpriced frame.
    """
    data = _readings(frame, metric, ["batch_size", "resolution"])
    look = _Look.of(data, lang)
    ax = _axes((7.6, 4.2)) if ax is None else ax
    _panel(ax, data, data, look)
    ax.set_title(label(_words(frame, metric), lang))
    ax.set_ylabel(_axis_label(frame, metric, lang))
    ax.set_xlabel(label("batch_axis", lang))
    _legend_beside(ax, look.legend(data), label("resolution", lang))
    return ax


@_styled
def curves(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("images_per_s", "vram", "cost"),
    lang: str = "en",
) -> Figure:
    """:func:`curve` for several metrics (rows) and each precision (columns), one legend for all.

    Cost is left out if the frame has not been priced.
    """
    metrics = [m for m in metrics if m != "cost" or _is_priced(frame)]
    precisions = _precisions(frame)
    figure, grid = _grid(len(metrics), len(precisions), (3.7, 2.4), sharey="row")
    handles: list[Any] = []
    for metric, axes in zip(metrics, grid, strict=True):
        data = _readings(frame, metric, ["batch_size", "resolution", "precision"])
        look = _Look.of(data, lang)
        handles = look.legend(data)
        for precision, ax in zip(precisions, axes, strict=True):
            _panel(ax, data[data["precision"] == precision], data, look)
        axes[0].set_ylabel(_axis_label(frame, metric, lang))
    for precision, top, bottom in zip(precisions, grid[0], grid[-1], strict=True):
        top.set_title(precision)
        bottom.set_xlabel(label("batch_axis", lang))
    look_ = {"title": label("resolution", lang), "ncols": min(len(handles), 2 * len(precisions) + 1)}
    figure.legend(handles=handles, loc="outside lower center", **look_)
    return _unregistered(figure)


def _readings(frame: pd.DataFrame, metric: str, drawn: Sequence[str]) -> pd.DataFrame:
    """One row per run: settings, status, ``value``, ``low``, ``high``; NaN where unknown.

    ``other`` names what differs besides the settings ``drawn``; ``place`` numbers the runs that
    were not measured at one batch size of one panel.
    """
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    data = frame[["batch_size", "resolution", "precision", "status"]].copy()
    if metric == "vram":
        data[["value", "low", "high"]] = np.nan
        data["value"] = _memory_gib(frame)
    else:
        name = cost_column(frame) if metric == "cost" else metric
        for column, suffix in {"value": "", "low": "_low", "high": "_high"}.items():
            data[column] = pd.to_numeric(frame[name + suffix]).astype(float)
    data.loc[data["status"] != "ok", ["value", "low", "high"]] = np.nan
    data["other"] = _others(frame, drawn)
    data["order"] = data["resolution"].map(_resolution_order)
    data = data.sort_values(["order", "other", "batch_size"], kind="stable")
    panel = [name for name in ("precision", "batch_size") if name in drawn]
    data["place"] = data[data["status"] != "ok"].groupby(panel).cumcount()
    data.attrs = {"metric": metric, "symbol": _symbol(frame) if metric == "cost" else ""}
    return data


@dataclass(frozen=True)
class _Look:
    """Colours by resolution and dashes by other settings, the same in all panels of a figure."""

    lang: str
    colours: dict[str, str]
    markers: dict[str, str]
    dashes: dict[str, str]

    @classmethod
    def of(cls, data: pd.DataFrame, lang: str) -> _Look:
        names, others = data["resolution"].unique(), data["other"].unique()
        return cls(lang, _cycle(names, PALETTE), _cycle(names, _MARKERS), _cycle(others, _DASHES))

    def line(self, resolution: str, other: str) -> dict[str, Any]:
        return {
            "color": self.colours[resolution],
            "marker": self.markers[resolution],
            "linestyle": self.dashes[other],
        }

    def legend(self, data: pd.DataFrame) -> list[Any]:
        """Handles: the lines, then the marks of what was not measured."""
        handles: list[Any] = []
        for resolution, other in data[["resolution", "other"]].drop_duplicates().to_numpy():
            name = " · ".join(filter(None, [text.resolution(resolution, self.lang), other]))
            handles.append(Line2D([], [], label=name, **self.line(resolution, other)))
        for status, marker in _MISSES.items():
            if (data["status"] == status).any():
                name = label(status, self.lang)
                handles.append(Line2D([], [], label=name, **_mark(marker, "#555555")))
        if (data["status"] == "oom").any():
            handles.append(Patch(label=label("oom_region", self.lang), **_OOM_REGION))
        return handles


_OOM_REGION = {"facecolor": "none", "edgecolor": "#CFCFCF", "hatch": "////", "linewidth": 0}


def _panel(ax: Axes, data: pd.DataFrame, whole: pd.DataFrame, look: _Look) -> None:
    """Draw ``data`` on axes that fit ``whole``, all of the figure's row."""
    for (resolution, other), rows in data.groupby(["resolution", "other"], sort=False):
        _line(ax, rows.dropna(subset=["value"]), look.line(resolution, other))
    _mark_misses(ax, data, look)
    _batch_axis(ax, whole, look.lang)
    _value_axis(ax, whole, look.lang)
    _hatch_oom(ax, data)
    if data["value"].isna().all():
        tried = (data["status"] == "ok").any()
        _say(ax, label("not_measured" if tried else "nothing_measured", look.lang))


def _line(ax: Axes, rows: pd.DataFrame, looks: dict[str, Any]) -> None:
    if rows.empty:
        return
    error = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])
    ax.errorbar(rows["batch_size"], rows["value"], yerr=error, capsize=2.5, elinewidth=1, **looks)


def _mark_misses(ax: Axes, data: pd.DataFrame, look: _Look) -> None:
    for row in data.dropna(subset=["place"]).itertuples():
        looks = _mark(_MISSES[str(row.status)], look.colours[str(row.resolution)])
        # x in data, y in shares of the panel
        where = {"transform": ax.get_xaxis_transform(), "clip_on": False, "zorder": 3}
        ax.plot([row.batch_size], [0.96 - _PLACE * cast(float, row.place)], **looks, **where)


#: Height of one mark, in shares of the panel.
_PLACE = 0.065


def _mark(marker: str, colour: str) -> dict[str, Any]:
    looks = {"marker": marker, "color": colour, "linestyle": "none", "markeredgewidth": 1.6}
    return looks | ({} if marker == "x" else {"markerfacecolor": "white", "markeredgewidth": 1.1})


def _hatch_oom(ax: Axes, data: pd.DataFrame) -> None:
    """Hatch from half a step before the smallest batch that ran out of memory."""
    oom = data.loc[data["status"] == "oom", "batch_size"]
    if oom.empty:
        return
    smaller = data.loc[data["batch_size"] < oom.min(), "batch_size"]
    left = float(np.sqrt(oom.min() * smaller.max())) if len(smaller) else ax.get_xlim()[0]
    ax.axvspan(left, ax.get_xlim()[1], zorder=0, **_OOM_REGION)


def _batch_axis(ax: Axes, data: pd.DataFrame, lang: str) -> None:
    batches = sorted(data["batch_size"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(batches, [str(b) for b in batches], fontfamily=families(lang))
    ax.xaxis.set_minor_locator(ticker.NullLocator())
    if batches:
        ax.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)


def _value_axis(ax: Axes, data: pd.DataFrame, lang: str) -> None:
    """From zero, or logarithmic for wide times and money; room above for the marks."""
    ax.tick_params(labelfontfamily=families(lang))
    values = data[["value", "low", "high"]].to_numpy(float)
    if np.isnan(values).all():
        return
    low, high = np.nanmin(values), np.nanmax(values)
    room = 1 - _PLACE * (data["place"].max() + 2) if data["place"].notna().any() else 1.0
    formatter = ticker.FuncFormatter(lambda value, _: f"{data.attrs['symbol']}{value:,g}")
    if data.attrs["metric"] in ("images_per_s", "vram") or not _is_wide(data["value"]):
        ax.set_ylim(0, 1.06 * high / room)
    else:
        bottom = low / 1.2
        ax.set_yscale("log")
        ax.set_ylim(bottom, bottom * (1.1 * high / bottom) ** (1 / room))
        _log_ticks(ax.yaxis)
    ax.yaxis.set_major_formatter(formatter)


# ---- what fits


@_styled
def feasible(frame: pd.DataFrame, *, precision: str | None = None, lang: str = "en") -> Figure:
    """Batch size against resolution: cost per 100 images, or images/s if unpriced.

    Each cell shows its best setting. What ran out of memory or was skipped is hatched; a thick
    line separates it from what was measured. One panel per precision, or the one named.

    Raises
    ------
    UnknownNameError
        If the frame has no such precision.
    """
    precisions = _precisions(frame)
    if precision is not None and precision not in precisions:
        raise UnknownNameError("precision", precision, precisions)
    chosen = [precision] if precision else precisions
    frame = frame[frame["precision"].isin(chosen)]
    data = _readings(frame, "cost" if _is_priced(frame) else "images_per_s", _CELL)
    colours = _colours(data)
    batches, names = sorted(frame["batch_size"].unique()), _resolutions(frame)
    size = (1.5 + 0.72 * len(batches), 1.1 + 0.5 * len(names))
    figure, grid = _grid(1, len(chosen), size, sharey=True)
    for name, ax in zip(chosen, grid[0], strict=True):
        cells = _cells(data[data["precision"] == name])
        _heat_map(ax, cells, batches, names, colours, lang)
        ax.set_title(name)
        ax.set_xlabel(label("batch_axis", lang))
    grid[0][0].set_ylabel(label("resolution", lang))
    if data["value"].notna().any():
        _colour_bar(figure, grid, colours, _axis_label(frame, data.attrs["metric"], lang))
    _title_feasible(figure, frame, data, lang)
    return _unregistered(figure)


_CELL = ("precision", "resolution", "batch_size")


def _cells(data: pd.DataFrame) -> pd.DataFrame:
    """The best measured run of each cell; without one, what stopped it."""
    cheap_first = data.attrs["metric"] == "cost"
    ranked = data.assign(_rank=data["status"].map({"ok": 0, "oom": 1, "error": 2}).fillna(3))
    ranked = ranked.sort_values(["_rank", "value"], ascending=[True, cheap_first])
    return ranked.drop_duplicates(["resolution", "batch_size"])


def _colours(data: pd.DataFrame) -> ScalarMappable:
    """Bright is good: cheap, or fast."""
    norm = LogNorm if _is_wide(data["value"]) else Normalize
    low, high = data["value"].min(), data["value"].max()
    if low == high:
        low, high = low * 0.9, high * 1.1
    return ScalarMappable(norm(low, high), "viridis_r" if data.attrs["symbol"] else "viridis")


def _heat_map(
    ax: Axes,
    cells: pd.DataFrame,
    batches: Sequence[int],
    names: Sequence[str],
    colours: ScalarMappable,
    lang: str,
) -> None:
    status = np.full((len(names), len(batches)), "", dtype=object)
    for cell in cells.to_dict("records"):
        y, x = names.index(cell["resolution"]), batches.index(cell["batch_size"])
        status[y, x] = cell["status"]
        _cell(ax, x, y, cell, colours, lang)
    ax.add_collection(LineCollection(_boundary(status), colors="#D55E00", linewidths=3.5))
    ax.set(xlim=(-0.5, len(batches) - 0.5), ylim=(-0.5, len(names) - 0.5))
    ax.set_xticks(range(len(batches)), [str(b) for b in batches])
    ax.set_yticks(range(len(names)), [text.resolution(n, lang) for n in names])
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


_MISS_CELLS = {"oom": ("#F3D9CC", "////"), "skipped": ("#F4F4F4", "//"), "error": ("#DDDDDD", "")}


def _cell(
    ax: Axes, x: int, y: int, cell: dict[str, Any], colours: ScalarMappable, lang: str
) -> None:
    known = cell["status"] == "ok" and pd.notna(cell["value"])
    face, hatch = (colours.to_rgba(cell["value"]), "") if known else _MISS_CELLS[cell["status"]]
    box = {"facecolor": face, "hatch": hatch, "edgecolor": "#C9C9C9" if hatch else "white"}
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, linewidth=0 if hatch else 1, **box))
    words = text.number(cell["value"]) if known else _miss_word(cell["status"], lang)
    dark = known and np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
    ax.text(x, y, words, ha="center", va="center", fontsize=9, color="white" if dark else "#222222")


def _miss_word(status: str, lang: str) -> str:
    return label({"oom": "cell_oom"}.get(status, status), lang)


def _boundary(status: np.ndarray) -> list[list[tuple[float, float]]]:
    """Edges between measured cells and those that do not fit."""
    fits = np.isin(status, ["ok"]).astype(int) - np.isin(status, ["oom", "skipped"])
    edges = []
    for y, x in np.argwhere(fits[:, :-1] * fits[:, 1:] < 0):
        edges.append([(x + 0.5, y - 0.5), (x + 0.5, y + 0.5)])
    for y, x in np.argwhere(fits[:-1] * fits[1:] < 0):
        edges.append([(x - 0.5, y + 0.5), (x + 0.5, y + 0.5)])
    return edges


def _colour_bar(figure: Figure, grid: Any, colours: ScalarMappable, title: str) -> None:
    bar = figure.colorbar(colours, ax=grid, label=title, pad=0.02)
    bar.outline.set_visible(False)
    if isinstance(colours.norm, LogNorm):
        _log_ticks(bar.ax.yaxis)
    bar.ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))


def _title_feasible(figure: Figure, frame: pd.DataFrame, data: pd.DataFrame, lang: str) -> None:
    what = label(f"what_{data.attrs['metric']}", lang)
    figure.suptitle(label("feasible_title", lang, what=what))
    notes = []
    if set(data["status"]) & {"oom", "skipped"} and (data["status"] == "ok").any():
        notes.append(Line2D([], [], color="#D55E00", lw=3.5, label=label("limit_line", lang)))
    if names := _differing(frame, _CELL):
        words = label("best_of_cell", lang, names=", ".join(names))
        notes.append(Line2D([], [], linestyle="none", label=words))
    if notes:
        figure.legend(handles=notes, loc="outside lower center", ncols=len(notes))


# ---- where the time goes


@_styled
def stages(
    frame: pd.DataFrame, ax: Axes | None = None, *, normalise: bool = False, lang: str = "en"
) -> Axes:
    """Seconds per image by stage, one stacked bar per row of the frame, the first on top.

    The total at a bar's end is the sum of its stages (medians over repeats). With ``normalise``
    the bars are shares of it. A row that was not measured keeps its place and says why.
    """
    ax = _axes((8, 1.9 + 0.42 * max(len(frame), 1))) if ax is None else ax
    names = [f"stage_{name}_s" for name in STAGE_COLOURS]
    seconds = frame[names].apply(pd.to_numeric).fillna(0.0).astype(float)
    total = seconds.sum(axis=1).to_numpy()
    widths = seconds.div(np.where(total > 0, total, 1), axis=0) * 100 if normalise else seconds
    left = np.zeros(len(frame))
    for (name, colour), column in zip(STAGE_COLOURS.items(), names, strict=True):
        looks = {"color": colour, "edgecolor": "white", "linewidth": 0.5, "height": 0.7}
        width = widths[column].to_numpy()
        ax.barh(range(len(frame)), width, left=left, label=label(f"stage_{name}", lang), **looks)
        left = left + width
    _stage_ends(ax, frame, left, total, lang)
    _stage_axes(ax, frame, left.max(initial=0), lang)
    ax.set_xlabel(label("stages_share_axis" if normalise else "stages_axis", lang))
    ax.set_title(label("stages_title", lang))
    return ax


def _stage_ends(
    ax: Axes, frame: pd.DataFrame, ends: np.ndarray, total: np.ndarray, lang: str
) -> None:
    for y, (end, seconds, status) in enumerate(zip(ends, total, frame["status"], strict=True)):
        known = status == "ok" and seconds > 0
        missing = label("not_measured", lang) if status == "ok" else label(status, lang)
        words = label("seconds", lang, value=text.number(seconds)) if known else missing
        offset = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(words, (end, y), fontsize=9, **offset)


def _stage_axes(ax: Axes, frame: pd.DataFrame, longest: float, lang: str) -> None:
    others = _others(frame, _CELL)
    names = [
        " · ".join(filter(None, [text.setting(row, lang), other]))
        for (_, row), other in zip(frame.iterrows(), others, strict=True)
    ]
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, longest * 1.14 or 1))  # room for the totals
    ax.tick_params(axis="x", labelfontfamily=families(lang))
    ax.grid(axis="y", visible=False)
    looks = {"ncols": 4, "loc": "upper center", "handlelength": 1.2}
    ax.legend(bbox_to_anchor=(0.45, -0.5 / (0.42 * max(len(names), 1) + 0.6)), **looks)
    if frame.empty:
        _say(ax, label("nothing_given", lang))


# ---- what to run instead


@_styled
def waterfall(recommendation: Recommendation, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """From today's cost to the recommended one, lever by lever.

    Money per 100 images if the frame that the recommendation came from was priced, else seconds.
    The outer bars carry their 95% intervals.
    """
    bars = _bars(recommendation, lang)
    ax = _axes((max(6.2, 1.6 * len(bars) + 1), 4.4)) if ax is None else ax
    for x, bar in enumerate(bars):
        bottom, top = sorted((bar.start, bar.end))
        ax.bar(x, top - bottom, bottom=bottom, width=0.62, color=bar.colour)
        if pd.notna(bar.low) and pd.notna(bar.high):
            error = [[bar.end - bar.low], [bar.high - bar.end]]
            ax.errorbar(x, bar.end, yerr=error, color="#333333", capsize=4, elinewidth=1)
        offset = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
        ax.annotate(bar.words, (x, np.nanmax([top, bar.high])), fontsize=9, **offset)
    for x, bar in enumerate(bars[:-1]):
        ax.plot([x + 0.31, x + 0.69], [bar.end, bar.end], color="#888888", lw=0.8)
    top = np.nanmax([[bar.start, bar.end, bar.high] for bar in bars])
    ax.set(xlim=(-0.6, len(bars) - 0.4), ylim=(0, 1.17 * top))  # room for two lines of words
    _waterfall_words(ax, recommendation, bars, lang)
    return ax


class _Bar(NamedTuple):
    name: str
    start: float
    end: float
    words: str
    colour: str
    low: float = np.nan
    high: float = np.nan


_OUTER, _CHEAPER, _DEARER = "#7A7A7A", "#009E73", "#D55E00"


def _bars(recommendation: Recommendation, lang: str) -> list[_Bar]:
    today, best = recommendation.current, recommendation.best
    column = _cost_or_time(today.to_frame().T)
    factor = today[column] / today["s_per_100_images"]
    first, last = (_outer(row, column, lang) for row in (today, best))
    bars = [first._replace(name=f"{label('today', lang)}\n{first.name}")]
    position = today
    for step in recommendation.steps:
        names = [text.changed(n, position[n], v, lang) for n, v in step.changed.items()]
        start, end = step.before_s * factor, step.after_s * factor
        amount = ("−" if end < start else "+") + _amount(abs(end - start), column, lang)
        words = f"{amount}\n{text.percent(start, end)}"
        colour = _DEARER if end > start else _CHEAPER
        bars.append(_Bar("\n".join(names), start, end, words, colour))
        position = step.row
    words = f"{last.words}\n{text.percent(first.end, last.end)}"
    name = f"{label('recommended', lang)}\n{last.name}"
    return [*bars, last._replace(name=name, words=words)]


def _outer(row: pd.Series, column: str, lang: str) -> _Bar:
    value, low, high = (float(row[column + suffix]) for suffix in ("", "_low", "_high"))
    name = text.setting(row, lang).replace(" · ", "\n")
    return _Bar(name, 0.0, value, _amount(value, column, lang), _OUTER, low, high)


def _waterfall_words(
    ax: Axes, recommendation: Recommendation, bars: Sequence[_Bar], lang: str
) -> None:
    frame = recommendation.current.to_frame().T
    metric = "cost" if _is_priced(frame) else "s_per_100_images"
    ax.set_xticks(range(len(bars)), [bar.name for bar in bars])
    ax.tick_params(labelfontfamily=families(lang))
    ax.tick_params(axis="x", length=0)
    ax.yaxis.set_major_formatter(_formatter(_symbol(frame)))
    ax.set_ylabel(_axis_label(frame, metric, lang))
    ax.set_xlabel(label("waterfall_percent", lang), fontsize=9, color="#555555")
    ax.grid(axis="x", visible=False)
    change = text.percent(bars[0].end, bars[-1].end)
    ax.set_title(label("waterfall_title", lang, change=change))
    if not recommendation.steps:
        ax.set_title(label("waterfall_same", lang))


@_styled
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
    ax = _axes((8.4, 4.8)) if ax is None else ax
    column = _cost_or_time(frame)
    metric = "cost" if _is_priced(frame) else column
    data = frame[["precision", "resolution", "batch_size"]].copy()
    data["x"], data["y"] = pd.to_numeric(frame[column]).astype(float), _memory_gib(frame)
    tried = frame.loc[frame["status"] == "ok", column].notna().any()
    data = data[frame["status"] == "ok"].dropna()
    _points(ax, data, frame, lang)
    if data.empty:
        _say(ax, label("not_measured" if tried else "nothing_measured", lang))
    else:
        _front(ax, data, label("front" if metric == "cost" else "front_time", lang))
        _cost_axis(ax, data["x"], _symbol(frame), lang)
        _legend_beside(ax, ax.get_legend_handles_labels()[0], label("size_is_batch", lang))
    if recommendation is not None:
        _name_points(ax, recommendation, column, lang)
    ax.set_xlabel(_axis_label(frame, metric, lang))
    ax.set_ylabel(_axis_label(frame, "vram", lang))
    ax.set_title(label("tradeoff_title" if metric == "cost" else "tradeoff_title_time", lang))
    return ax


def _points(ax: Axes, data: pd.DataFrame, frame: pd.DataFrame, lang: str) -> None:
    colours, markers = _cycle(_resolutions(frame), PALETTE), _cycle(_precisions(frame), _MARKERS)
    for (resolution, precision), rows in data.groupby(["resolution", "precision"]):
        sizes = 22 + 26 * np.log2(rows["batch_size"].to_numpy(float))
        looks = {"color": colours[resolution], "marker": markers[precision], "alpha": 0.8}
        ax.scatter(rows["x"], rows["y"], s=sizes, linewidths=0.5, edgecolors="white", **looks)
    for name, colour in colours.items():
        ax.scatter([], [], color=colour, marker="s", label=text.resolution(name, lang))
    for name, marker in markers.items():
        ax.scatter([], [], color="#777777", marker=marker, label=name)


def _front(ax: Axes, data: pd.DataFrame, name: str) -> None:
    """Settings with less memory than every cheaper one; a step line, nothing lies between."""
    ordered = data.sort_values(["x", "y"])
    front = ordered[ordered["y"] < ordered["y"].cummin().shift(fill_value=np.inf)]
    looks = {"color": "#333333", "linewidth": 1, "linestyle": "--", "zorder": 1}
    ax.plot(front["x"], front["y"], drawstyle="steps-post", label=name, **looks)


def _cost_axis(ax: Axes, values: pd.Series, sign: str, lang: str) -> None:
    ax.tick_params(labelfontfamily=families(lang))
    if _is_wide(values):
        ax.set_xscale("log")
        _log_ticks(ax.xaxis)
    else:
        ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(_formatter(sign))
    ax.margins(0.1, 0.18)
    ax.set_ylim(bottom=0)


def _name_points(ax: Axes, recommendation: Recommendation, column: str, lang: str) -> None:
    rows = {"today": recommendation.current, "recommended": recommendation.best}
    for key, row in rows.items():
        x, y = float(row[column]), float(_memory_gib(row.to_frame().T).iloc[0])
        if np.isnan([x, y]).any():
            continue
        # today's is the dear one on the right: its words go to the left, the other's to the right
        side = -1 if key == "today" else 1
        words = f"{label(key, lang)}: {_amount(x, column, lang)}\n{text.setting(row, lang)}"
        ax.scatter([x], [y], s=330, facecolors="none", edgecolors="#111111", linewidths=1.4)
        looks = {"ha": "left" if side > 0 else "right", "arrowprops": {"arrowstyle": "-"}}
        where = {"xytext": (side * 22, 22), "textcoords": "offset points", "fontsize": 9}
        ax.annotate(words, (x, y), bbox={"facecolor": "white", "lw": 0, "pad": 1}, **looks, **where)


# ---- shared by the figures


def _axes(size: tuple[float, float]) -> Axes:
    return plt.subplots(figsize=size)[1]


def _grid(rows: int, columns: int, size: tuple[float, float], **share: Any) -> tuple[Figure, Any]:
    """A figure with panels of about ``size`` inches; one panel if there is nothing to draw."""
    rows, columns = max(rows, 1), max(columns, 1)
    figsize = (max(1.4 + size[0] * columns, 5.2), 1.2 + size[1] * rows)
    return plt.subplots(rows, columns, sharex=True, squeeze=False, figsize=figsize, **share)


def _unregistered(figure: Figure) -> Figure:
    plt.close(figure)
    return figure


def _legend_beside(ax: Axes, handles: list[Any], title: str) -> None:
    ax.legend(
        handles=handles, title=title, loc="upper left", bbox_to_anchor=(1.01, 1), alignment="left"
    )


def _say(ax: Axes, words: str) -> None:
    ax.text(0.5, 0.45, words, ha="center", color="#555555", transform=ax.transAxes)


def _formatter(sign: str) -> ticker.FuncFormatter:
    return ticker.FuncFormatter(lambda value, _: f"{sign}{value:,g}")


def _log_ticks(axis: Any) -> None:
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(ticker.NullLocator())


def _is_wide(values: pd.Series) -> bool:
    """Whether a linear axis from zero would hide the small values."""
    return bool(values.min() > 0 and values.max() / values.min() > 8)


def _is_priced(frame: pd.DataFrame) -> bool:
    return _cost_or_time(frame) != "s_per_100_images"


def _cost_or_time(frame: pd.DataFrame) -> str:
    try:
        return cost_column(frame)
    except ConfigError:
        return "s_per_100_images"


def _symbol(frame: pd.DataFrame) -> str:
    """The sign of the frame's money, "" if it has no cost columns."""
    column = _cost_or_time(frame)
    return symbol(_currency(column)) if column.startswith("cost_") else ""


def _currency(column: str) -> str:
    return column.split("_")[1].upper()  # cost_CUR_per_100_images


def _amount(value: float, column: str, lang: str) -> str:
    if column.startswith("cost_"):
        return text.money(value, _currency(column))
    return label("seconds", lang, value=text.number(value))


def _memory_gib(frame: pd.DataFrame) -> pd.Series:
    return peak_memory_bytes(frame).astype(float) / 2**30


def _words(frame: pd.DataFrame, metric: str) -> str:
    """The metric's text key; memory is called what it is."""
    if metric != "vram":
        return metric
    known = {kind: frame[f"peak_{kind}_bytes"].notna().any() for kind in ("reserved", "process")}
    reserved = frame.loc[_memory_gib(frame).notna(), "peak_reserved_bytes"].notna()
    if reserved.all():
        return "vram"
    return "mixed_memory" if known["reserved"] else "process_memory"


def _axis_label(frame: pd.DataFrame, metric: str, lang: str) -> str:
    return label(f"{_words(frame, metric)}_axis", lang, unit=_symbol(frame).strip())


def _cycle(names: Iterable[Any], looks: Sequence[str]) -> dict[Any, str]:
    return {name: looks[i % len(looks)] for i, name in enumerate(dict.fromkeys(names))}


def _resolution_order(resolution: Any) -> tuple[int, int]:
    words = {"native": 1, "by_task": 2}
    name = str(resolution)
    return (0, int(name)) if name.isdigit() else (words.get(name, 3), 0)


def _resolutions(frame: pd.DataFrame) -> list[str]:
    return sorted(frame["resolution"].unique(), key=_resolution_order)


def _precisions(frame: pd.DataFrame) -> list[str]:
    """The most exact first."""
    names = [str(name) for name in frame["precision"].unique()]
    known = [name for name in PRECISION_ORDER if name in names]
    return known + sorted(set(names) - set(known))


def _differing(frame: pd.DataFrame, drawn: Sequence[str]) -> list[str]:
    """What tells rows apart besides the settings that a figure draws."""
    names = (*SETTINGS, "workload", "environment")
    candidates = [n for n in names if n not in drawn and n in frame]
    return [name for name in candidates if frame[name].map(str).nunique() > 1]


def _others(frame: pd.DataFrame, drawn: Sequence[str]) -> list[str]:
    names = _differing(frame, drawn)
    bare = ("precision",)  # its values name themselves
    rows = frame[names].astype(str).to_dict("records") if names else [{}] * len(frame)
    return [" · ".join(v if n in bare else f"{n}={v}" for n, v in row.items()) for row in rows]
