"""Products with a model's weight matrices: several of one input as one, and in 8 bits.

``precision="fp8"`` keeps the language model's matrices as 8-bit floats (e4m3: 4 bits of exponent,
3 of fraction, up to 448), each row of outputs with a scale of its own. Inputs are brought to the
same range token by token as they come. The formats are those of Micikevicius et al., "FP8 formats
for deep learning", 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from qvl_lab.errors import ConfigError

FP8 = torch.float8_e4m3fn
_MOST = torch.finfo(FP8).max
#: Up to so many tokens a product is faster without scales, which then multiply what comes out. On
#: one H200, 96 tokens by (4096, 12288): 18 us against 34; 8448 tokens: 652 us against 616.
FEW_ROWS = 256
#: Both sides of an 8-bit product have to be multiples of this.
FP8_MULTIPLE = 16


class Matrix(NamedTuple):
    """Weights, (outputs, inputs), and their bias; in 8 bits a scale for each row, and the number 1.

    ``scale`` is (1, outputs), ``one`` has no dimension and stays where the weights are.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    one: Tensor | None = None


class MergedLinear(NamedTuple):
    """Matrices of one input, or all of them as one, and how many outputs each has."""

    matrices: tuple[Matrix, ...]
    sizes: tuple[int, ...]


def product(x: Tensor, matrix: Matrix) -> Tensor:
    """Tokens, (tokens, inputs), to (tokens, outputs)."""
    if matrix.scale is None:
        return functional.linear(x, matrix.weight, matrix.bias)
    values, scale = to_fp8(x)
    if len(x) > FEW_ROWS or not x.is_cuda:
        out = _product8(values, matrix.weight, scale, matrix.scale, x.dtype)
    else:
        out = _product8(values, matrix.weight, matrix.one, matrix.one, x.dtype)
        out = (out.float() * scale * matrix.scale).to(x.dtype)
    return out if matrix.bias is None else out + matrix.bias


def gelu_product(x: Tensor, matrix: Matrix) -> Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel, 2016) of a product.

    On CUDA cuBLAS applies it as it writes the product.
    """
    bias, weight = matrix.bias, matrix.weight
    ordinary = matrix.scale is None and type(weight.data) is Tensor
    if x.is_cuda and ordinary and bias is not None:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
    return functional.gelu(product(x, matrix), approximate="tanh")


def _product8(x: Tensor, weight: Tensor, s: Any, t: Any, dtype: torch.dtype) -> Tensor:
    return torch._scaled_mm(x, weight.t(), s, t, out_dtype=dtype, use_fast_accum=x.is_cuda)


def products(x: Tensor, layers: MergedLinear) -> Sequence[Tensor]:
    """Outputs of each of the layers that :func:`joined` put together."""
    if len(layers.matrices) == 1:
        return torch.split(product(x, layers.matrices[0]), list(layers.sizes), -1)
    return [product(x, matrix) for matrix in layers.matrices]


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in 8 bits, and the scale of each, (rows, 1), that brings them back."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / _MOST
    return (x.float() / scale).clamp(-_MOST, _MOST).to(FP8), scale


class Fp8Linear(nn.Module):
    """A linear layer in 8 bits, with the interface of the one that it replaces."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = to_fp8(linear.weight.data)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale.t().contiguous(), requires_grad=False)
        self.one = nn.Parameter(torch.ones((), device=weight.device), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        flat = product(x.flatten(0, -2), matrix_of(self))
        return flat.view(*x.shape[:-1], self.out_features)


def fp8_layers(model: nn.Module) -> int:
    """Replace the linear layers inside ``model`` whose sizes 8-bit products take; how many."""
    found = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and not any(n % FP8_MULTIPLE for n in child.weight.shape):
                setattr(parent, name, Fp8Linear(child))
                found += 1
    return found


def matrix_of(layer: Any) -> Matrix:
    """A linear layer's matrix, not copied.

    Raises
    ------
    ConfigError
        If the layer may be more than a product with its matrix.
    """
    if type(layer) not in (nn.Linear, Fp8Linear):
        raise ConfigError(
            f"the fast engine runs plain linear layers, not {type(layer).__name__}; merge adapters "
            "into the weights, or use engine='stock'"
        )
    if type(layer) is Fp8Linear:
        return Matrix(layer.weight, layer.bias, layer.scale, layer.one)
    return Matrix(layer.weight, layer.bias)


def joined(layers: Sequence[Any]) -> MergedLinear:
    """Linear layers of one input as one matrix.

    The layers' own weights become views of it, so that nothing is held twice. Layers that are
    quantised by a library, that have a bias or that differ in kind stay apart.
    """
    matrices = tuple(matrix_of(layer) for layer in layers)
    sizes = tuple(layer.out_features for layer in layers)
    alike = len({type(layer) for layer in layers}) == 1
    ordinary = all(type(m.weight.data) is Tensor and m.bias is None for m in matrices)
    if not (alike and ordinary):
        return MergedLinear(matrices, sizes)
    weight = _whole([layer.weight for layer in layers], sizes, 0)
    if matrices[0].scale is None:
        return MergedLinear((Matrix(weight),), sizes)
    scale = _whole([layer.scale for layer in layers], sizes, 1)
    return MergedLinear((Matrix(weight, None, scale, matrices[0].one),), sizes)


def _whole(parts: list[nn.Parameter], sizes: tuple[int, ...], dim: int) -> nn.Parameter:
    """Parameters side by side; they become views of the whole."""
    # ordinary tensors stay ordinary: the model may be trained afterwards
    with torch.inference_mode(parts[0].is_inference()), torch.no_grad():
        whole = torch.cat([part.data for part in parts], dim)
        for part, view in zip(parts, torch.split(whole, list(sizes), dim), strict=True):
            part.data = view
        return nn.Parameter(whole, requires_grad=False)
