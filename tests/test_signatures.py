"""What Shift-Tab shows: functions that take settings as keywords name every one."""

from __future__ import annotations

import inspect
from dataclasses import MISSING

import pytest

import qvl_lab as ql
from qvl_lab.config.settings import PARTS, flat_fields
from qvl_lab.errors import UnknownNameError
from qvl_lab.session import Lab
from qvl_lab.show.report.options import ReviewOptions

SWEEPS = {"sweep", "ablate", "hit_rates"}
OPTIONS_OF_A_SWEEP = ("workload", "items", "repeats", "quality", "isolation")
GENERATE = (ql.ImagePolicy, ql.Transformers, ql.Fast)


def named(function):
    return inspect.signature(function).parameters


def defaults(*parts):
    return {
        name: f.default if f.default is not MISSING else f.default_factory()
        for name, f in flat_fields(*parts).items()
    }


@pytest.mark.parametrize("name", sorted(SWEEPS | {"load", "report", "price"}))
def test_no_public_function_hides_its_settings(name):
    kinds = {parameter.kind for parameter in named(getattr(ql, name)).values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.parametrize("name", ["sweep", "ablate"])
def test_a_sweep_names_all_settings_and_options_with_their_defaults(name):
    parameters = named(getattr(ql, name))
    assert set(OPTIONS_OF_A_SWEEP) <= parameters.keys()
    assert not {"axes", "base"} & parameters.keys()
    settings = defaults(*PARTS)
    assert {n: parameters[n].default for n in settings if n != "seed"} == {
        n: value for n, value in settings.items() if n != "seed"
    }


def test_an_axis_takes_a_list_where_a_sweep_has_axes():
    assert named(ql.sweep)["batch_size"].annotation.endswith("| list")
    assert not named(ql.ablate)["batch_size"].annotation.endswith("| list")


def test_hit_rates_leaves_out_what_it_sets_itself():
    parameters = named(ql.hit_rates)
    assert {"batch_size", "rates", "cache_gib", "repeats"} <= parameters.keys()
    assert not {"engine", "prefix_cache", "timed_items"} & parameters.keys()


def test_loading_names_the_fields_of_a_model():
    assert {n: p.default for n, p in named(ql.load).items()} == defaults(ql.ModelSpec)


def test_a_report_names_its_options():
    parameters = named(ql.report)
    known = defaults(ReviewOptions)
    assert {n: parameters[n].default for n in known} == known


def test_generating_names_settings_of_images_and_engines():
    parameters = named(Lab.generate_batch)
    known = defaults(*GENERATE)
    del known["sampling_seed"]
    assert {n: parameters[n].default for n in known} == known
    assert parameters["seed"].default is None


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda: ql.load("tiny", precison="fp32"), "precision"),
        (lambda: ql.sweep(batchsize=4), "batch_size"),
        (lambda: ql.ablate(precison="bf16"), "precision"),
        (lambda: ql.hit_rates(itms=3), "items"),
        (lambda: ql.report("no-such-file.jsonl", montly_images=3), "monthly_images"),
    ],
)
def test_a_misspelt_setting_is_answered_with_the_right_one(call, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}'"):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "file"),
    [("sweep", "runs.jsonl"), ("ablate", "ablation.jsonl"), ("hit_rates", "hits.jsonl")],
)
def test_a_run_file_has_the_same_default_name_as_for_the_command(name, file):
    assert named(getattr(ql, name))["out"].default == file
