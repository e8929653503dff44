"""Profiles of a lab's calls, on the embedded model."""

from __future__ import annotations

import gzip
import json
import threading

import pandas as pd
import pytest
import torch

import qvl_lab as ql
from qvl_lab.bench.profile import profile
from qvl_lab.errors import ConfigError
from qvl_lab.probe import stages
from qvl_lab.probe.stages import Span, outermost
from qvl_lab.workloads.sources import load_workload

CALL = {"batch_size": 2, "resolution": 96, "max_new_tokens": 4, "min_new_tokens": 4}


@pytest.fixture(scope="module")
def lab():
    return ql.load("tiny", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def items():
    return list(load_workload("evaluation").items[:4])


@pytest.fixture(scope="module")
def profiled(lab, items):
    lab.generate_batch(items[:1], **CALL)
    with profile(lab, interval_s=0.005) as found:
        found.answers = lab.generate_batch(items, **CALL)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(lab):
    yield
    assert stages.hearing() == ()
    assert lab.listeners == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lab.loaded.model.modules())
    assert "qvl-lab sampler" not in [thread.name for thread in threading.enumerate()]
    assert not torch.autograd._profiler_enabled()


def test_stages_sum_to_the_wall_time_of_the_block(profiled):
    table = profiled.stages.set_index("path")
    outer = table[[outermost(path) for path in table.index]]
    assert outer["seconds"].sum() == pytest.approx(profiled.wall_s, rel=0.03)
    assert table.at["decode/layers", "calls"] == 2 * 3
    assert table.at["vision", "tokens"] == sum(a.visual_tokens for a in profiled.answers)
    assert profiled.work == profiled.answers.work
    assert 0 < profiled.profiled_s <= profiled.wall_s


def test_spans_lie_within_the_block_and_each_within_its_stage(profiled):
    spans = profiled.spans
    assert spans["start_s"].is_monotonic_increasing
    assert spans["start_s"].min() >= 0 and spans["end_s"].max() <= profiled.wall_s
    merger = spans[spans["path"] == "vision/merger"]
    vision = spans[spans["path"] == "vision"]
    for _, part in merger.iterrows():
        assert ((vision["start_s"] <= part["start_s"]) & (part["end_s"] <= vision["end_s"])).any()


def test_operators_are_those_of_the_model_and_a_cpu_has_no_kernels(profiled):
    operators = profiled.operators.set_index("name")
    assert operators.at["aten::linear", "calls"] > 100
    assert operators["self_cpu_s"].sum() <= profiled.wall_s
    assert profiled.kernels.empty and "group" in profiled.kernels
    assert profiled.gaps.empty and profiled.pauses.empty
    assert any("no GPU" in note for note in profiled.notes)


def test_samples_and_memory_stand_beside_their_stage(profiled):
    known = {path for path in profiled.stages["path"] if outermost(path)}
    assert set(profiled.power["stage"]) <= known | {""}
    assert {"vision", "decode"} <= set(profiled.vram["stage"])
    assert (profiled.vram["process_memory_bytes"] > 1e6).all()


def test_all_tables_count_from_the_start_of_the_block(profiled):
    outer = profiled.spans[profiled.spans["path"].map(outermost)]
    for table in (profiled.vram, profiled.power):
        assert table["time_s"].between(-1, profiled.wall_s + 1).all()  # samples at both ends
    # what was read after a stage was read when it had ended
    after = profiled.vram[profiled.vram["stage"] != ""]
    ends = outer.sort_values("end_s")["end_s"].to_numpy()
    assert len(after) == len(ends)
    assert (abs(after["time_s"].to_numpy() - ends) < 0.02).all()


def test_gaps_of_the_trace_are_put_on_the_clock_of_the_block(lab, items, monkeypatch):
    """A stage's range in the trace starts with the stage."""
    from qvl_lab.probe import trace

    def first_ranges(events):
        return events.stages[["start_s"]].sort_values("start_s").head(3)

    monkeypatch.setattr(trace, "gaps", first_ranges)
    with profile(lab, overhead=False) as found:
        lab.generate_batch(items[:2], **CALL)
    assert found.gaps["start_s"].tolist() == pytest.approx(
        found.spans["start_s"].head(3).tolist(), abs=0.02
    )


def test_the_marks_of_the_profile_are_no_pauses():
    from qvl_lab.bench.profile import _without_marks

    columns = ["start_s", "seconds", "meanwhile", "after", "before"]
    rows = [(1.0, 0.5, "", "vision", "prefill"), (2.0, 0.25, "", "prefill", "decode")]
    pauses = pd.DataFrame(rows, columns=columns)
    # of the first pause two marks took 0.125 s each, one of them half before it; all of the second
    reached, left = [0.875, 1.25, 1.75, 1.9], [1.125, 1.375, 1.8125, 2.3]
    found = _without_marks(pauses, reached, left)
    assert found["seconds"].tolist() == [0.25]
    assert found["profile_s"].tolist() == [0.25]
    assert _without_marks(pauses, [], [])["seconds"].tolist() == [0.5, 0.25]
    assert _without_marks(pauses.head(0), [], []).empty


def test_answers_are_the_same_with_and_without(lab, items, profiled):
    assert lab.generate_batch(items, **CALL).texts == profiled.answers.texts


def test_the_profile_says_what_it_cost(profiled):
    assert profiled.plain_s > 0
    assert profiled.overhead == pytest.approx(profiled.profiled_s / profiled.plain_s - 1)
    assert f"overhead of the profile: {profiled.overhead:+.1%}" in repr(profiled)


