"""The headline of a real sweep beside a process that eats a core and comes and goes.

An hour and a half on two cores, in which nothing else may run on the machine, and less where it has
more: each repetition has two cores of its own, and its eater shares them. The quiet repetitions
between the busy ones say what is right. What is compared is the ratio that a headline names: on
virtual cores the seconds of one setting changed by 45% within minutes though nobody was beside.
The same protocol on a clock that is made up is in ``test_protocol.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from statistics import median

import pytest

from tests.bench.cores import on_core_pairs

EATER = """
import random, sys, time
share, draw = float(sys.argv[1]), random.Random(int(sys.argv[2]))
while True:
    lasts_s = draw.uniform(2, 10)
    time.sleep(draw.expovariate(share / (lasts_s * (1 - share))))
    end_s = time.perf_counter() + lasts_s
    while time.perf_counter() < end_s:
        pass
"""
HEADLINE = """
import json, sys
import qvl_lab as ql

if __name__ == "__main__":
    out = sys.argv[1]
    ql.sweep(
        model="tiny", workload="mixed", items=8, out=out, progress=False, quality=False,
        resolution=192, max_new_tokens=8, batch_size=[1, 4, 8], max_repeats=3,
    )
    found = {}
    try:
        runs = ql.confirm(out, budget_s=300, progress=False)
        advice = ql.recommend(runs.frame())
        if advice.confirmed:
            found = {"ratio": 1 - advice.saving.value}
    except ql.QvlError as e:
        print(f"refused: {e}", file=sys.stderr)
    print(json.dumps(found))
"""


@contextmanager
def eater(share, seed):
    """A process that is busy for so large a share of the time; none for 0."""
    process = share and subprocess.Popen([sys.executable, "-c", EATER, str(share), str(seed)])
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


def headline(tmp_path, share, seed, env):
    """The best setting's time over today's; empty if refused."""
    script = tmp_path / f"{share}-{seed}.py"
    script.write_text(HEADLINE)
    with eater(share, seed):
        measured = subprocess.run(
            [sys.executable, str(script), str(script.with_suffix(".jsonl"))],
            env=env | {"CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            text=True,
        )
    assert measured.returncode == 0
    found = json.loads(measured.stdout.splitlines()[-1])
    print(f"busy {share:.0%}, {seed}: {found}", flush=True)
    return found


def headlines(tmp_path, jobs, env):
    """The headline of each (share, seed)."""
    found = on_core_pairs(lambda job: headline(tmp_path, *job, env), jobs)
    return dict(zip(jobs, found, strict=True))


def off(found, quiet):
    """By how much a ratio differs from the quiet machine's."""
    return max(abs(value / quiet[name] - 1) for name, value in found.items())


#: Share of the time that the eater is busy, and its seed: five quiet, twenty, five.
JOBS = [
    job
    for seed in range(20)
    for job in ([(0.0, seed), (0.5, seed)] if seed % 4 == 0 else []) + [(0.1, seed)]
]


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_a_headline_beside_a_busy_process_is_the_quiet_machines_or_is_refused(
    tmp_path, users_environment
):
    judge(headlines(tmp_path, JOBS, users_environment))


def judge(found):
    """Of headlines by (share, seed): none is wrong, and enough are given."""
    quiet, tenth, half = (
        [value for (busy, _), value in found.items() if busy == share] for share in (0.0, 0.1, 0.5)
    )
    assert all(quiet)
    right = {name: median(one[name] for one in quiet) for name in quiet[0]}
    given = [one for one in tenth if one]
    assert len(given) >= 0.9 * len(tenth)
    assert [one for one in given if off(one, right) > 0.1] == []
    assert [one for one in half if one and off(one, right) > 0.1] == []
