"""What a sweep will measure: the grid's settings, their order, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from qvl_lab.analysis.quality.scoring import own_metrics, score_items
from qvl_lab.bench.executors.per_process import DIED
from qvl_lab.bench.trial import Trial
from qvl_lab.config import AUTO, BY_TASK, FIELDS, NATIVE, Config, SweepSpec, check_name
from qvl_lab.errors import ConfigError
from qvl_lab.runs.records import Run
from qvl_lab.workloads.items import Workload
from qvl_lab.workloads.resize import resolution_for

#: Growing any of these can only need more memory.
_GROWING = ("batch_size", "resolution", "max_new_tokens")


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


def is_settled(run: Run, *, retry_errors: bool) -> bool:
    """Whether a stored run is kept as it is, rather than measured again or further.

    A worker that died or a machine that was busy says nothing about a setting, so such a run is
    never kept. One that was measured in rounds may need more of them.
    """
    if run.status == "ok":
        return all(repeat.round is None for repeat in run.repeats)
    if run.status != "error":
        return run.status != "busy"
    return not retry_errors and not (run.reason or "").startswith(DIED)


def check(configs: Sequence[Config], spec: SweepSpec, workload: Workload) -> None:
    """Raise what would keep a setting from being measured or its answers from being scored.

    Raises
    ------
    ConfigError
        For a task without a resolution, a batch larger than the workload, an unknown metric.
    """
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


def check_models(trials: Iterable[Trial]) -> None:
    """Look up each model that is not loaded yet, once, rather than in every worker.

    It is said once, too, if fp8 is to be emulated.

    Raises
    ------
    UnknownNameError, ModelError
        If a model's files are not there, or its hub cannot be reached.
    """
    from qvl_lab.models.load import check_model, warn_of_emulation

    models = list(dict.fromkeys(trial.config.model for trial in trials))
    for model in models:
        check_model(model)
    if emulated := [model for model in models if model.precision == "fp8"]:
        warn_of_emulation(emulated[0])
