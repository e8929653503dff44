"""``%%qvl``: the cell runs as ever, and what it took is shown; nothing stays behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from qvl_lab.probe import stages
from qvl_lab.probe.stages import Recorder, begin, end, listening, stage
from qvl_lab.show import magic
from qvl_lab.show.magic import CellRecorder, Measured, Meter, Summary

MARKS = "from qvl_lab.probe.stages import stage\n"


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    assert stages._listeners == ()
    yield
    assert stages._listeners == ()
    assert [t.name for t in threading.enumerate() if t.name.startswith("qvl-lab")] == []


@pytest.fixture
def shell(monkeypatch):
    """A real IPython that writes no history, with the extension loaded."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # it puts its own there
    InteractiveShell.clear_instance()
    quiet = Config(
        {"HistoryManager": {"enabled": False}, "InteractiveShell": {"colors": "nocolor"}}
    )
    shell = InteractiveShell.instance(config=quiet)
    shell.run_line_magic("load_ext", "qvl_lab")
    yield shell
    InteractiveShell.clear_instance()


@pytest.fixture
def run(shell):
    """Run a cell: its result, what it printed, what it displayed, and both in one text."""

    def run(cell):
        with capture_output() as captured:
            result = shell.run_cell(cell, store_history=True)
        printed = captured.stdout + captured.stderr
        outputs = [output.data for output in captured.outputs]
        table = "\n".join(data["text/plain"] for data in outputs)
        return SimpleNamespace(
            result=result, printed=printed, table=table, outputs=outputs, text=printed + table
        )

    return run


@pytest.fixture(autouse=True)
def no_gpu(request, monkeypatch):
    """As on a machine without one, also where tests before this have used it."""
    if request.node.get_closest_marker("gpu"):
        return
    monkeypatch.setattr(magic, "gpu_name", lambda: None)
    if torch := sys.modules.get("torch"):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


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


# ---- the cell runs as ever ----


def test_the_cell_runs_in_the_users_namespace_and_shows_its_last_value(run, shell):
    run("%%qvl\nx = 20\ndef double(y):\n    return 2 * y")
    done = run("%%qvl\nx += 1\ndouble(x)")
    assert done.result.result == 42
    assert "42" in done.text
    assert shell.user_ns["_"] == 42
    assert shell.user_ns["x"] == 21


@pytest.mark.parametrize("cell", ["x = 3\nx;", "x = 3", "3;", "for i in range(3):\n    i"])
def test_what_shows_no_value_without_the_magic_shows_none_with_it(run, shell, cell):
    assert run(f"%%qvl\n{cell}").result.result is None
    assert run(cell).result.result is None


@pytest.mark.parametrize("how", ["all", "last", "last_expr", "none"])
def test_which_values_are_shown_is_ipythons_setting(run, shell, how):
    shell.ast_node_interactivity = how
    plain, magical = run("1\n2\n3"), run("%%qvl\n1\n2\n3")
    assert (
        plain.text.count("Out[") == magical.text.count("Out[") == {"all": 3, "none": 0}.get(how, 1)
    )


def test_other_magics_and_shell_commands_work_within(run):
    assert "hello" in run("%%qvl\n!echo hello").text
    assert "CPU times" in run("%%qvl\n%time 1").text


def test_an_exception_comes_through_with_the_traceback_of_the_cell_alone(run):
    body = "def f():\n    return 1 / 0\nf()"
    plain, magical = run(body), run(f"%%qvl\n{body}")
    assert type(magical.result.error_in_exec) is ZeroDivisionError

    def shape(text):  # without the numbers: the body is a line further down
        return ["".join(c for c in line if not c.isdigit()) for line in text.splitlines()]

    assert shape(magical.printed) == shape(plain.printed)
    assert "line 3, in f()" in magical.text
    assert "Cell In[2], line 4" in magical.text
    assert "stopped by ZeroDivisionError ·" in magical.table


