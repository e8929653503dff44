"""The texts of figures and reports, read from ``assets/locale/en.toml`` and ``zh.toml``."""

from __future__ import annotations

import re
import tomllib
from functools import lru_cache
from typing import Any

from qvl_lab.assets import asset
from qvl_lab.claims import article, claims
from qvl_lab.errors import UnknownNameError

LANGUAGES = ("en", "zh")
#: A space between two Chinese characters or beside a full-width mark, as a value may leave one.
_STRAY = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])")


def check_language(lang: str) -> None:
    """Refuse a language that has no texts.

    Raises
    ------
    UnknownNameError
        If the language is not one of LANGUAGES.
    """
    if lang not in LANGUAGES:
        raise UnknownNameError("language", lang, LANGUAGES)


@lru_cache(maxsize=len(LANGUAGES))
def texts(lang: str) -> dict[str, str]:
    """All texts of a language by key, with their {placeholders}.

    Raises
    ------
    UnknownNameError
        If the language is not one of LANGUAGES.
    """
    check_language(lang)
    return tomllib.loads(asset(f"locale/{lang}.toml").read_text("utf-8"))


def has_text(key: str) -> bool:
    """Whether there is a text of that key; both languages have the same keys."""
    return key in texts(LANGUAGES[0])


def label(key: str, lang: str, **values: Any) -> str:
    """The text of ``key`` in a language, with its placeholders filled.

    Besides ``values`` a text may name the article, ``{article.title}``, and what it claims,
    ``{claims[gpu_busy]}``.

    Raises
    ------
    UnknownNameError
        If the language is not one of LANGUAGES.
    KeyError
        If there is no such text, or a placeholder has no value.
    """
    said = texts(lang)[key].format(article=article(), claims=_claims(), **values)
    return _STRAY.sub("", said) if lang == "zh" else said


@lru_cache(maxsize=1)
def _claims() -> dict[str, str]:
    return {found.id: found.written for found in claims()}
