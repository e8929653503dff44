"""The vision tower between its matrix products, as Triton kernels.

Its sizes fit general kernels badly (rows of 1152, heads of 72), and its images have millions of
values a layer, so that each trip through memory counts. A program keeps a row in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_norm(
    x: Tensor, more: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """``x + more``, (rows, size), and its layer normalisation."""
    size = x.shape[1]
    total = x if more is None else torch.empty_like(x)
    out = torch.empty_like(x)
    _add_norm[(len(x),)](
        x, x if more is None else more, weight, bias, total, out, size, eps,
        MORE=more is not None, TILE=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip
    return total, out


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Queries and keys of patches with rotary position embedding, (patches, 2, heads, size).

    Parameters
    ----------
    qkv : Tensor
        (patches, 3 * heads * size).
    cos, sin : Tensor
        (patches, size).
    """
    patches, size = cos.shape
    out = torch.empty(patches, 2, heads, size, dtype=qkv.dtype, device=qkv.device)
    _rotate[(patches,)](
        qkv, cos.contiguous(), sin.contiguous(), out, qkv.shape[1], 2 * heads,
        SIZE=size, HEADS=triton.next_power_of_2(2 * heads), TILE=triton.next_power_of_2(size),
        num_warps=4,
    )  # fmt: skip
    return out


@triton.jit
def _add_norm(
    x, more, weight, bias, total, out, size, eps, MORE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    row, places = tl.program_id(0).to(tl.int64), tl.arange(0, TILE)
    there = places < size
    at = row * size + places
    values = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    if MORE:
        values += tl.load(more + at, mask=there, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=there)
        values = rounded.to(tl.float32)
    mean = tl.sum(values, 0) / size
    apart = tl.where(there, values - mean, 0.0)
    spread = tl.rsqrt(tl.sum(apart * apart, 0) / size + eps)
    w = tl.load(weight + places, mask=there, other=0.0).to(tl.float32)
    b = tl.load(bias + places, mask=there, other=0.0).to(tl.float32)
    tl.store(out + at, (apart * spread * w + b).to(out.dtype.element_ty), mask=there)


@triton.jit
def _rotate(
    qkv, cos, sin, out, row_size, heads,
    SIZE: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0).to(tl.int64)
    head, place = tl.arange(0, HEADS)[:, None], tl.arange(0, TILE)[None, :]
    there = (head < heads) & (place < SIZE)
    half = SIZE // 2
    other = tl.where(place < half, place + half, place - half)  # the one that it turns with
    source = qkv + patch * row_size + head * SIZE
    values = tl.load(source + place, mask=there, other=0.0).to(tl.float32)
    partner = tl.load(source + other, mask=there, other=0.0).to(tl.float32)
    c = tl.load(cos + patch * SIZE + place, mask=place < SIZE, other=0.0).to(tl.float32)
    s = tl.load(sin + patch * SIZE + place, mask=place < SIZE, other=0.0).to(tl.float32)
    turned = values * c + tl.where(place < half, -partner, partner) * s
    target = out + patch * heads * SIZE + head * SIZE + place
    tl.store(target, turned.to(out.dtype.element_ty), mask=there)
