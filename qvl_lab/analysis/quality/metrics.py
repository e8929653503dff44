"""Metrics: an answer and the expected one to a score from 0 to 1, and the boxes in an answer."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qvl_lab.errors import ConfigError

Box = tuple[float, float, float, float]
Metric = Callable[[str, str], float]
Floats = NDArray[np.float64]

#: Characters of an answer that are searched for boxes.
MAX_PARSED_CHARS = 20_000

# ---- text

_TYPEWRITER = str.maketrans("−–‘’“”", "--''\"\"")
_QUOTES = "\"'`*_,;:!?()[]{}<>«»„。、「」『』《》〈〉【】"
_CURRENCY = "$€£¥₩₹₽₫฿₺₴₪₱"
_BEFORE_NUMBER = re.compile(rf"[{_CURRENCY}] ?(?=[-+]?\.?[0-9])")
_AFTER_NUMBER = re.compile(rf"(?<=[0-9]) ?[{_CURRENCY}元]")
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?!,?[0-9])")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
#: Kana and Han characters; Korean is written with spaces.
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")


def exact_match(answer: str, expected: str) -> float:
    """1 if both say the same, 0 if not.

    Case, kinds of whitespace, full-width forms (NFKC), typographic dashes and quotes, and quotes,
    brackets, emphasis and punctuation around the text do not matter. A currency sign next to a
    number (元 too) and commas between thousands are not part of it; its digits are as printed:
    "¥1,027.40" is "1027.40" and not "1027.4". A full stop before a digit, a sign and "%" stay.
    """
    return float(_bare(answer) == _bare(expected))


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
    found, wanted = _plain(answer).casefold(), _plain(expected).casefold()
    distance = _levenshtein(found, wanted) / max(len(found), len(wanted), 1)
    return 1 - distance if distance < 0.5 else 0.0


def character_error_rate(answer: str, expected: str) -> float:
    """Edits per character of the expected text; above 1 if the answer is long and wrong.

    Case matters, kinds of whitespace and full-width forms do not. An empty expected text counts
    as one character, so that the rate stays finite.
    """
    found, wanted = _plain(answer), _plain(expected)
    return _levenshtein(found, wanted) / max(len(wanted), 1)


def character_accuracy(answer: str, expected: str) -> float:
    """1 less the character error rate, not below 0."""
    return max(0.0, 1 - character_error_rate(answer, expected))


def chrf(answer: str, expected: str) -> float:
    """Character n-gram F-score, sacrebleu's chrF2 of one sentence (Popovic 2015), over 100."""
    if not answer.split() or not expected.split():
        return float(answer.split() == expected.split())
    return min(1.0, float(_chrf().sentence_score(answer, [expected]).score) / 100)


