"""The default sweep: what ``qvl-lab report --model`` measures where there is no run file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qvl_lab.analysis.quality.tradeoffs import propose_resolutions
from qvl_lab.bench.sweep import sweep
from qvl_lab.config import BY_TASK, NATIVE, ModelSpec
from qvl_lab.errors import ConfigError, QvlError
from qvl_lab.hardware import fingerprint
from qvl_lab.probe.ceilings import beside, measure_ceilings, save_ceilings
from qvl_lab.runs.records import environment_key
from qvl_lab.runs.store import Runs
from qvl_lab.tasks import article_resolutions
from qvl_lab.workloads.resize import knows_task
from qvl_lab.workloads.sources import load_workload


def default_sweep(
    model: str, workload: str, out: str | Path, *, items: int = 36, progress: bool = True
) -> Runs:
    """Measure a small grid; it takes minutes on two CPU cores for ``tiny``.

    The largest batch is measured with the fast engine too, where it runs the model. Where quality
    is known, two settings with a resolution for each task follow the grid: the article's table,
    and the lowest resolutions that keep each task's quality. Rows of another environment are moved
    aside rather than mixed in.

    Raises
    ------
    ConfigError, WorkloadError, StoreError
        Before anything is measured.
    """
    from qvl_lab.backends.fast.sizing import runs_fast

    loaded = load_workload(workload)
    most = max(1, min(items, len(loaded)))
    batches, precisions = [size for size in (1, 4, 8) if size <= most], ["fp32", "bf16"]
    fixed: dict[str, Any] = {"model": model, "workload": workload, "items": items, "out": out}
    fixed |= {"max_new_tokens": 40, "progress": progress, "timed_items": batches[-1]}
    grid: dict[str, Any] = {"resolution": [128, 256, 512], "precision": precisions}
    other = _fresh_if_other(out)
    _say("the grid: batch sizes, resolutions and precisions with the stock engine", progress)
    runs = sweep(**fixed, **grid, batch_size=batches, on_other_environment=other)
    engines = ["stock"]
    if runs_fast(model):
        engines.append("fast")
        _say("the largest batch again, with the fast engine", progress)
        runs = sweep(**fixed, **grid, batch_size=batches[-1:], engine="fast")
    tasks = {item.task for item in loaded.items}
    tables = [_for_all(tasks, table) for table in (article_resolutions(), *_proposed(runs))]
    if len(tables) > 1:
        fixed |= {"resolution": BY_TASK, "task_resolutions": tables}
        _say("resolutions by task: the article's, and the lowest that keep quality", progress)
        sweep(**fixed, batch_size=batches[-1:], precision=precisions, engine=engines)
    device_ceilings(Path(out))  # last: on a GPU it leaves a context behind
    return Runs.load(out)


def _say(what: str, progress: bool) -> None:
    """Name what the next progress bar measures."""
    if progress:
        tqdm.write(f"measuring {what}", file=sys.stderr)


def device_ceilings(runs: Path) -> None:
    """Measure what this device can do at most, and leave it beside a run file."""
    from qvl_lab.models.load import resolve

    runs.parent.mkdir(parents=True, exist_ok=True)
    save_ceilings(measure_ceilings(resolve(ModelSpec()).device), beside(runs))


def _proposed(runs: Runs) -> list[dict[str, int | str]]:
    """The table of the lowest resolutions that keep quality; none if quality is not known."""
    try:
        return [propose_resolutions(runs.frame()).task_resolutions]
    except ConfigError:
        return []


def _for_all(tasks: Iterable[str | None], table: Mapping[str, int | str]) -> dict[str, int | str]:
    """The table with native, which loses nothing, for tasks that it does not know."""
    return dict(table) | {task: NATIVE for task in tasks if task and not knows_task(task, table)}


def _fresh_if_other(out: str | Path) -> str:
    """What to do with the rows of ``out``: move them aside if another environment wrote them."""
    try:
        environments = Runs.load(out).environments()
    except QvlError:
        return "refuse"
    here = [environment_key(fingerprint())]
    return "refuse" if [environment_key(e) for e in environments] == here else "fresh"
