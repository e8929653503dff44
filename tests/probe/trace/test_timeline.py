"""Overlap of CPU and GPU, and the gaps, against hand-made traces and a plain count."""

from __future__ import annotations

import kineto
import numpy as np
import pandas as pd
import pytest
from kineto import Kineto

from qvl_lab.errors import ConfigError
from qvl_lab.probe.trace import gaps, kernels, overlap

NS = 2e-9


@pytest.fixture(scope="module")
def gpu():
    return kineto.generation()


def test_the_wall_time_is_split_by_who_was_busy(gpu):
    table = overlap(gpu)
    assert table["device"].tolist() == ["0"] * 4
    assert table["state"].tolist() == ["GPU and CPU", "GPU only", "CPU only", "neither"]
    assert (table["seconds"] * 1e6).tolist() == pytest.approx([180, 232, 215, 873], abs=0.01)
    assert table["share"].tolist() == pytest.approx([0.12, 232 / 1500, 215 / 1500, 0.582])


def test_overlap_agrees_with_counting_every_microsecond():
    rng = np.random.default_rng(1)
    made = Kineto()
    length = 400
    busy = {key: np.zeros(length, bool) for key in ("cpu1", "cpu2", "wait1", "wait2", "gpu")}
    made.range("stage: all", 0, length)
    for number in range(60):
        start = int(rng.integers(0, length - 10))
        end = start + int(rng.integers(1, 10))
        kind = rng.choice(["op", "wait", "kernel"])
        thread = int(rng.integers(1, 3))
        if kind == "op":
            made.op("aten::add", start, end, tid=thread)
            busy[f"cpu{thread}"][start:end] = True
        elif kind == "wait":
            made.call("cudaEventSynchronize", start, end, 1000 + number, tid=thread)
            busy[f"wait{thread}"][start:end] = True
        else:
            made.kernel(kineto.ADD, start, end, number, stream=int(rng.integers(7, 9)))
            busy["gpu"][start:end] = True
    cpu = (busy["cpu1"] & ~busy["wait1"]) | (busy["cpu2"] & ~busy["wait2"])
    on_gpu = busy["gpu"]
    expected = [(on_gpu & cpu), (on_gpu & ~cpu), (cpu & ~on_gpu), (~cpu & ~on_gpu)]
    assert all(state.any() for state in expected)
    found = (overlap(made.trace())["seconds"] * 1e6).tolist()
    assert found == pytest.approx([state.sum() for state in expected], abs=0.1)


def test_devices_are_told_apart():
    made = Kineto()
    made.kernel(kineto.ADD, 0, 10, 1)
    made.kernel(kineto.ADD, 50, 60, 2)
    made.kernel(kineto.ADD, 20, 50, 3)
    for event in made.events[4:]:
        event["pid"] = 1
    table = overlap(made.trace()).set_index(["device", "state"])["seconds"]
    assert table["0", "GPU only"] == pytest.approx(20e-6, abs=NS)
    assert table["1", "GPU only"] == pytest.approx(30e-6, abs=NS)
    waits = gaps(made.trace())  # the second device's work does not fill the first one's gap
    assert waits["device"].tolist() == ["0"]
    assert waits["seconds"].tolist() == pytest.approx([40e-6], abs=NS)


def test_without_a_gpu_only_the_cpu_is_known_to_be_busy():
    table = overlap(kineto.processor())
    assert table["device"].isna().all()
    assert (table["seconds"] * 1e6).tolist() == pytest.approx([0, 0, 70, 230], abs=0.01)
    assert gaps(kineto.processor()).empty
    assert gaps(kineto.processor()).columns.tolist() == gaps(kineto.generation()).columns.tolist()


def test_a_trace_without_events_has_no_shares():
    table = overlap({"traceEvents": []})
    assert table["seconds"].tolist() == [0, 0, 0, 0]
    assert table["share"].isna().all()


def test_gaps_say_how_long_for_what_and_whether_the_cpu_was_late(gpu):
    table = gaps(gpu)
    us = (table[["start_s", "seconds", "lead_s"]] * 1e6).round(2).to_numpy().tolist()
    assert us == [
        [904, 276, -246],
        [380, 270, -220],
        [800, 100, -10],
        [230, 30, 10],
        [200, 10, 60],
        [750, 2, 150],
    ]
    assert table["cpu"].tolist() == ["late"] * 3 + ["ahead"] * 3
    assert table["stage"].tolist() == ["decode/step"] * 3 + ["vision"] * 2 + ["decode/step"]
    assert table["kernel"].tolist()[:2] == [kineto.TRITON, kineto.GEMM]
    assert table["operator"].fillna("none").tolist() == [
        "aten::_local_scalar_dense",
        "none",  # Python between two stages
        "aten::_local_scalar_dense",
        "aten::_flash_attention_forward",
        "aten::_flash_attention_forward",
        "none",
    ]


def test_the_operator_is_the_one_itself_and_not_what_it_called():
    made = Kineto()
    made.kernel(kineto.ADD, 0, 10, 1)
    made.op("aten::outer", 10, 100)
    made.op("aten::inner", 15, 50)
    made.op("aten::other", 0, 200, tid=99)  # another thread has nothing to do with it
    made.call("cudaLaunchKernel", 90, 95, 2)
    made.kernel(kineto.ADD, 100, 110, 2)
    assert gaps(made.trace())["operator"].tolist() == ["aten::outer"]  # 55 us against 35


def test_streams_of_a_device_fill_each_others_gaps():
    made = Kineto()
    made.kernel(kineto.ADD, 0, 10, 1)
    made.kernel(kineto.GEMM, 5, 40, 2, stream=8)
    made.kernel(kineto.ADD, 20, 30, 3)
    made.kernel(kineto.ADD, 45, 50, 4)
    table = gaps(made.trace())
    assert (table["seconds"] * 1e6).tolist() == pytest.approx([5], abs=0.01)
    assert table[["lead_s", "cpu", "operator", "stage"]].isna().all(axis=None)


def test_gaps_are_limited_to_the_longest(gpu):
    pd.testing.assert_frame_equal(gaps(gpu, limit=2), gaps(gpu).head(2))
    with pytest.raises(ConfigError, match="limit must be 1 or more"):
        gaps(gpu, limit=0)


def test_gaps_and_kernels_agree(gpu):
    table = kernels(gpu)
    in_rows = table.loc[table["group"] == "gap", "gpu_s"].sum()
    assert gaps(gpu)["seconds"].sum() == pytest.approx(in_rows, abs=NS)
