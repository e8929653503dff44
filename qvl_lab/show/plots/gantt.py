"""When each stage ran."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from qvl_lab.errors import ConfigError
from qvl_lab.show import fonts
from qvl_lab.show.locale import label
from qvl_lab.show.plots.stage_bars import STAGE_COLOURS


@fonts.styled
def timeline(spans: pd.DataFrame, ax: Axes | None = None, *, lang: str = "en") -> Axes:
    """Every stage as a bar from its start to its end, a row for each name.

    Parameters
    ----------
    spans : DataFrame
        ``spans`` of a :class:`qvl_lab.bench.profile.profile`. Parts of stages are left out.

    Raises
    ------
    ConfigError
        If there are no stages to draw.
    """
    names = [name for name in STAGE_COLOURS if (spans["path"] == name).any()]
    if not names:
        raise ConfigError("no stage was seen; call the lab inside the profiled block")
    ax = fonts.new_axes((9, 1.3 + 0.34 * len(names))) if ax is None else ax
    for y, name in enumerate(names):
        ran = spans[spans["path"] == name]
        bars = list(zip(ran["start_s"], ran["end_s"] - ran["start_s"], strict=True))
        ax.broken_barh(bars, (y - 0.38, 0.76), color=STAGE_COLOURS[name])
    ax.set_yticks(range(len(names)), [label(f"stage_{name}", lang) for name in names])
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, float(spans["end_s"].max())))
    ax.set_xlabel(label("timeline_axis", lang))
    ax.set_title(label("timeline_title", lang))
    fonts.number_axis(ax.xaxis, lang)
    ax.grid(axis="y", visible=False)
    return ax
