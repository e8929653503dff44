"""What to run instead, on grids small enough to see through."""

from __future__ import annotations

import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.money.cost import price
from qvl_lab.analysis.money.recommend import (
    Recommendation,
    baseline,
    find_row,
    measured,
    peak_memory_bytes,
    recommend,
    saving,
)
from qvl_lab.analysis.quality.scoring import TaskScores
from qvl_lab.analysis.stats.estimates import Estimate
from qvl_lab.analysis.stats.intervals import compare
from qvl_lab.errors import ConfigError, LimitError, UnknownNameError

GIB = 2**30


@pytest.fixture
def setting(make_run, make_repeat):
    """A run by seconds per image, the settings that matter, its memory in GiB, and how many of 50
    answers are right.
    """

    def build(
        seconds=1.0,
        gib=8.0,
        ttft_s=0.5,
        spread=0.0,
        tokens=20,
        status="ok",
        right=None,
        **settings,
    ):
        walls = [10 * seconds * f for f in (1 - spread, 1, 1 + spread)]
        parts = {"ttft_s": [ttft_s] * 10, "visual_tokens": 10 * tokens}
        if right is not None:
            scores = TaskScores("exact_match", (1.0,) * right + (0.0,) * (50 - right))
            settings["scores"] = {"read": scores.to_dict()}
        repeats = [make_repeat(wall, 10, **parts) for wall in walls] if status == "ok" else []
        memory = {"reserved": None if gib is None else int(gib * GIB)}
        settings = {"precision": "fp32", "batch_size": 1} | settings
        return make_run(repeats, status, memory=memory, **settings)

    return build


@pytest.fixture
def grid(setting):
    """Batches and precisions, all measured; bf16 at batch 8 is the cheapest."""
    return frame(
        [
            setting(1.0),
            setting(0.5, gib=16, ttft_s=2.0, batch_size=8),
            setting(0.8, gib=4, precision="bf16"),
            setting(0.2, gib=12, ttft_s=1.0, batch_size=8, precision="bf16"),
            setting(batch_size=64, status="oom"),
        ]
    )


def chosen(row):
    return row["batch_size"], row["precision"]


# ---- today's setting ----


def test_baseline_is_serial_then_finest_then_most_exact(setting):
    table = frame(
        [
            setting(batch_size=2, tokens=99),
            setting(tokens=10, resolution=128),
            setting(tokens=40, precision="int8"),
            setting(tokens=40, precision="bf16"),
        ]
    )
    assert chosen(baseline(table)) == (1, "bf16")


def test_baseline_works_on_any_selection_of_rows(grid):
    assert chosen(baseline(grid.iloc[[3, 1]])) == (8, "fp32")


def test_find_row_fills_in_from_the_baseline(grid):
    assert chosen(find_row(grid, {"precision": "bf16"})) == (1, "bf16")
    assert chosen(find_row(grid, {"batch_size": "8"})) == (8, "fp32")


def test_find_row_lists_what_was_measured(grid):
    with pytest.raises(UnknownNameError, match=r"unknown field 'batchsize'.*'batch_size'"):
        find_row(grid, {"batchsize": 1})
    with pytest.raises(
        ConfigError, match="no measured setting has batch_size=5; measured: 1, 64, 8"
    ):
        find_row(grid, {"batch_size": 5})


@pytest.mark.parametrize(
    ("name", "values"),
    [("cache_implementation", [None, "static"]), ("memory_limit_gib", [None, 4]), ("seed", [0, 1])],
)
def test_find_row_knows_none_and_whole_numbers(setting, name, values):
    """In a column pandas turns None into NaN, and 4 beside it into 4.0."""
    table = frame([setting(**{name: value}) for value in values])
    for i, value in enumerate(values):
        assert find_row(table, {name: value})["key"] == table["key"][i]


# ---- the choice ----


def test_the_cheapest_setting_is_recommended(grid):
    found = recommend(grid)
    assert chosen(found.current) == (1, "fp32")
    assert chosen(found.best) == (8, "bf16")
    assert found.saving.value == pytest.approx(0.8)
    assert found.excluded == {}
    assert found.cheaper is None


def test_money_decides_as_seconds_do(grid):
    assert chosen(recommend(price(grid, gpu="A10G")).best) == (8, "bf16")


def test_today_can_be_named(grid):
    found = recommend(grid, current={"batch_size": 8, "precision": "fp32"})
    assert found.saving.value == pytest.approx(1 - 0.2 / 0.5)


