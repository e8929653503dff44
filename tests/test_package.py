"""The public names, what importing costs, and the direction of imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qvl_lab

ROOT = Path(qvl_lab.__file__).parent
NAMES = """
    Config EngineSpec ImagePolicy ModelSpec QvlError Run Runs SweepSpec __version__
    ablate hit_rates load load_workload plots price profile propose_resolutions recommend report
    sweep visual_tokens watch
""".split()
#: A unit may import itself and units of lower layers.
LAYERS = {"cli": 5, "show": 4, "sweeps": 3, "engine": 2, "probe": 1, "analysis": 1}
#: Within the lowest layer, exactly these.
CORE = {
    "assets": set(),
    "errors": set(),
    "config": {"errors"},
    "records": {"config", "errors"},
    "hardware": {"assets"},
    "workload": {"assets", "config", "errors"},
}
MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).as_posix() not in ("__init__.py", "__main__.py")
)


def unit(module: str) -> str | None:
    """The top-level part of a dotted name, "engine" of "qvl_lab.engine.model"."""
    parts = module.split(".")
    if parts[0] != "qvl_lab" or len(parts) == 1:
        return None
    return unit(qvl_lab._HOME[parts[1]]) if parts[1] in qvl_lab._HOME else parts[1]


def imports(source: str) -> set[str]:
    """Dotted names of everything imported, at the top, in functions, and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide their layer"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def forbidden(importer: str, source: str) -> set[str]:
    """Units that the source imports although they are above or beside its own."""
    found = {unit(name) for name in imports(source)} - {None, importer, "__version__"}
    if importer in CORE:
        return {name for name in found if name and name not in CORE[importer]}
    return {name for name in found if name and LAYERS.get(name, 0) >= LAYERS[importer]}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_public_names_are_exactly_these_and_sorted():
    assert qvl_lab.__all__ == sorted(NAMES)
    assert dir(qvl_lab) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_resolves(name):
    value = getattr(qvl_lab, name)
    assert getattr(value, "__name__", name).rpartition(".")[2] == name


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'qvl_lab' has no attribute 'no_such_name'"):
        _ = qvl_lab.no_such_name


def test_import_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; t = time.perf_counter(); import qvl_lab; t = time.perf_counter() - t;"
        "print(t, *sorted({'torch', 'pandas', 'numpy', 'transformers', 'PIL'} & set(sys.modules)))"
    )
    runs = [python(code).split() for _ in range(3)]
    assert [heavy for _, *heavy in runs] == [[], [], []]
    assert min(float(seconds) for seconds, *_ in runs) < 0.3


def test_analysis_and_the_core_load_without_torch():
    code = (
        "import sys, qvl_lab.analysis.cost, qvl_lab.analysis.frame, qvl_lab.analysis.recommend,"
        "qvl_lab.analysis.stats, qvl_lab.probe.power, qvl_lab.probe.stages, qvl_lab.workload,"
        "qvl_lab.sweeps.store, qvl_lab.engine.images;"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert python(code) == ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down_only(path):
    importer = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert importer in CORE or importer in LAYERS, f"{importer} has no place in the layers"
    assert forbidden(importer, path.read_text("utf-8")) == set()


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.relative_to(ROOT).parts[0].removesuffix(".py") in {"analysis", *CORE}],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_analysis_and_the_core_never_import_torch(path):
    tops = {name.split(".")[0] for name in imports(path.read_text("utf-8"))}
    assert not tops & {"torch", "transformers", "torchvision"}


@pytest.mark.parametrize(
    ("importer", "source", "found"),
    [
        ("engine", "from qvl_lab.sweeps.store import Runs", {"sweeps"}),
        ("probe", "def f():\n    from qvl_lab.analysis import cost", {"analysis"}),
        ("config", "import qvl_lab.workload", {"workload"}),
        ("analysis", "from qvl_lab import sweep", {"sweeps"}),
        ("show", "from qvl_lab import hardware, __version__", set()),
        ("cli", "import qvl_lab\nfrom qvl_lab.show import report", set()),
    ],
)
def test_the_import_check_sees_upward_imports(importer, source, found):
    assert forbidden(importer, source) == found
