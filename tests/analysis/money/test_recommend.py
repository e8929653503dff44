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
    answers, or of ``of``, are right.
    """

    def build(
        seconds=1.0,
        gib=8.0,
        ttft_s=0.5,
        spread=0.0,
        tokens=20,
        status="ok",
        right=None,
        of=50,
        missing=0,
        failed=0,
        **settings,
    ):
        walls = [10 * seconds * f for f in (1 - spread, 1, 1 + spread)]
        parts = {"ttft_s": [ttft_s] * 10, "visual_tokens": 10 * tokens, "failed": failed}
        if right is not None:
            values = (1.0,) * right + (None,) * missing + (0.0,) * (of - right - missing)
            scores = TaskScores("exact_match", values)
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
    found = recommend(grid, hold=())
    assert chosen(found.current) == (1, "fp32")
    assert chosen(found.best) == (8, "bf16")
    assert found.saving.value == pytest.approx(0.8)
    assert found.excluded == {}
    assert found.cheaper is None


def test_money_decides_as_seconds_do(grid):
    assert chosen(recommend(price(grid, gpu="A10G"), hold=()).best) == (8, "bf16")


def test_today_can_be_named(grid):
    found = recommend(grid, current={"batch_size": 8, "precision": "fp32"}, hold=())
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
    found = recommend(grid, **limits, hold=())
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
    assert (held.best["resolution"], held.held) == ("1024", ("resolution", "precision"))
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
    """Today's 1,000 of 1,000 are right; what is cheaper loses 5, 20 and 500 of them."""
    fine = {"of": 1000, "resolution": 512, "tokens": 80}
    return frame(
        [
            setting(1.0, right=1000, **fine),
            setting(0.5, right=995, batch_size=8, **fine),
            setting(0.3, right=980, batch_size=8, precision="bf16", **fine),
            setting(0.1, right=500, of=1000, batch_size=8, resolution=256),
        ]
    )


def test_by_default_quality_may_fall_by_two_points_and_nothing_is_held(scored):
    found = recommend(scored)
    assert chosen(found.best) == (8, "fp32")
    assert found.best["resolution"] == "512"
    assert found.min_quality == pytest.approx(0.98)
    assert found.excluded == {"max_quality_loss": 2}
    assert found.held == ()
    ones = [1.0] * 1000
    assert found.quality == compare([ones], [[*ones[:995], *[0.0] * 5]])
    assert found.quality.difference == pytest.approx(-0.005)
    assert (found.quality_kept, found.more_answers) == ("shown", 0)


@pytest.mark.parametrize(
    ("limits", "seconds", "excluded"),
    [
        ({"max_quality_loss": 0.0}, 1.0, 3),
        ({"max_quality_loss": 0.04}, 0.3, 1),
        ({"max_quality_loss": 0.6}, 0.1, 0),
        ({"min_quality": 0.999}, 1.0, 3),
        ({"min_quality": 0.99}, 0.5, 2),
        ({"min_quality": 0.96, "max_quality_loss": 0.0}, 0.3, 1),
        ({"min_quality": 0.0}, 0.1, 0),
    ],
)
def test_the_limit_on_quality_is_todays_less_a_loss_or_as_given(scored, limits, seconds, excluded):
    found = recommend(scored, **limits)
    assert found.best["s_per_100_images"] == pytest.approx(100 * seconds)
    assert found.excluded == {next(iter(limits)): excluded}
    wanted = limits.get("min_quality", 1 - limits.get("max_quality_loss", 0))
    assert found.min_quality == pytest.approx(wanted)


def test_the_limit_is_less_than_the_quality_of_the_setting_that_was_named(scored):
    found = recommend(scored, current={"precision": "bf16"})
    assert found.min_quality == pytest.approx(0.96)
    assert chosen(found.best) == (8, "bf16")


def test_the_cheapest_of_all_ignores_quality_but_no_other_limit(setting, scored):
    found = recommend(scored)
    assert (found.cheaper["resolution"], found.cheaper_kept) == ("256", "lost")
    assert found.cheaper_more_answers is None
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
        setting(0.5, resolution=512, tokens=80, batch_size=8),
        setting(0.4, resolution=512, tokens=80, batch_size=8, precision="bf16", right=50),
        setting(0.1, resolution=256, batch_size=8, right=25),
    ]
    found = recommend(frame(rows))
    assert found.held == ("resolution", "precision")
    assert (found.min_quality, found.quality, found.quality_kept) == (None, None, None)
    assert found.best["resolution"] == "512"
    assert found.excluded == {}
    assert recommend(frame(rows), min_quality=0.4).best["resolution"] == "256"


