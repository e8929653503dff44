"""One decoding step as a CUDA graph, for batches of a few sizes.

A graph replays what was recorded, at the same addresses and for the same number of sequences. So
the step reads and writes tensors that stay where they are (:class:`InputBatch`), a batch is rounded
up to the next recorded size, and the rows left over point to a slot that nobody uses.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def sizes(slots: int) -> list[int]:
    """The sizes to record for at most ``slots`` sequences: 2, 4, 8, then steps of 8 and 16.

    One sequence runs beside nobody's row: a batch of one would be compiled for itself.
    """
    found = [n for n in (2, 4, *range(8, 64, 8), *range(64, slots, 16)) if n < slots]
    return [*found, max(slots, 2)]


class CudaGraphRunner:
    """Runs ``step(rows)`` for any number of rows, replaying graphs where it may.

    Parameters
    ----------
    step : callable
        Takes rows, (sequences,) int64 on the device, and returns a tensor with one value a row.
    slots : int
        Most sequences; row number ``slots`` is nobody's.
    graphs : bool
    device : torch.device
    """

    def __init__(
        self, step: Callable[[Tensor], Tensor], slots: int, graphs: bool, device: torch.device
    ) -> None:
        self._step, self._slots, self._device = step, slots, device
        self._sizes = sizes(slots) if graphs and device.type == "cuda" else []
        self._recorded: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self._pool: Any = None

    def record(self) -> None:
        """Record every size, the largest first, so that the smaller ones share its memory."""
        for size in reversed(self._sizes):
            rows = torch.full((size,), self._slots, device=self._device)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(rows)  # libraries set themselves up outside of a graph
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                out = self._step(rows)
            self._pool = self._pool or graph.pool()
            self._recorded[size] = graph, rows, out

    def __call__(self, rows: Tensor) -> Tensor:
        """The step's result for rows of the device, valid until the next call."""
        if not self._recorded:
            return self._step(rows)
        size = self._sizes[bisect_left(self._sizes, len(rows))]
        graph, places, out = self._recorded[size]
        places[: len(rows)].copy_(rows)
        places[len(rows) :].fill_(self._slots)
        graph.replay()
        return out[: len(rows)]
