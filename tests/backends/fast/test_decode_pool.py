"""Pixels and patches beside those of the stock engine."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from qvl_lab.backends.base import Request
from qvl_lab.backends.fast.decode_pool import DecodePool
from qvl_lab.backends.fast.patchify import Patchify
from qvl_lab.backends.fast.sequence import Sequence
from qvl_lab.config import ImagePolicy, SamplingParams
from qvl_lab.errors import ImageError
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.resize import resize

POLICY = ImagePolicy()
SIZES = [(32, 32), (96, 32), (32, 160), (224, 128)]


def noise(size: tuple[int, int]) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def request_for(image: bytes | Image.Image, size: tuple[int, int], text: str = "") -> Request:
    return Request(0, Item("it", image), image, size, size[0] * size[1] // 1024, text)


def sequence_for(image: bytes | Image.Image, size: tuple[int, int]) -> Sequence:
    request = request_for(image, size)
    return Sequence(request, SamplingParams(), [0], range(1), (2, 2))


def fetched(pool: DecodePool, *sequences: Sequence) -> list[torch.Tensor]:
    """The pixels of sequences that are all handed to the pool before the first is asked for."""
    for sequence in sequences:
        pool.prefetch(sequence)
    pool.start_ahead()
    for sequence in sequences:
        pool.fetch(sequence)
    return [sequence.decoded.pixels for sequence in sequences]


@pytest.fixture
def pools():
    """Makes decode pools, and ends their threads."""
    made = []

    def make(threads: bool) -> DecodePool:
        made.append(DecodePool(POLICY, threads=threads, pinned=False))
        return made[-1]

    yield make
    for one in made:
        one.close()


# ---- patches


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [None, (0.4, 0.45, 0.5), (0.3, 0.25, 0.2)])
def test_patches_are_those_of_the_stock_processor(lab, size, factor):
    """It puts both frames of a still picture into a patch; they are the same."""
    processor, changed = lab.loaded.image_processor, {}
    if factor:
        changed = {"image_mean": factor, "image_std": factor[::-1]}
        processor = type(processor)(**{**processor.to_dict(), **changed})
    picture = noise(size)
    request = request_for(picture, size, lab.processor.prompt("What?"))
    stock = type(lab.stock)(lab.processor)
    stock.loaded = replace(lab.loaded, image_processor=processor)
    expected = stock.inputs([picture], [request])
    frames = expected["pixel_values"].view(-1, 3, 2, 16, 16)
    assert torch.equal(frames[:, :, 0], frames[:, :, 1])
    patches = Patchify(processor, torch.float32, torch.device("cpu"))
    found = patches([torch.from_numpy(np.array(picture))])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, frames[:, :, 0].flatten(1), atol=1e-6, rtol=0)
    assert [(1, *patches.grid(size))] == [tuple(row) for row in expected["image_grid_thw"].tolist()]


def test_patches_have_the_dtype_that_the_tower_takes(lab):
    pixels = torch.from_numpy(np.array(noise((64, 32))))
    exact, half = (
        Patchify(lab.loaded.image_processor, dtype, torch.device("cpu"))([pixels])
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(half, exact.bfloat16())


# ---- pixels


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("size", [(96, 64), (64, 96)])  # as it is, and resized
def test_pixels_are_those_of_the_stock_engine_with_and_without_threads(pools, threads, size):
    image = noise((96, 64))
    (pixels,) = fetched(pools(threads), sequence_for(encoded(image), size))
    assert (pixels.dtype, tuple(pixels.shape[:2])) == (torch.uint8, (size[1], size[0]))
    assert np.array_equal(pixels[..., :3].numpy(), np.array(resize(image, size)))


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("L", (64, 32), 90), (90, 90, 90)),
        (Image.new("RGB", (64, 32), (10, 200, 30)).quantize(), (10, 200, 30)),
        (Image.new("RGBA", (64, 32), (10, 200, 30, 0)), (255, 255, 255)),  # nothing over white
        (Image.new("1", (64, 32), 1), (255, 255, 255)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_pixels_are_rgb_whatever_the_image_has(pools, image, colour, as_bytes):
    request = request_for(encoded(image) if as_bytes else image, (96, 64))
    pixels = pools(False).pixels(request)
    assert torch.equal(pixels[..., :3], torch.tensor(colour, dtype=torch.uint8).expand(64, 96, 3))


@pytest.mark.parametrize("damage", [b"", b"no image", encoded(noise((64, 64)))[:200]])
def test_a_bad_image_raises_where_its_pixels_are_asked_for(pools, damage):
    request = request_for(damage, (64, 64))
    with pytest.raises(ImageError):
        pools(False).pixels(request)
    with pytest.raises(ImageError):
        fetched(pools(True), sequence_for(damage, (64, 64)))


def test_an_image_over_the_policys_limit_raises():
    maker = DecodePool(replace(POLICY, max_image_pixels=100), threads=False, pinned=False)
    with pytest.raises(ImageError, match="100"):
        maker.pixels(request_for(encoded(noise((64, 64))), (64, 64)))


def test_a_bad_image_in_a_thread_leaves_the_others(pools):
    pool, image = pools(True), encoded(noise((64, 64)))
    first, bad, last = (sequence_for(i, (64, 64)) for i in (image, b"bad", image))
    pool.prefetch(bad)
    found = fetched(pool, first, last)
    assert torch.equal(*found)
    with pytest.raises(ImageError):
        pool.fetch(bad)
    for sequence in (first, bad, last):
        pool.drop(sequence)
    assert pool.is_idle


def test_closing_ends_the_threads(pools):
    others = set(threading.enumerate())
    pool = pools(True)
    fetched(pool, sequence_for(encoded(noise((64, 64))), (64, 64)))
    assert set(threading.enumerate()) - others
    pool.close()
    assert not set(threading.enumerate()) - others


@pytest.mark.gpu
def test_pinned_pixels_reach_the_gpu_as_the_same_patches(lab):
    maker = DecodePool(POLICY, threads=True, pinned=True)
    (pixels,) = fetched(maker, sequence_for(encoded(noise((96, 64))), (96, 64)))
    maker.close()
    assert pixels.is_pinned()
    here, there = (
        Patchify(lab.loaded.image_processor, torch.float32, torch.device(device))([pixels])
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there.cpu(), here, atol=1e-6, rtol=0)


def test_images_of_any_sizes_are_cut_one_after_another(lab):
    sizes = [(64, 32), (64, 32), (32, 96), (64, 32)]
    pixels = [torch.from_numpy(np.array(noise(size))) for size in sizes]
    filled = [torch.cat([p, torch.full_like(p[..., :1], 77)], -1) for p in pixels]
    patches = Patchify(lab.loaded.image_processor, torch.float32, torch.device("cpu"))
    expected = torch.cat([patches([p]) for p in pixels])
    assert torch.equal(patches(pixels), expected)
    assert torch.equal(patches(filled), expected)  # the fourth channel says nothing
