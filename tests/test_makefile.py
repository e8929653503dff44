"""The Makefile, with a stand-in for the environment's python that writes down its arguments."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAND_IN = f"""#!{sys.executable}
import json, sys
with open("calls.jsonl", "a") as file:
    print(json.dumps(sys.argv[1:]), file=file)
"""
Make = Callable[..., list[list[str]]]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Run a target in a checkout whose path has spaces, brackets and Chinese in it."""
    checkout = tmp_path / "我的 项目 (v1)" / "clone [1] 'a'"
    python = checkout / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(STAND_IN)
    python.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    (checkout / "notebooks").mkdir()
    (checkout / "notebooks" / "00_first.ipynb").touch()
    (checkout / ".venv" / ".installed").touch()

    def run(*words: str) -> list[list[str]]:
        subprocess.run(["make", *words], cwd=checkout, check=True, capture_output=True)
        return [json.loads(line) for line in (checkout / "calls.jsonl").read_text().splitlines()]

    return run


def test_notebooks_run_in_a_path_with_spaces_and_brackets(make: Make):
    (call,) = make("notebooks", "OUT=out (2) here")
    assert call[:2] == ["-m", "papermill"]
    assert call[-2:] == ["notebooks/00_first.ipynb", "out (2) here/00_first.ipynb"]
    assert call[call.index("--cwd") + 1] == "out (2) here"


def test_report_takes_a_language_and_a_folder(make: Make):
    (call,) = make("report", "lang=zh", "OUT=one two")
    assert call[call.index("--lang") + 1] == "zh"
    assert call[call.index("--out") + 1] == "one two"


def test_report_is_what_make_alone_does_and_is_in_english(make: Make):
    (call,) = make()
    assert call[:3] == ["-m", "qvl_lab", "report"]
    assert call[call.index("--lang") + 1] == "en"


@pytest.mark.parametrize(("user", "allowed"), [("0", True), ("1000", False)])
def test_lab_may_run_as_root_where_the_user_is_root(
    make: Make, tmp_path, monkeypatch, user, allowed
):
    fake = tmp_path / "bin" / "id"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho {user}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=":")
    (call,) = make("lab")
    assert ("--allow-root" in call) is allowed


def test_a_python_that_is_too_old_is_told_which_ones_are_supported(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        ["make", "PYTHON=false", "lint"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    supported = "Python 3.11 to 3.13"
    assert supported in done.stdout
    assert supported in (ROOT / "README.md").read_text("utf-8")


def test_the_browser_that_help_names_is_the_one_that_the_tests_use():
    (line,) = [x for x in (ROOT / "Makefile").read_text("utf-8").splitlines() if "Chromium" in x]
    for path in (ROOT / "tests/browser").glob("test_*.py"):
        source = path.read_text("utf-8")
        assert 'shutil.which("chromium")' in source
        assert "apt-get install" in source
    assert "apt-get install chromium" in line


def test_help_lists_every_target(make: Make):
    said = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (targets,) = [line.split()[1:] for line in makefile.splitlines() if line.startswith(".PHONY")]
    assert [line.split()[1] for line in said.stdout.splitlines()] == targets
