"""The look of the figures, and fonts that can draw Chinese."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from cycler import cycler
from matplotlib import font_manager

from qvl_lab.errors import UnknownNameError
from qvl_lab.show.text import LANGUAGES

#: Okabe and Ito's colours for the colour-blind, less the yellow that white paper swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

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
