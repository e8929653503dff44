"""Trials in this process, one after another."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from qvl_lab.bench.trial import Trial
from qvl_lab.runs.records import Run


def measure_in_process(trials: Iterable[Trial], timeout_s: float) -> Generator[Run, None, None]:
    """Measure one after another here; a model is loaded once for all of its settings.

    Nothing can be given up in the middle, so ``timeout_s`` is not looked at.
    """
    from qvl_lab.bench.measure import measure, remember

    get_lab = remember()
    for trial in trials:
        yield measure(trial, get_lab)
