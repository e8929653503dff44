"""What test files share: runs whose numbers can be worked out by hand, and the embedded model."""

from __future__ import annotations

import os

# Before anything imports transformers or matplotlib.
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests run beside tests; those of the gate say what the neighbours do.
os.environ["QVL_LAB_ON_BUSY"] = "ignore"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that spin while they wait make torch ten times slower beside other busy processes.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from qvl_lab.config import FIELDS, Config, SweepSpec
from qvl_lab.runs.records import Repeat, Run, run_key
from qvl_lab.workloads.items import Item
from qvl_lab.workloads.sources import load_workload

if TYPE_CHECKING:
    from qvl_lab.session import Lab


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Full forms may take half an hour each; the others have the limit of pyproject.toml."""
    for item in items:
        if item.get_closest_marker("full") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


def repeat(wall_s: float = 10.0, answered: int = 10, **parts: Any) -> Repeat:
    """One pass over ``answered`` items; by default a second, 20 visual and 5 new tokens each."""
    known: dict[str, Any] = {
        "failed": 0,
        "prompt_tokens": 30 * answered,
        "visual_tokens": 20 * answered,
        "new_tokens": 5 * answered,
        "stages_s": {},
        "queue_s": [0.25] * answered,
        "ttft_s": [0.5] * answered,
        "e2e_s": [wall_s] * answered,
        "batch_s": [wall_s],
    }
    return Repeat(wall_s=wall_s, answered=answered, **(known | parts))


def run(repeats: list[Repeat] | None = None, status: str = "ok", **parts: Any) -> Run:
    """A run; fields of a configuration may be given by name, the rest are fields of Run."""
    settings = {name: parts.pop(name) for name in set(parts) & set(FIELDS)}
    config = Config().replace(**{"batch_size": 8} | settings).flat()
    workload = {"name": "hand", "fingerprint": "f" * 16, "items": 10, "images": 10}
    known: dict[str, Any] = {
        "key": run_key(config, workload, {}),
        "started_at": "2025-06-01T12:00:00+00:00",
        "config": config,
        "resolved": {"device": "cuda", "precision": config["precision"]},
        "workload": workload,
        "environment": {"gpu": "NVIDIA A10G", "torch": "2.11"},
    }
    return Run(status=status, repeats=repeats or [], **(known | parts))


@pytest.fixture(autouse=True)
def quick_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test says otherwise, a sweep measures each setting as often as it is told, in short
    passes: other tests do otherwise.
    """
    quick = {"min_pass_s": 0.0, "max_repeats": 1}
    defaults = SweepSpec.__init__.__kwdefaults__
    assert defaults is not None
    for name, value in quick.items():
        monkeypatch.setitem(defaults, name, value)
    if find_spec("typer") is None:  # a machine without the command line's packages
        return
    from qvl_lab.cli.options import PlanOptions

    settings = PlanOptions.settings

    def told(options: PlanOptions) -> dict[str, object]:
        own = {n: v for n, v in quick.items() if getattr(options, n) == getattr(PlanOptions, n)}
        return settings(options) | own

    monkeypatch.setattr(PlanOptions, "settings", told)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_repeat() -> Callable[..., Repeat]:
    return repeat


@pytest.fixture
def make_run() -> Callable[..., Run]:
    return run


@pytest.fixture(scope="session")
def run_files() -> dict[str, Path]:
    """The committed run files by path below ``reports``; what ``make report`` left is not one."""
    reports = Path(__file__).parents[1] / "reports"
    files = set(reports.rglob("*.jsonl")) - set((reports / "local").rglob("*"))
    return {file.relative_to(reports).as_posix(): file for file in sorted(files)}


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The embedded model's shape with random weights, so that every answer has the full length,
    in fp32 on the CPU. Tests leave it as they found it.
    """
    from qvl_lab.session import load

    return load("random:tiny", precision="fp32", device="cpu")


@pytest.fixture(scope="session")
def trained() -> Lab:
    """The embedded model in fp32 on the CPU. Tests leave it as they found it."""
    from qvl_lab.session import load

    return load("tiny", precision="fp32", device="cpu")


@pytest.fixture(scope="session")
def mixed() -> tuple[Item, ...]:
    """The packaged items, one for each image size: 48 shapes to batch and pad."""
    from PIL import Image

    by_size: dict[tuple[int, int], Item] = {}
    for item in load_workload("mixed").items:
        with Image.open(item.image) as image:
            by_size.setdefault(image.size, item)
    return tuple(by_size.values())


@pytest.fixture
def on_cpu() -> Callable[..., Run]:
    """A run of a sweep on this CPU: ten items in about ``wall_s`` seconds, three times."""
    from qvl_lab.hardware import fingerprint

    def make(batch_size: int = 1, wall_s: float | list[float] = 10.0, **parts: Any) -> Run:
        walls = wall_s if isinstance(wall_s, list) else [wall_s * s for s in (0.99, 1, 1.01)]
        repeats = [repeat(wall, stages_s={"vision": wall / 2, "other": wall / 2}) for wall in walls]
        known: dict[str, Any] = {"batch_size": batch_size, "resolution": 256, "precision": "fp32"}
        known |= {"environment": fingerprint(), "random_weights": True}
        known |= {"memory": {"process": batch_size * 2**30}}
        repeats = parts.pop("repeats", repeats)
        known |= {"resolved": {"device": "cpu", "precision": parts.get("precision", "fp32")}}
        return run(repeats if parts.get("status", "ok") == "ok" else [], **(known | parts))

    return make
