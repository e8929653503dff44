"""What the vision tower computes between its matrix products, as Triton kernels.

The tower's sizes fit general kernels badly (rows of 1152, heads of 72), and its images have
millions of values a layer, so that each pass through memory counts. A program keeps a row in
registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute ``x + residual``, (rows, size), and the layer normalisation of the sum."""
    size = x.shape[1]
    total = x if residual is None else torch.empty_like(x)
    out = torch.empty_like(x)
    _add_norm[(len(x),)](
        x, x if residual is None else residual, weight, bias, total, out, size, eps,
        RESIDUAL=residual is not None, TILE=triton.next_power_of_2(size), num_warps=4,
    )  # fmt: skip
    return total, out


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Apply rotary position embedding to queries and keys, (patches, 2, heads, size).

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
    x, residual, weight, bias, total, out, size, eps, RESIDUAL: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, TILE)
    valid = columns < size
    offset = row * size + columns
    values = tl.load(x + offset, mask=valid, other=0.0).to(tl.float32)
    if RESIDUAL:
        values += tl.load(residual + offset, mask=valid, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + offset, rounded, mask=valid)
        values = rounded.to(tl.float32)
    mean = tl.sum(values, 0) / size
    centred = tl.where(valid, values - mean, 0.0)
    inverse_std = tl.rsqrt(tl.sum(centred * centred, 0) / size + eps)
    w = tl.load(weight + columns, mask=valid, other=0.0).to(tl.float32)
    b = tl.load(bias + columns, mask=valid, other=0.0).to(tl.float32)
    normed = centred * inverse_std * w + b
    tl.store(out + offset, normed.to(out.dtype.element_ty), mask=valid)


@triton.jit
def _rotate(
    qkv, cos, sin, out, row_size, heads,
    SIZE: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0).to(tl.int64)
    head, dim = tl.arange(0, HEADS)[:, None], tl.arange(0, TILE)[None, :]
    valid = (head < heads) & (dim < SIZE)
    half = SIZE // 2
    partner_dim = tl.where(dim < half, dim + half, dim - half)  # the other half of the rotated pair
    source = qkv + patch * row_size + head * SIZE
    values = tl.load(source + dim, mask=valid, other=0.0).to(tl.float32)
    partner = tl.load(source + partner_dim, mask=valid, other=0.0).to(tl.float32)
    c = tl.load(cos + patch * SIZE + dim, mask=dim < SIZE, other=0.0).to(tl.float32)
    s = tl.load(sin + patch * SIZE + dim, mask=dim < SIZE, other=0.0).to(tl.float32)
    turned = values * c + tl.where(dim < half, -partner, partner) * s
    target = out + patch * heads * SIZE + head * SIZE + dim
    tl.store(target, turned.to(out.dtype.element_ty), mask=valid)
