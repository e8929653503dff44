"""Who else used this machine while something was measured.

A pass that ran beside another program is slow for a reason that its own timings cannot show: one
busy process on two cores made a pass of 0.22 s take 2 to 9 s. The kernel's counters tell the two
apart: the CPU time of all processes less one's own, what the hypervisor gave to other machines,
and on a GPU the driver's list of processes and its reasons for slower clocks. A canary, a small
fixed computation before and after, notices what no counter shows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qvl_lab.hardware import gpu_index, nvml, nvml_handle
from qvl_lab.probe.power import throttling

STAT = Path("/proc/stat")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
CANARY_S = 0.1
#: The bit of NVML's "software power cap": a GPU at work reaches it by itself, so it is no fault.
_POWER_CAP = 0x4


@dataclass(frozen=True, kw_only=True)
class Contention:
    """What others took from a measurement; None where the system does not tell.

    Attributes
    ----------
    others_cores : float
        Mean number of cores that other processes kept from this one: what they used beyond the
        cores that this process had no use for.
    stolen_cores : float
        Mean number of cores that the hypervisor gave to other machines.
    canary_s : float
        Seconds of one product of the canary, the slower of before and after.
    gpu_processes : int
        Other processes with a context on the GPU.
    slowdowns : str
        Why the GPU's clocks were lowered, in words; "" where they were not.
    """

    others_cores: float | None = None
    stolen_cores: float | None = None
    canary_s: float | None = None
    gpu_processes: int | None = None
    slowdowns: str | None = None


@dataclass(frozen=True, kw_only=True)
class CpuTimes:
    """Seconds since the system started, summed over the cores that this process may use."""

    busy_s: float
    stolen_s: float


class Monitor:
    """``with Monitor("cpu") as monitor: ...`` and then ``monitor.seen``.

    Parameters
    ----------
    device : str
        "cpu", "cuda" or "cuda:1": where the work runs.
    canary : callable, optional
        Returns the seconds of a small fixed computation; by default :func:`canary_s` on the
        device.
    """

    def __init__(self, device: str, canary: Callable[[], float] | None = None) -> None:
        self._device = device
        self._canary = canary or (lambda: canary_s(device))
        self.seen = Contention()

    def __enter__(self) -> Self:
        self._canary_before_s = self._canary()
        self._began = (cpu_times(), time.process_time(), time.perf_counter())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            return
        before, own_before_s, started_s = self._began
        after, own_s = cpu_times(), time.process_time() - own_before_s
        wall_s = time.perf_counter() - started_s
        processes, slowdowns = _gpu_state(self._device)  # while the clocks are those of the work
        slower_s = max(self._canary_before_s, self._canary())
        others = stolen = None
        if before and after:
            busy_s = after.busy_s - before.busy_s
            others = cores_kept_away(
                busy_s - own_s, own_s, wall_s, needed=_needed_cores(self._device)
            )
            stolen = max(0.0, after.stolen_s - before.stolen_s) / wall_s
        self.seen = Contention(
            others_cores=others,
            stolen_cores=stolen,
            canary_s=slower_s,
            gpu_processes=processes,
            slowdowns=slowdowns,
        )


def cores_kept_away(
    others_s: float,
    own_s: float,
    wall_s: float,
    *,
    needed: float | None = None,
    cores: int | None = None,
) -> float:
    """Mean number of cores that others kept from this process.

    On a machine of 64 cores, of which this process may or can use 8, what others do on the rest
    keeps nothing from it.

    Parameters
    ----------
    others_s, own_s, wall_s : float
        CPU seconds of others and of this process, and the time that passed.
    needed : float, optional
        Cores that this process can use; by default those that it did use.
    cores : int, optional
        Cores that it may run on; by default those of its affinity mask.
    """
    available = len(os.sched_getaffinity(0)) if cores is None else cores
    used = own_s / wall_s if needed is None else needed
    spare = max(0.0, available - used)
    return max(0.0, others_s / wall_s - spare)


def cpu_times(stat: Path = STAT) -> CpuTimes | None:
    """Read the kernel's counters, of the cores in this process's affinity mask; None without."""
    try:
        lines = stat.read_text("ascii").splitlines()
    except OSError:
        return None
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    busy = stolen = 0
    for line in lines:
        name, *rest = line.split()
        if name not in mine:
            continue
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(n) for n in rest[:8])
        busy += user + nice + system + irq + softirq
        stolen += steal
    return CpuTimes(busy_s=busy * tick_s, stolen_s=stolen * tick_s)


def cpu_limit(limit: Path = CPU_LIMIT) -> float:
    """Cores that this process may use at once: its affinity mask, or its container's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = limit.read_text("ascii").split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or "max"
        return cores


def canary_s(device: str, lasting_s: float = CANARY_S) -> float:
    """The fastest of small matrix products, repeated for about ``lasting_s``.

    The median of 0.1 s differed by up to 1.6 times on two quiet cores; what slows the machine down
    for the whole time slows the fastest one too.
    """
    import torch

    side = 2048 if device.startswith("cuda") else 384
    a, b = (torch.ones(side, side, device=device) for _ in range(2))
    torch.mm(a, b)  # loads the library
    took_s: list[float] = []
    end_s = time.perf_counter() + lasting_s
    while not took_s or time.perf_counter() < end_s:
        started_s = time.perf_counter()
        torch.mm(a, b)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        took_s.append(time.perf_counter() - started_s)
    return min(took_s)


def _needed_cores(device: str) -> float | None:
    """Cores that the work can use: torch's threads on a CPU; beside a GPU, what it did use."""
    if device.startswith("cuda"):
        return None
    import torch

    return min(float(torch.get_num_threads()), cpu_limit())


def _gpu_state(device: str) -> tuple[int | None, str | None]:
    """Other processes on the GPU, and why its clocks are lowered; (None, None) without NVML."""
    index = gpu_index(device)
    lib = nvml() if index is not None else None
    if lib is None:
        return None, None
    handle = nvml_handle(lib, index or 0)
    return _other_processes(lib, handle), _slowdowns(lib, handle)


def _other_processes(lib: Any, handle: Any) -> int | None:
    """Processes with a context besides this one.

    In a container the driver may show the host's process numbers, among which one's own is not
    to be found; one of them is then taken for it.
    """
    try:
        pids = {process.pid for process in lib.nvmlDeviceGetComputeRunningProcesses(handle)}
    except (lib.NVMLError, AttributeError):
        return None
    return len(pids - {os.getpid()}) if os.getpid() in pids else max(0, len(pids) - 1)


def _slowdowns(lib: Any, handle: Any) -> str | None:
    try:
        reasons = int(lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    except (lib.NVMLError, AttributeError):
        return None
    return throttling(reasons & ~_POWER_CAP)
