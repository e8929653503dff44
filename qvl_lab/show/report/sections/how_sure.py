"""How sure the saving is: what it rests on, and how wide it is here and elsewhere."""

from __future__ import annotations

from typing import Any

from qvl_lab.analysis.money.confirmed import (
    FEWEST_ROUNDS,
    WIDEST,
    half_width,
    head_to_head,
    shared_rounds,
)
from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.show.report.context import ReportContext

#: How far equal settings were apart on other days and on other hosts of the same kind, in percent:
#: from the committed run files, see reports/README.md.
DAYS_PERCENT, HOSTS_PERCENT = (5, 19), (11, 37)


def how_sure(context: ReportContext, advice: Recommendation) -> list[str]:
    """What the saving rests on, how far it holds, and which passes were thrown away."""
    days, hosts = ("–".join(map(str, found)) for found in (DAYS_PERCENT, HOSTS_PERCENT))
    elsewhere = context.say("sure_elsewhere", days=days, hosts=hosts)
    said = [context.say("sentence_pair", first=_rests_on(context, advice), second=elsewhere)]
    thrown_away = int(context.frame["passes_thrown_away"].fillna(0).sum())
    return [*said, *([context.say("sure_thrown_away", n=thrown_away)] if thrown_away else [])]


def doubts(context: ReportContext) -> list[str]:
    """Which settings' times are not to be relied on, and why."""
    rows = context.frame[context.frame["status"] == "ok"]
    found = []
    for name in ("unstable", "disturbed"):
        listed = [context.setting(row) for _, row in rows.iterrows() if row.get(name) == 1]
        if listed:
            settings = context.say("semicolon").join(listed)
            found.append(context.say(f"doubt_{name}", settings=settings))
    return found


def _rests_on(context: ReportContext, advice: Recommendation) -> str:
    """A confirmation, the rounds of a sweep, or each setting's passes."""
    today, best = advice.current, advice.best
    if best["key"] != today["key"]:
        if head_to_head(today, best):
            found: dict[str, Any] = {"rounds": shared_rounds(today, best, "confirmed_s")}
            if advice.confirmed:
                return context.say("sure_confirmed", **found)
            found |= {"percent": _percent(half_width(advice.saving)), "widest": _percent(WIDEST)}
            return context.say("sure_wide", **found)
        if (rounds := shared_rounds(today, best, "round_s")) >= FEWEST_ROUNDS:
            return context.say("sure_rounds", rounds=rounds)
    words: dict[str, Any] = {"today_items": today["answered"], "items": best["answered"]}
    words |= {"today_repeats": today["repeats"], "repeats": best["repeats"]}
    once = "_once" if words["repeats"] == 1 else ""
    key = ("sure_same" if best["key"] == today["key"] else "sure") + once
    key = key if words["repeats"] == words["today_repeats"] else "sure_uneven"
    return context.say(key, **{name: int(count) for name, count in words.items()})


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"
