"""Traces from files, whole or cut to a limit."""

from __future__ import annotations

import gzip
import json
import pickle

import kineto
import pytest

from qvl_lab.errors import ConfigError, InputError
from qvl_lab.probe.trace import chrome, kernels, read, reading


@pytest.fixture
def trace():
    return kineto.generation()


@pytest.fixture(params=[64, 2**20], ids=["small chunks", "large chunks"])
def chunk(request, monkeypatch):
    monkeypatch.setattr(reading, "_CHUNK", request.param)


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
@pytest.mark.usefixtures("chunk")
def test_what_was_written_is_read_back(trace, tmp_path, name):
    assert read(chrome(trace, tmp_path / name)) == trace


@pytest.mark.usefixtures("chunk")
def test_the_layout_of_kineto_is_read(trace, tmp_path):
    """Events on lines of their own in the middle of the file, a name after them."""
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(trace, indent=1))
    assert path.read_text().rstrip().endswith('"traceName": "/tmp/trace.json"\n}')
    assert read(path) == trace


def test_names_with_brackets_and_quotes_survive(tmp_path):
    name = 'odd "name", with ] and } and \\ and "traceEvents": [ in it'
    made = kineto.Kineto()
    made.op(name, 0, 1)
    path = chrome(made.trace(), tmp_path / "trace.json")
    assert name in [event["name"] for event in read(path)["traceEvents"]]


def test_over_the_limit_of_events_the_latest_are_left_out_and_said(trace, tmp_path):
    path = chrome(trace, tmp_path / "trace.json")
    total = len(trace["traceEvents"])
    with pytest.warns(UserWarning, match=f"10 of {total} events") as heard:
        cut = read(path, max_events=total - 10)
    kept, whole = cut["traceEvents"], trace["traceEvents"]
    assert [event for event in whole if event in kept] == kept  # in the same order
    dropped = [event for event in whole if event not in kept]
    assert len(dropped) == 10
    assert min(event["ts"] for event in dropped) >= max(event["ts"] for event in kept)
    assert [event for event in kept if event["ph"] == "M"] == whole[:2]
    first = min(event["ts"] for event in whole if event["ph"] != "M")
    assert cut["truncated"]["events"] == 10
    assert cut["truncated"]["from_s"] == (min(e["ts"] for e in dropped) - first) / 1e6
    assert cut["truncated"]["to_s"] == pytest.approx(1503e-6, abs=1e-8)
    assert f"{cut['truncated']['from_s']:.6g}" in str(heard[0].message)
    assert heard[0].filename == __file__


def test_gpu_work_at_the_end_of_the_file_is_not_what_is_cut(tmp_path):
    """Kineto writes all operators before the first kernel."""
    made = kineto.Kineto()
    for start in range(100):
        made.op("aten::add", start, start + 1)
    for start in range(100):
        made.kernel(kineto.ADD, start, start + 1, start)
    path = chrome(made.trace(), tmp_path / "trace.json")
    with pytest.warns(UserWarning, match="events are left out"):
        cut = read(path, max_events=150)
    assert kernels(cut)["calls"].max() == pytest.approx(50, abs=2)


def test_over_the_limit_of_bytes_the_latest_are_left_out(trace, tmp_path):
    path = chrome(trace, tmp_path / "trace.json")
    size = sum(len(json.dumps(event)) for event in trace["traceEvents"])
    with pytest.warns(UserWarning, match="events are left out"):
        cut = read(path, max_bytes=size // 2)
    left = sum(len(json.dumps(event)) for event in cut["traceEvents"])
    assert size // 2 - 1000 < left <= size // 2


@pytest.mark.filterwarnings("error")
def test_a_trace_at_its_limit_is_not_cut(trace, tmp_path):
    path = chrome(trace, tmp_path / "trace.json")
    whole = read(path, max_events=len(trace["traceEvents"]))
    assert "truncated" not in whole


def test_a_cut_trace_says_so_when_it_is_written_again(trace, tmp_path):
    path = chrome(trace, tmp_path / "trace.json")
    with pytest.warns(UserWarning):
        cut = read(path, max_events=20)
    assert read(chrome(cut, tmp_path / "again.json.gz"))["truncated"] == cut["truncated"]


def _zipped(text):
    return gzip.compress(text.encode(), mtime=0)  # names of cases do not change


WHOLE = '{"schemaVersion": 1, "traceEvents": [{"ph": "i", "ts": 1}], "traceName": "x"}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[1, 2]",
        b'{"traceEvents": 3}',
        b'{"traceEvents": [3]}',
        b'{"traceEvents": [{"ph": "X", "ts": "soon"}]}',
        b'{"traceEvents": [{"ph": "X", "ts": 1 "dur": 2}]}',
        WHOLE[:40].encode(),
        WHOLE[:60].encode(),
        WHOLE[:-1].encode(),
        _zipped(WHOLE)[:-12],
        _zipped(WHOLE)[:12] + b"\0\1\2\3" + _zipped(WHOLE)[16:],
        b"\xff\xfe\x00",
        pickle.dumps({"traceEvents": []}),
    ],
)
def test_what_is_no_whole_trace_is_refused(tmp_path, content):
    path = tmp_path / "trace.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"trace\.json is not a whole Chrome trace"):
        read(path)


def test_a_file_that_is_missing_is_said(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read(tmp_path / "trace.json")


@pytest.mark.parametrize("limits", [{"max_events": 0}, {"max_bytes": -1}])
def test_limits_are_at_least_one(tmp_path, limits):
    with pytest.raises(ConfigError, match="must be 1 or more"):
        read(tmp_path / "trace.json", **limits)
