"""Operators, kernels and stages, checked against numbers worked out by hand."""

from __future__ import annotations

import subprocess
import sys

import kineto
import numpy as np
import pandas as pd
import pytest
from kineto import Kineto

from qvl_lab.errors import InputError
from qvl_lab.probe.trace import GROUPS, kernels, operators, parse, stages

NS = 2e-9  # Kineto writes nanoseconds, of which a double keeps one or two on a host's clock


def by(table, *keys):
    return table.set_index(list(keys))


@pytest.fixture(scope="module")
def gpu():
    return kineto.generation()


def test_operators_own_the_gpu_work_launched_below_them(gpu):
    table = by(operators(gpu), "name")
    expected = {  # calls, us of CPU, of those itself, us of GPU
        "aten::linear": (1, 100, 20, 100),
        "aten::addmm": (1, 80, 80, 100),
        "aten::layer_norm": (1, 40, 10, 20),
        "aten::native_layer_norm": (1, 30, 30, 20),
        "aten::scaled_dot_product_attention": (1, 80, 20, 100),
        "aten::_flash_attention_forward": (1, 60, 60, 100),
        "aten::copy_": (1, 30, 30, 20),
        "aten::item": (1, 300, 10, 4),
        "aten::_local_scalar_dense": (1, 290, 290, 4),
    }
    assert set(table.index) == set(expected)
    for name, (calls, cpu, own, on_gpu) in expected.items():
        row = table.loc[name]
        assert row["calls"] == calls
        seconds = row[["cpu_s", "self_cpu_s", "gpu_s"]].tolist()
        assert seconds == pytest.approx([cpu / 1e6, own / 1e6, on_gpu / 1e6], abs=NS), name
    assert operators(gpu)["cpu_s"].is_monotonic_decreasing


def test_an_operator_inside_another_of_its_name_counts_once():
    made = Kineto()
    for start, end in ((0, 100), (10, 90), (20, 80)):
        copy = made.op("aten::to", start, end)
    made.op("aten::to", 200, 210)
    made.call("cudaLaunchKernel", 30, 40, 1, copy)
    made.kernel(kineto.ADD, 50, 57, 1, copy)
    row = operators(made.trace()).iloc[0]
    assert row["calls"] == 4
    assert row["cpu_s"] == pytest.approx(110e-6, abs=NS)
    assert row["self_cpu_s"] == pytest.approx(110e-6, abs=NS)  # 20 + 20 + 60 + 10
    assert row["gpu_s"] == pytest.approx(7e-6, abs=NS)


def test_self_times_add_up_to_the_time_in_operators():
    rng = np.random.default_rng(0)
    made = Kineto()

    def fill(start, end, depth):
        cuts = np.sort(rng.uniform(start, end, 6)).round(3)
        for low, high in zip(cuts[::2], cuts[1::2], strict=True):
            made.op(f"aten::op{rng.integers(3)}", low, high, tid=kineto.CPU + depth % 2)
            if depth < 6:
                fill(low, high, depth + 2)

    fill(0, 1e6, 0)
    fill(0, 1e6, 1)
    trace = made.trace()
    outer = parse(trace).operators
    total = sum(_union_s(thread) for _, thread in outer.groupby("thread"))
    assert len(outer) > 100
    assert operators(trace)["self_cpu_s"].sum() == pytest.approx(total, abs=1e-7)


def _union_s(ranges):
    end, total = -1.0, 0.0
    for row in ranges.sort_values("start_s").itertuples():
        total += max(0.0, row.end_s - max(end, row.start_s))
        end = max(end, row.end_s)
    return total


def test_kernels_have_group_stage_and_share_and_gaps_have_rows(gpu):
    table = by(kernels(gpu), "name", "stage")
    expected = {  # group, calls, us, bytes, occupancy
        (kineto.GEMM, "vision"): ("matrix multiply", 1, 100, None, 0.19),
        (kineto.NORM, "vision"): ("norm", 1, 20, None, 0.80),
        (kineto.FLASH, "vision"): ("attention", 1, 100, None, 0.19),
        ("Memcpy HtoD (Pinned -> Device)", "vision"): ("copy", 1, 20, 1_000_000, None),
        (kineto.GEMM, "decode/step"): ("matrix multiply", 1, 100, None, 0.19),
        (kineto.ADD, "decode/step"): ("elementwise", 1, 20, None, 0.19),
        (kineto.NORM, "decode/step"): ("norm", 1, 28, None, 0.19),
        ("Memcpy DtoH (Device -> Pinned)", "decode/step"): ("copy", 1, 4, 8, None),
        (kineto.TRITON, "decode/step"): ("elementwise", 1, 20, None, 0.19),
        ("launch gaps", "vision"): ("gap", 2, 40, None, None),
        ("launch gaps", "decode/step"): ("gap", 4, 648, None, None),
    }
    assert set(table.index) == set(expected)
    for key, (group, calls, us, size, occupancy) in expected.items():
        row = table.loc[key]
        assert (row["group"], row["calls"]) == (group, calls)
        times = row[["gpu_s", "mean_s", "share"]].tolist()
        assert times == pytest.approx([us / 1e6, us / calls / 1e6, us / 1100], abs=1e-5)
        assert row["bytes"] == pytest.approx(size if size else np.nan, nan_ok=True)
        assert row["occupancy"] == pytest.approx(occupancy or np.nan, nan_ok=True)
    assert kernels(gpu)["share"].sum() == pytest.approx(1)
    assert set(kernels(gpu)["group"]) <= set(GROUPS)
    assert kernels(gpu)["gpu_s"].is_monotonic_decreasing


