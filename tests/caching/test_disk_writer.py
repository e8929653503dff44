"""Writes to the disk tier in a thread: order, bounds, and nobody waits but who asks to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import warnings

import pytest
import torch

from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.disk_writer import DiskWriter
from qvl_lab.caching.tensor_cache import TensorCache

ROOM = 10**7


class SlowTier(DiskTier):
    """A disk that waits to be let go on before each write."""

    def __init__(self, folder, slow_s=None):
        super().__init__(folder, ROOM)
        self.go_on, self.slow_s, self.written, self.tidied = threading.Event(), slow_s, [], []
        self.begun = threading.Event()

    def save(self, key, tensors, cost_s, *, tidy=True):
        self.begun.set()
        if self.slow_s is None:
            assert self.go_on.wait(30)
        else:
            time.sleep(self.slow_s)
        super().save(key, tensors, cost_s, tidy=tidy)
        self.written.append(key)
        self.tidied.append(tidy)


@pytest.fixture
def tier(tmp_path):
    tier = SlowTier(tmp_path)
    yield tier
    tier.go_on.set()


def entry(value=1.0, count=1000):
    return {"x": torch.full((count,), value)}


def test_putting_does_not_wait_for_a_slow_disk(tmp_path):
    tier = SlowTier(tmp_path, slow_s=0.1)
    tensors, taken_s = TensorCache(ROOM, disk=tier), []
    for key in "abcde":
        started = time.perf_counter()
        tensors.put(key, entry(), 1.0)
        taken_s.append(time.perf_counter() - started)
    assert sorted(taken_s)[2] < 0.005
    assert max(taken_s) < 0.1
    assert not tier.written
    tensors.flush()
    assert tier.written == list("abcde")
    assert all(DiskTier(tmp_path, ROOM).load(key) for key in "abcde")


def test_the_folder_is_listed_once_a_burst(tier):
    writer = DiskWriter(tier)
    writer.save("first", entry(), 1.0)
    assert tier.begun.wait(30)  # alone, before the burst
    for key in "abc":
        writer.save(key, entry(), 1.0)
    tier.go_on.set()
    writer.flush()
    assert tier.tidied == [True, False, False, True]


def test_a_burst_keeps_the_bound_on_the_folder(tmp_path):
    tier = DiskTier(tmp_path, 20_000)
    writer = DiskWriter(tier)
    for key in range(30):
        writer.save(str(key), entry(float(key)), 1.0)
    writer.flush()
    assert 0 < tier.bytes <= 20_000
    assert tier.load("29")


def test_a_full_queue_drops_the_write_and_counts_it(tier, tmp_path):
    writer = DiskWriter(tier, max_bytes=10_000)  # two entries of 4000 bytes
    for key in "abcd":
        writer.save(key, entry(), 1.0)
    assert writer.dropped == 2
    tier.go_on.set()
    writer.flush()
    assert tier.written == ["a", "b"]
    writer.save("c", entry(), 1.0)
    writer.flush()
    assert tier.written == ["a", "b", "c"]


def test_an_entry_over_the_bound_of_the_queue_is_written_where_nothing_waits(tmp_path):
    writer = DiskWriter(DiskTier(tmp_path, ROOM), max_bytes=10)
    writer.save("a", entry(), 1.0)
    writer.flush()
    assert writer.tier.load("a")
    assert writer.dropped == 0


def test_dropped_writes_are_in_the_stats(tier):
    tensors = TensorCache(ROOM, disk=tier)
    tensors._disk.max_bytes = 1
    for key in "abc":
        tensors.put(key, entry(), 1.0)
    assert tensors.stats.dropped_writes == 2


def test_a_key_that_waits_to_be_written_is_found_and_not_written_twice(tier):
    writer = DiskWriter(tier)
    for key in "ab":
        writer.save(key, entry(ord(key)), 0.5)
        writer.save(key, entry(ord(key)), 0.5)
    tensors, cost_s = writer.load("b")
    assert torch.equal(tensors["x"], entry(ord("b"))["x"])
    assert cost_s == 0.5
    assert writer.load("c") is None
    tier.go_on.set()
    writer.flush()
    assert tier.written == ["a", "b"]


def test_the_thread_ends_when_nothing_waits_and_starts_again(tmp_path):
    writer = DiskWriter(DiskTier(tmp_path, ROOM))
    for key in "ab":
        writer.save(key, entry(), 1.0)
        writer.flush()
        assert not [t for t in threading.enumerate() if t.name == "qvl-lab disk cache"]
    assert writer.load("a")
    assert writer.load("b")


def test_threads_that_save_at_once_lose_nothing(tmp_path):
    writer = DiskWriter(DiskTier(tmp_path, ROOM))
    threads = [
        threading.Thread(
            target=lambda n=n: [writer.save(f"{n} {i}", entry(), 1.0) for i in range(25)]
        )
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.flush()
    assert all(writer.tier.load(f"{n} {i}") for n in range(4) for i in range(25))


def test_a_failure_in_the_thread_is_raised_once_to_whoever_saves_or_flushes(tmp_path, monkeypatch):
    writer = DiskWriter(DiskTier(tmp_path, ROOM))

    def fail(*args, **options):
        raise RuntimeError("illegal memory access")

    with monkeypatch.context() as patched:
        patched.setattr(DiskTier, "save", fail)
        writer.save("a", entry(), 1.0)
        with pytest.raises(RuntimeError, match="illegal"):
            writer.flush()
    writer.save("a", entry(), 1.0)
    writer.flush()
    assert writer.load("a")


AT_EXIT = """
import os, signal, sys, torch
from pathlib import Path
from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.tensor_cache import TensorCache
tensors = TensorCache(10**9, disk=DiskTier(Path(sys.argv[1]), 10**9))
for key in range(20):
    tensors.put(str(key), {"x": torch.full((200_000,), float(key))}, 1.0)
if sys.argv[2] == "kill":
    while not list(Path(sys.argv[1]).glob("*.safetensors")):
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["exit", "kill"])
def test_files_are_whole_after_the_process_ended(tmp_path, way):
    """An exit waits for all writes; a kill loses some and damages none."""
    subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(tmp_path), way], timeout=120, check=way == "exit"
    )
    tier, found = DiskTier(tmp_path, 10**9), 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # for a damaged file
        for key in range(20):
            if (hit := tier.load(str(key))) is not None:
                found += 1
                assert torch.equal(hit[0]["x"], torch.full((200_000,), float(key)))
    assert found == 20 if way == "exit" else found >= 1


@pytest.mark.gpu
def test_features_on_a_gpu_are_copied_before_they_change(tmp_path):
    writer, x = DiskWriter(DiskTier(tmp_path, 10**9)), torch.full((1000, 1000), 3.0, device="cuda")
    for _ in range(50):
        x = x @ torch.eye(1000, device="cuda")
    writer.save("a", {"x": x}, 1.0)
    del x
    noise = [torch.randn(1000, 1000, device="cuda") for _ in range(20)]  # may take its memory
    writer.flush()
    assert torch.equal(writer.load("a")[0]["x"], torch.full((1000, 1000), 3.0))
    assert noise
