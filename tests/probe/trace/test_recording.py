"""Recording real work on this CPU, with its stages."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from qvl_lab.errors import ConfigError
from qvl_lab.probe import stages as marks
from qvl_lab.probe.stages import begin, end, stage
from qvl_lab.probe.trace import Ranges, Recording, kernels, operators, overlap, stages


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    assert marks.hearing() == ()
    assert not torch.autograd._profiler_enabled()


def work():
    with stage("vision", gpu=True, tokens=16):
        torch.nn.functional.linear(torch.ones(8, 8), torch.ones(8, 8))
    with stage("decode"):
        for _ in range(2):
            with stage("step"):
                torch.ones(4).softmax(0)


def named(trace, category):
    return [e["name"] for e in trace["traceEvents"] if e.get("cat") == category]


def test_operators_and_stages_of_this_cpu_are_recorded():
    with Recording() as recording:
        work()
    table = operators(recording.trace).set_index("name")
    assert table.loc["aten::linear", "calls"] == 1
    assert table.loc["aten::softmax", "calls"] == 2
    assert (table["self_cpu_s"] <= table["cpu_s"] + 1e-9).all()
    assert (table["cpu_s"] > 0).all()
    staged = stages(recording.trace).set_index("stage")
    assert staged["calls"].to_dict() == {"vision": 1, "decode": 1, "decode/step": 2}
    assert staged.loc["decode", "cpu_s"] > staged.loc["decode/step", "cpu_s"] > 0
    assert kernels(recording.trace).empty
    assert overlap(recording.trace)["share"].sum() == pytest.approx(1)


def test_an_operator_lies_within_its_stage():
    with Recording() as recording:
        work()
    events = {e["name"]: e for e in recording.trace["traceEvents"] if e.get("ph") == "X"}
    inner, outer = events["aten::linear"], events["stage: vision"]
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"]


def test_when_the_work_fails_what_was_recorded_is_kept():
    with pytest.raises(KeyError, match="broken"), Recording() as recording:
        begin("prefill")
        begin("layer")
        torch.ones(3) + 1
        raise KeyError("broken")
    assert "aten::add" in operators(recording.trace)["name"].tolist()
    left_open = [e for e in recording.trace["traceEvents"] if e.get("cat") == "user_annotation"]
    assert [e["name"] for e in left_open] == ["stage: prefill", "stage: prefill/layer"]
    assert not any(e["args"].get("finished") is False for e in left_open)
    assert left_open[0]["dur"] >= left_open[1]["dur"] > 0


def test_ending_a_stage_ends_what_is_open_in_it_and_a_stray_end_nothing():
    with Recording() as recording:
        end("never begun")
        begin("decode")
        begin("step")
        end("decode")
        with stage("after"):
            torch.ones(1)
    names = named(recording.trace, "user_annotation")
    assert names == ["stage: decode", "stage: decode/step", "stage: after"]


def test_the_trace_is_there_only_after_the_block():
    recording = Recording()
    with pytest.raises(ConfigError, match="no trace yet"):
        _ = recording.trace
    with recording, pytest.raises(ConfigError, match="no trace yet"):
        _ = recording.trace
    assert recording.trace["schemaVersion"] == 1


def test_a_recording_can_be_made_again():
    recording = Recording()
    with recording:
        torch.ones(1)
    with recording:
        torch.zeros(1)
        with pytest.raises(ConfigError, match="no trace yet"):  # nor the one before
            _ = recording.trace
    names = operators(recording.trace)["name"].tolist()
    assert "aten::zeros" in names
    assert "aten::ones" not in names


def test_two_recordings_at_a_time_are_refused_and_the_first_goes_on():
    with Recording() as recording:
        with pytest.raises(ConfigError, match="another torch profiler"), Recording():
            pytest.fail("the second one started")
        torch.ones(1)
    assert "aten::ones" in operators(recording.trace)["name"].tolist()


def test_threads_are_recorded_when_asked_for():
    def in_thread():
        with stage("load"):
            torch.zeros(2)

    for all_threads in (False, True):
        with Recording(all_threads=all_threads) as recording, stage("wait"):
            thread = threading.Thread(target=in_thread)
            thread.start()
            thread.join()
        assert ("aten::zeros" in operators(recording.trace)["name"].tolist()) == all_threads
        assert ("load" in stages(recording.trace)["stage"].tolist()) == all_threads


def test_shapes_memory_and_modules_are_noted_when_asked_for():
    layer = torch.nn.Linear(8, 4)
    with Recording(shapes=True, memory=True, modules=True) as recording:
        layer(torch.ones(2, 8))
    events = recording.trace["traceEvents"]
    linear = next(e for e in events if e["name"] == "aten::linear")
    assert linear["args"]["Input Dims"][:2] == [[2, 8], [4, 8]]
    assert any(e["name"] == "[memory]" for e in events)
    assert any(e["name"] == "nn.Module: Linear_0" for e in events)
    with Recording() as recording:
        layer(torch.ones(2, 8))
    assert {e.get("cat") for e in recording.trace["traceEvents"]} == {None, "cpu_op", "Trace"}


def test_a_recording_over_its_limit_is_cut_and_says_so():
    with pytest.warns(UserWarning, match="events are left out"), Recording(max_events=40) as made:
        for _ in range(50):
            torch.ones(1)
    assert len(made.trace["traceEvents"]) == 40
    assert made.trace["truncated"]["events"] > 50


def test_limits_are_checked_before_the_work_is_done():
    with pytest.raises(ConfigError, match="must be 1 or more"):
        Recording(max_events=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="sees no CUDA device"), Recording(device="cuda:0"):
        pytest.fail("it started")
    with pytest.raises(ConfigError, match="nvtx"), Recording(nvtx=True):
        pytest.fail("it started")


def test_nvtx_ranges_follow_the_stages(monkeypatch):
    heard = []
    fake = SimpleNamespace(
        range_start=lambda message: heard.append(message) or len(heard),
        range_end=lambda number: heard.append(number),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.cuda.nvtx", fake)
    monkeypatch.setattr(torch.cuda, "nvtx", fake)
    ranges = Ranges(nvtx=True)
    ranges.begin("decode", True)
    ranges.begin("step", True, tokens=4)
    ranges.end("step", True)
    ranges.close()
    assert heard == ["decode", "decode/step", 2, 1]


@pytest.mark.gpu
def test_kernels_of_this_gpu_belong_to_their_stage():
    matrix = torch.ones(512, 512, device="cuda")
    with Recording(device="cuda") as recording, stage("multiply", gpu=True):
        matrix @ matrix
    table = kernels(recording.trace)
    multiplied = table[table["group"] == "matrix multiply"]
    assert set(multiplied["stage"]) == {"multiply"}  # one kernel, or two where the sum is split
    by_name = operators(recording.trace).set_index("name")
    assert by_name.loc["aten::mm", "gpu_s"] == pytest.approx(multiplied["gpu_s"].sum())
