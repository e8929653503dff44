"""A month's money, what it rests on, and what other assumptions would make of it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
from IPython.display import Markdown

from qvl_lab.analysis.money.month import DAYS_A_MONTH, Month, Setting, pays_from, setting_of
from qvl_lab.analysis.money.month import month as month_of
from qvl_lab.analysis.money.prices import OLD_DAYS, age_days
from qvl_lab.analysis.money.recommend import Recommendation
from qvl_lab.show.quantities import amount, money, number
from qvl_lab.show.report.components import named_rows, plain, section, table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.pricing import ARTICLE_PROVIDER, is_machines_own, other_gpus, quotes
from qvl_lab.show.report.selection import on_gpu

#: Traffic that the table of a month looks at besides the one that was given.
_TIMES = (1, 3)
_PRICE_CHANGES, _UTILISATIONS = (-0.2, 0.2), (1.0, 0.8, 0.6, 0.4)


def month(context: ReportContext) -> list[Any]:
    """What traffic takes with each setting, by use and as machines kept on; what a GPU can do."""
    advice = context.recommendation
    if not advice or not context.priced:
        return []
    listed = []
    for images in _traffic(context):
        for name, row in named_rows(advice).items():
            taken = month_of_row(context, row, images)
            listed.append(
                {
                    "column_images_month": number(images),
                    "": context.say(name),
                    "column_by_use": money(taken.by_use, context.currency),
                    "column_kept_gpus": f"{taken.gpus}",
                    "column_busy": share(taken.busy),
                    "column_kept_on": money(taken.kept_on, context.currency),
                }
            )
    if not listed:
        for name, row in named_rows(advice).items():
            one = _setting(context, row)
            listed.append(
                {
                    "": context.say(name),
                    "column_most_hour": number(one.images_a_month / DAYS_A_MONTH / 24),
                    "column_most_day": number(one.images_a_month / DAYS_A_MONTH),
                    "column_most_month": number(one.images_a_month),
                }
            )
    peak = context.options.peak_hour_images
    key = "month_peak_note" if peak else "month_note" if _traffic(context) else "month_most_note"
    notes = [context.say(key, peak=number(peak or 0))]
    if pd.isna(advice.current["start_s"]) and _traffic(context):
        notes.append(context.say("month_no_start"))
    heading = section(context, "month_heading")
    return [heading, Markdown(plain(_joined(context, notes))), table(context, pd.DataFrame(listed))]


def what_if(context: ReportContext) -> list[Any]:
    """The same seconds at other prices, utilisations and providers."""
    advice = context.recommendation
    if not advice or not context.priced:
        return []
    used = context.frame.attrs["utilisation"]
    rows = [(context.say("what_if_as_priced"), 1.0)]
    for change in _PRICE_CHANGES:
        percent = f"{'+' if change > 0 else '−'}{share(abs(change))}"
        rows.append((context.say("what_if_price", percent=percent), 1 + change))
    for utilisation in _UTILISATIONS:
        words = context.say("what_if_utilisation", percent=share(utilisation))
        rows.append((words, used / utilisation))
    listed = [_at(context, advice, words, factor) for words, factor in rows]
    parts = [section(context, "what_if_heading", "what_if_note")]
    parts.append(table(context, pd.DataFrame(listed)))
    if not is_machines_own(context.frame, context.options):
        return parts
    known = quotes(context.frame, context.options)
    if len(known) > 1:
        paid = _per_hour(context)
        offered = [
            {"column_price": price_words(context, vars(quote.price))}
            | _at(context, advice, None, quote.per_hour / paid)
            for quote in known
        ]
        note = context.say("prices_note", gpu=context.frame.attrs["price"]["gpu"])
        parts += [Markdown(plain(note)), table(context, pd.DataFrame(offered))]
    return parts + _other_gpus(context, advice)


def _other_gpus(context: ReportContext, advice: Recommendation) -> list[Any]:
    """How fast every other GPU with a known price would have to be to cost as little."""
    hour, paid = context.frame.attrs["cost_per_hour"], _per_hour(context)
    takes_s = float(advice.best[context.cost]) / hour * 3600
    listed = [
        {
            "column_price": price_words(context, vars(quote.price)),
            "column_as_cheap": amount(takes_s * paid / quote.per_hour, "", context.lang),
        }
        for quote in other_gpus(context.frame, context.options)
    ]
    if not listed:
        return []
    words = {"takes": amount(takes_s, "", context.lang), "unit": context.unit}
    note = context.say("other_gpus_note", **words)
    return [Markdown(plain(note)), table(context, pd.DataFrame(listed))]


def price_words(context: ReportContext, price: dict[str, Any]) -> str:
    """A price as it is quoted: "6.88 USD/h: H100, aws, on demand, 2026-11-09"."""
    kind = context.say(f"kind_{price['kind']}")
    date = context.say("undated") if price["date"] == "undated" else price["date"]
    articles = price["provider"] == ARTICLE_PROVIDER
    provider = context.say("provider_article") if articles else price["provider"]
    place = context.say("listed").join([price["gpu"], provider, kind, date])
    amount = f"{price['per_hour']:g} {price['currency']}"
    return context.say("prov_price_value", amount=amount, place=place)


def month_sentences(context: ReportContext, advice: Recommendation) -> list[str]:
    """The month's money on the first page, or what a machine does where no traffic is given."""
    if not context.priced:
        return []
    rows = named_rows(advice)
    same = len(rows) == 1
    images = context.options.monthly_images
    if images is None:
        return [_most(context, advice, same)]
    today, best = (month_of_row(context, row, images) for row in (advice.current, advice.best))
    words = {"images": f"{images:,}", "today": money(today.by_use, context.currency)}
    words["best"] = money(best.by_use, context.currency)
    said = [context.say("monthly_same" if same else "monthly", **words)]
    if not same:
        said.append(_saves(context, advice, today.by_use, best.by_use))
    return [_joined(context, said), _kept_on(context, advice, today, best)]


