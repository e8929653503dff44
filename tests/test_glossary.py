"""The words of the field: names that docs/glossary.md replaced do not come back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import qvl_lab

ROOT = Path(qvl_lab.__file__).parent
#: Old names by the files that had them: no class, function, parameter or module there is named so.
#: A name that is an everyday word elsewhere ("table", "read") is listed for its room alone.
REPLACED = {
    "**/*.py": """
        Sight Pictures Forward Network Steps Slots Joined Reader Loaded Sampling Flight _Flight
        warmth take_off basis over_hits over_batch limit_bars
    """,
    "backends/**/*.py": """
        Job jobs Stock Fast attend settle look see quick_look quick_see attend_weights
        finish_weights look_weights places starts scores draw stops read land hear matrices
        joined put joins expect late forget reader forward pictures sight network see_images
        read_again heard used slots_ latency_s
    """,
    "backends/fast/**/*.py": "table",
    "backends/fast/model/*.py": "finish finish_weights",
    "models/*.py": "matrices Matrix matrix_of joined Joined",
    "caching/*.py": "answer_key feature_cache answer_cache forget",
    "session.py": "heard used forget reader",
    "bench/**/*.py": "Job jobs job hits heard forget",
    "analysis/**/*.py": "Load load_of Line lines basis parts parts_s over_hits hits variants",
    "show/**/*.py": """
        Findings basis parts over_hits over_batch limit_bars hits variants live stage_table
    """,
    "workloads/*.py": "answer",
}
#: (file, name) that stay, and why.
KEPT: dict[tuple[str, str], str] = {}
PAIRS = [(pattern, name) for pattern, names in REPLACED.items() for name in names.split()]


def names(path: Path) -> set[str]:
    """Names of the module and of its classes, functions, parameters and attributes of classes."""
    found = {path.stem}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.fixture(scope="module")
def tree() -> dict[str, set[str]]:
    return {p.relative_to(ROOT).as_posix(): names(p) for p in ROOT.rglob("*.py")}


@pytest.mark.parametrize(("pattern", "old"), PAIRS, ids=lambda v: v)
def test_no_file_uses_a_name_that_was_replaced(tree, pattern, old):
    files = {p.relative_to(ROOT).as_posix() for p in ROOT.glob(pattern)}
    assert files, f"no file matches {pattern}: the glossary lags behind the tree"
    using = {file for file in files if old in tree[file] and (file, old) not in KEPT}
    assert not using


def test_exceptions_are_still_needed(tree):
    assert {pair for pair in KEPT if pair[1] not in tree.get(pair[0], set())} == set()


def test_the_walk_sees_classes_functions_parameters_fields_and_modules(tmp_path):
    path = tmp_path / "sight.py"
    path.write_text("class Slots:\n    read: int\n\n    def look(self, places): ...\n", "utf-8")
    assert names(path) == {"sight", "Slots", "read", "look", "self", "places"}