def test_the_table_of_what_was_done_is_shown_also_for_an_exception(run):
    done = run(
        f"%%qvl\n{MARKS}with stage('a'): pass\nwith stage('b'):\n    raise KeyboardInterrupt"
    )
    assert type(done.result.error_in_exec) is KeyboardInterrupt
    assert [line.split()[0] for line in done.table.splitlines()[1:4]] == ["a", "b", "other"]


def test_an_exception_says_in_which_unfinished_stage_it_came(run):
    done = run(
        "%%qvl --name m\nfrom qvl_lab.probe.stages import begin\n"
        "begin('decode')\nbegin('layers')\nraise KeyboardInterrupt"
    )
    assert "stopped by KeyboardInterrupt in decode/layers" in done.text
    assert "  layers" in done.text


def test_an_exception_reaches_code_that_calls_the_magic(shell):
    with capture_output(), pytest.raises(KeyError):
        shell.run_cell_magic("qvl", "", "{}['k']")


def test_an_exception_that_shows_itself_still_does(run):
    run("class Own(Exception):\n    def _render_traceback_(self):\n        return ['my words']")
    assert "my words" in run("%%qvl\nraise Own").printed


def test_a_body_that_is_no_python_is_not_run_and_nothing_is_shown(run):
    done = run("%%qvl\nx =")
    assert isinstance(done.result.error_in_exec, SyntaxError)
    assert "wall" not in done.text and " s ·" not in done.text


def test_the_rest_of_the_cell_ran_before_a_line_that_cannot_be_compiled(run, shell):
    done = run("%%qvl\nran = True\nreturn 3")
    assert isinstance(done.result.error_in_exec, SyntaxError)
    assert shell.user_ns["ran"]


