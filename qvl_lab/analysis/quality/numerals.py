"""Numbers in an answer: in digits or in words, with a currency, however thousands are set apart."""

from __future__ import annotations

import re
from decimal import Decimal

from qvl_lab.analysis.quality.metrics import TYPEWRITER, plain

_SIGNS = "$€£¥₩₹₽₫฿₺₴₪₱"
_CODES = "usd|eur|gbp|jpy|cny|rmb|hkd|twd|krw|inr|chf|sgd|cad|aud"
_NAMES = "人民币|美元|欧元|日元|英镑|港币|港元|元|块|圆"
_BEFORE = re.compile(
    rf"(?:(?:\b(?:us|hk|nt|ca|au|a|c|s))?[{_SIGNS}]|\b(?:{_CODES})|{_NAMES}) ?"
    r"(?=[-+]?\.?[0-9])"
)
_BEHIND = re.compile(
    rf"(?<=[0-9]) ?(?:[{_SIGNS}]|(?:{_CODES}|dollars?|euros?|pounds?|yuan|yen)\b|{_NAMES})"
)
#: A character of a word that is no Chinese or Japanese one: those stand beside digits.
_LETTER = r"[^\W0-9\u3040-\u30ff\u3400-\u9fff]"
_GROUPED = r"[0-9]{1,3}(?:,[0-9]{3})++(?:\.[0-9]++)?"
_CONTINENTAL = r"[0-9]{1,3}(?:\.[0-9]{3})++,[0-9]{2}|[0-9]{1,3}(?:[ '][0-9]{3}){1,6}[.,][0-9]{2}"
_APOSTROPHES = r"[0-9]{1,3}(?:'[0-9]{3})++"
_CENTS = r"[0-9]++,[0-9]{2}"
_PLAIN = r"[0-9]++(?:\.[0-9]++)?|\.[0-9]++"
_NUMBER = re.compile(
    rf"(?<!{_LETTER})(?<!{_LETTER}-)(?<![0-9./^])(?<![0-9][-,:'])"
    rf"(?P<sign>(?<![0-9)])[-+])?"
    rf"(?P<digits>{_GROUPED}|{_CONTINENTAL}|{_APOSTROPHES}|{_CENTS}|{_PLAIN})"
    rf"(?!{_LETTER}|[0-9^/])(?![-.,:'][0-9])"
    r"(?: ?(?P<scale>%|percent\b|per cent\b|thousand\b|million\b|billion\b|hundred\b|dozen\b"
    r"|[百千万亿]))?"
)
_IN_BRACKETS = re.compile(r"\( ?[-+]?[0-9.,]++ ?%? ?\)[. ]*")

_ONES = "one two three four five six seven eight nine".split()
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = (
    {"zero": 0, "none": 0}
    | {word: n for n, word in enumerate(_ONES, 1)}
    | {word: n for n, word in enumerate(_TEENS, 10)}
    | {word: 10 * n for n, word in enumerate(_TENS, 2)}
)
_ENGLISH = re.compile(
    rf"\b(?:({'|'.join(_TENS)})(?:[- ]({'|'.join(_ONES)}))?|({'|'.join(_WORDS)}))\b"
)
#: "One" that stands for a thing and counts nothing.
_PRONOUN = re.compile(r"\b(?:the|this|that|which|each|every|another|other|no) one\b")
_NOTHING = re.compile(r"\b(?:there (?:are|is)|i (?:see|count)) no\b")
_HAN = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4}
_HAN |= {"五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_MEASURES = "个只条张件位名辆本颗种次家支枚台处块棵朵"
_HAN_NUMBER = r"(?:([一二三四五六七八九])?(十)([一二三四五六七八九])?|([零〇一二两三四五六七八九]))"
_CHINESE = re.compile(
    rf"(?<![第零〇一二两三四五六七八九十百千万]){_HAN_NUMBER}(?=[{_MEASURES}])"
    rf"|(?:\A|(?<=[是有为共: ])){_HAN_NUMBER}$"
)
_REST = re.compile(rf"[\s\"'`*_.,;:!?()\[\]{{}}。，、；：！？「」《》【】{_MEASURES}]*")
#: Longer numbers are compared as they are printed.
_MOST_DIGITS = 25


def numbers(text: str) -> set[str]:
    """The different numbers in a text, in a form in which equal ones are equal.

    Numbers that are part of something else are left out: of a word ("A5", "3rd"), a date, a time, a
    fraction or a power ("10^2"). A number in brackets and nothing else is none of these, since
    accounts write minus five as "(5)".
    """
    text = _digits(text)
    if _IN_BRACKETS.fullmatch(text):
        return {text.rstrip(". ")}
    return {_value(match) for match in _NUMBER.finditer(text)}


def only_number(text: str) -> str | None:
    """The number that a text is, with a currency or a measure word; None if it says more."""
    text = _digits(text)
    if _IN_BRACKETS.fullmatch(text):
        return text.rstrip(". ")
    found = _NUMBER.search(text)
    if not found or not _REST.fullmatch(text[: found.start()] + text[found.end() :]):
        return None
    return _value(found)


def _digits(text: str) -> str:
    """Words for numbers as digits, and no currencies."""
    text = plain(text.translate(TYPEWRITER)).casefold().strip("\"'`*_ ")
    text = _NOTHING.sub("0", _PRONOUN.sub(" ", text))
    text = _ENGLISH.sub(_english, text)
    text = _CHINESE.sub(_chinese, text.rstrip("。.! "))
    return _BEHIND.sub("", _BEFORE.sub("", text))


def _english(match: re.Match[str]) -> str:
    tens, ones, word = match.groups()
    return str(_WORDS[word] if word else _WORDS[tens] + (_WORDS[ones] if ones else 0))


def _chinese(match: re.Match[str]) -> str:
    tens, ten, ones, digit = match.groups()[:4] if match[2] or match[4] else match.groups()[4:]
    if not ten:
        return str(_HAN[digit])
    return str(10 * (_HAN[tens] if tens else 1) + (_HAN[ones] if ones else 0))


def _value(match: re.Match[str]) -> str:
    sign, digits, scale = (match[name] or "" for name in ("sign", "digits", "scale"))
    scale = "%" if scale in ("percent", "per cent") else scale
    code = len(digits) > 1 and digits[0] == "0" and digits.isdigit()
    if code or len(digits) > _MOST_DIGITS:
        return f"{sign}{digits}{scale}"
    last = max(digits.rfind("."), digits.rfind(","))
    if "," in digits and re.fullmatch(_GROUPED, digits):
        digits = digits.replace(",", "")
    elif re.fullmatch(rf"{_CONTINENTAL}|{_CENTS}", digits):
        whole = re.sub(r"\D", "", digits[:last])
        digits = f"{whole}.{digits[last + 1 :]}"
    value = Decimal(sign.replace("+", "") + digits.replace("'", "").replace(" ", ""))
    return f"{value.normalize() + 0:f}{scale}"
