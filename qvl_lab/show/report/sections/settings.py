"""The settings worth considering, and those that could not be measured."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.money.recommend import measured
from qvl_lab.show.plots.shared import MISSED
from qvl_lab.show.report.components import folded, section, settings_table, table
from qvl_lab.show.report.context import ReportContext

_MOST_ROWS, _MOST_FAILURES = 12, 50


def settings(context: ReportContext) -> list[Any]:
    """The cheapest settings, today's and the recommended one, and what could not be measured."""
    shown: list[Any] = []
    if context.recommendation:
        rows = measured(context.frame).sort_values(context.cost)
        advice = context.recommendation
        named = rows["key"].isin([advice.current["key"], advice.best["key"]])
        first = rows.index.isin(rows.index[:_MOST_ROWS])
        note = context.say("table_note", shown=int(first.sum()), total=len(rows))
        shown += [section(context, "table_heading"), Markdown(note)]
        shown.append(settings_table(context, rows[first | named], advice.current))
        if not first.all():
            whole = settings_table(context, rows, advice.current)
            shown.append(folded(context.say("table_all", n=len(rows)), whole))
    missing = [*_failed_items(context), *_failed_settings(context)]
    return [*shown, *([section(context, "not_measured_heading"), *missing] if missing else [])]


def _failed_items(context: ReportContext) -> list[Any]:
    """How many items had no answer, and the distinct failures of all runs, by name."""
    listed = max((len(run.failures) for run in context.runs), default=0)
    unanswered = max((r.failed for run in context.runs for r in run.repeats), default=0)
    count = max(listed, unanswered)
    if not count:
        return []
    rows = {(f["id"], f["error"]) for run in context.runs for f in run.failures}
    columns = ["column_item", "column_reason"]
    failures = pd.DataFrame(sorted(rows)[:_MOST_FAILURES], columns=columns)
    return [Markdown(context.say("failed_items", count=count)), table(context, failures)]


def _failed_settings(context: ReportContext) -> list[Any]:
    """How many settings ran out of memory, were skipped or failed, and why."""
    status = context.frame["status"]
    counts = {name: int((status == name).sum()) for name in MISSED}
    if not any(counts.values()):
        return []
    rows = context.frame[status.isin(["oom", "error", "busy"])]
    reasons = pd.DataFrame(
        {
            "column_setting": [context.setting(row) for _, row in rows.iterrows()],
            "column_status": [context.say(name) for name in rows["status"]],
            "column_reason": rows["reason"].str.slice(0, 160).to_list(),
        }
    )
    said = [context.say(f"count_{name}", n=n) for name, n in counts.items() if n]
    counted = context.say("not_measured_counts", counts=context.say("semicolon").join(said))
    return [Markdown(counted), *([table(context, reasons)] if len(reasons) else [])]