# ---- options ----


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--gpu A9", "unknown GPU 'A9'"),
        ("--gpu A10G --provider nobody", "unknown provider for A10G 'nobody'"),
        ("--gpu A10G --kind rented", "unknown kind for A10G 'rented'"),
        ("--provider aws", "a price needs a GPU"),
        ("--per-hour -1", "above 0"),
        ("--per-hour much", "invalid float"),
        ("--per-hour 1 --currency yen", "three capital letters"),
        ("--gpu A10G --currency EUR", "no exchange rate"),
        ("--name 3x", "--name must be a variable's name"),
        ("--name class", "--name must be a variable's name"),
        ("--unknown", "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_refused_before_the_cell_runs(run, shell, options, complaint):
    done = run(f"%%qvl {options}\nran = True")
    assert not done.result.success
    assert done.text.startswith("UsageError:")
    assert complaint in done.text
    assert "ran" not in shell.user_ns


def test_help_names_every_option(run):
    text = run("%%qvl?").text
    for option in ("--gpu", "--provider", "--kind", "--per-hour", "--currency", "--name"):
        assert option in text


def test_the_result_is_bound_to_a_name(run, shell):
    run(f"%%qvl --name took --per-hour 36\n{MARKS}with stage('detokenize', tokens=7): pass")
    took = shell.user_ns["took"]
    assert isinstance(took, Measured)
    assert list(took.frame["path"]) == ["detokenize", "other"]
    assert took.new_tokens == 7
    assert took.tokens_per_s == pytest.approx(7 / took.wall_s)
    assert took.cost == pytest.approx(36 / 3600 * took.wall_s)
    assert took.memory_kind == "process memory"
    assert took.peak_memory_bytes > 2**20
    assert took.stopped_by is None


def test_the_price_is_the_named_gpus_or_ones_own_or_this_machines(run, monkeypatch):
    def price_line(options):
        return run(f"%%qvl {options}\n1;").table.splitlines()[-1]

    assert price_line("--gpu A10G --provider article") == (
        "A10G article on demand, 48 CNY/h (undated)"
    )
    assert "1.006 USD/h (2025-11-30), 1 USD = 7.0197 CNY" in price_line("--gpu 'A10G'")
    assert "CNY" not in price_line("--gpu A10G --currency USD")
    assert price_line("--per-hour 5") == "GPU own price on demand, 5 CNY/h (undated)"
    assert "name a GPU, as in --gpu A10G" in price_line("")
    monkeypatch.setattr(magic, "gpu_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(magic.Sampler, "__init__", samplers_of_a_cpu(magic.Sampler.__init__))
    assert price_line("").startswith("L4 ")
    monkeypatch.setattr(magic, "gpu_name", lambda: "NVIDIA B200")
    assert price_line("").startswith("no price of B200 is known")


def samplers_of_a_cpu(init):
    return lambda self, gpu=None, *args, **kwargs: init(self, None, *args, **kwargs)


# ---- what is measured ----


def test_money_is_the_wall_times_share_of_an_hour(clock):
    with Meter(clock) as meter:
        clock.wait(900)
    price = magic.find_price("A10G", "article")
    measured = meter.measured(price)
    assert (measured.wall_s, measured.cost) == (900, 12.0)
    assert "900 s" in repr(measured) and "¥12.0" in repr(measured)
    assert meter.measured(None).cost is None
    assert "¥" not in repr(meter.measured(None))


def test_tokens_come_from_the_detokeniser_wherever_it_is_nested(clock):
    with Meter(clock) as meter:
        for _ in range(2):
            with stage("detokenize", tokens=40):
                clock.wait(1)
        with stage("mine"), stage("detokenize", tokens=20):
            clock.wait(2)
    measured = meter.measured(None)
    assert (measured.new_tokens, measured.tokens_per_s) == (100, 25.0)
    assert "100 new tokens, 25.0 tokens/s" in repr(measured)


def test_without_a_detokeniser_nothing_is_said_of_new_tokens(clock):
    with Meter(clock) as meter, stage("decode", tokens=40):
        clock.wait(1)
    measured = meter.measured(None)
    assert measured.new_tokens is None and measured.tokens_per_s is None
    assert "new tokens" not in repr(measured)
    assert measured.frame.loc[0, "tokens"] == 40


def test_a_stage_that_is_still_open_is_counted_to_the_end_of_the_cell(clock):
    with Meter(clock) as meter:
        begin("left")
        clock.wait(3)
    assert meter.measured(None).frame.loc[0, "seconds"] == 3
    assert "left was still open at the end of the cell" in meter.measured(None).notes


def test_the_cells_recorder_hears_what_a_plain_one_hears(clock, monkeypatch):
    monkeypatch.setattr(magic, "_MOST_SPANS", 3)  # it sums in between
    plain, cells = Recorder(clock=clock), CellRecorder(clock)
    with listening(plain), listening(cells):
        for seconds in range(1, 9):
            with stage("outer", tokens=seconds):
                clock.wait(seconds)
                with stage("inner"):
                    clock.wait(0.5)
    assert cells.finish() is None
    assert cells.sums == stages.totals(plain.spans())


def test_a_long_cell_does_not_hoard_spans(clock, monkeypatch):
    monkeypatch.setattr(magic, "_MOST_SPANS", 10)
    recorder = CellRecorder(clock)
    with listening(recorder):
        for _ in range(100):
            with stage("a"):
                clock.wait(1)
            assert len(recorder._closed) <= 10
    recorder.finish()
    assert (recorder.sums["a"].calls, recorder.sums["a"].seconds) == (100, 100)


@pytest.fixture
def cuda(monkeypatch, clock):
    """A fake torch whose CUDA is not in use yet; work on its stream goes on behind the CPU."""
    cuda = SimpleNamespace(started=False, device=0, peak=0, free_at_s=0.0, synchronised=0)

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
        cuda.synchronised += 1
        clock.now_s = max(clock.now_s, cuda.free_at_s)

    def work(seconds):
        cuda.free_at_s = max(cuda.free_at_s, clock.now_s) + seconds

    def restart(index):
        cuda.peak = 0

    cuda.Event, cuda.synchronize, cuda.work = Event, synchronize, work
    cuda.is_initialized = lambda: cuda.started
    cuda.current_device = lambda: cuda.device
    cuda.device_count = lambda: 1
    cuda.max_memory_allocated = lambda device: cuda.peak
    cuda.reset_peak_memory_stats = restart
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    return cuda


def test_a_gpu_that_the_cell_begins_to_use_is_timed_by_events(clock, cuda):
    with Meter(clock) as meter:
        clock.wait(1)
        cuda.started = True
        with stage("vision", gpu=True):
            cuda.work(3)
            clock.wait(0.25)
        with stage("prefill", gpu=True):
            cuda.work(2)
    measured = meter.measured(None)
    assert list(measured.frame["seconds"]) == [3, 2, 1]
    assert list(measured.frame["cpu_s"])[:2] == [0.25, 0]
    assert measured.wall_s == 6  # until the GPU was done
    assert cuda.synchronised == 1


def test_work_queued_before_the_cell_is_not_the_cells(clock, cuda):
    cuda.started = True
    cuda.work(5)
    with Meter(clock) as meter, stage("vision", gpu=True):
        cuda.work(1)
    assert meter.measured(None).wall_s == 1


def test_stages_on_a_second_gpu_get_cpu_times_and_break_nothing(clock, cuda):
    cuda.started = True
    with Meter(clock) as meter:
        for device in (0, 1, 0):
            cuda.device = device
            with stage(f"on {device}", gpu=True):
                cuda.work(1)
                cuda.synchronize()
    frame = meter.measured(None).frame
    assert dict(zip(frame["path"], frame["seconds"], strict=True)) == {
        "on 0": 2,
        "on 1": 1,
        "other": 0,
    }


def test_peak_memory_survives_others_who_start_a_new_peak(clock, cuda):
    cuda.started, cuda.peak = True, 9 * 2**30  # from before the cell
    with Meter(clock) as meter:
        with stage("prefill", gpu=True):
            cuda.peak = 5 * 2**30
        cuda.reset_peak_memory_stats(0)
        with stage("prefill", gpu=True):
            cuda.peak = 2 * 2**30
    measured = meter.measured(None)
    assert (measured.memory_kind, measured.peak_memory_bytes) == ("allocated VRAM", 5 * 2**30)
    assert "peak allocated VRAM 5.00 GiB" in repr(measured)


def test_a_lost_gpu_does_not_hide_what_lost_it(clock, cuda):
    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered\nand more")

    cuda.started = True
    meter = Meter(clock)
    with pytest.raises(KeyError), meter:
        clock.wait(2)
        cuda.synchronize = lost
        raise KeyError
    measured = meter.measured(None)
    assert measured.wall_s == 2
    assert any("device-side assert triggered" in note for note in measured.notes)
    assert sum("the GPU does not answer" in note for note in measured.notes) == 1


def test_torch_is_not_imported_to_ask_for_a_gpu():
    code = (
        "import sys; from qvl_lab.show.magic import Meter\n"
        "with Meter() as meter: pass\n"
        "meter.measured(None); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- what is shown ----


@pytest.fixture
def summary(clock):
    recorder = CellRecorder(clock)
    with listening(recorder), stage("decode", tokens=1234):
        clock.wait(1)
        with stage("<b>", bytes=2_500_000):
            clock.wait(2)
    recorder.finish()
    return Summary(frame=stages.stage_table(recorder.sums, 4.0), wall_s=4.0, notes=("a < b",))


def test_the_table_as_text(summary):
    assert repr(summary).splitlines() == [
        "stage   calls  seconds  share  CPU s  tokens   MB",
        "decode      1    3.000  75.0%  3.000   1,234",
        "  <b>       1    2.000  50.0%  2.000          2.5",
        "other            1.000  25.0%",
        "4.00 s",
        "a < b",
    ]


def test_the_table_as_html_is_escaped_and_has_the_same_cells(summary):
    html = summary._repr_html_()
    assert "&lt;b&gt;" in html and "a &lt; b" in html and "<b>&" not in html
    for cell in ("decode", "1,234", "75.0%", "2.5", "CPU s"):
        assert f">{cell}</t" in html
    assert html.count("<tr>") == html.count("</tr>") == 4
    assert "75.0%,transparent" in html


def test_without_stages_there_is_no_table(clock):
    with Meter(clock) as meter:
        clock.wait(1)
    measured = meter.measured(None)
    assert repr(measured).startswith("1.00 s")
    assert "<table" not in measured._repr_html_()
    assert "no stage was marked in this process" in measured.notes


def test_a_shell_displays_both_forms(run):
    (shown,) = run(f"%%qvl\n{MARKS}with stage('a'): pass").outputs
    assert shown["text/plain"].startswith("stage")
    assert "<table>" in shown["text/html"]


# ---- with a model ----


def test_a_cell_with_the_embedded_model_shows_what_the_lab_did(run, shell, lab, mixed):
    shell.user_ns |= {"lab": lab, "items": mixed[:3]}
    cell = "lab.generate_batch(items, batch_size=2, resolution=64, max_new_tokens=3)"
    done = run(f"%%qvl --name took\nanswers = {cell}")
    assert done.result.success
    answers, took = shell.user_ns["answers"], shell.user_ns["took"]
    mine = took.frame.set_index("path")
    theirs = answers.stages().set_index("path")
    assert set(mine.index) == set(theirs.index)
    for column in ("calls", "tokens", "bytes"):
        expected = theirs[column].dropna().to_dict()
        assert mine[column].dropna().to_dict() == expected
    assert mine.loc["decode", "seconds"] == pytest.approx(theirs.loc["decode", "seconds"], rel=0.2)
    assert took.new_tokens == 9
    assert took.wall_s >= answers.wall_s


def test_a_second_listener_changes_nothing_for_the_labs_own(run, shell, lab, mixed):
    shell.user_ns |= {"lab": lab, "items": mixed[:2]}
    cell = "answers = lab.generate_batch(items, resolution=64, max_new_tokens=3)"
    run(cell)
    alone = shell.user_ns["answers"]
    run(f"%%qvl\n{cell}")
    heard = shell.user_ns["answers"]
    assert heard.texts == alone.texts
    assert {p: t.calls for p, t in heard.totals.items()} == {
        p: t.calls for p, t in alone.totals.items()
    }


def test_a_stage_begun_before_the_cell_does_not_disturb_it(run):
    begin("outer")
    table = run(f"%%qvl\n{MARKS}with stage('a'): pass").table
    end("outer")
    assert table.splitlines()[1].startswith("a ")


@pytest.mark.gpu
def test_on_a_gpu_stages_are_those_of_the_labs_events_and_memory_is_allocated(run, shell, mixed):
    from qvl_lab.engine.stock import load

    lab = load("random:tiny", precision="fp32", device="cuda")
    shell.user_ns |= {"lab": lab, "items": mixed[:4]}
    cell = "answers = lab.generate_batch(items, batch_size=2, resolution=64, max_new_tokens=8)"
    run(cell)  # warm
    run(f"%%qvl --name took\n{cell}")
    took, answers = shell.user_ns["took"], shell.user_ns["answers"]
    assert took.memory_kind == "allocated VRAM"
    assert took.peak_memory_bytes > 2**20
    mine = took.frame.set_index("path")["seconds"]
    for stage_path, seconds in answers.stages_s.items():
        if stage_path != "other":
            assert mine[stage_path] == pytest.approx(seconds, rel=0.2, abs=0.005)
