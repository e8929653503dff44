"""Items and workloads: the images of one measurement and the questions asked about them."""

from __future__ import annotations

import functools
import hashlib
import html
import logging
import random
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from PIL import Image

from qvl_lab.config import digest
from qvl_lab.errors import InputError, WorkloadError
from qvl_lab.workloads.answer_hints import with_hint

DEFAULT_QUESTION = "Describe this image."

#: How the names of :meth:`Workload.repeating` end.
REPEATED = re.compile(r", \d+% repeated")

#: How the names of :meth:`Workload.with_answer_hints` end; packaged sets are loaded by them too.
HINTED = "+hints"

ImageLike = str | Path | bytes | Image.Image

#: Items that a notebook shows of a workload.
SHOWN = 5
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
log = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Item:
    """One request: an image and a question about it; the reference answer if it is known.

    Several reference answers, any of which is right, are a JSON list of texts in ``reference``.
    ``path`` names the file that the bytes in ``image`` were read from, for caches that know images
    by their path.
    """

    id: str
    image: ImageLike
    question: str = DEFAULT_QUESTION
    reference: str | None = None
    task: str | None = None
    path: str | None = None

    def __repr__(self) -> str:
        asked = textwrap.shorten(self.question, 60, placeholder="...")
        return f"<Item {self.id!r}: {_brief(self.image)}, {asked!r}>"


