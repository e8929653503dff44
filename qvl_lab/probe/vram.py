"""Memory as torch's allocator saw it: peaks, a timeline by stage, a snapshot for its viewer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from qvl_lab.errors import ConfigError


def reset_peak(device: str) -> None:
    """Start a new peak on a CUDA device; elsewhere there is nothing to reset."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> dict[str, int | None]:
    """Peak bytes since :func:`reset_peak`: ``allocated`` by tensors, ``reserved`` from the driver.

    None off CUDA, where torch keeps no count.
    """
    if not device.startswith("cuda"):
        return {"allocated": None, "reserved": None}
    import torch

    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }


class Timeline:
    """A listener that reads memory at the marks of the outermost stages.

    It resets the allocator's peak at every mark, so the peaks of :func:`peak_bytes` are the last
    stage's while it listens.

    Parameters
    ----------
    device : str
        "cuda", "cuda:0", or "cpu", where the process's resident memory is read instead.
    """

    def __init__(self, device: str) -> None:
        self._device, self._process = device, psutil.Process()
        self._open: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def begin(self, name: str, gpu: bool, **_: int) -> None:
        if not self._open:
            self._read("", f"before {name}")
        self._open.append(name)

    def end(self, name: str, gpu: bool, **_: int) -> None:
        if name not in self._open:
            return
        while self._open.pop() != name:
            pass
        if not self._open:
            self._read(name, f"after {name}")

    def frame(self) -> pd.DataFrame:
        """One row per mark.

        ``time_s`` on ``time.perf_counter``'s clock; ``mark`` in words; ``stage`` that ended there,
        "" if none; ``allocated_bytes``, ``reserved_bytes`` and ``process_memory_bytes`` then;
        ``peak_bytes`` allocated since the mark before. NaN where torch keeps no count.
        """
        columns = ["time_s", "mark", "stage", "allocated_bytes", "reserved_bytes"]
        return pd.DataFrame(self._rows, columns=[*columns, "peak_bytes", "process_memory_bytes"])

    def _read(self, stage: str, mark: str) -> None:
        row = {"time_s": time.perf_counter(), "mark": mark, "stage": stage}
        if self._device.startswith("cuda"):
            import torch

            row |= {
                "allocated_bytes": torch.cuda.memory_allocated(self._device),
                "reserved_bytes": torch.cuda.memory_reserved(self._device),
                "peak_bytes": torch.cuda.max_memory_allocated(self._device),
            }
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            row["process_memory_bytes"] = self._process.memory_info().rss
        self._rows.append(row)


@contextmanager
def snapshot(path: str | Path, *, max_entries: int = 100_000) -> Iterator[None]:
    """Record every allocation while the block runs, for https://docs.pytorch.org/memory_viz.

    Parameters
    ----------
    path : path
        The file that PyTorch's viewer opens. It is written also if the block raises. Only open
        snapshots that you wrote: the format is a pickle.
    max_entries : int
        The newest events that are kept.

    Raises
    ------
    ConfigError
        Without a CUDA device: torch's CPU allocator keeps no history.
    """
    import torch

    if not torch.cuda.is_available():
        raise ConfigError("a memory snapshot needs a CUDA device: torch keeps no history on a CPU")
    torch.cuda.memory._record_memory_history(max_entries=max_entries)
    try:
        yield
    finally:
        try:
            torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
