"""Tensors by key, in memory on the device and, if there is a disk tier, in a folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from qvl_lab.caching.disk import DiskTier
from qvl_lab.caching.disk_writer import DiskWriter
from qvl_lab.caching.lru import Lru
from qvl_lab.models.memory import out_of_memory


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Counts of a cache so far.

    Attributes
    ----------
    hits, disk_hits, misses, evictions : int
        ``hits`` includes ``disk_hits``.
    bytes, disk_bytes : int
        What is held now; ``disk_bytes`` is 0 without a disk tier, or once it is off.
    dropped_writes : int
        Entries that were not written to disk because too many were waiting to be written.
    saved_s, disk_load_s : float
        What the values that were found had taken to compute, and what loading from disk took,
        which is not subtracted from it.
    """

    hits: int = 0
    misses: int = 0
    disk_hits: int = 0
    evictions: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    dropped_writes: int = 0
    saved_s: float = 0.0
    disk_load_s: float = 0.0

    @property
    def hit_rate(self) -> float | None:
        """Hits per request; None before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


@dataclass(frozen=True)
class _Entry:
    tensors: dict[str, torch.Tensor]
    cost_s: float

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


class TensorCache:
    """Named tensors by key: on ``device`` within a byte budget, and on disk if there is a tier.

    The tensors that come out are shared with the cache and must not be written to, and neither must
    those that went in. Where memory for a copy runs out, nothing is found or kept, and nothing is
    raised.

    Parameters
    ----------
    max_bytes, max_entries
        Bounds of the memory tier, as for :class:`~qvl_lab.caching.lru.Lru`.
    disk : DiskTier, optional
        Asked when the memory tier does not know a key. A thread writes to it.
    device : str or torch.device
        Where the memory tier is.
    """

    def __init__(
        self,
        max_bytes: int,
        max_entries: int | None = None,
        disk: DiskTier | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self._disk = DiskWriter(disk) if disk else None
        self._memory: Lru[_Entry] = Lru(max_bytes, max_entries)
        self._counts, self._lock = CacheStats(), threading.Lock()

    @property
    def stats(self) -> CacheStats:
        """Counts since the start, and sizes now; lists the disk tier's folder."""
        return replace(
            self._counts,
            evictions=self._memory.evictions,
            bytes=self._memory.bytes,
            disk_bytes=self._disk.tier.bytes if self._disk else 0,
            dropped_writes=self._disk.dropped if self._disk else 0,
        )

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """The tensors of a key, on ``device``; None if neither tier has them.

        What is found on disk is kept in memory from then on.
        """
        if (entry := self._memory.get(key)) is not None:
            self._count(hits=1, saved_s=entry.cost_s)
        elif (entry := self._from_disk(key)) is not None:
            self._count(hits=1, disk_hits=1, saved_s=entry.cost_s)
        else:
            self._count(misses=1)
            return None
        return dict(entry.tensors)

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], cost_s: float) -> None:
        """Keep tensors, which took ``cost_s`` seconds to compute.

        A disk tier is written to by a thread; this waits for neither the device nor the disk.
        """
        try:
            entry = _Entry({name: _owned(t, self.device) for name, t in tensors.items()}, cost_s)
            self._memory.put(key, entry, entry.bytes)
            if self._disk:
                self._disk.save(key, entry.tensors, cost_s)
        except Exception as e:
            if not out_of_memory(e):
                raise

    def clear(self) -> None:
        """Write what waits for the disk, and drop what is in memory; the counts go on."""
        self.flush()
        self._memory.clear()

    def flush(self) -> None:
        """Wait until everything that was put is on disk."""
        if self._disk:
            self._disk.flush()

    def _from_disk(self, key: str) -> _Entry | None:
        if self._disk is None:
            return None
        started = time.perf_counter()
        try:
            if (found := self._disk.load(key)) is None:
                return None
            entry = _Entry({name: t.to(self.device) for name, t in found[0].items()}, found[1])
        except Exception as e:  # what computes the value instead knows what to do without memory
            if not out_of_memory(e):
                raise
            return None
        self._memory.put(key, entry, entry.bytes)
        self._count(disk_load_s=time.perf_counter() - started)
        return entry

    def _count(self, **more: float) -> None:
        with self._lock:
            new: dict[str, Any] = {
                name: getattr(self._counts, name) + n for name, n in more.items()
            }
            self._counts = replace(self._counts, **new)


def _owned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; a part of a larger storage is copied, so as not to keep all of it."""
    moved = tensor.detach().to(device)
    return moved.clone() if moved.untyped_storage().nbytes() > moved.nbytes else moved
