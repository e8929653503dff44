"""What settings cost, how fast they are and what they need: figures and tables."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.frame import part_column
from qvl_lab.analysis.limits.memory import batch_shape_of, batches_by_card
from qvl_lab.analysis.money.recommend import Recommendation, measured
from qvl_lab.errors import ConfigError
from qvl_lab.models.architecture import Architecture
from qvl_lab.runs.records import STAGES
from qvl_lab.show import plots
from qvl_lab.show.locale import label
from qvl_lab.show.quantities import money, number, percent, score
from qvl_lab.show.report.components import (
    named_rows,
    picture,
    plain,
    section,
    settings_table,
    table,
)
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.selection import on_gpu
from qvl_lab.show.wording import images_at, resolution_order

ARTICLE_CNY_PER_S = 0.8 / 60
_ARTICLE_SPLIT = {
    "column_vision": "60-70%",
    "column_mergers": "20-30%",
    "column_prefill": "-",
    "column_decode": "10-20%",
    "column_rest": "-",
}
_MOST_ROWS, _MOST_FAILURES, _FEW_ROWS = 12, 50, 6


def waterfall(found: ReportContext) -> list[Any]:
    """From today's setting to the recommended one, lever by lever."""
    advice = found.recommendation
    if not advice:
        return []
    same = advice.best["key"] == advice.current["key"]
    said = [section(found, "waterfall_heading", "waterfall_none" if same else "waterfall_note")]
    if advice.excluded:
        limits = ", ".join(
            found.say(f"limit_{name}", n=n, limit=score(advice.min_quality))
            for name, n in advice.excluded.items()
        )
        said.append(Markdown(found.say("limits", limits=limits)))
    return said if same else [*said, picture(plots.waterfall(advice, lang=found.lang))]


def tradeoff(found: ReportContext) -> list[Any]:
    """Cost against memory."""
    axes = plots.tradeoff(found.frame, found.recommendation, lang=found.lang)
    return [section(found, "tradeoff_heading", "tradeoff_note"), picture(axes)]


def curves(found: ReportContext) -> list[Any]:
    """Throughput, memory and cost over batch size, or over resolution if one batch was tried."""
    grid = found.grid
    if grid["batch_size"].nunique() > 1:
        return [section(found, "curves_heading"), picture(plots.curves(grid, lang=found.lang))]
    if grid["resolution"].nunique() == 1:
        return [section(found, "curves_heading", "curves_none")]
    figure = plots.resolution_curves(grid, lang=found.lang)
    return [section(found, "resolution_curves_heading"), picture(figure)]


def feasible(found: ReportContext) -> list[Any]:
    """Which settings fit, and what each costs."""
    figure = plots.feasible(found.grid, lang=found.lang)
    return [section(found, "feasible_heading"), picture(figure), *_fitting(found)]


def _fitting(found: ReportContext) -> list[Any]:
    """The largest batch of today's and the recommended setting on cards of three sizes."""
    if not found.recommendation or not on_gpu(found.frame):
        return []
    by_key = {run.key: run for run in found.runs}
    rows = pd.DataFrame([found.recommendation.current, found.recommendation.best])
    listed = []
    for _, row in rows.drop_duplicates(["resolution", "precision"]).iterrows():
        run = by_key[row["key"]]
        try:
            sizes = Architecture.from_dict(run.architecture)
            cards = batches_by_card(sizes, batch_shape_of(run))
        except ConfigError:  # an older file, or images that differ in size
            continue
        fits = zip(cards["memory_gb"], cards["largest_batch"], strict=True)
        setting = {"column_setting": images_at(row, found.lang)}
        listed.append(setting | {f"{card:g} GB": f"{size:,}" for card, size in fits})
    if not listed:
        return []
    return [Markdown(found.say("fitting_note")), table(found, pd.DataFrame(listed))]


def stages(found: ReportContext) -> list[Any]:
    """Where the time goes, for all settings if they are few: in seconds, and in shares of them."""
    if not found.recommendation:
        return []
    rows = _few_rows(found, found.recommendation)
    pictures = [
        picture(plots.stages(rows, normalise=share, lang=found.lang))
        for share in ((False, True) if len(rows) > 1 else (False,))
    ]
    return [section(found, "stages_heading", "stages_note"), *pictures]


def _few_rows(found: ReportContext, advice: Recommendation) -> pd.DataFrame:
    """All measured settings, by resolution and batch size; of many today's and the recommended."""
    rows = measured(found.frame)
    if len(rows) > _FEW_ROWS:
        return pd.DataFrame(named_rows(advice).values())
    order = rows.assign(side=rows["resolution"].map(resolution_order))
    return rows.loc[order.sort_values(["precision", "side", "batch_size"], kind="stable").index]


