"""``ql.watch``: a view of a run that neither disturbs it nor outlives it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import pandas as pd
import papermill
import pytest
from nbconvert import HTMLExporter

import qvl_lab as ql
from qvl_lab.errors import ConfigError
from qvl_lab.probe import stages
from qvl_lab.probe.stages import Recorder, begin, end, listening, stage, totals
from qvl_lab.show import live
from qvl_lab.show.live import Gauge, Heard, Watched
from qvl_lab.show.report import _own_kernel


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    assert stages._listeners == ()
    yield
    assert stages._listeners == ()
    assert [t.name for t in threading.enumerate() if t.name.startswith("qvl-lab")] == []


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s

    def wait(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def heard(clock):
    return Heard(clock)


class View:
    """Keeps what it is shown; ``seen`` is set each time."""

    def __init__(self):
        self.moments, self.summary, self.seen = [], None, threading.Event()

    def show(self, moment):
        self.moments.append(moment)
        self.seen.set()

    def finish(self, summary):
        self.summary = summary

    def wait(self, until=lambda moment: True):
        """Wait for a moment that fits."""
        for _ in range(1000):
            if self.moments and until(self.moments[-1]):
                return self.moments[-1]
            self.seen.clear()
            assert self.seen.wait(10)
        raise AssertionError("it was never shown")


@pytest.fixture
def view(monkeypatch):
    view = View()
    monkeypatch.setattr(live, "Line", lambda: view)
    return view


# ---- what is heard ----


def marked(clock):
    """Some stages, nested, repeated, with amounts, and one that a raise leaves open."""
    for seconds in (1, 2):
        with stage("decode_image", bytes=5):
            clock.wait(seconds)
        begin("prefill", gpu=True, tokens=7)
        clock.wait(1)
        with stage("layers", gpu=True):
            clock.wait(seconds)
            begin("lost")
        end("prefill", gpu=True)
    with stage("detokenize") as out:
        out.amounts["tokens"] = 12


def test_the_sums_are_those_of_a_recorder(heard, clock):
    recorder = Recorder(clock=clock)
    with listening(heard), listening(recorder):
        marked(clock)
    assert heard.finish() is None
    assert heard.sums == totals(recorder.spans())
    assert heard.sums["prefill"].seconds == 5


def test_progress_counts_batches_images_and_tokens(heard, clock):
    assert heard.progress == []
    with listening(heard):
        with stage("decode_image"):  # looks at headers, decodes nothing
            pass
        marked(clock)
    assert heard.progress == ["2 batches", "2 images decoded", "12 new tokens"]


def test_progress_knows_one_from_many(heard, clock):
    with listening(heard), stage("sweep"), stage("prefill"):
        pass
    assert heard.progress == ["1 batch"]


def test_the_running_stage_counts_as_it_runs(heard, clock):
    with listening(heard):
        with stage("a"):
            clock.wait(2)
        assert heard.where is None
        with stage("a"):
            clock.wait(1)
            with stage("b"):
                clock.wait(0.5)
                assert heard.where == "a/b"
                assert heard.seconds == {"a": 3.5}
    assert heard.seconds == {"a": 3.5}
    assert heard.where is None


def test_what_is_open_at_the_end_is_counted_and_named(heard, clock):
    with listening(heard):
        begin("decode")
        clock.wait(1)
        begin("layers")
        clock.wait(2)
        assert heard.finish() == "decode/layers"
        assert heard.where is None
    assert heard.sums["decode"].seconds == 3
    assert heard.sums["decode/layers"].seconds == 2


# ---- the device ----


@pytest.mark.parametrize(
    ("what", "device"),
    [
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("cuda:1", "cuda:1"),
        (SimpleNamespace(spec=SimpleNamespace(device="cuda:0")), "cuda:0"),
    ],
)
def test_a_lab_or_a_device_is_watched(what, device):
    assert live._device(what) == device


def test_a_labs_own_device_is_watched(lab):
    assert live._device(lab) == live._device(lab.loaded.device) == "cpu"


def test_by_default_the_first_gpu_or_the_process_is_watched(monkeypatch):
    monkeypatch.setattr(live, "gpu_name", lambda: None)
    assert live._device(None) == "cpu"
    monkeypatch.setattr(live, "gpu_name", lambda: "NVIDIA L4")
    assert live._device(None) == "cuda"


@pytest.mark.parametrize("what", ["tpu", "cuda:x", 3, object()])
def test_anything_else_is_refused(what):
    with pytest.raises(ConfigError, match="watch a lab, 'cuda', 'cuda:0' or 'cpu', not"):
        ql.watch(what)


@pytest.mark.parametrize("interval_s", [0, -1, float("nan"), float("inf")])
def test_an_interval_is_a_positive_number(interval_s):
    with pytest.raises(ConfigError, match="interval_s"):
        ql.watch("cpu", interval_s=interval_s)


def test_a_gauge_without_a_driver_reads_the_process():
    gauge = Gauge("cpu")
    (value,) = gauge.read().values()
    assert value > 2**20
    assert list(gauge.peaks) == ["memory"]
    assert list(gauge.memory) == [value]
    assert not gauge.busy


def test_a_gauge_reads_the_gpu_and_keeps_the_peaks(monkeypatch):
    samples = iter([(4, 3, 0.5), (9, float("nan"), 1.0), (5, 4, float("nan"))])

    def sample(self):
        device, process, busy = next(samples)
        return {
            "device_memory_bytes": device,
            "process_memory_bytes": process,
            "gpu_utilisation": busy,
        }

    cuda = SimpleNamespace(is_initialized=lambda: True, memory_allocated=lambda device: 2)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(Gauge, "_sample", sample)
    gauge = Gauge("cuda:0")
    gauge._lib = "a driver"
    assert gauge.read() == {"device": 4, "process": 3, "allocated": 2}
    assert gauge.read() == {"device": 9, "allocated": 2}
    gauge.read()
    assert gauge.peaks == {"device": 9, "process": 4, "allocated": 2}
    assert list(gauge.memory) == [4, 9, 5]
    assert list(gauge.busy) == [0.5, 1.0]


def test_memory_in_words():
    gib = 2**30
    assert live._memory({"memory": 3 * gib}) == "process memory 3.00 GiB"
    known = {"device": 9 * gib, "allocated": 2.5 * gib}
    assert live._memory(known) == "VRAM: device 9.00 GiB, allocated 2.50 GiB"
    assert live._memory({}) == "memory unknown"


def test_a_history_is_a_row_of_blocks():
    assert live._history([0.0, 0.5, 1.0], 1.0) == "▁▅█"
    assert live._history([], 1.0) == ""
    assert live._history([0, 0], 0) == ""


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.9, "0:00"), (62, "1:02"), (3599.9, "59:59"), (3661, "1:01:01")]
)
def test_elapsed_time_in_words(seconds, words):
    assert live._clock_time(seconds) == words


# ---- while it runs ----


def test_the_view_sees_the_run_from_a_thread(view):
    main = threading.current_thread()
    with ql.watch("cpu", interval_s=0.01) as watch:
        with stage("decode_image", bytes=1):
            assert view.wait(lambda m: m.where == "decode_image").progress == []
        with stage("prefill"), stage("layers"):
            moment = view.wait(lambda m: m.where == "prefill/layers")
        assert moment.progress == ["1 image decoded"]
        assert set(moment.seconds) == {"decode_image", "prefill"}
        assert "process memory" in moment.device and "█" in moment.device
        moment = view.wait(lambda m: "1 batch" in m.progress)
        assert threading.current_thread() is main
    assert view.summary is watch.summary
    assert moment.elapsed_s < watch.summary.wall_s


def test_the_summary_is_a_table_and_what_is_known(view):
    with ql.watch("cpu") as watch, stage("prefill", tokens=3):
        time.sleep(0.01)
    summary = watch.summary
    assert list(summary.frame["path"]) == ["prefill", "other"]
    assert "cpu_s" not in summary.frame
    assert summary.frame["seconds"].sum() == pytest.approx(summary.wall_s)
    assert summary.stopped_by is None
    assert summary.progress == ("1 batch",)
    text = repr(summary)
    assert "1 batch · peak process memory" in text
    assert "memory is the highest of samples every 0.5 s" in text
    assert "clock" not in text  # no GPU, nothing to say about it
    assert "<table>" in summary._repr_html_()


def test_a_short_run_is_seen_once_at_least(view):
    with ql.watch("cpu", interval_s=60) as watch:
        pass
    assert view.moments
    assert watch.summary.peaks["memory"] > 2**20
    assert "no stage was marked in this process" in watch.summary.notes


def test_an_exception_passes_and_is_named(view):
    with pytest.raises(KeyboardInterrupt), ql.watch("cpu") as watch:
        with stage("prefill"):
            pass
        begin("prefill")
        begin("layers")
        raise KeyboardInterrupt
    assert watch.summary.stopped_by == "KeyboardInterrupt in prefill/layers"
    assert "stopped by KeyboardInterrupt in prefill/layers" in repr(view.summary)
    assert watch.summary.frame.loc[0, "calls"] == 2
    assert watch.summary.progress == ("1 batch",)  # the second has not been done


def test_an_error_in_the_display_ends_the_display_and_not_the_run(view, monkeypatch):
    shown = []

    def show(moment):
        shown.append(moment)
        view.seen.set()
        raise ValueError("no such comm")

    monkeypatch.setattr(view, "show", show)
    with ql.watch("cpu", interval_s=0.01) as watch:
        assert view.seen.wait(10)
        with stage("a"):
            time.sleep(0.05)
    assert len(shown) == 1
    assert "the display stopped: ValueError: no such comm" in watch.summary.notes
    assert watch.summary.frame.loc[0, "path"] == "a"


def test_an_error_of_the_last_view_leaves_the_summary_on_stderr(view, monkeypatch, capsys):
    def finish(summary):
        raise ValueError("gone")

    monkeypatch.setattr(view, "finish", finish)
    with ql.watch("cpu") as watch, stage("a"):
        pass
    written = capsys.readouterr().err
    assert repr(watch.summary) in written
    assert "the display stopped: ValueError: gone" in written


def test_if_the_view_cannot_begin_nothing_stays(monkeypatch):
    def fail():
        raise ImportError("no widgets")

    monkeypatch.setattr(live, "Line", fail)
    with pytest.raises(ImportError), ql.watch("cpu"):
        pass


def test_other_listeners_hear_the_same(view, clock):
    recorder = Recorder(clock=clock)
    with listening(recorder), ql.watch("cpu"), ql.watch("cpu"), stage("a"):
        clock.wait(1)
    assert [(span.path, span.duration_s) for span in recorder.spans()] == [("a", 1)]


# ---- a line on stderr ----


class Terminal(io.StringIO):
    def isatty(self):
        return True


def moment(elapsed_s, where="prefill", device="process memory 1 GiB"):
    return live.Moment(
        elapsed_s=elapsed_s, where=where, seconds={}, progress=["1 batch"], device=device
    )


def summary():
    frame = pd.DataFrame({"path": ["a", "other"], "seconds": [1, 2], "share": [1 / 3, 2 / 3]})
    return Watched(frame=frame, wall_s=3.0, progress=(), peaks={}, stopped_by=None)


def test_into_a_file_a_line_is_written_now_and_then(capsys):
    line = live.Line()
    for elapsed_s in (0, 0.5, 9.9, 10.1, 11, 20.2):
        line.show(moment(elapsed_s))
    lines = capsys.readouterr().err.splitlines()
    assert [text.split()[0] for text in lines] == ["0:00", "0:10", "0:20"]
    assert lines[0] == "0:00 · prefill · 1 batch · process memory 1 GiB"
    line.finish(summary())
    assert capsys.readouterr().err == repr(summary()) + "\n"


def test_on_a_terminal_the_line_is_overwritten_and_then_removed(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "30")
    line = live.Line()
    for elapsed_s in (1, 2):
        line.show(moment(elapsed_s, device="x" * 100))
    assert "\n" not in terminal.getvalue()
    texts = [text for text in terminal.getvalue().split("\r") if text.strip()]
    assert [text[:14] for text in texts] == ["0:01 · prefill", "0:02 · prefill"]
    assert max(len(text.rstrip()) for text in texts) < 30
    line.finish(summary())
    last = terminal.getvalue().split("\r")
    assert not last[-2].strip()
    assert last[-1] == repr(summary()) + "\n"


def test_between_stages_the_line_says_so():
    assert moment(0, where=None).head == "0:00 · … · 1 batch"


# ---- widgets ----


@pytest.fixture
def notebook(monkeypatch):
    """As in a notebook; what is displayed, and what replaces it."""
    monkeypatch.setattr(live, "_in_notebook", lambda: True)
    notebook = SimpleNamespace(displayed=[], updates=[])
    handle = SimpleNamespace(update=notebook.updates.append)

    def display(widget, display_id):
        assert display_id
        notebook.displayed.append(widget)
        return handle

    monkeypatch.setattr(live, "display", display)
    return notebook


def test_a_notebook_gets_a_bar_for_each_stage():
    box = live.Box()
    seconds = {"decode_image": 1.0, "prefill": 3.0}
    box.show(live.Moment(elapsed_s=4, where="prefill", seconds=seconds, progress=[], device="d"))
    head, bars, foot = box._box.children
    assert (head.value, foot.value) == ("0:04 · prefill", "d")
    rows = [row.children for row in bars.children]
    assert [(name.value, bar.value, words.value) for name, bar, words in rows] == [
        ("decode_image", 0.25, "1.0 s, 25%"),
        ("prefill", 0.75, "3.0 s, 75%"),
    ]
    box.show(live.Moment(elapsed_s=8, where=None, seconds={"prefill": 4}, progress=[], device=""))
    assert bars.children[1].children[1].value == 0.5
    assert len(bars.children) == 2


def models(widget):
    """A widget and all that belongs to it."""
    parts = [widget, widget.layout, getattr(widget, "style", None)]
    inner = [part for child in getattr(widget, "children", ()) for part in models(child)]
    return [part for part in parts if part is not None] + inner


def test_the_widgets_give_way_to_the_table_and_are_closed(notebook):
    with ql.watch("cpu", interval_s=0.01) as watch:
        with stage("prefill"):
            time.sleep(0.1)
        (box,) = notebook.displayed
        parts = models(box)
        assert {type(part).__name__ for part in parts} >= {"VBox", "FloatProgress", "Layout"}
        assert all(part.comm is not None for part in parts)
        assert notebook.updates == []
    assert notebook.updates == [watch.summary]
    assert all(part.comm is None for part in models(box))


def test_outside_a_kernel_no_widget_is_made(monkeypatch):
    monkeypatch.setattr(live, "Box", lambda: pytest.fail("there is no notebook"))
    with ql.watch("cpu"):
        pass


# ---- with a model, and in a notebook without a front end ----


def test_a_run_of_the_embedded_model_is_watched_and_not_changed(view, lab, mixed):
    settings = {"batch_size": 2, "resolution": 64, "max_new_tokens": 3}
    alone = lab.generate_batch(mixed[:3], **settings)
    with ql.watch(lab, interval_s=0.01) as watch:
        watched = lab.generate_batch(mixed[:3], **settings)
    assert watched.texts == alone.texts
    assert watched.totals.keys() == alone.totals.keys()
    mine = watch.summary.frame.set_index("path")
    theirs = watched.stages().set_index("path")
    for column in ("calls", "tokens", "bytes"):
        assert mine[column].dropna().to_dict() == theirs[column].dropna().to_dict()
    assert watch.summary.progress == ("2 batches", "3 images decoded", "9 new tokens")


def test_torch_is_not_imported_to_watch():
    code = (
        "import sys, qvl_lab as ql\n"
        "with ql.watch(): pass\n"
        "print('torch' in sys.modules, 'ipywidgets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
    assert "peak" in done.stderr


CELLS = (
    "%load_ext qvl_lab\nimport time, qvl_lab as ql\nfrom qvl_lab.probe.stages import stage",
    "with ql.watch('cpu', interval_s=0.05):\n"
    "    with stage('prefill'): time.sleep(0.3)\n"
    "    with stage('decode'): time.sleep(0.3)",
    "%%qvl --per-hour 5 --name took\nwith stage('vision', tokens=4): time.sleep(0.01)\n'a value'",
    "assert took.cost > 0",
)


def test_a_notebook_that_papermill_runs_keeps_tables(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    with _own_kernel() as kernel:
        done = papermill.execute_notebook(
            str(tmp_path / "in.ipynb"),
            str(tmp_path / "out.ipynb"),
            kernel_name=kernel,
            progress_bar=False,
        )
    (watched,) = done.cells[1].outputs
    assert watched.output_type == "display_data"
    assert set(watched.data) == {"text/plain", "text/html"}
    for form in watched.data.values():
        assert "prefill" in form and "decode" in form and "1 batch" in form
    value, measured = done.cells[2].outputs
    assert (value.output_type, value.data["text/plain"]) == ("execute_result", "'a value'")
    assert "vision" in measured.data["text/html"] and "¥" in measured.data["text/html"]
    page, _ = HTMLExporter().from_notebook_node(done)
    assert '<script type="application/vnd.jupyter.widget-view+json"' not in page
    assert page.count("<table>") == 2


@pytest.mark.gpu
def test_on_a_gpu_memory_of_the_device_and_of_torch_is_read(view, mixed):
    from qvl_lab.engine.stock import load

    lab = load("random:tiny", precision="fp32", device="cuda")
    with ql.watch(lab, interval_s=0.01) as watch:
        lab.generate_batch(mixed[:4], batch_size=2, resolution=64, max_new_tokens=8)
    assert watch.summary.peaks["device"] >= watch.summary.peaks["allocated"] > 2**20
    assert "VRAM: device" in repr(watch.summary)
    assert any("by the CPU's clock" in note for note in watch.summary.notes)
