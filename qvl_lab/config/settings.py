"""One complete setting: a model, an image policy, a backend; and its flat form.

The flat form is what sweeps, TOML files, the command line and run files use: one dict of every
field, without the parts. Names are unique over the parts, but for fields that both backends have.
``engine`` says which backend it is, and a backend's flat form holds no field of the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, Self, TypeVar

from qvl_lab.config.backends import BACKENDS, EngineSpec, Transformers
from qvl_lab.config.checks import check_name, member
from qvl_lab.config.images import ImagePolicy
from qvl_lab.config.model import ModelSpec
from qvl_lab.errors import ConfigError

P = TypeVar("P")


def _flat_name(f: Field[Any]) -> str:
    return str(f.metadata.get("flat", f.name))


def flat_fields(*parts: type, without: Iterable[str] = ()) -> dict[str, Field[Any]]:
    """The fields of dataclasses and of the dataclasses within them, by their flat names.

    A field's flat name is its own, or what its metadata call ``"flat"``. Of equal names the first
    counts; fields called as in ``without`` are left out.
    """
    found: dict[str, Field[Any]] = {}
    for f in (f for part in parts for f in fields(part) if f.name not in without):
        inner = f.default_factory
        own = {_flat_name(f): f}
        if isinstance(inner, type) and is_dataclass(inner):
            own = flat_fields(inner)
        found |= {name: own[name] for name in own if name not in found}
    return found


#: The parts of a configuration. Of the backends one is chosen, by ``engine``.
_PARTS: dict[str, tuple[type, ...]] = {
    "model": (ModelSpec,),
    "images": (ImagePolicy,),
    "engine": tuple(BACKENDS.values()),
}
#: Their classes.
PARTS = tuple(part for parts in _PARTS.values() for part in parts)
#: Every field a sweep can vary, and the part that it belongs to.
FIELDS: dict[str, str] = {
    name: part for part, classes in _PARTS.items() for name in flat_fields(*classes)
}
#: The fields of each backend.
_FIELDS_OF = {engine: frozenset(flat_fields(of)) for engine, of in BACKENDS.items()}


def engines_with(name: str) -> tuple[str, ...]:
    """The engines that have a setting: all of them, but for settings of one backend alone."""
    if FIELDS.get(name) != "engine":
        return tuple(BACKENDS)
    return tuple(engine for engine, names in _FIELDS_OF.items() if name in names)


def wrong_engine(name: str) -> ConfigError:
    """The error for a setting that the chosen backend does not have."""
    (owner,) = engines_with(name)
    return ConfigError(f"{name} is the {owner} engine's; add engine={owner!r}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One complete setting: a model, an image policy, and the backend that answers."""

    model: ModelSpec = field(default_factory=ModelSpec)
    images: ImagePolicy = field(default_factory=ImagePolicy)
    engine: EngineSpec = field(default_factory=Transformers)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, given by their flat names.

        Another ``engine`` keeps the settings that both backends have.

        Raises
        ------
        ConfigError
            If a name is no field of any part, or one of another backend's; for an old name it
            says the new one.
        """
        for name in changes:
            check_name(name, FIELDS)
        engine = self.engine
        wanted = changes.pop("engine", engine.engine)
        member("engine", wanted, BACKENDS)
        if wanted != engine.engine:
            both = _FIELDS_OF[wanted] & _FIELDS_OF[engine.engine] - {"engine"}
            shared = {name: value for name, value in _flat(engine).items() if name in both}
            engine = _changed(BACKENDS[wanted](), shared)
        for name in changes:
            if wanted not in engines_with(name):
                raise wrong_engine(name)
        return replace(
            self,
            model=_changed(self.model, changes),
            images=_changed(self.images, changes),
            engine=_changed(engine, changes),
        )

    def flat(self) -> dict[str, Any]:
        """All fields of all parts in one dict, ready for JSON."""
        return _flat(self)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`flat`; fields left out keep their defaults."""
        return cls().replace(**values)


def default_of(name: str) -> Any:
    """The default of a setting, by its flat name."""
    f = flat_fields(*_PARTS[FIELDS[name]])[name]
    return f.default if f.default_factory is MISSING else f.default_factory()


def digest(value: Any) -> str:
    """A short, stable name (16 hex digits) for a JSON-like value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # file names that are not UTF-8 hold lone surrogates
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _flat(part: Any) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for f in fields(part):
        value = getattr(part, f.name)
        flat |= _flat(value) if is_dataclass(value) else {_flat_name(f): value}
    return flat


def _changed(part: P, changes: Mapping[str, Any]) -> P:
    """A copy of a dataclass, changed by flat names; names of other parts are passed over."""
    own: dict[str, Any] = {}
    for f in fields(part):  # type: ignore[arg-type]
        value = getattr(part, f.name)
        if is_dataclass(value):
            own[f.name] = _changed(value, changes)
        elif _flat_name(f) in changes:
            own[f.name] = changes[_flat_name(f)]
    return replace(part, **own)  # type: ignore[type-var]
