"""Attention over packed sequences and over a key-value cache in blocks.

Sequences of any lengths lie one after another, without padding. On a GPU in half precision torch's
variable-length flash attention takes them in one call, or, if all are of one length, cuDNN's
attention, which is faster but prepares itself anew for each shape (on one H200, eight images of
4096 patches: 1.6 ms a layer against 2.7). Elsewhere each run of equal lengths is one call of
scaled dot product attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

varlen_attn: Any = None
with suppress(ImportError):  # before torch 2.10
    from torch.nn.attention.varlen import varlen_attn  # type: ignore[no-redef]
#: Since torch 2.12 key-value heads fewer than heads have to be announced.
_ANNOUNCED = varlen_attn is not None and "enable_gqa" in signature(varlen_attn).parameters

#: The fastest first; what takes neither shape nor type is passed over.
_BACKENDS = [
    *(SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
]


@dataclass(frozen=True)
class Lengths:
    """Of the sequences in a packed batch.

    Attributes
    ----------
    queries, keys : tuple of int
        Tokens of each sequence; with ``causal`` the last query sees all keys of its sequence, the
        one before it one fewer.
    starts : tuple of Tensor or None
        Where sequences begin among queries and keys, (sequences + 1,) int32 on the GPU.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    causal: bool
    starts: tuple[Tensor, Tensor] | None = None

    @property
    def equal(self) -> bool:
        """Whether there are several sequences, all of one length, and nothing before them."""
        lengths = {*self.queries, *self.keys}
        return len(self.queries) > 1 and len(lengths) == 1

    @classmethod
    def of(
        cls,
        queries: list[int],
        keys: list[int] | None = None,
        *,
        causal: bool,
        put: Callable[[list[int], torch.dtype], Tensor] | None = None,
    ) -> Lengths:
        """Lengths of sequences; ``put`` brings a list to the GPU, and is None on a CPU."""
        keys = queries if keys is None else keys
        starts = None
        if put is not None:
            starts = (put(_sums(queries), torch.int32), put(_sums(keys), torch.int32))
        return cls(tuple(queries), tuple(keys), causal, starts)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    """Every sequence attends to itself.

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
    if lengths.starts is not None and varlen_attn is not None and q.dtype != torch.float32:
        return (_equal if lengths.equal else _flash)(q, k, v, lengths, scale)
    out = torch.empty_like(q)
    for queries, keys, n_q, n_k in _runs(lengths):
        rows = _rows(q[queries], n_q), _rows(k[keys], n_k), _rows(v[keys], n_k)
        out[queries] = _sdpa(*rows, lengths.causal, scale).flatten(0, 1)
    return out


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, length: Tensor, scale: float
) -> Tensor:
    """One query a sequence attends to the first ``length`` tokens in its blocks.

    Parameters
    ----------
    q : Tensor
        (sequences, heads, size).
    k, v : Tensor
        (blocks, block size, key-value heads, size).
    table : Tensor
        (sequences, most blocks of a sequence): which blocks, in order.
    length : Tensor
        (sequences,).

    Returns
    -------
    Tensor
        Shaped as ``q``.
    """
    size = q.shape[-1]
    fits = q.is_cuda and size >= 16 and not size & (size - 1)  # a power of two
    kernels = triton_kernels("paged_attention") if fits else None
    if kernels is not None:
        out: Tensor = kernels.block_attention(q, k, v, table, length, scale)
        return out
    return gathered_attention(q, k, v, table, length, scale)


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, length: Tensor, scale: float
) -> Tensor:
    """As :func:`block_attention`, on keys and values copied together first."""
    kv_heads, size = k.shape[2:]
    found = (t.index_select(0, table.flatten()) for t in (k, v))  # by whole blocks
    # (sequences, kv heads, tokens, size)
    keys, values = (t.view(len(q), -1, kv_heads, size).transpose(1, 2) for t in found)
    seen = torch.arange(keys.shape[2], device=q.device) < length[:, None]
    grouped = q.view(len(q), kv_heads, -1, size)  # the group's heads as queries of their kv head
    out = functional.scaled_dot_product_attention(
        grouped, keys, values, seen[:, None, None], scale=scale
    )
    return out.flatten(1, 2)


@cache
def triton_kernels(module: str) -> Any:
    """A module of our Triton kernels, None where there is no Triton."""
    with suppress(ImportError):
        return import_module(f"qvl_lab.backends.fast.kernels.{module}")
    return None


def _flash(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    assert lengths.starts is not None
    options: dict[str, Any] = {"scale": scale}
    if lengths.causal:
        options["window_size"] = (-1, 0)
    if _ANNOUNCED and k.shape[1] != q.shape[1]:
        options["enable_gqa"] = True
    longest = max(lengths.queries), max(lengths.keys)
    out: Tensor = varlen_attn(q, k, v, *lengths.starts, *longest, **options)
    return out


def _equal(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, scale: float) -> Tensor:
    length, grouped = lengths.queries[0], k.shape[1] != q.shape[1]
    q, k, v = (_rows(t, length).transpose(1, 2) for t in (q, k, v))
    with sdpa_kernel(_BACKENDS, set_priority=True):
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=lengths.causal, scale=scale, enable_gqa=grouped
        )
    return out.transpose(1, 2).flatten(0, 1)


def _runs(lengths: Lengths) -> Iterator[tuple[slice, slice, int, int]]:
    """Neighbours of equal lengths: their queries, their keys, and the lengths of each."""
    first_q = first_k = 0
    for (n_q, n_k), run in groupby(zip(lengths.queries, lengths.keys, strict=True)):
        count = len(list(run))
        end_q, end_k = first_q + count * n_q, first_k + count * n_k
        yield slice(first_q, end_q), slice(first_k, end_k), n_q, n_k
        first_q, first_k = end_q, end_k


def _rows(packed: Tensor, length: int) -> Tensor:
    return packed.view(-1, length, *packed.shape[1:])


def _sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Sequences of equal lengths, (sequences, tokens, heads, size)."""
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


def _sums(lengths: list[int]) -> list[int]:
    sums = [0]
    for length in lengths:
        sums.append(sums[-1] + length)
    return sums
