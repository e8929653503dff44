"""The page a manager reads: what it costs today, what to run instead, how sure that is."""

from __future__ import annotations

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.show.quantities import money, percent, score
from qvl_lab.show.report.commands import run_command
from qvl_lab.show.report.components import named_rows, plain, settings_table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.sections.quality import quality_sentences
from qvl_lab.show.report.selection import measured_gpu
from qvl_lab.show.wording import resolution


def title(found: ReportContext) -> str:
    """One line: what was measured where."""
    row = found.frame.iloc[0]
    return found.say("report_title", model=row["model"], device=found.device)


def headline(found: ReportContext) -> Markdown:
    """What it costs today, what to run instead, how much that saves, how sure."""
    parts = [f"# {plain(title(found))}", f"## {plain(first_line(found))}"]
    if advice := found.recommendation:
        command = f"```\n{run_command(advice.best)}\n```"
        parts += [_summary(found, advice), *map(plain, _sentences(found, advice))]
        parts.append(f"{found.say('run_it')}\n\n{command}")
    parts += [f"> ⚠ {plain(sentence)}" for sentence in _warnings(found)]
    return Markdown("\n\n".join(parts))


def first_line(found: ReportContext) -> str:
    """The headline itself; a quality that was asked for and not reached goes first."""
    advice = found.recommendation
    if advice is None:
        return found.say("headline_nothing")
    from_today = change(found, advice)
    wanted, best = found.options.get("min_quality"), advice.best["quality"]
    if wanted is not None and best < wanted - 1e-9:
        unreached = found.say("headline_unreached", wanted=f"{wanted:g}", best=score(best))
        return f"{unreached} {from_today}"
    return from_today


def change(found: ReportContext, advice: Recommendation) -> str:
    """From today's cost to the recommended one."""
    words = {
        "today": found.cost_of(advice.current),
        "best": found.cost_of(advice.best),
        "setting": found.setting(advice.best),
    }
    if advice.best["key"] == advice.current["key"]:
        return found.say(_why_same(advice), today=words["today"])
    value, low, high = advice.saving
    if low is None or high is None:
        return found.say("headline_one_repeat", percent=f"{100 * value:.0f}%", **words)
    key = "headline_noise" if advice.within_noise else "headline"
    if value < 0 and not advice.within_noise:
        key, value, low, high = "headline_dearer", -value, -high, -low
    shares = {"percent": value, "low": low, "high": high}
    words |= {name: f"{100 * share:.0f}%" for name, share in shares.items()}
    return found.say(key, **words)


def _why_same(advice: Recommendation) -> str:
    """Which sentence says why today's setting stays: pixels held, limits, or nothing cheaper."""
    if "resolution" in advice.held and advice.cheaper is not None:
        return "headline_same_held"
    return "headline_same_limits" if any(advice.excluded.values()) else "headline_same"


def _summary(found: ReportContext, advice: Recommendation) -> str:
    """Today's, the recommended and the cheapest setting as a table."""
    rows = named_rows(advice)
    if advice.cheaper is not None:
        rows["row_cheaper"] = advice.cheaper
    frame = pd.DataFrame(list(rows.values()))
    return str(settings_table(found, frame, advice.current, list(rows)).data)


def _sentences(found: ReportContext, advice: Recommendation) -> list[str]:
    """How today was chosen, the month's money, the cheapest setting, quality, how sure that is."""
    today, best = (
        money(row[found.cost] / 100 * found.monthly_images, found.currency)
        for row in (advice.current, advice.best)
    )
    same = advice.best["key"] == advice.current["key"]
    words = {"images": f"{found.monthly_images:,}", "today": today, "best": best}
    said = [
        found.say("today_named" if found.options.get("current") else "today_chosen"),
        found.say("monthly_same" if same else "monthly", **words),
    ]
    if advice.cheaper is not None:
        said.append(_cheaper(found, advice.current, advice.cheaper))
    said += quality_sentences(found, advice)
    sure = {
        "today_items": advice.current["answered"],
        "items": advice.best["answered"],
        "today_repeats": advice.current["repeats"],
        "repeats": advice.best["repeats"],
    }
    once = "_once" if sure["repeats"] == 1 else ""
    key = "sure_same" + once if same else "sure" + once
    key = key if sure["repeats"] == sure["today_repeats"] else "sure_uneven"
    return [*said, found.say(key, **{name: int(count) for name, count in sure.items()})]


def _cheaper(found: ReportContext, today: pd.Series, cheaper: pd.Series) -> str:
    words = {
        "setting": found.setting(cheaper),
        "resolution": resolution(cheaper["resolution"], found.lang),
        "cost": found.cost_of(cheaper),
        "percent": percent(today[found.cost], cheaper[found.cost]),
        "quality": score(cheaper["quality"]),
    }
    return found.say("cheaper" if pd.isna(cheaper["quality"]) else "cheaper_worse", **words)


def _warnings(found: ReportContext) -> list[str]:
    said = []
    priced = found.frame.attrs["price"]["gpu"]
    here = measured_gpu(found.frame)
    own = "per_hour" in found.options and "gpu" not in found.options  # for this very machine
    if not own and not (here and here.name.lower() == priced.lower()):
        said.append(found.say("price_mismatch", device=found.device, gpu=priced))
    return said
