"""What a notebook shows of public objects: a line, or a small table."""

from __future__ import annotations

from pathlib import Path

import pytest

import qvl_lab as ql
from qvl_lab.backends.base import Answer
from qvl_lab.backends.generation import Generation
from qvl_lab.runs.store import Runs
from qvl_lab.show.report.render import ReportFiles
from qvl_lab.workloads.items import Item, Workload


@pytest.fixture
def runs(on_cpu):
    rows = [on_cpu(batch_size, 10.0 / batch_size) for batch_size in (1, 2, 4)]
    return Runs([*rows, on_cpu(8, status="oom")], path=Path("w1.jsonl"), notes=["a note"])


@pytest.fixture
def advice(runs):
    return ql.recommend(ql.price(runs.frame(), per_hour=36.0))


def test_a_lab_says_its_model_precision_and_device(lab):
    assert repr(lab) == "<Lab random:tiny: fp32 on cpu, random weights>"
    assert "random:tiny" in lab._repr_html_()


def test_a_workload_says_how_much_it_holds_and_shows_its_first_items():
    workload = ql.load_workload("mixed")
    assert repr(workload) == f"<Workload 'mixed': {len(workload)} items, 3 tasks>"
    html = workload._repr_html_()
    assert html.count("<tr") == 6
    assert f"and {len(workload) - 5} more" in html


def test_an_item_shows_no_bytes_and_no_long_question():
    item = Item("x", b"\x00" * 2_000_000, "why? " * 1000)
    assert "2,000,000 bytes" in repr(item)
    assert len(repr(item)) < 200
    assert len(repr(Workload("n" * 5000, (item,) * 100))) <= 200


def test_what_a_workload_shows_is_escaped():
    html = Workload("<b>", (Item("<script>", "a.png", "<i>"),))._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_runs_say_where_they_are_from_and_how_they_ended(runs):
    assert repr(runs) == "<Runs w1.jsonl: 4 rows (3 ok, 1 oom)>"
    assert repr(Runs()) == "<Runs: 0 rows>"
    html = runs._repr_html_()
    assert "images_per_s" in html
    assert html.count("<tr") == 5
    assert "0 rows" in Runs()._repr_html_()


def test_a_part_of_runs_is_runs(runs):
    part = runs[:2]
    assert isinstance(part, Runs)
    assert (list(part), part.path, part.notes) == ([runs[0], runs[1]], runs.path, runs.notes)
    assert len(part.frame()) == 2


def test_a_recommendation_is_a_sentence_and_a_table_of_two_settings(advice):
    assert repr(advice).startswith("<Recommendation engine=stock, precision=fp32, resolution=256")
    assert "batch_size=4: saves 75% (" in repr(advice)
    assert "Series" not in repr(advice)
    assert "np.float64" not in repr((advice.saving, advice.steps))
    html = advice._repr_html_()
    assert "recommended" in html
    assert "cost_cny_per_100_images" in html


def test_the_files_of_a_report_are_links():
    folder = Path("my review")
    files = ReportFiles(folder / "report.html", folder / "report.ipynb", folder / "settings.csv")
    assert repr(files) == "<ReportFiles my review/report.html, report.ipynb, settings.csv>"
    assert '<a href="my%20review/report.html"' in files._repr_html_()


def test_a_generation_says_how_many_were_answered_and_shows_the_first():
    answers = [Answer(id=str(i), text="<b>red</b>", new_tokens=3) for i in range(11)]
    generation = Generation(answers=[*answers, Answer(id="x", error="no file")], wall_s=1.25)
    assert repr(generation) == "<Generation: 11 answers, 1 failed, 1.25 s>"
    html = generation._repr_html_()
    assert html.count("<tr") == 11
    assert "and 2 more" in html
    assert "<b>red</b>" not in html
    assert "error: no file" in Generation(answers=generation[-1:])._repr_html_()
