"""The look of the figures, fonts that can draw Chinese, and what the figures share of axes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import matplotlib
import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib import font_manager, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from qvl_lab.errors import UnknownNameError
from qvl_lab.show.locale import LANGUAGES

#: Okabe and Ito's colours for the colour-blind, less the yellow that white paper swallows; then
#: two of Tol's, for a sweep of more resolutions.
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    *("#882255", "#999933"),
)

P = ParamSpec("P")
R = TypeVar("R")

#: Families that draw simplified Chinese, the best first.
CJK_FAMILIES = (
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
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "Noto Sans CJK HK",
    "Noto Sans CJK KR",
    "Droid Sans Fallback",
    "Arial Unicode MS",
    "Noto Serif CJK SC",
    "SimSun",
)
#: How such fonts' files are called, in lower case and without - and _.
_FILES = (
    *("notosanscjk", "notosanssc", "sourcehansans", "pingfang", "msyh", "wqy", "simhei"),
    *("hiraginosansgb", "stheiti", "droidsansfallback", "arialunicode", "notoserifcjk", "simsun"),
)


@functools.cache
def cjk_font() -> str | None:
    """An installed family that draws Chinese; None if there is none.

    Fonts installed after matplotlib wrote its cache are looked for among the system's files.
    """
    found = _known_family()
    if found:
        return found
    for path in font_manager.findSystemFonts():
        stem = Path(path).stem.lower().replace("-", "").replace("_", "")
        if stem.startswith(_FILES):
            _add(path)
    return _known_family()


def figure_language(lang: str) -> tuple[str, bool]:
    """The language that figures can be drawn in, and whether that is a fallback.

    Raises
    ------
    UnknownNameError
        If the language is not one of LANGUAGES.
    """
    if lang not in LANGUAGES:
        raise UnknownNameError("language", lang, LANGUAGES)
    return ("en", True) if lang == "zh" and cjk_font() is None else (lang, False)


def families(lang: str) -> list[str]:
    """Font families to draw a language with, in order of preference."""
    font = cjk_font() if lang == "zh" else None
    return [*([font] if font else []), "DejaVu Sans"]


@contextmanager
def style(lang: str = "en") -> Iterator[None]:
    """Matplotlib's settings for the project's figures, for the length of a ``with`` block."""
    settings = _LOOK | {"font.family": families(lang), "axes.unicode_minus": lang != "zh"}
    with matplotlib.rc_context(settings):
        yield
        # A notebook's backend turns this on when the first figure loads it, and without it no
        # later figure would be shown.
        interactive = matplotlib.is_interactive()
    matplotlib.interactive(interactive)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Give a figure's function the look, and a ``lang`` that the installed fonts can draw."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        lang, _ = figure_language(str(kwargs.get("lang", "en")))
        with style(lang):
            drawn = draw(*args, **cast(Any, kwargs | {"lang": lang}))
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


def legend_beside(ax: Axes, handles: list[Any], title: str) -> None:
    """A legend to the right of the axes, where it hides no data."""
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
    ax.legend(handles=handles, title=title, alignment="left", **where)


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


def _known_family() -> str | None:
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FAMILIES if name in installed), None)


def _add(path: str) -> None:
    try:
        font_manager.fontManager.addfont(path)
    except (OSError, RuntimeError):  # an unreadable font file is as good as none
        return
