"""What fits in memory: a map of batch size and resolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from qvl_lab.errors import UnknownNameError
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import CELL, is_wide, readings


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
    chosen = wording.precisions(frame)
    if precision is not None:
        if precision not in chosen:
            raise UnknownNameError("precision", precision, chosen)
        chosen, frame = [precision], frame[frame["precision"] == precision]
    metric = "cost" if quantities.money_sign(frame) else "images_per_s"
    data = readings(frame, metric, CELL, lang)
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
        bar = figure.colorbar(colours, ax=grid, label=wording.axis(frame, metric, lang), pad=0.02)
        fonts.number_axis(bar.ax.yaxis, lang, log=isinstance(colours.norm, LogNorm))
    letters = int(figure.get_figwidth() * fonts.LETTERS_PER_INCH)
    notes = _notes(data, wording.differing(frame, CELL), letters, lang)
    figure.legend(handles=notes, loc="outside lower center", ncols=2)
    return figure


def _colours(data: pd.DataFrame) -> ScalarMappable:
    """Bright is good: cheap, or fast."""
    low, high = data["value"].min(), data["value"].max()
    low, high = (low * 0.9, high * 1.1) if low == high else (low, high)
    norm = LogNorm(low, high) if is_wide(data["value"]) else Normalize(low, high)
    return ScalarMappable(norm, "viridis_r" if data.attrs["metric"] == "cost" else "viridis")


def _heat_map(
    ax: Axes, data: pd.DataFrame, precision: str, colours: ScalarMappable, lang: str
) -> None:
    names, batches = list(data["resolution"].unique()), sorted(data["batch_size"].unique())
    status = np.full((len(names), len(batches)), "", dtype=object)
    for cell in _cells(data[data["precision"] == precision]).to_dict("records"):
        y, x = names.index(cell["resolution"]), batches.index(cell["batch_size"])
        status[y, x] = cell["status"]
        _cell(ax, (x, y), cell, colours, lang)
    ax.add_collection(LineCollection(_boundary(status), colors=_LIMIT, linewidths=3.5))
    ax.set(xlim=(-0.5, len(batches) - 0.5), ylim=(-0.5, len(names) - 0.5))
    ax.set_xticks(range(len(batches)), [str(b) for b in batches])
    ax.set_yticks(range(len(names)), [wording.resolution(n, lang) for n in names])
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def _cells(data: pd.DataFrame) -> pd.DataFrame:
    """The best measured run of each cell; without one, what stopped it."""
    ranks = data["status"].map({"ok": 0, "oom": 1, "error": 2, "busy": 3, "skipped": 4})
    by = ["rank", "value"]
    ranked = data.assign(rank=ranks).sort_values(by, ascending=[True, data.attrs["sign"] != ""])
    return ranked.drop_duplicates(["resolution", "batch_size"])


_LIMIT = "#D55E00"
_MISS_CELLS = {
    "oom": ("#F3D9CC", "////"),
    "skipped": ("#F4F4F4", "//"),
    "error": ("#DDDDDD", ""),
    "busy": ("#DDDDDD", ""),
}


def _cell(
    ax: Axes, at: tuple[int, int], cell: Mapping[Any, Any], colours: ScalarMappable, lang: str
) -> None:
    """Its value on its colour; one in doubt is hollow and says why."""
    status, value, doubt = (cell[name] for name in ("status", "value", "doubt"))
    known, corner = pd.notna(value), (at[0] - 0.5, at[1] - 0.5)
    face: Any = colours.to_rgba(np.asarray(value)) if known else "none"
    if not known:
        colour, hatch = _MISS_CELLS.get(status, ("w", ""))
        ax.add_patch(Rectangle(corner, 1, 1, facecolor=colour, hatch=hatch, ec="#C9C9C9", lw=0))
    ax.add_patch(Rectangle(corner, 1, 1, facecolor=face, ec="white", lw=1))
    if doubt:
        inside = (corner[0] + 0.06, corner[1] + 0.06)
        ax.add_patch(Rectangle(inside, 0.88, 0.88, facecolor="white", ec=face, lw=2))
    missing = {"oom": "cell_oom", "ok": "not_measured"}.get(status, status)
    words = quantities.number(value) if known else label(missing, lang)
    if doubt:
        ax.text(at[0], at[1] - 0.3, doubt, ha="center", va="center", fontsize=6.5, style="italic")
    dark = known and not doubt and np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
    ax.text(*at, words, ha="center", va="center", fontsize=9, color="w" if dark else "#222222")


def _boundary(status: np.ndarray) -> list[list[tuple[float, float]]]:
    """Edges between measured cells and those that do not fit."""
    fits = (status == "ok").astype(int) - np.isin(status, ["oom", "skipped"])
    beside = np.argwhere(fits[:, :-1] * fits[:, 1:] < 0)
    above = np.argwhere(fits[:-1] * fits[1:] < 0)
    edges = [[(x + 0.5, y - 0.5), (x + 0.5, y + 0.5)] for y, x in beside]
    return edges + [[(x - 0.5, y + 0.5), (x + 0.5, y + 0.5)] for y, x in above]


def _notes(data: pd.DataFrame, mixed: Sequence[str], letters: int, lang: str) -> list[Any]:
    """What the line and the cells are, in lines of so many letters."""
    notes = []
    if data["status"].isin(["oom", "skipped"]).any() and (data["status"] == "ok").any():
        notes.append(Line2D([], [], color=_LIMIT, lw=3.5, label=label("limit_line", lang)))
    if mixed:
        names = label("and", lang).join(wording.field(name, lang) for name in mixed)
        words = fill(label("best_of_cell", lang, names=names), letters)
        notes.append(Line2D([], [], linestyle="none", label=words))
    return notes
