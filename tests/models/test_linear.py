"""Linear layers merged into one, and linear layers in 8 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qvl_lab.errors import ConfigError
from qvl_lab.models.linear import (
    FP8,
    Fp8Linear,
    linear,
    linear_weights,
    merge,
    merged_linear,
    quantize_fp8,
    to_fp8,
)


def test_joined_layers_are_one_product_whose_parts_are_their_weights():
    layers = [nn.Linear(6, n, bias=False) for n in (3, 5)]
    x = torch.randn(4, 6)
    expected = [layer(x) for layer in layers]
    weights = [layer.weight.clone() for layer in layers]
    one = merge(layers)
    assert len(one.linears) == 1
    for found, alone in zip(merged_linear(x, one), expected, strict=True):
        torch.testing.assert_close(found, alone)
    assert all(torch.equal(layer.weight, w) for layer, w in zip(layers, weights, strict=True))
    storages = {layer.weight.untyped_storage().data_ptr() for layer in layers}
    assert storages == {one.linears[0].weight.untyped_storage().data_ptr()}  # nothing is kept twice


def test_layers_with_a_bias_stay_apart():
    layers = [nn.Linear(6, 5, bias=False), nn.Linear(6, 3)]
    x = torch.randn(4, 6)
    expected = [layer(x) for layer in layers]
    for found, alone in zip(merged_linear(x, merge(layers)), expected, strict=True):
        assert torch.equal(found, alone)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 2


class Adapted(nn.Linear):
    """Stands for a layer that is more than a product with its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_that_are_more_than_a_product_are_refused():
    with pytest.raises(ConfigError, match="not Adapted; merge adapters"):
        merge([nn.Linear(6, 5, bias=False), Adapted(6, 3, bias=False)])


# ---- 8 bits


def test_rows_in_8_bits_come_back_within_a_sixteenth():
    """e4m3 has 3 bits of fraction: half a step is 1/16 of a normal number."""
    x = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    values, scale = to_fp8(x)
    assert values.dtype == FP8
    assert scale.shape == (50, 1)
    error = (values.float() * scale - x).abs()
    least = scale * 2.0**-10  # below the smallest normal number, steps have one size
    assert (error <= torch.maximum(x.abs() / 16, least) * 1.0001).all()


def test_a_row_of_zeros_stays_one():
    values, scale = to_fp8(torch.zeros(2, 16))
    assert not values.float().any()
    assert scale.isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
def test_an_8_bit_layer_is_near_the_one_it_replaces(bias):
    torch.manual_seed(0)
    linear = nn.Linear(256, 96, bias=bias)
    x = torch.randn(2, 5, 256)
    quick = Fp8Linear(linear)
    expected = linear(x)
    difference = (quick(x) - expected).norm() / expected.norm()
    assert 0 < difference < 0.05
    assert quick.weight.element_size() == 1


def test_the_product_is_that_of_the_rounded_numbers():
    torch.manual_seed(0)
    layer, x = Fp8Linear(nn.Linear(64, 32, bias=False)), torch.randn(7, 64)
    values, scale = to_fp8(x)
    exact = (values.double() * scale) @ (layer.weight.double() * layer.scale.t()).t()
    torch.testing.assert_close(linear(x, linear_weights(layer)), exact.float())


def test_joined_8_bit_layers_are_one_product():
    torch.manual_seed(0)
    layers = [Fp8Linear(nn.Linear(64, n, bias=False)) for n in (32, 16)]
    x = torch.randn(5, 64)
    expected = [layer(x) for layer in layers]
    one = merge(layers)
    assert len(one.linears) == 1
    for found, alone in zip(merged_linear(x, one), expected, strict=True):
        torch.testing.assert_close(found, alone)
    for layer, alone in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer(x), alone)


def test_layers_of_other_sizes_are_left():
    model = nn.Sequential(
        nn.Linear(32, 48), nn.Linear(48, 20), nn.Sequential(nn.Linear(16, 16)), nn.LayerNorm(16)
    )
    assert quantize_fp8(model) == 2
    assert [type(m) for m in model] == [Fp8Linear, nn.Linear, nn.Sequential, nn.LayerNorm]
    assert type(model[2][0]) is Fp8Linear
