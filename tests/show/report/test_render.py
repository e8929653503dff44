"""The report as files: one page that needs no network, kept also where the notebook stops."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from qvl_lab.assets import asset
from qvl_lab.errors import (
    ConfigError,
    InputError,
    QvlError,
    ReportError,
    StoreError,
    UnknownNameError,
)
from qvl_lab.runs.records import Run
from qvl_lab.runs.store import Runs, Store
from qvl_lab.show.report import render as module
from qvl_lab.show.report import review as review_module
from qvl_lab.show.report.render import ReportFiles, report


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[..., ReportFiles]:
    """Reports that several tests look at, each written once."""
    made: dict[str, ReportFiles] = {}

    def make(name: str, runs: list[Run], **options: Any) -> ReportFiles:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            with Store(folder / "runs.jsonl") as store:
                for run in runs:
                    store.append(run)
            made[name] = report(folder / "runs.jsonl", out=folder / "out", **options)
        return made[name]

    return make


@pytest.fixture
def english(written, on_cpu) -> ReportFiles:
    """At a cent a second: 1 yuan per 100 images one by one, 0.40 in batches of four."""
    runs = [
        on_cpu(1, 10.0),
        on_cpu(4, 4.0),
        on_cpu(8, status="oom", reason="batch of 8: out of memory"),
    ]
    return written("english", runs, per_hour=36.0, currency="CNY", monthly_images=20_000)


@pytest.fixture
def chinese(written, on_cpu) -> ReportFiles:
    """A sweep in which nothing fitted."""
    runs = [
        on_cpu(1, status="oom", reason="batch of 1: out of memory"),
        on_cpu(4, status="skipped", reason="a smaller setting ran out of memory"),
    ]
    return written("chinese", runs, per_hour=36.0, lang="zh")


def resources(page: str) -> list[str]:
    """What a browser would fetch: scripts, styles, images, fonts."""
    tags = re.findall(r"<(?:script|img|link|iframe|source|video|object|embed)\b[^>]*>", page)
    named = re.findall(r'(?:src|href|data)\s*=\s*["\']([^"\']*)', " ".join(tags))
    styles = " ".join(re.findall(r"<style.*?</style>", page, re.DOTALL))
    return (
        named
        + re.findall(r"url\(\s*[\"']?([^\"')]+)", styles)
        + re.findall(r"@import\s+(\S+)", styles)
    )


def test_a_report_leaves_a_page_a_notebook_and_a_table(english):
    assert sorted(path.name for path in english.html.parent.iterdir()) == [
        "report.html",
        "report.ipynb",
        "settings.csv",
    ]
    rows = list(csv.DictReader(english.csv.open(encoding="utf-8")))
    assert "quality" in rows[0] and "scores" not in rows[0]  # single items are no cells
    assert [row["status"] for row in rows] == ["ok", "ok", "oom"]
    assert float(rows[0]["cost_cny_per_100_images"]) == pytest.approx(1.0)


def test_the_page_has_the_numbers_worked_out_by_hand(english):
    page = english.html.read_text("utf-8")
    assert "¥1.00 per 100 images today, ¥0.40 with fp32 · 256 px · batch 4: 60% less" in page
    assert "At 20,000 images a month that is ¥200 today and ¥80.0 with" in page
    assert "batch of 8: out of memory" in page
    assert "<title>Qwen3-VL cost review" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["english", "chinese"])
def test_the_page_fetches_nothing(request, name):
    page = request.getfixturevalue(name).html.read_text("utf-8")
    assert [r[:60] for r in resources(page) if not r.startswith("data:")] == []
    assert "<script" not in page
    assert "data:image/png;base64," in page


def test_every_picture_of_the_page_has_an_alternative_text(english):
    page = english.html.read_text("utf-8")
    texts = re.findall(r'<img alt="([^"]*)"', page)
    assert len(texts) == page.count("<img") > 4
    assert "No description has been provided" not in page
    assert any(words.startswith("From today's setting") for words in texts)


def test_the_page_shows_no_code(english):
    page = english.html.read_text("utf-8")
    assert "default_sweep" not in page
    assert "context.headline" not in page
    assert 'class="jp-Cell jp-CodeCell' in page  # cells are there, without their inputs
    assert "jp-InputArea-editor" not in re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)


def test_the_page_says_its_language(english, chinese):
    assert '<html lang="en"' in english.html.read_text("utf-8")
    page = chinese.html.read_text("utf-8")
    assert '<html lang="zh"' in page
    assert "成本评审" in page


def test_cells_of_a_table_share_a_baseline_whatever_font_draws_them(english):
    page = english.html.read_text("utf-8")
    (rule,) = re.findall(r"\.jp-RenderedHTMLCommon td \{[^}]*text-align: left[^}]*\}", page)
    assert "vertical-align: baseline" in rule


def test_a_report_is_made_also_where_nothing_fitted(chinese):
    page = chinese.html.read_text("utf-8")
    assert "没有任何配置完成测量" in page
    assert "没有数字的配置：1 个显存或内存不足；1 个因更小的配置内存不足而跳过。" in page
    assert "batch of 1: out of memory" in page
    axes = r'<img alt="[^"]*"'  # they name their unit
    assert "¥" not in re.sub(rf"<style.*?</style>|¥36|{axes}", "", page, flags=re.DOTALL)


def test_the_notebook_can_be_opened_with_anybodys_kernel(english):
    notebook = nbformat.read(english.notebook, 4)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


def test_the_page_of_a_results_object_is_that_of_its_file(runs_file, on_cpu, monkeypatch, tmp_path):
    asked: list[dict[str, Any]] = []

    def execute(notebook, parameters):
        asked.append(parameters)
        notebook.write_text((asset(module.NOTEBOOK)).read_text("utf-8"), "utf-8")

    monkeypatch.setattr(module, "_execute", execute)
    path = runs_file(on_cpu(1), on_cpu(4, 4.0))
    report(Runs.load(path), out=tmp_path / "out", utilisation=0.5)
    assert asked == [{"runs": str(path.resolve()), "options": {"utilisation": 0.5}}]
    with pytest.raises(QvlError, match="in no file"):
        report(Runs([on_cpu(1)]), out=tmp_path / "none")


# ---- refused, stopped


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"gpu": "A1OG"}, ConfigError),
        ({"lang": "fr"}, ConfigError),
        ({"utilisation": 2}, ConfigError),
        ({"current": {"batch_size": 3}}, ConfigError),
        ({"prices_file": "/no/such.toml"}, ConfigError),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    runs_file, on_cpu, tmp_path, options, error
):
    path = runs_file(on_cpu(1))
    with pytest.raises(error):
        report(path, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_missing_run_file_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(StoreError, match="cannot read the run file"):
        report(tmp_path / "none.jsonl", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stopping(tmp_path, monkeypatch) -> Path:
    """A report notebook whose third code cell fails."""
    cells = [
        nbformat.v4.new_code_cell("runs = options = None", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print('this was done')"),
        nbformat.v4.new_code_cell("raise ValueError('no <figure> today')"),
        nbformat.v4.new_code_cell("print('this was not')"),
    ]
    path = tmp_path / "stopping.ipynb"
    metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "x"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    monkeypatch.setattr(
        module, "asset", lambda name: path if name == module.NOTEBOOK else asset(name)
    )
    return path


@pytest.mark.slow
def test_a_notebook_that_stops_names_the_cell_and_keeps_what_it_had(
    stopping, runs_file, on_cpu, tmp_path
):
    out = tmp_path / "out"
    with pytest.raises(ReportError, match=r"stopped: cell \d+: ValueError: no <figure>") as caught:
        report(runs_file(on_cpu(1)), out=out)
    assert str(out / "report.html") in str(caught.value)
    page = (out / "report.html").read_text("utf-8")
    assert re.search(r'<p class="qvl-failure">cell \d+: ValueError: no &lt;figure&gt; today', page)
    assert "this was done" in page
    assert "this was not" not in page
    cells = json.loads((out / "report.ipynb").read_text("utf-8"))["cells"]
    number = int(re.search(r"cell (\d+)", str(caught.value))[1])
    failed = next(c for c in cells if c.get("execution_count") == number)
    assert "raise ValueError" in "".join(failed["source"])
    assert (out / "settings.csv").exists()


@pytest.mark.slow
def test_the_kernel_is_this_interpreter_whatever_kernels_the_user_has(
    runs_file, on_cpu, tmp_path, monkeypatch
):
    broken = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    broken.parent.mkdir(parents=True)
    spec = {"argv": ["/no/such/python"], "display_name": "x", "language": "python"}
    broken.write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert report(runs_file(on_cpu(1)), out=tmp_path / "out").html.exists()


def test_a_folder_that_cannot_be_written_is_named(runs_file, on_cpu, tmp_path):
    path = runs_file(on_cpu(1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the report to .*file: it is a file"):
        report(path, out=tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot write the report to .*: Not a directory"):
        report(path, out=tmp_path / "file" / "below")


@pytest.mark.parametrize("where", ["settings_csv", "_execute"])
def test_a_full_disk_is_said_in_one_line(runs_file, on_cpu, tmp_path, monkeypatch, where):
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(review_module if where == "settings_csv" else module, where, full)
    with pytest.raises(InputError, match=r"^cannot write the report to .*: No space left") as e:
        report(runs_file(on_cpu(1)), out=tmp_path / "out")
    assert "\n" not in str(e.value)


def test_a_misspelt_option_is_named(runs_file, on_cpu, tmp_path):
    with pytest.raises(UnknownNameError, match=r"'montly_images'. Did you mean 'monthly_images'"):
        report(runs_file(on_cpu(1)), out=tmp_path / "out", montly_images=3)
