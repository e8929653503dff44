"""The headline of a real sweep beside a process that eats a core and comes and goes.

An hour, in which nothing else may run on the machine: the quiet repetitions between the busy ones
say what is right. The same protocol on a clock that is made up is in ``test_protocol.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from statistics import median

import pytest

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
        resolution=192, max_new_tokens=8, batch_size=[1, 4, 8],
    )
    found = {}
    try:
        runs = ql.confirm(out, progress=False)
        advice = ql.recommend(runs.frame())
        if advice.confirmed:
            found = {
                "today_s": float(advice.current["s_per_100_images"]),
                "best_s": float(advice.best["s_per_100_images"]),
                "saving": advice.saving.value,
            }
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


def headline(tmp_path, share, seed):
    """Today's and the best setting's seconds per 100 images and the saving; empty if refused."""
    script = tmp_path / "headline.py"
    script.write_text(HEADLINE)
    as_users_do = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OMP_") and name != "QVL_LAB_ON_BUSY"
    }
    with eater(share, seed):
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path / f"{share}-{seed}.jsonl")],
            env=as_users_do,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"busy {share:.0%}, {seed}: {found}", flush=True)
    return found


def off(found, quiet):
    """By how much the worst of the numbers differs from the quiet machine's."""
    return max(abs(value / quiet[name] - 1) for name, value in found.items())


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_a_headline_beside_a_busy_process_is_the_quiet_machines_or_is_refused(tmp_path):
    quiet, tenth, half = [], [], []
    for seed in range(20):
        if seed % 4 == 0:
            quiet.append(headline(tmp_path, 0.0, seed))
            half.append(headline(tmp_path, 0.5, seed))
        tenth.append(headline(tmp_path, 0.1, seed))
    assert all(quiet)
    right = {name: median(found[name] for found in quiet) for name in quiet[0]}
    given = [found for found in tenth if found]
    assert len(given) >= 18
    assert [found for found in given if off(found, right) > 0.1] == []
    assert [found for found in half if found and off(found, right) > 0.1] == []
