"""Every example runs, on the embedded model, and prints what it promises."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

from qvl_lab.runs.store import Runs, Store

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture
def pictures(tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (96, 96), colour).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture
def printed(capsys):
    def run(example, *given):
        runpy.run_path(str(FOLDER / example))["main"](*map(str, given))
        return capsys.readouterr().out

    return run


def test_a_folder_is_asked_one_question(printed, pictures):
    out = printed("ask_a_folder.py", pictures, "What colour is this?")
    assert {"red.png:", "blue.png:"} <= set(out.split())
    assert "2 answers" in out


def test_answers_are_drawn_by_seed(printed, pictures):
    out = printed("sample_answers.py", pictures / "red.png", "What colour is this?")
    assert out.startswith("most likely:")
    assert "seed 2:" in out


@pytest.mark.slow
def test_a_repeated_image_is_found_in_the_cache(printed, pictures):
    out = printed("cache_repeats.py", pictures / "red.png", "What is this?", "Which colour?")
    assert out.index("0 found") < out.index("1 found")


def test_a_profile_is_printed(printed, pictures):
    out = printed("profile_a_call.py", pictures)
    assert "vision" in out
    assert "overhead of the profile" in out


def test_a_run_file_is_priced(printed, tmp_path, on_cpu):
    with Store(tmp_path / "r.jsonl") as store:
        for batch_size in (1, 4):
            store.append(on_cpu(batch_size, 10.0 / batch_size))
    out = printed("price_a_run_file.py", tmp_path / "r.jsonl")
    assert "cost_cny_per_100_images" in out
    assert "saves 75%" in out


@pytest.mark.slow
def test_two_settings_are_compared(printed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = printed("compare_two_settings.py", "evaluation", 8).splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["engine", "batch_size"],
        ["stock", "1"],
        ["fast", "8"],
    ]
    assert lines[3].endswith("times as fast")
    assert len(Runs.load("two-runs.jsonl")) == 2


def test_examples_are_short_and_all_have_a_test_and_a_line_in_the_readme():
    source = Path(__file__).read_text("utf-8")
    readme = (FOLDER / "README.md").read_text("utf-8")
    for example in FOLDER.glob("*.py"):
        assert f'"{example.name}"' in source
        assert f"({example.name})" in readme
        assert len(example.read_text("utf-8").splitlines()) <= 25
