"""The parts of a layer between two attentions, as functions of tensors alone.

On CUDA everything but the matrix products is fused: normalisation, rotation, activation, residual
sums and the writes into the cache. The language model's functions are compiled; what is compiled
serves all layers and any number of tokens but one. The vision tower has Triton kernels, and its
activation is part of its matrix product.

A layer returns its output as two summands, because the next function reads both anyway and can add
them as it does.
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
    LinearWeights,
    MergedLinear,
    gelu_linear,
    linear,
    linear_weights,
    merge,
    merged_linear,
)

CosSin = tuple[Tensor, Tensor]
Summands = tuple[Tensor, Tensor]


class Norm(NamedTuple):
    """Weights of a normalisation: a layer norm, or an RMS norm where there is no ``bias``."""

    weight: Tensor
    bias: Tensor | None = None


class InputWeights(NamedTuple):
    """Weights of a decoder layer before its attention."""

    norm: Norm
    qkv: MergedLinear
    q_norm: Norm
    k_norm: Norm


class OutputWeights(NamedTuple):
    """Weights of a decoder layer after its attention.

    ``gate_up`` and ``down`` are None in a mixture of experts, whose own module is called instead.
    """

    o_proj: LinearWeights
    norm: Norm
    gate_up: MergedLinear | None
    down: LinearWeights | None


class VisionWeights(NamedTuple):
    """Weights of a block of the vision tower."""

    norm1: Norm
    qkv: LinearWeights
    proj: LinearWeights
    norm2: Norm
    fc1: LinearWeights
    fc2: LinearWeights


class LayerFunctions:
    """The functions of this module with their epsilon bound, fused or plain.

    Each instance compiles copies of its own, since what is compiled belongs to the shapes of one
    model.

    Parameters
    ----------
    eps, vision_eps : float
        Epsilon of the language model's and of the vision tower's normalisations.
    fused : bool
    """

    def __init__(self, eps: float, vision_eps: float, fused: bool) -> None:
        wrap = _compiled if fused else _plain
        self.qkv_rope_store = wrap(qkv_rope_store, eps)
        self.o_proj_mlp = wrap(o_proj_mlp, eps)
        self.o_proj_norm = wrap(o_proj_norm, eps)
        triton = fused and _kernels() is not None
        self.vision_qkv_rope = _plain(
            triton_vision_qkv_rope if triton else vision_qkv_rope, vision_eps
        )
        self.vision_proj_mlp = _plain(
            triton_vision_proj_mlp if triton else vision_proj_mlp, vision_eps
        )


def qkv_rope_store(
    x: Tensor,
    residual: Tensor,
    weights: InputWeights,
    cos_sin: CosSin,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project and rotate queries, keys and values, and store keys and values in the cache.

    Parameters
    ----------
    x, residual : Tensor
        (tokens, hidden) each: the summands of the layer's input.
    cos_sin : (Tensor, Tensor)
        Cosine and sine of the rotary angles, (tokens, size) each.
    key_cache, value_cache : Tensor
        One layer's cache with its blocks flattened, (slots, key-value heads, size).
    slot_mapping : Tensor
        (tokens,): the slot of the cache that each token is stored in.

    Returns
    -------
    tuple of Tensor
        The layer's input, (tokens, hidden), then queries, keys and values, (tokens, heads, size).
    """
    size, x = key_cache.shape[-1], x + residual
    projected = merged_linear(normed(x, weights.norm, eps), weights.qkv)
    q, k, v = (part.reshape(len(x), -1, size) for part in projected)
    q, k = normed(q, weights.q_norm, eps), normed(k, weights.k_norm, eps)
    q, k = rotated(q, cos_sin), rotated(k, cos_sin)
    key_cache.index_copy_(0, slot_mapping, k)
    value_cache.index_copy_(0, slot_mapping, v)
    return x, q, k, v


def o_proj_mlp(x: Tensor, attended: Tensor, weights: OutputWeights, *, eps: float) -> Summands:
    """The output of a dense layer, from its input and its attention's output."""
    assert weights.gate_up is not None
    assert weights.down is not None
    x, y = o_proj_norm(x, attended, weights, eps=eps)
    gate, up = merged_linear(y, weights.gate_up)
    return x, linear(functional.silu(gate) * up, weights.down)


def o_proj_norm(x: Tensor, attended: Tensor, weights: OutputWeights, *, eps: float) -> Summands:
    """The residual stream after attention, and its normalisation, the input of MLP or experts."""
    x = _sum(x, linear(attended.flatten(1), weights.o_proj))
    return x, normed(x, weights.norm, eps)


