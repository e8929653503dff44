"""Contention: others' CPU time is told apart from one's own, and a GPU's driver is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from qvl_lab.probe import contention
from qvl_lab.probe.contention import (
    Monitor,
    canary_s,
    cores_kept_away,
    cpu_limit,
    cpu_times,
)

STAT = """cpu  400 4 40 4000 4 0 8 16 0 0
cpu0 100 1 10 1000 1 0 2 4 0 0
cpu1 200 2 20 2000 2 0 4 8 0 0
cpu2 900 9 90 9000 9 0 9 99 0 0
intr 1 2 3
"""


def test_counters_of_the_cores_that_this_process_may_use_are_summed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    (tmp_path / "stat").write_text(STAT)
    found = cpu_times(tmp_path / "stat")
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert found.busy_s == pytest.approx((100 + 1 + 10 + 2 + 200 + 2 + 20 + 4) * tick_s)
    assert found.stolen_s == pytest.approx(12 * tick_s)


def test_where_the_kernel_has_no_counters_nothing_is_said_of_others(tmp_path, monkeypatch):
    assert cpu_times(tmp_path / "none") is None
    monkeypatch.setattr(contention, "cpu_times", lambda: None)
    with Monitor("cpu", canary=lambda: 0.001) as monitor:
        pass
    assert monitor.seen.others_cores is None
    assert monitor.seen.canary_s == 0.001


@pytest.mark.parametrize(
    ("others_s", "own_s", "needed", "cores", "kept"),
    [
        (10, 10, 2, 2, 1.0),  # a process that eats one of two cores
        (10, 10, 2, 64, 0.0),  # the same where 62 cores are free
        (630, 10, 2, 64, 1.0),
        (10, 10, None, 2, 0.0),  # beside a GPU: one core is used, the other was free
        (20, 10, None, 2, 1.0),
        (-0.1, 10, 2, 2, 0.0),  # counters are rounded
    ],
)
def test_what_others_do_counts_where_it_keeps_cores_away(others_s, own_s, needed, cores, kept):
    found = cores_kept_away(others_s, own_s, 10.0, needed=needed, cores=cores)
    assert found == pytest.approx(kept)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 1.5), ("max 100000", 4.0), ("", 4.0), ("800000 100000", 4.0)],
)
def test_a_containers_quota_bounds_the_cores(text, cores, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_limit(tmp_path / "cpu.max") == cores


def test_a_process_that_eats_a_core_is_noticed():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        needed = len(os.sched_getaffinity(0))
        before, own_s, started_s = cpu_times(), time.process_time(), time.perf_counter()
        time.sleep(1.0)
        after = cpu_times()
        wall_s, own_s = time.perf_counter() - started_s, time.process_time() - own_s
    finally:
        busy.kill()
        busy.wait()
    others_s = after.busy_s - before.busy_s - own_s
    assert cores_kept_away(others_s, own_s, wall_s, needed=needed) > 0.4


def test_own_work_is_not_taken_for_that_of_others(monkeypatch):
    used = iter([(10.0, 1.0), (14.0, 1.5)])  # 4 s of all, half a second stolen
    monkeypatch.setattr(
        contention,
        "cpu_times",
        lambda: contention.CpuTimes(**dict(zip(("busy_s", "stolen_s"), next(used), strict=True))),
    )
    monkeypatch.setattr(contention, "_needed_cores", lambda device: 2.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    own, clock = iter([1.0, 4.5]), iter([100.0, 102.0])
    monkeypatch.setattr(contention.time, "process_time", lambda: next(own))
    monkeypatch.setattr(contention.time, "perf_counter", lambda: next(clock))
    with Monitor("cpu", canary=lambda: 0.001) as monitor:
        pass
    assert monitor.seen.others_cores == pytest.approx(0.25)
    assert monitor.seen.stolen_cores == pytest.approx(0.25)
    assert monitor.seen.gpu_processes is None


def test_the_slower_canary_counts():
    took = iter([0.001, 0.003])
    with Monitor("cpu", canary=lambda: next(took)) as monitor:
        pass
    assert monitor.seen.canary_s == 0.003


def test_the_canary_takes_about_as_long_as_it_is_told():
    started = time.perf_counter()
    assert 0 < canary_s("cpu", 0.05) < 0.5
    assert time.perf_counter() - started < 2.0


@pytest.mark.parametrize(
    ("pids", "others"), [([os.getpid()], 0), ([os.getpid(), 7], 1), ([7, 8], 1), ([], 0)]
)
def test_other_processes_on_the_gpu_are_counted(pids, others, monkeypatch):
    lib = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetComputeRunningProcesses=lambda handle: [SimpleNamespace(pid=p) for p in pids],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x4 | 0x40,
    )
    monkeypatch.setattr(contention, "nvml", lambda: lib)
    monkeypatch.setattr(contention, "nvml_handle", lambda lib, index: index)
    assert contention._gpu_state("cuda:1") == (others, "thermal, by hardware")


@pytest.mark.gpu
def test_another_process_on_the_gpu_is_seen_and_oneself_is_not():
    import torch

    torch.zeros(1, device="cuda")
    with Monitor("cuda") as alone:
        time.sleep(0.5)
    program = "import torch, time; torch.zeros(1, device='cuda'); print(flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with Monitor("cuda") as beside:
            time.sleep(0.5)
    finally:
        other.kill()
        other.wait()
    assert (alone.seen.gpu_processes, beside.seen.gpu_processes) == (0, 1)
    assert alone.seen.slowdowns == ""
    assert alone.seen.others_cores == 0.0
    assert 0 < alone.seen.canary_s < 0.1
