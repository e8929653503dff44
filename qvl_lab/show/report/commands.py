"""Command lines that the report prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd

from qvl_lab.config import FIELDS, SweepSpec, default_of
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.options import ReviewOptions

#: Settings that have an option of their own, and those that have none. A memory limit pretends
#: that the device is smaller, which is for measuring.
_OPTIONS = ("precision", "batch_size", "resolution", "max_new_tokens")
_SET = (
    *("revision", "attn_implementation"),
    *(
        name
        for name, part in FIELDS.items()
        if part == "engine" and name not in (*_OPTIONS, "memory_limit_gib")
    ),
)


#: Letters of a line of a command, which fit a printed page.
_LINE = 76


def run_command(row: pd.Series) -> str:
    """The command that runs a row's setting on a folder of images."""
    return shlex.join(["qvl-lab", "run", "IMAGES", *_setting_of(row, _SET)])


def in_lines(command: str) -> str:
    """A long command in lines that a shell joins, broken before options alone."""
    options: list[str] = []  # each with its value
    for word in map(shlex.quote, shlex.split(command)):
        joins = options and not word.startswith("--")
        options[-1:] = [f"{options[-1]} {word}"] if joins else [*options[-1:], word]
    lines = options[:1]
    for option in options[1:]:
        longer = f"{lines[-1]} {option}"
        lines[-1:] = [longer] if len(longer) <= _LINE else [lines[-1], f"  {option}"]
    return " \\\n".join(lines)


def ablate_command(context: ReportContext, row: pd.Series, levers: Sequence[str]) -> str:
    """The command that measures an ablation again, of which ``row`` has all levers.

    What images that bring no question were asked is not on record.
    """
    run = next(run for run in context.runs if run.key == row["key"])
    asked = row.copy()
    asked["precision"] = run.config["precision"]  # "auto" itself: only that goes on with its rows
    own = [name for name in _SET if name not in ("engine", *levers)]
    parts = ["qvl-lab", "ablate", "--workload", run.workload["name"], *_setting_of(asked, own)]
    parts += [] if run.config["device"] == "auto" else ["--device", run.config["device"]]
    parts += ["--levers", ",".join(levers), "--items", str(run.workload["items"])]
    plain = {f.name: f.default for f in fields(SweepSpec)}
    for name in ("timed_items", "batches", "repeats", "warmup"):
        if run.plan.get(name, plain[name]) != plain[name]:
            parts += [_flag(name), str(run.plan[name])]
    parts += [] if run.plan.get("quality", True) else ["--no-quality"]
    for task, metric in run.plan.get("metrics", {}).items():
        parts += ["--metric", f"{task}={metric}"]
    return shlex.join([*parts, "--out", _from_here(context.runs.path or Path("ablation.jsonl"))])


def _setting_of(row: pd.Series, others: Sequence[str]) -> list[str]:
    """A row's model and setting as options; ``others`` as far as they are not the default."""
    tables = row["task_resolutions"]
    parts = ["--model", str(row["model"])]
    for name in _OPTIONS:
        parts += [_flag(name), _spelled(row[name])]
    for name in others:
        value = row.get(name)
        if not pd.isna(value) and value != default_of(name):
            parts += ["--set", f"{name}={_spelled(value)}"]
    for task, side in (json.loads(tables) if isinstance(tables, str) else {}).items():
        parts += ["--task-resolution", f"{task}={side}"]
    return parts


def _spelled(value: Any) -> str:
    whole = isinstance(value, float) and value.is_integer()  # a column with gaps has floats
    return str(int(value) if whole else value)


def report_command(context: ReportContext) -> str:
    """The command that writes this report again."""
    parts = ["qvl-lab", "report", _from_here(context.runs.path or Path("runs.jsonl"))]
    flags = {f.name: f.metadata.get("flag", _flag(f.name)) for f in fields(ReviewOptions)}
    for option, value in context.options.given().items():
        values = [f"{k}={v}" for k, v in value.items()] if isinstance(value, Mapping) else [value]
        for written in values:
            parts += [flags[option], str(written)]
    return shlex.join(parts)


def _from_here(path: Path) -> str:
    """A path as one would type it: from the working folder if it lies in it."""
    whole, here = path.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")
