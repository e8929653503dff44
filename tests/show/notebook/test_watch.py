"""``ql.watch``: a view of a run that neither disturbs it nor outlives it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import nbformat
import papermill
import pytest
from nbconvert import HTMLExporter

import qvl_lab as ql
from qvl_lab.config import SweepSpec
from qvl_lab.probe import stages
from qvl_lab.probe.stages import begin, stage, stage_table
from qvl_lab.show.notebook import watch as live
from qvl_lab.show.notebook.meter import Summary
from qvl_lab.show.report.render import _own_kernel


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    assert stages.hearing() == ()
    yield
    assert stages.hearing() == ()
    assert [t.name for t in threading.enumerate() if t.name.startswith("qvl-lab")] == []


class View:
    """Keeps what it is shown; ``seen`` is set each time."""

    pause_s = 0.01

    def __init__(self):
        self.shown, self.summary, self.seen = [], None, threading.Event()

    def show(self, summary):
        self.shown.append(summary)
        self.seen.set()

    def finish(self, summary):
        self.summary = summary

    def wait(self, until):
        """Wait to be shown what fits."""
        for _ in range(1000):
            if self.shown and until(self.shown[-1]):
                return self.shown[-1]
            self.seen.clear()
            assert self.seen.wait(10)
        raise AssertionError("it was never shown")


@pytest.fixture
def view(monkeypatch):
    view = View()
    monkeypatch.setattr(live, "_Lines", lambda: view)
    return view


def summary(wall_s=3.0, where=None):
    sums = stages.totals(
        [stages.Span("a", 0, 1, 0, 1), stages.Span("a/b", 0, 1, 0, 1), stages.Span("c", 0, 2, 0, 2)]
    )
    return Summary(frame=stage_table(sums, wall_s), wall_s=wall_s, where=where)


# ---- while it runs ----


def test_the_view_sees_the_run_from_a_thread_and_then_its_summary(view):
    with ql.watch() as watch:
        with stage("vision"):
            view.wait(lambda now: now.where == "vision")
        with stage("detokenize", tokens=3), stage("inner"):
            now = view.wait(lambda now: now.where == "detokenize/inner")
        assert list(now.frame["path"]) == ["vision", "other"]
        assert watch.summary is None
    done = watch.summary
    assert repr(view.summary) == repr(done)
    assert list(done.frame["path"]) == ["vision", "detokenize", "detokenize/inner", "other"]
    assert done.frame["seconds"].drop(2).sum() == pytest.approx(done.wall_s)
    assert now.wall_s < done.wall_s
    assert "3 new tokens" in done.line


def test_an_exception_passes_and_leaves_what_was_done(view):
    with pytest.raises(KeyboardInterrupt), ql.watch() as watch:
        with stage("prefill"):
            pass
        begin("decode")
        raise KeyboardInterrupt
    assert list(watch.summary.frame["path"]) == ["prefill", "other"]


def test_an_error_in_the_display_ends_the_display_and_not_the_run(view, monkeypatch, caplog):
    tries = []

    def show(summary):
        tries.append(summary)
        raise ValueError("no such comm")

    monkeypatch.setattr(view, "show", show)
    with ql.watch() as watch:
        watch._thread.join(10)
        with stage("a"):
            pass
    assert len(tries) == 1
    assert "ValueError: no such comm" in caplog.text
    assert list(view.summary.frame["path"]) == ["a", "other"]


def test_an_error_of_the_last_view_leaves_the_summary_in_the_log(view, monkeypatch, caplog):
    monkeypatch.setattr(view, "finish", lambda summary: 1 / 0)
    with ql.watch() as watch, stage("a"):
        pass
    assert repr(watch.summary) in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_if_the_view_cannot_begin_the_run_does_not_and_nothing_stays(monkeypatch):
    monkeypatch.setattr(live, "_Lines", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), ql.watch():
        raise AssertionError("the block was entered")


# ---- lines on stderr ----


def test_into_a_file_lines_are_written_now_and_then(capsys):
    lines = live._Lines()
    assert lines.pause_s == 10
    lines.show(summary(where="prefill"))
    lines.show(summary(12.0))
    lines.finish(summary(12.0))
    assert capsys.readouterr().err == f"3.00 s · in prefill\n12.0 s\n{summary(12.0)!r}\n"


def test_on_a_terminal_the_line_is_overwritten_and_then_removed(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "12")
    lines = live._Lines()
    lines.show(summary(where="prefill"))
    lines.finish(summary())
    assert terminal.getvalue() == f"\r\033[K3.00 s · in\r\033[K{summary()!r}\n"


# ---- widgets ----


@pytest.fixture
def notebook(monkeypatch):
    """As in a notebook; what is displayed, and what replaces it."""
    notebook = SimpleNamespace(displayed=[], updates=[])
    handle = SimpleNamespace(update=notebook.updates.append)

    def display(widget, display_id):
        assert display_id
        notebook.displayed.append(widget)
        return handle

    monkeypatch.setattr(live, "get_ipython", lambda: SimpleNamespace(kernel="a kernel"))
    monkeypatch.setattr(live, "display", display)
    return notebook


def test_a_notebook_gets_a_bar_for_each_outer_stage(notebook):
    widgets = live._Widgets()
    widgets.show(summary(where="c"))
    widgets.show(summary(4.0, where="c"))
    (box,) = notebook.displayed
    *bars, line = box.children
    assert [bar.description for bar in bars] == ["a 25%", "c 50%", "other 25%"]
    assert [bar.value for bar in bars] == [0.25, 0.5, 0.25]
    assert line.value == "4.00 s · in c"
    widgets.finish(summary())


def models(widget):
    """A widget and all that belongs to it."""
    parts = [widget, widget.layout, getattr(widget, "style", None)]
    inner = [part for child in getattr(widget, "children", ()) for part in models(child)]
    return [part for part in parts if part is not None] + inner


def test_the_widgets_give_way_to_the_table_and_are_closed(notebook, monkeypatch):
    monkeypatch.setattr(live._Widgets, "pause_s", 0.01)
    with ql.watch() as watch:
        (box,) = notebook.displayed
        while len(box.children) < 2:
            time.sleep(0.01)
        parts = models(box)
        assert {type(part).__name__ for part in parts} >= {"VBox", "FloatProgress", "Layout"}
        assert all(part.comm is not None for part in parts)
        assert notebook.updates == []
    assert [repr(shown) for shown in notebook.updates] == [repr(watch.summary)]
    assert all(part.comm is None for part in models(box))


# ---- with a model, and in a notebook without a front end ----


def test_a_run_of_the_embedded_model_is_watched_and_not_changed(view, lab, mixed):
    settings = {"batch_size": 2, "resolution": 64, "max_new_tokens": 3}
    alone = lab.generate_batch(mixed[:3], **settings)
    with ql.watch(lab) as watch:
        watched = lab.generate_batch(mixed[:3], **settings)
    assert watched.texts == alone.texts
    assert watched.totals.keys() == alone.totals.keys()
    mine = watch.summary.frame.set_index("path")
    theirs = watched.stages().set_index("path")
    for column in ("calls", "tokens", "bytes"):
        assert mine[column].dropna().to_dict() == theirs[column].dropna().to_dict()
    assert watch.summary.new_tokens == 9


def test_neither_torch_nor_widgets_are_imported_to_watch():
    code = (
        "import sys, qvl_lab as ql\n"
        "with ql.watch(): pass\n"
        "print('torch' in sys.modules, 'ipywidgets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
    assert "peak process memory" in done.stderr


def test_a_watch_within_another_leaves_its_line_and_not_a_second_table(capsys):
    with ql.watch() as outer:
        with ql.watch() as inner, stage("vision"):
            pass
        shown = capsys.readouterr().err
        assert shown.endswith(f"\n{inner.summary.line}\n")
        assert "calls" not in shown
    assert capsys.readouterr().err.endswith(f"{outer.summary!r}\n")
    assert "vision" in set(inner.summary.frame["path"]) & set(outer.summary.frame["path"])


def test_the_docstring_says_that_a_default_sweep_is_not_seen_and_what_to_do():
    words = " ".join((ql.watch.__doc__ or "").split())
    assert "sees only work in this process" in words
    assert 'isolation="none"' in words
    assert SweepSpec(axes={}, isolation="none")


CELLS = (
    "%load_ext qvl_lab\nimport time, qvl_lab as ql\nfrom qvl_lab.probe.stages import stage",
    "with ql.watch():\n"
    "    with stage('prefill'): time.sleep(0.6)\n"
    "    with stage('decode'): time.sleep(0.6)",
    "%%qvl --per-hour 5 --name took\nwith stage('vision', tokens=4): time.sleep(0.01)\n'a value'",
    "assert took.cost > 0",
    "%%qvl\nwith ql.watch(), stage('decode'): time.sleep(0.1)",
)


@pytest.mark.slow
def test_a_notebook_that_papermill_runs_keeps_tables(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in CELLS])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        str(tmp_path / "in.ipynb"),
        str(tmp_path / "out.ipynb"),
        **_own_kernel(),
        progress_bar=False,
    )
    (watched,) = done.cells[1].outputs
    assert watched.output_type == "display_data"
    assert set(watched.data) == {"text/plain", "text/html"}
    for form in watched.data.values():
        assert "prefill" in form and "decode" in form and "process memory" in form
    value, measured = done.cells[2].outputs
    assert (value.output_type, value.data["text/plain"]) == ("execute_result", "'a value'")
    assert "vision" in measured.data["text/html"] and "¥" in measured.data["text/html"]
    line, table = done.cells[4].outputs  # the watch's, and the magic's
    assert "\n" not in line.data["text/plain"] and "process memory" in line.data["text/plain"]
    assert "text/html" not in line.data
    assert "decode" in table.data["text/html"]
    page, _ = HTMLExporter().from_notebook_node(done)
    assert '<script type="application/vnd.jupyter.widget-view+json"' not in page
    assert page.count("<table") == 3  # of the watch, and of two cells


@pytest.mark.gpu
def test_on_a_gpu_allocated_memory_is_read(view, mixed):
    from qvl_lab.session import load

    lab = load("random:tiny", precision="fp32", device="cuda")
    with ql.watch(lab) as watch:
        lab.generate_batch(mixed[:4], batch_size=2, resolution=64, max_new_tokens=8)
    assert watch.summary.memory == "peak allocated VRAM"
    assert watch.summary.memory_bytes > 2**20
