"""qvl_lab: where the time, memory and money of a Qwen3-VL workload go, and what to run instead.

Importing the package imports no torch; every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Config": "qvl_lab.config",
    "EngineSpec": "qvl_lab.config",
    "ImagePolicy": "qvl_lab.config",
    "ModelSpec": "qvl_lab.config",
    "QvlError": "qvl_lab.errors",
    "Run": "qvl_lab.records",
    "Runs": "qvl_lab.sweeps.store",
    "SweepSpec": "qvl_lab.config",
    "ablate": "qvl_lab.sweeps.variants",
    "hit_rates": "qvl_lab.sweeps.hit_rates",
    "load": "qvl_lab.engine.lab",
    "load_workload": "qvl_lab.workload",
    "propose_resolutions": "qvl_lab.analysis.tradeoffs",
    "plots": "qvl_lab.show",
    "price": "qvl_lab.analysis.cost",
    "profile": "qvl_lab.engine.profiling",
    "recommend": "qvl_lab.analysis.recommend",
    "report": "qvl_lab.show.report",
    "sweep": "qvl_lab.sweeps",
    "visual_tokens": "qvl_lab.engine.images",
    "watch": "qvl_lab.show.live",
}

__all__ = [
    "Config",
    "EngineSpec",
    "ImagePolicy",
    "ModelSpec",
    "QvlError",
    "Run",
    "Runs",
    "SweepSpec",
    "__version__",
    "ablate",
    "hit_rates",
    "load",
    "load_workload",
    "plots",
    "price",
    "profile",
    "propose_resolutions",
    "recommend",
    "report",
    "sweep",
    "visual_tokens",
    "watch",
]

if TYPE_CHECKING:
    from qvl_lab.analysis.cost import price
    from qvl_lab.analysis.recommend import recommend
    from qvl_lab.analysis.tradeoffs import propose_resolutions
    from qvl_lab.config import Config, EngineSpec, ImagePolicy, ModelSpec, SweepSpec
    from qvl_lab.engine.images import visual_tokens
    from qvl_lab.engine.lab import load
    from qvl_lab.engine.profiling import profile
    from qvl_lab.errors import QvlError
    from qvl_lab.records import Run
    from qvl_lab.show import plots
    from qvl_lab.show.live import watch
    from qvl_lab.show.report import report
    from qvl_lab.sweeps import sweep
    from qvl_lab.sweeps.hit_rates import hit_rates
    from qvl_lab.sweeps.store import Runs
    from qvl_lab.sweeps.variants import ablate
    from qvl_lab.workload import load_workload


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext qvl_lab`` calls this; it brings the cell magic ``%%qvl``."""
    from qvl_lab.show.magic import register

    register(ipython)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qvl_lab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
