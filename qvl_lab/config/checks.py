"""Checks that settings share; each error says what is allowed."""

from __future__ import annotations

from typing import Any

from qvl_lab.errors import ConfigError, UnknownNameError


def member(kind: str, value: Any, allowed: Any) -> None:
    """Refuse a value that is not among those allowed."""
    if value not in allowed:
        raise UnknownNameError(kind, value, (str(a) for a in allowed))


def bounded(name: str, value: Any, low: int, high: int) -> None:
    """Refuse anything but a whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def positive(name: str, value: Any) -> None:
    """Refuse anything but a number above zero."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value > 0:
        raise ConfigError(f"{name} must be a number above 0, not {value!r}")
