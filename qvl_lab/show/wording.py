"""Settings, tasks and metrics in words, English or Chinese."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from qvl_lab.analysis.frame import SETTINGS
from qvl_lab.analysis.money.recommend import PRECISION_ORDER, peak_memory_bytes
from qvl_lab.config import BY_TASK, ENGINES, FIELDS, default_of, engines_with
from qvl_lab.show.locale import has_text, label
from qvl_lab.show.quantities import counts_images, money_sign, one_question
from qvl_lab.tasks import article_resolutions, find_task

#: Resolutions with names of their own, in the order in which they follow the numbers.
_SIDES = ("native", "by_task", "by_task_proposed", "by_task_article")
#: Columns that say that a row's times are not to be relied on.
DOUBTS = ("unstable", "disturbed")
_DEFAULTS = {name: default_of(name) for name in FIELDS}


def resolution(value: Any, lang: str) -> str:
    """ "512 px", "native", "by task: the article's"; see :func:`side`."""
    name = str(value)
    if name.isdigit():
        return label("px", lang, n=name)
    return label(name, lang) if name in _SIDES else name


def side(row: pd.Series) -> str:
    """A row's resolution, with whose table it is where it goes by task."""
    name, tables = str(row["resolution"]), row.get("task_resolutions")
    if name != BY_TASK or not isinstance(tables, str):
        return name
    return "by_task_article" if is_the_articles(tables) else "by_task_proposed"


def setting(row: pd.Series, lang: str) -> str:
    """A frame's row in short: "fp32 · 1024 px · batch 1"; the stock engine is not named."""
    return label("between", lang).join(setting_lines(row, lang))


def setting_lines(row: pd.Series, lang: str) -> list[str]:
    """The same in two lines, images and engine."""
    engine = [label("engine_fast", lang)] if row.get("engine") == "fast" else []
    batch = label("between", lang).join([label("batch", lang, n=row["batch_size"]), *engine])
    return [images_at(row, lang), batch]


def images_at(row: pd.Series, lang: str) -> str:
    """A row's precision and resolution, whatever its batch size: "fp32 · 1024 px"."""
    return label("between", lang).join([str(row["precision"]), resolution(side(row), lang)])


def doubt(row: pd.Series, lang: str) -> str:
    """Why a row's times are not to be relied on: "unstable, disturbed"; "" if they are."""
    known = {name: row.get(name) for name in DOUBTS}
    found = [label(name, lang) for name, value in known.items() if value is not None and value == 1]
    return label("and", lang).join(found)


def is_the_articles(table: Any) -> bool:
    """Whether a frame's ``task_resolutions`` is the article's table; it may know more tasks."""
    sides = json.loads(table) if isinstance(table, str) else {}
    return article_resolutions().items() <= sides.items()


def task(name: str, lang: str) -> str:
    """A task by its name in this language, if it is a known one."""
    known = find_task(name)
    return name if known is None else known.zh if lang == "zh" else known.en


def changed(name: str, before: Any, after: Any, lang: str) -> str:
    """One field's change: "batch 1 → 32"; precision and resolution name themselves.

    A table of resolutions by task says nothing beyond the change of the resolution: "".
    """
    if name == "task_resolutions":
        return ""
    arrow = f"{_value(name, before, lang)} → {_value(name, after, lang)}"
    if name in ("precision", "resolution"):
        return arrow
    key = f"field_{name}"
    return f"{label(key, lang) if has_text(key) else name} {arrow}"


def lever(name: str, batch: int, lang: str) -> str:
    """A lever of the fast engine that is on: "batch 8", "packing"."""
    if name == "batch_size":
        return label("batch", lang, n=batch)
    key = f"field_{name}"
    return label(key, lang) if has_text(key) else name


def _value(name: str, value: Any, lang: str) -> str:
    if name == "resolution":
        return resolution(value, lang)
    return label("default", lang) if pd.isna(value) else str(value)


def title(frame: pd.DataFrame, metric: str, lang: str) -> str:
    """What a metric is called above a panel."""
    return label(_metric(frame, metric), lang)


def axis(frame: pd.DataFrame, metric: str, lang: str) -> str:
    """What a metric is called beside an axis, with its unit."""
    return label(f"{_metric(frame, metric)}_axis", lang, unit=money_sign(frame).strip())


def _metric(frame: pd.DataFrame, metric: str) -> str:
    """The text of a metric: which memory it is, and whether it counts images or answers."""
    if metric == "vram":
        return _memory(frame)
    if metric == "cost":
        return "cost" if counts_images(frame) else "cost_answers"
    by_answer = {"images_per_s": "answers_per_s", "s_per_100_images": "s_per_100_answers"}
    return metric if one_question(frame) else by_answer.get(metric, metric)


def quality_axis(frame: pd.DataFrame, lang: str, *, loss: bool = False) -> str:
    """What quality is called beside an axis; the answers' truth is not a reference's agreement."""
    kinds = set(frame.loc[frame["quality"].notna(), "quality_kind"])
    kind = kinds.pop() if len(kinds) == 1 else "quality"
    return label(f"{kind}_loss_axis" if loss else f"{kind}_axis", lang)


