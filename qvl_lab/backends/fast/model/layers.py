"""What lies between two attentions: functions of tensors alone.

On CUDA all that is not a matrix product is fused: normalisation, rotation, activation, residual
sums and the writing of the cache. The language model's functions are compiled, and serve all
layers and any number of tokens but one; the vision tower has kernels of its own, and its
activation is part of its product.

A layer hands on its output as two summands, so that the sum is taken where it is read anyway.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from qvl_lab.backends.fast.model.attention import triton_kernels
from qvl_lab.models.linear import (
    Matrix,
    MergedLinear,
    gelu_product,
    joined,
    matrix_of,
    product,
    products,
)

Angles = tuple[Tensor, Tensor]
Summands = tuple[Tensor, Tensor]


class Norm(NamedTuple):
    """Weights of a normalisation; without ``bias`` it is by the root of the mean square."""

    weight: Tensor
    bias: Tensor | None = None


class Attend(NamedTuple):
    """A decoder layer before its attention."""

    norm: Norm
    projections: MergedLinear
    q_norm: Norm
    k_norm: Norm


class Finish(NamedTuple):
    """A decoder layer after its attention; a mixture of experts has neither of the last two."""

    out: Matrix
    norm: Norm
    gate_up: MergedLinear | None
    down: Matrix | None


class Look(NamedTuple):
    """A block of the vision tower."""

    before: Norm
    qkv: Matrix
    out: Matrix
    after: Norm
    up: Matrix
    down: Matrix


class Functions:
    """The functions, fused or not.

    Each instance compiles copies of its own, since what is compiled belongs to the shapes of one
    model.

    Parameters
    ----------
    eps, tower_eps : float
        Of the language model's and of the tower's normalisation.
    fused : bool
    """

    def __init__(self, eps: float, tower_eps: float, fused: bool) -> None:
        wrap = _compiled if fused else _plain
        self.attend = wrap(attend, eps)
        self.finish = wrap(finish, eps)
        self.settle = wrap(settle, eps)
        quick = fused and _kernels() is not None
        self.look = _plain(quick_look if quick else look, tower_eps)
        self.see = _plain(quick_see if quick else see, tower_eps)


def attend(
    x: Tensor,
    more: Tensor,
    layer: Attend,
    angles: Angles,
    keys: Tensor,
    values: Tensor,
    places: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer's input, and queries, keys and values of tokens, each (tokens, heads, size).

    Keys and values are put at ``places`` of a layer's flat cache, (places, key-value heads, size).
    """
    size, x = keys.shape[-1], x + more
    found = products(normed(x, layer.norm, eps), layer.projections)
    q, k, v = (part.reshape(len(x), -1, size) for part in found)
    q, k = normed(q, layer.q_norm, eps), normed(k, layer.k_norm, eps)
    q, k = rotated(q, angles), rotated(k, angles)
    keys.index_copy_(0, places, k)
    values.index_copy_(0, places, v)
    return x, q, k, v


def finish(x: Tensor, attended: Tensor, layer: Finish, *, eps: float) -> Summands:
    """The output of a dense layer, from its input and what its attention found."""
    assert layer.gate_up is not None
    assert layer.down is not None
    x, y = settle(x, attended, layer, eps=eps)
    gate, up = products(y, layer.gate_up)
    return x, product(functional.silu(gate) * up, layer.down)


def settle(x: Tensor, attended: Tensor, layer: Finish, *, eps: float) -> Summands:
    """The sum after attention, and what the experts or the dense half get."""
    x = _sum(x, product(attended.flatten(1), layer.out))
    return x, normed(x, layer.norm, eps)


