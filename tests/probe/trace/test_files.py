"""Files for TensorBoard and Perfetto; TensorBoard's own reader says what it found in them."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import re

import kineto
import pytest
import torch
from torch_tb_profiler.consts import WORKER_PATTERN
from torch_tb_profiler.profiler.data import RunProfileData
from torch_tb_profiler.profiler.run_generator import RunGenerator

from qvl_lab.errors import ConfigError, InputError
from qvl_lab.probe.stages import stage
from qvl_lab.probe.trace import Recording, chrome, files, tensorboard

# torch-tb-profiler with pandas 3
pytestmark = pytest.mark.filterwarnings("ignore:The copy keyword")


@pytest.fixture
def trace():
    return kineto.generation()


def profile(path, tmp_path):
    """What the plugin shows of a file."""
    data = RunProfileData.parse("w", 1, str(path), str(tmp_path))
    return RunGenerator("w", 1, data).generate_run_profile()


def rows(table):
    names = [column["name"] for column in table["columns"]]
    return [dict(zip(names, row, strict=True)) for row in table["rows"]]


def operator_rows(shown):
    return {row["name"]: row for row in shown.operation_table_by_name["data"]}


def test_operators_and_stages_have_their_device_time(trace, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        shown = profile(tensorboard(trace, tmp_path), tmp_path)
    table = operator_rows(shown)
    expected = {  # own and total us on the device
        "aten::addmm": (100, 100),
        "aten::linear": (0, 100),
        "aten::_flash_attention_forward": (100, 100),
        "aten::scaled_dot_product_attention": (0, 100),
        "stage: vision": (0, 240),
        "stage: decode": (0, 172),
        "stage: decode/step": (148, 172),  # the graph; what operators launched is theirs
        "Torch-Compiled Region: 0/0": (20, 20),
    }
    for name, (own, total) in expected.items():
        row = table[name]
        found = row["device_self_duration"], row["device_total_duration"]
        assert found == pytest.approx((own, total), abs=0.01), name
    assert caplog.text == ""


def test_kernels_have_their_operators(trace, tmp_path):
    shown = profile(tensorboard(trace, tmp_path), tmp_path)
    found = {(row["Name"], row["Operator"]) for row in rows(shown.kernel_op_table["data"])}
    assert found == {
        (kineto.GEMM, "aten::addmm"),
        (kineto.NORM, "aten::native_layer_norm"),
        (kineto.FLASH, "aten::_flash_attention_forward"),
        (kineto.GEMM, "stage: decode/step"),
        (kineto.ADD, "stage: decode/step"),
        (kineto.NORM, "stage: decode/step"),
        (kineto.TRITON, "Torch-Compiled Region: 0/0"),
    }
    views = [view.display_name for view in shown.views]
    assert views == ["Overview", "Operator", "Kernel", "Trace"]


def test_as_torch_writes_it_the_reader_would_lose_operators_or_fail(trace, tmp_path):
    """Why the conversion is there; once this fails the reader has learned, and it can go."""
    path = chrome(trace, tmp_path / "raw.pt.trace.json")
    with pytest.raises(TypeError, match="'str' and 'float'"):  # of "inf" blocks per SM
        profile(path, tmp_path)
    for event in trace["traceEvents"]:
        event.get("args", {}).pop("blocks per SM", None)
    table = operator_rows(profile(chrome(trace, path), tmp_path))
    assert "stage: vision" not in table
    assert all(row["device_total_duration"] == 0 for row in table.values())


def test_the_trace_view_gets_valid_json(trace, tmp_path):
    """The plugin appends its counters to the text of the file, before the last bracket."""
    trace = {**trace, "WARNING": ["a list [after] the events"]}
    path = tensorboard(trace, tmp_path)
    shown = profile(path, tmp_path)
    served = json.loads(
        gzip.decompress(shown.append_gpu_metrics(gzip.decompress(path.read_bytes())))
    )
    assert served["WARNING"] == trace["WARNING"]
    counters = [event for event in served["traceEvents"] if event["ph"] == "C"]
    assert "GPU 0 Utilization" in {event["name"] for event in counters}


def test_a_recording_of_this_cpu_is_shown(tmp_path):
    layer = torch.nn.Linear(8, 8)
    with Recording(shapes=True, modules=True) as recording, stage("prefill"):
        layer(torch.ones(2, 8))
    shown = profile(tensorboard(recording.trace, tmp_path), tmp_path)
    table = operator_rows(shown)
    assert table["stage: prefill"]["calls"] == 1
    assert table["aten::linear"]["host_total_duration"] > 0
    views = [view.display_name for view in shown.views]
    assert views == ["Overview", "Operator", "Trace", "Module"]


def test_a_launch_outside_all_ranges_is_given_to_nobody(tmp_path):
    made = kineto.Kineto()
    made.op("aten::add", 0, 10)
    made.call("cudaLaunchKernel", 50, 60, 1, external=1)  # an id that would be wrong
    made.kernel(kineto.ADD, 70, 80, 1)
    made.kernel(kineto.GEMM, 90, 95, 77)  # and one whose launch was not recorded
    shown = profile(tensorboard(made.trace(), tmp_path), tmp_path)
    assert operator_rows(shown)["aten::add"]["device_total_duration"] == 0


def test_steps_stay_steps_and_only_on_the_cpu(tmp_path):
    made = kineto.Kineto()
    for number, start in ((1, 0), (2, 100)):
        made.range(f"ProfilerStep#{number}", start, start + 90)
        made.op("aten::add", start, start + 20)
        made.call("cudaLaunchKernel", start + 10, start + 15, number)
        made.kernel(kineto.ADD, start + 20, start + 40, number)
        made.gpu_range(f"ProfilerStep#{number}", start + 20, start + 40)
    data = RunProfileData.parse("w", 1, str(tensorboard(made.trace(), tmp_path)), str(tmp_path))
    assert data.steps_names == ["1", "2"]


def test_the_trace_itself_is_not_changed(trace, tmp_path):
    before = copy.deepcopy(trace)
    tensorboard(trace, tmp_path)
    assert trace == before


def test_the_name_is_one_that_tensorboard_finds(trace, tmp_path):
    path = tensorboard(trace, tmp_path / "new" / "folder", worker="bf16_batch-8")
    match = WORKER_PATTERN.match(path.name)
    assert match.group(1) == "bf16_batch-8"
    assert re.fullmatch(r"\.\d{13}", match.group(2))
    assert path.parent == tmp_path / "new" / "folder"
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert WORKER_PATTERN.match(tensorboard(trace, tmp_path).name)


@pytest.mark.parametrize("worker", ["", "a/b", "a.b", "../x", "a b"])
def test_a_worker_that_is_no_file_name_is_refused(trace, tmp_path, worker):
    with pytest.raises(ConfigError, match="cannot be part of a file name"):
        tensorboard(trace, tmp_path, worker=worker)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limits", [{"keep": 0}, {"keep_bytes": 0}])
def test_limits_of_the_folder_are_at_least_one(trace, tmp_path, limits):
    with pytest.raises(ConfigError, match="must be 1 or more"):
        tensorboard(trace, tmp_path, **limits)


def test_files_of_one_millisecond_do_not_replace_each_other(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "time_ns", lambda: 1_790_857_026_123_456_789)
    paths = [tensorboard(trace, tmp_path, worker="w") for _ in range(3)]
    assert [path.name.split(".")[1] for path in paths] == [
        "1790857026123",
        "1790857026124",
        "1790857026125",
    ]


def test_the_newest_files_are_kept_and_others_left_alone(trace, tmp_path):
    others = [
        "notes.txt",
        "host_1.1790857026123456789.pt.trace.json",  # torch's own, in nanoseconds
        "host_1.1790857026123456789.pt.trace.json.gz",
        "host.pt.trace.json.gz",
        "host.1690857026123.pt.trace.json",
    ]
    for name in others:
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.1690857026123.pt.trace.json.gz").mkdir()
    written = [tensorboard(trace, tmp_path, worker=f"w{i}", keep=2) for i in range(4)]
    assert [path.exists() for path in written] == [False, False, True, True]
    assert all((tmp_path / name).exists() for name in others)
    assert (tmp_path / "folder.1690857026123.pt.trace.json.gz").is_dir()


def test_the_folder_is_held_to_a_size_but_the_new_file_stays(trace, tmp_path):
    first = tensorboard(trace, tmp_path, worker="a")
    size = first.stat().st_size
    second = tensorboard(trace, tmp_path, worker="b", keep_bytes=2 * size + 100)
    third = tensorboard(trace, tmp_path, worker="c", keep_bytes=2 * size + 100)
    assert [path.exists() for path in (first, second, third)] == [False, True, True]
    last = tensorboard(trace, tmp_path, worker="d", keep_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == [last.name]


def test_a_file_is_there_whole_or_not_at_all(trace, tmp_path, monkeypatch):
    path = chrome(trace, tmp_path / "trace.json")
    before = path.read_bytes()
    trace["traceEvents"].append({"name": object()})
    with pytest.raises(TypeError):
        chrome(trace, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_perfetto_s_file_is_the_trace_as_it_was(trace, tmp_path):
    plain, zipped = chrome(trace, tmp_path / "t.json"), chrome(trace, tmp_path / "t.json.gz")
    assert json.loads(plain.read_text()) == trace
    assert json.loads(gzip.decompress(zipped.read_bytes())) == trace


def test_what_is_no_trace_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="traceEvents"):
        tensorboard({"events": []}, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
