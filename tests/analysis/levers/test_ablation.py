"""Ablations: which rows belong to one, and what each lever is worth, by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pandas as pd
import pytest

from qvl_lab.analysis.frame import SETTINGS
from qvl_lab.analysis.frame import frame as table
from qvl_lab.analysis.levers.ablation import OFF, ablation, ablation_rows
from qvl_lab.analysis.money.cost import price
from qvl_lab.config import Fast
from qvl_lab.errors import ConfigError
from qvl_lab.runs.records import Run

LEVERS = ["batch_size", *(f.name for f in fields(Fast) if f.default is True)]
ON = dict.fromkeys(LEVERS, True) | {"batch_size": 4}
NONE = {name: OFF[name] for name in LEVERS}
#: Seconds of ten images.
NOTHING_S, ALL_S, SERIAL_S, STOCK_S = 40.0, 2.0, 50.0, 12.0
ALONE_S = {name: 20.0 - i for i, name in enumerate(LEVERS)}
ALL_BUT_S = {name: 8.0 - i for i, name in enumerate(LEVERS)}


@pytest.fixture
def fast(on_cpu) -> Callable[..., Run]:
    """A run of the fast engine with these levers."""

    def make(wall_s: float, levers: dict[str, Any], **parts: Any) -> Run:
        switches = dict(levers)
        return on_cpu(switches.pop("batch_size"), wall_s, engine="fast", **switches, **parts)

    return make


@pytest.fixture
def runs(on_cpu, fast) -> list[Run]:
    """A whole ablation at batch 4."""
    return [
        on_cpu(1, SERIAL_S),
        on_cpu(4, STOCK_S),
        fast(NOTHING_S, NONE),
        *(fast(s, NONE | {name: ON[name]}) for name, s in ALONE_S.items()),
        *(fast(s, ON | {name: NONE[name]}) for name, s in ALL_BUT_S.items()),
        fast(ALL_S, ON),
    ]


def without(runs: list[Run], **levers: Any) -> list[Run]:
    """All but the run of the fast engine with these levers."""
    return [
        run
        for run in runs
        if run.config["engine"] == "stock" or any(run.config[n] != v for n, v in levers.items())
    ]


def seconds(runs: list[Run]) -> list[float]:
    """Seconds of the rows of the ablation, ten images each."""
    return [s / 10 for s in ablation_rows(table(runs))["s_per_100_images"]]


WHOLE = [SERIAL_S, STOCK_S, NOTHING_S, *ALONE_S.values(), *ALL_BUT_S.values(), ALL_S]


def test_levers_are_the_batch_size_and_every_switch_of_the_engine():
    switches = {f.name for f in fields(Fast) if isinstance(f.default, bool)}
    assert set(OFF) == {"batch_size", *switches}
    assert set(OFF) <= set(SETTINGS)  # else rows that differ in one would look the same
    assert {"packing", "overlap", "cuda_graphs"} <= set(LEVERS)


def test_rows_are_found_in_any_order_and_read_in_one(runs):
    shuffled = random.Random(1).sample(runs, len(runs))
    rows = ablation_rows(table(shuffled))
    assert seconds(shuffled) == pytest.approx(WHOLE)
    count = len(LEVERS)
    assert list(rows["variant"]) == [
        *("stock_serial", "stock", "nothing"),
        *(["alone"] * count + ["all_but"] * count + ["all"]),
    ]
    assert list(rows["lever"].dropna()) == LEVERS * 2


def test_each_lever_has_speed_and_time_alone_and_missing(runs):
    found = ablation(table(runs)).set_index("lever")
    assert list(found.index) == LEVERS
    for side, wall_s in {"alone": ALONE_S, "all_but": ALL_BUT_S}.items():
        for name, s in wall_s.items():
            row = found.loc[name]
            assert row[f"{side}_images_per_s"] == pytest.approx(10 / s)
            assert row[f"{side}_s_per_100_images"] == pytest.approx(10 * s)
            low, high = (row[f"{side}_s_per_100_images_{end}"] for end in ("low", "high"))
            assert low < 10 * s < high
    assert not any(column.startswith("alone_cost") for column in found)


def test_factors_are_over_nothing_and_over_all_but(runs):
    found = ablation(table(runs)).set_index("lever")
    for name in LEVERS:
        assert found.loc[name, "gained"] == pytest.approx(NOTHING_S / ALONE_S[name])
        assert found.loc[name, "lost"] == pytest.approx(ALL_BUT_S[name] / ALL_S)


def test_a_factors_interval_joins_the_worst_ends_of_both(runs):
    frame = table(runs)
    rows = ablation_rows(frame).set_index(["variant", "lever"])
    found = ablation(frame).set_index("lever").loc["packing"]
    low, high = "images_per_s_low", "images_per_s_high"
    nothing, everything = rows.loc["nothing"].iloc[0], rows.loc["all"].iloc[0]
    alone, missing = rows.loc[("alone", "packing")], rows.loc[("all_but", "packing")]
    assert found["gained_low"] == pytest.approx(alone[low] / nothing[high])
    assert found["gained_high"] == pytest.approx(alone[high] / nothing[low])
    assert found["lost_low"] == pytest.approx(everything[low] / missing[high])
    assert found["lost_high"] == pytest.approx(everything[high] / missing[low])
    assert found["gained_low"] < found["gained"] < found["gained_high"]


def test_a_single_repeat_has_no_interval(on_cpu, fast, make_repeat):
    once = {"repeats": [make_repeat(5.0)]}
    two = ON | {"batch_size": 1}
    runs = [fast(0, two, **once), fast(0, two | {"packing": False}, **once)]
    row = ablation(table(runs)).iloc[0]
    assert (row["lever"], row["gained"]) == ("packing", 1.0)
    assert row[["gained_low", "gained_high", "lost_low", "alone_images_per_s_high"]].isna().all()


def test_a_priced_frame_has_money(runs):
    found = ablation(price(table(runs), per_hour=36.0)).set_index("lever")  # a cent a second
    for end in ("", "_low", "_high"):
        money = found[f"all_but_cost_cny_per_100_images{end}"]
        times = found[f"all_but_s_per_100_images{end}"]
        assert list(money) == pytest.approx(list(times * 0.01))
    assert found.attrs["currency"] == "CNY"


@pytest.mark.parametrize("missing", ["nothing", "all"])
def test_what_was_not_measured_is_nan_and_nothing_else(runs, missing):
    left = without(runs, **(NONE if missing == "nothing" else ON))
    assert len(left) == len(runs) - 1
    found = ablation(table(left))
    factor, other = ("gained", "lost") if missing == "nothing" else ("lost", "gained")
    assert found[[factor, f"{factor}_low", f"{factor}_high"]].isna().all(axis=None)
    assert found.drop(columns=[factor, f"{factor}_low", f"{factor}_high"]).notna().all(axis=None)
    assert found[other].gt(1).all()
    row = ablation_rows(table(left)).set_index("variant").loc[missing]
    assert pd.isna(row["status"]) and pd.isna(row["images_per_s"])
    assert {n: row[n] for n in LEVERS} == (NONE if missing == "nothing" else ON)


def test_a_setting_that_ran_out_of_memory_has_no_numbers_though_repeats_were_finished(
    runs, make_repeat
):
    # the row keeps the passes that were finished before
    left = without(runs, **(ON | {"packing": False}))
    short = next(run for run in runs if run not in left)
    frame = table([*left, short])
    frame.loc[frame["key"] == short.key, "status"] = "oom"
    found = ablation(frame).set_index("lever")
    assert found.loc["packing"].filter(like="all_but").isna().all()
    assert pd.isna(found.loc["packing", "lost"])
    assert found.loc["packing", "gained"] == pytest.approx(NOTHING_S / ALONE_S["packing"])


def test_other_rows_do_not_disturb(runs, on_cpu, fast):
    others = [
        *(on_cpu(size, 7.0) for size in (2, 8)),
        *(fast(1.0, ON | {"batch_size": size}) for size in (2, 16)),  # a sweep over batches
        *(fast(1.0, levers, resolution=512) for levers in (ON, ON | {"packing": False})),
        *(fast(1.0, levers, plan={"timed_items": 9}) for levers in (NONE, ON)),
        fast(1.0, ON, environment={"torch": "1.0"}),
        on_cpu(4, 1.0, cache_implementation="static"),
    ]
    assert seconds([*others, *runs]) == pytest.approx(WHOLE)


def test_the_batch_size_is_no_lever_where_nothing_was_measured_at_full_batch(fast, on_cpu):
    chosen = {name: NONE[name] for name in ("packing", "overlap")}
    runs = [
        on_cpu(1, SERIAL_S),
        on_cpu(4, STOCK_S),
        fast(9.0, ON | chosen),
        fast(6.0, ON | {"packing": False}),
        fast(5.0, ON | {"overlap": False}),
        fast(3.0, ON),
        fast(30.0, ON | {"batch_size": 1}),  # of a sweep
    ]
    found = ablation(table(runs)).set_index("lever")
    assert list(found.index) == ["packing", "overlap"]
    assert list(found["gained"]) == pytest.approx([9 / 5, 9 / 6])
    assert list(found["lost"]) == pytest.approx([6 / 3, 5 / 3])


def test_an_ablation_that_was_stopped_shows_what_it_has(runs):
    count = 3 + len(LEVERS)  # the stock rows, nothing, and each alone
    found = ablation(table(runs[:count]))
    assert list(found["gained"]) == pytest.approx([NOTHING_S / s for s in ALONE_S.values()])
    assert found["lost"].isna().all()


def test_without_a_switch_that_was_both_on_and_off_there_is_no_ablation(runs, on_cpu, fast):
    sweep = [*runs[:2], fast(3.0, ON), fast(9.0, ON | {"batch_size": 1})]
    for rows in (sweep, [fast(9.0, NONE)], [fast(9.0, NONE), fast(1.0, ON, resolution=64)]):
        with pytest.raises(ConfigError, match="measure an ablation with 'qvl-lab ablate'"):
            ablation(table(rows))


def test_a_frame_without_a_levers_column_is_refused(runs):
    with pytest.raises(ConfigError, match=r"the frame lacks overlap; make it with Runs\.frame"):
        ablation(table(runs).drop(columns="overlap"))
