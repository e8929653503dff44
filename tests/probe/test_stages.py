"""Stage marks, and how a recorder places them on one clock."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from qvl_lab.probe import stages
from qvl_lab.probe.stages import (
    Recorder,
    Span,
    Total,
    begin,
    end,
    listening,
    outermost,
    stage,
    stage_table,
    totals,
)


@pytest.fixture(autouse=True)
def nobody_is_left_listening():
    assert stages.hearing() == ()
    yield
    assert stages.hearing() == ()


class Marks:
    """A listener that writes down what it hears."""

    def __init__(self):
        self.heard = []

    def begin(self, name, gpu, **amounts):
        self.heard.append(("begin", name, gpu, amounts))

    def end(self, name, gpu, **amounts):
        self.heard.append(("end", name, gpu, amounts))


@pytest.fixture
def recorder(clock):
    return Recorder(clock=clock)


def times(recorder):
    """What a recorder has, as path, start and end."""
    return [(span.path, span.start_s, span.end_s) for span in recorder.spans()]


def test_a_stage_lasts_from_mark_to_mark(recorder, clock):
    with listening(recorder):
        clock.wait(1)
        with stage("decode"):
            clock.wait(2)
        clock.wait(4)
    assert recorder.spans() == [Span("decode", 101.0, 103.0, 101.0, 103.0)]
    assert Span("decode", 101.0, 103.0, 5.0, 5.5).duration_s == 2.0
    assert Span("decode", 101.0, 103.0, 5.0, 5.5).cpu_s == 0.5


def test_nested_stages_are_named_by_their_path_and_keep_their_own_times(recorder, clock):
    with listening(recorder), stage("outer"):
        clock.wait(1)
        with stage("inner"):
            clock.wait(2)
            with stage("inner"):
                clock.wait(3)
        clock.wait(4)
    assert times(recorder) == [
        ("outer/inner/inner", 103.0, 106.0),
        ("outer/inner", 101.0, 106.0),
        ("outer", 100.0, 110.0),
    ]
    assert outermost("outer") and not outermost("outer/inner")


def test_the_end_of_a_stage_drops_what_is_left_open_in_it(recorder, clock):
    with listening(recorder):
        begin("a")
        begin("b")
        clock.wait(1)
        end("a")
        clock.wait(1)
        end("b")
        begin("c")
        end("c")
    assert times(recorder) == [("a", 100.0, 101.0), ("c", 102.0, 102.0)]


def test_amounts_are_said_at_either_end(recorder):
    with listening(recorder):
        with stage("load", bytes=7) as load:
            load.amounts["tokens"] = 3
        begin("b", bytes=1)
        end("b", bytes=2)
    assert [span.amounts for span in recorder.spans()] == [{"bytes": 7, "tokens": 3}, {"bytes": 2}]


def test_an_exception_ends_the_stage_and_passes(recorder, clock):
    with listening(recorder), pytest.raises(KeyError), stage("decode"):
        clock.wait(3)
        raise KeyError
    assert times(recorder) == [("decode", 100.0, 103.0)]


def test_an_exception_removes_the_listener(recorder):
    with pytest.raises(KeyError), listening(recorder):
        raise KeyError
    assert stages.hearing() == ()


def test_nothing_is_kept_when_nobody_listens(recorder, clock):
    with stage("before"):
        clock.wait(1)
    with listening(recorder):
        pass
    begin("after")
    end("after")
    assert recorder.spans() == []


def test_a_stage_that_began_unheard_or_never_ends_is_left_out(recorder, clock):
    begin("early")
    with listening(recorder):
        end("early")
        with stage("whole"):
            clock.wait(1)
        begin("late")
    assert times(recorder) == [("whole", 100.0, 101.0)]
    with listening(recorder):
        end("late")  # its beginning was forgotten with the spans
    assert recorder.spans() == []


def test_spans_are_handed_out_once(recorder, clock):
    with listening(recorder):
        for seconds in (1, 2):
            with stage("decode"):
                clock.wait(seconds)
            assert [span.duration_s for span in recorder.spans()] == [seconds]
    assert recorder.spans() == []


def test_every_listener_hears_every_mark_and_leaves_alone():
    first, second = Marks(), Marks()
    with listening(first):
        with listening(second), stage("a", gpu=True):
            pass
        begin("b")
    assert second.heard == [("begin", "a", True, {}), ("end", "a", True, {})]
    assert first.heard == [*second.heard, ("begin", "b", False, {})]


def test_totals_sum_by_path_in_order_of_appearance():
    spans = [
        Span("b", 0, 1, 0, 0.5, {"tokens": 2}),
        Span("a", 1, 3, 1, 3),
        Span("b", 5, 9, 5, 6, {"tokens": 3}),
    ]
    sums = totals(spans)
    assert list(sums) == ["b", "a"]
    assert sums["b"] == Total(calls=2, seconds=5, cpu_s=1.5, amounts={"tokens": 5})
    assert totals([Span("a", 3, 4, 3, 4)], into=sums) is sums
    assert sums["a"] == Total(calls=2, seconds=3, cpu_s=3)
    assert totals([]) == {}


def test_the_table_sums_to_the_wall_time_and_puts_parts_below_their_stage():
    sums = totals(
        [
            Span("b/x", 1, 2, 1, 2),
            Span("b", 0, 3, 0, 2.5, {"tokens": 6}),
            Span("a", 3, 4, 3, 4, {"bytes": 8}),
        ]
    )
    table = stage_table(sums, wall_s=5.0)
    assert table["path"].tolist() == ["b", "b/x", "a", "other"]
    assert table["seconds"].tolist() == [3, 1, 1, 1]
    assert table["share"].tolist() == [0.6, 0.2, 0.2, 0.2]
    assert table["calls"].tolist()[:3] == [1, 1, 1]
    assert table.at[0, "cpu_s"] == 2.5
    assert (table.at[0, "tokens"], table.at[2, "bytes"]) == (6, 8)
    assert table[["tokens", "bytes"]].isna().sum().tolist() == [3, 3]
    assert stage_table({}, 2.0)["seconds"].tolist() == [2.0]


# ---- GPU stages, on a stream that works after the CPU has queued ----


@pytest.fixture
def stream(monkeypatch, clock):
    """A fake CUDA stream; an event happens when the work queued before it is done."""
    stream = SimpleNamespace(free_at_s=0.0)

    def work(seconds):
        stream.free_at_s = max(stream.free_at_s, clock.now_s) + seconds

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at_s = max(stream.free_at_s, clock.now_s)

        def query(self):
            return self.at_s <= clock.now_s

        def elapsed_time(self, later):
            return 1000 * (later.at_s - self.at_s)  # milliseconds, as CUDA says them

    stream.work = work
    torch = SimpleNamespace(cuda=SimpleNamespace(Event=Event))
    monkeypatch.setitem(sys.modules, "torch", torch)
    return stream


def test_gpu_stages_are_placed_where_the_gpu_worked(clock, stream):
    recorder = Recorder(cuda=True, clock=clock)
    with listening(recorder):
        with stage("preprocess"):
            clock.wait(1)
        with stage("vision", gpu=True):
            stream.work(3)
            clock.wait(0.25)  # queueing is short, the work goes on
        with stage("prefill", gpu=True):
            stream.work(2)
        clock.wait(10)
        with stage("detokenize"):
            clock.wait(1)
    assert times(recorder) == [
        ("preprocess", 100.0, 101.0),
        ("vision", 101.0, 104.0),
        ("prefill", 104.0, 106.0),
        ("detokenize", 111.25, 112.25),
    ]


def test_nested_gpu_stages_hang_on_the_mark_made_first(clock, stream):
    recorder = Recorder(cuda=True, clock=clock)
    with listening(recorder), stage("outer", gpu=True):
        stream.work(3)
        clock.wait(0.25)
        with stage("inner", gpu=True):  # queued at 100.25 s, reached at 103 s
            stream.work(2)
    assert times(recorder) == [("outer/inner", 103.0, 105.0), ("outer", 100.0, 105.0)]


def test_each_reading_of_spans_takes_a_new_anchor(clock, stream):
    recorder = Recorder(cuda=True, clock=clock)
    for start_s in (100.0, 107.0):
        with listening(recorder), stage("vision", gpu=True):
            stream.work(3)
        clock.wait(7)  # the device is idle again
        assert times(recorder) == [("vision", start_s, start_s + 3)]


def test_without_cuda_gpu_stages_take_cpu_times(recorder, clock, stream):
    with listening(recorder), stage("vision", gpu=True):
        stream.work(3)
        clock.wait(1)
    assert times(recorder) == [("vision", 100.0, 101.0)]


def test_the_time_to_queue_gpu_work_is_told_apart(clock, stream):
    recorder = Recorder(cuda=True, clock=clock)
    with listening(recorder), stage("vision", gpu=True):
        stream.work(3)
        clock.wait(0.25)
    (span,) = recorder.spans()
    assert (span.duration_s, span.cpu_s) == (3.0, 0.25)


def test_a_long_recording_reads_its_events_when_the_stream_is_idle(clock, stream, monkeypatch):
    monkeypatch.setattr(stages, "MOST_EVENTS", 2)
    recorder = Recorder(cuda=True, clock=clock)

    def run(name):
        with stage(name, gpu=True):
            stream.work(1)

    with listening(recorder):
        run("a")
        run("b")
        run("c")  # the stream is busy: nothing is read yet
        assert len(recorder._closed) == 3
        clock.wait(10)
        run("d")
        assert [opened.path for opened, _ in recorder._closed] == ["d"]
    assert times(recorder) == [
        ("a", 100.0, 101.0),
        ("b", 101.0, 102.0),
        ("c", 102.0, 103.0),
        ("d", 110.0, 111.0),
    ]
    assert recorder.spans() == []
