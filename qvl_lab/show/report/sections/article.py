"""The article's claims beside what was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.frame import part_column
from qvl_lab.analysis.limits.roofline import flops
from qvl_lab.analysis.money.month import setting_of
from qvl_lab.analysis.money.prices import find_price
from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.claims import claim
from qvl_lab.models.architecture import Architecture
from qvl_lab.runs.records import STAGES, Run, Work
from qvl_lab.show.quantities import money, number, percent
from qvl_lab.show.report.components import few_rows, plain, section, table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.pricing import ARTICLE_GPU, ARTICLE_PROVIDER

#: The article's three parts of the computation, and what they are called here.
_CLAIMED = {
    "vision": "image_encoder_share",
    "prefill": "text_encoder_share",
    "mergers": "fusion_share",
}
_COLUMNS = (*_CLAIMED, "decode", "rest")


def article(context: ReportContext) -> list[Any]:
    """The article's times and money beside the measured ones, and its split of the computation."""
    advice = context.recommendation
    if not advice:
        return []
    today, best = (
        100 * setting_of(row, per_hour=1.0).s_per_image for row in (advice.current, advice.best)
    )
    same = advice.best["key"] == advice.current["key"]
    price = find_price(ARTICLE_GPU, ARTICLE_PROVIDER)
    note = context.say(
        "article_note_same" if same else "article_note",
        saved=percent(*claim("cost_after").numbers).lstrip("−"),
        today=number(today),
        best=number(best),
        percent=context.change(advice.current, advice.best),
        today_cost=money(price.of(today), price.currency),
        best_cost=money(price.of(best), price.currency),
    )
    split = [Markdown(context.say("article_split_note")), _split(context, advice)]
    return [section(context, "article_heading"), Markdown(plain(note)), *split]


def _split(context: ReportContext, advice: Recommendation) -> Any:
    """The article's shares of the computation, then each setting's of computation and of time."""
    by_key = {run.key: run for run in context.runs}
    claimed = {part: claim(name).written for part, name in _CLAIMED.items()}
    rows = [_row(context, context.say("row_article"), "computation", claimed)]
    for _, measured in few_rows(context, advice).iterrows():
        name = context.setting(measured)
        if computed := _computation(by_key[measured["key"]]):
            rows.append(_row(context, name, "computation", _written(computed)))
        rows.append(_row(context, name, "time", _time(context, measured)))
    return table(context, pd.DataFrame(rows))


def _row(context: ReportContext, name: str, of: str, shares: dict[str, str]) -> dict[str, str]:
    head = {"column_setting": name, "column_share_of": context.say(f"share_of_{of}")}
    return head | {f"column_{part}": shares.get(part, "-") for part in _COLUMNS}


def _computation(run: Run) -> dict[str, float]:
    """Shares of the FLOPs of a pass; nothing if an older file does not say what they were."""
    work = next((repeat.work for repeat in run.repeats if repeat.work), None)
    if not work or not run.architecture:
        return {}
    amounts = flops(Architecture.from_dict(run.architecture), Work(**work))
    mergers = amounts["vision/merger"]
    parts = {name: amounts[name] for name in ("vision", "prefill", "decode")}
    parts |= {"vision": parts["vision"] - mergers, "mergers": mergers}
    return {name: amount / sum(parts.values()) for name, amount in parts.items()}


def _time(context: ReportContext, row: pd.Series) -> dict[str, str]:
    """Shares of all the time; an engine that does not mark the mergers has them in the encoder."""
    seconds = {name: float(row[f"stage_{name}_s"]) for name in (*STAGES, "other")}
    merger_s = row.get(part_column("vision/merger"))
    parts = {name: seconds[name] for name in ("vision", "prefill", "decode")}
    parts["rest"] = sum(seconds.values()) - sum(parts.values())
    if pd.notna(merger_s):
        parts |= {"vision": parts["vision"] - float(merger_s), "mergers": float(merger_s)}
    words = _written({name: s / sum(seconds.values()) for name, s in parts.items()})
    return {"mergers": context.say("within_vision")} | words


def _written(shares: dict[str, float]) -> dict[str, str]:
    """Shares with the digits that tell them from nothing: "12%", "0.1%", "0.02%"."""
    decimals = {name: 0 if v >= 0.01 else 1 if v >= 0.001 else 2 for name, v in shares.items()}
    return {name: f"{100 * value:.{decimals[name]}f}%" for name, value in shares.items()}