@pytest.mark.parametrize(
    ("limits", "best", "excluded"),
    [
        ({"max_vram_gib": 12}, (8, "bf16"), {"max_vram_gib": 1}),
        ({"max_vram_gib": 11.9}, (1, "bf16"), {"max_vram_gib": 2}),
        ({"max_ttft_s": 0.9}, (1, "bf16"), {"max_ttft_s": 2}),
        ({"max_ttft_s": 1.5, "max_vram_gib": 8}, (1, "bf16"), {"max_vram_gib": 2, "max_ttft_s": 1}),
    ],
)
def test_limits_rule_settings_out(grid, limits, best, excluded):
    found = recommend(grid, **limits)
    assert chosen(found.best) == best
    assert found.excluded == excluded


def test_the_limit_on_the_first_token_is_kept_by_95_percent_of_the_items(make_run, make_repeat):
    late = [0.1] * 18 + [3.0] * 2  # the median of both is the same
    runs = [
        make_run([make_repeat(10.0, 20, ttft_s=[0.1] * 20)], batch_size=1),
        make_run([make_repeat(2.0, 20, ttft_s=late)], batch_size=8),
    ]
    found = recommend(frame(runs), max_ttft_s=1.0)
    assert found.best["batch_size"] == 1
    assert found.excluded == {"max_ttft_s": 1}
    assert recommend(frame(runs), max_ttft_s=3.0).best["batch_size"] == 8


def test_a_first_token_by_an_older_clock_passes_no_limit_and_that_is_said(make_run, make_repeat):
    older = make_run([make_repeat(2.0, 20, ttft_s=[0.1] * 20, queue_s=[], e2e_s=[])], batch_size=8)
    with pytest.raises(LimitError, match="not known of 1: fewer than 20 answers, or measured by"):
        recommend(frame([older]), max_ttft_s=1.0)
    table = frame([older, make_run([make_repeat(10.0, 20)], batch_size=1)])
    found = recommend(table, max_ttft_s=1.0)
    assert (found.best["batch_size"], found.excluded) == (1, {"max_ttft_s": 1})


def test_a_limit_that_nothing_passes_says_so(grid):
    with pytest.raises(ConfigError, match=r"of 4, max_vram_gib rules out 4; loosen max_vram_gib"):
        recommend(grid, max_vram_gib=1)


def test_unknown_memory_does_not_pass_a_limit(setting):
    table = frame([setting(1.0), setting(0.1, gib=None, batch_size=8)])
    assert chosen(recommend(table).best) == (8, "fp32")
    found = recommend(table, max_vram_gib=100)
    assert (chosen(found.best), found.excluded) == ((1, "fp32"), {"max_vram_gib": 1})


def test_peak_memory_is_reserved_or_else_the_process():
    columns = {"peak_reserved_bytes": [5, None, None], "peak_process_bytes": [9, 7, None]}
    found = peak_memory_bytes(pd.DataFrame(columns))
    assert found.tolist()[:2] == [5, 7]
    assert pd.isna(found[2])


def test_resolution_is_held_and_the_cheaper_setting_mentioned(setting):
    table = frame(
        [
            setting(1.0, resolution=1024, tokens=80),
            setting(0.6, resolution=1024, tokens=80, batch_size=8),
            setting(0.1, resolution=256, tokens=20, batch_size=8),
        ]
    )
    held = recommend(table)
    assert (held.best["resolution"], held.held) == ("1024", ("resolution",))
    assert held.cheaper["resolution"] == "256"
    free = recommend(table, hold=())
    assert (free.best["resolution"], free.cheaper) == ("256", None)


def test_other_fields_can_be_held(grid):
    found = recommend(grid, hold=("precision",))
    assert chosen(found.best) == (8, "fp32")
    assert chosen(found.cheaper) == (8, "bf16")
    with pytest.raises(UnknownNameError, match=r"unknown field 'resolutoin'.*'resolution'"):
        recommend(grid, hold=("resolutoin",))


# ---- quality ----


@pytest.fixture
def scored(setting):
    """Today's 50 of 50 are right; what is cheaper loses 1, 2 and 25 of them."""
    fine, coarse = {"resolution": 512, "tokens": 80}, {"resolution": 256, "tokens": 20}
    return frame(
        [
            setting(1.0, right=50, **fine),
            setting(0.5, right=49, batch_size=8, **fine),
            setting(0.3, right=48, batch_size=8, precision="bf16", **fine),
            setting(0.1, right=25, batch_size=8, **coarse),
        ]
    )


