"""Sweeps: run a grid, keep every row, go on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qvl_lab.analysis.quality.scoring import metric_names, score
from qvl_lab.analysis.setting_words import in_words
from qvl_lab.bench.executors import EXECUTORS
from qvl_lab.bench.planning import (
    check,
    check_models,
    chosen_spec,
    closed_by,
    is_settled,
    smallest_first,
)
from qvl_lab.bench.trial import Plan, Trial
from qvl_lab.config import Config, SweepSpec
from qvl_lab.config.settings import PARTS
from qvl_lab.config.signatures import names_settings
from qvl_lab.errors import ConfigError, StoreError, UnknownNameError
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.records import Run, environment_key
from qvl_lab.runs.store import Runs, Store
from qvl_lab.workloads.sources import load_workload

log = logging.getLogger(__name__)
ON_OTHER_ENVIRONMENT = ("refuse", "keep", "fresh")


@names_settings(SweepSpec, *PARTS, axes=PARTS, without=("axes", "base"))
def sweep(
    spec: SweepSpec | None = None,
    *,
    out: str | Path = "runs.jsonl",
    on_other_environment: str = "refuse",
    retry_errors: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Runs:
    """Measure every configuration of a grid that ``out`` does not hold yet.

    Parameters
    ----------
    spec : SweepSpec, optional
        The grid. Without it ``settings`` make one: fields of a configuration (a list is an axis)
        and options of :class:`~qvl_lab.config.SweepSpec` such as ``workload`` and ``repeats``.
    out : path
        The run file, by default "runs.jsonl" as for ``qvl-lab sweep``. Each finished row is on
        disk before the next starts, so the same call goes on after a crash or Ctrl-C.
    on_other_environment : str
        If ``out`` holds rows of another machine or other versions: ``"refuse"``; ``"keep"`` them
        beside the new ones, told apart by the column ``environment``; ``"fresh"`` moves the old
        rows to another file first, also without such a difference.
    retry_errors : bool
        Measure again what failed last time. Out of memory is a result and stays; settings whose
        worker process died are measured again in any case.
    progress : bool
        Show a progress bar with an estimate of the time left.

    Returns
    -------
    Runs
        All rows of the grid, old and new.

    Raises
    ------
    ConfigError, WorkloadError, ModelError, StoreError
        Before anything is measured.
    """
    spec = chosen_spec(spec, settings)
    return measure_each(
        spec.configurations(),
        spec,
        out=out,
        on_other_environment=on_other_environment,
        retry_errors=retry_errors,
        progress=progress,
    )


def measure_each(
    configs: Sequence[Config],
    spec: SweepSpec,
    *,
    out: str | Path,
    on_other_environment: str,
    retry_errors: bool,
    progress: bool,
) -> Runs:
    """Measure configurations that ``out`` does not hold yet; options as of :func:`sweep`.

    Workload, plan and isolation are those of ``spec``; its axes and its base are not looked at.
    """
    if on_other_environment not in ON_OTHER_ENVIRONMENT:
        raise UnknownNameError("choice", on_other_environment, ON_OTHER_ENVIRONMENT)
    workload = load_workload(spec.workload, question=spec.question).sample(spec.items, spec.seed)
    check(configs, spec, workload)
    chosen = {f.name: getattr(spec, f.name) for f in fields(Plan)}
    plan = Plan(**chosen | {"metrics": metric_names(spec.metrics)})
    shared: dict[str, Any] = {"workload": workload, "plan": plan}
    shared |= {"answers_only": _scores_here(spec)}
    trials = [Trial(config=c, **shared) for c in smallest_first(configs)]
    keys = {trial.key for trial in trials}
    with Store(out) as store:
        for note in store.runs.notes:
            log.warning("%s", note)
        _check_environment(store, on_other_environment)
        known = _here(store.runs)
        settled = {run.key for run in known if is_settled(run, retry_errors=retry_errors)}
        pending = [trial for trial in trials if trial.key not in settled]
        check_models(pending)
        _tell_kept_errors([run for run in known if run.key in keys & settled])
        closing = [run for run in known if run.workload["fingerprint"] == workload.fingerprint]
        bar = tqdm(
            total=len(trials),
            initial=len(trials) - len(pending),
            disable=not progress,
            unit="setting",
        )
        with bar:
            _run(pending, store, spec, closing, bar)
        mine = [run for run in _here(store.runs) if run.key in keys]
        _tell_nothing_measured(mine)
        return Runs(mine, path=store.path, notes=store.runs.notes)


def _run(
    pending: Sequence[Trial], store: Store, spec: SweepSpec, known: Sequence[Run], bar: Any
) -> None:
    """Measure what is pending and store each row; larger settings after an OOM are skipped."""
    oom = [run for run in known if run.status == "oom"]
    answers_only = _scores_here(spec)

    def open_trials() -> Iterator[Trial]:
        for trial in pending:
            if cause := closed_by(trial.config, oom):
                reason = f"a smaller setting ran out of memory: {in_words(cause.config)}"
                store.append(trial.result("skipped", reason, resolved=cause.resolved))
                bar.update()
            else:
                bar.set_postfix_str(f"measuring {in_words(trial.config.flat())}")
                yield trial

    for measured in EXECUTORS[spec.isolation](open_trials(), spec.timeout_s):
        run = _scored(measured, spec) if answers_only else measured
        store.append(run)
        if run.status == "oom":
            oom.append(run)
        bar.set_postfix_str(f"{in_words(run.config)}: {run.status}")
        bar.update()


def _scores_here(spec: SweepSpec) -> bool:
    """Whether a metric is a function, which may not be found in a worker process."""
    return any(callable(metric) for metric in spec.metrics.values())


def _scored(run: Run, spec: SweepSpec) -> Run:
    """The run with its answers scored here, where the metrics' functions are at hand.

    One that cannot be scored becomes an error, and keeps its answers.
    """
    tasks, answers, expected = (
        [row[name] for row in run.answers] for name in ("task", "answer", "expected")
    )
    try:
        scores = score(tasks, answers, expected, spec.metrics)
    except ConfigError as e:
        return replace(run, status="error", reason=str(e))
    return replace(run, scores={task: found.to_dict() for task, found in scores.items()})


def _tell_kept_errors(kept: Sequence[Run]) -> None:
    if failed := [run for run in kept if run.status == "error"]:
        log.warning(
            "%d settings failed in an earlier sweep and are kept as errors; "
            "retry_errors=True (--retry-errors) measures them again",
            len(failed),
        )


def _tell_nothing_measured(runs: Sequence[Run]) -> None:
    if runs and all(run.status == "error" for run in runs):
        log.warning(
            "none of the %d settings could be measured; the first, %s, failed: %s",
            len(runs),
            in_words(runs[0].config),
            runs[0].reason,
        )


def _here(runs: Sequence[Run]) -> list[Run]:
    """The runs that were measured in this environment, on the device that each one names."""
    keys = {device: environment_key(now) for device, now in _environments(runs).items()}
    return [run for run in runs if environment_key(run.environment) == keys[_device(run)]]


def _environments(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """This environment for each device that the runs name."""
    return {device: fingerprint(device) for device in {_device(run) for run in runs}}


def _device(run: Run) -> str:
    return str(run.config.get("device", "auto"))


def _check_environment(store: Store, choice: str) -> None:
    if choice == "fresh" and len(store.runs):
        log.warning("earlier rows moved to %s", store.set_aside())
    now = _environments(store.runs)
    here = _here(store.runs)
    if any(run.environment.get("host") != now[_device(run)]["host"] for run in here):
        log.warning("%s goes on on another machine of the same kind", store.path)
    ours = {id(run) for run in here}
    others = [run for run in store.runs if id(run) not in ours]
    if not others or choice == "keep":
        return
    then = others[-1].environment
    differing = [
        f"{name}: {then.get(name)} then, {value} now"
        for name, value in now[_device(others[-1])].items()
        if then.get(name) != value and name != "host"
    ]
    raise StoreError(
        f"{store.path} holds rows of another environment ({'; '.join(differing)}). "
        "Choose another file, keep both (--on-other-environment keep), or move the old rows aside "
        "(--on-other-environment fresh)"
    )
