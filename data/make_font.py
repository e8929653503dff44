"""Reduce a Chinese font to what the figures need: the font that ships with the package.

    python data/make_font.py /usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc

The file is that of Debian's package fonts-noto-cjk (Noto Sans CJK 2.004, SIL Open Font License
1.1). What is kept: the characters of GB 2312 (6,763 hanzi, kana, Greek, Cyrillic, box drawing),
Latin-1 and the signs that numbers and captions use. Hinting, layout rules and vertical metrics go,
since Matplotlib uses none of them. The family is renamed, so that a machine that has the whole font
draws the same figures as one that has none. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTCollection, TTFont

OUT = Path(__file__).parents[1] / "qvl_lab" / "assets" / "fonts" / "QVLSansSC-Regular.otf"
FACE = "Noto Sans CJK SC"
FAMILY = "QVL Sans SC"
#: Minus, inequality, arrows, dashes, quotes, currencies, primes, super- and subscript digits.
SIGNS = "−≤≥≈≠±×÷·→←↑↓⇒√∞∑∆–—―‘’“”…‰′″•€£¥₂₀₁³²⁻⁴⁵⁶⁷⁸⁹✓✗"
#: The name records that say what it is and who made it; 1, 3, 4 and 6 are rewritten.
NAMES = {1: FAMILY, 3: "QVLSansSC-Regular;subset of NotoSansCJKsc-Regular 2.004", 4: FAMILY}
NAMES |= {6: "QVLSansSC-Regular"}


def characters() -> set[int]:
    """Code points to keep: all that GB 2312 encodes, printable Latin-1, SIGNS."""
    rows = range(0xA1, 0xF8)
    pairs = (bytes((row, cell)) for row in rows for cell in range(0xA1, 0xFF))
    chinese = "".join(pair.decode("gb2312", "ignore") for pair in pairs)
    latin = {*range(0x20, 0x7F), *range(0xA0, 0x100)}
    return latin | {ord(letter) for letter in chinese + SIGNS}


def face(path: Path) -> TTFont:
    """The simplified Chinese face of a collection, found by its name."""
    fonts = TTCollection(path).fonts
    return next(font for font in fonts if font["name"].getDebugName(1) == FACE)


def reduce(font: TTFont) -> None:
    """Drop all glyphs but those of :func:`characters`, and all tables that only layout needs."""
    options = subset.Options(
        hinting=False,
        desubroutinize=False,
        layout_features=[],
        name_IDs=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14],
        name_languages=[0x409],
        notdef_outline=True,
        drop_tables=["BASE", "GDEF", "GPOS", "GSUB", "VORG", "vhea", "vmtx"],  # layout, vertical
    )
    worker = subset.Subsetter(options)
    worker.populate(unicodes=characters())
    worker.subset(font)


def rename(font: TTFont) -> None:
    """Give it a family name of its own, in the name table and in the outlines' table."""
    for number, words in NAMES.items():
        font["name"].setName(words, number, 3, 1, 0x409)
    outlines = font["CFF "].cff
    outlines.fontNames = [NAMES[6]]
    outlines.topDictIndex[0].FullName = outlines.topDictIndex[0].FamilyName = FAMILY


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("collection", type=Path, help="NotoSansCJK-Regular.ttc")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    font = face(args.collection)
    font.recalcTimestamp = False  # the same bytes on every day
    reduce(font)
    rename(font)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    font.save(args.out)
    print(f"{args.out}: {len(font.getGlyphOrder())} glyphs, {args.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
