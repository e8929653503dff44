"""What constraints.txt pins can be installed, and what the package imports is declared."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
#: The first patch release of every Python that the classifiers name.
PYTHONS = [
    f"{found[1]}.0"
    for text in PROJECT["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", text))
]
#: Imports of modules that no requirement of ours brings along, and why.
UNDECLARED = {"triton": "comes with the CUDA builds of torch, and is used with those alone"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def pinned_distributions() -> list[importlib.metadata.Distribution]:
    """Installed distributions in the very version that is pinned."""
    wanted = pins()
    return [
        found
        for found in importlib.metadata.distributions()
        if wanted.get(canonicalize_name(found.name)) == found.version.partition("+")[0]
    ]


def declared(*groups: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for group in groups for text in group}


def imported(path: Path) -> set[str]:
    """Top-level names of what a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"qvl_lab"}


def test_the_project_names_three_pythons():
    assert PYTHONS == ["3.11.0", "3.12.0", "3.13.0"]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_can_be_installed_with_every_python(python: str):
    found = pinned_distributions()
    too_new = [
        f"{one.name}=={one.version} needs Python {wanted}"
        for one in found
        if (wanted := one.metadata.get("Requires-Python"))
        and not SpecifierSet(wanted).contains(python)
    ]
    assert len(found) > len(pins()) // 2  # else this looked at another environment
    assert too_new == []


def test_what_the_package_imports_is_declared():
    homes = importlib.metadata.packages_distributions()
    allowed = declared(PROJECT["dependencies"], PROJECT["optional-dependencies"]["int8"])
    missing = {
        name: path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "qvl_lab").rglob("*.py"))
        for name in imported(path) - set(UNDECLARED)
        if not {canonicalize_name(home) for home in homes.get(name, [name])} & allowed
    }
    assert missing == {}


def test_exceptions_to_declared_imports_are_still_imported():
    names = {name for path in (ROOT / "qvl_lab").rglob("*.py") for name in imported(path)}
    assert set(UNDECLARED) <= names


def test_the_workflow_runs_the_gate_with_every_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    gate = workflow["jobs"]["gate"]
    assert [f"{python}.0" for python in gate["strategy"]["matrix"]["python"]] == PYTHONS
    assert gate["steps"][-1] == {"run": ".ci/run"}


def test_pre_commit_has_the_pinned_linter():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))
    wanted = {
        text
        for repo in hooks["repos"]
        for hook in repo["hooks"]
        for text in hook["additional_dependencies"]
    }
    assert {text for text in wanted if text.startswith("ruff==")} == {f"ruff=={pins()['ruff']}"}


def test_with_its_system_fonts_hidden_matplotlib_lists_only_its_own(tmp_path):
    env = os.environ | {"MPLCONFIGDIR": str(tmp_path)}
    script = str(ROOT / ".ci" / "hide_system_fonts.py")
    subprocess.run([sys.executable, script], env=env, check=True)
    code = (
        "import matplotlib; from matplotlib.font_manager import fontManager;"
        "own = matplotlib.get_data_path();"
        "print(sum(not font.fname.startswith(own) for font in fontManager.ttflist))"
    )
    told = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)
    assert told.stdout.strip() == b"0"