def items(counts: pd.Series, lang: str) -> str:
    """How many items quality rests on: "60 items", or "58–60 items" where settings differ."""
    fewest, most = int(counts.min()), int(counts.max())
    n = str(most) if fewest == most else f"{fewest}–{most}"
    return label("item" if n == "1" else "items", lang, n=n)


def _memory(frame: pd.DataFrame) -> str:
    """Which memory :func:`peak_memory_bytes` gave; VRAM if none is known."""
    reserved = frame.loc[peak_memory_bytes(frame).notna(), "peak_reserved_bytes"].notna()
    if reserved.all():
        return "vram"
    return "mixed_memory" if reserved.any() else "process_memory"


def resolution_order(value: Any) -> tuple[int, int]:
    """Sorts numbers by size, then "native", then those by task."""
    name = str(value)
    if name.isdigit():
        return (0, int(name))
    return (1 + _SIDES.index(name) if name in _SIDES else 1 + len(_SIDES), 0)


def precisions(frame: pd.DataFrame) -> list[str]:
    """The frame's precisions, the most exact first."""
    names = {str(name) for name in frame["precision"]}
    known = [name for name in PRECISION_ORDER if name in names]
    return known + sorted(names - set(known))


def differing(frame: pd.DataFrame, drawn: Sequence[str]) -> list[str]:
    """What tells rows apart besides the settings that a figure draws.

    Whether a row has a table of resolutions, and whether it is the article's, is told by its
    resolution; only other tables differ here.
    """
    names = [n for n in (*SETTINGS, "workload", "environment") if n not in drawn and n in frame]
    tables = ["task_resolutions"] if "resolution" in drawn else []
    compared = {n: pd.Series(tables_of(frame)) if n in tables else frame[n] for n in names}
    own = [n for n in names if len(engines_with(n)) < len(ENGINES)] if "engine" in frame else []
    compared |= {n: frame[n][frame["engine"].isin(engines_with(n))] for n in own}
    return [name for name, values in compared.items() if values.map(str).nunique() > 1]


def others(frame: pd.DataFrame, drawn: Sequence[str], lang: str) -> list[str]:
    """For each row what :func:`differing` finds, in words: "bf16 · fast engine"; "" if nothing.

    What a row leaves to its default, or its engine does not look at, is left out.
    """
    names = differing(frame, drawn)
    return [told(row, names, lang, tables_of(frame)) for _, row in frame.iterrows()]


def told(row: pd.Series, names: Sequence[str], lang: str, tables: Sequence[str] = ()) -> str:
    """A row's settings of these names in words; ``tables`` are those of the frame, by task."""
    worth = [name for name in names if is_told(row, name)]
    off = [name for name in worth if isinstance(row[name], bool | np.bool_) and not row[name]]
    said = [_in_words(name, row[name], lang, tables) for name in worth if name not in off]
    if off:
        what = label("and", lang).join(field(name, lang) for name in off)
        said.append(label("without", lang, what=what))
    return label("between", lang).join(said)


def tables_of(frame: pd.DataFrame) -> list[str]:
    """The frame's tables of resolutions other than the article's, in the order of its rows."""
    column: Iterable[Any] = frame.get("task_resolutions", [])
    named = dict.fromkeys(table for table in column if isinstance(table, str))
    return [table for table in named if not is_the_articles(table)]


def _table_in_words(table: str, tables: Sequence[str], lang: str) -> str:
    """What tells a table of resolutions from the others: "colour 128 px, count 256 px"."""
    mine, *others = (json.loads(text) for text in (table, *tables))
    differ = [name for name in mine if any(other.get(name) != mine[name] for other in others)]
    said = [f"{task(name, lang)} {resolution(mine[name], lang)}" for name in differ or mine]
    return label("and", lang).join(said)


def field(name: str, lang: str) -> str:
    """A setting's name in words: "KV cache", "batch"."""
    key = f"field_{name}"
    return label(key, lang) if has_text(key) else name.replace("_", " ")


def _in_words(name: str, value: Any, lang: str, tables: Sequence[str]) -> str:
    """One setting that is on: "fast engine", "prefix cache", "prefill chunk 512"."""
    if name in ("precision", "workload"):
        return str(value)
    if name == "engine" and has_text(f"engine_{value}"):
        return label(f"engine_{value}", lang)
    if name == "task_resolutions":
        return _table_in_words(value, tables, lang)
    words = field(name, lang)
    if isinstance(value, bool | np.bool_):
        return words
    whole = isinstance(value, float) and value.is_integer()  # a column with gaps has floats
    return f"{words} {int(value) if whole else value}"


def is_told(row: pd.Series, name: str) -> bool:
    """Whether a row's setting is worth a word: it is not the default, and its engine has it."""
    value = row[name]
    if name == "task_resolutions" and is_the_articles(value):
        return False  # the resolution says so
    off_as_ever = not isinstance(value, str) and value == 0 == _DEFAULTS.get(name)
    switch = isinstance(value, bool | np.bool_)
    is_default = off_as_ever or (switch and bool(value) == _DEFAULTS.get(name))
    return not pd.isna(value) and not is_default and is_seen(row, name)


def is_seen(row: pd.Series, name: str) -> bool:
    """Whether a row's engine has a setting."""
    return row.get("engine") is None or row["engine"] in engines_with(name)
