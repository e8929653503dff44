"""Sweeps: run a grid, keep every row, go on where it stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qvl_lab.analysis.quality.scoring import own_metrics, score_items
from qvl_lab.analysis.setting_words import in_words
from qvl_lab.bench.executors.per_process import EXECUTORS
from qvl_lab.config import AUTO, BY_TASK, FIELDS, NATIVE, Config, SweepSpec, check_name
from qvl_lab.config.settings import PARTS
from qvl_lab.config.signatures import names_settings
from qvl_lab.errors import ConfigError, StoreError, UnknownNameError
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.records import Run, environment_key
from qvl_lab.runs.store import Runs, Store
from qvl_lab.workloads.items import Workload
from qvl_lab.workloads.sources import load_workload

log = logging.getLogger(__name__)
ON_OTHER_ENVIRONMENT = ("refuse", "keep", "fresh")
#: Growing any of these can only need more memory.
_GROWING = ("batch_size", "resolution", "max_new_tokens")


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
        Measure again what failed last time. Out of memory is a result and stays.
    progress : bool
        Show a progress bar with an estimate of the time left.

    Returns
    -------
    Runs
        All rows of the grid, old and new.

    Raises
    ------
    ConfigError, WorkloadError, StoreError
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
    from qvl_lab.bench.measure import Plan, Trial

    if on_other_environment not in ON_OTHER_ENVIRONMENT:
        raise UnknownNameError("choice", on_other_environment, ON_OTHER_ENVIRONMENT)
    workload = load_workload(spec.workload, question=spec.question).sample(spec.items, spec.seed)
    _check(configs, spec, workload)
    plan = Plan(**{f.name: getattr(spec, f.name) for f in fields(Plan)})
    jobs = [Trial(config=c, workload=workload, plan=plan) for c in smallest_first(configs)]
    with Store(out) as store:
        for note in store.runs.notes:
            log.warning("%s", note)
        _check_environment(store, on_other_environment)
        _run(jobs, store, spec, retry_errors=retry_errors, progress=progress)
        keys = {job.key for job in jobs}
        mine = [run for run in _here(store.runs) if run.key in keys]
        return Runs(mine, path=store.path, notes=store.runs.notes)


def chosen_spec(
    spec: SweepSpec | None, settings: dict[str, Any], engine: str | None = None
) -> SweepSpec:
    """The spec that was given, or one from keyword settings, of ``engine`` if that is given.

    Raises
    ------
    ConfigError
        If both were given.
    """
    if spec is None:
        return spec_from(settings | ({"engine": engine} if engine else {}))
    if settings:
        raise ConfigError(f"give a spec or settings, not both: {', '.join(settings)}")
    return spec


def spec_from(settings: dict[str, Any]) -> SweepSpec:
    """A SweepSpec from keyword settings: lists are axes, single values are fixed."""
    options = {f.name for f in fields(SweepSpec)} - {"axes", "base"}
    axes: dict[str, Sequence[Any]] = {}
    fixed: dict[str, Any] = {}
    chosen: dict[str, Any] = {}
    for name, value in settings.items():
        if name in options:
            chosen[name] = value
        else:
            check_name(name, [*FIELDS, *options], "setting")
            (axes if isinstance(value, list | tuple) else fixed)[name] = value
    return SweepSpec.grid(fixed, axes, **chosen)


def smallest_first(configs: Sequence[Config]) -> list[Config]:
    """Model by model, from small to large, so that an OOM spares the larger ones."""
    models = list(dict.fromkeys(c.model for c in configs))
    return sorted(
        configs,
        key=lambda c: (
            models.index(c.model),
            _rank(c.images.resolution),
            c.engine.sampling.max_new_tokens,
            c.engine.most_at_once,
        ),
    )


def closed_by(config: Config, oom: Sequence[Run]) -> Run | None:
    """The run that went out of memory and says that ``config`` would too, or None."""
    mine = config.flat()
    for run in oom:
        others_equal = all(run.config.get(k) == v for k, v in mine.items() if k not in _GROWING)
        if others_equal and _at_least(mine, run.config):
            return run
    return None


def _at_least(mine: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether no growing field is smaller; "by_task" and "auto" compare with themselves only."""
    for name, word in (("resolution", BY_TASK), ("batch_size", AUTO)):
        if word in (mine[name], theirs[name]) and mine[name] != theirs[name]:
            return False
    ranks = [_rank(settings["resolution"]) for settings in (mine, theirs)]
    sizes = mine["batch_size"] == theirs["batch_size"] or mine["batch_size"] > theirs["batch_size"]
    return ranks[0] >= ranks[1] and sizes and mine["max_new_tokens"] >= theirs["max_new_tokens"]


