"""Where configurations run: a worker that dies takes only its own configuration with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from qvl_lab.bench.executors import per_process as executors
from qvl_lab.bench.executors.in_process import measure_in_process
from qvl_lab.bench.trial import Plan, Trial
from qvl_lab.config import Config
from qvl_lab.runs.records import Run
from qvl_lab.workloads.sources import load_workload


@pytest.fixture
def trials(pictures) -> Callable[..., list[Trial]]:
    """A trial for each batch size."""

    def make(*batch_sizes: int, **fields: Any) -> list[Trial]:
        workload = load_workload(pictures)
        known = {"resolution": 64, "precision": "fp32", "max_new_tokens": 2, "device": "cpu"}
        return [
            Trial(
                config=Config().replace(batch_size=size, **known | fields),
                workload=workload,
                plan=Plan(repeats=1, warmup=0),
            )
            for size in batch_sizes
        ]

    return make


def run_all(trials: list[Trial], timeout_s: float = 60) -> list[Run]:
    """In processes that measure as they should, or as ``executors._child`` is patched to."""
    return list(executors.measure_per_process(trials, timeout_s))


# These run in the worker instead of executors._child, which finds them by their names.


def killed_at_batch_2(sender, trial) -> None:
    if trial.config.engine.batch_size == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    sender.send_bytes(trial.result("ok").to_json().encode())


def crashes_at_batch_2(sender, trial) -> None:
    if trial.config.engine.batch_size == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    sender.send_bytes(trial.result("ok").to_json().encode())


def exits_at_batch_2(sender, trial) -> None:
    if trial.config.engine.batch_size == 2:
        os._exit(7)
    sender.send_bytes(trial.result("ok").to_json().encode())


def hangs_at_batch_2(sender, trial) -> None:
    if trial.config.engine.batch_size == 2:
        time.sleep(600)
    sender.send_bytes(trial.result("ok").to_json().encode())


def says_its_process(sender, trial) -> None:
    sender.send_bytes(trial.result("ok", str(os.getpid())).to_json().encode())


def gets_ctrl_c(sender, trial, child=executors._child) -> None:
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    child(sender, trial)


@pytest.mark.slow
def test_each_configuration_is_measured_in_a_process_of_its_own(trials, monkeypatch):
    monkeypatch.setattr(executors, "_child", says_its_process)
    pids = {run.reason for run in run_all(trials(1, 2, 4))}
    assert len(pids) == 3
    assert str(os.getpid()) not in pids


@pytest.mark.slow
def test_a_process_measures_what_this_one_measures(trials):
    own, here = run_all(trials(4))[0], next(measure_in_process(trials(4), 60))
    assert own.status == here.status == "ok"
    assert (own.key, own.environment, own.workload) == (here.key, here.environment, here.workload)
    for name in ("answered", "failed", "prompt_tokens", "visual_tokens", "new_tokens"):
        assert getattr(own.repeats[0], name) == getattr(here.repeats[0], name)
    assert own.memory["process"] > 100 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("child", "words"),
    [
        (killed_at_batch_2, "signal SIGKILL (the system may have run out of memory)"),
        (crashes_at_batch_2, "signal SIGSEGV"),
        (exits_at_batch_2, "exit code 7"),
    ],
)
def test_a_worker_that_dies_is_an_error_row_and_the_next_goes_on(trials, monkeypatch, child, words):
    monkeypatch.setattr(executors, "_child", child)
    asked = trials(1, 2, 4)
    runs = run_all(asked)
    assert [run.status for run in runs] == ["ok", "error", "ok"]
    assert [run.key for run in runs] == [trial.key for trial in asked]
    assert runs[1].reason == f"the worker process died with {words}"


@pytest.mark.slow
def test_a_worker_that_takes_too_long_is_given_up_and_ended(trials, monkeypatch):
    monkeypatch.setattr(executors, "_child", hangs_at_batch_2)
    started = time.monotonic()
    runs = run_all(trials(1, 2, 4), timeout_s=2)
    assert [run.status for run in runs] == ["ok", "error", "ok"]
    assert runs[1].reason == "given up after 2 s; raise timeout_s"
    assert time.monotonic() - started < 30
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_ctrl_c_in_the_group_does_not_end_a_worker(trials, monkeypatch):
    monkeypatch.setattr(executors, "_child", gets_ctrl_c)
    assert [run.status for run in run_all(trials(1))] == ["ok"]


@pytest.mark.slow
def test_stopping_early_ends_the_worker_at_hand(trials):
    results = executors.measure_per_process(trials(1, 2), 60)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_in_one_process_a_model_is_loaded_once_for_all_of_its_settings(trials, monkeypatch):
    from qvl_lab.bench import measure

    loaded: list[int] = []
    real = measure.load

    def load(spec):
        loaded.append(spec.seed)
        return real(spec)

    monkeypatch.setattr(measure, "load", load)
    asked = [*trials(1, 2), *trials(1, 2, seed=1)]
    runs = list(measure_in_process(asked, 60))
    assert [run.status for run in runs] == ["ok"] * 4
    assert loaded == [0, 1]


@pytest.mark.slow
def test_a_failing_setting_leaves_the_process_fit_for_the_next(trials):
    asked = [*trials(1, model="/no/such/model"), *trials(1)]
    runs = list(measure_in_process(asked, 60))
    assert [run.status for run in runs] == ["error", "ok"]
    assert "/no/such/model does not exist" in runs[0].reason
