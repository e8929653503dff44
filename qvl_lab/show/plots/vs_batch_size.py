"""Curves of a metric over batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import (
    CELL,
    doubt_handles,
    hollow_points,
    interval_handle,
    is_wide,
    readings,
)


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
    data = readings(frame, metric, ["batch_size", "resolution"], lang)
    ax = fonts.new_axes((7.6, 4.2)) if ax is None else ax
    _panel(ax, data, data, lang)
    ax.set_title(wording.title(frame, metric, lang))
    ax.set_ylabel(wording.axis(frame, metric, lang))
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
    metrics = [m for m in metrics if m != "cost" or quantities.money_sign(frame)] or list(metrics)
    tables = [readings(frame, m, CELL, lang) for m in metrics]
    precisions = wording.precisions(frame)
    figure, grid = fonts.new_grid(len(metrics), len(precisions), (3.7, 2.4), sharey="row")
    for metric, data, axes in zip(metrics, tables, grid, strict=True):
        for precision, ax in zip(precisions, axes, strict=True):
            _panel(ax, data[data["precision"] == precision], data, lang)
        axes[0].set_ylabel(wording.axis(frame, metric, lang))
    for precision, top, bottom in zip(precisions, grid[0], grid[-1], strict=True):
        top.set_title(precision)
        bottom.set_xlabel(label("batch_axis", lang))
    title, handles = label("resolution", lang), _legend(tables[0], lang)
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, int(figure.get_figwidth() * fonts.LETTERS_PER_INCH / (longest + 8)))
    figure.legend(handles=handles, title=title, ncols=columns, loc="outside lower center")
    return figure


def _panel(ax: Axes, data: pd.DataFrame, whole: pd.DataFrame, lang: str) -> None:
    """Draw ``data`` on axes that fit ``whole``, all of the figure's row."""
    for _, rows in data.dropna(subset=["value"]).groupby(["order", "other"], sort=False):
        error = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])
        bars: dict[str, Any] = {"yerr": error, "capsize": 2.5, "elinewidth": 1}
        look = _line(rows)
        ax.errorbar(rows["batch_size"], rows["value"], **bars, **look)
        look.pop("linestyle")
        hollow_points(ax, rows["batch_size"], rows, **look)
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
_MISSES = {"oom": "x", "skipped": "o", "error": "d", "busy": "s"}
_OOM_REGION: dict[str, Any] = {"fc": "none", "ec": "#CFCFCF", "hatch": "////", "lw": 0}


def _line(rows: pd.DataFrame) -> dict[str, Any]:
    first = rows.iloc[0]
    return {"color": first["line_colour"], "marker": first["marker"], "linestyle": first["dashes"]}


def _miss(status: str, colour: str) -> dict[str, Any]:
    looks = {"marker": _MISSES[status], "color": colour, "linestyle": "none", "mew": 1.4}
    return looks if status == "oom" else looks | {"markerfacecolor": "white", "mew": 1.1}


def _legend(data: pd.DataFrame, lang: str) -> list[Any]:
    """Handles: the lines, what their bars are, then the marks of what was not measured."""
    handles: list[Any] = []
    dot = label("between", lang)
    for (_, other), rows in data.groupby(["order", "other"], sort=False):
        name = wording.resolution(rows["resolution"].iloc[0], lang)
        handles.append(
            Line2D([], [], label=dot.join(filter(None, [name, str(other)])), **_line(rows))
        )
    if data["low"].notna().any():
        handles.append(interval_handle(label("interval", lang)))
    handles += doubt_handles(data, lang)
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
    log = data.attrs["metric"] not in ("images_per_s", "vram") and is_wide(data["value"])
    if np.isnan(values).all():
        ax.set_yticks([])
        return
    low, high = np.nanmin(values) / 1.2, np.nanmax(values) * 1.06
    free = 1 - _PLACE * (data["place"].fillna(-2).max() + 2)
    ax.set_yscale("log" if log else "linear")
    ax.set_ylim(*((low, low * (high / low) ** (1 / free)) if log else (0, high / free)))
    fonts.number_axis(ax.yaxis, lang, sign=data.attrs["sign"], log=log)
