"""Ablations: which settings they measure, and that they resume like sweeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import qvl_lab as ql
from qvl_lab.analysis.levers.ablation import ablation, ablation_rows
from qvl_lab.analysis.setting_words import in_words
from qvl_lab.bench.ablation import variants
from qvl_lab.config import Config, Fast, SweepSpec
from qvl_lab.errors import ConfigError, UnknownNameError
from qvl_lab.runs.store import Runs

SWITCHES = [f.name for f in fields(Fast) if f.default is True]
LEVERS = ["batch_size", *SWITCHES]
SMALL: dict[str, Any] = {"batch_size": 3, "resolution": 64, "max_new_tokens": 2, "items": 3}


def switched_on(config: Config) -> set[str]:
    """Levers that are on, in a setting of the fast engine."""
    flat = config.flat()
    batched = {"batch_size"} if config.engine.most_at_once > 1 else set()
    return {n for n in SWITCHES if flat[n]} | batched


def of_engine(configs: list[Config], engine: str) -> list[Config]:
    return [c for c in configs if c.engine.engine == engine]


@pytest.fixture
def ablate(pictures, tmp_path) -> Callable[..., Runs]:
    """An ablation over the pictures in this process."""

    def run(**settings: Any) -> Runs:
        known = SMALL | {"workload": str(pictures), "isolation": "none"} | settings
        return ql.ablate(out=tmp_path / "ablation.jsonl", progress=False, **known)

    return run


@pytest.fixture
def measured(monkeypatch) -> list[Config]:
    """Replace measuring; gets the settings that would have been measured."""
    calls: list[Config] = []

    def measure(trial, get_lab=None):
        calls.append(trial.config)
        return trial.result("ok")

    monkeypatch.setattr("qvl_lab.bench.measure.measure", measure)
    return calls


# ---- which settings


def test_variants_are_none_each_all_but_each_and_all():
    base = Config().replace(batch_size=8, precision="bf16", resolution=512)
    configs = variants(base)
    everything = set(LEVERS)
    assert [switched_on(c) for c in of_engine(configs, "fast")] == [
        set(),
        *({name} for name in LEVERS),
        *(everything - {name} for name in LEVERS),
        everything,
    ]
    serial, full = of_engine(configs, "stock")
    assert full == base  # a row that an ordinary sweep has too
    assert serial == base.replace(batch_size=1)
    for config in configs:
        assert (config.model, config.images) == (base.model, base.images)


def test_only_the_levers_that_are_asked_for_are_switched():
    configs = of_engine(variants(Config(), ["overlap", "packing"]), "fast")
    rest = set(LEVERS) - {"packing", "overlap"}
    assert [switched_on(c) - rest for c in configs] == [
        set(),
        {"packing"},
        {"overlap"},
        {"packing", "overlap"},
    ]  # of two levers, one alone is all but the other
    assert all(rest <= switched_on(c) for c in configs)


def test_settings_that_coincide_are_there_once():
    base = Config().replace(batch_size=1)
    configs = variants(base, ["packing"])
    assert [c.engine.engine for c in configs] == ["stock", "fast", "fast"]
    assert len(variants(Config())) == 2 + 2 * len(LEVERS) + 2


def test_what_is_off_in_the_base_is_no_lever_and_what_is_on_is_one():
    base = Config().replace(engine="fast", batch_size=1, overlap=False, prefix_cache=True)
    configs = of_engine(variants(base), "fast")
    assert not any(c.engine.overlap for c in configs)
    assert {c.engine.batch_size for c in configs} == {1}
    assert {c.engine.prefix_cache for c in configs} == {True, False}


@pytest.mark.parametrize(
    ("levers", "error", "words"),
    [
        (["pakcing"], UnknownNameError, "unknown lever 'pakcing'. Did you mean 'packing'"),
        (["prefix_cache"], ConfigError, r"lever prefix_cache is off .*\(prefix_cache=False\)"),
        ([], ConfigError, "needs a lever that is on"),
    ],
)
def test_levers_that_cannot_be_switched_are_refused(levers, error, words):
    with pytest.raises(error, match=words):
        variants(Config(), levers)


def test_without_any_lever_on_there_is_nothing_to_ablate():
    off = dict.fromkeys(SWITCHES, False)
    with pytest.raises(ConfigError, match="needs a lever that is on, of batch_size, "):
        variants(Config().replace(engine="fast", batch_size=1, **off))


# ---- measuring them


def test_each_variant_is_measured_once_small_batches_first(ablate, measured):
    runs = ablate()
    assert len(measured) == len(runs) == len(variants(Config()))
    batches = [config.engine.batch_size for config in measured]
    assert batches == sorted(batches)
    assert measured[0].engine.engine == "stock"


def test_an_ablation_goes_on_where_it_or_a_sweep_stopped(ablate, measured, pictures, tmp_path):
    where = {"workload": str(pictures), "isolation": "none", "progress": False}
    ql.sweep(out=tmp_path / "ablation.jsonl", engine=["stock", "fast"], **SMALL, **where)
    assert len(measured) == 2
    runs = ablate(levers=["packing"])
    assert len(measured) == 4  # the stock engine one at a time, the fast one without packing
    measured.clear()
    assert list(ablate(levers=["packing"])) == list(runs)
    assert measured == []
    whole = ablate()
    assert len(measured) == len(whole) - 4


def test_a_spec_may_be_given_instead_of_settings(pictures, tmp_path, measured):
    base = Config().replace(batch_size=2, resolution=64)
    spec = SweepSpec(axes={}, base=base, workload=str(pictures), isolation="none", batches=2)
    runs = ql.ablate(spec, levers=["packing"], out=tmp_path / "runs.jsonl", progress=False)
    assert [run.plan["batches"] for run in runs] == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match="not both: items"):
        ql.ablate(spec, out=tmp_path / "runs.jsonl", items=3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": ["fp32", "bf16"]}, "so precision must be a single value"),
        ({"batch_size": 9}, "batch_size 9 is more than the 3 timed items"),
        ({"on_other_environment": "replace"}, "unknown choice"),
        ({"cache_implementation": "static"}, "cache_implementation is the stock engine's"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_work(
    ablate, measured, tmp_path, settings, words
):
    with pytest.raises(ConfigError, match=words):
        ablate(**settings)
    assert measured == [] and not Path(tmp_path / "ablation.jsonl").exists()


def test_progress_names_what_the_fast_engine_does_without():
    base = Config().replace(engine="fast", batch_size=8).flat()
    assert in_words(Config().replace(batch_size=8).flat()) == "auto, native, batch 8"
    assert in_words(Config().replace(resolution="by_task", batch_size=1).flat()) == (
        "auto, by task, batch 1"
    )
    assert in_words(base).endswith(", fast")
    assert in_words(base | {"overlap": False}).endswith(", fast without overlap")


@pytest.mark.slow
def test_a_real_ablation_answers_alike_and_is_read_back(ablate, tmp_path):
    runs = ablate(repeats=2, precision="fp32", device="cpu", resolution=96)
    assert {run.status for run in runs} == {"ok"}
    assert {tuple(repeat.answered for repeat in run.repeats) for run in runs} == {(3, 3)}
    frame = Runs.load(tmp_path / "ablation.jsonl").frame()
    rows = ablation_rows(frame)
    assert len(rows) == 2 + 2 * len(LEVERS) + 2
    assert sorted(rows["key"]) == sorted(run.key for run in runs)
    found = ablation(frame)
    assert list(found["lever"]) == LEVERS
    assert found.drop(columns="lever").gt(0).all(axis=None)
    answers = Runs.load(tmp_path / "ablation.jsonl").answers()
    assert (answers.groupby("id")["answer"].nunique() == 1).all()  # no lever changes what is said
