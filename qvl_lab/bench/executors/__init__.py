"""Where trials are measured: trials in, Runs out, in the same order.

Each executor is one function of this form; a sweep chooses one by its ``isolation``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from qvl_lab.bench.executors.in_process import measure_in_process
from qvl_lab.bench.executors.per_process import measure_per_process
from qvl_lab.bench.trial import Trial
from qvl_lab.runs.records import Run


class Executor(Protocol):
    """Measures trials one after another; the next is asked for when the last one's Run is taken.

    ``timeout_s`` bounds the seconds of one trial, where the executor can end one.
    """

    def __call__(self, trials: Iterable[Trial], timeout_s: float) -> Generator[Run, None, None]: ...


EXECUTORS: dict[str, Executor] = {
    "none": measure_in_process,
    "process": measure_per_process,
}
