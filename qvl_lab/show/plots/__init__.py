"""Figures from a frame of runs: DataFrame in, Axes or Figure out.

A function with an ``ax`` draws into it, or into a new pyplot figure. One that returns a Figure
leaves it unregistered with pyplot, so that a notebook shows it once, as the cell's value. The
font that draws Chinese ships with the package (:mod:`qvl_lab.show.fonts`).

Legends lie outside the axes: give axes of a figure with ``layout="constrained"``.

No module here has the name of a function: the function would hide it.
"""

from qvl_lab.show.plots.ablation_bars import ablation
from qvl_lab.show.plots.cost_vs_hit_rate import hit_rates
from qvl_lab.show.plots.gantt import timeline
from qvl_lab.show.plots.memory_map import feasible
from qvl_lab.show.plots.quality_curves import precision_loss, quality, quality_cost
from qvl_lab.show.plots.recommendation import tradeoff, waterfall
from qvl_lab.show.plots.roofline import limits
from qvl_lab.show.plots.shared import METRICS
from qvl_lab.show.plots.stage_bars import STAGE_COLOURS, stages
from qvl_lab.show.plots.vs_batch_size import curve, curves
from qvl_lab.show.plots.vs_resolution import resolution_curves

__all__ = [
    "METRICS",
    "STAGE_COLOURS",
    "ablation",
    "curve",
    "curves",
    "feasible",
    "hit_rates",
    "limits",
    "precision_loss",
    "quality",
    "quality_cost",
    "resolution_curves",
    "stages",
    "timeline",
    "tradeoff",
    "waterfall",
]


def __dir__() -> list[str]:
    """The figures alone: Tab then shows no modules among them."""
    return __all__