def test_by_default_quality_may_fall_by_two_points_and_nothing_is_held(scored):
    found = recommend(scored)
    assert chosen(found.best) == (8, "fp32")
    assert found.best["resolution"] == "512"
    assert found.min_quality == pytest.approx(0.98)
    assert found.excluded == {"min_quality": 2}
    assert found.held == ()
    ones = [1.0] * 50
    assert found.quality == compare([ones], [[*ones[:49], 0.0]])
    assert found.quality.difference == pytest.approx(-0.02)


@pytest.mark.parametrize(
    ("limits", "seconds", "excluded"),
    [
        ({"max_quality_loss": 0.0}, 1.0, 3),
        ({"max_quality_loss": 0.04}, 0.3, 1),
        ({"max_quality_loss": 0.5}, 0.1, 0),
        ({"min_quality": 0.99}, 1.0, 3),
        ({"min_quality": 0.98}, 0.5, 2),
        ({"min_quality": 0.96, "max_quality_loss": 0.0}, 0.3, 1),
        ({"min_quality": 0.0}, 0.1, 0),
    ],
)
def test_the_limit_on_quality_is_todays_less_a_loss_or_as_given(scored, limits, seconds, excluded):
    found = recommend(scored, **limits)
    assert found.best["s_per_100_images"] == pytest.approx(100 * seconds)
    assert found.excluded == {"min_quality": excluded}
    wanted = limits.get("min_quality", 1 - limits.get("max_quality_loss", 0))
    assert found.min_quality == pytest.approx(wanted)


def test_the_limit_is_less_than_the_quality_of_the_setting_that_was_named(scored):
    found = recommend(scored, current={"precision": "bf16"})
    assert found.min_quality == pytest.approx(0.94)
    assert chosen(found.best) == (8, "bf16")


def test_the_cheapest_of_all_ignores_quality_but_no_other_limit(setting, scored):
    assert recommend(scored).cheaper["resolution"] == "256"
    assert recommend(scored, min_quality=0.5).cheaper is None
    large = frame(
        [
            setting(1.0, right=50),
            setting(0.5, right=10, batch_size=8),
            setting(0.1, right=10, batch_size=32, gib=60),
        ]
    )
    assert recommend(large, max_vram_gib=20).cheaper["batch_size"] == 8


def test_resolution_is_held_where_todays_quality_is_not_known(setting):
    """Though that of others is: there is nothing to compare it with."""
    rows = [
        setting(1.0, resolution=512, tokens=80),
        setting(0.5, resolution=512, tokens=80, batch_size=8, right=50),
        setting(0.1, resolution=256, batch_size=8, right=25),
    ]
    found = recommend(frame(rows))
    assert (found.held, found.min_quality, found.quality) == (("resolution",), None, None)
    assert found.best["resolution"] == "512"
    assert found.excluded == {}
    assert recommend(frame(rows), min_quality=0.4).best["resolution"] == "256"


def test_unknown_quality_does_not_pass_a_limit(setting):
    table = frame([setting(1.0, right=50), setting(0.1, batch_size=8)])
    found = recommend(table)
    assert (chosen(found.best), found.excluded) == ((1, "fp32"), {"min_quality": 1})
    assert chosen(found.cheaper) == (8, "fp32")


def test_a_quality_out_of_reach_is_a_limit_error_that_names_the_best(setting):
    table = frame([setting(1.0, right=45), setting(0.1, right=40, batch_size=8)])
    words = r"of 2, min_quality rules out 2 \(best quality measured: 0.900\); loosen min_quality,"
    with pytest.raises(LimitError, match=words):
        recommend(table, min_quality=0.95)
    with pytest.raises(LimitError, match=r"max_vram_gib rules out 2.*loosen min_quality or max"):
        recommend(table, min_quality=0.5, max_vram_gib=1)


def test_a_limit_that_only_other_values_of_a_held_field_pass_says_so(setting):
    rows = [setting(1.0, right=25, tokens=9, batch_size=2), setting(2.0, right=50, tokens=9)]
    with pytest.raises(LimitError, match=r"no measured setting with today's batch_size passes"):
        recommend(frame(rows), current={"batch_size": 2}, hold=("batch_size",), min_quality=0.9)


