"""Attention over packed sequences and over a key-value cache in blocks.

Sequences of any lengths are packed one after another, without padding. On a GPU in half precision
torch's variable-length flash attention takes them in one call. If all have one length, cuDNN's
attention takes them, which is faster but prepares itself anew for each shape (on one H200, eight
images of 4096 patches: 1.6 ms a layer against 2.7). Elsewhere each run of equal lengths is one call
of scaled dot product attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import signature
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

varlen_attn: Any = None
with suppress(ImportError):  # before torch 2.10
    from torch.nn.attention.varlen import varlen_attn  # type: ignore[no-redef]
#: Since torch 2.12 ``varlen_attn`` has to be told that there are fewer key-value heads than heads.
_HAS_GQA_OPTION = varlen_attn is not None and "enable_gqa" in signature(varlen_attn).parameters

#: In order of speed; torch passes over those that do not support the shape or dtype.
_BACKENDS = [
    *(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
]


@dataclass(frozen=True)
class Lengths:
    """Lengths of the sequences in a packed batch.

    Attributes
    ----------
    queries, keys : tuple of int
        Tokens of each sequence. With ``causal`` the last query sees all keys of its sequence, the
        one before it one key fewer.
    cu_seqlens : tuple of Tensor or None
        Cumulative lengths of queries and of keys, (sequences + 1,) int32 each; None on a CPU.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    causal: bool
    cu_seqlens: tuple[Tensor, Tensor] | None = None

    @property
    def equal(self) -> bool:
        """Whether there are several sequences, all of one length, without earlier context."""
        lengths = {*self.queries, *self.keys}
        return len(self.queries) > 1 and len(lengths) == 1

    @classmethod
    def of(
        cls,
        queries: list[int],
        keys: list[int] | None = None,
        *,
        causal: bool,
        to_device: Callable[[list[int], torch.dtype], Tensor] | None = None,
    ) -> Lengths:
        """Describe sequences; ``to_device`` makes a tensor on the GPU, and is None on a CPU."""
        keys = queries if keys is None else keys
        cu_seqlens = None
        if to_device is not None:
            cu_seqlens = (
                to_device(_cumulative(queries), torch.int32),
                to_device(_cumulative(keys), torch.int32),
            )
        return cls(tuple(queries), tuple(keys), causal, cu_seqlens)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """Attention within each sequence of a packed batch.

    Parameters
    ----------
    q : Tensor
        (queries of all sequences, heads, size).
    k, v : Tensor
        (keys of all sequences, key-value heads, size).

    Returns
    -------
    Tensor
        Shaped as ``q``.
    """
    if lengths.cu_seqlens is not None and varlen_attn is not None and q.dtype != torch.float32:
        return (_equal_lengths if lengths.equal else _varlen)(q, k, v, lengths, scale)
    out = torch.empty_like(q)
    for queries, keys, n_q, n_k in _runs(lengths):
        batch = _batched(q[queries], n_q), _batched(k[keys], n_k), _batched(v[keys], n_k)
        out[queries] = _sdpa(*batch, lengths.causal, scale).flatten(0, 1)
    return out


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, length: Tensor, scale: float
) -> Tensor:
    """Attention of one query a sequence over the first ``length`` tokens in its blocks.

    Parameters
    ----------
    q : Tensor
        (sequences, heads, size).
    k, v : Tensor
        (blocks, block size, key-value heads, size).
    block_table : Tensor
        (sequences, max blocks of a sequence): the blocks of each sequence, in order.
    length : Tensor
        (sequences,): cached tokens of each sequence.

    Returns
    -------
    Tensor
        Shaped as ``q``.
    """
    size = q.shape[-1]
    fits = q.is_cuda and size >= 16 and not size & (size - 1)  # a power of two
    kernels = triton_kernels("paged_attention") if fits else None
    if kernels is not None:
        out: Tensor = kernels.block_attention(q, k, v, block_table, length, scale)
        return out
    return gathered_attention(q, k, v, block_table, length, scale)


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, length: Tensor, scale: float
) -> Tensor:
    """Compute :func:`block_attention` on keys and values gathered from the blocks first."""
    kv_heads, size = k.shape[2:]
    gathered = (t.index_select(0, block_table.flatten()) for t in (k, v))  # by whole blocks
    # (sequences, kv heads, tokens, size)
    keys, values = (t.view(len(q), -1, kv_heads, size).transpose(1, 2) for t in gathered)
    mask = torch.arange(keys.shape[2], device=q.device) < length[:, None]
    grouped = q.view(len(q), kv_heads, -1, size)  # the group's heads as queries of their kv head
    out = functional.scaled_dot_product_attention(
        grouped, keys, values, mask[:, None, None], scale=scale
    )
    return out.flatten(1, 2)


@cache
def triton_kernels(module: str) -> Any:
    """A module of our Triton kernels; None where Triton is not installed."""
    with suppress(ImportError):
        return import_module(f"qvl_lab.backends.fast.kernels.{module}")
    return None


def _varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    assert lengths.cu_seqlens is not None
    options: dict[str, Any] = {"scale": scale}
    if lengths.causal:
        options["window_size"] = (-1, 0)
    if _HAS_GQA_OPTION and k.shape[1] != q.shape[1]:
        options["enable_gqa"] = True
    max_lengths = max(lengths.queries), max(lengths.keys)
    out: Tensor = varlen_attn(q, k, v, *lengths.cu_seqlens, *max_lengths, **options)
    return out


def _equal_lengths(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    length, grouped = lengths.queries[0], k.shape[1] != q.shape[1]
    q, k, v = (_batched(t, length).transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(_BACKENDS, set_priority=True):
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=lengths.causal, scale=scale, enable_gqa=grouped
        )
    return out.transpose(1, 2).flatten(0, 1)


def _runs(lengths: Lengths) -> Iterator[tuple[slice, slice, int, int]]:
    """Runs of sequences with equal lengths: slices of queries and of keys, and both lengths."""
    first_q = first_k = 0
    for (n_q, n_k), run in groupby(zip(lengths.queries, lengths.keys, strict=True)):
        count = len(list(run))
        end_q, end_k = first_q + count * n_q, first_k + count * n_k
        yield slice(first_q, end_q), slice(first_k, end_k), n_q, n_k
        first_q, first_k = end_q, end_k


def _batched(packed: Tensor, length: int) -> Tensor:
    """View packed sequences of one length as (sequences, length, heads, size)."""
    return packed.view(-1, length, *packed.shape[1:])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Scaled dot product attention of (sequences, tokens, heads, size)."""
    n_q, n_k = q.shape[1], k.shape[1]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if (groups := q.shape[1] // k.shape[1]) > 1:
        k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    mask = None
    if causal and n_q not in (1, n_k):  # later queries of a longer sequence
        mask = torch.ones(n_q, n_k, dtype=torch.bool, device=q.device).tril(n_k - n_q)
    square = causal and n_q == n_k
    out = functional.scaled_dot_product_attention(q, k, v, mask, is_causal=square, scale=scale)
    return out.transpose(1, 2)


def _cumulative(lengths: list[int]) -> list[int]:
    return [0, *accumulate(lengths)]