def _plain(text: str) -> str:
    """NFKC, and every run of whitespace a space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _bare(text: str) -> str:
    text = _plain(text.translate(_TYPEWRITER)).casefold()
    text = _AFTER_NUMBER.sub("", _BEFORE_NUMBER.sub("", text))
    text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    # leading full stops may belong to a number, ".5"
    return text.lstrip(_QUOTES + " ").rstrip(_QUOTES + ". ") or text


def _tokens(text: str) -> list[str]:
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


# ---- boxes

# Whitespace is collapsed beforehand and numbers are possessive, so every match looks at each
# character a bounded number of times.
_NUMBER = r"([-+]?[0-9]++(?:\.[0-9]++)?+)"
_JOIN = r"(?: ?[\])] ?(?:,|and|to|至|到)? ?[\[(] ?| ?, ?)"
_BRACKETED = re.compile(
    rf"[\[(] ?{_NUMBER} ?, ?{_NUMBER}{_JOIN}{_NUMBER} ?, ?{_NUMBER} ?[\])]",
)
#: Four numbers in running text: not five, and not the rest of a list that was cut off.
_UNBRACKETED = re.compile(
    rf"(?<![\[(0-9.,+-])(?<![\[(,] ){_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER}"
    r"(?! ?,? ?[-+0-9])"
)
_SPECIAL_TOKEN = re.compile(r"<\|[a-z_]{1,30}\|>")
_BOX_NAME = re.compile(r"<\|box_start\|>|[\"'](?:bbox_2d|box_2d|bbox|box)\\?[\"']")
_EMPTY_LIST = re.compile(r"\[ ?\]")
#: Nothing but brackets and numbers, in a code fence or not.
_ONLY_BOXES = re.compile(r"(?:```(?:json)? ?)?[\[(][\[\](){}0-9.,+\- ]*(?:```)?")
_HALF_WIDTH = str.maketrans("（），［］：０１２３４５６７８９", "(),[]:0123456789")


def parse_boxes(text: str) -> list[Box] | None:
    """The boxes that an answer names, as (x1, y1, x2, y2) in 0-1000.

    Reads what Qwen models write: JSON with ``bbox_2d`` (or any other name), fenced, with text
    around it, in single quotes, or cut off (its complete boxes); ``<|box_start|>(x1,y1),(x2,y2)
    <|box_end|>`` with or without the special tokens; four numbers in brackets or bare. Corners are
    put in order and coordinates clipped. Only the first :data:`MAX_PARSED_CHARS` are looked at.

    Returns
    -------
    list of tuple or None
        Empty if the answer says that there are none, ``[]``; None if no box can be read.
    """
    text = _SPECIAL_TOKEN.sub(" ", text[:MAX_PARSED_CHARS].translate(_HALF_WIDTH))
    text = " ".join(text.split())
    found = _BRACKETED.findall(text) or _UNBRACKETED.findall(text)
    if not found:
        named_none = _EMPTY_LIST.search(text) and not _BOX_NAME.search(text)
        return [] if named_none else None
    return [_box(numbers) for numbers in found]


def iou(answer: str, expected: str) -> float:
    """Mean overlap (intersection over union) of the boxes, matched one to one.

    The matching is the best one; a box without a partner, expected or not, counts as 0.

    Raises
    ------
    ConfigError
        If no box can be read from the expected answer.
    """
    overlaps, found, wanted = _matched(answer, expected)
    return float(overlaps.sum() / max(found, wanted)) if max(found, wanted) else 1.0


def box_accuracy(answer: str, expected: str) -> float:
    """F1 of the boxes that overlap their partner by half or more; labels are not compared.

    Boxes are matched as in :func:`iou`, and errors are the same.
    """
    overlaps, found, wanted = _matched(answer, expected)
    return 2 * int((overlaps >= 0.5).sum()) / (found + wanted) if found + wanted else 1.0


def _box(numbers: Iterable[str]) -> Box:
    x1, y1, x2, y2 = (min(max(float(number), 0.0), 1000.0) for number in numbers)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def is_box_answer(text: str) -> bool:
    """Whether a text is boxes rather than words in which four numbers happen to occur."""
    if parse_boxes(text) is None:
        return False
    return bool(_BOX_NAME.search(text) or _ONLY_BOXES.fullmatch(" ".join(text.split())))


def _matched(answer: str, expected: str) -> tuple[Floats, int, int]:
    """Overlaps of the matched pairs, and how many boxes were found and wanted."""
    from scipy.optimize import linear_sum_assignment

    wanted = parse_boxes(expected)
    if wanted is None:
        raise ConfigError(no_box(expected))
    found = parse_boxes(answer)
    if found is None:
        # unreadable is wrong even where no box is wanted, so it counts as one wrong box
        return np.zeros(0), 1, len(wanted)
    overlaps = _overlaps(np.reshape(found, (-1, 4)), np.reshape(wanted, (-1, 4)))
    return overlaps[linear_sum_assignment(overlaps, maximize=True)], len(found), len(wanted)


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box in ``a`` with every one in ``b``."""
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    both = sides.clip(0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    # boxes without area overlap if they are the same
    same = (a == b).all(-1).astype(float)
    overlaps: Floats = np.divide(both, either, out=same, where=either > 0)
    return overlaps


def no_box(expected: str) -> str:
    return (
        f"no box can be read from the expected answer {expected[:80]!r}; write it as "
        '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}] in 0-1000, or give its task another '
        'metric: metrics={"task": "exact_match"}'
    )


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
