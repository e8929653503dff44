"""Images and questions: reading workloads, and decoding images that nobody vouches for.

A workload is a folder of images, a CSV or JSONL file with the columns image, question, answer,
task (paths relative to the file), or the name of a packaged set. Files are only listed here;
bytes are read when an item is used, and one bad image never stops the others.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import random
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from qvl_lab.assets import asset
from qvl_lab.config import ImagePolicy, digest
from qvl_lab.errors import ImageError, UnknownNameError, WorkloadError

DEFAULT_QUESTION = "Describe this image."
PACKAGED = ("evaluation", "mixed")
COLUMNS = ("id", "image", "question", "answer", "task")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ""})
#: Decoders that may run on foreign bytes. Formats that start other programs are not among them.
DECODERS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    BmpImagePlugin.BmpImageFile,
    GifImagePlugin.GifImageFile,
    TiffImagePlugin.TiffImageFile,
)
FORMATS = tuple(decoder.format for decoder in DECODERS)
MAX_ITEMS = 1_000_000

#: How the names of :meth:`Workload.repeating` end.
REPEATED = re.compile(r", \d+% repeated")

ImageLike = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Item:
    """One request: an image and a question about it; the answer if it is known."""

    id: str
    image: ImageLike
    question: str = DEFAULT_QUESTION
    answer: str | None = None
    task: str | None = None


@dataclass(frozen=True)
class Workload:
    """Items by name.

    ``errors`` lists what could not become an item, ``ignored`` the files that are no images.
    """

    name: str
    items: tuple[Item, ...]
    errors: tuple[dict[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @functools.cached_property
    def contents(self) -> tuple[str, ...]:
        """A digest of each item's image bytes, computed once."""
        by_image = {id(item.image): item.image for item in self.items}
        digests = {key: _content(image) for key, image in by_image.items()}
        return tuple(digests[id(item.image)] for item in self.items)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Names the content: ids, questions, answers, tasks and the images' bytes."""
        pairs = zip(self.items, self.contents, strict=True)
        return digest([[i.id, i.question, i.answer, i.task, content] for i, content in pairs])

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
        order; the first request about an image is one of this workload. Answers to another
        question are not known. The name says the share: "mixed, 30% repeated".

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
            "with_answer": sum(i.answer is not None for i in self.items),
            "tasks": tasks,
        }


def load_workload(
    source: str | Path | Workload | Sequence[ImageLike],
    *,
    question: str | None = None,
    task: str | None = None,
) -> Workload:
    """Read a workload.

    Parameters
    ----------
    source : str, Path, Workload or sequence of images
        ``"mixed"`` or another packaged set, a folder (searched with its subfolders), an image,
        a CSV or JSONL file, or images in hand.
    question, task : str, optional
        For items that bring none of their own.

    Raises
    ------
    WorkloadError
        If nothing in it can be used. Single bad rows are listed in ``errors`` instead.
    """
    if isinstance(source, Workload):
        return source
    defaults: dict[str, Any] = {"question": question or DEFAULT_QUESTION, "task": task}
    if not isinstance(source, str | Path):
        items = tuple(Item(_label(im, i), im, **defaults) for i, im in enumerate(source))
        return _not_empty(Workload("images", items))
    if str(source) in PACKAGED:
        source = asset(f"data/{source}") / f"{source}.jsonl"
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, defaults)
    if path.suffix.lower() in (".csv", ".jsonl"):
        return _from_table(path, defaults)
    if path.is_file():
        return Workload(path.name, (Item(path.name, path, **defaults),))
    if path.parent == Path() and not path.suffix:
        raise UnknownNameError("workload, folder or file", str(source), PACKAGED)
    raise WorkloadError(f"{path} does not exist; give a folder, a .csv, a .jsonl or an image")


def _again(original: Item, nth: int, pool: Sequence[str], same_question: bool) -> Item:
    """The item that asks about an image for the ``nth`` time, counted from 0."""
    if not nth:
        return original
    name = f"{original.id} again {nth}"
    if same_question:
        return replace(original, id=name)
    others = [question for question in pool if question != original.question]
    question = others[nth - 1] if nth <= len(others) else f"{original.question} ({nth + 1})"
    return replace(original, id=name, question=question, answer=None)


def _shares(sizes: Sequence[int], count: int) -> list[int]:
    """``count`` split like ``sizes``, the largest remainders rounded up."""
    exact = [count * size / sum(sizes) for size in sizes]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    return shares


def read_bytes(image: ImageLike, policy: ImagePolicy) -> bytes | Image.Image:
    """An image's encoded bytes, read from disk if need be; PIL images pass through.

    Raises
    ------
    ImageError
        If the file cannot be read, is empty, or is over ``policy.max_image_bytes``.
    """
    if isinstance(image, Image.Image):
        return image
    try:
        if not isinstance(image, bytes) and Path(image).exists() and not Path(image).is_file():
            raise ImageError("not a regular file")
        size = len(image) if isinstance(image, bytes) else Path(image).stat().st_size
        if size == 0:
            raise ImageError("the file is empty")
        if size > policy.max_image_bytes:
            raise ImageError(
                f"{size:,} bytes is over the limit of {policy.max_image_bytes:,}; "
                "raise max_image_bytes if the file can be trusted"
            )
        return image if isinstance(image, bytes) else Path(image).read_bytes()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        why = getattr(e, "strerror", None) or e
        raise ImageError(f"cannot read the file: {why}") from e


