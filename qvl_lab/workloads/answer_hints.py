"""A sentence behind a question that says how to answer it.

Models that follow instructions answer a bare question in a sentence, which strict metrics count
as wrong. The hint depends on the form of the reference answer alone, and is in the question's
language.
"""

from __future__ import annotations

import json
import re

_HAN = re.compile(r"[\u4e00-\u9fff]")
_NUMBER = re.compile(r"[-+]?[0-9]+(?:[.,][0-9]+)*%?")
#: Form of the answer to the hint in English and Chinese.
HINTS = {
    "boxes": (
        'Answer with JSON alone: [{"bbox_2d": [x1, y1, x2, y2], "label": "..."}], coordinates '
        "0-1000.",
        '只回答 JSON：[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]，坐标为 0-1000。',
    ),
    "number": (
        "Answer with the digits alone, without words or a currency.",
        "只回答数字，不要文字和货币。",
    ),
    "words": ("Answer with the word or name alone, not in a sentence.", "只回答词语，不要整句话。"),
}


def answer_hint(question: str, reference: str | None) -> str:
    """The sentence that says how to answer a question; "" where no answer is known."""
    if reference is None:
        return ""
    english, chinese = HINTS[_form(reference)]
    return chinese if _HAN.search(question) else english


def with_hint(question: str, reference: str | None) -> str:
    """The question with its hint behind it."""
    hint = answer_hint(question, reference)
    return f"{question}{'' if _HAN.search(question) else ' '}{hint}" if hint else question


def _form(reference: str) -> str:
    text = reference.strip()
    if text.startswith(("[", "{")):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "boxes"
        several = isinstance(value, list) and bool(value) and all(type(v) is str for v in value)
        return _form(value[0]) if several else "boxes"
    return "number" if _NUMBER.fullmatch(text) else "words"
