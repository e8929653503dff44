"""Measuring several times at once on a machine of many cores: each on two cores of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

Job, Result = TypeVar("Job"), TypeVar("Result")


def core_pairs() -> list[list[int]]:
    """Pairs of cores to measure on, with two left for the system where there are more than two."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[n : n + 2] for n in range(0, max(2, len(cores) - 2), 2)]


def started(command: list[str], cores: list[int], **options: Any) -> subprocess.Popen[Any]:
    """A process on these cores alone, as are its children."""

    def on_its_cores() -> None:
        os.sched_setaffinity(0, cores)

    return subprocess.Popen(command, preexec_fn=on_its_cores, **options)


def on_free_cores(one: Callable[[Job, list[int]], Result], jobs: Iterable[Job]) -> list[Result]:
    """What ``one`` returns of each job and two cores, as many at a time as there are pairs."""
    free: SimpleQueue[list[int]] = SimpleQueue()
    for pair in core_pairs():
        free.put(pair)

    def with_cores(job: Job) -> Result:
        cores = free.get()
        try:
            return one(job, cores)
        finally:
            free.put(cores)

    with ThreadPoolExecutor(free.qsize()) as pool:
        return list(pool.map(with_cores, jobs))
