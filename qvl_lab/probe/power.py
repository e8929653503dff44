"""Sampling what the device does while work runs: utilisation, power, memory.

A thread reads NVML, or the process's resident memory where there is no GPU. What the driver does
not tell is None.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Any, Self

import pandas as pd
import psutil

from qvl_lab.hardware import nvml, nvml_handle


class Sampler:
    """``with Sampler(gpu_index=0) as sampler: ...`` and then ``sampler.frame()``.

    Parameters
    ----------
    gpu_index : int or None
        Which GPU to watch; None watches only the process's memory.
    interval_s : float
        Pause between samples.
    """

    def __init__(self, gpu_index: int | None = None, interval_s: float = 0.05) -> None:
        self._lib = nvml() if gpu_index is not None else None
        self._handle = nvml_handle(self._lib, gpu_index or 0) if self._lib else None
        self._interval_s = interval_s
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="qvl-lab sampler", daemon=True)
        self._samples: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
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

    def frame(self) -> pd.DataFrame:
        """One row per sample.

        ``time_s``; ``gpu_utilisation`` (0-1); ``power_w``; ``device_memory_bytes`` (all that is
        used on the device); ``process_memory_bytes`` (this process's share of it, or its resident
        memory where there is no GPU).
        """
        return pd.DataFrame(self._samples)

    def summary(self) -> dict[str, float | None]:
        """Means of utilisation and power, energy in joules, peaks of memory in bytes."""
        frame = self.frame()
        elapsed_s = frame["time_s"].iloc[-1] - frame["time_s"].iloc[0]
        power_w = _known(frame["power_w"].mean())
        return {
            "gpu_utilisation": _known(frame["gpu_utilisation"].mean()),
            "power_w": power_w,
            "energy_j": None if power_w is None else power_w * elapsed_s,
            "device_memory_bytes": _known(frame["device_memory_bytes"].max()),
            "process_memory_bytes": _known(frame["process_memory_bytes"].max()),
        }

    def _loop(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._samples.append(self._sample())

    def _sample(self) -> dict[str, Any]:
        lib, handle = self._lib, self._handle
        sample: dict[str, Any] = {"time_s": time.perf_counter()}
        if lib is None:
            sample["process_memory_bytes"] = self._process.memory_info().rss
            unknown = ("gpu_utilisation", "power_w", "device_memory_bytes")
            return sample | dict.fromkeys(unknown, float("nan"))
        readings = {
            "gpu_utilisation": lambda: lib.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "power_w": lambda: lib.nvmlDeviceGetPowerUsage(handle) / 1000,
            "device_memory_bytes": lambda: lib.nvmlDeviceGetMemoryInfo(handle).used,
            "process_memory_bytes": self._own_gpu_memory,
        }
        for name, read in readings.items():
            try:
                sample[name] = read()
            except lib.NVMLError:
                sample[name] = float("nan")
        return sample

    def _own_gpu_memory(self) -> float:
        """What the driver attributes to this process; in a container it may not know it."""
        assert self._lib is not None
        for process in self._lib.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return float(process.usedGpuMemory)
        return float("nan")


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
