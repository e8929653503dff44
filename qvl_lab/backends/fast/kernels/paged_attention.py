"""Attention of one query a sequence over a key-value cache in blocks, as a Triton kernel.

A program takes one key-value head of one sequence, all queries of the head's group, and one part
of the sequence's tokens; it reads each key and value once, from whichever block it is in. A second
kernel joins the parts. Reading is what decoding costs, so nothing is copied together first.

The running maximum and sum are those of online softmax (Milakov and Gimelshein, 2018); taking the
tokens in parts is flash decoding (Dao et al., 2023).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: Tokens, and bytes of their keys, that a program reads at a time; programs wanted at least, so
#: that every unit has work. On one H200, 96 sequences of 1120 tokens: 128 tokens at a time
#: 3.96 TB/s, 64 3.54, 32 2.95.
TILE, TILE_BYTES, PROGRAMS = 128, 2**15, 256
#: Rows of a matrix product on tensor cores; a group of fewer heads is filled up.
LEAST_ROWS = 16
MOST_PARTS = 32


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, length: Tensor, scale: float
) -> Tensor:
    """As ``block_attention``; head size a power of two."""
    sequences, heads, size = q.shape
    kv_heads = k.shape[2]
    parts = min(MOST_PARTS, max(1, PROGRAMS // (sequences * kv_heads)))
    kind = q.dtype if parts == 1 else torch.float32
    found = torch.empty(parts, sequences, heads, size, dtype=kind, device=q.device)
    tops, sums = (
        torch.empty(parts, sequences, heads, dtype=torch.float32, device=q.device) for _ in range(2)
    )
    q, table, length = q.contiguous(), table.contiguous(), length.contiguous()
    group, tile = heads // kv_heads, min(TILE, TILE_BYTES // size // k.element_size())
    _part[(sequences, kv_heads, parts)](
        q, k, v, table, length, found, tops, sums,
        scale, table.shape[1], sequences,
        KV_HEADS=kv_heads, GROUP=group, ROWS=max(LEAST_ROWS, triton.next_power_of_2(group)),
        SIZE=size, BLOCK=k.shape[1], TILE=tile, PARTS=parts,
    )  # fmt: skip
    if parts == 1:
        return found[0]
    out = torch.empty_like(q)
    _join[(sequences, heads)](
        found, tops, sums, out, sequences, heads,
        SIZE=size, PARTS=parts, ROWS=triton.next_power_of_2(parts),
    )  # fmt: skip
    return out


@triton.jit
def _part(
    q, k, v, table, lengths, found, tops, sums, scale, width, sequences,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    sequence, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    share = tl.cdiv(tl.cdiv(length, PARTS), TILE) * TILE  # whole tiles
    first, stop = part * share, tl.minimum((part + 1) * share, length)
    rows, places, tokens = tl.arange(0, ROWS), tl.arange(0, SIZE), tl.arange(0, TILE)
    query = (sequence * KV_HEADS + head) * GROUP + rows
    mine = rows < GROUP
    at = tl.load(q + query[:, None] * SIZE + places[None, :], mask=mine[:, None], other=0.0)
    top = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    sum_ = tl.zeros((ROWS, SIZE), tl.float32)
    for start in range(first, stop, TILE):
        token = start + tokens
        there = token < stop
        block = tl.load(table + sequence * width + token // BLOCK, mask=there, other=0)
        row = (block.to(tl.int64) * BLOCK + token % BLOCK) * KV_HEADS + head
        cell = row[:, None] * SIZE + places[None, :]
        keys = tl.load(k + cell, mask=there[:, None], other=0.0)
        values = tl.load(v + cell, mask=there[:, None], other=0.0)
        scores = tl.dot(at, tl.trans(keys), input_precision="ieee") * scale
        scores = tl.where(there[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        fade = tl.exp(top - higher)
        total = total * fade + tl.sum(weights, 1)
        found_here = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        sum_ = sum_ * fade[:, None] + found_here
        top = higher
    out = (part * sequences * KV_HEADS + sequence * KV_HEADS + head) * GROUP + rows
    cell = out[:, None] * SIZE + places[None, :]
    if PARTS == 1:
        whole = sum_ / total[:, None]
        tl.store(found + cell, whole.to(found.dtype.element_ty), mask=mine[:, None])
    else:
        tl.store(found + cell, sum_, mask=mine[:, None])
        tl.store(tops + out, top, mask=mine)
        tl.store(sums + out, total, mask=mine)


@triton.jit
def _join(
    found, tops, sums, out, sequences, heads,
    SIZE: tl.constexpr, PARTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * heads + tl.program_id(1)
    parts, places = tl.arange(0, ROWS), tl.arange(0, SIZE)
    there = parts < PARTS
    at = parts * sequences * heads + row
    top = tl.load(tops + at, mask=there, other=-float("inf"))
    weight = tl.exp(top - tl.max(top, 0))  # the first part is never empty
    total = tl.sum(weight * tl.load(sums + at, mask=there, other=0.0), 0)
    cell = at[:, None] * SIZE + places[None, :]
    values = tl.load(found + cell, mask=there[:, None], other=0.0)
    joined = tl.sum(values * weight[:, None], 0) / total
    tl.store(out + row * SIZE + places, joined)
