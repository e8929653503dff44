"""How far each stage is from the least time that the device needs for it."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from qvl_lab.show import fonts
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import note
from qvl_lab.show.plots.stage_bars import STAGE_COLOURS
from qvl_lab.show.quantities import number


@fonts.styled
def limits(table: pd.DataFrame, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """Seconds of a pass by stage, with a line where the device's limit lies.

    Parameters
    ----------
    table : DataFrame
        Of :func:`qvl_lab.analysis.limits.roofline.roofline`. Parts of stages are left out.
    """
    whole = table[[name in STAGE_COLOURS for name in table.index]]
    ax = fonts.new_axes((8, 1.6 + 0.42 * len(whole))) if ax is None else ax
    for y, (stage, row) in enumerate(whole.iterrows()):
        ax.barh(y, row["seconds"], color=STAGE_COLOURS[str(stage)], height=0.7)
        if pd.notna(row["least_s"]):
            ax.plot([row["least_s"]] * 2, [y - 0.42, y + 0.42], color="black", lw=2)
        note(ax, _reached(row, lang), (row["seconds"], y), (5, 0), va="center")
    ax.plot([], [], color="black", lw=2, label=label("least_time", lang))
    ax.set_yticks(range(len(whole)), [label(f"stage_{name}", lang) for name in whole.index])
    ax.set(ylim=(len(whole) - 0.4, -0.6), xlim=(0, 1.65 * whole["seconds"].max() or 1))
    ax.set_xlabel(label("limits_axis", lang, n=table.attrs["images"]))
    ax.set_title(label("limits_title", lang))
    fonts.number_axis(ax.xaxis, lang)
    ax.grid(axis="y", visible=False)
    if whole["least_s"].notna().any():
        ax.legend(loc="lower right")
    return ax


def _reached(row: pd.Series, lang: str) -> str:
    """The time, and what it is beside the limit: "3.1 s · 2.4x the least · 41% of compute"."""
    words = [label("seconds", lang, value=number(row["seconds"]))]
    share = row["reached"]
    if share > 1:  # no one product is the fastest of all
        words.append(label("at_ceiling", lang))
    elif pd.notna(share):
        words.append(label("times_least", lang, times=f"{row['times_slower']:.1f}"))
        words.append(label(f"share_of_{row['bound']}", lang, share=f"{100 * share:.0f}%"))
    return label("between", lang).join(words)
