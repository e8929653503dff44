"""Sampling a device while work runs."""

from __future__ import annotations

import os
import threading
import time
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from qvl_lab.probe import gpm, power
from qvl_lab.probe.power import Sampler


class NvmlError(Exception):
    pass


class FakeNvml:
    """Readings that a test sets; a reading set to None fails as the driver would."""

    NVMLError = NvmlError

    def __init__(self, **readings):
        self.readings = {"gpu": 50, "milliwatts": 70_000, "used": 100, "processes": []} | readings
        self.index = None

    def _read(self, name):
        if self.readings[name] is None:
            raise NvmlError("Not Supported")
        return self.readings[name]

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        self.index = index
        return f"handle {index}"

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return SimpleNamespace(gpu=self._read("gpu"))

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return self._read("milliwatts")

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=self._read("used"))

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return self._read("processes")


class FakeHopper(FakeNvml):
    """One that also offers clocks, temperature and GPM."""

    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_GPM_METRICS_GET_VERSION, NVML_GPM_METRIC_SM_UTIL = 1, 2

    def __init__(self, **readings):
        super().__init__(**{"supported": 1, "throttle": 0, "percent": 40.0} | readings)
        self.alive, self.asked = [], []

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return {1: 1980, 2: 3201}[kind]

    def nvmlDeviceGetTemperature(self, handle, kind):  # noqa: N802
        return 41

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return self._read("throttle")

    def nvmlGpmQueryDeviceSupport(self, handle):  # noqa: N802
        return SimpleNamespace(isSupportedDevice=self._read("supported"))

    def nvmlGpmSampleAlloc(self):  # noqa: N802
        self.alive.append(object())
        return self.alive[-1]

    def nvmlGpmSampleFree(self, sample):  # noqa: N802
        self.alive.remove(sample)

    def nvmlGpmSampleGet(self, handle, sample):  # noqa: N802
        self.asked.append(sample)

    def c_nvmlGpmMetricsGet_t(self):  # noqa: N802
        return SimpleNamespace(metrics=[SimpleNamespace(nvmlReturn=0)])

    def nvmlGpmMetricsGet(self, request):  # noqa: N802
        assert request.sample1 in self.asked
        assert request.sample2 is self.asked[-1] is not request.sample1
        assert request.metrics[0].metricId == self.NVML_GPM_METRIC_SM_UTIL
        request.metrics[0].value = self._read("percent")
        return request


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert "qvl-lab sampler" not in [thread.name for thread in threading.enumerate()]


def sampled(monkeypatch, lib, apart_s=1.0, **options):
    """A finished sampler of GPU 1: one sample before the work and one after it.

    The clock of GPM moves on between two looks at it.
    """
    monkeypatch.setattr(power, "nvml", lambda: lib)
    clock = count()
    monkeypatch.setattr(gpm, "time", SimpleNamespace(perf_counter=lambda: next(clock) * apart_s))
    with Sampler(1, interval_s=60, **options) as sampler:
        pass
    return sampler


def process(pid, used):
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def test_without_a_gpu_only_resident_memory_is_known():
    # far more than what other tests left behind and is given back meanwhile
    with Sampler(interval_s=60) as sampler:
        block = np.ones(512 * 2**20, np.uint8)
        touched = int(block[::4096].sum())
    frame = sampler.frame()
    assert touched == 512 * 2**20 // 4096
    assert len(frame) == 2
    assert frame["process_memory_bytes"].iloc[1] - frame["process_memory_bytes"].iloc[0] > 50e6
    assert frame[["gpu_utilisation", "power_w", "device_memory_bytes"]].isna().all(axis=None)
    summary = sampler.summary()
    assert summary.pop("process_memory_bytes") == frame["process_memory_bytes"].max()
    assert summary == dict.fromkeys(
        ["gpu_utilisation", "power_w", "energy_j", "device_memory_bytes"]
    )


def test_samples_are_taken_while_work_runs():
    with Sampler(interval_s=0.01) as sampler:
        deadline = time.perf_counter() + 10
        while len(sampler.frame()) < 5 and time.perf_counter() < deadline:
            time.sleep(0.01)
    times = sampler.frame()["time_s"]
    assert len(times) >= 5
    assert (times.diff().dropna() > 0).all()


def test_readings_come_in_plain_units(monkeypatch):
    lib = FakeNvml(gpu=25, milliwatts=70_500, used=2**30, processes=[process(os.getpid(), 2**20)])
    row = sampled(monkeypatch, lib).frame().iloc[0].drop("time_s").to_dict()
    assert lib.index == 1
    assert row == {
        "gpu_utilisation": 0.25,
        "power_w": 70.5,
        "device_memory_bytes": 2**30,
        "process_memory_bytes": 2**20,
    }


