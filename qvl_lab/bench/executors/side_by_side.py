"""A few trials at once, each in a process of its own, which take turns call by call.

What slows a machine for seconds, such as a neighbour on the same host, then meets all of them
alike. The speed of two shared virtual cores changed by half within ten seconds: the ratio of two
settings that took turns of six seconds scattered by 17%, that of two whose calls of one to two
seconds alternated by 11% a pair, and by 3% after sixteen pairs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing

from qvl_lab.bench.executors.per_process import Worker
from qvl_lab.bench.trial import CALLS, Trial
from qvl_lab.runs.records import Run


def measure_side_by_side(trials: Sequence[Trial], timeout_s: float) -> list[Run]:
    """Measure trials of one round; a Run of each, in their order.

    One process after another loads its model and warms up. Then they take turns, A B C, C B A and
    so on, :data:`qvl_lab.bench.trial.CALLS` times. All models are in memory at the same time.

    Parameters
    ----------
    timeout_s : float
        Bounds the seconds of all of them.
    """
    ends_s = time.monotonic() + timeout_s
    with ExitStack() as stack:
        workers = []
        for trial in trials:
            worker = Worker(trial, timeout_s, in_turns=True)
            workers.append(stack.enter_context(closing(worker)))
            workers[-1].wait(ends_s - time.monotonic())
        for number in range(CALLS):
            for worker in workers if number % 2 == 0 else reversed(workers):
                worker.go(ends_s - time.monotonic())
        return [worker.finish(ends_s - time.monotonic()) for worker in workers]
