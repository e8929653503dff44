"""A confirmation: the finalists once more, in alternation, into the same file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from PIL import Image

import qvl_lab as ql
from qvl_lab.bench import sweep
from qvl_lab.bench.confirm import LEAST
from qvl_lab.bench.executors import EXECUTORS
from qvl_lab.bench.trial import Trial
from qvl_lab.errors import ConfigError
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs

#: Seconds of a pass of eight items by batch size.
SECONDS = {1: 8.0, 2: 5.0, 4: 3.0, 8: 2.9}


@pytest.fixture
def asked(monkeypatch, make_repeat) -> list[tuple[str, int, int]]:
    """Replace measuring; what is asked for, as (phase, round, batch size)."""
    calls: list[tuple[str, int, int]] = []

    def run(trials: Iterable[Trial], timeout_s: float) -> Iterator[Run]:
        for trial in trials:
            size, number = trial.config.engine.most_at_once, trial.round or 0
            calls.append((trial.plan.phase, number, size))
            wall_s = SECONDS[size] * (1 + 0.002 * number + 0.001 * (size * number % 3))
            cold = {"load_s": 0.1, "warmup_s": 20.0 if SLOW_START in calls else 1.0}
            known: dict[str, Any] = {"cold": cold, "random_weights": True}
            known["resolved"] = {"precision": "fp32", "device": "cpu"}
            yield trial.result("ok", repeats=[make_repeat(wall_s, 8, round=number)], **known)

    monkeypatch.setitem(EXECUTORS, "process", run)
    monkeypatch.setattr(sweep, "measure_side_by_side", lambda trials, s: list(run(trials, s)))
    return calls


SLOW_START = ("slow", 0, 0)


@pytest.fixture
def swept(tmp_path, asked) -> Any:
    for i in range(8):
        Image.new("RGB", (64, 64), (20 * i, 0, 0)).save(tmp_path / f"{i}.png")
    out = tmp_path / "runs.jsonl"

    def sweep() -> Any:
        ql.sweep(
            out=out, workload=tmp_path, batch_size=[1, 2, 4, 8], precision="fp32", resolution=64,
            repeats=3, quality=False, progress=False,
        )  # fmt: skip
        return out, tmp_path

    return sweep


def test_finalists_are_measured_in_alternation(swept, asked):
    out, folder = swept()
    asked.clear()
    runs = ql.confirm(out, workload=folder, progress=False)
    assert {phase for phase, _, _ in asked} == {"confirmation"}
    order = [(number, size) for _, number, size in asked]
    assert order[:6] == [(0, 1), (0, 8), (0, 4), (1, 4), (1, 8), (1, 1)]
    assert len(order) == 3 * 3 + 2 * (LEAST - 3)
    advice = ql.recommend(runs.frame())
    assert advice.confirmed
    assert (advice.current["batch_size"], advice.best["batch_size"]) == (1, 8)
    assert advice.saving.value == pytest.approx(1 - 2.9 / 8, abs=0.01)
    assert advice.saving.low < advice.saving.value < advice.saving.high


def test_rows_of_a_confirmation_are_no_settings_of_their_own(swept):
    out, folder = swept()
    before = Runs.load(out).frame()
    after = ql.confirm(out, workload=folder, progress=False).frame()
    assert list(after["key"]) == list(before["key"])
    assert after["s_per_100_images"].equals(before["s_per_100_images"])
    assert after.set_index("batch_size")["confirmed_s"].notna().to_dict() == {
        1: True,
        2: False,
        4: True,
        8: True,
    }


def test_the_same_call_again_measures_nothing(swept, asked):
    out, folder = swept()
    ql.confirm(out, workload=folder, progress=False)
    asked.clear()
    ql.confirm(out, workload=folder, progress=False)
    assert asked == []


def test_where_an_engine_takes_long_to_start_three_rounds_do(swept, asked):
    asked.append(SLOW_START)
    out, folder = swept()
    asked[:] = [SLOW_START]
    ql.confirm(out, workload=folder, progress=False)
    assert len(asked) == 1 + 3 * 3


def test_the_best_setting_today_needs_no_confirmation(swept, asked):
    out, folder = swept()
    asked.clear()
    runs = ql.confirm(out, workload=folder, progress=False, current={"batch_size": 8})
    assert asked == []
    assert not ql.recommend(runs.frame(), current={"batch_size": 8}).confirmed


def test_another_workload_is_refused(swept):
    out, _ = swept()
    with pytest.raises(ConfigError, match="name the one that they were measured with"):
        ql.confirm(out, workload="evaluation", progress=False)
