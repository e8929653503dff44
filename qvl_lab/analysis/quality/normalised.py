"""What an answer says, however it is written: "The star is red." is red, "3个" is three.

Strict metrics compare answers as they are printed, so that a model which answers in sentences
scores 0 where it is right, and a curve of quality is one of wording. The score here stands beside
the strict one. The short answer is taken from the text by rules that do not look at the true
answer, so that a model cannot be right by naming everything.
"""

from __future__ import annotations

import re

from qvl_lab.analysis.quality.box_forms import NamedBoxes, compare_boxes
from qvl_lab.analysis.quality.boxes import MAX_PARSED_CHARS
from qvl_lab.analysis.quality.metrics import BOX_METRICS, METRICS, bare
from qvl_lab.analysis.quality.numerals import numbers, only_number

#: What a model thinks aloud before it answers.
_THOUGHT_ENDS = re.compile(r"</(?:think|thinking|reasoning)>")
_THOUGHT_STARTS = re.compile(r"<(?:think|thinking|reasoning)>")
#: Where an answer says which part of it is the answer.
_MARKED = (
    re.compile(r"\\boxed\{([^{}]{1,200})\}"),
    re.compile(r"<answer>([^<]{1,200})</answer>"),
    re.compile(r"(?:\banswer(?: is)?|答案(?:是|为)?) ?[:：]\s?(.{1,200})", re.IGNORECASE),
)
_BOLD = re.compile(r"\*\*([^*]{1,200})\*\*")
_SENTENCE_ENDS = re.compile(r"(?<=[^\W0-9])[.!?](?=\s|$)|[。！？!?\n]")
#: What follows these is what is said of a sentence's subject.
_SAYS = re.compile(
    r"\b(?:is|are|was|were|says|reads|shows|named|called)\b|(?<![0-9])[:：](?!//)|[:：](?![0-9/])"
    r"|(?<![不因])(?:是|为|叫|写着|显示)"
)
#: Sentences with these do not say what follows a verb.
_DOUBT = re.compile(
    r"\b(?:not|no|never|neither|nor|whether|if|or|cannot|unclear|unknown)\b|n[’']t\b"
    r"|[不没非或]|是否"
)
#: With these a number is a bound, or denied.
_COMPARED = re.compile(
    r"\b(?:not|at least|at most|(?:more|less|fewer|greater) than)\b|n[’']t\b"
    r"|\b(?:over|under|above|below) (?=[0-9])|[不没非]|至少|至多|超过|以上|以下"
)
_YES = ("yes", "true", "是", "是的", "对", "有", "正确")
_NO = ("no", "false", "否", "不是", "不", "不对", "没有", "错误")
_CLAUSE_ENDS = re.compile(r"[,.!;:，。、！；：\n]")
_ARTICLE = re.compile(r"^(?:an?|the) ")


def without_reasoning(answer: str) -> str:
    """An answer without the block in which the model thought aloud, ``<think>...</think>``.

    A chat template may open the block, so that an answer starts inside it. Of a block that was cut
    off nothing is left.
    """
    ends = [match.end() for match in _THOUGHT_ENDS.finditer(answer)]
    rest = answer[ends[-1] :] if ends else answer
    started = _THOUGHT_STARTS.search(rest)
    return rest[: started.start()] if started else rest


def normalised(metric: str, answer: str, expected: str, boxes: NamedBoxes | None = None) -> float:
    """The score of what an answer says.

    Parameters
    ----------
    metric : str
        The name of the strict metric. A metric of boxes compares ``boxes`` with the expected ones,
        their labels too; any other gives 1 if :func:`same_answer`, or else its own score.
    boxes : NamedBoxes or None
        The answer's, from :func:`qvl_lab.analysis.quality.box_forms.read_boxes`.
    """
    if metric in BOX_METRICS:
        return compare_boxes(metric, boxes, expected)
    return 1.0 if same_answer(answer, expected) else METRICS[metric](answer, expected)


def same_answer(answer: str, expected: str) -> bool:
    """Whether an answer says what is expected, as digits, in words or in a sentence.

    - A number is right if it is the only one in the answer, in digits or in words, in English or
      Chinese, with or without a currency or measure word: "12.50 USD", "1.027,40", "three", "3个".
      Its value counts ("12.5" is 12.50), unless it begins with a zero, as codes do.
    - "Yes" and "no" are right as the first clause.
    - Any other answer is right if what a sentence says of its subject is the expected text: "The
      star is red." and "答案是红色", but neither "red or blue" nor "a red star".

    What the answer marks as its answer ("Answer: ...", bold, a box) comes before the whole of it.
    """
    answer, expected = answer[:MAX_PARSED_CHARS], expected[:MAX_PARSED_CHARS]
    if METRICS["exact_match"](answer, expected):
        return True
    marked = marked_answer(answer)
    if (number := only_number(expected)) is not None:
        return numbers(marked) == {number} and not _COMPARED.search(marked.casefold())
    said = _core(_CLAUSE_ENDS.split(marked.strip(), maxsplit=1)[0])
    for words in (_YES, _NO):
        if _core(expected) in words:
            return said in words
    return _core(expected) in (_core(marked), _core(_said(marked)))


def marked_answer(answer: str) -> str:
    """The part that an answer marks as what it answers; all of it if none, or several, are."""
    for pattern in _MARKED:
        if found := pattern.findall(answer):
            return str(found[-1])
    bold = set(_BOLD.findall(answer))
    return bold.pop() if len(bold) == 1 else answer


def _said(text: str) -> str:
    """What the first sentence says of its subject."""
    sentence = _SENTENCE_ENDS.split(text.strip(), maxsplit=1)[0]
    lower = sentence.casefold()
    return sentence if _DOUBT.search(lower) else _SAYS.split(lower)[-1]


def _core(text: str) -> str:
    """As :func:`exact_match` compares it, without an article before it or 的 behind it."""
    core = _ARTICLE.sub("", bare(text))
    return core.removesuffix("的") or core
