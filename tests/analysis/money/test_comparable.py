"""Like with like: which rows are compared, and how the others are named."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.limits.advice import larger_batch
from qvl_lab.analysis.money.comparable import ALIKE, alike, comparable
from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.runs.store import Runs

FAST = Path(__file__).parents[3] / "reports" / "h200-fast"
OTHERS = {
    "model": {"model": "random:8b"},
    "revision": {"revision": "old"},
    "workload_fingerprint": {"workload": {"name": "other", "fingerprint": "0" * 16, "items": 10}},
    "max_new_tokens": {"max_new_tokens": 7},
    "min_new_tokens": {"min_new_tokens": 3},
    "plan": {"plan": {"batches": 1}},
    "environment": {"environment": {"gpu": "NVIDIA H200"}},
}


@pytest.fixture
def timed(make_run, make_repeat):
    """A run of ten items by its seconds."""

    def build(wall_s=10.0, answered=10, **parts):
        known = {"plan": {"repeats": 3, "seed": 0}, "batch_size": 1} | parts
        return make_run([make_repeat(wall_s, answered)], **known)

    return build


def test_every_reason_has_a_row_here():
    assert set(OTHERS) == set(ALIKE)


@pytest.mark.parametrize("name", OTHERS)
def test_rows_that_differ_in_what_was_asked_or_where_are_left_out_and_named(timed, name):
    before = "2020-01-01T00:00:00+00:00"
    odd = timed(1.0, batch_size=8, key="odd", started_at=before, **OTHERS[name])
    table = frame([odd, timed(), timed(8.0, batch_size=2)])
    same, (left,) = comparable(table)
    assert same.tolist() == [False, True, True]
    assert (left.differs, len(left)) == ((name,), 1)
    assert left.cheapest["key"] == "odd"
    assert list(left.named()) == [name]
    found = recommend(table)
    assert found.best["batch_size"] == 2
    assert [other.differs for other in found.left_out] == [(name,)]
    assert repr(found).endswith("; 1 rows not compared>")
    runs = odd, timed()
    assert not alike(*runs)
    assert alike(runs[1], timed(8.0, batch_size=2))


@pytest.mark.parametrize(
    "plan",
    [
        {"repeats": 9, "seed": 0},
        {"warmup": 0},
        {"min_pass_s": 2.0},
        {"quality": False},
        {"seed": 7, "timed_items": None, "batches": None, "metrics": {}},
    ],
    ids=str,
)
def test_how_often_something_was_timed_separates_no_rows(timed, plan):
    runs = [timed(plan={"repeats": 3, "warmup": 1, "seed": 0}), timed(5.0, batch_size=2, plan=plan)]
    assert comparable(frame(runs))[0].all()
    assert alike(*runs)


def test_rows_that_differ_in_the_same_are_told_together_by_their_values(timed):
    models = [timed(model=m, key=m) for m in ("random:2b", "random:4b", "random:2b")]
    plan = timed(answered=5, batch_size=2, plan={"batches": 1})
    newest = timed(started_at="2026-01-01T00:00:00+00:00", model="random:8b")
    _, left = comparable(frame([*models, plan, newest]))
    assert [(found.differs, len(found)) for found in left] == [
        (("model",), 3),
        (("model", "plan"), 1),
    ]
    assert left[0].named() == {"model": ["random:2b", "random:4b"]}
    assert left[1].named()["plan"] == ["5"]
    assert repr(left[0]) == "<3 rows of model random:2b, random:4b>"
    assert repr(left[1]) == "<1 row of model tiny and of passes over 5 items>"


def test_a_row_that_was_not_measured_is_not_the_cheapest_that_is_left_out(timed, make_run):
    lost = make_run(status="oom", model="random:2b", started_at="2020-01-01T00:00:00+00:00")
    _, (left,) = comparable(frame([lost, timed()]))
    assert left.cheapest is None


def test_rows_may_be_compared_across_models_where_that_is_asked(timed):
    table = frame([timed(), timed(5.0, model="random:2b", revision="v2", key="small")])
    assert recommend(table).best["model"] == "tiny"
    asked = recommend(table, across=("model",))
    assert (asked.best["model"], asked.left_out) == ("random:2b", [])
    with pytest.raises(UnknownNameError, match="modle"):
        recommend(table, across=("modle",))


def test_todays_setting_may_be_one_that_is_unlike_the_newest(timed):
    old = {"started_at": "2020-01-01T00:00:00+00:00", "plan": {"batches": 1}}
    table = frame([timed(20.0, **old), timed(9.0, batch_size=4, **old), timed(5.0, batch_size=2)])
    assert recommend(table, current={"batch_size": 4}).best["s_per_100_images"] == 90
    assert recommend(table, current={"batch_size": 2}).best["s_per_100_images"] == 50
    with pytest.raises(ConfigError, match="no measured setting has batch_size=3"):
        recommend(table, current={"batch_size": 3})


def test_no_rows_cannot_be_compared():
    with pytest.raises(ConfigError, match="no rows"):
        comparable(pd.DataFrame())


# ---- committed run files


def test_hits_are_not_recommended_from_fewer_repeated_requests_to_more():
    found = recommend(Runs.load(FAST / "hits.jsonl").frame())
    assert found.best["workload"] == found.current["workload"]
    named = [name for left in found.left_out for name in left.named()["workload_fingerprint"]]
    shares = {f"uniform, {share}% repeated" for share in (0, 30, 60, 90)}
    assert set(named) == shares - {found.best["workload"]}
    assert sum(map(len, found.left_out)) == 15


def test_sizes_recommend_no_other_model_unless_asked():
    table = Runs.load(FAST / "sizes.jsonl").frame()
    today = {"model": "random:8b", "resolution": "512"}
    found = recommend(table, current=today, hold=())
    assert (found.best["model"], found.best["resolution"]) == ("random:8b", "256")
    asked = recommend(table, current=today, hold=(), across=("model",))
    assert asked.best["model"] == "random:2b"


def test_advice_looks_at_rows_that_are_like_the_run_alone(timed):
    from qvl_lab.analysis.limits.advice import Case

    run, faster = timed(), timed(2.0, batch_size=4)
    assert larger_batch(Case(run=run, table=pd.DataFrame(), others=[faster])).measured
    assert not alike(run, timed(2.0, batch_size=4, plan={"timed_items": 5}))
