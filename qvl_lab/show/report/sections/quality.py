"""What the answers are worth: quality in sentences and figures, a resolution for each task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.frame import task_column
from qvl_lab.analysis.money.recommend import Recommendation, baseline
from qvl_lab.analysis.quality.resolutions import MOST_CHANCE, Proposal, propose_resolutions
from qvl_lab.analysis.quality.tradeoffs import at_each_resolution, precision_loss
from qvl_lab.analysis.stats.intervals import NOISE_FROM
from qvl_lab.config import BY_TASK, NATIVE
from qvl_lab.errors import ConfigError
from qvl_lab.show import plots
from qvl_lab.show.quantities import points, score
from qvl_lab.show.report.components import picture, section, settings_table, table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.wording import is_the_articles, resolution
from qvl_lab.show.wording import task as task_name
from qvl_lab.tasks import article_resolutions
from qvl_lab.workloads.resize import canonical_task, knows_task

#: Scores that differ by less are told as equal.
SAME_SCORE = 0.005


def quality_sentences(context: ReportContext, advice: Recommendation) -> list[str]:
    """What the recommended setting gives up, task by task where it is not noise."""
    today, best = advice.current, advice.best
    if advice.quality is None:
        return [context.say("quality_random" if today["random_weights"] else "quality_none")]
    said = [_difference(context, advice)]
    if normalised := _normalised(context, today, best):
        said.append(normalised)
    if advice.quality_unusable:
        said.append(context.say(f"quality_{advice.quality_unusable.replace(' ', '_')}"))
    if advice.quality_kept == "not shown":
        low, more = points(advice.quality.low), advice.more_answers
        said.append(context.say("quality_not_shown", n=advice.quality.count, low=low))
        said += [context.say("more_answers", more=more)] if more else []
    if lost := _lost_tasks(context, today, best):
        said.append(context.say("quality_lost_tasks", tasks=lost))
    for name in ("missing", "unparsed"):
        if count := int(best[f"quality_{name}"]):
            said.append(context.say(f"quality_{name}", **{name: count}))
    return said


def _difference(context: ReportContext, advice: Recommendation) -> str:
    """Today's quality and the recommended setting's, and whether the difference is noise."""
    pair, today, best = advice.quality, advice.current, advice.best
    assert pair is not None
    words = {"today": score(today["quality"]), "best": score(best["quality"])}
    words["kind"] = context.say(f"quality_kind_{today['quality_kind']}", n=pair.count)
    if best["key"] == today["key"]:
        return context.say("quality_same", **words)
    ends = {"low": pair.low, "high": pair.high, "difference": pair.difference}
    words |= {name: points(value) for name, value in ends.items()}
    key = "quality_noise" if pair.within_noise else "quality_differs"
    return context.say(key, p=f"{pair.p_value:.2g}", **words)


def _normalised(context: ReportContext, today: pd.Series, best: pd.Series) -> str:
    """The quality of what answers say, where wording made a difference; "" where it made none."""
    name = "quality_normalised"
    if name not in today or any(pd.isna(row[name]) for row in (today, best)):
        return ""
    if max(abs(row[name] - row["quality"]) for row in (today, best)) < SAME_SCORE:
        return ""
    forms = sum(int(best[f"quality_{form}"] or 0) for form in ("fractions", "pixels"))
    words = {"today": score(today[name]), "best": score(best[name]), "forms": forms}
    return context.say(name if not forms else f"{name}_forms", **words)


def _lost_tasks(context: ReportContext, today: pd.Series, best: pd.Series) -> str:
    """Tasks that get worse, the worst first, as "read, small print 0.45 → 0.20"."""
    pairs = {task: (today[task_column(task)], best[task_column(task)]) for task in today["scores"]}
    changes = {task: after - before for task, (before, after) in pairs.items()}
    worse = sorted((task for task in pairs if changes[task] < -0.005), key=changes.__getitem__)
    return context.say("and").join(
        f"{task_name(task, context.lang)} {' → '.join(map(score, pairs[task]))}" for task in worse
    )


def quality(context: ReportContext) -> list[Any]:
    """Quality against cost, over resolution, and per precision; nothing if not measured."""
    if context.frame["quality"].isna().all():
        return []
    cost = plots.quality_cost(context.frame, context.recommendation, lang=context.lang)
    shown = [section(context, "quality_heading", "quality_note"), picture(cost)]
    if context.grid["resolution"].nunique() > 1:
        shown.append(picture(plots.quality(context.frame, lang=context.lang)))
    return [*shown, *_precision(context)]


def _precision(context: ReportContext) -> list[Any]:
    """What a lower precision changes: as a figure, or one sentence where all of it is noise."""
    found = precision_loss(context.frame).dropna(subset=["difference"])
    if found.empty:
        return []
    if (found["p_value"] < NOISE_FROM).any():
        return [picture(plots.precision_loss(context.frame, lang=context.lang))]
    listed = context.say("and").join(dict.fromkeys(found["precision"]))
    words = {"precisions": listed, "against": found["against"].iloc[0], "n": len(found)}
    words |= {"low": points(found["difference"].min()), "high": points(found["difference"].max())}
    return [Markdown(context.say("precision_noise", p=f"{found['p_value'].min():.2g}", **words))]


def resolutions(context: ReportContext) -> list[Any]:
    """The resolution that each task needs, beside the article's; nothing if not measured."""
    try:
        proposal = propose_resolutions(context.grid)
    except ConfigError:
        return []
    limits = {"tolerance": proposal.tolerance, "chance": MOST_CHANCE}
    shares = {name: f"{100 * share:g}" for name, share in limits.items()}
    note = context.say("resolutions_note", **shares)
    shown = [section(context, "resolutions_heading"), Markdown(note)]
    shown.append(table(context, _by_task(context, proposal)))
    rows = context.frame[
        (context.frame["resolution"] == BY_TASK) & (context.frame["status"] == "ok")
    ]
    if context.recommendation and len(rows):
        shown += [
            Markdown(context.say("resolutions_measured" if len(rows) > 1 else "table_measured")),
            settings_table(context, rows.sort_values(context.cost), context.recommendation.current),
        ]
    return shown