def test_a_profile_of_first_calls_says_so(items):
    fresh = ql.load("tiny", device="cpu", precision="fp32")
    with profile(fresh, kernels=False, overhead=False) as found:
        fresh.generate_batch(items[:1], **CALL)
    assert any("first calls" in note for note in found.notes)
    assert found.overhead is None
    assert "overhead of the profile: unknown" in repr(found)
    assert found.operators.empty
    assert {"vision", "decode"} <= set(found.stages["path"])
    with pytest.raises(ConfigError):
        found.chrome("never.json")


def test_an_exception_leaves_what_was_seen_and_nothing_else(lab, items):
    with pytest.raises(KeyError), profile(lab) as found:
        lab.generate_batch(items[:2], **CALL)
        raise KeyError
    assert {"vision", "decode"} <= set(found.stages["path"])
    assert found.operators["calls"].sum() > 100
    assert found.overhead is None


def test_a_model_that_fails_under_the_profile_fails_as_without_it(lab, items, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no head")

    monkeypatch.setattr(lab.loaded.model.lm_head, "forward", broken)
    with pytest.raises(ql.QvlError, match="no head"), profile(lab, kernels=False) as found:
        lab.generate_batch(items[:2], **CALL)
    assert "vision" in set(found.stages["path"])  # what ended before


def test_traces_are_written_for_both_readers(profiled, tmp_path):
    path = profiled.chrome(tmp_path / "trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"aten::linear", "stage: decode/lm_head"} <= names
    written = profiled.tensorboard(tmp_path / "tb", worker="here")
    assert written.name.startswith("here.") and written.name.endswith(".pt.trace.json.gz")


def test_before_it_ends_a_profile_says_so(lab):
    with profile(lab, kernels=False, overhead=False) as found:
        assert repr(found) == "<profile: the block has not ended>"


def test_what_must_hold_the_peak_follows_from_the_largest_batch(lab, profiled, items):
    peaks = profiled.peak()
    assert list(peaks.index) == ["vision", "prefill", "decode"]
    weights = sum(p.nbytes for p in lab.loaded.model.parameters())
    assert (peaks["weights"] == weights).all()
    batch = sorted(profiled.answers, key=lambda a: a.prompt_tokens, reverse=True)[:2]
    config = lab.loaded.model.config.text_config
    kv = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert peaks.at["prefill", "kv_cache"] == 2 * batch[0].prompt_tokens * kv
    with profile(lab, kernels=False, overhead=False) as nothing:
        pass
    with pytest.raises(ConfigError, match="nothing was answered"):
        nothing.peak()


def test_every_sample_gets_the_stage_under_way():
    from qvl_lab.bench.profile import _with_stages

    spans = [
        Span("decode/lm_head", 5, 6, 5, 6),
        Span("vision", 1, 2, 1, 2),
        Span("decode", 3, 7, 3, 7),
    ]
    samples = pd.DataFrame({"time_s": [0.5, 1.0, 2.5, 5.5, 8.0]})
    assert _with_stages(samples, spans)["stage"].tolist() == ["", "vision", "", "decode", ""]
    assert _with_stages(samples, [])["stage"].tolist() == [""] * 5


# ---- caches, and more than one profile

FAST = CALL | {"engine": "fast", "kv_cache_gib": 0.05}


@pytest.mark.parametrize(
    "cache",
    [{"response_cache_entries": 100}, {"encoder_cache_gib": 0.1}, {"prefix_cache": True}],
    ids=lambda cache: next(iter(cache)),
)
def test_the_calls_are_repeated_on_caches_as_empty_as_the_first_time(lab, cache):
    items = list(load_workload("evaluation").distinct().items[:4])
    lab.generate_batch(items, **FAST | cache)
    lab.clear_caches()
    with profile(lab, kernels=False) as found:
        first = lab.generate_batch(items, **FAST | cache)
        second = lab.generate_batch(items, **FAST | cache)
    assert sum(n for name, n in second.caches.items() if name.endswith("_hits")) == 4
    assert sum(n for name, n in first.caches.items() if name.endswith("_hits")) == 0
    assert -0.9 < found.overhead < 3  # answered from the cache, it would be over a hundred


@pytest.mark.parametrize("folder", [False, True], ids=["warm in memory", "kept in a folder"])
def test_calls_that_find_other_entries_when_repeated_have_no_overhead(lab, items, tmp_path, folder):
    options = FAST | {"encoder_cache_gib": 0.1}
    if folder:
        options |= {"encoder_cache_dir": str(tmp_path / "features")}
    else:
        lab.generate_batch(items, **options)
    with profile(lab, kernels=False) as found:
        lab.generate_batch(items, **options)
    assert found.overhead is None
    assert any("other entries in the caches" in note for note in found.notes)


def test_a_profile_inside_a_profile_is_refused_and_the_outer_one_goes_on(lab, items):
    with profile(lab, kernels=False, overhead=False) as outer:
        with pytest.raises(ConfigError, match="do not nest"), profile(lab):
            raise AssertionError("never reached")
        answers = lab.generate_batch(items[:2], **CALL)
    assert outer.work == answers.work
    with profile(lab, kernels=False, overhead=False) as after:
        lab.generate_batch(items[:1], **CALL)
    assert after.work.images == 1


def test_a_profile_has_the_calls_of_its_own_thread_alone(lab, items):
    with profile(lab, kernels=False, overhead=False) as found:
        other = threading.Thread(target=lambda: lab.generate_batch(items[:2], **CALL))
        other.start()
        other.join()
        lab.generate_batch(items[:1], **CALL)
    assert found.work.images == 1


def test_kernels_are_recorded_by_one_thread_at_a_time(lab):
    said: list[str] = []

    def second() -> None:
        try:
            with profile(lab):
                raise AssertionError("never reached")
        except ConfigError as e:
            said.append(str(e))

    with profile(lab, overhead=False):
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert len(said) == 1 and "kernels=False" in said[0]
