"""What each lever of the fast engine is worth, where an ablation was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.levers.ablation import ONE_LEVER, ablation_rows, times_as_fast
from qvl_lab.analysis.levers.ablation import ablation as by_lever
from qvl_lab.errors import ConfigError
from qvl_lab.show import plots
from qvl_lab.show.locale import has_text
from qvl_lab.show.quantities import amount, number
from qvl_lab.show.report.commands import ablate_command, in_lines
from qvl_lab.show.report.components import picture, plain, section, table, with_interval
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.wording import lever


def ablation(context: ReportContext) -> list[Any]:
    """Each lever alone and missing from all; nothing if the runs hold no ablation."""
    try:
        rows = ablation_rows(context.frame)
    except ConfigError:
        return []
    if rows.loc[rows["variant"].isin(ONE_LEVER), "images_per_s"].isna().all():
        return []
    named = {name: lever(name, _all(rows)["batch_size"], context.lang) for name in _levers(rows)}
    return [
        section(context, "ablation_heading", "ablation_note"),
        picture(plots.ablation(context.frame, lang=context.lang)),
        Markdown("\n\n".join([*_summary(context, rows), _meanings(context, named)])),
        table(context, _table(context, named)),
        Markdown(f"{context.say('run_ablation')}\n\n```\n{in_lines(_command(context, rows))}\n```"),
    ]


def _levers(rows: pd.DataFrame) -> list[str]:
    return list(rows.loc[rows["variant"] == "alone", "lever"])


def _all(rows: pd.DataFrame) -> pd.Series:
    return rows[rows["variant"] == "all"].iloc[0]


def _summary(context: ReportContext, rows: pd.DataFrame) -> list[str]:
    """From no lever to all of them; nothing if either was not measured."""
    nothing, everything = rows[rows["variant"] == "nothing"].iloc[0], _all(rows)
    factor, low, high = times_as_fast(everything, nothing)
    if pd.isna(factor):
        return []
    words = {"nothing": context.cost_of(nothing), "all": context.cost_of(everything)}
    words["factor"] = number(factor)
    if pd.isna(low):
        return [plain(context.say("ablation_summary_once", **words))]
    words |= {"low": number(low, like=factor), "high": number(high, like=factor)}
    return [plain(context.say("ablation_summary", **words))]


def _meanings(context: ReportContext, named: dict[str, str]) -> str:
    """What each lever does, as a list."""
    known = {words: f"lever_{name}" for name, words in named.items() if has_text(f"lever_{name}")}
    said = [
        context.say("ablation_meaning", lever=words, meaning=context.say(key))
        for words, key in known.items()
    ]
    return "\n".join(f"- {plain(words)}" for words in said)


def _table(context: ReportContext, named: dict[str, str]) -> pd.DataFrame:
    """Speed, money and factor of each lever, alone and missing."""
    listed = []
    for _, row in by_lever(context.frame).iterrows():
        cells = {"column_lever": named[row["lever"]]}
        for side, factor in zip(ONE_LEVER, ("gained", "lost"), strict=True):
            cost = row[f"{side}_{context.cost}"]
            cells[f"column_{side}_speed"] = with_interval(row, f"{side}_images_per_s")
            cells[f"column_{side}_cost"] = (
                "?" if pd.isna(cost) else amount(cost, context.cost, context.lang)
            )
            cells[f"column_{factor}"] = with_interval(row, factor)
        listed.append(cells)
    return pd.DataFrame(listed)


def _command(context: ReportContext, rows: pd.DataFrame) -> str:
    """With what a missing row of all levers lacks taken from one that was tried."""
    tried = rows[(rows["engine"] == "fast") & rows["key"].notna()].iloc[-1]
    return ablate_command(context, _all(rows).combine_first(tried), _levers(rows))
