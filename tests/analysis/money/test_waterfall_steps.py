"""Steps whose sign is in doubt are not shown as steps of their own."""

from __future__ import annotations

import pandas as pd
import pytest

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.money.recommend import Recommendation, recommend
from qvl_lab.analysis.money.waterfall_steps import sure_steps

TODAY = {"batch_size": 1, "precision": "fp32", "engine": "stock"}
ORDER = ("batch_size", "engine", "precision")


def advised(on_cpu, *seconds: float | list[float]) -> Recommendation:
    """From today over a larger batch and the fast engine to bf16, with these seconds."""
    settings = [
        (1, {}),
        (4, {}),
        (4, {"engine": "fast"}),
        (4, {"engine": "fast", "precision": "bf16"}),
    ]
    pairs = zip(settings, seconds, strict=True)
    runs = [on_cpu(batch, wall_s, **parts) for (batch, parts), wall_s in pairs]
    return recommend(frame(runs), current=TODAY, hold=())


def shown(advice: Recommendation) -> list[tuple[list[str], float, float]]:
    return [
        ([n for n in ORDER if n in step.changed], step.before_s, step.after_s)
        for step in sure_steps(advice.current, advice.steps)
    ]


def test_a_step_that_may_be_noise_is_merged_into_the_next(on_cpu):
    advice = advised(on_cpu, 10.0, [9.0, 10.2, 11.0], 4.0, 2.0)
    assert len(advice.steps) == 3
    assert shown(advice) == [
        (["batch_size", "engine"], 100.0, 40.0),
        (["precision"], 40.0, 20.0),
    ]


def test_an_unstable_setting_between_is_no_step_up_and_down(on_cpu):
    """As where a setting of 3 s was once measured beside another process: +426%, then -92%."""
    advice = advised(on_cpu, 10.0, 5.0, [6.0, 30.0, 28.0], 2.0)
    assert shown(advice) == [
        (["batch_size"], 100.0, 50.0),
        (["engine", "precision"], 50.0, 20.0),
    ]


def test_what_is_in_doubt_at_the_end_joins_the_step_before(on_cpu):
    advice = advised(on_cpu, 10.0, 5.0, [3.9, 4.0, 4.1], [3.6, 3.98, 4.2])
    assert shown(advice) == [(["batch_size"], 100.0, 50.0), (["engine", "precision"], 50.0, 39.8)]


def test_where_all_is_in_doubt_one_step_is_left(on_cpu):
    advice = advised(on_cpu, [9, 10, 11.0], [8.9, 9.9, 11.0], [8.8, 9.8, 11], [8.7, 9.7, 11])
    ((changed, before_s, after_s),) = shown(advice)
    assert changed == ["batch_size", "engine", "precision"]
    assert (before_s, after_s) == (pytest.approx(100), pytest.approx(97))


def test_settings_timed_once_keep_their_steps(on_cpu):
    advice = advised(on_cpu, [10.0], [9.9], [4.0], [2.0])
    assert [changed for changed, *_ in shown(advice)] == [["batch_size"], ["engine"], ["precision"]]


def test_without_steps_there_are_none():
    assert sure_steps(pd.Series(dtype=object), []) == []
