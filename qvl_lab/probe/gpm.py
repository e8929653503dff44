"""How busy the multiprocessors are, by NVML's GPM, which Hopper and later GPUs offer.

NVML's utilisation says whether any kernel ran; a single thread makes it 100%. GPM counts the
multiprocessors that had work. Source: NVML API reference, "GPM functions".
"""

from __future__ import annotations

import math
import time
from typing import Any

#: The driver refreshes GPM's counters about every 0.1 s (an H200, driver 580): readings closer
#: together often see no change and say 0, so they are taken twice as far apart.
INTERVAL_S = 0.2


class SmActivity:
    """Share of the multiprocessors that were busy between two readings of the driver.

    Parameters
    ----------
    lib : module
        The NVML binding.
    handle
        NVML's handle of the device.

    Raises
    ------
    lib.NVMLError, AttributeError
        If the driver, the device or the binding does not offer GPM.
    """

    def __init__(self, lib: Any, handle: Any) -> None:
        self._lib, self._handle = lib, handle
        if not lib.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice:
            raise lib.NVMLError(lib.NVML_ERROR_NOT_SUPPORTED)
        self._last, self._next = lib.nvmlGpmSampleAlloc(), lib.nvmlGpmSampleAlloc()
        lib.nvmlGpmSampleGet(handle, self._last)
        self._read_at = time.perf_counter()

    def __call__(self) -> float:
        """Since the last reading, 0-1; NaN if that is too recent or the driver could not tell."""
        lib = self._lib
        if time.perf_counter() - self._read_at < INTERVAL_S:
            return math.nan
        self._read_at = time.perf_counter()
        lib.nvmlGpmSampleGet(self._handle, self._next)
        request = lib.c_nvmlGpmMetricsGet_t()
        request.version, request.numMetrics = lib.NVML_GPM_METRICS_GET_VERSION, 1
        request.sample1, request.sample2 = self._last, self._next
        request.metrics[0].metricId = lib.NVML_GPM_METRIC_SM_UTIL
        metric = lib.nvmlGpmMetricsGet(request).metrics[0]
        self._last, self._next = self._next, self._last
        return float(metric.value) / 100 if metric.nvmlReturn == 0 else math.nan

    def close(self) -> None:
        """Give the samples back to the driver."""
        for sample in (self._last, self._next):
            self._lib.nvmlGpmSampleFree(sample)
