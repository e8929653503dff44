"""Writes to the disk tier in a thread, so that the engine's steps do not wait for the disk."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qvl_lab.caching.disk import DiskTier, Tensors
from qvl_lab.models.memory import out_of_memory

#: Bytes of entries that wait to be written at most.
MAX_QUEUED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class _Write:
    """An entry to write: ``tensors`` on the CPU, complete once the CUDA event ``copied`` is."""

    tensors: Tensors
    cost_s: float
    copied: Any

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def wait(self) -> None:
        """Wait for the copy from the device."""
        if self.copied is not None:
            self.copied.synchronize()


class DiskWriter:
    """Saves to and loads from a :class:`~qvl_lab.caching.disk.DiskTier`.

    Entries are written in the order they came, by a thread that ends when none is left. It is no
    daemon, so Python waits for it at exit. Where the process is killed, the entry that was being
    written and those that waited are lost; files are written whole or not at all.

    Parameters
    ----------
    tier : DiskTier
    max_bytes : int
        Bound on the entries that wait. One that comes when it is reached is dropped.

    Attributes
    ----------
    dropped : int
        How many entries were dropped.
    """

    def __init__(self, tier: DiskTier, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.tier, self.max_bytes, self.dropped = tier, max_bytes, 0
        self._waiting: dict[str, _Write] = {}  # in order; the first is being written
        self._bytes = 0
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None

    def save(self, key: str, tensors: Mapping[str, torch.Tensor], cost_s: float) -> None:
        """Have an entry written, without waiting for the device or the disk.

        The tensors must not be written to. Raises the failure of an earlier write, if it was
        neither one of the disk, which turns the tier off, nor a lack of memory.
        """
        self._raise_failure()
        size = sum(tensor.nbytes for tensor in tensors.values())
        with self._lock:
            if self.tier.off is not None or key in self._waiting or size > self.tier.max_bytes:
                return
            if self._waiting and self._bytes + size > self.max_bytes:
                self.dropped += 1
                return
            write = _Write(*_to_cpu(tensors, cost_s))
            self._waiting[key] = write
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="qvl-lab disk cache")
                self._thread.start()

    def load(self, key: str) -> tuple[Tensors, float] | None:
        """The tensors of a key, on the CPU, and their cost in seconds; None if there are none."""
        with self._lock:
            write = self._waiting.get(key)
        if write is None:
            return self.tier.load(key)
        write.wait()
        return dict(write.tensors), write.cost_s

    def flush(self) -> None:
        """Wait until every entry is written. Raises as :meth:`save`."""
        while (thread := self._thread) is not None:
            thread.join()
        self._raise_failure()

    def _run(self) -> None:
        while (first := self._first()) is not None:
            key, write, alone = first
            try:
                write.wait()
                self.tier.save(key, write.tensors, write.cost_s, tidy=alone)
            except Exception as e:
                if not out_of_memory(e):
                    self._failure = e
            with self._lock:
                del self._waiting[key]
                self._bytes -= write.bytes

    def _first(self) -> tuple[str, _Write, bool] | None:
        """The entry to write next, and whether no other waits; None ends the thread."""
        with self._lock:
            if not self._waiting:
                self._thread = None
                return None
            key = next(iter(self._waiting))
            return key, self._waiting[key], len(self._waiting) == 1

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def _to_cpu(
    tensors: Mapping[str, torch.Tensor], cost_s: float
) -> tuple[dict[str, torch.Tensor], float, Any]:
    """Start copies to pinned memory beside the running stream, and an event at their end."""
    cuda = next((t.device for t in tensors.values() if t.is_cuda), None)
    if cuda is None:
        return dict(tensors), cost_s, None
    side = torch.cuda.Stream(cuda)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(cuda))
    copies: dict[str, torch.Tensor] = {}
    with torch.cuda.stream(side):
        for name, tensor in tensors.items():
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            copies[name] = copy.copy_(tensor, non_blocking=True)
            if tensor.is_cuda:
                tensor.record_stream(side)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
    return copies, cost_s, copied
