"""Memory by stage, on a fake allocator; on a GPU, the real one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qvl_lab.errors import ConfigError
from qvl_lab.probe.stages import listening, stage
from qvl_lab.probe.vram import Timeline, peak_bytes, snapshot


@pytest.fixture
def allocator(monkeypatch):
    """Bytes that a test sets; the peak is the largest since it was reset."""

    class Cuda:
        now = peak = 0

        def use(self, count):
            self.now = count
            self.peak = max(self.peak, count)

        def memory_allocated(self, device):
            return self.now

        def memory_reserved(self, device):
            return self.now + 1

        def max_memory_allocated(self, device):
            return self.peak

        def reset_peak_memory_stats(self, device):
            self.peak = self.now

    cuda = Cuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_every_outer_stage_has_its_own_peak(allocator):
    timeline = Timeline("cuda:0")
    allocator.use(10)
    with listening(timeline):
        with stage("vision", gpu=True):
            allocator.use(90)
            with stage("merger", gpu=True):
                allocator.use(50)
            allocator.use(20)
        allocator.use(70)
        with stage("prefill", gpu=True):
            allocator.use(30)
    frame = timeline.frame()
    assert frame["mark"].tolist() == [
        "before vision",
        "after vision",
        "before prefill",
        "after prefill",
    ]
    assert frame["stage"].tolist() == ["", "vision", "", "prefill"]
    assert frame["allocated_bytes"].tolist() == [10, 20, 70, 30]
    assert frame["reserved_bytes"].tolist() == [11, 21, 71, 31]
    assert frame["peak_bytes"].tolist() == [10, 90, 70, 70]
    assert frame["time_s"].is_monotonic_increasing
    assert frame["process_memory_bytes"].isna().all()


def test_a_stage_left_open_by_an_error_ends_with_the_one_around_it(allocator):
    timeline = Timeline("cuda")
    with listening(timeline), stage("prefill", gpu=True):
        timeline.begin("layers", True)
    assert timeline.frame()["stage"].tolist() == ["", "prefill"]
    with listening(timeline), stage("decode", gpu=True):
        pass
    assert timeline.frame()["stage"].tolist() == ["", "prefill", "", "decode"]


def test_on_a_cpu_only_the_process_is_known():
    timeline = Timeline("cpu")
    with listening(timeline), stage("vision", gpu=True):
        pass
    frame = timeline.frame()
    assert (frame["process_memory_bytes"] > 1e6).all()
    assert frame[["allocated_bytes", "reserved_bytes", "peak_bytes"]].isna().all(axis=None)
    assert peak_bytes("cpu") == {"allocated": None, "reserved": None}


def test_a_snapshot_needs_a_gpu(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="needs a CUDA device"), snapshot(tmp_path / "s.pickle"):
        pass


@pytest.mark.gpu
def test_a_snapshot_is_written_also_when_the_block_raises(tmp_path):
    import torch

    with pytest.raises(KeyError), snapshot(tmp_path / "s.pickle"):
        torch.ones(1000, device="cuda")
        raise KeyError
    assert (tmp_path / "s.pickle").stat().st_size > 100
