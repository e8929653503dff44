"""A month by use and with machines kept on, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.money.month import (
    HOURS_A_MONTH,
    Setting,
    month,
    pays_from,
    setting_of,
)
from qvl_lab.errors import ConfigError

#: An image a second at 36 an hour, a cent a second.
CENT = Setting(s_per_image=1.0, per_hour=36.0)


def test_by_use_only_seconds_are_paid():
    assert month(CENT, 100_000, starts=0).by_use == pytest.approx(1000.0)
    assert month(CENT, 100_000, starts=0, utilisation=0.5).by_use == pytest.approx(2000.0)


def test_cold_starts_are_paid_by_use():
    slow = Setting(s_per_image=1.0, per_hour=36.0, start_s=100.0)
    assert month(slow, 100_000, starts=30).by_use == pytest.approx(1000.0 + 30.0)


def test_a_hundred_thousand_images_keep_a_machine_busy_for_a_hundredth_of_a_month():
    """The sum that misled: 110 by use, 18,400 for the H200 that is kept on, a GPU and a spare."""
    h200 = Setting(s_per_image=0.155, per_hour=25.2)
    taken = month(h200, 100_000, starts=0)
    assert taken.by_use == pytest.approx(108.5)
    assert (taken.gpus, taken.spare) == (2, 1)
    assert taken.kept_on == pytest.approx(2 * 25.2 * 730)
    assert taken.busy == pytest.approx(100_000 * 0.155 / 3600 / 730 / 2)


def test_as_many_gpus_are_kept_on_as_the_work_needs_and_a_spare():
    a_month = HOURS_A_MONTH * 3600
    assert month(CENT, a_month).gpus == 2
    assert month(CENT, a_month + 3600).gpus == 3
    assert month(CENT, a_month, spare=0).busy == pytest.approx(1.0)


def test_the_busiest_hour_decides():
    taken = month(CENT, 100_000, peak_hour_images=9000)
    assert (taken.gpus, taken.spare) == (4, 1)  # two and a half
    assert month(CENT, 100_000, peak_hour_images=1).gpus == 2


def test_machines_are_rented_as_a_whole():
    eight = Setting(s_per_image=1.0, per_hour=36.0, gpus_per_machine=8)
    taken = month(eight, 100_000)
    assert (taken.gpus, taken.spare) == (8, 7)
    assert taken.kept_on == pytest.approx(8 * 36 * HOURS_A_MONTH)


@pytest.mark.parametrize("images", [0, -5, float("nan"), float("inf")])
def test_traffic_is_a_number_above_0(images):
    with pytest.raises(ConfigError, match="images must be a number above 0"):
        month(CENT, images)


def test_an_engine_pays_from_so_many_images_a_start():
    """17.4 s more to start and 0.137 s less an image, as on the H200: from about 120 images."""
    stock = Setting(s_per_image=0.185, per_hour=1.0, start_s=0.6)
    fast = Setting(s_per_image=0.048, per_hour=1.0, start_s=17.4)
    assert pays_from(stock, fast) == pytest.approx(122.6, abs=0.1)
    assert pays_from(fast, stock) is None
    assert pays_from(stock, Setting(s_per_image=0.1, per_hour=1.0)) == 0.0
    slower = Setting(s_per_image=0.2, per_hour=1.0, start_s=20.0)
    assert pays_from(stock, slower) is None


def test_an_image_takes_as_long_as_all_of_its_questions(make_run, make_repeat):
    workload = {"name": "two", "fingerprint": "f" * 16, "items": 20, "images": 10}
    row = frame([make_run([make_repeat(10.0, 20)], workload=workload)]).iloc[0]
    assert setting_of(row, 36.0).s_per_image == pytest.approx(1.0)
    assert setting_of(row.drop("questions_per_image"), 36.0).s_per_image == pytest.approx(0.5)
    assert setting_of(row, 36.0).start_s == 0.0  # not measured


def test_a_start_is_loading_and_warming_up_without_the_work(make_run, make_repeat):
    cold = {"load_s": 0.5, "warmup_s": 22.0}
    passes = [make_repeat(4.0, 10, batch_s=[4.0])]
    (old,) = frame([make_run(passes, cold=cold, plan={"warmup": 1})])["start_s"]
    assert old == pytest.approx(18.5)
    one_of_ten = [make_repeat(4.0, 10, batch_s=[0.4] * 10)]
    (serial,) = frame([make_run(one_of_ten, cold=cold, plan={"warmup": 1})])["start_s"]
    assert serial == pytest.approx(22.1)


def test_of_whole_warm_up_passes_those_that_surely_ran_are_no_start(make_run, make_repeat):
    plan = {"warmup": 1, "min_pass_s": 2.0}
    short = make_run(
        [make_repeat(3.0, 10, calls=3)], cold={"load_s": 0.5, "warmup_s": 5.0}, plan=plan
    )
    long = make_run([make_repeat(3.0, 10)], cold={"load_s": 0.5, "warmup_s": 22.0}, plan=plan)
    assert frame([short, long])["start_s"].tolist() == pytest.approx([0.5 + 5 - 2, 0.5 + 22 - 3])


def test_what_was_not_measured_is_no_start(make_run, make_repeat):
    table = frame([make_run([make_repeat()]), make_run(status="oom", cold={"load_s": 1.0})])
    assert pd.isna(table["start_s"]).all()
