"""The public names, what importing costs, and the direction of imports."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qvl_lab

ROOT = Path(qvl_lab.__file__).parent
NAMES = """
    BatchShape Config Fast ImagePolicy ModelSpec QvlError Run Runs SamplingParams SweepSpec
    Transformers __version__ ablate advise article_resolutions batches_by_card biggest_wins
    break_even claim confirm finding_sentences hit_points hit_rates load load_workload
    measure_ceilings measured_ceilings plots price prices profile propose_resolutions
    read_architecture recommend report roofline sweep visual_tokens watch
""".split()
#: The rooms from the ground up. A module may import its own room and the rooms of earlier lines.
LAYERS = (
    "assets errors",
    "hardware claims",
    "tasks",
    "config",
    "runs workloads",
    "probe",
    "models",
    "caching",
    "backends",
    "session",
    "bench",
    "serve show",
    "cli",
)
LEVELS = {room: level for level, rooms in enumerate(LAYERS) for room in rooms.split()}
#: Stands beside the tower of layers: what it may import, and who may import it.
ANALYSIS = {
    "assets",
    "errors",
    "config",
    "hardware",
    "tasks",
    "claims",
    "runs",
    "models.architecture",
}
READERS = {"bench", "show", "cli", "serve"}
#: Never import torch, so that a saved run file is enough on a laptop.
TORCHLESS = {"analysis", "assets", "claims", "config", "errors", "hardware", "runs", "tasks"}
#: The one lazy call upward: ``Runs.frame()``.
UPWARD = {
    "runs/store.py": {
        "analysis.frame.frame",
        "analysis.quality.tradeoffs.has_answers",
        "analysis.quality.tradeoffs.with_agreement",
    }
}
MODULES = sorted(
    path
    for path in ROOT.rglob("*.py")
    if path.relative_to(ROOT).as_posix() not in ("__init__.py", "__main__.py")
)


def home(module: str) -> str | None:
    """Where a dotted name of the package lives: "session.Lab" for "qvl_lab.load"; None outside."""
    head, _, rest = module.partition(".")
    if head != "qvl_lab" or not rest or rest == "__version__":
        return None
    public = qvl_lab._HOME.get(rest)
    return public.removeprefix("qvl_lab.") if public else rest


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
    """Rooms that the source of a room imports although they are above or beside its own."""
    homes = {home(name) for name in imports(source)} - {None}
    return {found for found in homes if found and not _may_import(importer, found)}


def _may_import(importer: str, found: str) -> bool:
    room = found.partition(".")[0]
    if room == importer:
        return True
    if importer == "analysis":
        return any(found == allowed or found.startswith(f"{allowed}.") for allowed in ANALYSIS)
    if room == "analysis":
        return importer in READERS
    return LEVELS[room] < LEVELS[importer]


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_public_names_are_exactly_these_and_sorted():
    assert qvl_lab.__all__ == sorted(NAMES)
    assert dir(qvl_lab) == sorted(NAMES)


def test_what_type_checkers_see_is_what_is_loaded_and_listed():
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    assert seen == qvl_lab._HOME
    assert {*seen, "__version__"} == set(qvl_lab.__all__)


def test_tab_lists_figures_and_no_modules():
    assert dir(qvl_lab.plots) == sorted(qvl_lab.plots.__all__)
    assert not [n for n in dir(qvl_lab.plots) if inspect.ismodule(getattr(qvl_lab.plots, n))]


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


def test_a_laptop_without_torch_can_read_runs_and_workloads():
    code = (
        "import sys, qvl_lab.analysis.money.cost, qvl_lab.analysis.frame, qvl_lab.runs.store,"
        "qvl_lab.analysis.money.recommend, qvl_lab.analysis.stats.estimates, qvl_lab.probe.power,"
        "qvl_lab.probe.stages, qvl_lab.workloads.items, qvl_lab.workloads.resize;"
        "print(*sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert python(code) == ""


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down_only(path):
    name = path.relative_to(ROOT).as_posix()
    importer = name.partition("/")[0].removesuffix(".py")
    assert importer == "analysis" or importer in LEVELS, f"{importer} has no place in the layers"
    assert forbidden(importer, path.read_text("utf-8")) == UPWARD.get(name, set())


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p.relative_to(ROOT).parts[0].removesuffix(".py") in TORCHLESS],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_analysis_and_the_ground_never_import_torch(path):
    tops = {name.split(".")[0] for name in imports(path.read_text("utf-8"))}
    assert not tops & {"torch", "transformers", "torchvision"}


@pytest.mark.parametrize(
    ("importer", "source", "found"),
    [
        ("backends", "from qvl_lab.bench.sweep import sweep", {"bench.sweep.sweep"}),
        ("probe", "def f():\n    from qvl_lab.analysis import money", {"analysis.money"}),
        ("backends", "from qvl_lab.analysis.money import cost", {"analysis.money.cost"}),
        ("config", "import qvl_lab.workloads.items", {"workloads.items"}),
        ("analysis", "from qvl_lab import sweep", {"bench.sweep"}),
        ("analysis", "from qvl_lab.models.memory import free", {"models.memory.free"}),
        ("analysis", "from qvl_lab.models.architecture import value_bytes", set()),
        ("show", "from qvl_lab import hardware, __version__", set()),
        ("cli", "import qvl_lab\nfrom qvl_lab.bench import sweep", set()),
    ],
)
def test_the_import_check_sees_upward_imports(importer, source, found):
    assert forbidden(importer, source) == found