def test_occupancy_is_weighted_by_time_and_bytes_add_up():
    made = Kineto()
    for number, (start, end, percent) in enumerate([(0, 30, 10), (30, 40, 50), (40, 50, "N/A")]):
        made.call("cudaLaunchKernel", start, start + 1, number + 1)
        made.kernel(kineto.ADD, start, end, number + 1, **{"est. achieved occupancy %": percent})
    made.copy("Memset (Device)", 60, 61, 8, 100)
    made.copy("Memset (Device)", 62, 63, 9, 200)
    table = by(kernels(made.trace()), "name")
    assert table.loc[kineto.ADD, "occupancy"] == pytest.approx((30 * 0.1 + 10 * 0.5) / 40)
    assert table.loc["Memset (Device)", "bytes"] == 300
    assert pd.isna(table.loc[kineto.ADD, "stage"])


def test_stages_have_the_work_of_their_innermost_launches(gpu):
    table = by(stages(gpu), "stage")
    assert table.index.tolist() == ["vision", "decode", "decode/step"]
    us = (table[["cpu_s", "gpu_s", "gap_s", "gpu_span_s"]] * 1e6).round(2)
    assert us.loc["vision"].tolist() == [400, 240, 40, 280]
    assert us.loc["decode/step"].tolist() == [890, 172, 648, 550]
    assert us.loc["decode"].tolist()[:3] == [1000, 0, 0]
    assert pd.isna(us.loc["decode", "gpu_span_s"])
    assert table["kernels"].tolist() == [4, 0, 5]
    assert table["calls"].tolist() == [1, 1, 1]
    assert table["gpu_s"].sum() + table["gap_s"].sum() == pytest.approx(1100e-6, abs=NS)


def test_work_whose_launch_is_unknown_belongs_to_the_gpu_side_range_it_runs_in():
    made = Kineto()
    made.gpu_range("stage: outer", 0, 100)
    made.gpu_range("stage: inner", 20, 60)
    for start in (5, 30, 70, 200):
        made.kernel(kineto.ADD, start, start + 10, correlation=start)
    made.kernel(kineto.ADD, 30, 35, correlation=9, stream=8)  # the ranges are on stream 7
    found = parse(made.trace()).work["stage"]
    assert found.fillna("none").tolist() == ["outer", "inner", "outer", "none", "none"]
    table = by(stages(made.trace()), "stage")
    assert table.loc["outer", "kernels"] == 2
    last = stages(made.trace()).iloc[-1]
    assert pd.isna(last["stage"])
    assert (last["kernels"], last["calls"]) == (2, 0)
    assert pd.isna(last["cpu_s"])


def test_a_launch_belongs_to_the_stage_of_its_own_thread():
    made = Kineto()
    made.range("stage: decode", 0, 100, tid=1)
    made.range("stage: preprocess", 0, 100, tid=2)
    made.call("cudaLaunchKernel", 10, 11, 1, tid=2)
    made.kernel(kineto.ADD, 20, 30, 1)
    made.call("cudaLaunchKernel", 40, 41, 2, tid=1)
    made.kernel(kineto.GEMM, 50, 60, 2)
    made.call("cudaLaunchKernel", 70, 71, 3, tid=3)
    made.kernel(kineto.NORM, 80, 90, 3)
    table = by(kernels(made.trace()), "name")["stage"].drop("launch gaps")
    assert table.to_dict() | {kineto.NORM: None} == {
        kineto.ADD: "preprocess",
        kineto.GEMM: "decode",
        kineto.NORM: None,
    }
    assert pd.isna(table[kineto.NORM])


def test_ranges_of_others_are_no_stages(gpu):
    assert "Torch-Compiled Region: 0/0" not in stages(gpu)["stage"].tolist()
    triton = by(kernels(gpu), "name").loc[kineto.TRITON]
    assert triton["stage"] == "decode/step"


def test_without_a_gpu_its_columns_are_unknown():
    trace = kineto.processor()
    full = kineto.generation()
    assert kernels(trace).empty
    assert kernels(trace).columns.tolist() == kernels(full).columns.tolist()
    assert kernels(trace).dtypes.equals(kernels(full).dtypes)
    table = by(operators(trace), "name")
    assert table["gpu_s"].isna().all()
    assert table.loc["aten::linear", ["calls", "cpu_s"]].tolist() == [
        2,
        pytest.approx(70e-6, abs=NS),
    ]
    staged = stages(trace)
    assert staged["stage"].tolist() == ["vision", "decode"]
    assert staged["cpu_s"].tolist() == pytest.approx([100e-6, 100e-6], abs=NS)
    assert staged[["kernels", "gpu_s", "gap_s", "gpu_span_s"]].isna().all(axis=None)


@pytest.mark.parametrize("table", [operators, kernels, stages])
def test_a_trace_without_events_gives_empty_tables_with_all_columns(table):
    empty = table({"traceEvents": []})
    assert empty.empty
    assert empty.columns.tolist() == table(kineto.generation()).columns.tolist()


@pytest.mark.parametrize("table", [operators, kernels, stages])
def test_parsed_events_give_the_same_table(table, gpu):
    pd.testing.assert_frame_equal(table(parse(gpu)), table(gpu))


@pytest.mark.parametrize(
    ("trace", "what"),
    [
        ([], "traceEvents"),
        ({}, "traceEvents"),
        ({"traceEvents": {}}, "traceEvents"),
        ({"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k"}]}, "without name"),
        ({"traceEvents": ["text"]}, "without name"),
    ],
)
def test_what_is_no_trace_is_refused(trace, what):
    with pytest.raises(InputError, match=what):
        kernels(trace)


def test_tables_need_no_torch():
    code = "import sys, qvl_lab.probe.trace; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
