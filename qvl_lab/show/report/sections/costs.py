"""What settings cost, how fast they are and what they need, as figures."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.limits.memory import batch_shape_of, batches_by_card
from qvl_lab.errors import ConfigError
from qvl_lab.models.architecture import Architecture
from qvl_lab.show import plots
from qvl_lab.show.quantities import score
from qvl_lab.show.report.components import (
    few_rows,
    picture,
    section,
    table,
)
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.selection import on_gpu
from qvl_lab.show.wording import images_at


def waterfall(context: ReportContext) -> list[Any]:
    """From today's setting to the recommended one, lever by lever."""
    advice = context.recommendation
    if not advice:
        return []
    same = advice.best["key"] == advice.current["key"]
    said = [section(context, "waterfall_heading", "waterfall_none" if same else "waterfall_note")]
    if advice.excluded:
        limits = context.say("and").join(
            context.say(f"limit_{name}", n=n, limit=score(advice.min_quality))
            for name, n in advice.excluded.items()
        )
        said.append(Markdown(context.say("limits", limits=limits)))
    return said if same else [*said, picture(plots.waterfall(advice, lang=context.lang))]


def tradeoff(context: ReportContext) -> list[Any]:
    """Cost against memory."""
    axes = plots.tradeoff(context.frame, context.recommendation, lang=context.lang)
    return [section(context, "tradeoff_heading", "tradeoff_note"), picture(axes)]


def curves(context: ReportContext) -> list[Any]:
    """Throughput, memory and cost over batch size, or over resolution if one batch was tried."""
    grid = context.grid
    if grid["batch_size"].nunique() > 1:
        return [section(context, "curves_heading"), picture(plots.curves(grid, lang=context.lang))]
    if grid["resolution"].nunique() == 1:
        return [section(context, "curves_heading", "curves_none")]
    figure = plots.resolution_curves(grid, lang=context.lang)
    return [section(context, "resolution_curves_heading"), picture(figure)]


def feasible(context: ReportContext) -> list[Any]:
    """Which settings fit, and what each costs."""
    figure = plots.feasible(context.frame, lang=context.lang)
    return [section(context, "feasible_heading"), picture(figure), *_fitting(context)]


def _fitting(context: ReportContext) -> list[Any]:
    """The largest batch of today's and the recommended setting on cards of three sizes."""
    if not context.recommendation or not on_gpu(context.frame):
        return []
    by_key = {run.key: run for run in context.runs}
    rows = pd.DataFrame([context.recommendation.current, context.recommendation.best])
    listed = []
    for _, row in rows.drop_duplicates(["resolution", "precision"]).iterrows():
        run = by_key[row["key"]]
        try:
            sizes = Architecture.from_dict(run.architecture)
            cards = batches_by_card(sizes, batch_shape_of(run))
        except ConfigError:  # an older file, or images that differ in size
            continue
        setting = {"column_setting": images_at(row, context.lang)}
        fits = {f"{card['memory_gb']:g} GB": _batches(card) for _, card in cards.iterrows()}
        listed.append(setting | fits)
    if not listed:
        return []
    return [Markdown(context.say("fitting_note")), table(context, pd.DataFrame(listed))]


def _batches(card: pd.Series) -> str:
    """The largest batch of a card with its interval: "140 (122–176)"."""
    low, size, high = (int(card[f"largest_batch{end}"]) for end in ("_low", "", "_high"))
    return f"{size:,}" if low == high else f"{size:,} ({low:,}–{high:,})"


def stages(context: ReportContext) -> list[Any]:
    """Where the time goes, for all settings if they are few: in seconds, and in shares of them."""
    if not context.recommendation:
        return []
    rows = few_rows(context, context.recommendation)
    pictures = [
        picture(plots.stages(rows, normalise=share, lang=context.lang))
        for share in ((False, True) if len(rows) > 1 else (False,))
    ]
    return [section(context, "stages_heading", "stages_note"), *pictures]
