"""Whoever measures several times at once gives each its own cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

from tests.bench import cores
from tests.bench.cores import core_pairs, on_core_pairs

SEEN = "import json, os; print(json.dumps(sorted(os.sched_getaffinity(0))))"


def cores_of_a_child(_job):
    return json.loads(subprocess.check_output([sys.executable, "-c", SEEN]))


def test_a_process_of_a_job_runs_on_its_pair_and_the_caller_on_all(monkeypatch):
    mine = sorted(os.sched_getaffinity(0))
    halves = [mine[: len(mine) // 2] or mine, mine[len(mine) // 2 :]]
    monkeypatch.setattr(cores, "core_pairs", lambda: halves)
    both = threading.Barrier(2)

    def job(number):
        both.wait(30)  # two are at work at a time, each in a thread of its own
        return cores_of_a_child(number)

    assert sorted(map(tuple, on_core_pairs(job, range(2)))) == sorted(map(tuple, halves))
    assert sorted(os.sched_getaffinity(0)) == mine


def test_many_cores_are_pairs_but_for_two(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert core_pairs() == [[0, 1], [2, 3], [4, 5]]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 6})
    assert core_pairs() == [[4, 6]]
