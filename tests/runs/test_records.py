"""A run and its JSON line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvl_lab.config import FIELDS, RENAMED, Config, engines_with
from qvl_lab.errors import StoreError
from qvl_lab.runs.records import SCHEMA_VERSION, STATUSES, Run, environment_key, run_key
from qvl_lab.runs.store import Runs

REPORTS = Path(__file__).parents[2] / "reports"
#: Sums of the number columns of the committed run files, as the code that wrote them read them;
#: what they call ``ttft_s`` is ``batch_ttft_s`` since one clock times all.
OLD = json.loads((Path(__file__).parent / "old_frames.json").read_text("utf-8"))

#: Another value for every field of a configuration.
OTHER = {
    "model": "random:2b",
    "precision": "bf16",
    "device": "cpu",
    "revision": "main",
    "trust_remote_code": True,
    "attn_implementation": "eager",
    "seed": 1,
    "resolution": 512,
    "task_resolutions": {"detection": 1024},
    "max_image_pixels": 1000,
    "max_image_bytes": 1000,
    "batch_size": 3,
    "max_new_tokens": 65,
    "min_new_tokens": 1,
    "cache_implementation": "static",
    "memory_limit_gib": 1.0,
    "engine": "fast",
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "repetition_penalty": 1.5,
    "sampling_seed": 7,
    "prefill_chunk": 100,
    "block_size": 8,
    "kv_cache_gib": 1.0,
    "prefix_cache": True,
    "encoder_cache_gib": 1.0,
    "encoder_cache_entries": 100,
    "encoder_cache_dir": "features",
    "encoder_cache_dir_gib": 1.0,
    "encoder_cache_max_age_s": 1.0,
    "cache_key": "path",
    "response_cache_entries": 1,
    "packing": False,
    "overlap": False,
    "cuda_graphs": False,
    "fused_kernels": False,
    "max_queue_size": 5,
}
#: A field that asks for another one.
WITH = {name: {"encoder_cache_gib": 2.0} for name in ("encoder_cache_entries", "encoder_cache_dir")}
WORKLOAD = {"name": "w", "fingerprint": "abc", "items": 3}
PLAN = {"repeats": 3, "warmup": 1, "batches": None, "seed": 0}


@pytest.mark.parametrize("status", STATUSES)
def test_a_run_survives_its_line(make_run, make_repeat, status):
    run = make_run(
        [make_repeat(stages_s={"vision": 1.25}), make_repeat(9.5)],
        status,
        reason="图 \u2028 two\nlines",
        cold={"load_s": 1.5, "warmup_s": None},
        memory={"allocated": 2**40, "device": None},
        power={"power_w": 70.5},
        random_weights=True,
        failures=[{"id": "a", "error": "empty"}],
        scores={"图": {"metric": "iou", "values": [0.5, None], "unparsed": 1}},
        answers=[{"id": "a", "task": None, "answer": "\n"}],
    )
    line = run.to_json()
    assert "\n" not in line
    assert Run.from_json(line) == run
    assert Run.from_json(line.encode()) == run


def test_the_line_is_plain_json_with_units_in_names(make_run, make_repeat):
    values = json.loads(make_run([make_repeat(8.0, answered=4)]).to_json())
    assert values["schema"] == SCHEMA_VERSION
    assert values["repeats"][0]["wall_s"] == 8.0
    assert values["repeats"][0]["ttft_s"] == [0.5] * 4
    assert values["repeats"][0]["queue_s"] == [0.25] * 4
    assert values["repeats"][0]["e2e_s"] == [8.0] * 4


def test_names_that_are_not_utf8_can_be_written(make_run):
    run = make_run(failures=[{"id": "\udcff.png", "error": "empty"}])
    assert Run.from_json(run.to_json().encode()) == run


def test_defaults_say_unknown(make_run):
    values = json.loads(make_run().to_json())
    for name in ("reason", "random_weights"):
        assert values[name] is None
    assert (values["memory"], values["power"]) == ({}, {})


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, None, "1"])
def test_another_schema_version_is_refused(make_run, version):
    values = json.loads(make_run().to_json()) | {"schema": version}
    with pytest.raises(StoreError, match=f"schema version {version}, this qvl_lab reads 1"):
        Run.from_json(json.dumps(values))


@pytest.mark.parametrize("name", ["key", "status", "started_at", "config", "workload"])
def test_missing_fields_are_named(make_run, name):
    values = json.loads(make_run().to_json())
    del values[name]
    with pytest.raises(StoreError, match=rf"missing \['{name}'\], unknown \[\]"):
        Run.from_json(json.dumps(values))


def test_unknown_fields_are_named(make_run):
    values = json.loads(make_run().to_json()) | {"colour": "red"}
    with pytest.raises(StoreError, match=r"unknown \['colour'\]"):
        Run.from_json(json.dumps(values))


@pytest.mark.parametrize("repeats", [[{"wall_s": 1}], [{"colour": 1}], [5], 5])
def test_damaged_repeats_are_refused(make_run, repeats):
    values = json.loads(make_run().to_json()) | {"repeats": repeats}
    with pytest.raises(StoreError, match="not a run"):
        Run.from_json(json.dumps(values))


@pytest.mark.parametrize("scores", [[], {"read": [1.0]}, {"read": 1.0}, {"read": None}])
def test_damaged_scores_are_refused(make_run, scores):
    values = json.loads(make_run().to_json()) | {"scores": scores}
    with pytest.raises(StoreError, match="not a run: scores"):
        Run.from_json(json.dumps(values))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON line"),
        (b"\xff", "not a JSON line"),
        ("", "not a JSON line"),
        ("[]", "'schema' is missing"),
        ("{}", "'schema' is missing"),
        ("null", "'schema' is missing"),
    ],
)
def test_lines_that_are_no_run_are_refused(line, message):
    with pytest.raises(StoreError, match=message):
        Run.from_json(line)


@pytest.mark.parametrize("path", OLD, ids=str)
def test_committed_run_files_load_with_the_figures_that_they_had(path):
    table = Runs.load(REPORTS.parent / path).frame()
    sums = table.select_dtypes("number").sum(min_count=1)
    expected = dict(OLD[path])
    assert len(table) == expected.pop("rows")
    assert {name: sums[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_every_committed_run_file_is_compared(run_files):
    committed = {f"reports/{name}" for name in run_files}
    assert set(OLD) == committed - {"reports/h100-w1/w1.jsonl"}  # written as files are now


@pytest.mark.parametrize(
    ("name", "questions"),
    [("w1", {1.0}), ("w2", {5.0}), ("fp8-quality", {420 / 180}), ("hits", {1.0})],
)
def test_older_files_tell_images_from_answers(name, questions):
    """Where requests repeat earlier ones on purpose, as in hits, each brings an image."""
    frame = Runs.load(REPORTS / f"h200-fast/{name}.jsonl").frame()
    assert set(frame["questions_per_image"]) == questions


@pytest.mark.parametrize("counts", [{}, {"unique_images": 0}, {"unique_images": None}])
def test_how_many_images_there_were_stays_unknown_where_a_file_does_not_say(make_run, counts):
    workload = {"name": "old", "fingerprint": "f" * 16, "items": 10} | counts
    read = Run.from_json(make_run(workload=workload).to_json())
    assert "images" not in read.workload
    assert Runs([read]).frame()["questions_per_image"].isna().all()


def test_names_of_older_versions_are_read_as_those_of_today(make_run, make_repeat):
    values = json.loads(make_run([make_repeat()], engine="fast").to_json())
    old = {new: old for old, new in RENAMED.items()}
    values["config"] = {old.get(name, name): value for name, value in values["config"].items()}
    values["config"].pop("feature_cache_gib")
    values["config"] |= {"feature_cache_gib": 2.5, "answer_cache_entries": 7}
    counts = {"feature_hits": 1, "feature_disk_hits": 2, "prefix_hits": 3, "answer_misses": 4}
    values["repeats"][0]["caches"] = counts
    run = Run.from_json(json.dumps(values))
    assert (run.config["encoder_cache_gib"], run.config["response_cache_entries"]) == (2.5, 7)
    assert not set(RENAMED) & set(run.config)
    assert run.repeats[0].caches == {
        "encoder_hits": 1,
        "encoder_disk_hits": 2,
        "prefix_hits": 3,
        "response_misses": 4,
    }


def test_older_versions_wrote_settings_that_their_engine_does_not_have(make_run):
    values = json.loads(make_run(batch_size=3).to_json())
    values["config"] |= {"feature_cache_gib": 2.5, "prefill_chunk": 8192, "packing": True}
    for name in (
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "repetition_penalty",
        "sampling_seed",
    ):
        del values["config"][name]
    assert Run.from_json(json.dumps(values)).config == Config().replace(batch_size=3).flat()


def test_every_field_has_another_value_below():
    assert set(OTHER) == set(FIELDS)


@pytest.mark.parametrize("name", OTHER)
def test_key_changes_with_every_setting(name):
    engine = engines_with(name)[0]
    config = Config().replace(**{"engine": engine} | WITH.get(name, {}))
    base = run_key(config.flat(), WORKLOAD, PLAN)
    changed = config.replace(**{name: OTHER[name]})
    assert run_key(changed.flat(), WORKLOAD, PLAN) != base


@pytest.mark.parametrize("name", PLAN)
def test_key_changes_with_the_plan(name):
    assert run_key({}, WORKLOAD, PLAN | {name: 9}) != run_key({}, WORKLOAD, PLAN)


def test_key_changes_with_the_content_of_the_workload_only():
    base = run_key({}, WORKLOAD, PLAN)
    assert run_key({}, WORKLOAD | {"fingerprint": "abd"}, PLAN) != base
    assert run_key({}, WORKLOAD | {"name": "renamed"}, PLAN) == base


def test_environments_differ_by_anything_but_the_host():
    here = {"gpu": "NVIDIA L4", "torch": "2.11", "host": "aaaa"}
    assert environment_key(here | {"host": "bbbb"}) == environment_key(here)
    for name in ("gpu", "torch"):
        assert environment_key(here | {name: "other"}) != environment_key(here)


def test_key_does_not_depend_on_the_order_of_fields():
    flat = Config().flat()
    assert run_key(dict(reversed(flat.items())), WORKLOAD, PLAN) == run_key(flat, WORKLOAD, PLAN)
