"""How good the answers are: which metric scores a task, and the scores of its items."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import PurePath
from statistics import fmean
from typing import Any, Protocol, Self

from qvl_lab.analysis.quality.box_forms import FRACTIONS, PIXELS, read_boxes
from qvl_lab.analysis.quality.boxes import is_box_answer, no_box, parse_boxes
from qvl_lab.analysis.quality.metrics import BOX_METRICS, METRICS, Metric
from qvl_lab.analysis.quality.normalised import normalised, without_reasoning
from qvl_lab.errors import ConfigError, UnknownNameError, nearest
from qvl_lab.tasks import BY_NAME, NO_TASK, find_task


class Item(Protocol):
    """What scoring needs to know of a workload's item."""

    @property
    def task(self) -> str | None: ...

    @property
    def reference(self) -> str | None: ...

    @property
    def image(self) -> Any: ...

    @property
    def path(self) -> str | None: ...


@dataclass(frozen=True)
class TaskScores:
    """Scores of one task's items.

    Attributes
    ----------
    metric : str
        Its name, of a function its own; several joined by "+" where the items need different ones.
    values : tuple of float or None
        One per item with an expected answer, in their order; None where the model gave no answer.
    unparsed : int
        Answers from which no box could be read although one was wanted; they score 0.
    normalised : tuple of float or None
        In the same places, the scores of what the answers say, however they are written; see
        :mod:`qvl_lab.analysis.quality.normalised`. Empty in older files.
    fractions, pixels : int
        Answers whose boxes are in 0-1, and in pixels, rather than in 0-1000.
    images : tuple of int, optional
        For each value, the number of the image that it is about; questions about one image fail
        together. None where that is not known, as in older files.
    """

    metric: str
    values: tuple[float | None, ...]
    unparsed: int = 0
    normalised: tuple[float | None, ...] = ()
    fractions: int = 0
    pixels: int = 0
    images: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Items that are scored."""
        return len(self.values)

    @property
    def missing(self) -> int:
        """Items that the model gave no answer to."""
        return self.values.count(None)

    @property
    def scored(self) -> tuple[float, ...]:
        """The values with 0 where the model gave no answer: no answer is a wrong one."""
        return tuple(0.0 if value is None else value for value in self.values)

    @property
    def mean(self) -> float | None:
        """Mean of ``scored``; None without items."""
        return fmean(self.scored) if self.values else None

    @property
    def normalised_mean(self) -> float | None:
        """Mean of the normalised scores, no answer being a wrong one.

        None in older files, and where nothing was answered.
        """
        answered = any(value is not None for value in self.normalised)
        return fmean(value or 0.0 for value in self.normalised) if answered else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        lists = {"values": list(self.values), "normalised": list(self.normalised)}
        plain = asdict(self) | lists
        images = plain.pop("images")
        return plain if images is None else plain | {"images": list(images)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises
        ------
        ConfigError
            If a field is missing, unknown or of the wrong kind, or an image is not named for every
            score.
        """
        allowed = [f.name for f in fields(cls)]
        for name in values:
            if name not in allowed:
                raise UnknownNameError("field of task scores", name, allowed)
        try:
            scores, other = (
                tuple(None if v is None else float(v) for v in found)
                for found in (values["values"], values.get("normalised", ()))
            )
            counts = {name: int(values.get(name, 0)) for name in ("fractions", "pixels")}
            metric, unparsed = str(values["metric"]), int(values["unparsed"])
            images = values.get("images")
            images = None if images is None else tuple(int(number) for number in images)
        except (KeyError, TypeError, ValueError) as e:
            raise ConfigError(f"task scores need {', '.join(allowed)}: {e!r}") from e
        if images is not None and len(images) != len(scores):
            raise ConfigError(f"task scores name {len(images)} images for {len(scores)} scores")
        return cls(metric, scores, unparsed, other, **counts, images=images)


