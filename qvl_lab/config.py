"""What to run: frozen settings, and TOML files to keep them in.

A configuration has three parts. :class:`ModelSpec` says which weights at which precision,
:class:`ImagePolicy` how many pixels an image may keep, :class:`EngineSpec` how the work is
batched and generated. Field names are unique over the three, so a sweep axis is just a name.
Nothing here loads a model or looks at the hardware.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from qvl_lab.errors import ConfigError, UnknownNameError

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")
ENGINES = ("stock", "fast")
CACHE_IMPLEMENTATIONS = (None, "dynamic", "static")
CACHE_KEYS = ("content", "path")
_POSITIVE = (
    *("memory_limit_gib", "kv_cache_gib", "feature_cache_gib"),
    *("feature_cache_dir_gib", "feature_cache_max_age_s"),
)
NATIVE, BY_TASK = "native", "by_task"

#: The article's table: side of a square pixel budget for each kind of task.
TASK_RESOLUTIONS: dict[str, int | str] = {
    "detection": 512,
    "description": 256,
    "fine_analysis": NATIVE,
}
#: Pillow refuses images of more pixels than this whatever we say.
PILLOW_MAX_PIXELS = 178_956_970


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which weights, where, at which precision.

    Parameters
    ----------
    model : str
        ``"tiny"``, ``"random:8b"`` (tiny, 2b, 4b, 8b, 32b, 30b-a3b, 235b-a22b), a folder, or a
        hub id.
    precision : str
        ``"fp32"``, ``"bf16"``, ``"fp16"``, ``"int8"`` (weights of the language model only),
        ``"fp8"`` (its weights and what is multiplied with them), or ``"auto"``: bf16 on a GPU
        that has it, fp32 on a CPU.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    revision : str, optional
        Branch, tag or commit of a hub model.
    trust_remote_code : bool
        Run code that comes with the model. Off unless asked for.
    attn_implementation : str, optional
        As in transformers; None leaves the choice to transformers.
    seed : int
        Seeds the weights of ``random:*``.
    """

    model: str = "tiny"
    precision: str = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _member("precision", self.precision, PRECISIONS)
        _member("trust_remote_code", self.trust_remote_code, (True, False))


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
    task_resolutions: Mapping[str, int | str] = field(
        default_factory=lambda: dict(TASK_RESOLUTIONS)
    )
    max_image_pixels: int = 80_000_000
    max_image_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolution", _resolution(self.resolution, BY_TASK))
        if not isinstance(self.task_resolutions, Mapping):
            given = self.task_resolutions
            raise ConfigError(f"task_resolutions must map tasks to resolutions, not {given!r}")
        table = {task: _resolution(value) for task, value in self.task_resolutions.items()}
        object.__setattr__(self, "task_resolutions", table)
        _bounded("max_image_pixels", self.max_image_pixels, 1, PILLOW_MAX_PIXELS)
        _bounded("max_image_bytes", self.max_image_bytes, 1, 2**31)


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """How requests are batched and answered. Generation options carry transformers' names.

    Parameters
    ----------
    engine : str
        ``"stock"``: plain transformers. ``"fast"``: continuous batching on the same weights, for
        Qwen3-VL.
    batch_size : int
        Requests per forward pass, for the fast engine those that run at once. 1 is the serial
        baseline.
    max_new_tokens : int
        Upper bound on the answer's length.
    min_new_tokens : int, optional
        Lower bound. None means 0, and ``max_new_tokens`` for random weights, whose answers
        would otherwise end at random.
    cache_implementation : str, optional
        None or ``"dynamic"``: the key-value cache grows. ``"static"``: fixed size; on CUDA the
        decode step is then compiled and replayed as a CUDA graph.
    memory_limit_gib : float, optional
        Pretend that the device has only this much: the process may not take more. On a CPU this
        bounds the process's data segment.
    prefill_chunk : int
        Fast engine: most prompt tokens read between two decoding steps.
    block_size : int
        Fast engine: tokens in a block of the key-value cache.
    kv_cache_gib : float, optional
        Fast engine: size of the key-value cache. None: what the requests at hand need, as far as
        memory allows.
    prefix_cache : bool
        Fast engine: keep the keys and values of images, so that another question about an image
        reads its question alone.
    feature_cache_gib : float, optional
        Fast engine: keep so much of the vision tower's features, so that an image asked about
        again is not decoded and seen again. None keeps none.
    feature_cache_entries : int, optional
        Fast engine: at most so many images; the article's ``lru_cache`` has 100.
    feature_cache_dir : str, optional
        Fast engine: a folder to keep features in as well, for other runs and processes.
    feature_cache_dir_gib : float
        Fast engine: most that the folder holds.
    feature_cache_max_age_s : float, optional
        Fast engine: older files in the folder are not used.
    cache_key : str
        Fast engine: ``"content"`` tells images by their bytes; ``"path"`` by their file's name
        alone, as the article does, and gives what is known of the old picture when a file changes.
    answer_cache_entries : int
        Fast engine: whole answers to keep, for the same question about the same image; with any,
        equal greedy requests that are on their way together are computed once.
    max_queue_size : int
        Fast engine: most requests that wait, for a slot or for an equal request's answer; one more
        is refused with a QueueFullError.
    packing : bool
        Fast engine: several images and prompts in one pass. Off: one at a time.
    overlap : bool
        Fast engine: decode images in threads, and launch a step before the last one's tokens are
        looked at. Off: one thing after the other.
    cuda_graphs : bool
        Fast engine on CUDA: replay decoding steps of dense models as CUDA graphs.
    fused_kernels : bool
        Fast engine on CUDA: normalisation, rotation, activation and sums are not operations of
        their own, but compiled together (language model), or Triton kernels and part of a product
        (vision tower).
    """

    engine: str = "stock"
    batch_size: int = 8
    max_new_tokens: int = 64
    min_new_tokens: int | None = None
    cache_implementation: str | None = None
    memory_limit_gib: float | None = None
    prefill_chunk: int = 8192
    block_size: int = 16
    kv_cache_gib: float | None = None
    prefix_cache: bool = False
    feature_cache_gib: float | None = None
    feature_cache_entries: int | None = None
    feature_cache_dir: str | None = None
    feature_cache_dir_gib: float = 8.0
    feature_cache_max_age_s: float | None = None
    cache_key: str = "content"
    answer_cache_entries: int = 0
    max_queue_size: int = 65_536
    packing: bool = True
    overlap: bool = True
    cuda_graphs: bool = True
    fused_kernels: bool = True

    def __post_init__(self) -> None:
        _member("engine", self.engine, ENGINES)
        _member("cache_implementation", self.cache_implementation, CACHE_IMPLEMENTATIONS)
        _bounded("batch_size", self.batch_size, 1, 4096)
        _bounded("max_new_tokens", self.max_new_tokens, 1, 32768)
        if self.min_new_tokens is not None:
            _bounded("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        _bounded("prefill_chunk", self.prefill_chunk, 16, 2**20)
        _bounded("block_size", self.block_size, 1, 1024)
        _bounded("max_queue_size", self.max_queue_size, 1, 10**7)
        _bounded("answer_cache_entries", self.answer_cache_entries, 0, 10**7)
        if self.feature_cache_entries is not None:
            _bounded("feature_cache_entries", self.feature_cache_entries, 1, 10**7)
        _member("cache_key", self.cache_key, CACHE_KEYS)
        for name in ("prefix_cache", "packing", "overlap", "cuda_graphs", "fused_kernels"):
            _member(name, getattr(self, name), (True, False))
        if self.feature_cache_gib is None and (
            self.feature_cache_dir or self.feature_cache_entries is not None
        ):
            raise ConfigError(
                "feature_cache_dir and feature_cache_entries need feature_cache_gib, the memory "
                "that features may take"
            )
        if self.engine == "fast" and self.cache_implementation is not None:
            raise ConfigError(
                "cache_implementation is the stock engine's; the fast engine has its own cache"
            )


_ENGINE_FIELDS = tuple(f.name for f in fields(EngineSpec))
#: Fields that the stock engine does not look at.
FAST_ONLY = _ENGINE_FIELDS[_ENGINE_FIELDS.index("prefill_chunk") :]

_PARTS: dict[str, type] = {"model": ModelSpec, "images": ImagePolicy, "engine": EngineSpec}
#: Every field a sweep can vary, and the part that it belongs to.
FIELDS: dict[str, str] = {f.name: part for part, cls in _PARTS.items() for f in fields(cls)}


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
        UnknownNameError
            If a name is no field of any part.
        """
        by_part: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
        for name, value in changes.items():
            if name not in FIELDS:
                raise UnknownNameError("field", name, FIELDS)
            by_part[FIELDS[name]][name] = value
        parts = {part: replace(getattr(self, part), **by_part[part]) for part in _PARTS}
        return replace(self, **parts)

    def flat(self) -> dict[str, Any]:
        """All fields of all parts in one dict, ready for JSON."""
        return {k: v for part in _PARTS for k, v in asdict(getattr(self, part)).items()}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`flat`; fields left out keep their defaults."""
        return cls().replace(**values)


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A grid of configurations over one workload, and how to measure each.

    Parameters
    ----------
    axes : mapping of str to sequence
        Field name to the values it takes; the grid is their product.
    base : Config
        The fields that do not vary.
    workload : str
        A packaged set, a folder, a CSV or a JSONL file.
    question : str, optional
        Asked about every image that brings no question of its own.
    items : int, optional
        Use only this many items (a seeded sample). None uses all of them.
    timed_items : int, optional
        Time only this many of them (a seeded sample, the same for every setting). If quality is
        measured, one more pass that is not timed answers all items.
    batches : int, optional
        Time at most this many batches per repeat, for long grids: small batches then see
        fewer items. Fair only if the items are alike.
    repeats : int
        Timed passes over the items.
    warmup : int
        Untimed batches before them, the largest first. The static cache warms up on all.
    seed : int
        Seeds the sample of items.
    timeout_s : float
        A configuration that takes longer is given up (process isolation only).
    quality : bool
        Score the answers of items whose answer is known. Random weights are never scored.
    metrics : mapping of str to str
        Task to metric, for tasks of your own; see ``metric_for``.
    isolation : str
        ``"process"``: each configuration in a process of its own, so that a crash stays there and
        memory peaks start from nothing. ``"none"``: all in this process.
    """

    axes: Mapping[str, Sequence[Any]]
    base: Config = field(default_factory=Config)
    workload: str = "mixed"
    question: str | None = None
    items: int | None = None
    timed_items: int | None = None
    batches: int | None = None
    repeats: int = 3
    warmup: int = 1
    seed: int = 0
    timeout_s: float = 3600.0
    quality: bool = True
    metrics: Mapping[str, str] = field(default_factory=dict)
    isolation: str = "process"

    def __post_init__(self) -> None:
        for name, values in self.axes.items():
            if name not in FIELDS:
                raise UnknownNameError("field", name, FIELDS)
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ConfigError(f"axis {name} needs a list of values, not {values!r}")
        _bounded("repeats", self.repeats, 1, 1000)
        _bounded("warmup", self.warmup, 0, 1000)
        for name in ("items", "timed_items", "batches"):
            if getattr(self, name) is not None:
                _bounded(name, getattr(self, name), 1, 10**9)
        _positive("timeout_s", self.timeout_s)
        _member("quality", self.quality, (True, False))
        if not isinstance(self.metrics, Mapping):
            raise ConfigError(f"metrics must map tasks to metrics, not {self.metrics!r}")
        _member("isolation", self.isolation, ("process", "none"))
        self.configurations()

    def configurations(self) -> list[Config]:
        """The grid, model by model, so that a loaded model is used for all of its settings."""
        part_order = list(_PARTS)
        names = sorted(self.axes, key=lambda name: part_order.index(FIELDS[name]))
        grid = itertools.product(*(self.axes[name] for name in names))
        configs = [self.base.replace(**dict(zip(names, values, strict=True))) for values in grid]
        return list({digest(c.flat()): c for c in configs}.values())

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read tables ``[sweep]``, ``[axes]`` and, for fixed fields, ``[fixed]``.

        Raises
        ------
        ConfigError
            If the file is missing, not TOML, or names an unknown table or field.
        """
        try:
            tables = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as e:
            raise ConfigError(f"cannot read {path}: {e.strerror}") from e
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path} is not valid TOML: {e}") from e
        for table in tables:
            _member("table", table, ("sweep", "axes", "fixed"))
            if not isinstance(tables[table], dict):
                raise ConfigError(f"{table} in {path} must be a table, [{table}]")
        options = dict(tables.get("sweep", {}))
        allowed = {f.name for f in fields(cls)} - {"axes", "base"}
        for name in options:
            _member("sweep option", name, allowed)
        base = Config().replace(**tables.get("fixed", {}))
        return cls(axes=tables.get("axes", {}), base=base, **options)

    def to_toml(self) -> str:
        """The same sweep as TOML text; fields at their defaults are left out.

        Raises
        ------
        ConfigError
            If an axis holds None, which TOML cannot say.
        """
        import tomli_w

        for name, values in self.axes.items():
            if None in values:
                raise ConfigError(f"axis {name} holds None, which TOML cannot say; name a value")
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["axes"], options["base"]
        defaults = {f.name: f.default for f in fields(self)} | {"metrics": {}}
        default_fields = Config().flat()
        tables = {
            "sweep": {k: v for k, v in options.items() if v is not None and v != defaults[k]},
            "axes": {name: list(values) for name, values in self.axes.items()},
            "fixed": {k: v for k, v in self.base.flat().items() if v != default_fields[k]},
        }
        return tomli_w.dumps({name: table for name, table in tables.items() if table})


def digest(value: Any) -> str:
    """A short, stable name (16 hex digits) for a JSON-like value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # file names that are not UTF-8 hold lone surrogates
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _member(kind: str, value: Any, allowed: Any) -> None:
    if value not in allowed:
        raise UnknownNameError(kind, value, (str(a) for a in allowed))


def _bounded(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not value > 0:
        raise ConfigError(f"{name} must be a number above 0, not {value!r}")


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
