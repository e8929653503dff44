"""Memory of the device: limits, shortages, and giving back what is free."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: What the messages of errors of other types say where memory ran out. The last is Python's own
#: word on a function in C that could not allocate and did not say so.
_SHORTAGES = {
    RuntimeError: ("can't allocate memory", "out of memory"),
    SystemError: ("NULL without setting an exception",),
}


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on CUDA or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return any(
        isinstance(error, kind) and any(words in text for words in said)
        for kind, said in _SHORTAGES.items()
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type: Python's MemoryError has no text."""
    return str(error).split("\n")[0] or type(error).__name__


@contextmanager
def memory_limit(device: str, gib: float | None) -> Iterator[None]:
    """Bound the memory of this process to ``gib`` while the block runs; None sets no limit.

    On CUDA torch's allocator refuses to allocate more. On a CPU the data segment of the whole
    process is bounded (``RLIMIT_DATA``).
    """
    if gib is None:
        yield
    elif device.startswith("cuda"):
        given = torch.device(device).index
        index = torch.cuda.current_device() if given is None else given
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / total), index)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, index)
    else:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def free(device: str) -> None:
    """Collect garbage, and give torch's unused blocks back to the device."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