def look(
    x: Tensor, more: Tensor | None, block: Look, angles: Angles, *, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A block's input, and queries, keys and values of patches, each (patches, heads, size)."""
    size, x = angles[0].shape[-1], x if more is None else x + more
    qkv = product(normed(x, block.before, eps), block.qkv)
    q, k, v = qkv.view(len(x), 3, -1, size).unbind(1)
    return x, rotated(q, angles), rotated(k, angles), v


def see(x: Tensor, attended: Tensor, block: Look, *, eps: float) -> Summands:
    """The output of a block, from its input and what its attention found."""
    x = x + product(attended.flatten(1), block.out)
    y = product(normed(x, block.after, eps), block.up)
    return x, product(functional.gelu(y, approximate="tanh"), block.down)


def quick_look(
    x: Tensor, more: Tensor | None, block: Look, angles: Angles, *, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As :func:`look`."""
    x, y = _kernels().add_norm(x, more, *block.before, eps)
    qkv, size = product(y, block.qkv), angles[0].shape[-1]
    heads = qkv.shape[1] // size // 3
    q, k = _kernels().rotated(qkv, *angles, heads).unbind(1)
    return x, q, k, qkv.view(len(x), 3, heads, size)[:, 2]


def quick_see(x: Tensor, attended: Tensor, block: Look, *, eps: float) -> Summands:
    """As :func:`see`."""
    out = product(attended.flatten(1), block.out)
    x, y = _kernels().add_norm(x, out, *block.after, eps)
    return x, product(gelu_product(y, block.up), block.down)


def normed(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Normalised over the last dimension."""
    if norm.bias is None:
        return functional.rms_norm(x, norm.weight.shape, norm.weight, eps)
    return functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, eps)


def rotated(x: Tensor, angles: Angles) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of (tokens, heads, size); computed in fp32."""
    cos, sin = (part[:, None].float() for part in angles)
    first, second = x.float().chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (x.float() * cos + turned * sin).to(x.dtype)


def attend_weights(layer: Any) -> Attend:
    """Of a decoder layer of transformers; its projections become views of one matrix."""
    attention = layer.self_attn
    return Attend(
        Norm(layer.input_layernorm.weight),
        joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        Norm(attention.q_norm.weight),
        Norm(attention.k_norm.weight),
    )


def finish_weights(layer: Any) -> Finish:
    """Of a decoder layer of transformers; gate and up projection become views of one matrix."""
    out, norm = matrix_of(layer.self_attn.o_proj), Norm(layer.post_attention_layernorm.weight)
    if not hasattr(layer.mlp, "gate_proj"):
        return Finish(out, norm, None, None)
    gate_up = joined([layer.mlp.gate_proj, layer.mlp.up_proj])
    return Finish(out, norm, gate_up, matrix_of(layer.mlp.down_proj))


def look_weights(block: Any) -> Look:
    """Of a block of transformers' vision tower."""
    return Look(
        Norm(block.norm1.weight, block.norm1.bias),
        matrix_of(block.attn.qkv),
        matrix_of(block.attn.proj),
        Norm(block.norm2.weight, block.norm2.bias),
        matrix_of(block.mlp.linear_fc1),
        matrix_of(block.mlp.linear_fc2),
    )


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """Of the same numbers as ``x + y``.

    The compiler would let a matrix product add ``x``, which has to be copied first.
    """
    return (x.float() + y.float()).to(x.dtype) if torch.compiler.is_compiling() else x + y


def _kernels() -> Any:
    """The tower's Triton kernels, None where there is no Triton."""
    return triton_kernels("vision")


def _plain(function: Callable[..., Any], eps: float) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments, eps=eps)


def _compiled(function: Callable[..., Any], eps: float) -> Callable[..., Any]:
    """Compiled for any number of tokens, the first dimension of the first arguments.

    A single token would be compiled for itself; it goes uncompiled.
    """
    own = types.FunctionType(function.__code__.replace(), function.__globals__)
    own.__kwdefaults__ = {"eps": eps}
    compiled = torch.compile(own)

    def call(x: Tensor, *arguments: Any) -> Any:
        if len(x) == 1:
            return function(x, *arguments, eps=eps)
        for tensor in _tensors(x, arguments):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(x, *arguments)

    return call


def _tensors(x: Tensor, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Those that have a row for each token."""
    flat = [x]
    for argument in arguments:
        parts = argument if type(argument) is tuple else (argument,)
        flat += [p for p in parts if isinstance(p, Tensor) and len(p) == len(x)]
    return flat
