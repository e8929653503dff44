"""How requests are batched and answered."""

from __future__ import annotations

from dataclasses import dataclass, fields

from qvl_lab.config.checks import bounded, member, positive
from qvl_lab.errors import ConfigError

ENGINES = ("stock", "fast")
CACHE_IMPLEMENTATIONS = (None, "dynamic", "static")
CACHE_KEYS = ("content", "path")
_POSITIVE = (
    *("memory_limit_gib", "kv_cache_gib", "encoder_cache_gib"),
    *("encoder_cache_dir_gib", "encoder_cache_max_age_s"),
)


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
    encoder_cache_gib : float, optional
        Fast engine: keep so much of the vision tower's features, so that an image asked about
        again is not decoded and seen again. None keeps none.
    encoder_cache_entries : int, optional
        Fast engine: at most so many images; the article's ``lru_cache`` has 100.
    encoder_cache_dir : str, optional
        Fast engine: a folder to keep features in as well, for other runs and processes.
    encoder_cache_dir_gib : float
        Fast engine: most that the folder holds.
    encoder_cache_max_age_s : float, optional
        Fast engine: older files in the folder are not used.
    cache_key : str
        Fast engine: ``"content"`` tells images by their bytes; ``"path"`` by their file's name
        alone, as the article does, and gives what is known of the old picture when a file changes.
    response_cache_entries : int
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
    encoder_cache_gib: float | None = None
    encoder_cache_entries: int | None = None
    encoder_cache_dir: str | None = None
    encoder_cache_dir_gib: float = 8.0
    encoder_cache_max_age_s: float | None = None
    cache_key: str = "content"
    response_cache_entries: int = 0
    max_queue_size: int = 65_536
    packing: bool = True
    overlap: bool = True
    cuda_graphs: bool = True
    fused_kernels: bool = True

    def __post_init__(self) -> None:
        member("engine", self.engine, ENGINES)
        member("cache_implementation", self.cache_implementation, CACHE_IMPLEMENTATIONS)
        bounded("batch_size", self.batch_size, 1, 4096)
        bounded("max_new_tokens", self.max_new_tokens, 1, 32768)
        if self.min_new_tokens is not None:
            bounded("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        for name in _POSITIVE:
            if getattr(self, name) is not None:
                positive(name, getattr(self, name))
        bounded("prefill_chunk", self.prefill_chunk, 16, 2**20)
        bounded("block_size", self.block_size, 1, 1024)
        bounded("max_queue_size", self.max_queue_size, 1, 10**7)
        bounded("response_cache_entries", self.response_cache_entries, 0, 10**7)
        if self.encoder_cache_entries is not None:
            bounded("encoder_cache_entries", self.encoder_cache_entries, 1, 10**7)
        member("cache_key", self.cache_key, CACHE_KEYS)
        for name in ("prefix_cache", "packing", "overlap", "cuda_graphs", "fused_kernels"):
            member(name, getattr(self, name), (True, False))
        if self.encoder_cache_gib is None and (
            self.encoder_cache_dir or self.encoder_cache_entries is not None
        ):
            raise ConfigError(
                "encoder_cache_dir and encoder_cache_entries need encoder_cache_gib, the memory "
                "that features may take"
            )
        if self.engine == "fast" and self.cache_implementation is not None:
            raise ConfigError(
                "cache_implementation is the stock engine's; the fast engine has its own cache"
            )


_ENGINE_FIELDS = tuple(f.name for f in fields(EngineSpec))
#: Fields that the stock engine does not look at.
FAST_ONLY = _ENGINE_FIELDS[_ENGINE_FIELDS.index("prefill_chunk") :]
