"""Metrics over resolution, and the axis on which resolutions stand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots import points
from qvl_lab.show.plots.shared import (
    CELL,
    cycle,
    doubt_handles,
    hollow_points,
    interval_handle,
    readings,
)


@fonts.styled
def resolution_curves(
    frame: pd.DataFrame,
    *,
    metrics: Sequence[str] = ("images_per_s", "vram", "cost"),
    lang: str = "en",
) -> Figure:
    """Metrics over resolution, a panel for each and a line per precision, 95% intervals as bars.

    For a single batch size, over which there is nothing to draw. Other settings that differ get
    lines of their own. Cost is left out if the frame has not been priced.
    """
    metrics = [m for m in metrics if m != "cost" or quantities.money_sign(frame)] or list(metrics)
    figure, (axes,) = fonts.new_grid(1, len(metrics), (3.3, 2.6))
    at = places(wording.side(row) for _, row in frame.iterrows())
    for metric, ax in zip(metrics, axes, strict=True):
        data = readings(frame, metric, CELL, lang)
        for kind, look in _looks(points.kind_markers(frame, data, lang)).items():
            rows = data[points.kinds(data, lang) == kind].dropna(subset=["value"])
            error = np.array([rows["value"] - rows["low"], rows["high"] - rows["value"]])
            bars: dict[str, Any] = {"yerr": error, "capsize": 2.5, "elinewidth": 1, "label": kind}
            ax.errorbar(rows["resolution"].map(at), rows["value"], **bars, **look)
            hollow_points(ax, rows["resolution"].map(at), rows, **look)
        side_axis(ax, at, lang)
        ax.set(title=wording.title(frame, metric, lang), ylabel=wording.axis(frame, metric, lang))
        ax.set_xlabel(label("resolution_axis", lang))
        ax.set_ylim(0, 1.08 * ax.get_ylim()[1])
        fonts.number_axis(ax.yaxis, lang, sign=data.attrs["sign"])
    looks = _looks(points.kind_markers(frame, data, lang))
    handles = [Line2D([], [], label=kind, **look) for kind, look in looks.items()]
    if data["low"].notna().any():
        handles.append(interval_handle(label("interval", lang)))
    handles += doubt_handles(data, lang)
    figure.legend(handles=handles, ncols=3, loc="outside lower center")
    return figure


def _looks(markers: dict[str, points.Marker]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each line."""
    colours = cycle(markers, fonts.PALETTE)
    return {kind: {"color": colours[kind], "marker": marker} for kind, marker in markers.items()}


def places(resolutions: Iterable[Any]) -> dict[str, float]:
    """Where each resolution stands: at its doublings, "native" and "by_task" after the largest.

    Those too close for their names to be read are moved apart.
    """
    names = sorted({str(name) for name in resolutions}, key=wording.resolution_order)
    doublings = [float(np.log2(int(name))) for name in names if name.isdigit()]
    gap = 0.6 * (doublings[-1] - doublings[0] if doublings else 0) / max(len(names) - 1, 1) or 1.0
    found: dict[str, float] = {}
    last = -1.5 * gap
    for i, name in enumerate(names):
        wanted = doublings[i] if i < len(doublings) else last + 1.5 * gap
        found[name] = last = max(wanted, last + gap)
    return found


def side_axis(ax: Axes, at: dict[str, float], lang: str) -> None:
    """Ticks and names of the resolutions that :func:`places` placed."""
    ax.set_xticks(
        list(at.values()), [n if n.isdigit() else wording.resolution(n, lang) for n in at]
    )
    first, last = min(at.values()), max(at.values())
    room = 0.09 * (last - first) or 0.6
    ax.set_xlim(first - room, last + room)
    ax.set_xlabel(label("side_axis", lang))