def test_unknown_quality_does_not_pass_a_limit(setting):
    table = frame([setting(1.0, right=50), setting(0.1, batch_size=8, precision="bf16")])
    found = recommend(table)
    assert (chosen(found.best), found.excluded) == ((1, "fp32"), {"max_quality_loss": 1})
    assert chosen(found.cheaper) == (8, "bf16")


def test_a_batch_that_has_todays_scores_is_not_said_to_have_shown_its_quality(setting):
    """Only one of the two was asked; the other is taken to answer alike."""
    alike = setting(0.1, batch_size=8, plan={"quality": False})
    found = recommend(frame([setting(1.0, right=50), alike]))
    assert chosen(found.best) == (8, "fp32")
    assert (found.quality_kept, found.more_answers) == (None, None)


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


@pytest.mark.parametrize(
    "unknown",
    [{}, {"right": 2, "of": 2}, {"right": 0}, {"right": 0, "of": 1000}],
    ids=["not scored", "two answers", "nothing right", "nothing right of many"],
)
def test_where_quality_is_not_there_only_what_leaves_the_answers_alone_is_recommended(
    setting, unknown
):
    """Not fewer pixels, not fewer bits, not another way of sampling; a larger batch."""
    rows = [
        setting(1.0, resolution=512, tokens=80, **unknown),
        setting(0.9, resolution=512, tokens=80, batch_size=8, **unknown),
        setting(0.5, resolution=512, tokens=80, batch_size=8, precision="fp8", **unknown),
        setting(0.4, resolution=512, tokens=80, batch_size=8, temperature=0.5, **unknown),
        setting(0.1, resolution=256, batch_size=8, **unknown),
    ]
    found = recommend(frame(rows))
    assert (found.best["resolution"], *chosen(found.best)) == ("512", 8, "fp32")
    assert pd.isna(found.best["temperature"]) or found.best["temperature"] != 0.5
    assert {"resolution", "precision"} <= set(found.held)
    assert found.excluded == {}
    assert (found.min_quality, found.quality_kept, found.more_answers) == (None, None, None)
    reason = {0: "not scored", 2: "few answers"}.get(unknown.get("of", 50) if unknown else 0)
    assert found.quality_unusable == (reason or "nothing right")


def test_random_weights_recommend_no_other_precision(setting):
    """Their speed in fp8 is real, what fp8 does to answers is not known."""
    rows = [
        setting(seconds, precision=precision, random_weights=True)
        for precision, seconds in (("bf16", 1.0), ("fp8", 0.5), ("int8", 0.4))
    ]
    found = recommend(frame(rows))
    assert (found.best["precision"], found.saving.value) == ("bf16", 0.0)
    assert (found.cheaper["precision"], found.quality_unusable) == ("int8", "random weights")


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"right": 2, "of": 2}, "quality rests on 2 scored answers"),
        ({"right": 0}, "no answer of any setting is right"),
    ],
)
def test_a_limit_on_quality_that_is_not_there_is_refused(setting, known, words):
    with pytest.raises(ConfigError, match=words):
        recommend(
            frame([setting(1.0, **known), setting(0.5, batch_size=2, **known)]), min_quality=0
        )


@pytest.mark.parametrize("name", ["max_quality_loss", "max_failed_share", "min_quality"])
def test_limits_that_are_shares_are_refused_outside_0_to_1(scored, name):
    for value in (-0.02, 2, float("nan")):
        with pytest.raises(ConfigError, match=f"{name} must be a number from 0 to 1"):
            recommend(scored, **{name: value})


def test_thirty_six_questions_do_not_show_that_quality_is_kept(setting):
    """One of 36 answers fewer may be chance, or a loss of ten points: it is not recommended."""
    known = {"of": 36, "resolution": 512, "tokens": 80}
    rows = [
        setting(1.0, right=36, **known),
        setting(0.5, right=35, precision="bf16", **known),
        setting(0.1, right=20, of=36, resolution=256),
    ]
    found = recommend(frame(rows))
    assert chosen(found.best) == (1, "fp32")
    assert found.excluded == {"max_quality_loss": 2}
    without = recommend(frame(rows[:2]))
    assert chosen(without.best) == (1, "fp32")
    assert (without.cheaper_kept, without.cheaper_more_answers) == ("not shown", None)
    wide = recommend(frame(rows[:2]), max_quality_loss=0.2)
    assert (chosen(wide.best), wide.quality_kept) == ((1, "bf16"), "shown")


