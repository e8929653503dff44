"""Run files to review and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qvl_lab.records import Run
from qvl_lab.sweeps.store import Store


@pytest.fixture
def runs_file(tmp_path) -> Callable[..., Path]:
    def write(*runs: Run) -> Path:
        path = tmp_path / "runs.jsonl"
        with Store(path) as store:
            for run in runs:
                store.append(run)
        return path

    return write
