"""Caches: least recently used first out, bounded by bytes, on the device and on disk; their keys.

A key is a hash of everything that the cached value depends on, so a stale value is never found
rather than found and checked. Evicting only forgets: whoever still holds a value keeps it.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from huggingface_hub import try_to_load_from_cache
from PIL import Image

from qvl_lab.assets import asset
from qvl_lab.caching.disk import DiskTier
from qvl_lab.config import ModelSpec
from qvl_lab.errors import ConfigError, ImageError, ModelError
from qvl_lab.models.load import base_dtype, resolve
from qvl_lab.models.memory import out_of_memory
from qvl_lab.models.shapes import TINY

Value = TypeVar("Value")
#: Suffixes of the files that decide what a model computes: weights, settings, templates, code.
MODEL_FILES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".py"})
_EXIF_ORIENTATION = 0x0112


class Lru(Generic[Value]):
    """Values by key in memory; over budget, those that were not used for longest are forgotten.

    Parameters
    ----------
    max_bytes : int
        Bound on the sum of the sizes given to :meth:`put`.
    max_entries : int, optional
        Bound on their number.

    Attributes
    ----------
    bytes, evictions : int
        Size now; how many values had to make room so far.
    """

    def __init__(self, max_bytes: int, max_entries: int | None = None) -> None:
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.bytes = self.evictions = 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """The value of a key, which becomes the most recently used one; None if unknown."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: Value, bytes: int) -> None:
        """Keep a value of so many bytes, in place of the key's last; not one over the budget."""
        with self._lock:
            self.bytes -= self._values.pop(key, (None, 0))[1]
            if bytes > self.max_bytes:
                return
            self._values[key] = (value, bytes)
            self.bytes += bytes
            while self._too_much():
                self.bytes -= self._values.popitem(last=False)[1][1]
                self.evictions += 1

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def _too_much(self) -> bool:
        too_many = self.max_entries is not None and len(self._values) > self.max_entries
        return too_many or self.bytes > self.max_bytes


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """What a cache did so far.

    ``hits`` counts those on disk too, which ``disk_hits`` gives alone. ``bytes`` and ``disk_bytes``
    are what is held now; ``disk_bytes`` is 0 without a disk tier, or once it is off. ``saved_s`` is
    what the values that were found had taken to compute; ``disk_load_s``, what loading from disk
    took, is not yet taken off it.
    """

    hits: int = 0
    misses: int = 0
    disk_hits: int = 0
    evictions: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    saved_s: float = 0.0
    disk_load_s: float = 0.0

    @property
    def hit_rate(self) -> float | None:
        """Hits per request; None before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True)
class _Entry:
    tensors: dict[str, torch.Tensor]
    cost_s: float

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class TensorCache:
    """Named tensors by key: on ``device`` within a byte budget, and on disk if there is a tier.

    The tensors that come out are shared with the cache and must not be written to; nor those that
    went in. Where memory for a copy runs out, nothing is found or kept, and nothing is raised.

    Parameters
    ----------
    max_bytes, max_entries
        As for :class:`Lru`, of the memory tier.
    disk : DiskTier, optional
        Asked when the memory does not know a key.
    device : str or torch.device
        Where the memory tier is.
    """

    def __init__(
        self,
        max_bytes: int,
        max_entries: int | None = None,
        disk: DiskTier | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.disk, self.device = disk, torch.device(device)
        self._memory: Lru[_Entry] = Lru(max_bytes, max_entries)
        self._counts, self._lock = CacheStats(), threading.Lock()

    @property
    def stats(self) -> CacheStats:
        """Counts since the start, and sizes now; lists the disk tier's folder."""
        disk_bytes = self.disk.bytes if self.disk else 0
        evictions, held = self._memory.evictions, self._memory.bytes
        return replace(self._counts, evictions=evictions, bytes=held, disk_bytes=disk_bytes)

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a key, on ``device``; None if neither tier has them.

        What is found on disk is kept in memory from then on.
        """
        if (entry := self._memory.get(key)) is not None:
            self._count(hits=1, saved_s=entry.cost_s)
        elif (entry := self._from_disk(key)) is not None:
            self._count(hits=1, disk_hits=1, saved_s=entry.cost_s)
        else:
            self._count(misses=1)
            return None
        return dict(entry.tensors)

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], cost_s: float) -> None:
        """Keep tensors, which took ``cost_s`` seconds to compute.

        With a disk tier this waits for the device and for the disk, so call it where nothing else
        has to wait.
        """
        try:
            entry = _Entry({name: _own(t, self.device) for name, t in tensors.items()}, cost_s)
            self._memory.put(key, entry, entry.bytes)
            if self.disk:
                self.disk.save(key, entry.tensors, cost_s)
        except Exception as e:
            if not out_of_memory(e):
                raise

    def clear(self) -> None:
        """Forget what is in memory; the disk keeps its files, and the counts go on."""
        self._memory.clear()

    def _from_disk(self, key: str) -> _Entry | None:
        if self.disk is None:
            return None
        started = time.perf_counter()
        try:
            if (found := self.disk.load(key)) is None:
                return None
            entry = _Entry({name: t.to(self.device) for name, t in found[0].items()}, found[1])
        except Exception as e:  # what computes the value instead knows what to do without memory
            if not out_of_memory(e):
                raise
            return None
        self._memory.put(key, entry, entry.bytes)
        self._count(disk_load_s=time.perf_counter() - started)
        return entry

    def _count(self, **more: float) -> None:
        with self._lock:
            new: dict[str, Any] = {
                name: getattr(self._counts, name) + n for name, n in more.items()
            }
            self._counts = replace(self._counts, **new)


def _own(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, copied if it is a part of something larger that it would keep."""
    moved = tensor.detach().to(device)
    return moved.clone() if moved.untyped_storage().nbytes() > moved.nbytes else moved


