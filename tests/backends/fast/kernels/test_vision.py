"""The tower's kernels beside plain torch, on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from qvl_lab.backends.fast.model.layers import rotated
from qvl_lab.models.linear import LinearWeights, gelu_linear

pytestmark = pytest.mark.gpu
#: Of a number, for fp32 and bf16: the results are rounded once, sums in another order.
NEAR = {torch.float32: 2e-5, torch.bfloat16: 1e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


def some(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - exact).norm() / exact.norm() < NEAR[dtype])


@pytest.mark.parametrize("size", [1152, 1024, 160])
def test_a_sum_and_its_normalisation(dtype, size):
    from qvl_lab.backends.fast.kernels import vision

    x, more, weight, bias = (some(*s, dtype=dtype) for s in ((50, size),) * 2 + ((size,),) * 2)
    for summand in (None, more):
        total, out = vision.add_norm(x, summand, weight, bias, 1e-6)
        exact = x if summand is None else x + summand
        assert torch.equal(total, exact)
        wide = functional.layer_norm(exact.double(), (size,), weight.double(), bias.double(), 1e-6)
        assert near(out, wide, dtype)


@pytest.mark.parametrize(("heads", "size"), [(16, 72), (16, 64), (5, 32)])
def test_rotation(dtype, heads, size):
    from qvl_lab.backends.fast.kernels import vision

    qkv = some(70, 3 * heads * size, dtype=dtype)
    angles = some(70, size, dtype=torch.float32), some(70, size, dtype=torch.float32)
    found = vision.rotated(qkv, *angles, heads)
    exact = rotated(qkv.view(70, 3 * heads, size)[:, : 2 * heads].double(), angles)
    assert near(found.view(70, 2 * heads, size), exact, dtype)


@pytest.mark.parametrize(("inputs", "outputs"), [(1152, 4304), (160, 640)])
def test_gelu_of_a_product(dtype, inputs, outputs):
    shapes = (50, inputs), (outputs, inputs), (outputs,)
    x, weight, bias = (some(*shape, dtype=dtype) for shape in shapes)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    exact = functional.gelu(exact, approximate="tanh")
    assert near(gelu_linear(x, LinearWeights(weight, bias)), exact, dtype)