def start_sentences(context: ReportContext, advice: Recommendation) -> list[str]:
    """From how many images a start the recommended setting pays in spite of a longer start."""
    if pd.isna(advice.current["start_s"]) or pd.isna(advice.best["start_s"]):
        return []
    rate = _per_hour(context) if context.priced else 1.0
    today, best = (setting_of(row, rate) for row in (advice.current, advice.best))
    images = pays_from(today, best)
    if not images or _is_noise(advice):
        return []
    words = {"today": number(today.start_s), "best": number(best.start_s)}
    words["n"] = f"{math.ceil(images):,}"
    return [context.say("start_pays", **words)]


def price_sentences(context: ReportContext) -> list[str]:
    """At what price the money is, how old it is, and what other providers ask."""
    quoted = context.frame.attrs["price"]
    if quoted is None:
        return [context.say("price_none", device=context.device)]
    said = [context.say("price_said", price=price_words(context, quoted))]
    if context.options.per_hour is None:
        said += _age(context, "price", quoted["date"])
        said += [context.say("price_doubtful")] if quoted["note"] else []
    if rate := context.frame.attrs["rate"]:
        said += _age(context, "rate", rate["date"]) if rate["base"] not in _given(context) else []
    if context.options.gpu is None and not on_gpu(context.frame) and not _own(context):
        said.append(context.say("price_cpu"))
    known = quotes(context.frame, context.options, kind=quoted["kind"])
    if context.options.provider is None and len(known) > 1:
        said.append(_range(context, [quote.per_hour for quote in known]))
    return [_joined(context, said)]


def answers_sentences(context: ReportContext, today: pd.Series) -> list[str]:
    """Images and answers told apart, where an image is asked several questions."""
    questions = today["questions_per_image"]
    if not context.priced or pd.isna(questions) or questions == 1:
        return []
    by_answer = context.cost.replace("_images", "_answers")
    cost = amount(today[by_answer], by_answer, context.lang)
    return [context.say("images_and_answers", questions=number(questions), cost=cost)]


def month_of_row(context: ReportContext, row: pd.Series, images: float) -> Month:
    """What so many images a month take with a row's setting."""
    asked, peak = context.options.monthly_images, context.options.peak_hour_images
    return month_of(
        _setting(context, row),
        images,
        utilisation=context.frame.attrs["utilisation"],
        peak_hour_images=peak * images / asked if peak and asked else None,
    )


def share(value: float) -> str:
    """A share in percent: "40%", "0.6%"."""
    return f"{number(100 * value) if 0 < value < 0.1 else f'{100 * value:.0f}'}%"


def _traffic(context: ReportContext) -> list[int]:
    asked = context.options.monthly_images
    return [times * asked for times in _TIMES] if asked else []


def _setting(context: ReportContext, row: pd.Series) -> Setting:
    together = context.frame.attrs["price"].get("gpus_per_machine") or 1
    return setting_of(row, _per_hour(context), together)


def _per_hour(context: ReportContext) -> float:
    """What an hour of one GPU costs, in the review's currency."""
    attrs = context.frame.attrs
    return float(attrs["cost_per_hour"] * attrs["utilisation"])


