"""A least recently used cache, bounded by bytes and by entries."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Lru(Generic[Value]):
    """Values by key in memory; over budget the least recently used ones are evicted.

    ``cachetools.LRUCache`` would need a wrapper of the same length: it has one bound instead of
    two, raises for a value over the bound, counts no evictions, and is not safe between threads.
    Eviction drops the cache's reference; whoever still uses a value keeps it.

    Parameters
    ----------
    max_bytes : int
        Bound on the sum of the sizes given to :meth:`put`.
    max_entries : int, optional
        Bound on the number of values.

    Attributes
    ----------
    bytes, evictions : int
        Size now, and how many values were evicted so far.
    """

    def __init__(self, max_bytes: int, max_entries: int | None = None) -> None:
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.bytes = self.evictions = 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        """The value of a key, which becomes the most recently used one; None if unknown."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: str, value: Value, bytes: int) -> None:
        """Keep a value of this size in place of the key's last one.

        A value that is over the budget alone is not kept.
        """
        with self._lock:
            self.bytes -= self._values.pop(key, (None, 0))[1]
            if bytes > self.max_bytes:
                return
            self._values[key] = (value, bytes)
            self.bytes += bytes
            while self._over_budget():
                self.bytes -= self._values.popitem(last=False)[1][1]
                self.evictions += 1

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()
            self.bytes = 0

    def _over_budget(self) -> bool:
        too_many = self.max_entries is not None and len(self._values) > self.max_entries
        return too_many or self.bytes > self.max_bytes