def vision_qkv_rope(
    x: Tensor, residual: Tensor | None, weights: VisionWeights, cos_sin: CosSin, *, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Project and rotate queries, keys and values of patches, (patches, heads, size) each.

    The block's input, (patches, hidden), comes first.
    """
    size, x = cos_sin[0].shape[-1], x if residual is None else x + residual
    qkv = linear(normed(x, weights.norm1, eps), weights.qkv)
    q, k, v = qkv.view(len(x), 3, -1, size).unbind(1)
    return x, rotated(q, cos_sin), rotated(k, cos_sin), v


def vision_proj_mlp(x: Tensor, attended: Tensor, weights: VisionWeights, *, eps: float) -> Summands:
    """The output of a vision block, from its input and its attention's output."""
    x = x + linear(attended.flatten(1), weights.proj)
    y = linear(normed(x, weights.norm2, eps), weights.fc1)
    return x, linear(functional.gelu(y, approximate="tanh"), weights.fc2)


def triton_vision_qkv_rope(
    x: Tensor, residual: Tensor | None, weights: VisionWeights, cos_sin: CosSin, *, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute :func:`vision_qkv_rope` with Triton kernels."""
    x, y = _kernels().add_norm(x, residual, *weights.norm1, eps)
    qkv, size = linear(y, weights.qkv), cos_sin[0].shape[-1]
    heads = qkv.shape[1] // size // 3
    q, k = _kernels().rotated(qkv, *cos_sin, heads).unbind(1)
    return x, q, k, qkv.view(len(x), 3, heads, size)[:, 2]


def triton_vision_proj_mlp(
    x: Tensor, attended: Tensor, weights: VisionWeights, *, eps: float
) -> Summands:
    """Compute :func:`vision_proj_mlp` with Triton kernels."""
    out = linear(attended.flatten(1), weights.proj)
    x, y = _kernels().add_norm(x, out, *weights.norm2, eps)
    return x, linear(gelu_linear(y, weights.fc1), weights.fc2)


def normed(x: Tensor, norm: Norm, eps: float) -> Tensor:
    """Normalise over the last dimension."""
    if norm.bias is None:
        return functional.rms_norm(x, norm.weight.shape, norm.weight, eps)
    return functional.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, eps)


def rotated(x: Tensor, cos_sin: CosSin) -> Tensor:
    """Apply rotary position embedding (Su et al., 2021) to (tokens, heads, size), in fp32."""
    cos, sin = (part[:, None].float() for part in cos_sin)
    first, second = x.float().chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return (x.float() * cos + turned * sin).to(x.dtype)


def input_weights(layer: Any) -> InputWeights:
    """Weights of transformers' decoder layer; its projections become views of one tensor."""
    attention = layer.self_attn
    return InputWeights(
        Norm(layer.input_layernorm.weight),
        merge([attention.q_proj, attention.k_proj, attention.v_proj]),
        Norm(attention.q_norm.weight),
        Norm(attention.k_norm.weight),
    )


def output_weights(layer: Any) -> OutputWeights:
    """Weights of transformers' decoder layer; gate and up become views of one tensor."""
    o_proj = linear_weights(layer.self_attn.o_proj)
    norm = Norm(layer.post_attention_layernorm.weight)
    if not hasattr(layer.mlp, "gate_proj"):
        return OutputWeights(o_proj, norm, None, None)
    gate_up = merge([layer.mlp.gate_proj, layer.mlp.up_proj])
    return OutputWeights(o_proj, norm, gate_up, linear_weights(layer.mlp.down_proj))


def vision_weights(block: Any) -> VisionWeights:
    """Weights of a block of transformers' vision tower."""
    return VisionWeights(
        Norm(block.norm1.weight, block.norm1.bias),
        linear_weights(block.attn.qkv),
        linear_weights(block.attn.proj),
        Norm(block.norm2.weight, block.norm2.bias),
        linear_weights(block.mlp.linear_fc1),
        linear_weights(block.mlp.linear_fc2),
    )


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """Add as ``x + y`` does, in a form that the compiler does not move into the matrix product.

    It would let the product add ``x``, which then has to be copied first.
    """
    return (x.float() + y.float()).to(x.dtype) if torch.compiler.is_compiling() else x + y


def _kernels() -> Any:
    """The vision tower's Triton kernels; None where Triton is not installed."""
    return triton_kernels("vision")


def _plain(function: Callable[..., Any], eps: float) -> Callable[..., Any]:
    return lambda *arguments: function(*arguments, eps=eps)


def _compiled(function: Callable[..., Any], eps: float) -> Callable[..., Any]:
    """Compile a function for any number of tokens, the first dimension of its first arguments.

    A single token is not compiled: torch.compile specialises on a size of one.
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
    """The arguments that have a row for each token."""
    flat = [x]
    for argument in arguments:
        parts = argument if type(argument) is tuple else (argument,)
        flat += [p for p in parts if isinstance(p, Tensor) and len(p) == len(x)]
    return flat
