"""From items to requests: what is checked and decoded before any backend sees an item."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from qvl_lab.backends.base import Answer, Request
from qvl_lab.config import ImagePolicy
from qvl_lab.workloads.items import Item

POLICY = ImagePolicy(resolution=128)


def lazy_jpeg(size: int = 640, cut: int = 0) -> Image.Image:
    """An image that was opened and not decoded yet; ``cut`` bytes are missing at its end."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    data = buffer.getvalue()
    return Image.open(io.BytesIO(data[: len(data) - cut]))


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_that_was_opened_lazily_is_decoded_before_threads_share_it(lab):
    image = lazy_jpeg()
    assert image.tile  # what is left to decode
    assert isinstance(lab.processor.request(0, Item("it", image), POLICY), Request)
    assert not image.tile


def test_one_lazy_image_for_several_questions_is_answered_on_every_one(lab):
    image = lazy_jpeg()
    questions = [f"What is this, {i}?" for i in range(6)]
    options = {"resolution": 128, "max_new_tokens": 2}
    fast = lab.generate_batch([image] * 6, questions, engine="fast", **options)
    assert [answer.error for answer in fast] == [None] * 6


def test_a_lazy_image_that_is_truncated_is_the_error_of_its_item(lab):
    items = [Item("cut", lazy_jpeg(cut=2000)), Item("whole", png("red"))]
    cut, whole = (lab.processor.request(i, item, POLICY) for i, item in enumerate(items))
    assert isinstance(cut, Answer)
    assert "truncated or damaged" in cut.error
    assert isinstance(whole, Request)


def test_a_window_ends_where_its_encoded_bytes_reach_the_bound(lab, monkeypatch):
    items = [Item(str(i), png("red")) for i in range(7)]
    monkeypatch.setattr("qvl_lab.backends.processor.WINDOW_BYTES", 2 * len(items[0].image) + 1)
    windows = [requests for requests, _ in lab.processor.windows(items, POLICY)]
    assert [[r.index for r in requests] for requests in windows] == [[0, 1, 2], [3, 4, 5], [6]]
    monkeypatch.setattr("qvl_lab.backends.processor.WINDOW", 2)
    windows = [requests for requests, _ in lab.processor.windows(items, POLICY)]
    assert [len(requests) for requests in windows] == [2, 2, 2, 1]
