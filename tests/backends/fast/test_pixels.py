"""Pixels taken from Pillow's memory, beside numpy's copy of them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from PIL import Image

from qvl_lab.backends.fast import pixels as pillow

#: The last is kept in several pieces.
SIZES = [(1, 1), (3, 7), (32, 32), (333, 101), (1024, 768), (3000, 2000)]


def noise(size: tuple[int, int]) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_numpy_and_outlive_the_picture(size):
    picture = noise(size)
    expected = np.array(picture)
    found = pillow.pixels(picture)
    del picture
    gc.collect()
    noise(size)  # would overwrite memory that was given back
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    assert np.array_equal(found[..., :3].numpy(), expected)


def test_pictures_made_from_others_have_their_own_pixels():
    whole = noise((120, 80))
    for made in (whole.crop((10, 5, 73, 60)), whole.resize((31, 17)), whole.rotate(90)):
        assert np.array_equal(pillow.pixels(made)[..., :3].numpy(), np.array(made))


def test_writing_on_the_pixels_leaves_the_picture():
    picture = noise((20, 10))
    before = np.array(picture)
    pillow.pixels(picture).zero_()
    assert np.array_equal(np.array(picture), before)


def test_an_older_pillow_gives_the_same(monkeypatch):
    picture = noise((20, 10))
    monkeypatch.delattr(Image.Image, "__arrow_c_array__")
    assert np.array_equal(pillow.pixels(picture).numpy(), np.array(picture))


@pytest.mark.gpu
def test_pinned_pixels_are_the_same():
    picture = noise((333, 101))
    found = pillow.pixels(picture, pinned=True)
    assert found.is_pinned()
    assert np.array_equal(found[..., :3].numpy(), np.array(picture))
