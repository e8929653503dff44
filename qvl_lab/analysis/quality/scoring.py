"""How good the answers are: which metric scores a task, and the scores of its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean
from typing import Any, Protocol, Self

from qvl_lab.analysis.quality.metrics import (
    BOX_METRICS,
    METRICS,
    is_box_answer,
    no_box,
    parse_boxes,
)
from qvl_lab.errors import ConfigError, UnknownNameError, nearest
from qvl_lab.tasks import BY_NAME, NO_TASK, find_task


class Item(Protocol):
    """What scoring needs to know of a workload's item."""

    @property
    def task(self) -> str | None: ...

    @property
    def reference(self) -> str | None: ...


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task's items.

    Attributes
    ----------
    metric : str
        Its name, or several joined by "+" where the items need different ones.
    values : tuple of float or None
        One per item with an expected answer, in their order; None where the model gave no answer.
    unparsed : int
        Answers from which no box could be read although one was wanted; they score 0.
    """

    metric: str
    values: tuple[float | None, ...]
    unparsed: int = 0

    @property
    def count(self) -> int:
        """Items that have a score."""
        return len(self.values) - self.missing

    @property
    def missing(self) -> int:
        """Items that the model gave no answer to."""
        return self.values.count(None)

    @property
    def mean(self) -> float | None:
        """Mean of the scores; None without any."""
        scored = [v for v in self.values if v is not None]
        return fmean(scored) if scored else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"values": list(self.values)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        ConfigError
            If a field is missing, unknown or of the wrong kind.
        """
        allowed = [f.name for f in fields(cls)]
        for name in values:
            if name not in allowed:
                raise UnknownNameError("field of task scores", name, allowed)
        try:
            scores = tuple(None if v is None else float(v) for v in values["values"])
            return cls(str(values["metric"]), scores, int(values["unparsed"]))
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"task scores need {', '.join(allowed)}: {e!r}") from e


def metric_for(task: str | None, expected: str, metrics: Mapping[str, str] | None = None) -> str:
    """The name of the metric that scores an item.

    Parameters
    ----------
    task : str or None
        Ignoring case, a name of :data:`qvl_lab.tasks.TASKS` or a key of ``metrics``.
    expected : str
        The expected answer; if it is boxes, they are compared as boxes.
    metrics : mapping, optional
        Task to metric; comes before everything else, except that a metric of boxes is not for
        those items of a task that expect none. The key "none" stands for no task.

    Raises
    ------
    UnknownNameError
        If ``metrics`` names a metric that does not exist.
    ConfigError
        If nothing says how the task is scored, or its metric needs boxes and there are none.
    """
    own = own_metrics(metrics)
    key = _key(task or NO_TASK)
    boxes = parse_boxes(expected) is not None
    name = own.get(key) or ("box_accuracy" if is_box_answer(expected) else None)
    if name is None or (name in BOX_METRICS and not boxes):
        known = find_task(key)
        name = known.metric if known else name
    if name is None:
        raise ConfigError(_unknown_task(task, own))
    if name in BOX_METRICS and not boxes:
        raise ConfigError(f"task {task!r}: {no_box(expected)}")
    return name


def score(
    tasks: Sequence[str | None],
    answers: Sequence[str | None],
    expected: Sequence[str | None],
    metrics: Mapping[str, str] | None = None,
) -> dict[str, TaskScores]:
    """Score answers, task by task.

    Parameters
    ----------
    tasks, answers, expected : sequence of str or None
        One per item. No task is the task "none"; no answer means that the item failed; an item
        without an expected answer is left out.
    metrics : mapping, optional
        Task to metric; see :func:`metric_for`, also for errors.

    Returns
    -------
    dict
        Task to :class:`TaskScores`, in the order of their first items. Which items have a place in
        ``values`` depends on the workload alone, so two settings pair by position.
    """
    names = [
        None if wanted is None else metric_for(task, wanted, metrics)
        for task, wanted in _together(tasks=tasks, expected=expected)
    ]
    return _score(tasks, answers, expected, names)


