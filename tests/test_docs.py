"""The documents name what is there: every file of the package, every link, both languages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qvl_lab

PACKAGE = Path(qvl_lab.__file__).parent
ROOT = PACKAGE.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]


def is_empty(path: Path) -> bool:
    return path.name == "__init__.py" and not ast.parse(path.read_text("utf-8")).body


def test_the_architecture_lists_exactly_the_files_of_the_package():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    block = text.split("## Every file in a line")[1].split("```")[1]
    listed = [line.split()[0] for line in block.splitlines() if line]
    there = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py") if not is_empty(p)}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_the_readme_shows_code_within_thirty_lines():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert lines.index("```python") < 30


def test_every_page_of_docs_is_linked_from_its_index():
    index = (ROOT / "docs/README.md").read_text("utf-8")
    pages = {path.name for path in ROOT.glob("docs/*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


def test_both_readmes_have_the_same_code_tables_and_links():
    english, chinese = ((ROOT / f"README{lang}.md").read_text("utf-8") for lang in ("", ".zh-CN"))

    def shape(text: str) -> tuple[int, int, int]:
        rows = len(re.findall(r"^\|", text, re.MULTILINE))
        return text.count("```"), rows, len(re.findall(r"^## ", text, re.MULTILINE))

    assert shape(english) == shape(chinese)
    numbers = re.compile(r"\d+\.\d+")
    assert sorted(set(numbers.findall(english))) == sorted(set(numbers.findall(chinese)))
