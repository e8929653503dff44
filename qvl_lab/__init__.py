"""qvl_lab: where the time, memory and money of a Qwen3-VL workload go, and what to run instead.

Importing the package imports no torch; every public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "BatchShape": "qvl_lab.analysis.limits.memory",
    "Config": "qvl_lab.config",
    "Fast": "qvl_lab.config",
    "ImagePolicy": "qvl_lab.config",
    "ModelSpec": "qvl_lab.config",
    "QvlError": "qvl_lab.errors",
    "Run": "qvl_lab.runs.records",
    "Runs": "qvl_lab.runs.store",
    "SamplingParams": "qvl_lab.config",
    "SweepSpec": "qvl_lab.config",
    "Transformers": "qvl_lab.config",
    "ablate": "qvl_lab.bench.ablation",
    "advise": "qvl_lab.analysis.limits.advice",
    "article_resolutions": "qvl_lab.tasks",
    "batches_by_card": "qvl_lab.analysis.limits.memory",
    "biggest_wins": "qvl_lab.analysis.limits.roofline",
    "break_even": "qvl_lab.analysis.levers.cache_savings",
    "claim": "qvl_lab.claims",
    "confirm": "qvl_lab.bench.confirm",
    "finding_sentences": "qvl_lab.show.report.finding_text",
    "hit_points": "qvl_lab.analysis.levers.cache_savings",
    "hit_rates": "qvl_lab.bench.cache_savings",
    "load": "qvl_lab.session",
    "load_workload": "qvl_lab.workloads.sources",
    "measure_ceilings": "qvl_lab.probe.ceilings",
    "measured_ceilings": "qvl_lab.analysis.limits.roofline",
    "plots": "qvl_lab.show",
    "price": "qvl_lab.analysis.money.cost",
    "prices": "qvl_lab.analysis.money.prices",
    "profile": "qvl_lab.bench.profile",
    "propose_resolutions": "qvl_lab.analysis.quality.resolutions",
    "read_architecture": "qvl_lab.models.load",
    "recommend": "qvl_lab.analysis.money.recommend",
    "report": "qvl_lab.show.report.render",
    "roofline": "qvl_lab.analysis.limits.roofline",
    "sweep": "qvl_lab.bench.sweep",
    "visual_tokens": "qvl_lab.workloads.resize",
    "watch": "qvl_lab.show.notebook.watch",
}

__all__ = [
    "BatchShape",
    "Config",
    "Fast",
    "ImagePolicy",
    "ModelSpec",
    "QvlError",
    "Run",
    "Runs",
    "SamplingParams",
    "SweepSpec",
    "Transformers",
    "__version__",
    "ablate",
    "advise",
    "article_resolutions",
    "batches_by_card",
    "biggest_wins",
    "break_even",
    "claim",
    "confirm",
    "finding_sentences",
    "hit_points",
    "hit_rates",
    "load",
    "load_workload",
    "measure_ceilings",
    "measured_ceilings",
    "plots",
    "price",
    "prices",
    "profile",
    "propose_resolutions",
    "read_architecture",
    "recommend",
    "report",
    "roofline",
    "sweep",
    "visual_tokens",
    "watch",
]

if TYPE_CHECKING:
    from qvl_lab.analysis.levers.cache_savings import break_even, hit_points
    from qvl_lab.analysis.limits.advice import advise
    from qvl_lab.analysis.limits.memory import BatchShape, batches_by_card
    from qvl_lab.analysis.limits.roofline import biggest_wins, measured_ceilings, roofline
    from qvl_lab.analysis.money.cost import price
    from qvl_lab.analysis.money.prices import prices
    from qvl_lab.analysis.money.recommend import recommend
    from qvl_lab.analysis.quality.resolutions import propose_resolutions
    from qvl_lab.bench.ablation import ablate
    from qvl_lab.bench.cache_savings import hit_rates
    from qvl_lab.bench.confirm import confirm
    from qvl_lab.bench.profile import profile
    from qvl_lab.bench.sweep import sweep
    from qvl_lab.claims import claim
    from qvl_lab.config import (
        Config,
        Fast,
        ImagePolicy,
        ModelSpec,
        SamplingParams,
        SweepSpec,
        Transformers,
    )
    from qvl_lab.errors import QvlError
    from qvl_lab.models.load import read_architecture
    from qvl_lab.probe.ceilings import measure_ceilings
    from qvl_lab.runs.records import Run
    from qvl_lab.runs.store import Runs
    from qvl_lab.session import load
    from qvl_lab.show import plots
    from qvl_lab.show.notebook.watch import watch
    from qvl_lab.show.report.finding_text import finding_sentences
    from qvl_lab.show.report.render import report
    from qvl_lab.tasks import article_resolutions
    from qvl_lab.workloads.resize import visual_tokens
    from qvl_lab.workloads.sources import load_workload


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext qvl_lab`` calls this; it brings the cell magic ``%%qvl``."""
    from qvl_lab.show.notebook.magic import register

    register(ipython)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qvl_lab' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