def score_items(
    items: Sequence[Item], answers: Sequence[str | None], metrics: Mapping[str, str] | None = None
) -> dict[str, TaskScores]:
    """:func:`score` of a workload's items, which know their tasks and true answers."""
    tasks, expected = [item.task for item in items], [item.reference for item in items]
    return score(tasks, answers, expected, metrics)


def agreement(
    answers: Sequence[str | None],
    reference: Sequence[str | None],
    tasks: Sequence[str | None] | None = None,
) -> dict[str, TaskScores]:
    """How far answers agree with those of a reference setting, where the truth is not known.

    Boxes are compared by box_accuracy, other answers by their task's metric, and those of no task
    or an unknown one by chrf. An item without a reference answer is left out; the result is as
    that of :func:`score`.
    """
    tasks = [None] * len(reference) if tasks is None else tasks
    names = [
        None if wanted is None else _agreement_metric(task, wanted)
        for task, wanted in _together(tasks=tasks, reference=reference)
    ]
    return _score(tasks, answers, reference, names)


def _agreement_metric(task: str | None, reference: str) -> str:
    if is_box_answer(reference):
        return "box_accuracy"
    known = find_task(task or NO_TASK)
    name = known.metric if known and known.name != NO_TASK else "chrf"
    # a model may answer a question for boxes in words
    return "chrf" if name in BOX_METRICS and parse_boxes(reference) is None else name


def _score(
    tasks: Sequence[str | None],
    answers: Sequence[str | None],
    expected: Sequence[str | None],
    names: Sequence[str | None],
) -> dict[str, TaskScores]:
    rows: dict[str, list[tuple[str, float | None, bool]]] = {}
    items = _together(tasks=tasks, answers=answers, expected=expected)
    for (task, answer, wanted), name in zip(items, names, strict=True):
        if wanted is None or name is None:
            continue
        value = None if answer is None else round(METRICS[name](answer, wanted), 6)
        unparsed = answer is not None and name in BOX_METRICS and parse_boxes(answer) is None
        rows.setdefault(task or NO_TASK, []).append((name, value, unparsed))
    return {task: _task_scores(found) for task, found in rows.items()}


def _task_scores(rows: Sequence[tuple[str, float | None, bool]]) -> TaskScores:
    names, values, unparsed = zip(*rows, strict=True)
    return TaskScores("+".join(sorted(set(names))), values, sum(unparsed))


def _together(**columns: Sequence[str | None]) -> list[tuple[str | None, ...]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"one entry per item is needed in each of these, not {lengths}")
    return list(zip(*columns.values(), strict=True))


def own_metrics(metrics: Mapping[str, str] | None) -> dict[str, str]:
    """Task to metric with the tasks' case taken away.

    Raises
    ------
    UnknownNameError
        If a metric does not exist.
    """
    for name in (metrics or {}).values():
        if name not in METRICS:
            raise UnknownNameError("metric", name, METRICS)
    return {_key(task): name for task, name in (metrics or {}).items()}


def check_tasks(metrics: Mapping[str, str] | None, items: Sequence[Item]) -> None:
    """Refuse a metric for a task that no item has, which would be ignored.

    Raises
    ------
    UnknownNameError
        Naming the tasks of the items.
    """
    tasks = {_key(item.task or NO_TASK): item.task or NO_TASK for item in items}
    for task in metrics or {}:
        if _key(task) not in tasks:
            raise UnknownNameError("task of this workload", task, tasks.values())


def _key(task: str) -> str:
    return task.strip().casefold()


def _unknown_task(task: str | None, own: Mapping[str, str]) -> str:
    similar = nearest(str(task), [*BY_NAME, *own])
    hint = f" Did you mean {similar!r}?" if similar else ""
    return (
        f"nothing says how answers of task {task!r} are scored.{hint} Give a metric, "
        f'metrics={{"{task}": "anls"}}; there are: {", ".join(METRICS)}'
    )
