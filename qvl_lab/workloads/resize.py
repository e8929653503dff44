"""From a resolution policy to pixels to visual tokens.

Qwen3-VL cuts an image into 16-pixel patches and merges 2 x 2 of them into one visual token, so
a token stands for 32 x 32 pixels and both sides are multiples of 32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from PIL import Image

from qvl_lab.config import BY_TASK, NATIVE, ImagePolicy
from qvl_lab.errors import ImageError, UnknownNameError
from qvl_lab.tasks import BY_NAME, NO_TASK, find_task
from qvl_lab.workloads.decode import image_size, read_bytes
from qvl_lab.workloads.items import ImageLike

MAX_ASPECT_RATIO = 200


@dataclass(frozen=True)
class PixelLimits:
    """What a model's image processor is set to: sides in multiples of ``factor`` pixels."""

    min_pixels: int = 65_536
    max_pixels: int = 16_777_216
    factor: int = 32


def canonical_task(task: str, table: Iterable[str]) -> str:
    """The table's name for a task: its own name, else the article's kind that it belongs to.

    Raises
    ------
    UnknownNameError
        If the table has neither.
    """
    names = {name.strip().casefold(): name for name in table}
    known = find_task(task)
    for name in (task.strip().casefold(), *((known.name, known.article_kind) if known else ())):
        if name in names:
            return names[name]
    aliases = [alias for alias, of in BY_NAME.items() if {of.name, of.article_kind} & {*names}]
    raise UnknownNameError("task", task, dict.fromkeys([*names.values(), *aliases]))


def knows_task(task: str, table: Iterable[str]) -> bool:
    """Whether :func:`canonical_task` finds the task."""
    try:
        canonical_task(task, table)
    except UnknownNameError:
        return False
    return True


def resolution_for(policy: ImagePolicy, task: str | None) -> int | str:
    """The resolution of one item: a side in pixels or ``"native"``.

    Under ``"by_task"`` an item without a task stays native, which loses nothing, unless the table
    has an entry for the task "none".
    """
    if policy.resolution != BY_TASK:
        return policy.resolution
    if task is None:
        return policy.task_resolutions.get(NO_TASK, NATIVE)
    return policy.task_resolutions[canonical_task(task, policy.task_resolutions)]


def fit(
    width: int, height: int, min_pixels: int, max_pixels: int, factor: int = 32
) -> tuple[int, int]:
    """The (width, height) that an image is resized to.

    Sides are rounded to multiples of ``factor``; an image over ``max_pixels`` is scaled down and
    floored, one under ``min_pixels`` scaled up and ceiled, at its own aspect ratio. Source: the
    ``smart_resize`` of transformers' Qwen2-VL image processor. Unlike there, ``max_pixels`` also
    holds for long thin images and small budgets, by shortening the longer side.

    Raises
    ------
    ImageError
        If one side is more than 200 times the other.
    """
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(
            f"{width} x {height} is longer than {MAX_ASPECT_RATIO}:1; crop it or cut it into parts"
        )
    w, h = (round(side / factor) * factor for side in (width, height))
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        w, h = (max(factor, math.floor(s / shrink / factor) * factor) for s in (width, height))
    elif w * h < min_pixels:
        scale = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * scale / factor) * factor for side in (width, height))
    if w * h > max_pixels:
        longest = max(factor, max_pixels // min(w, h) // factor * factor)
        w, h = min(w, longest), min(h, longest)
    return w, h


def target_size(
    size: tuple[int, int], resolution: int | str, limits: PixelLimits | None = None
) -> tuple[int, int]:
    """The (width, height) in pixels of an image of ``size`` under a resolution."""
    limits = limits or PixelLimits()
    if resolution == NATIVE:
        return fit(*size, limits.min_pixels, limits.max_pixels, limits.factor)
    budget = min(int(resolution) ** 2, limits.max_pixels)
    return fit(*size, min(limits.min_pixels, budget), budget, limits.factor)


def visual_tokens(
    image: ImageLike | tuple[int, int],
    resolution: int | str = NATIVE,
    *,
    task: str | None = None,
    policy: ImagePolicy | None = None,
    limits: PixelLimits | None = None,
) -> int:
    """How many visual tokens an image costs, from its header alone.

    Parameters
    ----------
    image : path, bytes, PIL image or (width, height)
    resolution : int or str
        As in :class:`~qvl_lab.config.ImagePolicy`; ignored if ``policy`` is given.

    Raises
    ------
    ImageError
        If the image cannot be read or is over the policy's limits.
    """
    policy = policy or ImagePolicy(resolution=resolution)
    limits = limits or PixelLimits()
    size = image if isinstance(image, tuple) else image_size(read_bytes(image, policy), policy)
    w, h = target_size(size, resolution_for(policy, task), limits)
    return w * h // limits.factor**2


def resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Bicubic, as Qwen's processors do; by PIL, so that pixels do not depend on torchvision."""
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
