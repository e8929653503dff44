"""Command lines that the report prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pandas as pd

from qvl_lab.config import Config, EngineSpec
from qvl_lab.show.review.findings import Findings

#: What the command line takes where an option is left out.
_DEFAULTS = {"utilisation": 1.0, "lang": "en"}
#: Options that the command line calls otherwise.
_FLAGS = {"exchange_rates": "--rate", "prices_file": "--prices"}


#: Settings that have an option of their own, and those that have none. A memory limit pretends
#: that the device is smaller, which is for measuring.
_OPTIONS = ("precision", "batch_size", "resolution", "max_new_tokens")
_SET = (
    *("revision", "attn_implementation"),
    *(f.name for f in fields(EngineSpec) if f.name not in (*_OPTIONS, "memory_limit_gib")),
)


def run_command(row: pd.Series) -> str:
    """The command that runs a row's setting on a folder of images."""
    tables = row["task_resolutions"]
    parts = ["qvl-lab", "run", "IMAGES", "--model", str(row["model"])]
    for name in _OPTIONS:
        parts += [_flag(name), str(row[name])]
    defaults = Config().flat()
    for name in _SET:
        value = row.get(name)
        if not pd.isna(value) and value != defaults[name]:
            whole = isinstance(value, float) and value.is_integer()  # a column with gaps has floats
            parts += ["--set", f"{name}={int(value) if whole else value}"]
    for task, side in (json.loads(tables) if isinstance(tables, str) else {}).items():
        parts += ["--task-resolution", f"{task}={side}"]
    return shlex.join(parts)


def report_command(found: Findings) -> str:
    """The command that writes this report again."""
    parts = ["qvl-lab", "report", _from_here(found.runs.path or Path("runs.jsonl"))]
    for option, value in found.options.items():
        if value == _DEFAULTS.get(option):
            continue
        if isinstance(value, Mapping):
            for key, inner in value.items():
                parts += [_flag(option), f"{key}={inner}"]
        else:
            parts += [_flag(option), str(value)]
    return shlex.join(parts)


def _from_here(path: Path) -> str:
    """A path as one would type it: from the working folder if it lies in it."""
    whole, here = path.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def _flag(option: str) -> str:
    return _FLAGS.get(option, "--" + option.replace("_", "-"))
