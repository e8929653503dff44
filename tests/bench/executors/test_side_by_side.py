"""Trials that take turns call by call, each in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest

from qvl_lab.bench.executors import per_process
from qvl_lab.bench.executors.side_by_side import measure_side_by_side
from qvl_lab.bench.trial import CALLS, Plan, Trial
from qvl_lab.config import Config
from qvl_lab.workloads.sources import load_workload


@pytest.fixture
def trials(pictures):
    def make(*batch_sizes, **fields):
        workload = load_workload(pictures)
        known = {"resolution": 64, "precision": "fp32", "max_new_tokens": 2, "device": "cpu"}
        plan = Plan(repeats=1, min_pass_s=0.2, phase="confirmation", quality=False)
        return [
            Trial(
                config=Config().replace(batch_size=size, **known | fields),
                workload=workload,
                plan=plan,
                round=3,
            )
            for size in batch_sizes
        ]

    return make


# These run in the worker instead of _child, which finds them by their names.


def notes_its_calls(pipe, trial, in_turns, turns=per_process._turns):
    turn, calls = turns(pipe), []
    for _ in range(CALLS):
        turn()
        calls.append(time.monotonic())
        time.sleep(0.01)
    pipe.send_bytes(trial.result("ok", json.dumps(calls)).to_json().encode())


def dies_at_batch_2(pipe, trial, in_turns, child=notes_its_calls):
    if trial.config.engine.batch_size == 2:
        per_process._turns(pipe)()
        os.kill(os.getpid(), signal.SIGKILL)
    child(pipe, trial, in_turns)


def fails_at_batch_2(pipe, trial, in_turns, child=notes_its_calls):
    if trial.config.engine.batch_size == 2:
        pipe.send_bytes(trial.result("oom", "too large").to_json().encode())
        return
    child(pipe, trial, in_turns)


def hangs_at_batch_2(pipe, trial, in_turns, child=notes_its_calls):
    if trial.config.engine.batch_size == 2:
        time.sleep(600)
    child(pipe, trial, in_turns)


@pytest.mark.slow
def test_calls_alternate_forth_and_back(trials, monkeypatch):
    monkeypatch.setattr(per_process, "_child", notes_its_calls)
    runs = measure_side_by_side(trials(1, 2, 4), 60)
    assert [run.config["batch_size"] for run in runs] == [1, 2, 4]
    calls = sorted((at, run.config["batch_size"]) for run in runs for at in json.loads(run.reason))
    assert [size for _, size in calls] == [1, 2, 4, 4, 2, 1] * (CALLS // 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("child", "status", "words", "timeout_s"),
    [
        (dies_at_batch_2, "error", "the worker process died with signal SIGKILL", 60),
        (fails_at_batch_2, "oom", "too large", 60),
        (hangs_at_batch_2, "error", "given up after 8 s", 8),
    ],
)
def test_one_that_ends_early_leaves_the_others(
    trials, monkeypatch, child, status, words, timeout_s
):
    monkeypatch.setattr(per_process, "_child", child)
    one, two, four = measure_side_by_side(trials(1, 2, 4), timeout_s)
    assert (two.status, words in two.reason) == (status, True)
    others = "error" if child is hangs_at_batch_2 else "ok"  # the time of all was used up
    assert one.status == four.status == others
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_pass_of_calls_in_turns_is_one_repeat(trials):
    runs = measure_side_by_side(trials(1, 4), 120)
    for run in runs:
        assert run.status == "ok", run.reason
        (repeat,) = run.repeats
        assert repeat.round == 3
        assert repeat.answered >= CALLS * run.workload["measured_items"]
        assert repeat.wall_s >= 0.2
        assert run.memory["process"] > 0
