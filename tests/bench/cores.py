"""Measuring several times at once on a machine of many cores: each on two cores of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

Job, Result = TypeVar("Job"), TypeVar("Result")


def core_pairs() -> list[list[int]]:
    """Pairs of cores to measure on, with two left for the system where there are more than two."""
    cores = sorted(os.sched_getaffinity(0))
    return [cores[n : n + 2] for n in range(0, max(2, len(cores) - 2), 2)]


def on_core_pairs(one: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
    """What ``one`` returns of each job, as many at a time as there are pairs of cores.

    Each is called in a thread that runs on a pair of its own, as do the processes that it starts.
    """
    pairs: SimpleQueue[list[int]] = SimpleQueue()
    for pair in core_pairs():
        pairs.put(pair)

    def take_a_pair() -> None:
        os.sched_setaffinity(0, pairs.get())

    with ThreadPoolExecutor(pairs.qsize(), initializer=take_a_pair) as pool:
        return list(pool.map(one, jobs))
