"""Costs that agree with the saving: paired rounds, and those of a confirmation."""

import pandas as pd
import pytest

from qvl_lab.analysis.money.confirmed import paired_with, saving
from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.runs.store import Runs

PER_SECOND = 0.01  # CNY


def row(key, swept, confirmed=None):
    """A priced row as a frame has it, from seconds per 100 images by round."""
    middle = sorted(swept.values())[len(swept) // 2]
    found = {"key": key, "round_s": swept, "confirmed_s": confirmed}
    for end, seconds in (("", middle), ("_low", 0.9 * middle), ("_high", 1.2 * middle)):
        found[f"s_per_100_images{end}"] = seconds
        found[f"cost_cny_per_100_images{end}"] = PER_SECOND * seconds
    for end, seconds in (("", middle), ("_low", 1.2 * middle), ("_high", 0.9 * middle)):
        found[f"images_per_s{end}"] = 100 / seconds
    return found


def rounds(*seconds):
    return dict(enumerate(seconds))


def by_key(frame):
    return frame.set_index("key")


def test_costs_of_rounds_in_which_the_machine_was_slow_differ_by_what_is_saved():
    # Each round the second takes half of the time, while the medians differ by three quarters.
    frame = pd.DataFrame(
        [row("today", rounds(10.0, 20.0, 40.0)), row("best", rounds(5.0, 10.0, 20.0))]
    )
    frame.loc[1, "s_per_100_images"] = 5.0  # as a median of other rounds would be
    found = by_key(paired_with(frame, frame.iloc[0]))
    assert found.loc["today", "s_per_100_images"] == pytest.approx(20.0)
    assert found.loc["best", "s_per_100_images"] == pytest.approx(10.0)


def test_a_confirmation_gives_the_costs_of_the_page():
    today = row("today", rounds(10.0, 10.0, 10.0), rounds(12.0, 13.0, 12.0))
    best = row("best", rounds(4.0, 4.0, 4.0), rounds(6.0, 6.5, 6.0))
    other = row("other", rounds(8.0, 8.0, 8.0))
    frame = pd.DataFrame([today, best, other])
    found = by_key(paired_with(frame, frame.iloc[0]))
    assert found["s_per_100_images"].tolist() == pytest.approx([12.0, 6.0, 9.6])
    assert found["images_per_s"].tolist() == pytest.approx([100 / 12, 100 / 6, 100 / 9.6])
    costs = found["cost_cny_per_100_images"]
    assert 1 - costs["best"] / costs["today"] == pytest.approx(
        saving(frame.iloc[0], frame.iloc[1]).value
    )
    for name in ("s_per_100_images", "cost_cny_per_100_images", "images_per_s"):
        assert (found[f"{name}_low"] <= found[name]).all()
        assert (found[name] <= found[f"{name}_high"]).all()


def test_rows_without_rounds_stay_as_they_are():
    frame = pd.DataFrame(
        [
            row("today", rounds(10.0, 10.0, 11.0)),
            row("best", {0: 5.0}),
        ]
    )
    found = paired_with(frame, frame.iloc[0])
    pd.testing.assert_series_equal(found.iloc[1], frame.iloc[1])
    single = frame[1:]
    pd.testing.assert_frame_equal(paired_with(single, single.iloc[0]), single)


def test_the_committed_confirmation_recommends_costs_that_differ_by_its_saving(run_files):
    frame = Runs.load(run_files["h100-w1/w1.jsonl"]).frame()
    today = {"engine": "stock", "batch_size": 32}
    advice = recommend(frame, current=today, hold=())
    assert advice.confirmed
    before, after = (row["s_per_100_images"] for row in (advice.current, advice.best))
    assert 1 - after / before == pytest.approx(advice.saving.value, abs=1e-12)
