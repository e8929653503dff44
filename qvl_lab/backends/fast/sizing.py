"""How large the fast engine's cache is, and how many sequences run at once, for given work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import psutil
import torch

from qvl_lab.backends.fast.model.qwen3_vl import MODEL_TYPES
from qvl_lab.config import AUTO, Fast
from qvl_lab.errors import ConfigError, ModelError
from qvl_lab.models.load import LoadedModel, read_architecture

#: The share of free memory that a cache may take where ``kv_cache_gib`` does not say.
MOST_OF_FREE = 0.6


@dataclass(frozen=True)
class CacheSize:
    """``slots`` sequences of at most ``max_model_len`` tokens, and ``num_tokens`` for all."""

    slots: int
    num_tokens: int
    max_model_len: int


def runs_fast(model: str) -> bool:
    """Whether the fast engine knows a model's family; False where its config cannot be read."""
    try:
        return read_architecture(model).model_type in MODEL_TYPES
    except (ConfigError, ModelError):
        return False


def size_cache(lengths: Iterable[int], spec: Fast, budget: int) -> CacheSize:
    """The cache for sequences of these lengths, in tokens of prompt and answer.

    Parameters
    ----------
    spec : Fast
        ``batch_size="auto"`` takes as many slots as the longest sequences fill the budget with, at
        most ``Fast.AUTO_BATCH_SIZE`` and one for each sequence. With ``kv_cache_gib`` neither size
        depends on the sequences, so that an engine and its prefixes are kept: all of the budget is
        used, and ``"auto"`` is ``Fast.AUTO_BATCH_SIZE``. Otherwise the cache has what the longest
        sequences need, twice that if prefixes are kept.
    budget : int
        Most tokens of the cache.
    """
    block = spec.block_size
    whole = sorted((-(-n // block) * block for n in lengths), reverse=True)
    copies = 2 if spec.prefix_cache else 1
    needed = [copies * tokens for tokens in accumulate(whole)]
    slots = spec.most_at_once
    if spec.batch_size == AUTO and spec.kv_cache_gib is None:
        slots = max(1, sum(tokens <= budget for tokens in needed[: spec.most_at_once]))
    wanted = needed[min(slots, len(needed)) - 1]
    num_tokens = budget if spec.kv_cache_gib is not None else min(wanted, budget)
    return CacheSize(slots, num_tokens, min(whole[0], num_tokens))


def token_budget(loaded: LoadedModel, spec: Fast, held_tokens: int = 0) -> int:
    """Tokens that a cache may have: as ``kv_cache_gib`` says, or a share of free memory.

    Parameters
    ----------
    held_tokens : int
        Tokens of a cache that is in memory already and would be given back.
    """
    per_token = loaded.kv_bytes_per_token
    if spec.kv_cache_gib is not None:
        return int(spec.kv_cache_gib * 2**30 / per_token)
    return held_tokens + int(MOST_OF_FREE * free_bytes(loaded.device) / per_token)


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nobody has taken."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