def _at(
    context: ReportContext, advice: Recommendation, words: str | None, factor: float
) -> dict[str, str]:
    """Costs of today's and the recommended setting if everything cost ``factor`` times as much."""
    today, best = (factor * row[context.cost] for row in (advice.current, advice.best))
    cells = {} if words is None else {"column_assumption": words}
    cells["row_today"] = money(today, context.currency)
    if advice.best["key"] == advice.current["key"]:
        return cells
    cells["row_recommended"] = money(best, context.currency)
    return cells | {"column_saved": money(today - best, context.currency)}


def _most(context: ReportContext, advice: Recommendation, same: bool) -> str:
    today, best = (_setting(context, row) for row in (advice.current, advice.best))
    words = {"cost": money(today.machine_month, context.currency)}
    words |= {"n": str(today.gpus_per_machine), "today": number(_a_month(today))}
    words["best"] = number(_a_month(best))
    return context.say("most_same" if same else "most", **words)


def _a_month(one: Setting) -> float:
    """What a machine does at most in a month."""
    return one.images_a_month * one.gpus_per_machine


def _saves(context: ReportContext, advice: Recommendation, today: float, best: float) -> str:
    saved = today - best
    if _is_noise(advice):
        return context.say("saves_noise")
    _, low, high = advice.saving
    shown: Callable[[float], str] = lambda value: money(value, context.currency)  # noqa: E731
    words = {"saved": shown(abs(saved)), "year": shown(12 * abs(saved))}
    if saved <= 0 or low is None or high is None:
        return context.say("saves" if saved > 0 else "costs_more", **words)
    scale = saved / advice.saving.value
    return context.say("saves_interval", low=shown(scale * low), high=shown(scale * high), **words)


def _is_noise(advice: Recommendation) -> bool:
    """Whether a measured interval of the saving holds zero; one pass has no interval."""
    return advice.saving.low is not None and advice.within_noise


def _kept_on(context: ReportContext, advice: Recommendation, today: Month, best: Month) -> str:
    words = {"today_gpus": str(today.gpus), "today_busy": share(today.busy)}
    words |= {"today": money(today.kept_on, context.currency)}
    words["devices"] = context.say("unit_gpus" if on_gpu(context.frame) else "unit_machines")
    if len(named_rows(advice)) == 1:
        return context.say("kept_on_same", **words)
    words |= {"gpus": str(best.gpus), "busy": share(best.busy)}
    words |= {"best": money(best.kept_on, context.currency)}
    said = context.say("kept_on", **words)
    saved = today.kept_on - best.kept_on
    if _is_noise(advice):
        return said
    if abs(saved) < 1e-9:
        return _joined(context, [said, context.say("kept_on_nothing")])
    key = "saves" if saved > 0 else "costs_more"
    sums = {"saved": money(abs(saved), context.currency)}
    sums["year"] = money(12 * abs(saved), context.currency)
    return _joined(context, [said, context.say(key, **sums)])


def _joined(context: ReportContext, sentences: list[str]) -> str:
    """Sentences in a row, as the language sets them."""
    return functools.reduce(
        lambda first, second: context.say("sentence_pair", first=first, second=second), sentences
    )


def _age(context: ReportContext, what: str, day: str) -> list[str]:
    age = age_days(day)
    if age is None:
        return [context.say(f"{what}_undated")]
    return [context.say(f"{what}_old", days=age)] if age > OLD_DAYS else []


def _range(context: ReportContext, per_hour: list[float]) -> str:
    """What today's setting would cost at the cheapest and the dearest of several prices."""
    advice = context.recommendation
    paid, quoted = _per_hour(context), context.frame.attrs["price"]
    words = {"n": str(len(per_hour)), "provider": quoted["provider"], "gpu": quoted["gpu"]}
    if advice is None:
        ends = [money(end, context.currency) + "/h" for end in (min(per_hour), max(per_hour))]
        return context.say("price_range_hour", low=ends[0], high=ends[1], **words)
    today = advice.current[context.cost]
    low, high = (money(today * end / paid, context.currency) for end in _ends(per_hour))
    return context.say("price_range", low=low, high=high, unit=context.unit, **words)


def _ends(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def _given(context: ReportContext) -> frozenset[str]:
    """Currencies whose exchange rate was given: of today, as far as anybody knows."""
    return frozenset(context.options.exchange_rates)


def _own(context: ReportContext) -> bool:
    return context.options.per_hour is not None
