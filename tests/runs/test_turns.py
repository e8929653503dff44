"""Turns of a setting: lines of a file that are joined while reading."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qvl_lab.runs.records import Run, joined
from qvl_lab.runs.store import Runs, Store


@pytest.fixture
def turn(make_run, make_repeat):
    """A turn of one setting: a pass of ``wall_s`` seconds, or another status."""

    def make(number: int | None, wall_s: float = 10.0, status: str = "ok", **parts) -> Run:
        repeats = [make_repeat(wall_s, round=number)] if status == "ok" else []
        known = {"round": number, "reason": None if status == "ok" else f"made {status}"}
        return replace(make_run(repeats, status), **known | parts)

    return make


def walls(run: Run) -> list[float]:
    return [repeat.wall_s for repeat in run.repeats]


def test_turns_are_joined_in_the_order_of_their_rounds(turn, tmp_path):
    with Store(tmp_path / "runs.jsonl") as store:
        for number, wall_s in ((0, 10.0), (2, 12.0), (1, 11.0)):
            store.append(turn(number, wall_s))
        assert len(store.runs) == 1
    (run,) = Runs.load(tmp_path / "runs.jsonl")
    assert walls(run) == [10.0, 11.0, 12.0]
    assert run.round is None
    assert Runs.load(tmp_path / "runs.jsonl").frame()["round_s"].item() == {
        0: 100.0,
        1: 110.0,
        2: 120.0,
    }


def test_of_a_round_that_was_measured_twice_the_later_counts(turn):
    assert walls(joined([turn(0, 10.0), turn(1, 11.0), turn(0, 9.0)])) == [9.0, 11.0]


def test_lines_of_older_files_are_whole_runs_and_the_last_one_counts(turn):
    assert walls(joined([turn(None, 10.0), turn(None, 20.0)])) == [20.0]


def test_peaks_are_the_highest_energy_is_summed_and_power_is_a_mean(turn):
    first = turn(0, memory={"process": 5, "device": None}, power={"energy_j": 4.0, "power_w": 2.0})
    second = turn(1, memory={"process": 3, "device": None}, power={"energy_j": 6.0, "power_w": 4.0})
    run = joined([first, second])
    assert run.memory == {"process": 5, "device": None}
    assert run.power == {"energy_j": 10.0, "power_w": 3.0}


def test_scores_come_from_the_turn_that_has_them(turn):
    scores = {"read": {"metric": "anls", "values": [1.0]}}
    assert joined([turn(0, scores=scores), turn(1)]).scores == scores


def test_a_setting_that_failed_in_one_round_keeps_what_was_measured_and_says_so(turn):
    run = joined([turn(0), turn(1, status="error"), turn(2)])
    assert run.status == "ok"
    assert len(run.repeats) == 2
    assert run.reason == "1 of 3 rounds failed: made error"


def test_a_setting_without_a_quiet_turn_is_busy(turn):
    busy = {"contention": {"thrown_away": 4, "reason": "other programs used 1.0 cores"}}
    run = joined([turn(0, status="busy", **busy), turn(1, status="busy", **busy)])
    assert run.status == "busy"
    assert run.contention["thrown_away"] == 8


def test_what_was_thrown_away_is_counted_over_all_turns(turn):
    seen = [
        {"thrown_away": 1, "reason": "other programs used 1.0 cores", "canary_s": 0.11},
        {"thrown_away": 0, "reason": None, "canary_s": 0.10},
    ]
    run = joined([turn(n, contention=found) for n, found in enumerate(seen)])
    assert run.contention == {
        "thrown_away": 1,
        "reason": "other programs used 1.0 cores",
        "canary_s": 0.10,
    }
    assert Runs([run]).frame()["passes_thrown_away"].item() == 1


def test_a_frame_marks_what_was_disturbed_and_what_is_unstable(turn, make_repeat):
    disturbed = replace(turn(0), repeats=[make_repeat(10.0, round=0, disturbed="others")])
    unstable = joined([turn(0, 10.0), turn(1, 16.0)])
    steady = joined([turn(0, 10.0), turn(1, 14.0)])
    frame = Runs([disturbed, unstable, steady]).frame()
    assert list(frame["disturbed"]) == [True, False, False]
    assert list(frame["unstable"]) == [False, True, False]
