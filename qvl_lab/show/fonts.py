"""The look of the figures, the fonts that draw Chinese, and what the figures share of axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib import font_manager, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from qvl_lab.assets import asset
from qvl_lab.show.locale import check_language, label

#: Okabe and Ito's colours for the colour-blind, less the yellow that white paper swallows; then
#: two of Tol's, for a sweep of more resolutions.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933"),
)

P = ParamSpec("P")
R = TypeVar("R")

#: The family that ships with the package: the characters of GB 2312 (assets/fonts/README.md).
CHINESE = "QVL Sans SC"
#: Families that draw the rarer characters too; the first that is installed helps out.
COMPLETE = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "SimHei",
    "Hiragino Sans GB",
    "Heiti SC",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)


@functools.cache
def chinese_families() -> tuple[str, ...]:
    """The family that ships with the package, then an installed one that has more characters.

    The first makes the figures the same on every machine; the second, where there is one, draws
    a character outside GB 2312, such as one of a task's name.
    """
    font_manager.fontManager.addfont(asset("fonts/QVLSansSC-Regular.otf"))
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return (CHINESE, *[name for name in COMPLETE if name in installed][:1])


def families(lang: str) -> list[str]:
    """Font families to draw a language with; a later one draws what the earlier ones lack."""
    first = [*chinese_families(), "DejaVu Sans"] if lang == "zh" else ["DejaVu Sans"]
    return list(dict.fromkeys([*first, *chinese_families()]))


@contextmanager
def style(lang: str = "en") -> Iterator[None]:
    """Matplotlib's settings for the project's figures, for the length of a ``with`` block."""
    with matplotlib.rc_context(_LOOK | {"font.family": families(lang)}):
        yield
        # A notebook's backend turns this on when the first figure loads it, and without it no
        # later figure would be shown.
        interactive = matplotlib.is_interactive()
    matplotlib.interactive(interactive)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Give a figure's function the look, and fonts that draw its ``lang``."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        lang = str(kwargs.get("lang", "en"))
        check_language(lang)
        with style(lang):
            drawn = draw(*args, **kwargs)
            if lang == "zh" and isinstance(drawn, Axes):
                # title, labels and ticks of axes that were given have the fonts of their making
                for words in drawn.findobj(Text):
                    words.set_fontfamily(families(lang))
            return drawn

    return in_style


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes in a pyplot figure of this size in inches."""
    return cast(Axes, plt.subplots(figsize=size)[1])


def new_grid(
    rows: int, columns: int, panel: tuple[float, float], **share: Any
) -> tuple[Figure, Any]:
    """A figure and its array of axes, for panels of about this size in inches.

    The figure is not registered with pyplot: a notebook would show it twice.
    """
    size = (max(1.4 + panel[0] * columns, 5.4), 1.2 + panel[1] * rows)
    figure, grid = plt.subplots(rows, columns, sharex=True, squeeze=False, figsize=size, **share)
    plt.close(figure)
    return figure, grid


#: Characters of a legend's entry that fit beside the axes of a figure of the usual width.
_LONG = 36
#: How many letters of a legend fit into an inch.
LETTERS_PER_INCH = 12


def legend_beside(ax: Axes, handles: list[Any], title: str) -> None:
    """A legend to the right of the axes, where it hides no data; below them if it is too wide."""
    longest = max(len(h.get_label()) for h in handles)
    looks: dict[str, Any] = {"handles": handles, "title": title, "alignment": "left"}
    figure = ax.get_figure(root=True)
    if longest <= _LONG or figure is None or len(figure.axes) > 1:
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), **looks)
        return
    columns = max(1, int(figure.get_figwidth() * LETTERS_PER_INCH / (longest + 8)))
    figure.set_figheight(figure.get_figheight() + 0.2 * (2 + len(handles) / columns))
    # below the axis label: the pad is in font sizes, whatever the height of the axes
    below: dict[str, Any] = {"bbox_to_anchor": (0, 0), "borderaxespad": 4.2, "ncols": columns}
    ax.legend(loc="upper left", **below, **looks)


#: Letters of a line beside an axis; Chinese ones are twice as wide.
_LINE = {"en": 38, "zh": 22}


def folded(words: str, lang: str) -> str:
    """Words in lines short enough to stand beside an axis, broken between settings."""
    dot = label("between", lang)
    lines: list[str] = []
    for part in words.split(dot):
        longer = dot.join([*lines[-1:], part])
        lines[-1:] = [longer] if len(longer) <= _LINE[lang] else [*lines[-1:], part]
    return "\n".join(lines)


def say(ax: Axes, words: str) -> None:
    """Words in the middle of an empty panel."""
    ax.text(0.5, 0.45, words, ha="center", color="#555555", transform=ax.transAxes)


def number_axis(
    axis: Any, lang: str, *, sign: str = "", log: bool = False, change: bool = False
) -> None:
    """Plain numbers at the ticks, "¥0.5", at 1, 2 and 5 if logarithmic; "+2", "−2" for a change.

    A currency's code is left to the axis label, for want of room. Ticks that matplotlib makes
    later, outside :func:`style`, keep the language's font.
    """
    sign = "" if sign.endswith(" ") else sign

    def plain(value: float, _: int) -> str:
        return f"{sign}{value:,g}"

    if log:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(_change if change else plain))
    axis.set_tick_params(labelfontfamily=families(lang))


def _change(value: float, _: int) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


_LOOK = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "figure.titlesize": 12,
    "font.size": 10,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.parse_math": False,  # two $ in one text are money, not TeX
}
