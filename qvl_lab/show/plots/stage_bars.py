"""Where the time goes: stacked bars of stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from qvl_lab.runs.records import STAGES
from qvl_lab.show import fonts, quantities, wording
from qvl_lab.show.locale import label
from qvl_lab.show.plots.shared import CELL, note

#: A stage has the same colour in every figure.
STAGE_COLOURS = dict(
    zip(
        (*STAGES, "other"),
        "#E69F00 #F0E442 #56B4E9 #009E73 #0072B2 #D55E00 #CC79A7 #BBBBBB".split(),
        strict=True,
    )
)


@fonts.styled
def stages(
    frame: pd.DataFrame, ax: Axes | None = None, *, normalise: bool = False, lang: str = "en"
) -> Axes:
    """Seconds per image by stage, one stacked bar per row of the frame, the first on top.

    The total at a bar's end is the sum of its stages (medians over repeats). With ``normalise``
    the bars are shares of it. A row that was not measured keeps its place and says why; one that is
    not to be relied on is pale, and says so too. The legend has the stages that can be seen.
    """
    names = [f"stage_{name}_s" for name in STAGE_COLOURS]
    seconds = frame[names].apply(pd.to_numeric).astype(float).fillna(0.0).to_numpy()
    total = seconds.sum(axis=1)
    widths = seconds * (100 / np.where(total > 0, total, 1))[:, None] if normalise else seconds
    ends = widths.cumsum(axis=1)
    ax = fonts.new_axes((8, 1.9 + 0.42 * len(frame))) if ax is None else ax
    doubts = [wording.doubt(row, lang) for _, row in frame.iterrows()]
    shown: list[Patch] = []
    for i, (name, colour) in enumerate(STAGE_COLOURS.items()):
        looks: dict[str, Any] = {"color": colour, "ec": "white", "lw": 0.5, "height": 0.7}
        if (widths[:, i] >= _VISIBLE * ends[:, -1].max(initial=0)).any():
            shown.append(Patch(facecolor=colour, label=label(f"stage_{name}", lang)))
        bars = ax.barh(range(len(frame)), widths[:, i], left=ends[:, i] - widths[:, i], **looks)
        for bar, doubted in zip(bars, doubts, strict=True):
            bar.set_alpha(0.35 if doubted else 1)
    for y, status in enumerate(frame["status"]):
        missing = label("not_measured" if status == "ok" else status, lang)
        words = quantities.amount(total[y], "", lang) if total[y] > 0 else missing
        note(ax, words, (ends[y, -1], y), (4, 0), va="center")
    _stage_axes(ax, frame, ends.max(initial=0), lang)
    # below the axis label: the pad is in font sizes, whatever the number of bars
    ax.legend(
        handles=shown, ncols=3, loc="upper center", bbox_to_anchor=(0.45, 0), borderaxespad=4.2
    )
    ax.set_xlabel(label("stages_share_axis" if normalise else "stages_axis", lang))
    ax.set_title(label("stages_share_title" if normalise else "stages_title", lang))
    return ax


#: Share of the longest bar from which a stage can be seen.
_VISIBLE = 0.001


def _stage_axes(ax: Axes, frame: pd.DataFrame, longest: float, lang: str) -> None:
    rows = zip(
        (row for _, row in frame.iterrows()),
        wording.others(frame, (*CELL, "engine"), lang),
        strict=True,
    )
    names = [
        "\n".join(
            filter(
                None,
                [wording.setting(row, lang), fonts.folded(other, lang), wording.doubt(row, lang)],
            )
        )
        for row, other in rows
    ]
    ax.set_yticks(range(len(names)), names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, longest * 1.14 or 1))  # room for the totals
    fonts.number_axis(ax.xaxis, lang)
    ax.grid(axis="y", visible=False)
