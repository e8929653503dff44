"""Sampling what the device does while work runs: utilisation, power, memory, clocks.

A thread reads NVML, or the process's resident memory where there is no GPU. What the driver does
not tell is None.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pandas as pd
import psutil

from qvl_lab.hardware import nvml, nvml_handle
from qvl_lab.probe.gpm import SmActivity


class Sampler:
    """``with Sampler(gpu_index=0) as sampler: ...`` and then ``sampler.frame()``.

    Parameters
    ----------
    gpu_index : int or None
        Which GPU to watch; None watches only the process's memory.
    interval_s : float
        Pause between samples.
    detail : bool
        Also read activity, clocks, temperature and throttling: more calls a sample.
    """

    def __init__(
        self, gpu_index: int | None = None, interval_s: float = 0.05, *, detail: bool = False
    ) -> None:
        self._lib = nvml() if gpu_index is not None else None
        self._handle = nvml_handle(self._lib, gpu_index or 0) if self._lib else None
        self._activity = self._sm_activity() if detail else None
        self._readings = _readings(self._lib, self._handle, detail=detail)
        if self._activity:
            self._readings["sm_activity"] = self._activity
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="qvl-lab sampler", daemon=True)
        self._samples: list[dict[str, Any]] = []
        self._counted_j: list[float] = []

    def __enter__(self) -> Self:
        self._counted_j.append(self._energy_counter_j())
        self._samples.append(self._sample())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._samples.append(self._sample())
        self._counted_j.append(self._energy_counter_j())
        if self._activity:
            self._activity.close()

    def frame(self) -> pd.DataFrame:
        """One row per sample; what is unknown is NaN.

        ``time_s`` on ``time.perf_counter``'s clock, as the stages; ``gpu_utilisation`` (0-1,
        whether any kernel ran); ``power_w``; ``device_memory_bytes`` (all that is used on the
        device); ``process_memory_bytes`` (this process's share of it, or its resident memory
        where there is no GPU). With ``detail`` also ``sm_activity`` (0-1, how many
        multiprocessors were busy since the reading before; the driver allows one every 0.2 s, and
        samples between are NaN), ``sm_clock_hz``, ``memory_clock_hz``, ``temperature_c`` and
        ``throttled``, the reasons for slower clocks in words, "" if there are none.
        """
        return pd.DataFrame(self._samples)

    def summary(self) -> dict[str, float | None]:
        """Means of utilisation and power, energy in joules, peaks of memory in bytes.

        The energy is read off the driver's energy counter, which misses no burst between two
        samples. Where the driver offers none, it is the mean power times the time.
        """
        frame = self.frame()
        power_w = _known(frame["power_w"].mean())
        return {
            "gpu_utilisation": _known(frame["gpu_utilisation"].mean()),
            "power_w": power_w,
            "energy_j": self._energy_j(frame, power_w),
            "device_memory_bytes": _known(frame["device_memory_bytes"].max()),
            "process_memory_bytes": _known(frame["process_memory_bytes"].max()),
        }

    def _energy_j(self, frame: pd.DataFrame, power_w: float | None) -> float | None:
        counted_j = self._counted_j[-1] - self._counted_j[0]
        if counted_j > 0:  # NaN without a counter; 0 if it was not refreshed in so short a time
            return counted_j
        elapsed_s = frame["time_s"].iloc[-1] - frame["time_s"].iloc[0]
        return None if power_w is None else power_w * elapsed_s

    def _energy_counter_j(self) -> float:
        """Joules since the driver was loaded, which NVML counts in millijoules, or NaN."""
        if self._lib is None:
            return float("nan")
        try:
            return float(self._lib.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except (self._lib.NVMLError, AttributeError):  # before Volta, or an old driver
            return float("nan")

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._samples.append(self._sample())

    def _sample(self) -> dict[str, Any]:
        sample: dict[str, Any] = {"time_s": time.perf_counter()}
        for name, read in self._readings.items():
            try:
                sample[name] = read()
            except self._lib.NVMLError:  # type: ignore[union-attr]
                sample[name] = float("nan")
        if self._lib is None:
            sample["process_memory_bytes"] = self._process.memory_info().rss
        return sample

    def _sm_activity(self) -> SmActivity | None:
        if self._lib is None:
            return None
        try:
            return SmActivity(self._lib, self._handle)
        except (self._lib.NVMLError, AttributeError):  # not offered
            return None


def _readings(lib: Any, handle: Any, *, detail: bool) -> dict[str, Callable[[], Any]]:
    """Column to what reads it; without a driver every reading is NaN."""
    readings: dict[str, Callable[[], Any]] = {
        "gpu_utilisation": lambda: lib.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        "power_w": lambda: lib.nvmlDeviceGetPowerUsage(handle) / 1000,
        "device_memory_bytes": lambda: lib.nvmlDeviceGetMemoryInfo(handle).used,
        "process_memory_bytes": lambda: _own_gpu_memory(lib, handle),
    }
    if detail:
        readings |= {
            "sm_activity": lambda: float("nan"),
            "sm_clock_hz": lambda: 1e6 * lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM),
            "memory_clock_hz": lambda: 1e6 * lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_MEM),
            "temperature_c": lambda: float(
                lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU)
            ),
            "throttled": lambda: throttling(lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        }
    return readings if lib else dict.fromkeys(readings, lambda: float("nan"))


#: Bits of NVML's clocks throttle reasons that mean slower work, from the NVML API reference.
_THROTTLE = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}


def throttling(reasons: int) -> str:
    """NVML's bits as words, "" where nothing slows the clocks."""
    return ", ".join(words for bit, words in _THROTTLE.items() if reasons & bit)


def _own_gpu_memory(lib: Any, handle: Any) -> float:
    """What the driver attributes to this process; in a container it may not know it."""
    for process in lib.nvmlDeviceGetComputeRunningProcesses(handle):
        if process.pid == os.getpid() and process.usedGpuMemory is not None:
            return float(process.usedGpuMemory)
    return float("nan")


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
