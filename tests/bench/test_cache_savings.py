"""Caches at chosen hit rates: measured from empty caches, in one file that goes on."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from qvl_lab.analysis.levers.cache_savings import CACHES, cache_of, hit_points
from qvl_lab.bench import cache_savings as module
from qvl_lab.bench.cache_savings import hit_rates
from qvl_lab.bench.measure import measure
from qvl_lab.bench.trial import Plan, Trial
from qvl_lab.config import Config
from qvl_lab.errors import ConfigError, UnknownNameError, WorkloadError
from qvl_lab.runs.store import Runs
from qvl_lab.workloads.sources import load_workload

SMALL: dict[str, Any] = {
    **{"model": "random:tiny", "precision": "fp32", "device": "cpu", "resolution": 64},
    **{"batch_size": 1, "max_new_tokens": 2, "repeats": 2, "isolation": "none"},
    **{"progress": False, "cache_gib": 0.05, "min_pass_s": 0.0, "max_repeats": 2},
}


@pytest.fixture
def album(tmp_path):
    """Six different pictures, the first of them twice."""
    folder = tmp_path / "album"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (96, 96), (40 * i, 0, 90)).save(folder / f"{i}.png")
    (folder / "again.png").write_bytes((folder / "0.png").read_bytes())
    return folder


@pytest.fixture
def asked(monkeypatch) -> list[Any]:
    """What is asked of the sweep, instead of measuring it."""
    calls: list[Any] = []

    def note(configs, spec, **options):
        calls.append((configs, spec, options))
        return Runs()

    monkeypatch.setattr(module, "measure_each", note)
    return calls


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every cache at two hit rates."""
    folder = tmp_path_factory.mktemp("hits")
    for i in range(6):
        Image.new("RGB", (96, 96), (40 * i, 0, 90)).save(folder / f"{i}.png")
    out = folder / "hits.jsonl"
    return hit_rates(out=out, rates=[0, 0.5], workload=folder, **SMALL), folder


@pytest.mark.slow
def test_every_cache_is_measured_at_every_rate_as_rows_of_one_file(measured):
    runs, folder = measured
    frame = runs.frame()
    assert list(frame["status"]) == ["ok"] * 10
    assert len(Runs.load(folder / "hits.jsonl")) == 10
    rows = [(row["workload"].split(", ")[1], cache_of(row)) for _, row in frame.iterrows()]
    assert sorted(rows) == sorted((f"{n}% repeated", cache) for n in (0, 50) for cache in CACHES)
    assert set(frame["engine"]) == {"fast"}
    assert set(frame["workload_items"]) == {6}


@pytest.mark.slow
def test_what_is_hit_in_every_pass_is_what_the_requests_repeat(measured):
    """Neither a warm-up nor the pass before may make a hit of what comes first."""
    runs, _ = measured
    points = hit_points(runs.frame(), "s_per_100_images")
    for cache, wanted in zip(
        ("off", "features", "prefix", "features+prefix"), (0, 0.5, 0.5, 0.5), strict=True
    ):
        assert list(points[points["cache"] == cache]["hit_rate"]) == [0, wanted]
    for run in runs:
        first, second = (repeat.caches for repeat in run.repeats)
        assert {k: v for k, v in first.items() if "_hits" in k or "_misses" in k} == {
            k: v for k, v in second.items() if "_hits" in k or "_misses" in k
        }
        assert run.cache_state == ("cold" if run.repeats[0].caches else "off")


@pytest.mark.slow
def test_answers_are_found_once_the_first_is_there(measured):
    runs, _ = measured
    points = hit_points(runs.frame(), "s_per_100_images")
    low, high = points[points["cache"] == "answers"]["hit_rate"]
    assert low == 0
    assert 0 < high <= 0.5  # fewer than repeat, as some come while the first is on its way


@pytest.mark.slow
def test_the_memory_of_an_image_is_known_for_each_cache(measured):
    frame = measured[0].frame()
    for name in ("encoder", "prefix", "response"):
        assert frame[f"{name}_bytes_per_image"].max() > 0


