"""Five pairs of ``make report``: what one says is saved is what the other says, within widths.

Two hours on two cores, in which nothing else may run on the machine, and less where it has more:
each report has two cores of its own.
"""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from qvl_lab.analysis.money.confirmed import half_width
from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.runs.store import Runs
from tests.bench.cores import on_core_pairs

PAIRS = 5


def log_saving(folder, env):
    """Of a report of its own: the logarithm of the cost ratio, and half of its interval."""
    report = [sys.executable, "-m", "qvl_lab", "report", "--model", "tiny", "--quiet"]
    env = env | {"CUDA_VISIBLE_DEVICES": ""}  # several at a time would share it
    subprocess.run([*report, "--out", str(folder)], env=env, check=True)
    advice = recommend(Runs.load(folder / "runs.jsonl").frame())
    assert advice.confirmed
    value, width = math.log(1 - advice.saving.value), half_width(advice.saving)
    print(f"{folder.name}: {advice!r}, log ratio {value:.3f}, half-width {width:.3f}", flush=True)
    return value, width


@pytest.mark.full
@pytest.mark.timeout(3 * 3600)
def test_reports_of_one_machine_agree_within_what_they_say(tmp_path, users_environment):
    folders = [tmp_path / f"{pair}{which}" for pair in range(PAIRS) for which in "ab"]
    found = on_core_pairs(lambda folder: log_saving(folder, users_environment), folders)
    pairs = list(zip(found[::2], found[1::2], strict=True))
    agree = [
        abs(first - second) <= math.hypot(width, other) for (first, width), (second, other) in pairs
    ]
    assert sum(agree) >= PAIRS - 1, pairs
    assert max(width for pair in pairs for _, width in pair) <= 0.1, pairs
