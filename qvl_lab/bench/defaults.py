"""The default sweep: what ``qvl-lab report --model`` measures where there is no run file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from qvl_lab.analysis.quality.resolutions import propose_resolutions
from qvl_lab.bench.confirm import LEAST, confirm
from qvl_lab.bench.sweep import measure_each
from qvl_lab.config import BY_TASK, NATIVE, Config, ModelSpec, SweepSpec
from qvl_lab.config.checks import bounded
from qvl_lab.errors import ConfigError, LimitError, QvlError
from qvl_lab.hardware import fingerprint
from qvl_lab.probe.ceilings import beside, measure_ceilings, save_ceilings
from qvl_lab.runs.records import environment_key
from qvl_lab.runs.store import Runs
from qvl_lab.tasks import article_resolutions
from qvl_lab.workloads.resize import knows_task
from qvl_lab.workloads.sources import load_workload

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How thoroughly the default sweep measures.

    Attributes
    ----------
    stock : dict of resolution to batch sizes
        What the stock engine is measured at, in the most exact precision.
    resolutions, precisions : tuple
        What the fast engine is measured at, with the largest batch: every resolution in the most
        exact precision, and the lowest in the others.
    questions : int
        Questions that quality is scored on, for each resolution and precision.
    timed_items : int
        Items of a pass, which answers them again until it is long enough.
    by_task : bool
        Measure a resolution for each task too: the article's, and what the scores propose.
    repeats, budget_s : int, float
        Rounds at least, and when no further one begins.
    confirm_repeats, confirm_half_width, confirm_s : int, float, float
        As of :func:`qvl_lab.confirm`: rounds at least, how narrow it makes the saving's interval,
        and when no further round begins unless that is too wide.
    """

    stock: Mapping[int, Sequence[int]]
    resolutions: tuple[int, ...] = (256, 512)
    precisions: tuple[str, ...] = ("fp32", "bf16")
    questions: int = 150
    timed_items: int = 8
    by_task: bool = True
    min_pass_s: float = 2.0
    repeats: int = 3
    budget_s: float = 40.0
    confirm_repeats: int = LEAST
    confirm_half_width: float = 0.08
    confirm_s: float = 200.0


#: A budget after which no round begins but those that every setting has.
_NO_MORE_S = 1e-6
THOROUGH = Effort(stock={256: (1, 4, 8), 512: (1, 8)})
#: A third of the time: fewer settings and questions, two rounds, wider intervals.
QUICK = Effort(
    stock={512: (1, 8)},
    precisions=("fp32",),
    questions=48,
    by_task=False,
    min_pass_s=1.0,
    repeats=2,
    budget_s=_NO_MORE_S,
    confirm_repeats=3,
    confirm_s=_NO_MORE_S,
)


