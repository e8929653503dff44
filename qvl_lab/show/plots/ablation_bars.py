"""What each lever of the fast engine is worth: a bar for each variant of an ablation."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from qvl_lab.analysis.levers.ablation import ablation_rows
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import MISSED, interval_handle, is_wide, note

_COLOURS = {
    "stock_serial": "#AAAAAA",
    "stock": "#AAAAAA",
    "nothing": "#7A7A7A",
    "alone": "#0072B2",
    "all_but": "#E69F00",
    "all": "#009E73",
}
#: Between groups of bars, in bars.
_GAP = 0.5


@fonts.styled
def ablation(frame: pd.DataFrame, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """Seconds per 100 images, and money if the frame was priced, a bar for each variant.

    From the top: the stock engine, the fast one with none of the levers, each lever alone, all
    but each, all. Bars have their 95% intervals; a variant that was not measured keeps its place
    and says why. One that is not to be relied on is hollow and says so.

    Parameters
    ----------
    frame : DataFrame
        From ``frame``; ``ablation_rows``
        says which of its rows are drawn.

    Raises
    ------
    ConfigError
        If the frame holds no ablation.
    """
    rows = ablation_rows(frame)
    groups = rows["variant"].replace("stock_serial", "stock")
    places = pd.Series(range(len(rows))) + _GAP * (groups != groups.shift()).cumsum()
    ax = fonts.new_axes((9.6, 1.7 + 0.36 * len(rows))) if ax is None else ax
    start = _time_axis(ax, rows, lang)
    for y, words, (_, row) in zip(places, _words(rows, lang), rows.iterrows(), strict=True):
        seconds, low, high = _estimate(row)
        colour = _COLOURS[row["variant"]]
        face = "white" if wording.doubt(row, lang) else colour
        ax.barh(y, seconds - start, left=start, facecolor=face, edgecolor=colour, height=0.72)
        if pd.notna(low):
            error = [[seconds - low], [high - seconds]]
            ax.errorbar(seconds, y, xerr=error, color="#333333", capsize=3, elinewidth=1)
        end = max(filter(pd.notna, (start, seconds, high)))
        note(ax, words, (end, y), (6, 0), va="center")
    ax.set_yticks(places, [_name(row, rows, lang) for _, row in rows.iterrows()])
    ax.set_ylim(places.iloc[-1] + 0.6, places.iloc[0] - 0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.set_title(label("ablation_title", lang, images=wording.images_at(_whole(rows), lang)))
    if rows["s_per_100_images_low"].notna().any():
        ax.legend(handles=[interval_handle(label("interval", lang))], loc="lower right")
    return ax


def _estimate(row: pd.Series) -> tuple[float, float, float]:
    value, low, high = (float(row[f"s_per_100_images{end}"]) for end in ("", "_low", "_high"))
    return value, low, high


def _whole(rows: pd.DataFrame) -> pd.Series:
    """A row that says at which precision and resolution the ablation was."""
    return rows[rows["precision"].notna()].iloc[-1]


def _name(row: pd.Series, rows: pd.DataFrame, lang: str) -> str:
    batch = int(rows["batch_size"].max())
    lever = "" if pd.isna(row["lever"]) else wording.lever(row["lever"], batch, lang)
    return label(f"ablation_{row['variant']}", lang, n=batch, lever=lever)


def _words(rows: pd.DataFrame, lang: str) -> list[str]:
    """Beside each bar: "12.3 s · ¥0.16 · 2.1x as fast as none"."""
    column = quantities.cost_or_time(rows)
    seconds = rows.set_index("variant")["s_per_100_images"]
    said = []
    for _, row in rows.iterrows():
        value = row["s_per_100_images"]
        if pd.isna(value):
            known = row["status"] if row["status"] in MISSED else None
            said.append(label(known or "not_measured", lang))
            continue
        parts = [wording.doubt(row, lang), quantities.amount(value, "", lang)]
        if column != "s_per_100_images":
            parts.append(quantities.amount(row[column], column, lang))
        if row["variant"] == "all_but":
            parts.append(_times("times_the_time", value / seconds["all"], lang))
        elif row["variant"] in ("alone", "all"):
            parts.append(_times("times_as_fast", seconds["nothing"] / value, lang))
        said.append(label("between", lang).join(filter(None, parts)))
    return said


def _times(key: str, factor: float, lang: str) -> str:
    return "" if pd.isna(factor) else label(key, lang, times=quantities.number(factor))


def _time_axis(ax: Axes, rows: pd.DataFrame, lang: str) -> float:
    """From zero, or logarithmic where times range wide; returns where the bars start."""
    values = rows["s_per_100_images"]
    log = is_wide(values)
    low, high = values.min(), rows["s_per_100_images_high"].max()
    high = max(values.max(), high) if pd.notna(high) else values.max()
    start = float(low / 1.5) if log else 0.0
    end = high * (high / start) ** 0.6 if log else 1.6 * high  # room for the words
    axis = wording.axis(rows, "s_per_100_images", lang)
    if pd.notna(end):
        ax.set_xscale("log" if log else "linear")
        ax.set_xlim(start, end)
        fonts.number_axis(ax.xaxis, lang, log=log)
        ax.set_xticks([tick for tick in ax.get_xticks() if start <= tick <= high])
    ax.set_xlabel(label("log_axis", lang, axis=axis) if log else axis)
    return start
