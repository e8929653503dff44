"""Runs to rows, compared with numbers worked by hand."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from qvl_lab.analysis.frame import SETTINGS, frame, quality_columns, task_column
from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.analysis.stats.intervals import interval
from qvl_lab.config import FIELDS, digest
from qvl_lab.runs.records import STAGES

SPEED = (
    "s_per_100_images images_per_s ttft_s new_tokens_per_s prompt_tokens_per_image "
    "visual_tokens_per_image new_tokens_per_image answered"
).split()


@pytest.fixture
def row(make_run, make_repeat):
    """Three passes over 8 to 10 answers."""
    repeats = [
        make_repeat(10.0, 10, ttft_s=[0.1, 0.2, 0.9], stages_s={"vision": 4.0, "other": 1.0}),
        make_repeat(16.0, 8, failed=2, ttft_s=[0.4], stages_s={"vision": 4.0, "decode": 8.0}),
        make_repeat(12.0, 10, ttft_s=[0.3], stages_s={"vision": 3.0}),
    ]
    run = make_run(
        repeats,
        precision="auto",
        resolution=512,
        batch_size=4,
        resolved={"precision": "bf16", "device": "cuda:0"},
        memory={"allocated": 5, "reserved": 7, "process": None},
        power={"gpu_utilisation": 0.5, "power_w": 100.0, "energy_j": 1400.0},
        cold={"load_s": 3.0, "warmup_s": 2.0},
        random_weights=False,
    )
    return frame([run]).iloc[0]


def test_speed_is_the_median_over_repeats(row):
    assert row["s_per_100_images"] == 120.0  # of 100, 200, 120
    assert row["images_per_s"] == pytest.approx(10 / 12)  # of 1, 0.5, 0.83
    assert row["new_tokens_per_s"] == pytest.approx(50 / 12)  # of 5, 2.5, 4.17
    assert row["ttft_s"] == 0.3  # of the medians 0.2, 0.4, 0.3
    assert (row["repeats"], row["answered"], row["failed"]) == (3, 10, 0)


def test_times_of_answers_have_percentiles_over_the_items_of_all_passes(make_run, make_repeat):
    first, second = [float(n) for n in range(1, 61)], [float(n) for n in range(61, 101)]
    repeats = [
        make_repeat(10.0, 60, queue_s=first, ttft_s=[0.5] * 60, e2e_s=first),
        make_repeat(10.0, 40, queue_s=second, ttft_s=[0.5] * 40, e2e_s=second),
    ]
    row = frame([make_run(repeats)]).iloc[0]
    for name in ("queue", "e2e"):
        assert row[f"{name}_s"] == (30.5 + 80.5) / 2  # of the passes' medians
        assert row[f"{name}_s_low"] < row[f"{name}_s"] < row[f"{name}_s_high"]
        assert (row[f"{name}_p95_s"], row[f"{name}_p99_s"]) == (95.0, 99.0)
    assert (row["ttft_p95_s"], row["ttft_p99_s"]) == (0.5, 0.5)


def test_percentiles_are_unknown_where_they_would_be_the_slowest_item(make_run, make_repeat):
    def row(answered):
        times = [float(n) for n in range(answered)]
        return frame([make_run([make_repeat(10.0, answered, e2e_s=times)])]).iloc[0]

    assert row(19)["e2e_p95_s"] is None
    assert (row(20)["e2e_p95_s"], row(20)["e2e_p99_s"]) == (18.0, None)
    assert row(99)["e2e_p99_s"] is None
    assert row(100)["e2e_p99_s"] == 98.0


def test_no_wait_at_all_is_a_wait_of_zero_without_an_interval(make_run, make_repeat):
    row = frame([make_run([make_repeat(queue_s=[0.0] * 10)] * 2)]).iloc[0]
    assert (row["queue_s"], row["queue_s_low"]) == (0.0, None)


def test_a_first_token_by_an_older_clock_stands_in_a_column_of_its_own(make_run, make_repeat):
    older = make_repeat(10.0, 30, ttft_s=[0.2] * 30, queue_s=[], e2e_s=[])
    row = frame([make_run([older, older])]).iloc[0]
    assert (row["batch_ttft_s"], row["batch_ttft_s_low"]) == (0.2, pytest.approx(0.2))
    for name in ("queue", "ttft", "e2e"):
        columns = [f"{name}_s", f"{name}_s_low", f"{name}_p95_s", f"{name}_p99_s"]
        assert row[columns].isna().all()
    today = frame([make_run([make_repeat()])]).iloc[0]
    assert pd.isna(today["batch_ttft_s"])


def test_intervals_of_seconds_and_speed_mirror_each_other(row):
    assert row["s_per_100_images_low"] < 120 < row["s_per_100_images_high"]
    assert row["images_per_s_low"] == pytest.approx(100 / row["s_per_100_images_high"])
    logs = pd.Series([100.0, 200.0, 120.0]).map(math.log)
    half = 4.30265 * logs.std() / math.sqrt(3)
    assert row["s_per_100_images_high"] == pytest.approx(math.exp(logs.mean() + half), rel=1e-5)


def test_stages_are_medians_per_image_and_zero_if_a_measured_run_lacks_one(row):
    assert row["stage_vision_s"] == 0.4  # of 0.4, 0.5, 0.3
    assert row["stage_decode_s"] == 0.0  # of 0, 1, 0
    assert row["stage_other_s"] == 0.0  # of 0.1, 0, 0
    assert {f"stage_{name}_s" for name in STAGES} < set(row.index)


def test_parts_of_stages_are_medians_over_the_repeats_that_know_them(make_run, make_repeat):
    parts = [{"vision/merger": 1.0}, {}, {"vision/merger": 4.0}]
    row = frame([make_run([make_repeat(9.0, 10, parts_s=found) for found in parts])]).iloc[0]
    assert row["part_vision_merger_s"] == 0.25  # of 0.1, 0.4
    assert row["part_decode_lm_head_s"] is None


def test_tokens_are_per_answered_image(row):
    assert row["prompt_tokens_per_image"] == 30
    assert row["visual_tokens_per_image"] == 20
    assert row["new_tokens_per_image"] == 5


def test_memory_power_and_cold_start(row):
    assert (row["peak_allocated_bytes"], row["peak_reserved_bytes"]) == (5, 7)
    assert pd.isna(row["peak_process_bytes"])
    assert pd.isna(row["peak_device_bytes"])
    assert (row["gpu_utilisation"], row["power_w"]) == (0.5, 100.0)
    assert row["energy_j_per_100_images"] == 5000.0  # 1,400 J for 28 answers
    assert (row["load_s"], row["warmup_s"]) == (3.0, 2.0)


def test_settings_are_those_that_auto_became(row):
    assert (row["precision"], row["device"]) == ("bf16", "cuda:0")
    assert (row["resolution"], row["batch_size"], row["model"]) == ("512", 4, "tiny")


def test_workload_and_environment(row):
    assert (row["workload"], row["workload_items"]) == ("hand", 10)
    assert row["workload_fingerprint"] == "f" * 16
    assert (row["env_gpu"], row["env_torch"]) == ("NVIDIA A10G", "2.11")
    assert row["environment"] == digest({"gpu": "NVIDIA A10G", "torch": "2.11"})
    assert row["cache_state"] == "off"
    assert pd.isna(row["quality"])


@pytest.mark.parametrize("status", ["oom", "skipped", "error"])
def test_unmeasured_rows_keep_their_settings_and_have_no_numbers(make_run, make_repeat, status):
    table = frame([make_run([make_repeat()]), make_run(status=status, reason="why", batch_size=8)])
    row = table.iloc[1]
    assert (row["status"], row["reason"], row["batch_size"]) == (status, "why", 8)
    assert row["repeats"] == 0
    unknown = [*SPEED, "s_per_100_images_low", "failed", "stage_vision_s", "peak_reserved_bytes"]
    assert row[unknown].isna().all()
    assert row[["power_w", "energy_j_per_100_images", "load_s", "random_weights"]].isna().all()
    assert table.iloc[0][SPEED].notna().all()


def test_a_pass_in_which_all_failed_is_counted_but_not_timed(make_run, make_repeat):
    failed = make_repeat(3.0, 0, failed=10)
    row = frame([make_run([failed, make_repeat(10.0, 10)])]).iloc[0]
    assert row["repeats"] == 2
    assert row["s_per_100_images"] == 100.0
    assert row["failed"] == 5.0
    assert pd.isna(row["s_per_100_images_low"])
    nothing = frame([make_run([failed], power={"energy_j": 5.0})]).iloc[0]
    assert nothing[["s_per_100_images", "answered", "energy_j_per_100_images"]].isna().all()


def test_one_repeat_has_no_interval(make_run, make_repeat):
    row = frame([make_run([make_repeat(10.0)])]).iloc[0]
    assert row["s_per_100_images"] == 100.0
    assert row[["s_per_100_images_low", "s_per_100_images_high"]].isna().all()


# ---- quality

QUALITY = (
    "quality quality_low quality_high quality_kind quality_items quality_missing quality_unparsed "
    "scores"
).split()


def test_quality_is_the_mean_of_the_tasks_means(make_run, make_repeat):
    read, locate = TaskScores("exact_match", (1.0, 0.0, None, 1.0)), TaskScores("iou", (0.5, 1), 1)
    scores = {"read": read.to_dict(), "locate": locate.to_dict()}
    row = frame([make_run([make_repeat()], scores=scores)]).iloc[0]
    assert row["quality_read"] == 0.5  # no answer is a wrong one
    assert row["quality_locate"] == 0.75
    assert row["quality"] == pytest.approx((0.5 + 0.75) / 2)
    assert row["quality_kind"] == "answers"
    assert row["scores"] == {"read": (1.0, 0.0, 0.0, 1.0), "locate": (0.5, 1.0)}
    assert row["score_images"] is None
    counts = row[["quality_items", "quality_missing", "quality_unparsed"]]
    assert counts.tolist() == [6, 1, 1]
    assert row["failed_share"] == pytest.approx(1 / 6)
    for name, groups in (
        ("quality", [read.scored, locate.values]),
        ("quality_read", [read.scored]),
        ("quality_locate", [locate.values]),
    ):
        bounds = row[[name, f"{name}_low", f"{name}_high"]].tolist()
        assert bounds == list(interval(groups))
        assert bounds[1] < bounds[0] < bounds[2]


def test_questions_about_one_image_are_resampled_together():
    scores = (1.0, 1.0, 0.0, 0.0) * 5
    images = tuple(i // 2 for i in range(20))
    told = {
        "read": TaskScores("exact_match", scores, images=images),
        "colour": TaskScores("exact_match", scores, images=images),
    }
    columns = quality_columns(told, "answers")
    assert columns["score_images"] == {"read": images, "colour": images}
    assert columns["quality_low"] == interval([scores, scores], images=[images, images])[1]
    assert columns["quality_read_low"] == interval([scores], images=[images])[1]
    told["colour"] = TaskScores("exact_match", scores)  # of an older file
    assert quality_columns(told, "answers")["score_images"] is None
    assert quality_columns(told, "answers")["quality_low"] == interval([scores, scores])[1]


def test_the_share_of_failed_items_is_the_larger_of_timed_and_scored(make_run, make_repeat):
    timed, scored = make_repeat(answered=8, failed=2), TaskScores("iou", (1.0, None))
    runs = [
        make_run([timed]),
        make_run([timed], scores={"read": scored.to_dict()}, batch_size=2),
        make_run(status="oom", batch_size=4),
    ]
    shares = frame(runs)["failed_share"]
    assert shares.tolist()[:2] == [0.2, 0.5]
    assert pd.isna(shares[2])


def test_without_a_scored_item_quality_is_unknown(make_run, make_repeat):
    nothing = {"read": TaskScores("exact_match", ()).to_dict()}
    table = frame([make_run([make_repeat()], scores=told) for told in ({}, nothing)])
    assert table[QUALITY].isna().all(axis=None)
    assert "quality_read" not in table


def test_a_task_that_one_run_lacks_is_unknown_there(make_run, make_repeat):
    runs = [
        make_run([make_repeat()], scores={task: TaskScores("iou", (1.0,)).to_dict()}, batch_size=i)
        for i, task in enumerate(("read", "locate"), 1)
    ]
    table = frame([*runs, make_run(status="oom", batch_size=4)])
    assert table["quality_read"].notna().tolist() == [True, False, False]
    assert table["quality"].tolist()[:2] == [1.0, 1.0]
    assert table.loc[2, QUALITY].isna().all()


@pytest.mark.parametrize("task", ["low", "high", "kind", "items", "missing", "unparsed"])
def test_a_task_may_be_called_like_another_column(task):
    read = TaskScores("iou", (0.5, 0.75, None))
    columns = quality_columns({task: read, "read": TaskScores("iou", (1.0,))}, "answers")
    assert columns[task_column(task)] == pytest.approx(1.25 / 3)
    assert columns[f"{task_column(task)}_low"] == interval([read.scored])[1]
    assert columns[task_column("read")] == columns["quality_read"] == 1.0
    assert columns["quality"] == pytest.approx((1.25 / 3 + 1) / 2)
    assert columns["quality_low"] == interval([read.scored, (1.0,)])[1]
    assert (columns["quality_kind"], columns["quality_items"]) == ("answers", 4)
    assert (columns["quality_missing"], columns["quality_unparsed"]) == (1, 0)


def test_an_agreement_is_called_one():
    columns = quality_columns({"read": TaskScores("chrf", (0.5,))}, "agreement")
    assert (columns["quality"], columns["quality_kind"]) == (0.5, "agreement")


def test_resolutions_by_task_are_a_column_where_they_were_used(make_run):
    table = {"定位": 512, "read": "native"}
    rows = frame(
        [
            make_run(resolution="by_task", task_resolutions=table),
            make_run(resolution=512, task_resolutions=table),
        ]
    )
    assert json.loads(rows["task_resolutions"][0]) == table
    assert pd.isna(rows["task_resolutions"][1])


def test_one_row_per_run_in_order(make_run):
    table = frame([make_run(batch_size=n) for n in (4, 1, 2)])
    assert table["batch_size"].tolist() == [4, 1, 2]
    assert table["key"].is_unique


def test_every_setting_is_a_column(make_run):
    hidden = {"trust_remote_code"}  # no lever
    assert set(SETTINGS) == set(FIELDS) - hidden
    assert set(SETTINGS) <= set(frame([make_run()]).columns)


def test_normalised_scores_have_columns_beside_the_strict_ones(make_run, make_repeat):
    read = TaskScores("exact_match", (0.0, 1.0), normalised=(1.0, 1.0))
    locate = TaskScores("iou", (0.0, None), 1, (0.5, None), fractions=2, pixels=1)
    scores = {task: found.to_dict() for task, found in {"read": read, "locate": locate}.items()}
    row = frame([make_run([make_repeat()], scores=scores)]).iloc[0]
    assert row["quality_normalised"] == pytest.approx((1.0 + 0.25) / 2)
    assert row["quality_normalised_low"] < 0.625 < row["quality_normalised_high"]
    assert (row["quality_normalised_read"], row["quality_normalised_locate"]) == (1.0, 0.25)
    assert (row["quality_fractions"], row["quality_pixels"]) == (2, 1)
    assert row["quality_read"] == 0.5


def test_an_older_file_has_no_normalised_scores(make_run, make_repeat):
    old = {"read": {"metric": "exact_match", "values": [1.0], "unparsed": 0}}
    row = frame([make_run([make_repeat()], scores=old)]).iloc[0]
    assert row["quality"] == 1.0
    assert pd.isna(row["quality_normalised"]) and pd.isna(row["quality_fractions"])
