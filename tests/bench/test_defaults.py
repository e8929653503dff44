"""The sweep behind ``qvl-lab report --model``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from qvl_lab.analysis.money.recommend import recommend
from qvl_lab.bench import defaults as module
from qvl_lab.bench import sweep
from qvl_lab.bench.confirm import LEAST
from qvl_lab.bench.defaults import default_sweep
from qvl_lab.bench.executors import EXECUTORS
from qvl_lab.bench.trial import Trial
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs, Store
from qvl_lab.tasks import article_resolutions


def test_the_default_sweep_moves_rows_of_another_environment_aside(tmp_path, on_cpu, monkeypatch):
    out = tmp_path / "runs.jsonl"
    assert module._fresh_if_other(out) == "refuse"
    with Store(out) as store:
        store.append(on_cpu(1))
    assert module._fresh_if_other(out) == "refuse"
    with Store(out) as store:
        store.append(on_cpu(1, environment={"torch": "1.0"}))
    assert module._fresh_if_other(out) == "fresh"


@pytest.fixture
def made_up(monkeypatch, make_repeat) -> Callable[..., None]:
    """Replace measuring: "read" is answered right at 512 px alone, the rest everywhere; larger
    batches, fewer pixels and the fast engine take less time.
    """

    def install(random_weights: bool = False, noise: float = 0.01) -> None:
        def measure(trial: Trial) -> Run:
            config = trial.config
            side = config.images.resolution
            side = side if isinstance(side, int) else 400
            seconds = side / 100 / config.engine.most_at_once
            seconds /= 2 if config.engine.engine == "fast" else 1
            wall_s = 8 * seconds * (1 + noise * (trial.round or 0))
            done = make_repeat(wall_s, 8, visual_tokens=side * 8, round=trial.round)
            parts: dict[str, Any] = {"random_weights": random_weights, "repeats": [done]}
            parts["resolved"] = {"precision": config.model.precision, "device": "cpu"}
            if trial.plan.quality and not trial.round and not random_weights:
                right = {"read": float(side >= 512)}
                tasks = [item.task or "" for item in trial.workload.items]
                parts["scores"] = {
                    task: {
                        "metric": "exact_match",
                        "unparsed": 0,
                        "values": [right.get(task, 1.0)] * tasks.count(task),
                    }
                    for task in dict.fromkeys(tasks)
                }
            return trial.result("ok", **parts)

        def run(trials: Iterable[Trial], timeout_s: float) -> Iterator[Run]:
            for trial in trials:
                yield measure(trial)

        monkeypatch.setitem(EXECUTORS, "process", run)
        monkeypatch.setattr(sweep, "measure_side_by_side", lambda trials, s: list(run(trials, s)))
        monkeypatch.setattr(module, "device_ceilings", lambda runs: None)

    return install


@pytest.fixture
def table(tmp_path) -> Callable[..., str]:
    """A workload of 144 questions of these tasks in turn, each about a picture of its own."""

    def make(*tasks: str) -> str:
        path = tmp_path / "items.csv"
        for i in range(144):
            Image.new("RGB", (64, 64), (i, 0, 90)).save(tmp_path / f"{i}.png")
        rows = [f"{i},{i}.png,{tasks[i % len(tasks)]}" for i in range(144)]
        path.write_text("\n".join(["id,image,task", *rows]))
        return str(path)

    return make


def settings(runs: Runs) -> set[tuple[Any, ...]]:
    names = ("engine", "precision", "batch_size", "resolution")
    return {tuple(run.config[name] for name in names) for run in runs}


def tables(runs: Runs) -> list[dict[str, Any]]:
    swept = [run.config for run in runs if run.plan["phase"] == "sweep"]
    found = [config for config in swept if config["resolution"] == "by_task"]
    assert {(c["engine"], c["batch_size"], c["precision"]) for c in found} == {("fast", 8, "fp32")}
    return [config["task_resolutions"] for config in found]


def test_the_default_sweep_has_at_most_twelve_settings_and_confirms_its_choice(
    tmp_path, made_up, table
):
    made_up()
    out = tmp_path / "runs.jsonl"
    runs = default_sweep("tiny", table("read", "locate"), out, progress=False)
    swept = [run for run in runs if run.plan["phase"] == "sweep"]
    assert len(swept) == 10
    sizes = ((1, 256), (4, 256), (8, 256), (1, 512), (8, 512))
    stock = {("stock", "fp32", *size) for size in sizes}
    fast = {("fast", *of) for of in (("fp32", 8, 256), ("fp32", 8, 512), ("bf16", 8, 256))}
    assert settings(Runs(swept)) == stock | fast | {("fast", "fp32", 8, "by_task")}
    assert tables(Runs(swept)) == [article_resolutions(), {"read": 512, "locate": 256}]
    advice = recommend(runs.frame())
    assert advice.confirmed
    confirmed = [run for run in runs if run.plan["phase"] == "confirmation"]
    assert 2 <= len(confirmed) <= 3
    assert {len(run.repeats) for run in confirmed} == {3, LEAST}
    before = out.read_bytes()
    default_sweep("tiny", table("read", "locate"), out, progress=False)
    assert out.read_bytes() == before  # all of it is resumed


def test_a_second_report_of_the_same_rows_measures_nothing(tmp_path, made_up, table, monkeypatch):
    made_up(noise=0.3)
    out = tmp_path / "runs.jsonl"
    short = replace(module.THOROUGH, budget_s=1e-6, confirm_s=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(module, "THOROUGH", short)
        runs = default_sweep("tiny", table("read", "locate"), out, progress=False)
    assert {len(run.repeats) for run in runs if run.plan["phase"] == "sweep"} == {3}
    before = out.read_bytes()
    default_sweep("tiny", table("read", "locate"), out, progress=False)
    assert out.read_bytes() == before  # though more rounds would tell the settings apart


def test_settings_that_answer_alike_share_the_scores_of_one(tmp_path, made_up, table):
    made_up()
    runs = default_sweep("tiny", table("read", "locate"), tmp_path / "r.jsonl", progress=False)
    frame = runs.frame()
    assert frame["quality"].notna().all()
    # two resolutions, one of them in bf16 too; and the article's table, which has others
    assert len([run for run in runs if run.scores]) == 4
    low = frame[frame["resolution"] == "256"]
    assert set(low["quality"]) == {0.5}
    proposed = frame[frame["task_resolutions"] == '{"read": 512, "locate": 256}']
    assert proposed["quality"].item() == 1.0
    assert len(proposed["quality_from"].item()) == 2


def test_the_default_sweep_leaves_tasks_that_a_table_does_not_know_native(tmp_path, made_up, table):
    made_up()
    runs = default_sweep("tiny", table("invoice", "read"), tmp_path / "r.jsonl", progress=False)
    article, proposed = tables(runs)
    assert article == article_resolutions() | {"invoice": "native"}
    assert proposed == {"invoice": 256, "read": 512}


def test_the_default_sweep_of_random_weights_has_no_table(tmp_path, made_up, table):
    made_up(random_weights=True)
    runs = default_sweep("tiny", table("read"), tmp_path / "r.jsonl", items=5, progress=False)
    assert {run.config["resolution"] for run in runs} == {256, 512}
    assert {run.config["batch_size"] for run in runs} == {1, 4}


def test_a_quick_sweep_is_smaller_and_confirmed_too(tmp_path, made_up, table):
    made_up()
    out = tmp_path / "runs.jsonl"
    runs = default_sweep("tiny", table("read", "locate"), out, quick=True, progress=False)
    swept = [run for run in runs if run.plan["phase"] == "sweep"]
    stock, fast = (
        {("stock", "fp32", n, 512) for n in (1, 8)},
        {("fast", "fp32", 8, n) for n in (256, 512)},
    )
    assert settings(Runs(swept)) == stock | fast
    confirmed = [run for run in runs if run.plan["phase"] == "confirmation"]
    assert {len(run.repeats) for run in confirmed} == {3}
    assert recommend(runs.frame()).confirmed


def test_each_part_of_the_default_sweep_says_what_it_measures(tmp_path, made_up, table, capsys):
    made_up()
    default_sweep("tiny", table("read", "locate"), tmp_path / "r.jsonl")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("measuring")]
    assert said == [
        "measuring resolutions, precisions and batch sizes in turns, and the quality of answers",
        "measuring resolutions by task: the article's, and the lowest that keep quality",
        "measuring the best setting and today's once more, head to head",
    ]
    default_sweep("tiny", table("read", "locate"), tmp_path / "r.jsonl", progress=False)
    assert capsys.readouterr().err == ""
