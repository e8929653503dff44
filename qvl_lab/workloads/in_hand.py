"""Images in hand, in whichever form they come: one or many, paths, bytes, pictures or arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from qvl_lab.errors import ConfigError, WorkloadError
from qvl_lab.workloads.items import ImageLike, Item, Workload, unique

#: Anything that gives images one after the other, or is one.
Images = Workload | Iterable[ImageLike | Item] | ImageLike | Item
#: A question for all images, or for each image one or several.
Prompts = str | Iterable[str | Iterable[str]]


def images_in_hand(images: Images) -> list[ImageLike | Item]:
    """One image or many as a list.

    Parameters
    ----------
    images : path, bytes, PIL image, array, item, or an iterable of them
        Lists, tuples, generators such as ``Path.glob``, pandas Series and numpy arrays of paths
        are iterables. An array of (height, width, 3) uint8 is an image, red first.

    Raises
    ------
    WorkloadError
        If something is no image; it says which, and what to give.
    """
    if isinstance(images, Workload):
        return list(images.items)
    if hasattr(images, "columns"):
        raise WorkloadError("a table is not an image; give load_workload(table).items, or a column")
    if _is_one(images):
        return [_image(0, images)]
    if not isinstance(images, Iterable):
        _image(0, images)
    return [_image(index, image) for index, image in enumerate(images)]  # type: ignore[arg-type]


def items_in_hand(
    images: Images, prompts: Prompts | None = None, tasks: str | Iterable[str | None] | None = None
) -> list[Item]:
    """Images with a question and a task each.

    Parameters
    ----------
    prompts : str or iterable, optional
        One question for all images; one each; or for each image a list of its own. For a single
        image, a list of questions about it. Without it items keep theirs, and other images are to
        be described.
    tasks : str or iterable of str, optional
        One for all images, or one each.

    Returns
    -------
    list of Item
        One for each question, in order. An image's id is its file's name, or the whole path where
        two files have the same name; "image 3" where it has no name. Repeated ones are numbered.

    Raises
    ------
    ConfigError
        If there are not as many prompts or tasks as images.
    WorkloadError
        As :func:`images_in_hand`.
    """
    pictures = images_in_hand(images)
    if _is_one(images) and prompts is not None and not isinstance(prompts, str):
        prompts = [_questions(prompts)]
    questions = _one_each("prompts", prompts, len(pictures))
    kinds = _one_each("tasks", tasks, len(pictures))
    asked = []
    for label, picture, given, task in zip(
        _labels(pictures), pictures, questions, kinds, strict=True
    ):
        item = picture if isinstance(picture, Item) else Item(label, picture)
        item = item if task is None else replace(item, task=task)
        if given is None:
            asked.append(item)
        else:
            asked += [replace(item, question=question) for question in _questions(given)]
    names = unique([item.id for item in asked])
    return [replace(i, id=n) if i.id != n else i for i, n in zip(asked, names, strict=True)]


def _is_one(images: object) -> bool:
    """Whether this is an image; an array is one if it holds numbers in rows and columns."""
    if isinstance(images, str | bytes | PathLike | Image.Image | Item):
        return True
    return _is_array(images) and images.ndim in (2, 3) and images.dtype.kind in "buif"  # type: ignore[attr-defined]


def _is_array(value: object) -> bool:
    return hasattr(value, "__array_interface__") and hasattr(value, "ndim")


def _image(index: int, image: Any) -> ImageLike | Item:
    if isinstance(image, str | bytes | Path | Image.Image | Item):
        return image
    if isinstance(image, PathLike):
        return Path(image)
    if _is_array(image):
        colours = image.shape[2:]
        if image.dtype != "uint8" or image.ndim not in (2, 3) or colours not in ((), (3,), (4,)):
            raise WorkloadError(
                f"image {index} is an array of {image.dtype} {image.shape}; give uint8 (height, "
                "width, 3), red first"
            )
        return Image.fromarray(image)
    raise WorkloadError(
        f"image {index} is of type {type(image).__name__}; give a path, bytes, a PIL image or an "
        "array of uint8 (height, width, 3)"
    )


def _labels(images: Sequence[ImageLike | Item]) -> list[str]:
    """Ids of items; file names, or whole paths where different paths have the same name."""
    paths = {Path(image) for image in images if isinstance(image, str | Path)}
    shared = Counter(path.name for path in paths)
    labels = []
    for index, image in enumerate(images):
        if isinstance(image, Item):
            labels.append(image.id)
        elif not isinstance(image, str | Path):
            labels.append(f"image {index}")
        else:
            path = Path(image)
            labels.append(path.name if shared[path.name] == 1 else path.as_posix())
    return labels


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    if value is None or isinstance(value, str):
        return [value] * count
    values = list(value)
    if len(values) != count:
        several = "; for several questions about an image, a list of them in its place"
        raise ConfigError(
            f"{len(values)} {name} for {count} image{'s' * (count != 1)}; give one for all, or one "
            f"each{several * (name == 'prompts')}"
        )
    return values


def _questions(given: Any) -> list[str]:
    """The questions about one image."""
    questions = [given] if isinstance(given, str) or not isinstance(given, Iterable) else [*given]
    for question in questions:
        if not isinstance(question, str):
            raise ConfigError(f"a prompt must be text, not {question!r}")
    return questions