def metric_for(
    task: str | None, expected: str, metrics: Mapping[str, str | Metric] | None = None
) -> str | Metric:
    """The metric that scores an item: a name of :data:`METRICS`, or a function of one's own.

    Parameters
    ----------
    task : str or None
        Ignoring case, a name of :data:`qvl_lab.tasks.TASKS` or a key of ``metrics``.
    expected : str
        The expected answer; if it is boxes, they are compared as boxes.
    metrics : mapping, optional
        Task to metric, a name or a function from answer and expected answer to a score (0-1);
        comes before everything else, except that a metric of boxes is not for those items of a
        task that expect none. The key "none" stands for no task.

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
    name: str | Metric | None = own.get(key) or (
        "box_accuracy" if is_box_answer(expected) else None
    )
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
    metrics: Mapping[str, str | Metric] | None = None,
    *,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    pixels: bool = False,
) -> dict[str, TaskScores]:
    """Score answers, task by task. What a model thought aloud is no part of its answer.

    Parameters
    ----------
    tasks, answers, expected : sequence of str or None
        One per item. No task is the task "none"; no answer means that the item failed; an item
        without an expected answer is left out. Of several reference answers, a JSON list of texts,
        the one that an answer fits best counts.
    metrics : mapping, optional
        Task to metric; see :func:`metric_for`, also for errors.
    sizes : sequence, optional
        Width and height in pixels of each image as the model saw it, by which boxes in pixels are
        converted for the normalised scores.
    pixels : bool
        Whether the model is known to write boxes in pixels.

    Returns
    -------
    dict
        Task to :class:`TaskScores`, in the order of their first items. Which items have a place in
        ``values`` depends on the workload alone, so two settings pair by position.
    """
    names = [
        None if wanted is None else metric_for(task, references(wanted)[0], metrics)
        for task, wanted in _together(tasks=tasks, expected=expected)
    ]
    allowed = [None if wanted is None else references(wanted) for wanted in expected]
    return _score(tasks, answers, allowed, names, sizes, pixels=pixels)


def score_items(
    items: Sequence[Item],
    answers: Sequence[str | None],
    metrics: Mapping[str, str | Metric] | None = None,
    *,
    sizes: Sequence[tuple[int, int] | None] | None = None,
    pixels: bool = False,
) -> dict[str, TaskScores]:
    """:func:`score` of a workload's items, which know their tasks, true answers and images."""
    tasks, expected = [item.task for item in items], [item.reference for item in items]
    found = score(tasks, answers, expected, metrics, sizes=sizes, pixels=pixels)
    images: dict[str, list[int]] = {task: [] for task in found}
    for item, number in zip(items, image_numbers(items), strict=True):
        if item.reference is not None:
            images[item.task or NO_TASK].append(number)
    return {task: replace(scores, images=tuple(images[task])) for task, scores in found.items()}


def image_numbers(items: Sequence[Item]) -> list[int]:
    """Equal numbers for items that ask about one image, counted from 0.

    Images are the same if they are of one file, have equal bytes or are one object in memory.
    """
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(_image_key(item), len(numbers)) for item in items]


def _image_key(item: Item) -> Hashable:
    image = item.path or item.image
    if isinstance(image, bytes):
        return image
    return str(image) if isinstance(image, str | PurePath) else id(image)


def references(expected: str) -> tuple[str, ...]:
    """The answers that count as true: the texts of a JSON list of texts, or the text itself."""
    if not expected.lstrip().startswith("["):
        return (expected,)
    try:
        found = json.loads(expected)
    except (ValueError, RecursionError):
        return (expected,)
    texts = bool(found) and all(isinstance(text, str) for text in found)
    return tuple(found) if texts else (expected,)


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
    return _score(tasks, answers, [wanted and (wanted,) for wanted in reference], names)


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
    allowed: Sequence[Sequence[str] | None],
    metrics: Sequence[str | Metric | None],
    sizes: Sequence[tuple[int, int] | None] | None = None,
    *,
    pixels: bool = False,
) -> dict[str, TaskScores]:
    rows: dict[str, list[tuple[str, float | None, bool]]] = {}
    said: dict[str, list[tuple[float | None, str | None]]] = {}
    sizes = [None] * len(tasks) if sizes is None else sizes
    items = _together(tasks=tasks, answers=answers, expected=allowed, sizes=sizes)
    for (task, answer, wanted, size), metric in zip(items, metrics, strict=True):
        if wanted is None or metric is None:
            continue
        answer = None if answer is None else without_reasoning(answer)
        value = None if answer is None else max(_value(metric, answer, one) for one in wanted)
        unparsed = answer is not None and metric in BOX_METRICS and parse_boxes(answer) is None
        name = metric if isinstance(metric, str) else _name(metric)
        rows.setdefault(task or NO_TASK, []).append((name, value, unparsed))
        said.setdefault(task or NO_TASK, []).append(
            _normalised(metric, answer, wanted, value, size, pixels)
        )
    return {task: _with_normalised(_task_scores(rows[task]), said[task]) for task in rows}