@pytest.mark.slow
def test_the_same_call_goes_on_where_it_stopped(measured):
    runs, folder = measured
    before = (folder / "hits.jsonl").read_bytes()
    again = hit_rates(out=folder / "hits.jsonl", rates=[0, 0.5], workload=folder, **SMALL)
    assert [run.key for run in again] == [run.key for run in runs]
    assert (folder / "hits.jsonl").read_bytes() == before


def test_each_rate_is_a_workload_of_different_images(album, asked):
    hit_rates(out="o", rates=[0, 0.5, 0.5], workload=album, **SMALL)
    workloads = [spec.workload for _, spec, _ in asked]
    assert [w.info()["unique_images"] for w in workloads] == [6, 3]
    assert [len(w) for w in workloads] == [6, 6]
    assert all(not spec.quality for _, spec, _ in asked)


def test_a_cache_has_its_memory_and_the_others_are_off(album, asked):
    hit_rates(out="o", rates=[0], workload=album, **SMALL | {"cache_gib": 3.0})
    ((configs, _, _),) = asked
    engines = [config.engine for config in configs]
    assert [e.caches.encoder_cache_gib for e in engines] == [None, 3.0, None, 3.0, None]
    assert [(e.prefix_cache, e.kv_cache_gib) for e in engines] == [
        *[(False, None)] * 2,
        *[(True, 3.0)] * 2,
        (False, None),
    ]
    assert [e.caches.response_cache_entries for e in engines] == [0, 0, 0, 0, 6]


def test_another_question_is_asked_where_only_images_repeat(album, asked):
    for same in (True, False):
        hit_rates(out="o", rates=[0.5], workload=album, same_question=same, **SMALL)
    counts = [len({i.question for i in spec.workload.items}) for _, spec, _ in asked]
    assert counts == [1, 2]  # a folder brings one question


def test_old_rows_are_moved_aside_once(album, asked):
    hit_rates(
        out="o", rates=[0, 0.5], workload=album, on_other_environment="fresh", **SMALL
    )  # a second time would move the first rate's rows
    assert [options["on_other_environment"] for *_, options in asked] == ["fresh", "refuse"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rates": [1.0]}, WorkloadError, "from 0 to under 1, not 1.0"),
        ({"rates": []}, ConfigError, "at least one hit rate and one cache"),
        ({"caches": []}, ConfigError, "at least one hit rate and one cache"),
        ({"caches": ["feature"]}, UnknownNameError, "Did you mean 'features'"),
        ({"batch_size": [1, 2]}, ConfigError, "give one value of batch_size"),
        ({"encoder_cache_gib": 1.0}, ConfigError, "encoder_cache_gib is not a setting of hit_rat"),
        ({"timed_items": 2}, ConfigError, "timed_items is not a setting of hit_rates"),
        ({"bach_size": 1}, UnknownNameError, "Did you mean 'batch_size'"),
        ({"cache_gib": 0}, ConfigError, "encoder_cache_gib must be a number above 0"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_measured(
    album, asked, options, error, message
):
    with pytest.raises(error, match=message):
        hit_rates(out="o", workload=album, **SMALL | {"rates": [0.5]} | options)
    assert asked == []


def test_what_a_folder_remembers_is_called_warm(lab, album, tmp_path):
    fields = {"engine": "fast", "encoder_cache_gib": 0.1, "encoder_cache_dir": str(tmp_path / "d")}
    known = {name: SMALL[name] for name in ("precision", "device", "resolution", "max_new_tokens")}
    workload = load_workload(album).distinct()
    trial = Trial(
        config=Config().replace(**fields, **known, batch_size=2),
        workload=workload,
        plan=Plan(repeats=2, warmup=0),
    )
    run = measure(trial, lambda _: lab)
    lab.fast._caches = None
    lab.fast.close()
    assert run.cache_state == "warm"
    assert [repeat.caches["encoder_disk_hits"] for repeat in run.repeats] == [0, 6]