def test_thirty_six_equal_answers_are_recommended_and_said_not_to_show_it(setting):
    """No answer changed, which allows for a loss of 8 points; 150 pairs would show 2."""
    rows = [setting(1.0, right=36, of=36), setting(0.5, right=36, of=36, batch_size=8)]
    found = recommend(frame(rows))
    assert chosen(found.best) == (8, "fp32")
    assert found.quality_kept == "not shown"
    assert 90 <= found.more_answers <= 130
    assert "quality not shown to be kept" in repr(found)
    assert found.quality.low == pytest.approx(-0.08, abs=0.015)
    enough = [setting(1.0, right=160, of=160), setting(0.5, right=160, of=160, batch_size=8)]
    assert recommend(frame(enough)).quality_kept == "shown"


def test_a_setting_that_is_cheaper_and_surely_better_is_recommended(setting):
    rows = [setting(1.0, right=20), setting(0.5, right=50, precision="bf16")]
    found = recommend(frame(rows))
    assert (chosen(found.best), found.quality_kept) == ((1, "bf16"), "shown")


# ---- failed items ----


def test_a_setting_that_fails_on_items_does_not_win_by_the_answers_that_are_left(setting):
    """Every second item fails, the rest are right: quality 0.50, not 1.00."""
    table = frame(
        [
            setting(1.0, right=83, of=100),
            setting(0.5, right=50, missing=50, of=100, batch_size=8),
        ]
    )
    assert table["quality"].tolist() == [0.83, 0.5]
    assert table["quality_missing"].tolist() == [0, 50]
    found = recommend(table)
    assert chosen(found.best) == (1, "fp32")
    assert found.excluded == {"max_failed_share": 1, "max_quality_loss": 1}


@pytest.mark.parametrize(
    ("limit", "best", "excluded"),
    [(None, 1, {"max_failed_share": 1}), (0.5, 8, {"max_failed_share": 0})],
)
def test_the_share_of_failed_items_is_limited_also_where_nothing_is_scored(
    setting, limit, best, excluded
):
    table = frame([setting(1.0), setting(0.5, failed=5, batch_size=8)])
    assert table["failed_share"].tolist() == [0, pytest.approx(1 / 3)]
    found = recommend(table, max_failed_share=limit)
    assert (found.best["batch_size"], found.excluded) == (best, excluded)


def test_as_many_failed_items_as_today_are_no_reason_to_stay(setting):
    table = frame([setting(1.0, failed=5), setting(0.5, failed=5, batch_size=8)])
    assert recommend(table).best["batch_size"] == 8
    with pytest.raises(LimitError, match="max_failed_share rules out 2"):
        recommend(table, max_failed_share=0.1)


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
    found = recommend(grid, hold=())
    assert changes(found) == [
        ({"batch_size": 8}, 100.0, 50.0),
        ({"precision": "bf16"}, 50.0, pytest.approx(20.0)),
    ]
    assert [chosen(step.row) for step in found.steps] == [(8, "fp32"), (8, "bf16")]


def test_an_unmeasured_setting_between_joins_the_next_lever(grid):
    table = grid[~((grid["batch_size"] == 8) & (grid["precision"] == "fp32"))]
    changed = {"batch_size": 8, "precision": "bf16"}
    assert changes(recommend(table, hold=())) == [(changed, 100.0, pytest.approx(20.0))]


def test_a_setting_between_that_ran_out_of_memory_is_no_step(setting):
    table = frame(
        [
            setting(1.0),
            setting(batch_size=8, status="oom"),
            setting(0.2, batch_size=8, precision="bf16"),
        ]
    )
    assert [step.changed for step in recommend(table, hold=()).steps] == [
        {"batch_size": 8, "precision": "bf16"}
    ]


def test_other_settings_are_pulled_after_the_levers(setting):
    table = frame(
        [
            setting(1.0, memory_limit_gib=64),
            setting(0.7, memory_limit_gib=64, cache_implementation="static"),
            setting(0.3, memory_limit_gib=16, cache_implementation="static"),
        ]
    )
    assert changes(recommend(table)) == [
        ({"cache_implementation": "static"}, 100.0, pytest.approx(70.0)),
        ({"memory_limit_gib": 16}, pytest.approx(70.0), pytest.approx(30.0)),
    ]


def test_staying_has_no_steps(setting):
    found = recommend(frame([setting(1.0), setting(2.0, batch_size=2)]))
    assert found.steps == []
    assert found.saving == (0, 0, 0)
    assert found.within_noise