def article(found: ReportContext) -> list[Any]:
    """The article's figures beside the measured ones, and its split of the time."""
    advice = found.recommendation
    if not advice:
        return []
    today, best = (float(row["s_per_100_images"]) for row in (advice.current, advice.best))
    same = advice.best["key"] == advice.current["key"]
    note = found.say(
        "article_note_same" if same else "article_note",
        today=number(today),
        best=number(best),
        percent=percent(today, best),
        today_cost=money(today * ARTICLE_CNY_PER_S, "CNY"),
        best_cost=money(best * ARTICLE_CNY_PER_S, "CNY"),
    )
    split = [Markdown(found.say("article_split_note")), _split(found, advice)]
    return [section(found, "article_heading"), Markdown(plain(note)), *split]


def _split(found: ReportContext, advice: Recommendation) -> Any:
    """Shares of the wall time: the article's, then each setting's."""
    rows = [row for _, row in _few_rows(found, advice).iterrows()]
    listed = pd.DataFrame([_ARTICLE_SPLIT, *(_shares(row, found.lang) for row in rows)])
    names = [found.say("row_article"), *map(found.setting, rows)]
    listed.insert(0, "column_setting", names)
    return table(found, listed)


def _shares(row: pd.Series, lang: str) -> dict[str, str]:
    """The vision tower without its mergers, the mergers, prefill, decoding, all else."""
    seconds = {name: float(row[f"stage_{name}_s"]) for name in (*STAGES, "other")}
    merger_s = float(row.get(part_column("vision/merger")) or math.nan)
    known = {name: seconds[name] for name in ("vision", "prefill", "decode")}
    known["rest"] = sum(seconds.values()) - sum(known.values())
    marked = not math.isnan(merger_s)  # the fast engine does not mark it
    known |= {"vision": known["vision"] - merger_s, "mergers": merger_s} if marked else {}
    shares = {name: s / sum(seconds.values()) for name, s in known.items()}
    words = {name: _share(share) for name, share in shares.items()}
    words.setdefault("mergers", label("within_vision", lang))
    return {column: words[column.removeprefix("column_")] for column in _ARTICLE_SPLIT}


def _share(value: float) -> str:
    """A share with the digits that tell it from nothing: "12%", "0.1%", "0.02%"."""
    decimals = 0 if value >= 0.01 else 1 if value >= 0.001 else 2
    return f"{100 * value:.{decimals}f}%"


def cheapest(found: ReportContext) -> list[Any]:
    """The cheapest settings, and what could not be measured."""
    shown: list[Any] = []
    if found.recommendation:
        rows = measured(found.frame)
        best = rows.sort_values(found.cost).head(_MOST_ROWS)
        shown += [
            section(found, "table_heading"),
            Markdown(found.say("table_note", shown=len(best), total=len(rows))),
            settings_table(found, best, found.recommendation.current),
        ]
    missing = [*_failed_items(found), *_failed_settings(found)]
    return [*shown, *([section(found, "not_measured_heading"), *missing] if missing else [])]


def _failed_items(found: ReportContext) -> list[Any]:
    """How many items had no answer, and the distinct failures of all runs, by name."""
    listed = max((len(run.failures) for run in found.runs), default=0)
    unanswered = max((r.failed for run in found.runs for r in run.repeats), default=0)
    count = max(listed, unanswered)
    if not count:
        return []
    rows = {(f["id"], f["error"]) for run in found.runs for f in run.failures}
    columns = ["column_item", "column_reason"]
    failures = pd.DataFrame(sorted(rows)[:_MOST_FAILURES], columns=columns)
    return [Markdown(found.say("failed_items", count=count)), table(found, failures)]


def _failed_settings(found: ReportContext) -> list[Any]:
    """How many settings ran out of memory, were skipped or failed, and why."""
    status = found.frame["status"]
    counts = {name: int((status == name).sum()) for name in ("oom", "skipped", "error")}
    if not any(counts.values()):
        return []
    rows = found.frame[status.isin(["oom", "error"])]
    reasons = pd.DataFrame(
        {
            "column_setting": [found.setting(row) for _, row in rows.iterrows()],
            "column_status": [found.say(name) for name in rows["status"]],
            "column_reason": rows["reason"].str.slice(0, 160).to_list(),
        }
    )
    return [Markdown(found.say("not_measured_counts", **counts)), table(found, reasons)]