def default_sweep(
    model: str,
    workload: str,
    out: str | Path,
    *,
    items: int | None = None,
    quick: bool = False,
    on_busy: str = "wait",
    progress: bool = True,
    **choice: Any,
) -> Runs:
    """Measure at most twelve settings and confirm the best: about nine minutes on two cores.

    In turns: resolutions at the largest batch with the fast engine, where it runs the model, lower
    precision at the lowest of them, and batch sizes with the stock engine. Quality is scored once
    for each resolution and precision, with the fastest setting that has them. Where it is known,
    two settings with a resolution for each task follow: the article's table, and the lowest
    resolutions that keep each task's quality. At last today's setting, the best and the runner-up
    are measured head to head. Rows of another environment are moved aside rather than mixed in.
    Once a file has a confirmation, no setting is measured in more rounds than it needs at least, so
    that a second report of it, in another language say, is quick.

    Parameters
    ----------
    items : int, optional
        Questions to score quality on, and at most so many items to time; by default 150.
    quick : bool
        Measure for a third of that time; see :data:`QUICK`.
    on_busy : str
        See :class:`~qvl_lab.config.SweepSpec`.
    **choice
        Today's setting and limits for the confirmation, as of :func:`qvl_lab.recommend`.

    Raises
    ------
    ConfigError, WorkloadError, StoreError
        Before anything is measured.
    """
    from qvl_lab.backends.fast.sizing import runs_fast

    effort = QUICK if quick else THOROUGH
    if items is not None:
        bounded("items", items, 1, 10**9)
    loaded = load_workload(workload).sample(items or effort.questions)
    other = _fresh_if_other(out)
    complete = other == "refuse" and _is_complete(out)
    spec = SweepSpec(
        axes={},
        workload=loaded,
        timed_items=min(effort.timed_items, len(loaded)),
        repeats=effort.repeats,
        min_pass_s=effort.min_pass_s,
        budget_s=_NO_MORE_S if complete else effort.budget_s,
        on_busy=on_busy,
    )
    engine = "fast" if runs_fast(model) else "stock"
    fast, stock = _grid(model, engine, effort, len(loaded))
    measured: dict[str, Any] = {"spec": spec, "out": out, "retry_errors": False}
    measured["progress"] = progress
    _say("resolutions, precisions and batch sizes in turns, and the quality of answers", progress)
    configs = [*fast, *(config for config in stock if config not in fast)]
    runs = measure_each(configs, **measured, on_other_environment=other, scored=fast)
    tasks = {item.task for item in loaded.items}
    tables = [_for_all(tasks, table) for table in (article_resolutions(), *_proposed(runs))]
    if effort.by_task and runs.frame()["quality"].notna().any():
        _say("resolutions by task: the article's, and the lowest that keep quality", progress)
        by_task = [fast[0].replace(resolution=BY_TASK, task_resolutions=t) for t in tables]
        new = [
            config
            for config, table in zip(by_task, tables, strict=True)
            if not all(table.get(task) in effort.resolutions for task in tasks if task)
        ]
        measure_each(by_task, **measured, on_other_environment="refuse", scored=new)
    _say("the best setting and today's once more, head to head", progress)
    measuring: dict[str, Any] = {
        "on_busy": on_busy,
        "progress": progress,
        "repeats": effort.confirm_repeats,
        "half_width": effort.confirm_half_width,
        "budget_s": _NO_MORE_S if complete else effort.confirm_s,
    }
    try:
        confirm(out, workload=loaded, **measuring, **choice)
    except (ConfigError, LimitError) as e:  # the report says what it cannot say
        log.warning("nothing to confirm: %s", e)
    if not quick and not (complete and beside(Path(out)).exists()):
        device_ceilings(Path(out))  # last: on a GPU it leaves a context behind
    return Runs.load(out)


def _grid(model: str, engine: str, effort: Effort, items: int) -> tuple[list[Config], list[Config]]:
    """What the faster engine is measured at, and the stock engine."""
    base = Config().replace(model=model, max_new_tokens=40)
    sizes = [(side, size) for side in effort.stock for size in effort.stock[side] if size <= items]
    largest = max(size for _, size in sizes)
    exact, *rounded = effort.precisions
    kinds = [(side, exact) for side in effort.resolutions]
    kinds += [(effort.resolutions[0], precision) for precision in rounded]
    fast = [
        base.replace(engine=engine, batch_size=largest, resolution=side, precision=precision)
        for side, precision in kinds
    ]
    stock = [
        base.replace(engine="stock", batch_size=size, resolution=side, precision=exact)
        for side, size in sizes
    ]
    return fast, stock


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
    """The table of the lowest resolutions that keep quality.

    None if quality is not known, or if all tasks need the same resolution, which was measured.
    """
    try:
        table = propose_resolutions(runs.frame()).task_resolutions
    except ConfigError:
        return []
    return [table] if len(set(table.values())) > 1 else []


def _for_all(tasks: Iterable[str | None], table: Mapping[str, int | str]) -> dict[str, int | str]:
    """The table with native, which loses nothing, for tasks that it does not know."""
    return dict(table) | {task: NATIVE for task in tasks if task and not knows_task(task, table)}


def _is_complete(out: str | Path) -> bool:
    """Whether an earlier call came to its last part, the confirmation."""
    try:
        return any(run.plan.get("phase") == "confirmation" for run in Runs.load(out))
    except QvlError:
        return False


def _fresh_if_other(out: str | Path) -> str:
    """What to do with the rows of ``out``: move them aside if another environment wrote them."""
    try:
        environments = Runs.load(out).environments()
    except QvlError:
        return "refuse"
    here = [environment_key(fingerprint())]
    return "refuse" if [environment_key(e) for e in environments] == here else "fresh"