@pytest.mark.parametrize(
    ("weights", "words"), [(True, "the weights are random"), (False, "an 'answer' column")]
)
def test_a_limit_on_quality_that_was_not_measured_is_an_error(setting, weights, words):
    table = frame([setting(1.0, random_weights=weights)])
    with pytest.raises(ConfigError, match=f"no setting has a quality: .*{words}") as caught:
        recommend(table, min_quality=0.5)
    assert not isinstance(caught.value, LimitError)


@pytest.mark.parametrize("limit", [-0.1, 1.1, 95, float("nan")])
def test_a_limit_on_quality_is_a_number_from_0_to_1(scored, limit):
    with pytest.raises(ConfigError, match="min_quality must be a number from 0 to 1"):
        recommend(scored, min_quality=limit)


def test_nothing_measured_counts_the_statuses(setting):
    table = frame([setting(status="oom"), setting(status="error", batch_size=2)])
    with pytest.raises(ConfigError, match=r"no setting was measured to the end .*'oom': 1"):
        recommend(table)


def test_only_finished_rows_with_answers_count(grid):
    assert measured(grid)["status"].tolist() == ["ok"] * 4


# ---- the saving ----


def seconds(key, value, low=None, high=None):
    names = ("", "_low", "_high")
    numbers = (value, low, high)
    columns = {f"s_per_100_images{n}": v for n, v in zip(names, numbers, strict=True)}
    return pd.Series({"key": key} | columns)


def test_the_saving_takes_the_worst_ends():
    found = saving(seconds("a", 100, 80, 125), seconds("b", 40, 20, 60))
    assert found == pytest.approx((0.6, 1 - 60 / 80, 1 - 20 / 125))


def test_the_saving_of_a_single_repeat_has_no_interval():
    assert saving(seconds("a", 100, 80, 125), seconds("b", 40)) == Estimate(0.6, None, None)


def test_staying_saves_exactly_nothing():
    assert saving(seconds("a", 100, 80, 125), seconds("a", 100, 80, 125)) == (0, 0, 0)


@pytest.mark.parametrize(("low", "noise"), [(None, True), (-0.1, True), (0.0, True), (0.01, False)])
def test_within_noise_is_an_interval_that_reaches_zero(low, noise):
    row = pd.Series(dtype=object)
    assert (
        Recommendation(current=row, best=row, saving=Estimate(0.5, low, 0.6)).within_noise == noise
    )


def test_repeats_that_scatter_make_a_small_saving_noise(setting):
    def table(spread):
        return frame([setting(1.0, spread=spread), setting(0.9, spread=spread, batch_size=2)])

    assert recommend(table(0.2)).within_noise
    assert not recommend(table(0.001)).within_noise


# ---- lever by lever ----


def changes(found):
    return [(step.changed, step.before_s, step.after_s) for step in found.steps]


def test_levers_are_pulled_one_after_another(grid):
    found = recommend(grid)
    assert changes(found) == [
        ({"batch_size": 8}, 100.0, 50.0),
        ({"precision": "bf16"}, 50.0, pytest.approx(20.0)),
    ]
    assert [chosen(step.row) for step in found.steps] == [(8, "fp32"), (8, "bf16")]


def test_an_unmeasured_setting_between_joins_the_next_lever(grid):
    table = grid[~((grid["batch_size"] == 8) & (grid["precision"] == "fp32"))]
    changed = {"batch_size": 8, "precision": "bf16"}
    assert changes(recommend(table)) == [(changed, 100.0, pytest.approx(20.0))]


def test_a_setting_between_that_ran_out_of_memory_is_no_step(setting):
    table = frame(
        [
            setting(1.0),
            setting(batch_size=8, status="oom"),
            setting(0.2, batch_size=8, precision="bf16"),
        ]
    )
    assert [step.changed for step in recommend(table).steps] == [
        {"batch_size": 8, "precision": "bf16"}
    ]


def test_other_settings_are_pulled_after_the_levers(setting):
    table = frame(
        [
            setting(1.0, max_new_tokens=64),
            setting(0.7, max_new_tokens=64, cache_implementation="static"),
            setting(0.3, max_new_tokens=16, cache_implementation="static"),
        ]
    )
    assert changes(recommend(table)) == [
        ({"cache_implementation": "static"}, 100.0, pytest.approx(70.0)),
        ({"max_new_tokens": 16}, pytest.approx(70.0), pytest.approx(30.0)),
    ]


def test_staying_has_no_steps(setting):
    found = recommend(frame([setting(1.0), setting(2.0, batch_size=2)]))
    assert found.steps == []
    assert found.saving == (0, 0, 0)
    assert found.within_noise