def decode_image(image: bytes | Image.Image, policy: ImagePolicy) -> Image.Image:
    """Encoded bytes to an upright RGB image.

    The size in the header is checked before anything is decoded. EXIF rotation is applied,
    transparency is laid over white, 16-bit samples are scaled to 8, of an animation the first
    frame is used.

    Raises
    ------
    ImageError
        If the bytes are no image, are truncated, or are over ``policy.max_image_pixels``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = _open(image, policy)
            opened.load()
            return _to_rgb(_upright(opened))
    except ImageError:
        raise
    except (MemoryError, RecursionError) as e:
        raise ImageError(f"decoding ran out of memory ({type(e).__name__})") from e
    except Exception as e:  # decoders fail on foreign bytes in many ways
        raise ImageError(f"cannot be decoded, truncated or damaged: {e}") from e


def image_size(image: bytes | Image.Image, policy: ImagePolicy) -> tuple[int, int]:
    """Upright (width, height) in pixels from the header alone; raises as :func:`decode_image`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = _open(image, policy)
        turned = _turned(opened, image)
    return opened.size[::-1] if turned else opened.size


def _turned(opened: Image.Image, encoded: bytes | Image.Image) -> bool:
    """Whether EXIF swaps width and height, without decoding the pixels."""
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        return False  # Pillow turns a TIFF itself and gives its upright size
    if isinstance(opened, PngImagePlugin.PngImageFile) and isinstance(encoded, bytes):
        # Pillow decodes a whole PNG to look for EXIF behind its pixels
        marks = (b"eXIf", b"XML:com.adobe.xmp", b"Raw profile")
        if not any(mark in encoded for mark in marks):
            return False
    try:
        return opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception:  # a damaged EXIF block: the image itself may be fine
        return False


def _open(image: bytes | Image.Image, policy: ImagePolicy) -> Image.Image:
    if isinstance(image, Image.Image):
        opened = image
    else:
        try:
            opened = Image.open(io.BytesIO(image), formats=FORMATS)
        except Image.DecompressionBombError as e:
            raise ImageError(f"too many pixels: {e}") from e
        except UnidentifiedImageError as e:
            raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})") from e
        except Exception as e:
            raise ImageError(f"the header cannot be read: {e}") from e
    width, height = opened.size
    if not width * height:
        raise ImageError(f"{width} x {height}: the image has no pixels")
    if width * height > policy.max_image_pixels:
        raise ImageError(
            f"{width} x {height} = {width * height:,} pixels is over the limit of "
            f"{policy.max_image_pixels:,}; raise max_image_pixels if the file can be trusted"
        )
    return opened


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block: the pixels are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = image.convert("I").point(lambda v: v / 257).convert("L")  # 65535 is white
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_folder(folder: Path, defaults: dict[str, Any]) -> Workload:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not _hidden(p, folder)]
    names = [p.relative_to(folder).as_posix() for p in files]
    wanted = [(n, p) for n, p in zip(names, files, strict=True) if p.suffix.lower() in SUFFIXES]
    items = tuple(Item(name, path, **defaults) for name, path in wanted)
    ignored = tuple(sorted(set(names) - {name for name, _ in wanted}))
    return _not_empty(Workload(folder.resolve().name, items, ignored=ignored))


def _from_table(path: Path, defaults: dict[str, Any]) -> Workload:
    try:
        rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    except OSError as e:
        raise WorkloadError(f"cannot read {path}: {e.strerror}") from e
    items: list[Item] = []
    errors: list[dict[str, str]] = []
    for number, row in rows:
        try:
            items.append(_item(row, path.parent, f"{path.name}:{number}", defaults))
        except WorkloadError as e:
            errors.append({"id": f"{path.name}:{number}", "error": str(e)})
    repeated = len(items) - len({item.id for item in items})
    if repeated:
        items = [replace(item, id=f"{i}:{item.id}") for i, item in enumerate(items)]
    return _not_empty(Workload(path.stem, tuple(items), tuple(errors)))


def _csv_rows(path: Path) -> list[tuple[int, Any]]:
    rows: list[tuple[int, Any]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for row in reader:
                surplus = any(row.pop(None, ()))  # empty ones are trailing commas
                values = {k: v for k, v in row.items() if v}
                rows.append((reader.line_num, _SURPLUS if surplus else values))
    except (csv.Error, UnicodeDecodeError) as e:
        raise WorkloadError(f"{path} is not a readable CSV in UTF-8: {e}") from e
    return rows


_SURPLUS = "more values than columns; put quotes around a value that has a comma"


def _jsonl_rows(path: Path) -> list[tuple[int, Any]]:
    lines = path.read_bytes().splitlines()
    return [(number, _parsed(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as e:
        return f"not valid JSON: {e}"


def _item(row: Any, folder: Path, label: str, defaults: dict[str, Any]) -> Item:
    if not isinstance(row, dict):
        raise WorkloadError(row if isinstance(row, str) else f"not an object: {row!r}")
    values = {k: str(v) for k, v in row.items() if k in COLUMNS and v not in (None, "")}
    if "image" not in values:
        unknown = ", ".join(sorted(map(str, row))) or "nothing"
        raise WorkloadError(f"no column 'image' (allowed: {', '.join(COLUMNS)}); found {unknown}")
    path = Path(values.pop("image"))
    name = values.pop("id", None) or label
    return Item(name, path if path.is_absolute() else folder / path, **{**defaults, **values})


def _not_empty(workload: Workload) -> Workload:
    if len(workload.items) > MAX_ITEMS:
        raise WorkloadError(f"{len(workload.items):,} items are over the limit of {MAX_ITEMS:,}")
    if workload.items:
        return workload
    why = f": {workload.errors[0]['error']}" if workload.errors else ""
    raise WorkloadError(
        f"workload {workload.name!r} has no usable item{why}; "
        f"images end in {', '.join(sorted(s for s in SUFFIXES if s))}"
    )


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _label(image: ImageLike, index: int) -> str:
    return Path(image).name if isinstance(image, str | Path) else f"image {index}"


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
