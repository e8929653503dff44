"""Checks that settings share; each error says what is allowed.

They are written by hand. With pydantic the classes would lose about as many lines as a translation
of its errors into ours, which name the nearest allowed value and what to do, would add.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qvl_lab.errors import ConfigError, UnknownNameError

#: Settings that had another name once, and the name that they have now.
RENAMED = {
    "feature_cache_gib": "encoder_cache_gib",
    "feature_cache_entries": "encoder_cache_entries",
    "feature_cache_dir": "encoder_cache_dir",
    "feature_cache_dir_gib": "encoder_cache_dir_gib",
    "feature_cache_max_age_s": "encoder_cache_max_age_s",
    "answer_cache_entries": "response_cache_entries",
}


def check_name(name: str, allowed: Iterable[str], kind: str = "field") -> None:
    """Refuse the name of a setting that is not among those allowed.

    Raises
    ------
    ConfigError
        For an old name; it says the new one.
    UnknownNameError
        For any other.
    """
    if name in RENAMED:
        raise ConfigError(f"{name} is now {RENAMED[name]}")
    if name not in (allowed := list(allowed)):
        raise UnknownNameError(kind, name, allowed)


def member(kind: str, value: Any, allowed: Any) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise UnknownNameError(kind, value, (str(a) for a in allowed))


def bounded(name: str, value: Any, low: int, high: int, *words: str) -> None:
    """Refuse anything but a whole number from ``low`` to ``high``; errors name ``words`` too."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        others = "".join(f" or {word!r}" for word in words)
        raise ConfigError(
            f"{name} must be a whole number from {low} to {high}{others}, not {value!r}"
        )


def positive(name: str, value: Any) -> None:
    """Refuse anything but a number above zero."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value > 0:
        raise ConfigError(f"{name} must be a number above 0, not {value!r}")
