"""The tensor cache: what it keeps on which tier, and what hits save."""

from __future__ import annotations

import errno
import gc
import os
import weakref

import pytest
import torch

from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.tensor_cache import CacheStats, TensorCache

ROOM = 10**6


def features(value=1.0, count=100):
    return {"visual": torch.full((count,), value), "deepstack": torch.full((3, count), value)}


FEATURE_BYTES = 4 * 4 * 100


def test_hits_know_what_they_saved():
    tensors = TensorCache(ROOM)
    assert tensors.stats == CacheStats()
    assert tensors.stats.hit_rate is None
    assert tensors.get("a") is None
    tensors.put("a", features(), cost_s=0.5)
    for _ in range(3):
        assert torch.equal(tensors.get("a")["visual"], torch.ones(100))
    stats = tensors.stats
    assert stats == CacheStats(hits=3, misses=1, bytes=FEATURE_BYTES, saved_s=1.5)
    assert stats.hit_rate == 0.75


def test_the_cache_keeps_its_budgets():
    tensors = TensorCache(2 * FEATURE_BYTES)
    for key in "abc":
        tensors.put(key, features(), 1.0)
    assert tensors.get("a") is None
    assert (tensors.stats.evictions, tensors.stats.bytes) == (1, 2 * FEATURE_BYTES)
    one = TensorCache(ROOM, max_entries=1)
    for key in "abc":
        one.put(key, features(), 1.0)
    assert (one.stats.evictions, one.stats.bytes) == (2, FEATURE_BYTES)
    tensors.clear()
    assert tensors.get("c") is None
    assert tensors.stats.bytes == 0


def test_eviction_leaves_what_somebody_holds_and_frees_what_nobody_does():
    tensors = TensorCache(FEATURE_BYTES)
    tensors.put("a", features(7.0), 1.0)
    held = tensors.get("a")
    alive = weakref.ref(held["visual"])
    tensors.put("b", features(8.0), 1.0)
    assert tensors.get("a") is None
    gc.collect()
    assert torch.equal(held["visual"], torch.full((100,), 7.0))
    del held
    gc.collect()
    assert alive() is None


def test_what_a_caller_does_to_its_dict_stays_with_the_caller():
    tensors, given_in = TensorCache(ROOM), features()
    tensors.put("a", given_in, 1.0)
    given_in.clear()
    tensors.get("a").pop("visual")
    assert tensors.get("a").keys() == features().keys()


def test_a_part_of_a_batch_does_not_keep_the_batch():
    batch = torch.arange(1000.0)
    alive = weakref.ref(batch.untyped_storage())
    tensors = TensorCache(ROOM)
    tensors.put("a", {"x": batch[10:20]}, 1.0)
    storage = tensors.get("a")["x"].untyped_storage()
    assert storage.nbytes() == tensors.stats.bytes == 40
    assert storage.data_ptr() != batch[10:20].data_ptr()
    assert torch.equal(tensors.get("a")["x"], batch[10:20])
    del batch
    gc.collect()
    assert alive() is None


def test_a_whole_tensor_is_not_copied():
    tensors, mine = TensorCache(ROOM), torch.ones(10)
    tensors.put("a", {"x": mine}, 1.0)
    assert tensors.get("a")["x"].data_ptr() == mine.data_ptr()


def test_a_disk_hit_goes_to_the_device_and_stays_in_memory(tmp_path):
    written = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    written.put("a", features(), 0.5)
    written.flush()
    disk = DiskTier(tmp_path, ROOM)
    tensors = TensorCache(ROOM, disk=disk, device="meta")
    assert {t.device.type for t in tensors.get("a").values()} == {"meta"}
    first = tensors.stats
    assert (first.hits, first.disk_hits, first.misses, first.saved_s) == (1, 1, 0, 0.5)
    assert first.disk_load_s > 0
    assert first.disk_bytes == disk.bytes > first.bytes == FEATURE_BYTES
    assert tensors.get("a")
    second = tensors.stats
    assert (second.hits, second.disk_hits, second.saved_s) == (2, 1, 1.0)
    assert second.disk_load_s == first.disk_load_s


def test_what_memory_forgot_the_disk_still_knows(tmp_path):
    tensors = TensorCache(FEATURE_BYTES, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(1.0), 1.0)
    tensors.put("b", features(2.0), 1.0)
    tensors.flush()
    assert torch.equal(tensors.get("a")["visual"], torch.ones(100))
    assert (tensors.stats.disk_hits, tensors.stats.evictions) == (1, 2)


def test_what_is_too_large_for_memory_is_still_kept_on_disk(tmp_path):
    tensors = TensorCache(10, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(3.0), 1.0)
    tensors.flush()
    assert tensors.stats.bytes == 0
    assert torch.equal(tensors.get("a")["visual"], torch.full((100,), 3.0))


def test_memory_goes_on_when_the_disk_is_full(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    with pytest.warns(UserWarning, match="off for the rest of this run") as told:
        for key in "abc":
            tensors.put(key, features(), 1.0)
        tensors.flush()
    assert len(told) == 1
    assert all(tensors.get(key) for key in "abc")
    assert tensors.stats == CacheStats(hits=3, bytes=3 * FEATURE_BYTES, saved_s=3.0)


def test_a_damaged_file_is_computed_again(tmp_path):
    written = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    written.put("a", features(), 1.0)
    written.flush()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    with pytest.warns(UserWarning, match="was deleted"):
        assert tensors.get("a") is None
    assert (tensors.stats.misses, tensors.stats.saved_s) == (1, 0.0)
    tensors.put("a", features(), 1.0)
    tensors.flush()
    assert file.exists()
    assert tensors.get("a")


OUT_OF_MEMORY = [MemoryError(), torch.OutOfMemoryError("out of memory")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_without_memory_for_a_copy_nothing_is_found_or_kept(tmp_path, monkeypatch, error):
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(), 1.0)
    tensors.flush()
    tensors.clear()

    def fail(*args, **options):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "to", fail)
        assert tensors.get("a") is None
        tensors.put("b", features(), 1.0)
    assert tensors.get("b") is None
    assert tensors.get("a")
    assert tensors.stats.misses == 2


def test_other_failures_are_not_hidden(tmp_path, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM))
    tensors.put("a", features(), 1.0)
    tensors.flush()
    tensors.clear()
    monkeypatch.setattr(torch.Tensor, "to", fail)
    with pytest.raises(RuntimeError, match="illegal"):
        tensors.get("a")
    with pytest.raises(RuntimeError, match="illegal"):
        tensors.put("a", features(), 1.0)


@pytest.mark.gpu
def test_a_gpu_cache_holds_and_finds_on_the_gpu(tmp_path):
    tensors = TensorCache(ROOM, disk=DiskTier(tmp_path, ROOM), device="cuda")
    tensors.put("a", features(4.0), 1.0)
    tensors.flush()
    tensors.clear()
    found = tensors.get("a")["visual"]
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), torch.full((100,), 4.0))
