"""How requests are batched and answered: by transformers, or by the fast engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from qvl_lab.config.checks import bounded, member, positive
from qvl_lab.config.sampling import SamplingParams
from qvl_lab.errors import ConfigError

AUTO = "auto"
CACHE_IMPLEMENTATIONS = (None, "dynamic", "static")
CACHE_KEYS = ("content", "path")
_SWITCHES = ("prefix_cache", "packing", "overlap", "cuda_graphs", "fused_kernels")


@dataclass(frozen=True, kw_only=True)
class Transformers:
    """The stock backend: plain transformers, one padded batch after the other.

    Parameters
    ----------
    engine : str
        ``"stock"``, the name of this backend among flat settings.
    sampling : SamplingParams
        How tokens are chosen.
    batch_size : int or "auto"
        Requests per forward pass. 1 is the serial baseline, ``"auto"`` is 8.
    memory_limit_gib : float, optional
        Pretend that the device has only this much: the process may not take more. On a CPU this
        bounds the process's data segment.
    cache_implementation : str, optional
        None or ``"dynamic"``: the key-value cache grows. ``"static"``: fixed size; on CUDA the
        decode step is then compiled and replayed as a CUDA graph.
    """

    #: Requests per forward pass with ``batch_size="auto"``.
    AUTO_BATCH_SIZE: ClassVar[int] = 8

    engine: str = field(default="stock", init=False)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    batch_size: int | str = AUTO
    memory_limit_gib: float | None = None
    cache_implementation: str | None = None

    def __post_init__(self) -> None:
        _check_batch(self)
        member("cache_implementation", self.cache_implementation, CACHE_IMPLEMENTATIONS)

    @property
    def most_at_once(self) -> int:
        """Requests per forward pass as a number."""
        return _most_at_once(self)


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """What the fast engine remembers of images and answers between requests.

    Parameters
    ----------
    encoder_cache_gib : float, optional
        Memory for image features of the vision tower, so that an image asked about again is not
        decoded and encoded again. None keeps none.
    encoder_cache_entries : int, optional
        At most this many images; the article's ``lru_cache`` has 100.
    encoder_cache_dir : str, optional
        A folder to keep features in as well, for other runs and processes.
    encoder_cache_dir_gib : float
        Most that the folder holds.
    encoder_cache_max_age_s : float, optional
        Older files in the folder are not used.
    cache_key : str
        ``"content"`` tells images by their bytes; ``"path"`` by their file's name alone, as the
        article does, so that a changed file returns stale features.
    response_cache_entries : int
        Whole answers to keep, for the same question about the same image; with any, equal greedy
        requests that are on their way together are computed once.
    """

    encoder_cache_gib: float | None = None
    encoder_cache_entries: int | None = None
    encoder_cache_dir: str | None = None
    encoder_cache_dir_gib: float = 8.0
    encoder_cache_max_age_s: float | None = None
    cache_key: str = "content"
    response_cache_entries: int = 0

    def __post_init__(self) -> None:
        for name in ("encoder_cache_gib", "encoder_cache_max_age_s"):
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        positive("encoder_cache_dir_gib", self.encoder_cache_dir_gib)
        bounded("response_cache_entries", self.response_cache_entries, 0, 10**7)
        if self.encoder_cache_entries is not None:
            bounded("encoder_cache_entries", self.encoder_cache_entries, 1, 10**7)
        member("cache_key", self.cache_key, CACHE_KEYS)
        if self.encoder_cache_gib is None and (
            self.encoder_cache_dir or self.encoder_cache_entries is not None
        ):
            raise ConfigError(
                "encoder_cache_dir and encoder_cache_entries need encoder_cache_gib, the memory "
                "that features may take"
            )


@dataclass(frozen=True, kw_only=True)
class Fast:
    """The fast engine: continuous batching on the same weights, for Qwen3-VL.

    Parameters
    ----------
    engine : str
        ``"fast"``, the name of this backend among flat settings.
    sampling : SamplingParams
        How tokens are chosen, where a request does not say so itself.
    batch_size : int or "auto"
        Requests that run at once. ``"auto"``: as many as fit, at most 96.
    memory_limit_gib : float, optional
        Pretend that the device has only this much: the process may not take more. On a CPU this
        bounds the process's data segment.
    prefill_chunk : int
        Most prompt tokens prefilled between two decoding steps.
    block_size : int
        Tokens in a block of the key-value cache.
    kv_cache_gib : float, optional
        Size of the key-value cache. None: what the requests at hand need, as far as memory
        allows.
    prefix_cache : bool
        Keep the keys and values of images, so that another question about an image prefills its
        question alone.
    caches : CacheSettings
        The encoder cache and the response cache.
    max_queue_size : int
        Most requests that wait, for a slot or for an equal request's answer; one more is refused
        with a QueueFullError.
    packing : bool
        Several images and prompts in one pass. Off: one at a time.
    overlap : bool
        Decode images in threads, and launch a step before the last one's tokens are looked at.
        Off: one thing after the other.
    cuda_graphs : bool
        On CUDA: replay decoding steps of dense models as CUDA graphs.
    fused_kernels : bool
        On CUDA: normalisation, rotation, activation and sums are not operations of their own,
        but compiled together (language model), or Triton kernels and part of a product (vision
        tower).
    """

    #: Most requests that run at once with ``batch_size="auto"``; more were not seen to be faster.
    AUTO_BATCH_SIZE: ClassVar[int] = 96

    engine: str = field(default="fast", init=False)
    sampling: SamplingParams = field(default_factory=SamplingParams)
    batch_size: int | str = AUTO
    memory_limit_gib: float | None = None
    prefill_chunk: int = 8192
    block_size: int = 16
    kv_cache_gib: float | None = None
    prefix_cache: bool = False
    caches: CacheSettings = field(default_factory=CacheSettings)
    max_queue_size: int = 65_536
    packing: bool = True
    overlap: bool = True
    cuda_graphs: bool = True
    fused_kernels: bool = True

    def __post_init__(self) -> None:
        _check_batch(self)
        bounded("prefill_chunk", self.prefill_chunk, 16, 2**20)
        bounded("block_size", self.block_size, 1, 1024)
        if self.kv_cache_gib is not None:
            positive("kv_cache_gib", self.kv_cache_gib)
        bounded("max_queue_size", self.max_queue_size, 1, 10**7)
        for name in _SWITCHES:
            member(name, getattr(self, name), (True, False))

    @property
    def most_at_once(self) -> int:
        """The most requests that run at once."""
        return _most_at_once(self)


#: Whatever answers: one of the backends, with its settings.
EngineSpec = Transformers | Fast
#: The backends by the name that flat settings give them.
BACKENDS: dict[str, type[Transformers] | type[Fast]] = {"stock": Transformers, "fast": Fast}
ENGINES = tuple(BACKENDS)


def _check_batch(backend: EngineSpec) -> None:
    if backend.batch_size != AUTO:
        bounded("batch_size", backend.batch_size, 1, 4096, AUTO)
    if backend.memory_limit_gib is not None:
        positive("memory_limit_gib", backend.memory_limit_gib)


def _most_at_once(backend: EngineSpec) -> int:
    auto = backend.batch_size == AUTO
    return backend.AUTO_BATCH_SIZE if auto else int(backend.batch_size)
