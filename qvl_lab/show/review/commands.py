"""Command lines that the report prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

import pandas as pd

from qvl_lab.config import Config
from qvl_lab.show.review.findings import Findings

#: Options that the command line calls otherwise.
_FLAGS = {"exchange_rates": "--rate", "prices_file": "--prices"}


def run_command(row: pd.Series) -> str:
    """The command that runs a row's setting on a folder of images."""
    tables = row["task_resolutions"]
    parts = ["qvl-lab", "run", "IMAGES", "--model", str(row["model"])]
    for name in ("precision", "batch_size", "resolution", "max_new_tokens"):
        parts += [_flag(name), str(row[name])]
    defaults = Config().flat()
    for name in ("revision", "cache_implementation", "attn_implementation", "min_new_tokens"):
        if not pd.isna(row[name]) and row[name] != defaults[name]:
            parts += ["--set", f"{name}={row[name]}"]
    for task, side in (json.loads(tables) if isinstance(tables, str) else {}).items():
        parts += ["--task-resolution", f"{task}={side}"]
    return shlex.join(parts)


def report_command(found: Findings) -> str:
    """The command that writes this report again."""
    parts = ["qvl-lab", "report", found.runs.path.name if found.runs.path else "runs.jsonl"]
    for option, value in found.options.items():
        if isinstance(value, Mapping):
            for key, inner in value.items():
                parts += [_flag(option), f"{key}={inner}"]
        else:
            parts += [_flag(option), str(value)]
    return shlex.join(parts)


def _flag(option: str) -> str:
    return _FLAGS.get(option, "--" + option.replace("_", "-"))
