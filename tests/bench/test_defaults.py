"""The sweep behind ``qvl-lab report --model``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from qvl_lab.bench import defaults as module
from qvl_lab.bench.defaults import default_sweep
from qvl_lab.bench.executors import EXECUTORS
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
    """Replace measuring: "read" is answered right from 256 px on, the rest everywhere."""

    def replace(random_weights: bool = False) -> None:
        def measure(job: Any) -> Run:
            policy = job.config.images
            rows = [
                {"id": i.id, "task": i.task, "question": i.question, "expected": None}
                | {"answer": "?" if i.task == "read" and policy.resolution == 128 else "yes"}
                for i in job.workload.items
            ]
            side = policy.resolution if isinstance(policy.resolution, int) else 400
            done = make_repeat(len(rows) * side / 100, len(rows), visual_tokens=side * len(rows))
            known = {"precision": job.config.model.precision, "device": "cpu"}
            parts: dict[str, Any] = {"random_weights": random_weights, "resolved": known}
            parts["answers"] = [] if random_weights else rows
            return job.result("ok", repeats=[done] * 3, **parts)

        def run(jobs: Any, timeout_s: float) -> Any:
            return map(measure, jobs)

        monkeypatch.setitem(EXECUTORS, "process", run)

    return replace


@pytest.fixture
def table(tmp_path) -> Callable[..., str]:
    """A workload of eight questions of these tasks in turn."""

    def make(*tasks: str) -> str:
        path = tmp_path / "items.csv"
        Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
        rows = [f"{i},a.png,{tasks[i % len(tasks)]}" for i in range(8)]
        path.write_text("\n".join(["id,image,task", *rows]))
        return str(path)

    return make


def by_task(runs: Runs) -> list[dict[str, Any]]:
    found = [run.config for run in runs if run.config["resolution"] == "by_task"]
    assert {(c["batch_size"], c["precision"]) for c in found} == {(8, "fp32"), (8, "bf16")}
    assert {c["engine"] for c in found} == {"stock", "fast"}
    tables = {json.dumps(config["task_resolutions"]): None for config in found}
    assert len(found) == 2 * 2 * len(tables)
    return [json.loads(text) for text in tables]


@pytest.mark.slow
def test_the_default_sweep_measures_the_articles_table_and_the_one_it_proposes(
    tmp_path, made_up, table
):
    made_up()
    out = tmp_path / "runs.jsonl"
    runs = default_sweep("tiny", table("read", "locate"), out, progress=False)
    assert len(runs) == 2 * 3 * (3 + 1) + 2 * 4
    assert by_task(runs) == [article_resolutions(), {"read": 256, "locate": 128}]
    before = out.read_bytes()
    default_sweep("tiny", table("read", "locate"), out, progress=False)
    assert out.read_bytes() == before  # all of it is resumed


@pytest.mark.slow
def test_the_default_sweep_leaves_tasks_that_a_table_does_not_know_native(tmp_path, made_up, table):
    made_up()
    runs = default_sweep("tiny", table("invoice", "read"), tmp_path / "r.jsonl", progress=False)
    article, proposed = by_task(runs)
    assert article == article_resolutions() | {"invoice": "native"}
    assert proposed == {"invoice": 128, "read": 256}


@pytest.mark.slow
def test_the_default_sweep_of_random_weights_has_no_table(tmp_path, made_up, table):
    made_up(random_weights=True)
    runs = default_sweep("tiny", table("read"), tmp_path / "r.jsonl", items=5, progress=False)
    assert {run.config["resolution"] for run in runs} == {128, 256, 512}
    assert {run.config["batch_size"] for run in runs} == {1, 4}


@pytest.mark.slow
def test_each_part_of_the_default_sweep_says_what_it_measures(
    tmp_path, made_up, table, capsys, monkeypatch
):
    monkeypatch.setattr(module, "device_ceilings", lambda runs: None)
    made_up()
    default_sweep("tiny", table("read", "locate"), tmp_path / "r.jsonl", items=1)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("measuring")]
    assert said == [
        "measuring the grid: batch sizes, resolutions and precisions with the stock engine",
        "measuring the largest batch again, with the fast engine",
        "measuring resolutions by task: the article's, and the lowest that keep quality",
    ]
    default_sweep("tiny", table("read", "locate"), tmp_path / "r.jsonl", items=1, progress=False)
    assert capsys.readouterr().err == ""
