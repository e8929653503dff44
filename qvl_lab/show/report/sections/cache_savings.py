"""What caches save over the hit rate, where that was measured."""

from __future__ import annotations

from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.frame import frame
from qvl_lab.analysis.levers.cache_savings import HELD, break_even
from qvl_lab.errors import ConfigError
from qvl_lab.runs.store import Runs
from qvl_lab.show import plots
from qvl_lab.show.quantities import number, percent
from qvl_lab.show.report.components import picture, plain, section, table, with_interval
from qvl_lab.show.report.context import ReportContext
from qvl_lab.workloads.items import REPEATED


def hit_rates(found: ReportContext) -> list[Any]:
    """Cost over hit rate, and from which rate each cache pays; nothing if it was not measured."""
    rows = _rows(found)
    try:
        caches = break_even(rows, column=found.cost)
    except ConfigError:
        return []
    if caches["slope"].isna().all():
        return []
    claim = percent(1, 1 - caches.attrs["claim"]).lstrip("−")
    note = found.say("hits_note", n=caches.attrs["images"], claim=claim)
    return [
        section(found, "hits_heading"),
        Markdown(plain(note)),
        picture(plots.hit_rates(rows, lang=found.lang)),
        table(found, _table(found, caches)),
    ]


def _rows(found: ReportContext) -> pd.DataFrame:
    """Rows of repeating workloads, all else like the newest of them, priced as the review's.

    A review compares rows of one workload, so these are read from the run file again.
    """
    runs = Runs.load(found.runs.path) if found.runs.path else found.runs
    rows: pd.DataFrame = frame(runs)
    here = rows["environment"] == found.frame["environment"].iloc[0]
    repeated = rows["workload"].astype(str).str.contains(f"{REPEATED.pattern}$")
    rows = rows[here & repeated & (rows["engine"] == "fast")]
    if not rows.empty:
        newest = rows.sort_values("started_at").iloc[-1]
        for name in HELD:
            rows = rows[rows[name].map(str) == str(newest[name])]
    priced = found.frame[found.frame[found.cost].notna()]
    per_s = (priced[found.cost] / priced["s_per_100_images"].astype(float)).median()
    costs = {
        found.cost + end: rows[f"s_per_100_images{end}"].astype(float) * per_s
        for end in ("", "_low", "_high")
    }
    priced_rows: pd.DataFrame = rows.assign(**costs)
    priced_rows.attrs = dict(found.frame.attrs)
    return priced_rows


def _table(found: ReportContext, data: pd.DataFrame) -> pd.DataFrame:
    listed = []
    for _, row in data.iterrows():
        highest = _rate(row["highest_hit_rate"])
        share = row["memory_share"]
        words = [_size(row["held_bytes"]), "" if pd.isna(share) else f"{number(100 * share)}%"]
        missing = pd.isna(share) or pd.isna(row["slope"])
        never = "?" if missing else found.say("hits_never")
        not_reached = found.say("hits_not_reached", rate=highest)
        saving = "?" if pd.isna(row["highest_saving"]) else _rate(row["highest_saving"])
        listed.append(
            {
                "column_cache": found.say(f"cache_{row['cache']}"),
                "column_hits_saving": found.say("hits_saving", saving=saving, rate=highest),
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
