"""What the pages say was measured is what the committed run files say."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "README.zh-CN.md", "reports/README.md", "docs/findings.md", "CHANGELOG.md")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "reports/figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_with_figures_is_recomputed(figures):
    assert set(figures.PAGES) == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_figures_of_a_page_are_those_of_the_run_files(figures, page):
    assert figures.missing(page) == []


@pytest.mark.parametrize("page", PAGES[:-1])
def test_a_page_has_no_other_figures_but_those_that_are_said_to_have_no_file(figures, page):
    assert figures.unchecked(page) == []


def test_a_figure_that_differs_or_has_no_file_is_found(figures, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text("utf-8")
    (tmp_path / "README.md").write_text(
        text.replace("| 371 |", "| 381 |") + "\nTwice, 41% or 5.5.\n"
    )
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert figures.missing("README.md") == ["| transformers, one by one, bf16 | 371 | 2.59 |"]
    assert figures.unchecked("README.md") == ["381", "2.59", "41", "5.5"]
