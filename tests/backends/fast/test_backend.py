"""The fast engine as a backend: when it is kept, and how its size is chosen."""

from __future__ import annotations

import io
import weakref
from typing import Any

import pytest
from PIL import Image

from qvl_lab.backends.fast import backend, sizing
from qvl_lab.backends.fast.model_runner import ModelRunner
from qvl_lab.backends.fast.sizing import CacheSize, size_cache
from qvl_lab.config import Config, Fast, ImagePolicy
from qvl_lab.probe.stages import Recorder
from qvl_lab.workloads.items import Item

SMALL: dict[str, Any] = {"engine": "fast", "batch_size": 2, "max_new_tokens": 3}


def png(side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


def auto(**fields: Any) -> Fast:
    engine = Config().replace(engine="fast", block_size=10, **fields).engine
    assert isinstance(engine, Fast)
    return engine


def test_the_old_engine_is_gone_before_free_memory_is_read_and_a_cache_is_taken(lab, monkeypatch):
    lab.generate_batch([png()], resolution="native", **SMALL)
    old = weakref.ref(lab.fast.engine)
    alive: list[tuple[str, bool]] = []
    real_init, real_free = ModelRunner.__init__, sizing.free_bytes

    def init(self, *args: Any) -> None:
        alive.append(("cache", old() is not None))
        real_init(self, *args)

    def free_bytes(device: Any) -> int:
        alive.append(("free memory", old() is not None))
        return real_free(device)

    monkeypatch.setattr(ModelRunner, "__init__", init)
    monkeypatch.setattr(sizing, "free_bytes", free_bytes)
    lab.generate_batch([png(512)] * 2, resolution="native", **SMALL)
    # the first reading decides whether the old engine is large enough
    assert alive == [("free memory", True), ("free memory", False), ("cache", False)]


@pytest.mark.slow
def test_the_old_engine_is_gone_also_within_one_call(lab, monkeypatch):
    monkeypatch.setattr("qvl_lab.backends.processor.WINDOW", 2)
    engines: list[Any] = []
    real = backend.Engine

    def engine(*args: Any) -> Any:
        assert all(ref() is None for ref in engines)
        made = real(*args)
        engines.append(weakref.ref(made))
        return made

    monkeypatch.setattr(backend, "Engine", engine)
    lab.fast.close()
    images = [png(64)] * 2 + [png(256)] * 2 + [png(512)] * 2
    done = lab.generate_batch(images, resolution="native", **SMALL)
    assert [answer.error for answer in done] == [None] * 6
    assert len(engines) == 3


# ---- size


def test_the_cache_holds_the_longest_sequences_within_the_budget():
    spec = Fast(batch_size=2, block_size=10)
    assert size_cache([11, 35, 8], spec, budget=1000) == CacheSize(2, 60, 40)
    assert size_cache([11, 35, 8], spec, budget=50) == CacheSize(2, 50, 40)
    assert size_cache([11, 35, 8], spec, budget=30) == CacheSize(2, 30, 30)
    prefixes = Fast(batch_size=2, block_size=10, prefix_cache=True)
    assert size_cache([11, 35, 8], prefixes, budget=1000) == CacheSize(2, 120, 40)


def test_a_cache_of_a_given_size_has_as_many_slots_whatever_is_asked():
    spec = auto(kv_cache_gib=1.0)
    sizes = [size_cache(lengths, spec, budget=1000) for lengths in ([10], [10] * 3, [10] * 500)]
    assert sizes == [CacheSize(96, 1000, 10)] * 3


def test_a_cache_of_a_given_size_has_all_of_it():
    spec = Fast(batch_size=2, block_size=10, kv_cache_gib=1.0)
    assert size_cache([11, 35], spec, budget=1000) == CacheSize(2, 1000, 40)


@pytest.mark.parametrize(
    ("lengths", "budget", "slots"),
    [
        ([10] * 5, 1000, 5),  # one for each request
        ([10] * 500, 10**6, 96),  # never more
        ([10] * 500, 200, 20),  # as many as fit
        ([30, 10, 10], 45, 2),  # the longest first
        ([30], 10, 1),  # never none
    ],
)
def test_automatic_batch_size_is_the_largest_that_fits(lengths, budget, slots):
    assert size_cache(lengths, auto(), budget).slots == slots


def test_automatic_batch_size_leaves_room_for_prefixes():
    assert size_cache([10] * 500, auto(prefix_cache=True), 200).slots == 10


def test_an_automatic_batch_size_is_told_and_an_engine_with_more_slots_is_kept(lab):
    lab.fast.close()
    engines, told = [], []
    for count in (3, 2, 5):
        items = [Item(str(i), png()) for i in range(count)]
        recorder, policy = Recorder(), ImagePolicy(resolution=64)
        answers = dict(lab.fast.stream(items, auto(max_new_tokens=2), policy, recorder))
        assert [answers[i].error for i in range(count)] == [None] * count
        engines.append(lab.fast.engine)
        told.append(lab.fast.stats().batch_size)
    assert told == [3, 3, 5]
    assert engines[0] is engines[1]
    assert engines[1] is not engines[2]
