"""Attention over packed sequences and blocks, beside a loop with a softmax written out."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from qvl_lab.backends.fast.model import attention
from qvl_lab.backends.fast.model.attention import (
    Lengths,
    block_attention,
    gathered_attention,
    packed_attention,
)

EXACT = {"atol": 2e-6, "rtol": 1e-5}
#: Rounding to bf16 is off by up to 2**-8 of a number; weights, of at most 1, and results of up to
#: 3 are rounded.
ROUGH = {"atol": 0.02, "rtol": 0.02}
#: Query heads, key-value heads, size: plain, grouped, one key-value head for all.
SHAPES = [(5, 5, 32), (8, 4, 32), (6, 1, 24)]


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """One sequence, (tokens, heads, size), a head and a query at a time."""
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        group = head * k.shape[1] // q.shape[1]
        for place in range(len(q)):
            seen = len(k) - (len(q) - 1 - place) * causal
            weights = (k[:seen, group] @ q[place, head] * scale).exp()
            out[place, head] = weights @ v[:seen, group] / weights.sum()
    return out


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed(
    queries: list[int], keys: list[int], shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    heads, kv_heads, size = shape
    kv = (sum(keys), kv_heads, size)
    return some(sum(queries), heads, size), some(*kv, seed=1), some(*kv, seed=2)


def one_by_one(
    q: Tensor, k: Tensor, v: Tensor, queries: list[int], keys: list[int], causal: bool, scale: float
) -> Tensor:
    parts = zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    return torch.cat([attend(*part, causal, scale) for part in parts])


def test_lengths_say_where_sequences_begin():
    asked = []

    def to_device(values: list[int], dtype: torch.dtype) -> Tensor:
        asked.append(dtype)
        return torch.tensor(values, dtype=dtype)

    lengths = Lengths.of([3, 1, 4], [3, 5, 4], causal=True, to_device=to_device)
    assert (lengths.queries, lengths.keys) == ((3, 1, 4), (3, 5, 4))
    assert [start.tolist() for start in lengths.cu_seqlens] == [[0, 3, 4, 8], [0, 3, 8, 12]]
    assert asked == [torch.int32] * 2
    alone = Lengths.of([2, 2], causal=False)
    assert (alone.keys, alone.cu_seqlens) == ((2, 2), None)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_every_sequence_attends_to_itself_alone(shape, causal):
    draw = random.Random(0)
    for _ in range(6):
        lengths = [draw.choice([1, 2, 7, 7, 12]) for _ in range(draw.randint(1, 7))]
        q, k, v = packed(lengths, lengths, shape)
        found = packed_attention(q, k, v, Lengths.of(lengths, causal=causal), 0.3)
        torch.testing.assert_close(
            found, one_by_one(q, k, v, lengths, lengths, causal, 0.3), **EXACT
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("causal", [False, True])
def test_later_parts_of_a_sequence_attend_to_all_before_them(shape, causal):
    draw = random.Random(1)
    for _ in range(6):
        queries = [draw.choice([1, 1, 3, 8]) for _ in range(draw.randint(1, 7))]
        keys = [n + draw.choice([0, 0, 1, 9]) for n in queries]
        q, k, v = packed(queries, keys, shape)
        found = packed_attention(q, k, v, Lengths.of(queries, keys, causal=causal), 0.3)
        torch.testing.assert_close(found, one_by_one(q, k, v, queries, keys, causal, 0.3), **EXACT)


def in_blocks(
    shape: tuple[int, int, int], lengths: list[int], size: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values in shuffled blocks, block table, lengths, and the true result."""
    heads, kv_heads, width = shape
    most = -(-max(lengths) // size) + 2  # two more than anybody needs
    blocks = torch.randperm(len(lengths) * most, generator=torch.Generator().manual_seed(3))
    block_table = blocks.view(len(lengths), most)
    kv = (len(blocks) + 1, size, kv_heads, width)
    k, v, q = some(*kv, seed=1), some(*kv, seed=2), some(len(lengths), heads, width)
    expected = []
    for row, length in enumerate(lengths):
        own = [half[block_table[row]].flatten(0, 1) for half in (k, v)]
        expected.append(attend(q[row : row + 1], *(half[:length] for half in own), False, 0.3))
        for half in (k, v):  # what lies behind the length must not matter
            rest = half[block_table[row]].flatten(0, 1)
            rest[length:] = 1e4 * (1 - 2 * (row % 2))
            half[block_table[row]] = rest.view(most, size, kv_heads, width)
    return q, k, v, block_table, torch.tensor(lengths), torch.cat(expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [[1], [3, 4, 5, 16, 1], [9, 9]])
def test_a_query_attends_to_the_tokens_in_its_blocks(shape, lengths):
    q, k, v, block_table, length, expected = in_blocks(shape, lengths)
    torch.testing.assert_close(
        block_attention(q, k, v, block_table, length, 0.3), expected, **EXACT
    )


def test_rows_may_share_blocks():
    q, k, v, block_table, length, _ = in_blocks((4, 2, 8), [9, 9])
    block_table[1, :2] = block_table[0, :2]
    found = block_attention(q, k, v, block_table, length, 0.3)
    for row in range(2):
        own = [half[block_table[row]].flatten(0, 1)[:9] for half in (k, v)]
        torch.testing.assert_close(found[row : row + 1], attend(q[row : row + 1], *own, False, 0.3))


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(4, 4, 72), (8, 2, 128)])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_attention_on_a_gpu_is_that_of_the_cpu(shape, causal, monkeypatch):
    def to_device(values: list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device="cuda")

    queries, keys = [1, 40, 40, 130], [1, 40, 97, 130]
    if not causal:
        keys = queries
    half = [t.bfloat16() for t in packed(queries, keys, shape)]
    scale = shape[2] ** -0.5
    expected = one_by_one(*(t.float() for t in half), queries, keys, causal, scale)
    lengths = Lengths.of(queries, keys, causal=causal, to_device=to_device)
    flash = attention.varlen_attn
    assert flash is not None
    for kernel in (flash, None):  # and as it is before torch 2.10
        monkeypatch.setattr(attention, "varlen_attn", kernel)
        found = packed_attention(*(t.cuda() for t in half), lengths, scale)
        torch.testing.assert_close(found.float().cpu(), expected, **ROUGH)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 8, 64), (8, 2, 128), (32, 8, 128)])
@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("run", [block_attention, gathered_attention])
def test_block_attention_on_a_gpu_is_that_of_the_cpu(shape, size, run):
    q, k, v, block_table, length, _ = in_blocks(shape, [1, 5, 64, 65, 300], size)
    half = [t.bfloat16() for t in (q, k, v)]
    expected = gathered_attention(*(t.float() for t in half), block_table, length, 0.1)
    found = run(*(t.cuda() for t in (*half, block_table, length)), 0.1)
    torch.testing.assert_close(found.float().cpu(), expected, **ROUGH)