def _rank(resolution: int | str) -> float:
    """Order of resolutions: native never has fewer tokens than a budget."""
    if isinstance(resolution, int):
        return float(resolution)
    return 1e6 if resolution == NATIVE else 1e6 + 1


def _run(
    jobs: list[Any], store: Store, spec: SweepSpec, *, retry_errors: bool, progress: bool
) -> None:
    done = {run.key: run for run in _here(store.runs)}
    settled = {k for k, run in done.items() if not (retry_errors and run.status == "error")}
    pending = [job for job in jobs if job.key not in settled]
    fingerprints = {job.workload.fingerprint for job in jobs}
    oom = [
        run
        for run in done.values()
        if run.status == "oom" and run.workload["fingerprint"] in fingerprints
    ]

    def open_jobs() -> Iterator[Any]:
        for job in pending:
            if cause := closed_by(job.config, oom):
                skipped = job.result("skipped", _because(cause), resolved=cause.resolved)
                store.append(skipped)
                bar.update()
            else:
                yield job

    bar = tqdm(
        total=len(jobs), initial=len(jobs) - len(pending), disable=not progress, unit="setting"
    )
    with bar:
        for run in EXECUTORS[spec.isolation](open_jobs(), spec.timeout_s):
            store.append(run)
            if run.status == "oom":
                oom.append(run)
            bar.set_postfix_str(f"{in_words(run.config)}: {run.status}")
            bar.update()


def _because(cause: Run) -> str:
    return f"a smaller setting ran out of memory: {in_words(cause.config)}"


def _check(configs: Sequence[Config], spec: SweepSpec, workload: Workload) -> None:
    from qvl_lab.workloads.resize import resolution_for

    for config in configs:
        for item in workload.items:
            resolution_for(config.images, item.task)
        timed = min(len(workload), spec.timed_items or len(workload))
        if config.engine.batch_size != AUTO and config.engine.most_at_once > timed:
            raise ConfigError(
                f"batch_size {config.engine.batch_size} is more than the {timed} timed items of "
                f"workload {workload.name!r}; use more items or smaller batches"
            )
    if spec.quality:
        _check_metrics(configs, spec, workload)


def _check_metrics(configs: Sequence[Config], spec: SweepSpec, workload: Workload) -> None:
    """Score the true answers: whatever keeps answers from being scored shows before the work."""
    expected = [item.reference for item in workload.items]
    models = {config.model.model for config in configs}
    try:
        own_metrics(spec.metrics)
        if not all(model.startswith("random:") for model in models):  # those are never scored
            score_items(workload.items, expected, spec.metrics)
    except ConfigError as e:
        raise ConfigError(f"{e}. Or measure without quality: quality=False (--no-quality)") from e


def _here(runs: Sequence[Run]) -> list[Run]:
    here = environment_key(fingerprint())
    return [run for run in runs if environment_key(run.environment) == here]


def _check_environment(store: Store, choice: str) -> None:
    if choice == "fresh" and len(store.runs):
        log.warning("earlier rows moved to %s", store.set_aside())
    here = fingerprint()
    hosts = {run.environment.get("host") for run in _here(store.runs)} - {here["host"]}
    if hosts:
        log.warning("%s goes on on another machine of the same kind", store.path)
    known = store.runs.environments()
    others = [env for env in known if environment_key(env) != environment_key(here)]
    if not others or choice == "keep":
        return
    differing = [
        f"{name}: {others[-1].get(name)} then, {value} now"
        for name, value in here.items()
        if others[-1].get(name) != value and name != "host"
    ]
    raise StoreError(
        f"{store.path} holds rows of another environment ({'; '.join(differing)}). "
        "Choose another file, keep both (--on-other-environment keep), or move the old rows aside "
        "(--on-other-environment fresh)"
    )
