"""What caches save over the hit rate, where that was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.levers.cache_savings import HELD, break_even
from qvl_lab.errors import ConfigError
from qvl_lab.show import plots
from qvl_lab.show.quantities import number
from qvl_lab.show.report.components import picture, plain, section, table, with_interval
from qvl_lab.show.report.context import ReportContext
from qvl_lab.workloads.items import REPEATED


def hit_rates(context: ReportContext) -> list[Any]:
    """Cost over hit rate, and from which rate each cache pays; nothing if it was not measured."""
    rows = _rows(context)
    try:
        caches = break_even(rows, column=context.cost)
    except ConfigError:
        return []
    if caches["slope"].isna().all():
        return []
    note = context.say("hits_note", n=caches.attrs["images"])
    return [
        section(context, "hits_heading"),
        Markdown(plain(note)),
        picture(plots.hit_rates(rows, lang=context.lang)),
        table(context, _table(context, caches)),
    ]


def _rows(context: ReportContext) -> pd.DataFrame:
    """Rows of repeating workloads, all else like the newest of them.

    A review compares rows of one workload, so these are taken from all rows of the run file.
    """
    rows: pd.DataFrame = context.all_rows
    here = rows["environment"] == context.frame["environment"].iloc[0]
    repeated = rows["workload"].astype(str).str.contains(f"{REPEATED.pattern}$")
    rows = rows[here & repeated & (rows["engine"] == "fast")]
    if not rows.empty:
        newest = rows.sort_values("started_at").iloc[-1]
        for name in HELD:
            rows = rows[rows[name].map(str) == str(newest[name])]
    return rows


def _table(context: ReportContext, data: pd.DataFrame) -> pd.DataFrame:
    listed = []
    for _, row in data.iterrows():
        highest = _rate(row["highest_hit_rate"])
        share = row["memory_share"]
        words = [_size(row["held_bytes"]), "" if pd.isna(share) else f"{number(100 * share)}%"]
        missing = pd.isna(share) or pd.isna(row["slope"])
        never = "?" if missing else context.say("hits_never")
        not_reached = context.say("hits_not_reached", rate=highest)
        saving = "?" if pd.isna(row["highest_saving"]) else _rate(row["highest_saving"])
        listed.append(
            {
                "column_cache": context.say(f"cache_{row['cache']}"),
                "column_hits_saving": context.say("hits_saving", saving=saving, rate=highest),
                "column_hits_memory": ", ".join(filter(None, words)),
                "column_hits_pays": with_interval(row, "break_even", _rate, never),
                "column_hits_claim": with_interval(row, "claim_from", _rate, not_reached),
            }
        )
    return pd.DataFrame(listed)


def _size(held: float) -> str:
    """ "3.12 GiB", "18.8 MiB"; "?" if unknown."""
    if pd.isna(held):
        return "?"
    return f"{number(held / 2**30)} GiB" if held >= 2**30 else f"{number(held / 2**20)} MiB"


def _rate(value: float) -> str:
    return f"{100 * value:.0f}%".replace("-", "−")
