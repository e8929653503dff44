"""What to run instead, on grids small enough to see through."""

from __future__ import annotations

import pandas as pd
import pytest

from qvl_lab.analysis.cost import price
from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.recommend import (
    Recommendation,
    baseline,
    find_row,
    measured,
    peak_memory_bytes,
    recommend,
    saving,
)
from qvl_lab.analysis.stats import Estimate
from qvl_lab.errors import ConfigError, UnknownNameError

GIB = 2**30


@pytest.fixture
def setting(make_run, make_repeat):
    """A run by seconds per image, the settings that matter, and its memory in GiB."""

    def build(seconds=1.0, gib=8.0, ttft_s=0.5, spread=0.0, tokens=20, status="ok", **settings):
        walls = [10 * seconds * f for f in (1 - spread, 1, 1 + spread)]
        parts = {"ttft_s": [ttft_s], "visual_tokens": 10 * tokens}
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