def test_summary_has_means_peaks_and_energy(monkeypatch):
    lib = FakeNvml(gpu=20, milliwatts=50_000, used=300)
    monkeypatch.setattr(power, "nvml", lambda: lib)
    monkeypatch.setattr(power, "time", SimpleNamespace(perf_counter=iter((10.0, 14.0)).__next__))
    with Sampler(0, interval_s=60) as sampler:
        lib.readings |= {"gpu": 60, "milliwatts": 100_000, "used": 200}
    assert sampler.summary() == {
        "gpu_utilisation": pytest.approx(0.4),
        "power_w": 75.0,
        "energy_j": 300.0,  # 75 W for 4 s
        "device_memory_bytes": 300.0,
        "process_memory_bytes": None,
    }


class CountsEnergy(FakeNvml):
    """One with an energy counter."""

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self._read("millijoules")


@pytest.mark.parametrize(
    ("before", "after", "energy_j"),
    [
        (7_000_000, 7_420_000, 420.0),  # with a burst that no sample saw
        (7_000_000, 7_000_000, 200.0),  # not refreshed meanwhile: 50 W for 4 s
        (7_000_000, 1_000, 200.0),  # the driver was loaded again
        (None, None, 200.0),
        (7_000_000, None, 200.0),
    ],
)
def test_energy_is_what_the_driver_counted_where_it_counts(monkeypatch, before, after, energy_j):
    lib = CountsEnergy(milliwatts=50_000, millijoules=before)
    monkeypatch.setattr(power, "nvml", lambda: lib)
    monkeypatch.setattr(power, "time", SimpleNamespace(perf_counter=iter((10.0, 14.0)).__next__))
    with Sampler(0, interval_s=60) as sampler:
        lib.readings["millijoules"] = after
    assert sampler.summary()["energy_j"] == energy_j
    assert sampler.summary()["power_w"] == 50.0


def test_what_the_driver_does_not_tell_is_unknown(monkeypatch):
    summary = sampled(monkeypatch, FakeNvml(milliwatts=None, processes=None)).summary()
    assert summary["power_w"] is None
    assert summary["energy_j"] is None
    assert summary["process_memory_bytes"] is None
    assert (summary["gpu_utilisation"], summary["device_memory_bytes"]) == (0.5, 100.0)


@pytest.mark.parametrize(
    "processes",
    [[], [process(1, 5)], [process(os.getpid(), None)]],
    ids=["none", "other", "hidden"],
)
def test_memory_of_other_processes_is_not_ours(monkeypatch, processes):
    summary = sampled(monkeypatch, FakeNvml(processes=processes)).summary()
    assert summary["process_memory_bytes"] is None


def test_a_gpu_is_asked_for_but_there_is_no_driver(monkeypatch):
    summary = sampled(monkeypatch, None).summary()
    assert summary["power_w"] is None
    assert summary["process_memory_bytes"] > 1e6


def test_the_thread_ends_when_the_work_fails():
    with pytest.raises(KeyError), Sampler(interval_s=60) as sampler:
        raise KeyError
    assert len(sampler.frame()) == 2


# ---- in detail


DETAIL = ["sm_activity", "sm_clock_hz", "memory_clock_hz", "temperature_c", "throttled"]


def test_detail_has_activity_clocks_and_what_slows_them(monkeypatch):
    lib = FakeHopper(throttle=0x4 | 0x40 | 0x1, percent=62.5)
    frame = sampled(monkeypatch, lib, detail=True).frame()
    assert frame.iloc[0][DETAIL].tolist() == [
        0.625,
        1.98e9,
        3.201e9,
        41.0,
        "power cap, thermal, by hardware",
    ]
    assert len(lib.asked) == 3  # one to begin with, then one a reading, each against the last
    assert lib.alive == []


def test_activity_is_read_no_faster_than_the_driver_refreshes_it(monkeypatch):
    lib = FakeHopper()
    frame = sampled(monkeypatch, lib, apart_s=0.15, detail=True).frame()
    assert frame["sm_activity"].isna().tolist() == [True, False]  # 0.15 and 0.3 s after the first
    assert frame["sm_activity"].mean() == 0.4
    assert len(lib.asked) == 2
    assert lib.alive == []


def test_an_older_gpu_has_no_activity_but_the_rest(monkeypatch):
    lib = FakeHopper(supported=0)
    row = sampled(monkeypatch, lib, detail=True).frame().iloc[0]
    assert np.isnan(row["sm_activity"])
    assert (row["temperature_c"], row["throttled"], row["power_w"]) == (41.0, "", 70.0)


def test_activity_that_the_driver_refuses_later_is_unknown(monkeypatch):
    row = sampled(monkeypatch, FakeHopper(percent=None), detail=True).frame().iloc[0]
    assert np.isnan(row["sm_activity"])


def test_detail_without_a_gpu_is_unknown(monkeypatch):
    frame = sampled(monkeypatch, None, detail=True).frame()
    assert frame[DETAIL].isna().all(axis=None)
