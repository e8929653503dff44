"""The sections of a report: each a function from the review's context to what Jupyter displays.

``SECTIONS`` is the one list of them, in the order of the page.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.sections.ablation import ablation
from qvl_lab.show.report.sections.article import article
from qvl_lab.show.report.sections.cache_savings import hit_rates
from qvl_lab.show.report.sections.costs import curves, feasible, stages, tradeoff, waterfall
from qvl_lab.show.report.sections.first_page import headline
from qvl_lab.show.report.sections.limits import limits
from qvl_lab.show.report.sections.money import month, what_if
from qvl_lab.show.report.sections.provenance import provenance
from qvl_lab.show.report.sections.quality import quality, resolutions
from qvl_lab.show.report.sections.settings import settings

SECTIONS: tuple[Callable[[ReportContext], list[Any]], ...] = (
    headline,
    waterfall,
    month,
    what_if,
    tradeoff,
    quality,
    resolutions,
    curves,
    feasible,
    stages,
    limits,
    ablation,
    hit_rates,
    article,
    settings,
    provenance,
)
