"""What a headline claims, measured once more: today's setting, the best one and the runner-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from qvl_lab.analysis.money.confirmed import WIDEST
from qvl_lab.analysis.money.recommend import Recommendation, recommend
from qvl_lab.bench.protocol import head_to_head
from qvl_lab.bench.sweep import Turns, rounds_of, trials_of
from qvl_lab.config import Config, SweepSpec
from qvl_lab.errors import ConfigError
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs, Store
from qvl_lab.workloads.items import Workload
from qvl_lab.workloads.sources import load_workload

#: Rounds of a confirmation at least and at most; fewer where an engine takes long to start. The
#: 95% interval of six pairs reaches from the least to the largest of them, that of eight leaves out
#: both and is a third narrower.
LEAST, LEAST_IF_SLOW, MOST = 8, 3, 16
SLOW_START_S = 10.0
#: The share of free memory that settings may take that are measured side by side.
MOST_OF_MEMORY = 0.6


def confirm(
    out: str | Path = "runs.jsonl",
    *,
    workload: Workload | str | Path | None = None,
    repeats: int | None = None,
    half_width: float = 0.05,
    budget_s: float | None = None,
    isolation: str = "process",
    on_busy: str = "wait",
    timeout_s: float = 3600.0,
    progress: bool = True,
    **choice: Any,
) -> Runs:
    """Measure today's setting, the recommended one and the runner-up head to head.

    The cheapest of many settings is partly the luckiest, so its saving is measured again after it
    was chosen: in alternation, each turn in a process of its own, for at least eight rounds (three
    where an engine takes more than ten seconds to start). Then today's and the recommended one go
    on until the saving's 95% interval reaches no further than ``half_width`` to either side, for at
    most sixteen rounds. On a CPU with room for all of them, the processes of a round live side by
    side and take turns call by call, see :mod:`qvl_lab.bench.executors.side_by_side`. The turns
    join the run file, where :func:`qvl_lab.recommend` and reports find them.

    Parameters
    ----------
    out : path
        A run file of a sweep.
    workload : Workload or path, optional
        What the sweep answered; by default the packaged set or path that the rows name.
    repeats : int, optional
        Rounds at least.
    half_width, isolation, on_busy, timeout_s
        As of :class:`~qvl_lab.config.SweepSpec`.
    budget_s : float, optional
        Begin no further round after this time; after twice this time while the saving's interval
        reaches further than 10% to either side, with which no headline is given.
    **choice
        Today's setting and limits, as of :func:`qvl_lab.recommend`.

    Returns
    -------
    Runs
        All rows of the file. Without a cheaper setting nothing is measured.

    Raises
    ------
    ConfigError
        If the rows answer another workload.
    LimitError
        If no setting is within the limits.
    """
    runs = Runs.load(out)
    advice = recommend(runs.frame(), **choice)
    finalists = _finalists(runs, advice)
    if len(finalists) < 2:
        return runs
    first = finalists[0]
    spec = SweepSpec(
        axes={},
        workload=_workload(first, workload),
        repeats=repeats or (LEAST_IF_SLOW if _start_s(finalists) > SLOW_START_S else LEAST),
        max_repeats=MOST,
        half_width=half_width,
        budget_s=budget_s,
        isolation=isolation,
        on_busy=on_busy,
        timeout_s=timeout_s,
        **_plan(first),
    )
    trials = [
        replace(trial, plan=replace(trial.plan, phase="confirmation", quality=False))
        for trial in trials_of([_config(run) for run in finalists], spec, spec.workload)
    ]
    with Store(out) as store, Turns(trials, store, spec, [], progress=progress) as turns:
        together = isolation == "process" and _fit_together(finalists)
        head_to_head(
            [trial.key for trial in trials],
            turns.visit_side_by_side if together else turns.visit_each,
            replace(rounds_of(spec), widest=WIDEST),
            known=turns.known,
        )
    return Runs.load(out)


def _fit_together(finalists: Sequence[Run]) -> bool:
    """Whether all of them can be in memory at the same time: on a CPU, where there is room.

    A GPU changes its speed by a percent or two, so that turns in a row tell settings apart there.
    """
    if any(str(run.resolved.get("device")) != "cpu" for run in finalists):
        return False
    needed = sum(run.memory.get("process") or 0 for run in finalists)
    return needed < MOST_OF_MEMORY * psutil.virtual_memory().available


def _finalists(runs: Runs, advice: Recommendation) -> list[Run]:
    """Today's setting, the best one and the runner-up, without repetition; one if it is best."""
    rows = [advice.current, advice.best, advice.runner_up]
    keys = list(dict.fromkeys(row["key"] for row in rows if row is not None))
    by_key = {(run.key, run.plan.get("phase")): run for run in runs}
    if advice.best["key"] == advice.current["key"]:
        return []
    return [
        by_key[key, phase] for key in keys for phase in ("sweep", None) if (key, phase) in by_key
    ]


def _config(run: Run) -> Config:
    return Config().replace(**run.config)


def _plan(run: Run) -> Mapping[str, Any]:
    """How the row was measured, as far as a confirmation measures likewise."""
    names = ("timed_items", "batches", "seed", "warmup", "min_pass_s")
    return {name: run.plan[name] for name in names if name in run.plan}


def _start_s(finalists: Sequence[Run]) -> float:
    """Seconds until the slowest of them is ready."""
    return max(sum(s for s in run.cold.values() if s is not None) for run in finalists)


def _workload(run: Run, given: Workload | str | Path | None) -> Workload:
    """The items that the row answered."""
    name, count = run.workload.get("name"), run.workload.get("items")
    workload = given if isinstance(given, Workload) else load_workload(str(given or name))
    if isinstance(count, int) and count < len(workload):
        workload = workload.sample(count, int(run.plan.get("seed", 0)))
    if workload.fingerprint != run.workload.get("fingerprint"):
        raise ConfigError(
            f"the rows answer other items than workload {workload.name!r} holds; name the one that "
            "they were measured with: workload=... (--workload)"
        )
    return workload
