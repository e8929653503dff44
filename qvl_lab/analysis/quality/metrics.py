"""Metrics: an answer and the expected one to a score from 0 to 1, as printed."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from qvl_lab.analysis.quality.boxes import box_accuracy, iou
from qvl_lab.errors import ConfigError

Metric = Callable[[str, str], float]

TYPEWRITER = str.maketrans("−–‘’“”", "--''\"\"")
_QUOTES = "\"'`*_,;:!?()[]{}<>«»„。、「」『』《》〈〉【】"
_CURRENCY = "$€£¥₩₹₽₫฿₺₴₪₱"
_BEFORE_NUMBER = re.compile(rf"[{_CURRENCY}] ?(?=[-+]?\.?[0-9])")
_AFTER_NUMBER = re.compile(rf"(?<=[0-9]) ?[{_CURRENCY}元]")
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?!,?[0-9])")
#: Digits and signs set high, which NFKC would put beside the number that they are an exponent of.
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_NUMERAL = re.compile(r"[0-9][0-9.,]*%?")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
#: Kana and Han characters; Korean is written with spaces.
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def exact_match(answer: str, expected: str) -> float:
    """1 if both say the same, 0 if not.

    Case, kinds of whitespace, full-width forms (NFKC), typographic dashes and quotes, and quotes,
    brackets, emphasis and punctuation around the text do not matter. A currency sign next to a
    number (元 too) and commas between thousands are not part of it; its digits are as printed:
    "¥1,027.40" is "1027.40" and not "1027.4". A full stop before a digit, a sign and "%" stay. A
    number in brackets keeps them, since accounts write minus five as "(5)"; an exponent set high is
    not a digit of its number: "10²" is "10^2" and not "102".
    """
    return float(bare(answer) == bare(expected))


def token_f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall of the tokens, as a bag.

    As the evaluation of SQuAD has it (Rajpurkar et al. 2016, arXiv:1606.05250): lower case,
    punctuation and English articles removed; two answers without tokens agree. As in MLQA
    (Lewis et al. 2020, arXiv:1910.07475), all of Unicode's punctuation is removed, and each Han
    or kana character is a token.
    """
    found, wanted = Counter(_tokens(answer)), Counter(_tokens(expected))
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


def anls(answer: str, expected: str) -> float:
    """Similarity by edit distance, 0 from half the characters wrong.

    Average normalised Levenshtein similarity of one pair (Biten et al. 2019, arXiv:1905.13648)
    with its threshold of 0.5: case and kinds of whitespace do not matter.
    """
    found, wanted = plain(answer).casefold(), plain(expected).casefold()
    distance = _levenshtein(found, wanted) / max(len(found), len(wanted), 1)
    return 1 - distance if distance < 0.5 else 0.0


def character_error_rate(answer: str, expected: str) -> float:
    """Edits per character of the expected text; above 1 if the answer is long and wrong.

    Case matters, kinds of whitespace and full-width forms do not. An empty expected text counts
    as one character, so that the rate stays finite.
    """
    found, wanted = plain(answer), plain(expected)
    return _levenshtein(found, wanted) / max(len(wanted), 1)


def character_accuracy(answer: str, expected: str) -> float:
    """1 less the character error rate, not below 0."""
    return max(0.0, 1 - character_error_rate(answer, expected))


def chrf(answer: str, expected: str) -> float:
    """Character n-gram F-score, sacrebleu's chrF2 of one sentence (Popovic 2015), over 100."""
    if not answer.split() or not expected.split():
        return float(answer.split() == expected.split())
    return min(1.0, float(_chrf().sentence_score(answer, [expected]).score) / 100)


def plain(text: str) -> str:
    """NFKC with "^" before an exponent that is set high, and every run of whitespace a space."""
    text = _SUPERSCRIPT.sub(lambda m: f"^{m[0]}", text)
    return " ".join(unicodedata.normalize("NFKC", text).split())


def bare(text: str) -> str:
    """What :func:`exact_match` compares."""
    text = plain(text.translate(TYPEWRITER)).casefold()
    text = _AFTER_NUMBER.sub("", _BEFORE_NUMBER.sub("", text))
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    # leading full stops may belong to a number, ".5"
    core = text.lstrip(_QUOTES + " ").rstrip(_QUOTES + ". ")
    if _NUMERAL.fullmatch(core) and f"({core})" in text.replace(" ", ""):
        return f"({core})"
    return core or text


def _tokens(text: str) -> list[str]:
    text = _SUPERSCRIPT.sub(lambda m: f" {m[0]}", text)
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(ch for ch in text if not _is_punctuation(ch))
    return _CJK.sub(r" \1 ", _ARTICLES.sub(" ", text)).split()


def _is_punctuation(ch: str) -> bool:
    return ch in string.punctuation or unicodedata.category(ch).startswith("P")


def _levenshtein(a: str, b: str) -> int:
    return int(_package("rapidfuzz", "rapidfuzz.distance.Levenshtein").distance(a, b))


@cache
def _chrf() -> Any:
    return _package("sacrebleu", "sacrebleu.metrics").CHRF()


def _package(name: str, module: str) -> Any:
    """Imported when first needed: both are slow to import, and a machine may lack them."""
    try:
        return import_module(module)
    except ImportError as e:
        raise ConfigError(
            f"this metric needs {name}, which is not installed: pip install {name}; "
            "exact_match, token_f1, iou and box_accuracy work without it"
        ) from e


METRICS: dict[str, Metric] = {
    "anls": anls,
    "box_accuracy": box_accuracy,
    "character_accuracy": character_accuracy,
    "chrf": chrf,
    "exact_match": exact_match,
    "iou": iou,
    "token_f1": token_f1,
}
BOX_METRICS = ("box_accuracy", "iou")
