"""One complete setting: a model, an image policy, an engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from qvl_lab.config.backends import EngineSpec
from qvl_lab.config.checks import check_name
from qvl_lab.config.images import ImagePolicy
from qvl_lab.config.model import ModelSpec

PARTS: dict[str, type] = {"model": ModelSpec, "images": ImagePolicy, "engine": EngineSpec}
#: Every field a sweep can vary, and the part that it belongs to.
FIELDS: dict[str, str] = {f.name: part for part, cls in PARTS.items() for f in fields(cls)}


@dataclass(frozen=True, kw_only=True)
class Config:
    """One complete setting: a model, an image policy, an engine."""

    model: ModelSpec = field(default_factory=ModelSpec)
    images: ImagePolicy = field(default_factory=ImagePolicy)
    engine: EngineSpec = field(default_factory=EngineSpec)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, whichever part they belong to.

        Raises
        ------
        ConfigError
            If a name is no field of any part; for an old name it says the new one.
        """
        by_part: dict[str, dict[str, Any]] = {part: {} for part in PARTS}
        for name, value in changes.items():
            check_name(name, FIELDS)
            by_part[FIELDS[name]][name] = value
        parts = {part: replace(getattr(self, part), **by_part[part]) for part in PARTS}
        return replace(self, **parts)

    def flat(self) -> dict[str, Any]:
        """All fields of all parts in one dict, ready for JSON."""
        return {k: v for part in PARTS for k, v in asdict(getattr(self, part)).items()}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`flat`; fields left out keep their defaults."""
        return cls().replace(**values)


def digest(value: Any) -> str:
    """A short, stable name (16 hex digits) for a JSON-like value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # file names that are not UTF-8 hold lone surrogates
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