def _normalised(
    metric: str | Metric,
    answer: str | None,
    wanted: Sequence[str],
    strict: float | None,
    size: tuple[int, int] | None,
    pixels: bool,
) -> tuple[float | None, str | None]:
    """The score of what an answer says, and the form of its boxes; a function's own is as it is."""
    if answer is None or not isinstance(metric, str):
        return strict, None
    boxes = read_boxes(answer, size, pixels=pixels) if metric in BOX_METRICS else None
    value = max(normalised(metric, answer, one, boxes) for one in wanted)
    return round(value, 6), boxes.form if boxes else None


def _with_normalised(
    scores: TaskScores, said: Sequence[tuple[float | None, str | None]]
) -> TaskScores:
    values, forms = zip(*said, strict=True)
    fractions, pixels = forms.count(FRACTIONS), forms.count(PIXELS)
    return replace(scores, normalised=values, fractions=fractions, pixels=pixels)


def _value(metric: str | Metric, answer: str, expected: str) -> float:
    """The score of one answer; of a function of the user's it is checked."""
    if isinstance(metric, str):
        return round(METRICS[metric](answer, expected), 6)
    asked = f"the metric {_name(metric)}({answer[:80]!r}, {expected[:80]!r})"
    try:
        found: Any = metric(answer, expected)
    except Exception as e:
        raise ConfigError(f"{asked} raised {type(e).__name__}: {e}") from e
    try:
        value = math.nan if isinstance(found, str) else float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= 1:
        raise ConfigError(f"{asked} gave {found!r}; a score is a number from 0 to 1")
    return round(value, 6)


def _name(metric: Metric) -> str:
    return getattr(metric, "__name__", type(metric).__name__)


def metric_names(metrics: Mapping[str, str | Metric]) -> dict[str, str]:
    """Task to the name that a record has of its metric.

    That of a function ends in a digest of its source: a changed one is another metric. What the
    function calls or closes over is not looked at.
    """
    return {
        task: metric if isinstance(metric, str) else f"{_name(metric)}@{_source_digest(metric)}"
        for task, metric in metrics.items()
    }


def _source_digest(metric: Metric) -> str:
    """Eight hex digits; of the bytecode where the source is not known, as at a prompt."""
    code = getattr(metric, "__code__", None)
    try:
        source = inspect.getsource(inspect.unwrap(metric))
    except (OSError, TypeError):
        constants = [c for c in getattr(code, "co_consts", ()) if not inspect.iscode(c)]
        source = f"{getattr(code, 'co_code', type(metric))} {constants}"
    return sha256(source.encode()).hexdigest()[:8]


def _task_scores(rows: Sequence[tuple[str, float | None, bool]]) -> TaskScores:
    names, values, unparsed = zip(*rows, strict=True)
    return TaskScores("+".join(sorted(set(names))), values, sum(unparsed))


def _together(**columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"one entry per item is needed in each of these, not {lengths}")
    return list(zip(*columns.values(), strict=True))


def own_metrics(metrics: Mapping[str, str | Metric] | None) -> dict[str, str | Metric]:
    """Task to metric with the tasks' case taken away.

    Raises
    ------
    UnknownNameError
        If a metric does not exist.
    """
    for metric in (metrics or {}).values():
        if not callable(metric) and metric not in METRICS:
            raise UnknownNameError("metric", metric, METRICS)
    return {_key(task): metric for task, metric in (metrics or {}).items()}


def check_tasks(metrics: Mapping[str, str | Metric] | None, items: Sequence[Item]) -> None:
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


def _unknown_task(task: str | None, own: Mapping[str, str | Metric]) -> str:
    similar = nearest(str(task), [*BY_NAME, *own])
    hint = f" Did you mean {similar!r}?" if similar else ""
    return (
        f"nothing says how answers of task {task!r} are scored.{hint} Give a metric, "
        f'metrics={{"{task}": "anls"}}, or in Python a function; there are: {", ".join(METRICS)}'
    )
