"""``%%qvl``: the cell runs as ever, and what it took is shown; nothing stays behind."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from qvl_lab.probe import stages

MARKS = "from qvl_lab.probe.stages import stage\n"


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


@pytest.fixture(autouse=True)
def nothing_is_left_behind(shell):
    def left():
        threads = [t.name for t in threading.enumerate() if t.name.startswith("qvl-lab")]
        return stages.hearing(), threads, {e: list(f) for e, f in shell.events.callbacks.items()}

    before = left()
    assert before[:2] == ((), [])
    yield
    assert left() == before


@pytest.fixture(autouse=True)
def no_gpu(request, monkeypatch):
    """As on a machine without one, also where tests before this have used it."""
    if (torch := sys.modules.get("torch")) and not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


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


# ---- the cell runs as ever ----


def test_the_cell_runs_in_the_users_namespace_and_shows_its_last_value(run, shell):
    run("%%qvl\nx = 20\ndef double(y):\n    return 2 * y")
    done = run("%%qvl\nx += 1\ndouble(x)")
    assert done.result.result == 42
    assert "42" in done.text
    assert shell.user_ns["_"] == 42
    assert shell.user_ns["x"] == 21


@pytest.mark.parametrize("cell", ["x = 3\nx;", "x = 3", "3;", "for i in range(3):\n    i"])
def test_what_shows_no_value_without_the_magic_shows_none_with_it(run, cell):
    assert run(f"%%qvl\n{cell}").result.result is None
    assert run(cell).result.result is None


@pytest.mark.parametrize("how", ["all", "last_expr", "none"])
def test_which_values_are_shown_is_ipythons_setting(run, shell, how):
    shell.ast_node_interactivity = how
    count = {"all": 3, "last_expr": 1, "none": 0}[how]
    assert run("1\n2\n3").text.count("Out[") == count
    assert run("%%qvl\n1\n2\n3").text.count("Out[") == count


def test_other_magics_and_shell_commands_work_within_and_around(run):
    assert "hello" in run("%%qvl\n!echo hello").text
    assert "CPU times" in run("%%qvl\n%time 1").text
    for both in (run("%%qvl\n%%time\n20 + 3"), run("%%time\n%%qvl\n20 + 3")):
        assert "CPU times" in both.text and "Out[" in both.text and "23" in both.text
        assert both.table.startswith("      calls")


def test_the_cell_may_await(run):
    done = run(
        "%%qvl --name took\nimport asyncio\nawait asyncio.sleep(0.1)\ntook = 'own'\n'waited'"
    )
    assert done.result.result == "waited"
    assert run("took.wall_s").result.result >= 0.1


def test_an_exception_comes_through_with_the_traceback_of_the_cell_alone(run):
    body = "def f():\n    return 1 / 0\nf()"
    plain, magical = run(body), run(f"%%qvl\n{body}")
    assert type(magical.result.error_in_exec) is ZeroDivisionError

    def shape(text):  # without the numbers: the body is a line further down
        return ["".join(c for c in line if not c.isdigit()) for line in text.splitlines()]

    assert shape(magical.printed) == shape(plain.printed)
    assert "line 3, in f()" in magical.text
    assert "Cell In[2], line 4" in magical.text


def test_the_table_of_what_was_done_is_shown_also_for_an_interrupt(run):
    done = run(
        f"%%qvl\n{MARKS}with stage('a'): pass\nwith stage('b'):\n    raise KeyboardInterrupt"
    )
    assert type(done.result.error_in_exec) is KeyboardInterrupt
    assert [line.split()[0] for line in done.table.splitlines()[1:4]] == ["a", "b", "other"]


@pytest.mark.parametrize("body", ["x =", "return 3"])
def test_a_body_that_is_no_python_fails_as_ever(run, body):
    done = run(f"%%qvl\n{body}")
    assert isinstance(done.result.error_before_exec or done.result.error_in_exec, SyntaxError)


def test_a_cell_within_the_cell_does_not_end_it(run, shell):
    run(f"%%qvl --name took\n{MARKS}get_ipython().run_cell('inner = 1')\nwith stage('after'): pass")
    assert shell.user_ns["inner"] == 1
    assert list(shell.user_ns["took"].frame["path"]) == ["after", "other"]


def test_called_by_name_it_runs_the_cell_and_raises_its_error(shell):
    with capture_output() as captured:
        shell.run_cell_magic("qvl", "", "called = True")
    assert shell.user_ns["called"]
    assert "calls" in captured.outputs[0].data["text/plain"]
    with capture_output(), pytest.raises(KeyError):
        shell.run_cell_magic("qvl", "", "{}['k']")


@pytest.mark.parametrize(
    ("typed", "state"), [("%%qvl\n", "incomplete"), ("%%qvl\nx = 1", "incomplete")]
)
def test_while_it_is_typed_it_is_a_cell_magic(shell, typed, state):
    assert shell.input_transformer_manager.check_complete(typed)[0] == state
    assert shell.input_transformer_manager.check_complete(f"{typed}\n\n")[0] == "complete"


# ---- options ----


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--gpu A9", "unknown GPU 'A9'"),
        ("--gpu A10G --provider nobody", "unknown provider for A10G 'nobody'"),
        ("--provider aws", "a price needs a GPU"),
        ("--per-hour -1", "above 0"),
        ("--per-hour much", "invalid float"),
        ("--per-hour 1 --currency yen", "three capital letters"),
        ("--gpu A10G --currency EUR", "no exchange rate"),
        ("--gpu 'A10G", "No closing quotation"),
        ("--unknown", "unrecognized arguments"),
    ],
)
def test_a_wrong_option_is_refused_before_the_cell_runs(run, shell, options, complaint):
    done = run(f"%%qvl {options}\nran = True")
    assert not done.result.success
    assert done.text.startswith("UsageError:")
    assert complaint in done.text
    assert "ran" not in shell.user_ns


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_shown_in_place_of_running_the_cell(run, shell, option):
    text = run(f"%%qvl {option}\nran = True").text
    assert "--per-hour" in text
    assert "unrecognized" not in text
    assert "ran" not in shell.user_ns


def test_help_names_every_option(run):
    text = run("%%qvl?").text
    for option in ("--gpu", "--provider", "--per-hour", "--currency", "--name"):
        assert option in text


def test_the_result_is_bound_to_a_name(run, shell):
    run(f"%%qvl --name took --per-hour 36\n{MARKS}with stage('detokenize', tokens=7): pass")
    took = shell.user_ns["took"]
    assert list(took.frame["path"]) == ["detokenize", "other"]
    assert took.new_tokens == 7
    assert took.cost == pytest.approx(36 / 3600 * took.wall_s)


def test_the_price_is_the_named_gpus_or_ones_own(run):
    def last_line(options):
        return run(f"%%qvl {options}\n{MARKS}with stage('a'): pass").table.splitlines()[-1]

    assert last_line("--gpu A10G --provider article") == (
        "A10G article on demand, 48 CNY/h (undated)"
    )
    assert last_line("--gpu 'a10g'").endswith("1.006 USD/h (2025-11-30)")
    assert "1.006 USD/h (2025-11-30), 1 USD = 7.0197 CNY" in last_line("--gpu A10G --currency CNY")
    assert last_line("--per-hour 5") == "GPU own price on demand, 5 CNY/h (undated)"
    assert "peak process memory" in last_line("")


def test_without_a_provider_the_range_of_prices_is_said(run):
    cell = f"{MARKS}with stage('a'): pass"
    said = "2 prices of A10G known, 1.006 to 6.838 USD/h"
    assert said in run(f"%%qvl --gpu A10G\n{cell}").table
    assert said not in run(f"%%qvl --gpu A10G --provider aws\n{cell}").table


# ---- what is shown ----


def test_both_forms_are_displayed(run):
    (shown,) = run(f"%%qvl\n{MARKS}with stage('a'): pass").outputs
    assert "peak process memory" in shown["text/plain"]
    assert "<table" in shown["text/html"]


def test_a_cell_with_the_embedded_model_shows_what_the_lab_did(run, shell, lab, mixed):
    shell.user_ns |= {"lab": lab, "items": mixed[:3]}
    cell = "lab.generate_batch(items, batch_size=2, resolution=64, max_new_tokens=3)"
    alone = run(f"answers = {cell}\nanswers").result.result
    assert run(f"%%qvl --name took\nanswers = {cell}").result.success
    answers, took = shell.user_ns["answers"], shell.user_ns["took"]
    assert answers.texts == alone.texts
    mine = took.frame.set_index("path")
    theirs = answers.stages().set_index("path")
    assert set(mine.index) == set(theirs.index) == set(alone.stages()["path"])
    for column in ("calls", "tokens", "bytes"):
        assert mine[column].dropna().to_dict() == theirs[column].dropna().to_dict()
    assert mine.loc["decode", "seconds"] == pytest.approx(theirs.loc["decode", "seconds"], rel=0.2)
    assert took.new_tokens == 9
    assert took.wall_s >= answers.wall_s


@pytest.mark.gpu
def test_on_a_gpu_stages_are_those_of_the_labs_events_and_memory_is_allocated(run, shell, mixed):
    from qvl_lab.session import load

    lab = load("random:tiny", precision="fp32", device="cuda")
    shell.user_ns |= {"lab": lab, "items": mixed[:4]}
    cell = "answers = lab.generate_batch(items, batch_size=2, resolution=64, max_new_tokens=8)"
    run(cell)  # warm
    run(f"%%qvl --name took\n{cell}")
    took, answers = shell.user_ns["took"], shell.user_ns["answers"]
    assert took.memory == "peak allocated VRAM"
    assert took.memory_bytes > 2**20
    mine = took.frame.set_index("path")["seconds"]
    for stage_path, seconds in answers.stages_s.items():
        if stage_path != "other":
            assert mine[stage_path] == pytest.approx(seconds, rel=0.2, abs=0.005)
