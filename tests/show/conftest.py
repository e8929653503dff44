"""Run files to review and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Store


@pytest.fixture
def runs_file(tmp_path) -> Callable[..., Path]:
    def write(*runs: Run) -> Path:
        path = tmp_path / "runs.jsonl"
        with Store(path) as store:
            for run in runs:
                store.append(run)
        return path

    return write


@pytest.fixture
def ablated(on_cpu) -> Callable[..., list[Run]]:
    """A whole ablation at batch 4: every lever makes ten images twice as fast, from 64 s."""
    from qvl_lab.analysis.levers.ablation import OFF
    from qvl_lab.bench.ablation import variants
    from qvl_lab.config import Config, engines_with

    def make(levers: list[str] | None = None, slowest_s: float = 64.0, **parts: Any) -> list[Run]:
        runs = []
        for config in variants(Config().replace(batch_size=4), levers):
            chosen = {n: v for n, v in config.flat().items() if n in OFF or n == "engine"}
            wall_s = slowest_s / 2 ** sum(chosen.get(n, off) != off for n, off in OFF.items())
            if chosen["engine"] == "stock":
                wall_s = slowest_s * 1.5 / chosen["batch_size"]
            own = {n: v for n, v in parts.items() if chosen["engine"] in engines_with(n)}
            runs.append(on_cpu(chosen.pop("batch_size"), wall_s, **chosen, **own))
        return runs

    return make