def model_key(spec: ModelSpec) -> str:
    """What a model is, for keys of what it computes; call it once the model is loaded.

    Of a folder and of the embedded model the files' names, sizes and times of change count, of a
    hub id the commit that lies in the local hub cache. Random weights are drawn on their device,
    so for them it counts too.

    Raises
    ------
    ConfigError, PrecisionError
        If this machine lacks the device or the precision.
    ModelError
        If the name is neither a folder nor a possible hub id.
    """
    spec = resolve(spec)
    described = {
        "name": spec.model,
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
        "precision": spec.precision,
        "dtype": str(base_dtype(spec)),  # int8 computes in fp32 on a CPU and in bf16 on a GPU
        "attention": spec.attn_implementation,
        "weights": _weights(spec),
    }
    return _digest("model", json.dumps(described, sort_keys=True))


def image_key(image: bytes | Image.Image, size: tuple[int, int], model: str) -> str:
    """The key of an image as a model sees it, by content.

    Parameters
    ----------
    image : bytes or PIL image
        Encoded bytes; of a PIL image, what decides how it decodes counts. The same picture
        given in both ways has two keys.
    size : (int, int)
        Width and height in pixels that it is resized to.
    model : str
        From :func:`model_key`.

    Raises
    ------
    ImageError
        If a PIL image that was opened lazily cannot be decoded.
    """
    content = (b"encoded", image) if isinstance(image, bytes) else (b"pixels", *_pixels(image))
    return _digest("image", *content, *map(str, size), model)


def path_key(path: str, size: tuple[int, int], model: str) -> str:
    """The key of an image by its path alone, as in the article's ``lru_cache``.

    It saves reading the file, and has a flaw: when the file at that path changes, the key does
    not, and the features of the old picture are found. :func:`image_key` does not have it.
    """
    return _digest("path", path, *map(str, size), model)


def answer_key(image: str, question: str, options: Mapping[str, object]) -> str:
    """The key of a whole answer.

    Parameters
    ----------
    image : str
        From :func:`image_key`, so it stands for the model too.
    question : str
        The prompt.
    options : mapping
        Whatever else decides on the answer, in values that JSON has; order does not matter.

    Raises
    ------
    ConfigError
        If an option is of another kind, of which nobody could say when two are equal.
    """
    try:
        text = json.dumps(dict(options), sort_keys=True)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"options must be text, numbers, lists or None to make a key: {e}") from e
    return _digest("answer", image, question, text)


def _digest(*parts: str | bytes) -> str:
    """SHA-256 over parts with their lengths, so that moving a border between two changes it."""
    total = sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def _pixels(image: Image.Image) -> tuple[str | bytes, ...]:
    """All that :func:`qvl_lab.workloads.decode.decode_image` looks at in a PIL image."""
    try:
        raw, palette = image.tobytes(), bytes(image.getpalette("RGBA") or ())
    except Exception as e:  # decoders fail on foreign bytes in many ways
        raise ImageError(f"cannot be decoded, truncated or damaged: {e}") from e
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block turns nothing
        orientation = 1
    transparency = image.info.get("transparency")
    return image.mode, str(image.size), raw, palette, repr(transparency), str(orientation)


def _weights(spec: ModelSpec) -> Any:
    """What tells two models of one name apart, ready for JSON."""
    if spec.model.startswith("random:"):
        on_gpu = spec.device.startswith("cuda")
        return [spec.seed, torch.cuda.get_device_name(spec.device) if on_gpu else "cpu"]
    folder = asset(TINY) if spec.model == TINY else Path(spec.model).expanduser()
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in MODEL_FILES)
        status = [(path.name, path.stat()) for path in files]
        return [[name, file.st_size, file.st_mtime_ns] for name, file in status]
    try:
        found = try_to_load_from_cache(spec.model, "config.json", revision=spec.revision or "main")
    except ValueError as e:
        raise ModelError(f"{spec.model} is neither a model folder nor a hub id: {e}") from e
    return Path(found).parent.name if isinstance(found, str) else None
