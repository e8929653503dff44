"""Signatures that name every setting, for functions that take settings as keywords.

Jupyter's Shift-Tab and Tab read a function's signature. One that takes ``**settings`` shows
nothing of what it takes; here the names, types and defaults come from the dataclasses themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field
from typing import Any, TypeVar

from qvl_lab.config.checks import check_name
from qvl_lab.config.settings import flat_fields

F = TypeVar("F", bound=Callable[..., Any])


def names_settings(
    *parts: type, axes: Iterable[type] = (), without: Iterable[str] = ()
) -> Callable[[F], F]:
    """Show the fields of dataclasses in place of a function's ``**settings``.

    Parameters
    ----------
    parts : dataclass
        Whose fields the function takes, after its own parameters.
    axes : iterable of dataclass
        Those of which the function takes a list of values too.
    without : iterable of str
        Fields that it does not take.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        shown = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = {parameter.name for parameter in shown} | set(without)
        for part in parts:
            for name, field in flat_fields(part, without=without).items():
                if name not in taken:
                    shown.append(_parameter(name, field, listed=part in axes))
                    taken.add(name)
        function.__signature__ = signature.replace(parameters=shown)  # type: ignore[attr-defined]
        return function

    return decorate


def check_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    """Refuse keywords that a function's signature does not name.

    Raises
    ------
    ConfigError
        With the nearest name, or the new one for an old name.
    """
    allowed = list(inspect.signature(function).parameters)
    for name in settings:
        check_name(name, allowed, "option")


def _parameter(name: str, field: Field[Any], *, listed: bool) -> inspect.Parameter:
    default = field.default
    if default is MISSING:
        default = (
            inspect.Parameter.empty if field.default_factory is MISSING else field.default_factory()
        )
    kind = f"{field.type} | list" if listed else field.type
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
