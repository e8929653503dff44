"""The decoding step as CUDA graphs, one for each of a few batch sizes.

A graph replays what was recorded, at the same addresses and for the same number of sequences.
Therefore the step reads and writes tensors that keep their addresses (:class:`InputBatch`), a batch
is padded to the next recorded size, and the rows of the padding point to a slot without a sequence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def sizes(max_num_seqs: int) -> list[int]:
    """The batch sizes to record for at most ``max_num_seqs`` sequences: 2, 4, 8, then by 8 and 16.

    Batches of one are padded to two, because torch.compile specialises on a size of one.
    """
    smaller = (2, 4, *range(8, 64, 8), *range(64, max_num_seqs, 16))
    return [*(n for n in smaller if n < max_num_seqs), max(max_num_seqs, 2)]


class CudaGraphRunner:
    """Runs ``step(slots)`` for any number of slots, and replays graphs where they are in use.

    Parameters
    ----------
    step : callable
        Takes slots, (sequences,) int64 on the device, and returns a tensor with one value each.
    max_num_seqs : int
        Most sequences; the slot of this number belongs to no sequence.
    graphs : bool
        Record graphs on CUDA; elsewhere the step is always called.
    device : torch.device
    """

    def __init__(
        self,
        step: Callable[[Tensor], Tensor],
        max_num_seqs: int,
        graphs: bool,
        device: torch.device,
    ) -> None:
        self._step, self._null_slot, self._device = step, max_num_seqs, device
        self._sizes = sizes(max_num_seqs) if graphs and device.type == "cuda" else []
        self._recorded: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self._pool: Any = None

    def record(self) -> None:
        """Record every size, the largest first, so that the smaller ones share its memory."""
        for size in reversed(self._sizes):
            slots = torch.full((size,), self._null_slot, device=self._device)
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step(slots)  # libraries set themselves up outside of a graph
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # other threads, such as the disk cache's, may call CUDA meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                out = self._step(slots)
            self._pool = self._pool or graph.pool()
            self._recorded[size] = graph, slots, out

    def __call__(self, slots: Tensor) -> Tensor:
        """The step's result for ``slots``, (sequences,), valid until the next call."""
        if not self._recorded:
            return self._step(slots)
        size = self._sizes[bisect_left(self._sizes, len(slots))]
        graph, recorded_slots, out = self._recorded[size]
        recorded_slots[: len(slots)].copy_(slots)
        recorded_slots[len(slots) :].fill_(self._null_slot)
        graph.replay()
        return out[: len(slots)]
