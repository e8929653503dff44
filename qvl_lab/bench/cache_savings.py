"""What caches save at chosen hit rates: the fast engine over workloads whose requests repeat.

A workload for each rate, and each cache measured on all of them, as rows of one run file. Every
timed pass begins with empty caches, so hits are those that the requests bring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qvl_lab.analysis.levers.cache_savings import CACHES
from qvl_lab.bench.planning import spec_from
from qvl_lab.bench.sweep import measure_each
from qvl_lab.config import SweepSpec
from qvl_lab.config.settings import PARTS
from qvl_lab.config.signatures import names_settings
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs
from qvl_lab.workloads.items import ImageLike, Workload
from qvl_lab.workloads.sources import load_workload

RATES = tuple(tenths / 10 for tenths in range(10))
#: Fields that say which cache is on, and options that would leave requests out.
_OURS = (
    *("engine", "kv_cache_gib", "prefix_cache", "encoder_cache_gib", "response_cache_entries"),
    *("encoder_cache_entries", "encoder_cache_dir", "timed_items", "batches"),
)


@names_settings(SweepSpec, *PARTS, without=("axes", "base", *_OURS))
def hit_rates(
    *,
    out: str | Path = "hits.jsonl",
    rates: Iterable[float] = RATES,
    caches: Sequence[str] = CACHES,
    workload: str | Path | Workload | Sequence[ImageLike] = "evaluation",
    question: str | None = None,
    items: int | None = None,
    same_question: bool = True,
    cache_gib: float = 1.0,
    seed: int = 0,
    on_other_environment: str = "refuse",
    retry_errors: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Runs:
    """Measure each cache of the fast engine at each hit rate that ``out`` does not hold yet.

    Parameters
    ----------
    out : path
        The run file; the same call goes on where it stopped.
    rates : iterable of float
        Shares of requests that repeat an earlier one, from 0 to under 1. What the caches really
        hit is measured: fewer, where what is remembered has to make room.
    caches : sequence of str
        Some of ``qvl_lab.analysis.levers.cache_savings.CACHES``; savings are against "off".
    workload, question
        As for ``load_workload``; one request about each different image is
        taken.
    items : int, optional
        Use so many of those (a seeded sample); each rate's workload has as many requests.
    same_question : bool
        Repeat the question too, so that one workload suits every cache. Otherwise another
        question about the same image is asked, and "answers" has nothing to find.
    cache_gib : float
        Memory of the feature cache; and, where prefixes are kept, of the whole key-value cache.
    seed : int
        Draws items, images and order.
    on_other_environment, retry_errors
        As for :func:`qvl_lab.sweep`.
    progress : bool
        Show a progress bar.
    settings
        Fields of a configuration, one value each, and options of
        :class:`~qvl_lab.config.SweepSpec` such as ``repeats``. Answers are not scored unless
        ``quality=True``.

    Returns
    -------
    Runs
        A row for each rate and cache, old and new.

    Raises
    ------
    ConfigError, WorkloadError, ModelError, StoreError
        Before anything is measured.
    """
    _check(settings)
    base = load_workload(workload, question=question).distinct().sample(items, seed)
    fields = [_cache_settings(cache, cache_gib, len(base)) for cache in dict.fromkeys(caches)]
    workloads = [
        base.repeating(rate, same_question=same_question, seed=seed)
        for rate in dict.fromkeys(rates)
    ]
    specs = [
        spec_from({"quality": False, "engine": "fast"} | settings | {"workload": repeated})
        for repeated in workloads
    ]
    if not specs or not fields:
        raise ConfigError("name at least one hit rate and one cache")
    runs: list[Run] = []
    for spec in specs:
        found = measure_each(
            [spec.base.replace(**cache) for cache in fields],
            spec,
            out=out,
            on_other_environment=on_other_environment,
            retry_errors=retry_errors,
            progress=progress,
        )
        runs += found
        if on_other_environment == "fresh":
            on_other_environment = "refuse"  # the old rows were moved aside once
    return Runs(runs, path=found.path, notes=found.notes)


def _check(settings: dict[str, Any]) -> None:
    """One value for each setting, and none of those that are set here."""
    for name, value in settings.items():
        if name in _OURS:
            raise ConfigError(
                f"{name} is not a setting of hit_rates; say which caches, and how much memory "
                "with cache_gib"
            )
        if isinstance(value, list | tuple):
            raise ConfigError(f"hit_rates measures one setting: give one value of {name}")


def _cache_settings(cache: str, cache_gib: float, items: int) -> dict[str, Any]:
    """Fields of a configuration that turn a cache on; all are off by default."""
    if cache not in CACHES:
        raise UnknownNameError("cache", cache, CACHES)
    on = cache.split("+")
    fields: dict[str, Any] = {}
    if "features" in on:
        fields["encoder_cache_gib"] = cache_gib
    if "prefix" in on:
        fields |= {"prefix_cache": True, "kv_cache_gib": cache_gib}
    if "answers" in on:
        fields["response_cache_entries"] = items
    return fields
