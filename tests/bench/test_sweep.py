"""Sweeps: every configuration once, resumed after anything, larger ones spared after an OOM."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

import qvl_lab as ql
from qvl_lab.analysis.quality.metrics import METRICS
from qvl_lab.assets import asset
from qvl_lab.bench.executors import per_process as executors
from qvl_lab.bench.planning import closed_by, smallest_first, spec_from
from qvl_lab.bench.sweep import trials_of
from qvl_lab.config import Config
from qvl_lab.errors import ConfigError, ModelError, StoreError, UnknownNameError
from qvl_lab.hardware import fingerprint
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs, Store

GRID: dict[str, Any] = {"batch_size": [1, 2, 4], "resolution": [64, 128]}
ALL = set(itertools.product(GRID["batch_size"], GRID["resolution"]))
Setting = tuple[int, Any]


def setting(run: Run) -> Setting:
    return run.config["batch_size"], run.config["resolution"]


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "runs.jsonl"


@pytest.fixture
def measured(monkeypatch) -> Callable[..., list[Setting]]:
    """Replace measuring by a function from setting to status; returns what gets measured."""

    def replace(status: Callable[[Setting], str] = lambda _: "ok") -> list[Setting]:
        calls: list[Setting] = []

        def measure(trial, get_lab=None):
            run = trial.result("ok")
            calls.append(setting(run))
            found = status(setting(run))
            return trial.result(found, None if found == "ok" else f"made to be {found}")

        monkeypatch.setattr("qvl_lab.bench.measure.measure", measure)
        return calls

    return replace


@pytest.fixture
def sweep(pictures, out) -> Callable[..., Runs]:
    """Sweep the grid over the pictures in this process."""

    def run(**settings: Any) -> Runs:
        settings = GRID | {"workload": str(pictures), "isolation": "none"} | settings
        return ql.sweep(out=out, progress=False, **settings)

    return run


@pytest.fixture
def elsewhere(monkeypatch) -> None:
    """From here on the machine is another one."""
    there = fingerprint() | {"torch": "9.9", "gpu": "NVIDIA Z100"}
    monkeypatch.setattr("qvl_lab.bench.sweep.fingerprint", lambda _: there)
    monkeypatch.setattr("qvl_lab.bench.trial.fingerprint", lambda _: there)


# ---- the grid


def test_every_configuration_is_measured_once_smallest_first(sweep, out, measured):
    calls = measured()
    runs = sweep()
    assert calls == [(1, 64), (2, 64), (4, 64), (1, 128), (2, 128), (4, 128)]
    assert [setting(run) for run in runs] == calls
    assert list(Runs.load(out)) == list(runs)


def test_repeated_values_are_one_configuration(sweep, measured):
    calls = measured()
    sweep(batch_size=[1, 2, 1], resolution=[64, "64"])
    assert calls == [(1, 64), (2, 64)]


def test_models_follow_one_another_so_that_each_is_loaded_once():
    spec = spec_from({"precision": ["fp32", "bf16"], "batch_size": [1, 2], "resolution": [64, 96]})
    order = [c.model.precision for c in smallest_first(spec.configurations())]
    assert order == ["fp32"] * 4 + ["bf16"] * 4


def test_a_grid_can_come_from_toml(tmp_path, pictures, out, measured):
    calls = measured()
    path = tmp_path / "grid.toml"
    path.write_text(
        f'[sweep]\nworkload = "{pictures}"\nisolation = "none"\n[axes]\nbatch_size = [1, 2]\n'
        "[fixed]\nresolution = 96\n"
    )
    ql.sweep(ql.SweepSpec.from_toml(path), out=out, progress=False)
    assert calls == [(1, 96), (2, 96)]


def test_a_real_sweep_measures_the_embedded_model(sweep, out):
    runs = sweep(batch_size=[1, 4], resolution=64, repeats=2, max_new_tokens=2, precision="fp32")
    assert [run.status for run in runs] == ["ok", "ok"]
    for run, batches in zip(runs, (8, 2), strict=True):
        assert [r.answered for r in run.repeats] == [8, 8]
        assert [len(r.batch_s) for r in run.repeats] == [batches] * 2
        assert run.environment == fingerprint()
    assert list(Runs.load(out)) == list(runs)


# ---- resuming


def test_running_it_again_measures_nothing(sweep, out, measured):
    calls = measured()
    first = sweep()
    calls.clear()
    again = sweep()
    assert calls == []
    assert list(again) == list(first)


def test_a_larger_grid_measures_only_what_is_new(sweep, measured):
    calls = measured()
    sweep(batch_size=[1, 2])
    calls.clear()
    runs = sweep()
    assert calls == [(4, 64), (4, 128)]
    assert {setting(run) for run in runs} == ALL


@pytest.mark.parametrize(
    "change",
    [
        {"repeats": 5},
        {"warmup": 2},
        {"items": 6},
        {"question": "Why?"},
        {"seed": 1},
        {"quality": False},
        {"metrics": {"invoice": "anls"}},
    ],
)
def test_another_way_of_measuring_is_not_taken_for_the_same(sweep, measured, change):
    calls = measured()
    sweep()
    calls.clear()
    sweep(**change)
    assert set(calls) == ALL


def test_a_changed_image_is_measured_again(sweep, pictures, measured):
    calls = measured()
    sweep()
    calls.clear()
    (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())
    sweep()
    assert set(calls) == ALL


def test_a_torn_file_is_completed(sweep, out, measured):
    calls = measured()
    sweep()
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:-40])
    calls.clear()
    runs = sweep()
    assert calls == [(4, 64), (1, 128), (2, 128), (4, 128)]
    assert {setting(run) for run in runs} == ALL
    assert out.read_bytes().startswith(b"".join(lines[:2]))


def test_ctrl_c_keeps_what_was_finished(sweep, out, measured):
    def stop(at: Setting) -> str:
        if at == (1, 128):
            raise KeyboardInterrupt
        return "ok"

    measured(stop)
    with pytest.raises(KeyboardInterrupt):
        sweep()
    assert [setting(run) for run in Runs.load(out)] == [(1, 64), (2, 64), (4, 64)]
    calls = measured()
    sweep()
    assert calls == [(1, 128), (2, 128), (4, 128)]


def test_failed_settings_are_measured_again_only_if_asked(sweep, measured):
    measured(lambda at: "error" if at == (2, 64) else "ok")
    sweep()
    calls = measured()
    assert [run.status for run in sweep()].count("error") == 1
    assert calls == []
    runs = sweep(retry_errors=True)
    assert calls == [(2, 64)]
    assert {run.status for run in runs} == {"ok"}


def test_a_setting_whose_worker_died_is_measured_again(sweep, monkeypatch, measured):
    """What killed it may have been the machine; of 'given up' and a failing model nobody knows."""
    reasons = iter(("the worker process died with signal SIGKILL", "given up after 2 s", "boom"))
    monkeypatch.setattr(
        "qvl_lab.bench.measure.measure",
        lambda trial, get_lab=None: trial.result("error", next(reasons)),
    )
    sweep(resolution=64)
    calls = measured()
    assert [run.status for run in sweep(resolution=64)] == ["ok", "error", "error"]
    assert calls == [(1, 64)]
    sweep(resolution=64, retry_errors=True)
    assert calls == [(1, 64), (2, 64), (4, 64)]


def test_a_sweep_says_that_nothing_was_measured_and_how_to_try_again(sweep, measured, caplog):
    measured(lambda at: "error")
    sweep()
    assert "none of the 6 settings could be measured; the first, auto, 64 px, batch 1" in (
        caplog.text
    )
    assert "failed: made to be error" in caplog.text
    assert "earlier" not in caplog.text
    caplog.clear()
    sweep()
    assert "6 settings failed in an earlier sweep and are kept as errors" in caplog.text
    assert "--retry-errors" in caplog.text


@pytest.mark.parametrize(
    ("model", "error"),
    [("tinny", UnknownNameError), ("/no/such/model", ModelError), ("nobody/no-such", ModelError)],
)
def test_an_unknown_model_is_refused_once_before_any_work(sweep, out, measured, model, error):
    calls = measured()
    with pytest.raises(error, match=model):
        sweep(model=["tiny", model])
    assert calls == []
    assert complete_lines(out) == []


def test_models_are_looked_up_only_for_what_is_still_to_measure(sweep, measured, monkeypatch):
    measured()
    looked_up: list[str] = []
    monkeypatch.setattr(
        "qvl_lab.models.load.check_model", lambda spec: looked_up.append(spec.model)
    )
    sweep(model="random:tiny")
    assert looked_up == ["random:tiny"]  # of six settings
    sweep(model="random:tiny")
    assert looked_up == ["random:tiny"]


# ---- scripts


@pytest.mark.slow
def test_a_script_without_a_main_guard_measures_its_settings(pictures, out, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import qvl_lab as ql\n"
        f"print('started')\nruns = ql.sweep(workload={str(pictures)!r}, out={str(out)!r},\n"
        "    model='random:tiny', device='cpu', precision='fp32', batch_size=[1, 2],\n"
        "    resolution=64, max_new_tokens=1, repeats=1, max_repeats=1, min_pass_s=0, warmup=0,\n"
        "    progress=False)\n"
        "print([run.status for run in runs], [run.reason for run in runs])\n"
    )
    found = Path(ql.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(found)},
    )
    assert done.stdout.splitlines() == ["started", "['ok', 'ok'] [None, None]"], done.stderr
    assert [run.status for run in Runs.load(out)] == ["ok", "ok"]


@pytest.mark.parametrize(("on_busy", "tries"), [("wait", 4), ("keep", 2), ("ignore", None)])
def test_who_keeps_what_was_disturbed_waits_for_nobody(pictures, on_busy, tries):
    spec = spec_from({"workload": pictures, "on_busy": on_busy})
    (trial,) = trials_of([Config()], spec, ql.load_workload(pictures))
    assert (trial.gate and trial.gate.tries) == tries
    assert trial.insist == (on_busy == "keep")
    assert on_busy != "keep" or trial.gate.wait_s == 0


# ---- other environments


def test_rows_of_two_gpus_are_each_known_by_their_own(sweep, measured, monkeypatch):
    gpus = {"cuda:0": "NVIDIA A10G", "cuda:1": "NVIDIA H100"}
    here = fingerprint()

    def on(device: str) -> dict[str, Any]:
        return here | {"gpu": gpus[device]}

    monkeypatch.setattr("qvl_lab.bench.trial.fingerprint", on)
    monkeypatch.setattr("qvl_lab.bench.sweep.fingerprint", on)
    calls = measured()
    runs = sweep(device=["cuda:0", "cuda:1"], batch_size=[1], resolution=64)
    assert [run.environment["gpu"] for run in runs] == ["NVIDIA A10G", "NVIDIA H100"]
    calls.clear()
    assert len(sweep(device=["cuda:0", "cuda:1"], batch_size=[1], resolution=64)) == 2
    assert calls == []
    gpus["cuda:1"] = "NVIDIA L4"
    with pytest.raises(StoreError, match="gpu: NVIDIA H100 then, NVIDIA L4 now"):
        sweep(device=["cuda:0", "cuda:1"], batch_size=[1], resolution=64)


def test_rows_of_another_environment_are_refused_with_what_differs(
    sweep, out, measured, elsewhere_after
):
    calls = elsewhere_after()
    before = out.read_bytes()
    with pytest.raises(StoreError) as caught:
        sweep()
    message = str(caught.value)
    assert "torch: 9.9" not in message.split(" then")[0]
    for words in (f"torch: {fingerprint()['torch']} then, 9.9 now", "gpu: ", "NVIDIA Z100 now"):
        assert words in message
    assert "python" not in message
    assert calls == []
    assert out.read_bytes() == before


@pytest.fixture
def elsewhere_after(sweep, measured, request) -> Callable[[], list[Setting]]:
    """Sweep here, then move to another machine; returns what is measured there."""

    def move() -> list[Setting]:
        measured()
        sweep()
        request.getfixturevalue("elsewhere")
        return measured()

    return move


def test_keep_puts_new_rows_beside_those_of_another_environment(sweep, out, elsewhere_after):
    calls = elsewhere_after()
    runs = sweep(on_other_environment="keep")
    assert set(calls) == ALL
    assert {run.environment["torch"] for run in runs} == {"9.9"}
    assert len(runs) == 6
    kept = Runs.load(out)
    assert len(kept) == 12
    assert kept.frame()["environment"].nunique() == 2


def test_fresh_moves_the_rows_of_another_environment_aside(sweep, out, elsewhere_after):
    before_calls = elsewhere_after()
    before = out.read_bytes()
    sweep(on_other_environment="fresh")
    assert set(before_calls) == ALL
    assert out.with_name("runs.1.jsonl").read_bytes() == before
    assert {run.environment["torch"] for run in Runs.load(out)} == {"9.9"}


def test_an_unknown_choice_is_named(sweep):
    with pytest.raises(UnknownNameError, match=r"'refus'. Did you mean 'refuse'"):
        sweep(on_other_environment="refus")


# ---- out of memory


def test_out_of_memory_closes_off_larger_settings_and_no_smaller_ones(sweep, out, measured):
    calls = measured(lambda at: "oom" if at[0] * at[1] ** 2 >= 2 * 128**2 else "ok")
    runs = sweep(batch_size=[1, 2, 4, 8], resolution=[64, 128, 256])
    status = {setting(run): run.status for run in runs}
    assert status == {
        (1, 64): "ok",
        (2, 64): "ok",
        (4, 64): "ok",
        (8, 64): "oom",
        (1, 128): "ok",
        (2, 128): "oom",
        (4, 128): "skipped",
        (8, 128): "skipped",
        (1, 256): "oom",
        (2, 256): "skipped",
        (4, 256): "skipped",
        (8, 256): "skipped",
    }
    assert [at for at in status if status[at] != "skipped"] == calls
    skipped = [run for run in runs if run.status == "skipped"]
    assert all("a smaller setting ran out of memory" in run.reason for run in skipped)
    assert "batch 2" in next(r.reason for r in skipped if setting(r) == (4, 128))
    calls.clear()
    assert [run.status for run in sweep(batch_size=[1, 2, 4, 8], resolution=[64, 128, 256])] == [
        run.status for run in runs
    ]
    assert calls == []


def test_an_earlier_out_of_memory_spares_a_larger_grid(sweep, measured):
    calls = measured(lambda at: "oom" if at[0] == 4 else "ok")
    sweep(resolution=64)
    calls.clear()
    sweep(batch_size=[2, 4, 8], resolution=[64, 128])
    assert calls == [(2, 128)]


@pytest.mark.parametrize(
    ("change", "closed"),
    [
        ({}, True),
        ({"batch_size": 8}, True),
        ({"resolution": 512}, True),
        ({"resolution": "native"}, True),
        ({"max_new_tokens": 128}, True),
        ({"batch_size": 2}, False),
        ({"resolution": 128}, False),
        ({"max_new_tokens": 8}, False),
        ({"batch_size": 64, "max_new_tokens": 8}, False),
        ({"resolution": "by_task"}, False),
        ({"precision": "bf16"}, False),
        ({"memory_limit_gib": 1.0}, False),
        ({"cache_implementation": "static"}, False),
        ({"model": "random:2b"}, False),
    ],
)
def test_only_settings_at_least_as_large_in_all_are_closed_off(on_cpu, change, closed):
    fixed: dict[str, Any] = {"batch_size": 4, "resolution": 256, "max_new_tokens": 64}
    oom = on_cpu(status="oom", **fixed)
    config = Config().replace(**fixed | {"precision": "fp32"} | change)
    assert (closed_by(config, [oom]) is oom) is closed


# ---- refused before any work


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": [1, 9]}, "batch_size 9 is more than the 8 timed items"),
        ({"items": 3}, "batch_size 4 is more than the 3 timed items"),
        ({"batch_sizes": [1]}, "Did you mean 'batch_size'"),
        ({"batch_size": []}, "needs a list of values"),
        ({"batch_size": [0]}, "batch_size must be a whole number"),
        ({"precision": ["fp31"]}, "Did you mean 'fp32'"),
        ({"repeats": 0}, "repeats must be"),
        ({"isolation": "thread"}, "unknown isolation"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(sweep, out, measured, change, words):
    calls = measured()
    with pytest.raises(ConfigError, match=words):
        sweep(**change)
    assert calls == []
    assert not out.exists()


def test_an_unknown_task_under_by_task_is_refused_before_any_work(
    tmp_path, pictures, out, measured
):
    calls = measured()
    table = tmp_path / "items.csv"
    table.write_text(f"image,task\n{pictures}/0.png,description\n{pictures}/1.png,descripton\n")
    with pytest.raises(UnknownNameError, match=r"'descripton'. Did you mean 'description'"):
        ql.sweep(
            workload=str(table), resolution="by_task", batch_size=[1], out=out, isolation="none"
        )
    assert calls == []
    assert not out.exists()


@pytest.fixture
def invoices(tmp_path, pictures) -> str:
    """Eight questions of a task that no metric is known for."""
    table = tmp_path / "items.csv"
    rows = [f"{pictures}/{i}.png,What is the total?,{i}.50,invoice" for i in range(8)]
    table.write_text("\n".join(["image,question,answer,task", *rows]))
    return str(table)


def test_a_task_that_cannot_be_scored_is_refused_before_any_work(sweep, invoices, out, measured):
    calls = measured()
    with pytest.raises(ConfigError) as caught:
        sweep(workload=invoices)
    message = str(caught.value)
    assert "nothing says how answers of task 'invoice' are scored" in message
    assert all(name in message for name in METRICS)
    assert 'metrics={"invoice": "anls"}' in message
    assert "quality=False (--no-quality)" in message
    assert calls == []
    assert not out.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": {"Invoice": "anls"}},
        {"quality": False},
        {"model": "random:tiny"},
    ],
    ids=str,
)
def test_with_a_metric_or_without_scoring_such_a_task_is_measured(
    sweep, invoices, measured, change
):
    calls = measured()
    runs = sweep(workload=invoices, **change)
    assert set(calls) == ALL
    assert runs[0].plan["quality"] is change.get("quality", True)
    assert runs[0].plan["metrics"] == change.get("metrics", {})


@pytest.mark.parametrize("model", ["tiny", "random:tiny"])
def test_an_unknown_metric_is_refused_before_any_work(sweep, invoices, out, measured, model):
    calls = measured()
    with pytest.raises(ConfigError, match=r"unknown metric 'anlss'. Did you mean 'anls'"):
        sweep(workload=invoices, model=model, metrics={"invoice": "anlss"})
    assert calls == []
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_function_of_ones_own_scores_answers_wherever_they_are_measured(
    sweep, invoices, isolation
):
    asked = []

    def halves(answer: str, expected: str) -> float:
        asked.append((answer, expected))
        return 0.5

    only = {"batch_size": 2, "resolution": 64, "repeats": 1, "warmup": 0, "precision": "fp32"}
    options = only | {"workload": invoices, "model": "tiny", "isolation": isolation}
    runs = sweep(**options, metrics={"Invoice": halves})
    (row,) = runs.frame().to_dict("records")
    assert (row["status"], row["quality"], row["quality_invoice"]) == ("ok", 0.5, 0.5)
    answers = runs.answers()
    assert asked[-8:] == list(zip(answers["answer"], answers["expected"], strict=True))
    assert runs[0].scores["invoice"]["metric"] == "halves"
    assert runs[0].plan["metrics"]["Invoice"].startswith("halves@")
    before = len(asked)
    assert sweep(**options, metrics={"Invoice": halves})[0].key == runs[0].key
    assert len(asked) == before + 8  # the check of the true answers; nothing was measured again
    other = sweep(**options, metrics={"Invoice": lambda answer, expected: 1.0})
    assert (other[0].scores["invoice"]["values"], len(other)) == ([1.0] * 8, 1)


def test_a_function_that_gives_nonsense_is_refused_before_any_work(sweep, invoices, measured):
    calls = measured()
    with pytest.raises(ConfigError, match=r"gave None; a score is a number from 0 to 1"):
        sweep(workload=invoices, model="tiny", metrics={"invoice": lambda answer, expected: None})
    with pytest.raises(ConfigError, match="a metric is a name or a function, not 5"):
        sweep(workload=invoices, metrics={"invoice": 5})
    assert calls == []


def test_a_function_that_fails_on_a_real_answer_makes_an_error_and_keeps_the_answers(
    sweep, invoices
):
    def strict(answer: str, expected: str) -> float:
        return float(answer == expected) if answer == expected else 2.0

    only = {"batch_size": 8, "resolution": 64, "repeats": 1, "warmup": 0, "precision": "fp32"}
    runs = sweep(**only, workload=invoices, model="tiny", metrics={"invoice": strict})
    assert runs[0].status == "error"
    assert "gave 2.0; a score is a number from 0 to 1" in runs[0].reason
    assert len(runs.answers()) == 8


def test_an_expected_answer_without_a_box_is_refused_for_a_task_of_boxes(
    sweep, tmp_path, pictures, measured
):
    calls = measured()
    table = tmp_path / "items.csv"
    table.write_text(f"image,answer,task\n{pictures}/0.png,top left,locate\n")
    with pytest.raises(ConfigError, match=r"task 'locate': no box can be read.*'top left'"):
        sweep(workload=str(table), batch_size=[1])
    assert calls == []


def test_answers_survive_resuming(sweep, out, monkeypatch):
    def measure(trial, get_lab=None):
        values = {"metric": "exact_match", "values": [1.0, 0.0], "unparsed": 0}
        item = {"task": "read", "question": "?", "expected": "1"}
        rows = [{"id": name, **item, "answer": name} for name in "12"]
        return trial.result("ok", scores={"read": values}, answers=rows)

    monkeypatch.setattr("qvl_lab.bench.measure.measure", measure)
    first = sweep(batch_size=[1], resolution=64)
    assert first[0].answers == []
    assert first[0].scores["read"]["values"] == [1.0, 0.0]
    assert first.answers()["answer"].tolist() == ["1", "2"]
    beside = out.with_name("runs.answers.jsonl")
    before = beside.read_bytes()
    again = sweep(batch_size=[1], resolution=64)
    assert beside.read_bytes() == before
    assert again.answers().equals(first.answers())
    more = sweep(batch_size=[1, 2], resolution=64)
    assert len(more.answers()) == 4
    assert len(sweep(batch_size=[2], resolution=64).answers()) == 2


def test_a_spec_and_settings_together_are_refused(out):
    with pytest.raises(ConfigError, match="not both: repeats"):
        ql.sweep(ql.SweepSpec(axes={}), out=out, repeats=2)


# ---- killed

SETTINGS = {"batch_size": [1, 2, 4, 8], "resolution": [64, 96]}
OPTIONS: dict[str, Any] = {"precision": "fp32", "max_new_tokens": 2, "repeats": 2}
#: What ``quick_sweeps`` cannot reach in a process of its own.
SHORT: dict[str, Any] = {"min_pass_s": 0.0, "max_repeats": 2}


@pytest.fixture
def start_command(pictures, out) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a sweep of eight settings, as a command in a process group of its own.

    Without git on its path the fingerprint has no commit, which may change under a test's feet.
    """
    started: list[subprocess.Popen[str]] = []

    def start(repeats: int = 2) -> subprocess.Popen[str]:
        command = f"sweep --workload {pictures} --batch-size 1,2,4,8 --resolution 64,96 --out {out}"
        command += f" --precision fp32 --max-new-tokens 2 --repeats {repeats} --quiet"
        process = subprocess.Popen(
            [sys.executable, "-m", "qvl_lab", *command.split()],
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PATH": str(out.parent)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def sweep_all(pictures: str, out: str) -> None:
    """The same sweep in a forked process, with forked workers: nothing has to be imported."""
    fork = multiprocessing.get_context("fork")
    executors.multiprocessing.get_context = lambda _: fork
    fork.set_forkserver_preload = lambda _: None
    ql.sweep(workload=pictures, out=out, progress=False, **SETTINGS, **OPTIONS, **SHORT)


def start_forked(pictures: Path, out: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qvl_lab.bench.executors.preload"])
    process = context.Process(target=sweep_all, args=(str(pictures), str(out)))
    process.start()
    return process


def complete_lines(out: Path) -> list[bytes]:
    data = out.read_bytes() if out.exists() else b""
    return [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def kill_alone(pid: int) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Kill a process but nothing below it; returns its children and theirs, who have to notice."""
    process = psutil.Process(pid)
    process.suspend()
    children, below = process.children(), process.children(recursive=True)
    process.kill()
    return children, [p for p in below if p not in children]


def gone(processes: list[psutil.Process]) -> bool:
    return all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in processes)


def assert_complete(out: Path, kept: list[bytes]) -> None:
    """Every configuration is there once in each round, and the rows that were kept still are."""
    lines = complete_lines(out)
    assert lines[: len(kept)] == kept
    rows = [Run.from_json(line) for line in lines]
    turns = [(*setting(run), repeat.round) for run in rows for repeat in run.repeats]
    assert sorted(turns) == sorted(itertools.product(*SETTINGS.values(), (0, 1)))
    assert {run.status for run in rows} == {"ok"}


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_loses_no_row_and_repeats_none(pictures, out):
    chance = random.Random(1)
    for more_rows in (0, 1, 1):
        kept = complete_lines(out)
        process = start_forked(pictures, out)
        wanted = len(kept) + more_rows
        wait_for(lambda: len(complete_lines(out)) >= wanted, 60, "no row in a minute")  # noqa: B023
        time.sleep(chance.uniform(0.1, 0.9))
        workers, _ = kill_alone(process.pid)
        process.join()
        assert complete_lines(out)[: len(kept)] == kept, "a finished row was lost"
        wait_for(lambda: gone(workers), 10, "a worker goes on")  # noqa: B023
    kept = complete_lines(out)
    assert 2 <= len(kept) < 16
    process = start_forked(pictures, out)
    process.join(60)
    assert process.exitcode == 0
    assert_complete(out, kept)


@pytest.mark.slow
def test_no_worker_of_a_killed_command_goes_on(start_command, out):
    process = start_command(repeats=1000)  # minutes for each setting
    watched = psutil.Process(process.pid)

    def measuring() -> bool:
        below = set(watched.children(recursive=True)) - set(watched.children())
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):  # helpers of imports come and go
                if process.cpu_times().user > 0.5:
                    return True
        return False

    wait_for(measuring, 60, "no worker in a minute")
    _, workers = kill_alone(process.pid)
    process.wait()
    with Store(out):  # the lock is free at once
        pass
    assert len(workers) == 1
    wait_for(lambda: gone(workers), 5, "a worker goes on")


@pytest.mark.full
def test_ctrl_c_on_the_command_exits_130_and_says_how_to_go_on(start_command, out):
    process = start_command()
    wait_for(lambda: complete_lines(out), 60, "no row in a minute")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr
    assert 1 <= len(Runs.load(out)) < 8
    assert Runs.load(out).notes == []


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_command_killed_twenty_times_at_random_ends_complete(start_command, out):
    chance = random.Random()
    for kill in range(20):
        kept = complete_lines(out)
        process = start_command()
        if kill % 4 == 0:  # some while a setting is measured, or its row written
            wanted = min(8, len(kept) + 1)
            wait_for(lambda: len(complete_lines(out)) >= wanted, 90, "no row")  # noqa: B023
        delay_s = chance.uniform(0, 8)
        time.sleep(delay_s)
        _, workers = kill_alone(process.pid) if process.poll() is None else ([], [])
        process.wait()
        assert complete_lines(out)[: len(kept)] == kept, f"a row was lost after {delay_s} s"
        with Store(out):
            pass
        wait_for(lambda: gone(workers), 30, "a worker goes on")  # noqa: B023
    kept = complete_lines(out)
    process = start_command()
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "8 settings" in stdout
    assert_complete(out, kept)


def test_an_oom_of_another_workload_closes_nothing_off(measured, sweep, tmp_path, pictures):
    measured(lambda setting: "oom")
    sweep(batch_size=[1], resolution=[64])
    calls = measured()
    sweep(batch_size=[1, 2], resolution=[64], question="another one")
    assert calls == [(1, 64), (2, 64)]


def test_a_skipped_row_has_the_precision_of_the_row_that_closed_it_off(monkeypatch, sweep):
    def measure(trial, get_lab=None):
        return trial.result("oom", "made to be", resolved={"device": "cuda", "precision": "bf16"})

    monkeypatch.setattr("qvl_lab.bench.measure.measure", measure)
    runs = sweep(precision="auto", batch_size=[1, 2], resolution=[64])
    assert [run.status for run in runs] == ["oom", "skipped"]
    assert runs.frame()[["device", "precision"]].drop_duplicates().to_numpy().tolist() == [
        ["cuda", "bf16"]
    ]


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_sweep_shows_no_bar_of_the_weights_being_loaded(sweep, capfd, isolation):
    only = {"batch_size": 1, "resolution": 64, "repeats": 1, "isolation": isolation}
    runs = sweep(**only, model=str(asset("tiny")), quality=False)
    assert [run.status for run in runs] == ["ok"]
    assert "Loading weights" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_sweep_of_fp8_on_a_cpu_says_once_that_it_is_emulated(sweep, caplog):
    runs = sweep(device="cpu", precision=["fp32", "fp8"], batch_size=[1, 2], repeats=1)
    assert [run.status for run in runs] == ["ok"] * len(runs)
    assert caplog.text.count("fp8 on a CPU is emulated") == 1


@pytest.mark.slow
def test_a_sweep_says_that_answers_were_cut(sweep, caplog):
    sweep(
        workload="evaluation", items=6, model="tiny", precision="fp32", repeats=1,
        batch_size=4, resolution=[64, 96], max_new_tokens=1,
    )  # fmt: skip
    (said,) = [r.message for r in caplog.records if "may be cut off" in r.message]
    assert "in 2 of 2 settings" in said
    assert "raise max_new_tokens (--max-new-tokens) above 1" in said
