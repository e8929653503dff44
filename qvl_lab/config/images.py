"""How many pixels an image may keep, and which images are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qvl_lab.config.checks import bounded
from qvl_lab.errors import ConfigError
from qvl_lab.tasks import article_resolutions

NATIVE, BY_TASK = "native", "by_task"
#: Pillow refuses images of more pixels than this whatever we say.
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """How many pixels an image may keep, and which images are refused.

    Parameters
    ----------
    resolution : int or str
        ``"native"``; a number: at most that many pixels squared, at the image's own aspect
        ratio; or ``"by_task"``: look the item's task up in ``task_resolutions``.
    task_resolutions : mapping of str to int or "native"
        Used by ``"by_task"``.
    max_image_pixels, max_image_bytes : int
        An image over either is refused by name before it is decoded.
    """

    resolution: int | str = NATIVE
    task_resolutions: Mapping[str, int | str] = field(default_factory=article_resolutions)
    max_image_pixels: int = 80_000_000
    max_image_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _resolution(self.resolution, BY_TASK))
        if not isinstance(self.task_resolutions, Mapping):
            given = self.task_resolutions
            raise ConfigError(f"task_resolutions must map tasks to resolutions, not {given!r}")
        table = {task: _resolution(value) for task, value in self.task_resolutions.items()}
        object.__setattr__(self, "task_resolutions", table)
        bounded("max_image_pixels", self.max_image_pixels, 1, PILLOW_MAX_PIXELS)
        bounded("max_image_bytes", self.max_image_bytes, 1, 2**31)


def _resolution(value: Any, *words: str) -> int | str:
    allowed = (NATIVE, *words)
    if value in allowed:
        return str(value)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 32 <= value <= 16384:
        raise ConfigError(
            f"resolution must be {', '.join(map(repr, allowed))} or a side from 32 to 16384 "
            f"pixels, not {value!r}"
        )
    return value