@dataclass(frozen=True, repr=False)
class Workload:
    """Items by name.

    ``errors`` lists what could not become an item, ``ignored`` the files that are no images. Ids
    are unique: of items that share one, the first keeps it, and the others become "b#2", "b#3".
    """

    name: str
    items: tuple[Item, ...]
    errors: tuple[dict[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ids = [item.id for item in self.items]
        names = unique(ids)
        renamed = [(old, new) for old, new in zip(ids, names, strict=True) if old != new]
        if not renamed:
            return
        pairs = zip(self.items, names, strict=True)
        items = tuple(i if i.id == name else replace(i, id=name) for i, name in pairs)
        object.__setattr__(self, "items", items)
        log.warning(
            "workload %r: %d repeated ids were renamed, such as %r to %r",
            *(self.name, len(renamed), *renamed[0]),
        )

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        tasks = len({item.task for item in self.items if item.task})
        counts = [(len(self), "items"), (tasks, "tasks"), (len(self.errors), "errors")]
        words = ", ".join(f"{count:,} {name}" for count, name in counts if count)
        return f"<Workload {textwrap.shorten(self.name, 80)!r}: {words}>"

    def _repr_html_(self) -> str:
        """The first items as a table."""
        import pandas as pd

        columns = ["id", "task", "question", "reference"]
        rows = [[getattr(item, name) for name in columns] for item in self.items[:SHOWN]]
        table = pd.DataFrame(rows, columns=columns).fillna("").to_html(index=False, border=0)
        more = f"<p>and {len(self) - SHOWN:,} more</p>" if len(self) > SHOWN else ""
        return f"<b>{html.escape(repr(self)[1:-1])}</b>{table}{more}"

    @functools.cached_property
    def contents(self) -> tuple[str, ...]:
        """A digest of each item's image bytes, computed once."""
        by_image = {id(item.image): item.image for item in self.items}
        digests = {key: _content(image) for key, image in by_image.items()}
        return tuple(digests[id(item.image)] for item in self.items)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the content: ids, questions, references, tasks and the images' bytes."""
        pairs = zip(self.items, self.contents, strict=True)
        return digest([[i.id, i.question, i.reference, i.task, content] for i, content in pairs])

    @property
    def images(self) -> int:
        """How many images the requests bring: different ones, about which several may ask.

        Where requests repeat earlier ones on purpose, each of them brings its own.
        """
        repeats = re.search(f"{REPEATED.pattern}$", self.name)
        return len(self.items) if repeats else len(set(self.contents))

    def sample(self, count: int | None, seed: int = 0) -> Self:
        """``count`` items drawn without replacement, in their old order; None keeps all.

        Tasks keep their shares, as far as whole items allow.
        """
        if count is None or count >= len(self.items):
            return self
        by_task: dict[str | None, list[int]] = {}
        for index, item in enumerate(self.items):
            by_task.setdefault(item.task, []).append(index)
        rng = random.Random(seed)
        shares = _shares([len(indices) for indices in by_task.values()], count)
        drawn = zip(by_task.values(), shares, strict=True)
        chosen = sorted(i for indices, share in drawn for i in rng.sample(indices, share))
        return replace(self, items=tuple(self.items[i] for i in chosen))

    def distinct(self) -> Self:
        """The first item of every different image, in order."""
        first = {content: i for i, content in reversed(list(enumerate(self.contents)))}
        return replace(self, items=tuple(self.items[i] for i in sorted(first.values())))

    def repeating(self, hit_rate: float, *, same_question: bool = False, seed: int = 0) -> Self:
        """As many requests, a share of which repeats the image of an earlier one.

        All images are asked about equally often, as far as whole requests allow, in a shuffled
        order; the first request about an image is one of this workload. The reference
        of another question is not known. The name says the share: "mixed, 30% repeated".

        Parameters
        ----------
        hit_rate : float
            The share of requests that repeat, from 0 to under 1; what caches of unlimited size
            could hit.
        same_question : bool
            Repeat the question too; otherwise another one of the workload's is asked, numbered
            where those run out.
        seed : int
            Draws images and order.

        Raises
        ------
        WorkloadError
            If the share is out of bounds, too small or too large for so few requests, or there
            are too few different images.
        """
        repeats, images = self._split(hit_rate)
        rng = random.Random(seed)
        originals = rng.sample(images, len(self.items) - repeats)
        order = list(range(len(originals)))
        order += [i % len(originals) for i in range(repeats)]
        rng.shuffle(order)
        pool = list(dict.fromkeys(item.question for item in self.items))
        asked = [0] * len(originals)
        items = []
        for i in order:
            items.append(_again(originals[i], asked[i], pool, same_question))
            asked[i] += 1
        name = f"{self.name}, {100 * hit_rate:.0f}% repeated"
        return replace(self, name=name, items=tuple(items))

    def with_answer_hints(self) -> Self:
        """The same items with a sentence behind each question that says how to answer it.

        For models that follow instructions, and answer bare questions in sentences. The embedded
        model knows its questions by their wording and is lost with a hint. The name says it:
        "evaluation+hints".
        """
        items = tuple(
            replace(item, question=with_hint(item.question, item.reference)) for item in self.items
        )
        return replace(self, name=f"{self.name}{HINTED}", items=items)

    def _split(self, hit_rate: float) -> tuple[int, tuple[Item, ...]]:
        """How many requests repeat at a hit rate, and the items to draw the others from."""
        number = isinstance(hit_rate, int | float) and not isinstance(hit_rate, bool)
        if not number or not 0 <= hit_rate < 1:
            raise WorkloadError(f"a hit rate must be from 0 to under 1, not {hit_rate!r}")
        count = len(self.items)
        repeats = round(hit_rate * count)
        if repeats == count or (hit_rate and not repeats):
            raise WorkloadError(
                f"a hit rate of {hit_rate:g} cannot be made of {count} requests, of which one or "
                "more must repeat and one or more must not; use more items"
            )
        images = self.distinct().items
        if len(images) < count - repeats:
            raise WorkloadError(
                f"a hit rate of {hit_rate:g} in {count} requests needs {count - repeats} different "
                f"images, and workload {self.name!r} has {len(images)}; use distinct(), or fewer "
                "items, or more images"
            )
        return repeats, images

    def info(self) -> dict[str, Any]:
        """Name, fingerprint and counts, as a run records them."""
        tasks: dict[str, int] = {}
        for item in self.items:
            tasks[item.task or "none"] = tasks.get(item.task or "none", 0) + 1
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "items": len(self.items),
            "unique_images": len(set(self.contents)),
            "images": self.images,
            "with_reference": sum(i.reference is not None for i in self.items),
            "tasks": tasks,
        }


def unique(names: Sequence[str]) -> list[str]:
    """Names in their order, repeated ones numbered: b, b#2, b#3; a name in use is left out."""
    taken, next_number = set(names), dict.fromkeys(names, 1)
    result = []
    for name in names:
        number = next_number[name]
        while number > 1 and f"{name}#{number}" in taken:
            number += 1
        next_number[name] = number + 1
        result.append(name if number == 1 else f"{name}#{number}")
    return result


def refuse_url(image: object) -> None:
    """Raise an InputError if what should be an image is a web address or a data URL."""
    if isinstance(image, str) and _URL.match(image):
        shown = image if len(image) <= 80 else f"{image[:77]}..."
        raise InputError(f"{shown} is a URL, which is not read: download it and give the file")


def _brief(image: ImageLike) -> str:
    """An image in a few words."""
    if isinstance(image, Image.Image):
        return f"{image.width} x {image.height} px"
    return f"{len(image):,} bytes" if isinstance(image, bytes) else str(image)


def _again(original: Item, nth: int, pool: Sequence[str], same_question: bool) -> Item:
    """The item that asks about an image for the ``nth`` time, counted from 0."""
    if not nth:
        return original
    name = f"{original.id} again {nth}"
    if same_question:
        return replace(original, id=name)
    others = [question for question in pool if question != original.question]
    question = others[nth - 1] if nth <= len(others) else f"{original.question} ({nth + 1})"
    return replace(original, id=name, question=question, reference=None)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """``count`` split like ``sizes``, the largest remainders rounded up."""
    exact = [count * size / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def _content(image: ImageLike) -> str:
    """A digest of an image's bytes; what cannot be read has one too."""
    if isinstance(image, Image.Image):
        data = image.tobytes() + repr((image.mode, image.size)).encode()
        return hashlib.sha256(data).hexdigest()[:16]
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()[:16]
    try:
        if not Path(image).is_file():  # a device or a pipe might never end
            return "no regular file"
        with Path(image).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except (OSError, ValueError):
        return "unreadable"
