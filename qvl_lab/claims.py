"""What the article says, read from ``assets/claims.toml``: no other file repeats its numbers.

The article has a title and a date; its address is not known, so it is named and not linked.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qvl_lab.assets import asset
from qvl_lab.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of the article.

    Attributes
    ----------
    id : str
        The claim's name in this project.
    part : str
        The article's section, such as "2.3".
    quote : str
        The article's own words, in Chinese.
    numbers : tuple of float
        In ``unit``; two are a range. Empty where the article names no number.
    unit : str
    """

    id: str
    part: str
    quote: str
    numbers: tuple[float, ...]
    unit: str

    @property
    def number(self) -> float:
        """The first number: the only one, or the lower end of a range."""
        return self.numbers[0]

    @property
    def written(self) -> str:
        """The numbers for people: "60–70%", "512"; "" if there are none."""
        percent = "%" if self.numbers and self.unit.startswith("%") else ""
        return "–".join(f"{number:g}" for number in self.numbers) + percent


@dataclass(frozen=True, kw_only=True)
class Article:
    """The article's title, and its date in ISO 8601."""

    title: str
    date: str


def article() -> Article:
    """The article that this project checks."""
    return Article(**_file()["article"])


@lru_cache(maxsize=1)
def claims() -> tuple[Claim, ...]:
    """All claims in the article's order of subjects."""
    return tuple(Claim(**(row | {"numbers": tuple(row["numbers"])})) for row in _file()["claim"])


def claim(name: str) -> Claim:
    """The claim whose id is ``name``.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    by_id = {found.id: found for found in claims()}
    if name not in by_id:
        raise UnknownNameError("claim", name, by_id)
    return by_id[name]


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return tomllib.loads(asset("claims.toml").read_text("utf-8"))
