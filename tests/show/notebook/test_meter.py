"""What a meter measures between start and stop, and how its summary shows itself."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from qvl_lab.analysis.money.prices import find_price
from qvl_lab.probe import stages
from qvl_lab.probe.stages import Recorder, begin, listening, stage, totals
from qvl_lab.show.notebook.meter import Meter, Summary, Tally

GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    assert stages.hearing() == ()
    yield
    assert stages.hearing() == ()
    assert [t.name for t in threading.enumerate() if t.name.startswith("qvl-lab")] == []


@pytest.fixture(autouse=True)
def cuda(monkeypatch, clock):
    """A fake torch whose CUDA is not in use yet; work on its stream goes on behind the CPU."""
    cuda = SimpleNamespace(started=False, device=0, peak=0, free_at_s=0.0)

    class Event:
        def __init__(self, enable_timing):
            self.device = cuda.device

        def record(self):
            self.at_s = max(cuda.free_at_s, clock.now_s)

        def query(self):
            return self.at_s <= clock.now_s

        def elapsed_time(self, later):
            if later.device != self.device:
                raise RuntimeError("CUDA error: invalid resource handle")
            return 1000 * (later.at_s - self.at_s)

    def synchronize():
        clock.now_s = max(clock.now_s, cuda.free_at_s)

    def work(seconds):
        cuda.free_at_s = max(cuda.free_at_s, clock.now_s) + seconds

    def restart(index):
        cuda.peak = 0

    cuda.Event, cuda.synchronize, cuda.work = Event, synchronize, work
    cuda.is_initialized = lambda: cuda.started
    cuda.current_device = lambda: cuda.device
    cuda.device_count = lambda: 1
    cuda.max_memory_allocated = lambda: cuda.peak
    cuda.reset_peak_memory_stats = restart
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


@contextmanager
def metered(clock):
    """A meter that runs during a block."""
    meter = Meter(clock=clock)
    meter.start()
    try:
        yield meter
    finally:
        meter.stop()


def seconds(meter):
    frame = meter.summary().frame
    return dict(zip(frame["path"], frame["seconds"], strict=True))


# ---- what is measured ----


def test_the_sums_are_those_of_a_recorder_and_nothing_is_hoarded(clock):
    recorder, tally = Recorder(clock=clock), Tally(clock)
    with listening(recorder), listening(tally):
        for passed_s in range(1, 9):
            with stage("outer", tokens=passed_s):
                clock.wait(passed_s)
                with stage("inner"):
                    clock.wait(0.5)
                begin("lost")
            assert tally._closed == [] and tally._resolved == []
    assert tally.sums == totals(recorder.spans())
    assert tally.sums["outer"].seconds == 40


def test_while_the_work_goes_on_the_summary_says_where(clock):
    with metered(clock) as meter:
        with stage("a"):
            clock.wait(2)
        with stage("b"), stage("c"):
            clock.wait(1)
            now = meter.summary()
    assert (now.wall_s, now.where, now.memory) == (3, "b/c", "process memory")
    assert "3.00 s · in b/c · process memory" in repr(now)
    assert list(now.frame["path"]) == ["a", "other"]
    done = meter.summary()
    assert (done.where, done.memory) == (None, "peak process memory")
    assert done.memory_bytes > 2**20
    assert list(done.frame["path"]) == ["a", "b", "b/c", "other"]


def test_new_tokens_come_from_the_detokeniser_wherever_it_is_nested(clock):
    with metered(clock) as meter:
        for _ in range(2):
            with stage("detokenize", tokens=40):
                clock.wait(1)
        with stage("mine"), stage("detokenize", tokens=20):
            clock.wait(2)
    assert meter.summary().new_tokens == 100
    assert "100 new tokens, 25.0 tokens/s" in repr(meter.summary())


def test_without_a_detokeniser_nothing_is_said_of_new_tokens(clock):
    with metered(clock) as meter, stage("decode", tokens=40):
        clock.wait(1)
    assert meter.summary().new_tokens is None
    assert "new tokens" not in repr(meter.summary())
    assert meter.summary().frame.loc[0, "tokens"] == 40


def test_money_is_the_wall_times_share_of_an_hour(clock):
    with metered(clock) as meter:
        clock.wait(900)
    priced = meter.summary(find_price("A10G", "article"), ("a note",))
    assert (priced.wall_s, priced.cost) == (900, 12.0)
    assert "900 s" in repr(priced) and "¥12.0" in repr(priced)
    assert priced.notes == ("no stage was marked in this process", "a note")
    assert meter.summary().cost is None
    assert "¥" not in repr(meter.summary())


# ---- on a GPU ----


def test_a_gpu_that_the_work_begins_to_use_is_timed_by_events(clock, cuda):
    with metered(clock) as meter:
        clock.wait(1)
        cuda.started = True
        with stage("vision", gpu=True):
            cuda.work(3)
            clock.wait(0.25)
        with stage("prefill", gpu=True):
            cuda.work(2)
        assert list(seconds(meter)) == ["other"]  # the GPU is not done, and nobody waits for it
    assert seconds(meter) == {"vision": 3, "prefill": 2, "other": 1}
    assert list(meter.summary().frame["cpu_s"])[:2] == [0.25, 0]
    assert meter.summary().wall_s == 6  # until the GPU was done


def test_work_queued_before_is_not_counted(clock, cuda):
    cuda.started = True
    cuda.work(5)
    with metered(clock) as meter, stage("vision", gpu=True):
        cuda.work(1)
    assert meter.summary().wall_s == 1


def test_two_gpus_in_turn_are_each_timed_by_their_own_events(clock, cuda):
    cuda.started = True
    with metered(clock) as meter:
        for device in (0, 1, 0):
            cuda.device = device
            with stage(f"on {device}", gpu=True):
                cuda.work(1)
            with stage("wait"):
                cuda.synchronize()
    assert seconds(meter) == {"on 0": 2, "wait": 3, "on 1": 1, "other": 0}


def test_peak_memory_survives_work_that_starts_a_new_peak(clock, cuda):
    cuda.started, cuda.peak = True, 9 * GIB  # from before
    with metered(clock) as meter:
        with stage("prefill", gpu=True):
            cuda.peak = 5 * GIB
        cuda.reset_peak_memory_stats(0)
        with stage("prefill", gpu=True):
            cuda.peak = 2 * GIB
    assert "peak allocated VRAM 5.00 GiB" in repr(meter.summary())


def test_memory_that_no_stage_covers_counts_too(clock, cuda):
    cuda.started = True
    with metered(clock) as meter:
        cuda.peak = 3 * GIB
    assert "peak allocated VRAM 3.00 GiB" in repr(meter.summary())


def test_a_lost_gpu_does_not_hide_what_lost_it(clock, cuda):
    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered\nand more")

    cuda.started = True
    with pytest.raises(KeyError), metered(clock) as meter:
        clock.wait(2)
        cuda.synchronize = lost
        raise KeyError
    summary = meter.summary()
    assert summary.wall_s == 2
    assert summary.notes[0].endswith("does not answer: CUDA error: device-side assert triggered")


def test_torch_is_not_imported_to_ask_for_a_gpu():
    code = (
        "import sys; from qvl_lab.show.notebook.meter import Meter\n"
        "meter = Meter(); meter.start(); meter.stop()\n"
        "meter.summary(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- how it is shown ----


@pytest.fixture
def summary(clock):
    tally = Tally(clock)
    with listening(tally), stage("decode", tokens=1234):
        clock.wait(1)
        with stage("<b>", bytes=2_500_000):
            clock.wait(2)
    return Summary(frame=stages.stage_table(tally.sums, 4.0), wall_s=4.0, notes=("a < b",))


def test_the_table_as_text(summary):
    rows = [line.split() for line in repr(summary).splitlines()]
    assert rows == [
        ["calls", "seconds", "share", "cpu_s", "tokens", "bytes"],
        ["decode", "1", "3.000", "75.0%", "3.000", "1,234"],
        ["decode/<b>", "1", "2.000", "50.0%", "2.000", "2,500,000"],
        ["other", "1.000", "25.0%"],
        ["4.00", "s"],
        ["a", "<", "b"],
    ]


def test_the_table_as_html_is_escaped_and_has_the_same_cells(summary):
    html = summary._repr_html_()
    assert "decode/&lt;b&gt;" in html and "a &lt; b" in html
    for cell in ("decode", "1,234", "75.0%", "2,500,000", "cpu_s"):
        assert f">{cell}</t" in html


def test_the_line_says_what_is_known_and_no_more():
    frame = stages.stage_table({}, 2.0)
    assert Summary(frame=frame, wall_s=2.0).line == "2.00 s"
    known = Summary(frame=frame, wall_s=2.0, memory_bytes=GIB, gpu_busy=0.5)
    assert known.line == "2.00 s · peak process memory 1.00 GiB · GPU busy 50%"
    unread = Summary(frame=frame, wall_s=2.0, memory_bytes=float("nan"), gpu_busy=float("nan"))
    assert unread.line == "2.00 s"