def _by_task(context: ReportContext, proposal: Proposal) -> pd.DataFrame:
    """One row per task: proposed and article's resolution, and quality at each."""
    grid = {row["resolution"]: row for _, row in at_each_resolution(context.grid).iterrows()}
    article_row = _article_row(context.frame)
    rows = []
    for row in proposal.table.to_dict("records"):
        task, ours = str(row["task"]), None if pd.isna(row["resolution"]) else row["resolution"]
        article, column = str(_article_resolution(task)), task_column(task)
        theirs = grid.get(article) if article_row is None else article_row
        rows.append(
            {
                "column_task": task_name(task, context.lang),
                "column_proposed": _proposed(context, row),
                "column_chance": _chance(context, row),
                "column_quality_there": "?" if ours is None else context.scored(grid[ours], column),
                "column_article": resolution(article, context.lang),
                "column_quality_article": "?" if theirs is None else context.scored(theirs, column),
                "column_quality_best": context.scored(grid[row["reference_resolution"]], column),
            }
        )
    return pd.DataFrame(rows)


def _proposed(context: ReportContext, row: Mapping[Any, Any]) -> str:
    if pd.isna(row["resolution"]):
        return context.say("resolution_unknown")
    return resolution(row["resolution"], context.lang)


def _chance(context: ReportContext, row: Mapping[Any, Any]) -> str:
    """The chance that a proposal misses its promise, and what would let it go lower."""
    if pd.isna(row["resolution"]):
        return "?"
    chance = f"{100 * row['chance']:.0f}%"
    if not row["more_items"] > 0:
        return chance
    looks = {"resolution": resolution(row["looks_enough"], context.lang)}
    return context.say("looks_enough", chance=chance, more=int(row["more_items"]), **looks)


def _article_row(frame: pd.DataFrame) -> pd.Series | None:
    """The article's table as it was measured, in the most exact precision."""
    tables = frame["task_resolutions"].map(is_the_articles).astype(bool)
    rows = frame[tables & frame["quality"].notna()]
    return None if rows.empty else baseline(rows.reset_index(drop=True))


def _article_resolution(task: str) -> int | str:
    """What the article's table says for a task; native for one that it does not know."""
    sides = article_resolutions()
    return sides[canonical_task(task, sides)] if knows_task(task, sides) else NATIVE
