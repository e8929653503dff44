"""Attention of one query a sequence over a key-value cache in blocks, as a Triton kernel.

A program computes one key-value head of one sequence, with all queries of the head's group, over
one part of the sequence's tokens. It reads each key and value once, from whichever block it is in.
A second kernel merges the parts. Decoding is bound by reading the cache, so keys and values are not
gathered into one tensor first.

The running maximum and sum are those of online softmax (Milakov and Gimelshein, 2018); taking the
tokens in parts is flash decoding (Dao et al., 2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Tokens, and bytes of their keys, that a program reads at a time, and the least number of programs
#: that keeps every multiprocessor busy. On one H200, 96 sequences of 1120 tokens: 128 tokens at a
#: time reach 3.96 TB/s, 64 tokens 3.54, 32 tokens 2.95.
TILE, TILE_BYTES, PROGRAMS = 128, 2**15, 256
#: Rows of a matrix product on tensor cores; a group of fewer heads is padded to them.
MIN_ROWS = 16
MAX_PARTS = 32


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, length: Tensor, scale: float
) -> Tensor:
    """Compute :func:`qvl_lab.backends.fast.model.attention.block_attention`.

    The head size has to be a power of two.
    """
    sequences, heads, size = q.shape
    kv_heads = k.shape[2]
    parts = min(MAX_PARTS, max(1, PROGRAMS // (sequences * kv_heads)))
    dtype = q.dtype if parts == 1 else torch.float32
    partial = torch.empty(parts, sequences, heads, size, dtype=dtype, device=q.device)
    maxima, sums = (
        torch.empty(parts, sequences, heads, dtype=torch.float32, device=q.device) for _ in range(2)
    )
    q, block_table, length = q.contiguous(), block_table.contiguous(), length.contiguous()
    group, tile = heads // kv_heads, min(TILE, TILE_BYTES // size // k.element_size())
    _attend_part[(sequences, kv_heads, parts)](
        q, k, v, block_table, length, partial, maxima, sums,
        scale, block_table.shape[1], sequences,
        KV_HEADS=kv_heads, GROUP=group, ROWS=max(MIN_ROWS, triton.next_power_of_2(group)),
        SIZE=size, BLOCK=k.shape[1], TILE=tile, PARTS=parts,
    )  # fmt: skip
    if parts == 1:
        return partial[0]
    out = torch.empty_like(q)
    _merge_parts[(sequences, heads)](
        partial, maxima, sums, out, sequences, heads,
        SIZE=size, PARTS=parts, ROWS=triton.next_power_of_2(parts),
    )  # fmt: skip
    return out


@triton.jit
def _attend_part(
    q, k, v, block_table, lengths, partial, maxima, sums, scale, max_blocks, sequences,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    part_length = tl.cdiv(tl.cdiv(length, PARTS), TILE) * TILE  # whole tiles
    first, stop = part * part_length, tl.minimum((part + 1) * part_length, length)
    rows, dims, tokens = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, TILE)
    query = (sequence * KV_HEADS + head) * GROUP + rows
    in_group = rows < GROUP
    queries = tl.load(q + query[:, None] * SIZE + dims[None, :], mask=in_group[:, None], other=0.0)
    maximum = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, SIZE), tl.float32)
    for start in range(first, stop, TILE):
        token = start + tokens
        valid = token < stop
        block = tl.load(block_table + sequence * max_blocks + token // BLOCK, mask=valid, other=0)
        row = (block.to(tl.int64) * BLOCK + token % BLOCK) * KV_HEADS + head
        offset = row[:, None] * SIZE + dims[None, :]
        keys = tl.load(k + offset, mask=valid[:, None], other=0.0)
        values = tl.load(v + offset, mask=valid[:, None], other=0.0)
        logits = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        logits = tl.where(valid[None, :], logits, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(logits, 1))
        weights = tl.exp(logits - new_maximum[:, None])
        decay = tl.exp(maximum - new_maximum)
        total = total * decay + tl.sum(weights, 1)
        product = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        weighted = weighted * decay[:, None] + product
        maximum = new_maximum
    out = (part * sequences * KV_HEADS + sequence * KV_HEADS + head) * GROUP + rows
    offset = out[:, None] * SIZE + dims[None, :]
    if PARTS == 1:
        mean = weighted / total[:, None]
        tl.store(partial + offset, mean.to(partial.dtype.element_ty), mask=in_group[:, None])
    else:
        tl.store(partial + offset, weighted, mask=in_group[:, None])
        tl.store(maxima + out, maximum, mask=in_group)
        tl.store(sums + out, total, mask=in_group)


@triton.jit
def _merge_parts(
    partial, maxima, sums, out, sequences, heads,
    SIZE: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * heads + tl.program_id(1)
    parts, dims = tl.arange(0, ROWS), tl.arange(0, SIZE)
    valid = parts < PARTS
    index = parts * sequences * heads + row
    maximum = tl.load(maxima + index, mask=valid, other=-float("inf"))
    weight = tl.exp(maximum - tl.max(maximum, 0))  # the first part is never empty
    total = tl.sum(weight * tl.load(sums + index, mask=valid, other=0.0), 0)
    offset = index[:, None] * SIZE + dims[None, :]
    values = tl.load(partial + offset, mask=valid[:, None], other=0.0)
    merged = tl.sum(values * weight[:, None], 0) / total
    tl.store(out + row * SIZE + dims, merged)
