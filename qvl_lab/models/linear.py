"""Linear layers: several that share an input merged into one product, and 8-bit floats.

``precision="fp8"`` stores the language model's weights as 8-bit floats (e4m3: 4 bits of exponent,
3 of fraction, up to 448) with one scale a row of outputs. Activations are quantised token by token
as they come. The formats are those of Micikevicius et al., "FP8 formats for deep learning", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvl_lab.errors import ConfigError

FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(FP8).max
#: Up to this many tokens a product without scales, which are applied to its output, is the faster
#: one. On one H200, 96 tokens by (4096, 12288): 18 us against 34; 8448 tokens: 652 us against 616.
FEW_ROWS = 256
#: Both sides of an 8-bit product have to be multiples of this.
FP8_MULTIPLE = 16


class LinearWeights(NamedTuple):
    """The tensors of a linear layer.

    Attributes
    ----------
    weight : Tensor
        (outputs, inputs).
    bias : Tensor or None
        (outputs,).
    scale : Tensor or None
        (1, outputs): the scale of each row of an 8-bit weight.
    one : Tensor or None
        The number 1 without dimensions, on the device of an 8-bit weight.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    one: Tensor | None = None


class MergedLinear(NamedTuple):
    """Linear layers that share an input.

    Attributes
    ----------
    linears : tuple of LinearWeights
        One that holds all layers, or one for each where they could not be merged.
    sizes : tuple of int
        Outputs of each layer.
    """

    linears: tuple[LinearWeights, ...]
    sizes: tuple[int, ...]


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """Apply a linear layer to tokens, (tokens, inputs), and return (tokens, outputs)."""
    if weights.scale is None:
        return functional.linear(x, weights.weight, weights.bias)
    values, scale = to_fp8(x)
    if len(x) > FEW_ROWS or not x.is_cuda:
        out = _fp8_matmul(values, weights.weight, scale, weights.scale, x.dtype)
    else:
        out = _fp8_matmul(values, weights.weight, weights.one, weights.one, x.dtype)
        out = (out.float() * scale * weights.scale).to(x.dtype)
    return out if weights.bias is None else out + weights.bias


def gelu_linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """Apply a linear layer and the tanh form of GELU (Hendrycks and Gimpel, 2016).

    On CUDA cuBLAS applies the activation as it writes the product.
    """
    bias, weight = weights.bias, weights.weight
    plain = weights.scale is None and type(weight.data) is Tensor
    if x.is_cuda and plain and bias is not None:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return functional.gelu(linear(x, weights), approximate="tanh")


def _fp8_matmul(x: Tensor, weight: Tensor, s: Any, t: Any, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(x, weight.t(), s, t, out_dtype=dtype, use_fast_accum=x.is_cuda)


def merged_linear(x: Tensor, merged: MergedLinear) -> Sequence[Tensor]:
    """Apply layers that :func:`merge` took together; one output, (tokens, outputs), for each."""
    if len(merged.linears) == 1:
        return torch.split(linear(x, merged.linears[0]), list(merged.sizes), -1)
    return [linear(x, weights) for weights in merged.linears]


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows to 8-bit floats; also returns the scale of each row, (rows, 1)."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _FP8_MAX
    return (x.float() / scale).clamp(-_FP8_MAX, _FP8_MAX).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer with an 8-bit weight, with the interface of the layer that it replaces."""

    one: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight, scale = to_fp8(layer.weight.data)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale.t().contiguous(), requires_grad=False)
        self.register_buffer("one", torch.ones((), device=weight.device), persistent=False)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        flat = linear(x.flatten(0, -2), linear_weights(self))
        return flat.view(*x.shape[:-1], self.out_features)


def quantize_fp8(model: nn.Module) -> int:
    """Replace the linear layers whose sizes 8-bit products allow; returns how many those are."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not any(n % FP8_MULTIPLE for n in child.weight.shape):
                setattr(parent, name, Fp8Linear(child))
                replaced += 1
    return replaced


def linear_weights(layer: Any) -> LinearWeights:
    """The tensors of a linear layer, which are shared with it and not copied.

    Raises
    ------
    ConfigError
        If the layer may compute more than the product with its weight.
    """
    if type(layer) not in (nn.Linear, Fp8Linear):
        raise ConfigError(
            f"the fast engine runs plain linear layers, not {type(layer).__name__}; merge adapters "
            "into the weights, or use engine='stock'"
        )
    if type(layer) is Fp8Linear:
        return LinearWeights(layer.weight, layer.bias, layer.scale, layer.one)
    return LinearWeights(layer.weight, layer.bias)


def merge(layers: Sequence[Any]) -> MergedLinear:
    """Merge linear layers that share an input into one.

    The layers' own weights become views of the merged weight, so that nothing is held twice. Layers
    that a library quantised, that have a bias or that differ in kind are not merged.
    """
    linears = tuple(linear_weights(layer) for layer in layers)
    sizes = tuple(layer.out_features for layer in layers)
    same_type = len({type(layer) for layer in layers}) == 1
    plain = all(type(w.weight.data) is Tensor and w.bias is None for w in linears)
    if not (same_type and plain):
        return MergedLinear(linears, sizes)
    weight = _concatenate([layer.weight for layer in layers], sizes, 0)
    if linears[0].scale is None:
        return MergedLinear((LinearWeights(weight),), sizes)
    scale = _concatenate([layer.scale for layer in layers], sizes, 1)
    return MergedLinear((LinearWeights(weight, None, scale, linears[0].one),), sizes)


def _concatenate(parts: list[nn.Parameter], sizes: tuple[int, ...], dim: int) -> nn.Parameter:
    """Concatenate parameters, which become views of the result."""
    # ordinary tensors stay ordinary: the model may be trained afterwards
    with torch.inference_mode(parts[0].is_inference()), torch.no_grad():
        merged = torch.cat([part.data for part in parts], dim)
        for part, view in zip(parts, torch.split(merged, list(sizes), dim), strict=True):
            part.data = view
        return nn.Parameter(merged, requires_grad=False)
