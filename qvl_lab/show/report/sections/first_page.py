"""The page a manager reads: what it costs today, what to run instead, how sure that is."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.money.comparable import matching
from qvl_lab.analysis.money.recommend import Recommendation, measured
from qvl_lab.show.quantities import score
from qvl_lab.show.report.commands import in_lines, run_command
from qvl_lab.show.report.components import named_rows, plain, settings_table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.pricing import is_machines_own
from qvl_lab.show.report.sections.how_sure import doubts, how_sure
from qvl_lab.show.report.sections.money import (
    answers_sentences,
    month_sentences,
    price_sentences,
    start_sentences,
)
from qvl_lab.show.report.sections.quality import quality_sentences
from qvl_lab.show.report.selection import left_out_words
from qvl_lab.show.wording import field

#: The fields that name a setting in a line.
MAIN = ("engine", "precision", "resolution", "batch_size")


def title(context: ReportContext) -> str:
    """One line: what was measured where."""
    row = context.frame.iloc[0]
    return context.say("report_title", model=row["model"], device=context.device)


def headline(context: ReportContext) -> list[Any]:
    """What it costs today, what to run instead, how much that saves, how sure."""
    parts = [f"# {plain(title(context))}", f"## {plain(first_line(context))}"]
    if advice := context.recommendation:
        command = f"```\n{in_lines(run_command(advice.best))}\n```"
        if advice.left_out:
            parts.append(f"> {plain(left_out_sentence(context, advice))}")
        parts += [_summary(context, advice), *map(plain, _sentences(context, advice))]
        parts.append(f"{context.say('run_it')}\n\n{command}")
    parts += [f"> ⚠ {plain(sentence)}" for sentence in _warnings(context)]
    return [Markdown("\n\n".join(parts))]


def first_line(context: ReportContext) -> str:
    """The headline itself; a quality that was asked for and not reached goes first."""
    advice = context.recommendation
    if advice is None:
        return context.say("headline_nothing")
    from_today = change(context, advice)
    if advice.quality_kept == "not shown":
        from_today = f"{from_today} {context.say('headline_not_shown')}"
    wanted, best = context.options.min_quality, advice.best["quality"]
    if wanted is not None and best < wanted - 1e-9:
        unreached = context.say("headline_unreached", wanted=f"{wanted:g}", best=score(best))
        return f"{unreached} {from_today}"
    return from_today


def change(context: ReportContext, advice: Recommendation) -> str:
    """From today's cost to the recommended one."""
    words = {
        "unit": context.unit,
        "today": context.cost_of(advice.current),
        "best": context.cost_of(advice.best),
        "setting": context.setting(advice.best),
    }
    if advice.best["key"] == advice.current["key"]:
        return context.say(_why_same(context, advice), today=words["today"], unit=context.unit)
    value, low, high = advice.saving
    if low is None or high is None:
        return context.say("headline_one_repeat", percent=f"{100 * value:.0f}%", **words)
    key = "headline_noise" if advice.within_noise else "headline"
    if value < 0 and not advice.within_noise:
        key, value, low, high = "headline_dearer", -value, -high, -low
    shares = {"percent": value, "low": low, "high": high}
    words |= {name: f"{100 * share:.0f}%" for name, share in shares.items()}
    return context.say(key, **words)


def _why_same(context: ReportContext, advice: Recommendation) -> str:
    """Which sentence says why today's setting stays: answers held, limits, or nothing cheaper."""
    if "resolution" in advice.held and advice.cheaper is not None:
        return "headline_same_held"
    if any(advice.excluded.values()):
        return "headline_same_limits"
    return "headline_same" if _cheapest_left_out(context, advice) is None else "headline_same_alike"


def _cheapest_left_out(context: ReportContext, advice: Recommendation) -> pd.Series | None:
    """The cheapest row that is not compared, if it is cheaper than the recommended one."""
    rows = [row for left in advice.left_out if (row := left.cheapest) is not None]
    cheaper = [row for row in rows if row[context.cost] < advice.best[context.cost]]
    return min(cheaper, key=lambda row: float(row[context.cost]), default=None)


def left_out_sentence(context: ReportContext, advice: Recommendation) -> str:
    """Which rows of the file are not compared, and what the cheapest costs if it is cheaper."""
    count = sum(map(len, advice.left_out))
    said = context.say("left_out", n=count, what=left_out_words(advice.left_out, context.lang))
    row = _cheapest_left_out(context, advice)
    if row is None:
        return said
    words = {"cost": context.cost_of(row), "today": context.cost_of(advice.current)}
    words["unit"] = context.unit
    return f"{said} {context.say('left_out_cheaper', **words)}"


def _summary(context: ReportContext, advice: Recommendation) -> str:
    """Today's, the recommended and the cheapest setting as a table."""
    rows = named_rows(advice)
    if advice.cheaper is not None:
        rows["row_cheaper"] = advice.cheaper
    frame = pd.DataFrame(list(rows.values()))
    return str(settings_table(context, frame, advice.current, list(rows)).data)


def _sentences(context: ReportContext, advice: Recommendation) -> list[str]:
    """How today was chosen, money and price, the cheapest setting, quality, how sure that is."""
    said = [_how_chosen(context)]
    said += month_sentences(context, advice) + start_sentences(context, advice)
    said += answers_sentences(context, advice.current) + price_sentences(context)
    if advice.cheaper is not None:
        said.append(_cheaper(context, advice, advice.cheaper))
    said += quality_sentences(context, advice)
    return [*said, *how_sure(context, advice)]


def _how_chosen(context: ReportContext) -> str:
    """How today's setting was found: named as a whole, in part, or not at all."""
    named = context.options.current
    if not named:
        return context.say("today_chosen")
    rows = matching(measured(context.frame), named)
    others = [name for name in MAIN if name not in named and rows[name].map(str).nunique() > 1]
    if not others:
        return context.say("today_named")
    told = context.say("and").join(field(name, context.lang) for name in others)
    return context.say("today_named_in_part", fields=told)


def _cheaper(context: ReportContext, advice: Recommendation, cheaper: pd.Series) -> str:
    today, more = advice.current, advice.cheaper_more_answers
    words = {
        "setting": context.setting(cheaper),
        "cost": context.cost_of(cheaper),
        "percent": context.change(today, cheaper),
        "quality": score(cheaper["quality"]),
    }
    if advice.cheaper_kept == "not shown":
        said = context.say("cheaper_not_shown", n=int(cheaper["quality_items"]), **words)
        return f"{said} {context.say('more_answers', more=more)}" if more else said
    unknown = pd.isna(cheaper["quality"]) or advice.quality_unusable
    return context.say("cheaper" if unknown else "cheaper_worse", **words)


def _warnings(context: ReportContext) -> list[str]:
    said = doubts(context)
    if context.notes:
        left_out = context.say("semicolon").join(context.notes)
        said.append(context.say("left_out_here", what=left_out))
    if not is_machines_own(context.frame, context.options):
        gpu = context.frame.attrs["price"]["gpu"]
        said.append(context.say("price_mismatch", device=context.device, gpu=gpu))
    return said
