"""Tokens on their way from the device: the CPU reads them while the device runs the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qvl_lab.backends.fast.sequence import Sequence


@dataclass(frozen=True)
class _Output:
    """One token for each sequence; ``copied`` is the CUDA event after their copy, or None."""

    sequences: list[Sequence]
    tokens: Tensor
    copied: Any


class AsyncOutputs:
    """The generated tokens of the steps whose results were not read yet."""

    def __init__(self) -> None:
        self._steps: deque[list[_Output]] = deque()

    def __len__(self) -> int:
        """How many steps were opened and not collected."""
        return len(self._steps)

    def open_step(self) -> None:
        """Outputs added from here on belong to another step."""
        self._steps.append([])

    def add(self, sequences: list[Sequence], tokens: Tensor) -> None:
        """Start to copy the tokens that the device generates, (sequences,), to the CPU."""
        copied = None
        if tokens.is_cuda:
            host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            tokens = host.copy_(tokens, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self._steps[-1].append(_Output(sequences, tokens, copied))

    def collect(self) -> Iterator[Iterator[tuple[Sequence, int]]]:
        """Wait for each output of the oldest step: its sequences with their tokens."""
        for output in self._steps.popleft():
            if output.copied is not None:
                output.copied.synchronize()
            yield zip(output.sequences, output.tokens.tolist(), strict=True)

    def clear(self) -> None:
        """Drop all outputs."""
        self._steps.clear()
