"""Where the numbers come from: price, runs, machine, command."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from typing import Any

import pandas as pd

from qvl_lab.show.quantities import number
from qvl_lab.show.report.commands import report_command
from qvl_lab.show.report.components import section, table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.pricing import ARTICLE_PROVIDER
from qvl_lab.show.report.sections.limits import ceilings_said
from qvl_lab.show.report.sections.money import price_words

_MACHINE = ("gpu", "driver", "cpu", "cpu_count", "platform")
_SOURCE = ("source", "region", "url", "note")
_SOFTWARE = ("qvl_lab", "commit", "torch", "transformers", "torchvision", "python")


def provenance(context: ReportContext) -> list[Any]:
    """Where every number comes from."""
    rows = [(context.say(name), value) for name, value in facts(context).items() if value]
    listed = pd.DataFrame(rows, columns=["column_what", "column_value"])
    return [section(context, "provenance_heading"), table(context, listed)]


def facts(context: ReportContext) -> dict[str, str]:
    """Key of a text to what it was; "" for what there was none of."""
    return {
        **_prices(context),
        **_measurement(context),
        "prov_file": context.say(
            "prov_file_value",
            name=context.runs.path.name if context.runs.path else "-",
            digest=(context.runs.file_sha256 or "-")[:16],
        ),
        "prov_command": report_command(context),
        "prov_notes": context.say("semicolon").join(context.notes),
    }


def _prices(context: ReportContext) -> dict[str, str]:
    quoted, rate = context.frame.attrs["price"], context.frame.attrs["rate"]
    if quoted is None:
        return {"prov_price": context.say("price_none", device=context.device)}
    source = [quoted[name] for name in _SOURCE]
    if quoted["provider"] == ARTICLE_PROVIDER:
        source[0] = context.say("source_article")
    used = context.frame.attrs["utilisation"]
    share = f"{100 * used:.0f}%"
    full = context.say("prov_utilisation_full")
    return {
        "prov_price": price_words(context, quoted),
        "prov_source": context.say("semicolon").join(filter(None, source)),
        "prov_machine_of": _together(context, quoted["gpus_per_machine"]),
        "prov_rate": context.say("prov_rate_value", **rate) if rate else "",
        "prov_utilisation": full
        if used == 1
        else context.say("prov_utilisation_value", percent=share),
    }


def _together(context: ReportContext, gpus: int | None) -> str:
    """How many GPUs are rented together, where they are several."""
    return context.say("prov_machine_of_value", n=gpus) if gpus and gpus > 1 else ""


def _measurement(context: ReportContext) -> dict[str, str]:
    run = next((r for r in context.runs if r.status == "ok"), context.runs[0])
    machine = filter(None, [_machine(context, run.environment), _hosts(context)])
    return {
        "prov_workload": context.say(
            "prov_workload_value",
            name=run.workload["name"],
            items=run.workload["items"],
            images=run.workload.get("unique_images", "?"),
            fingerprint=run.workload["fingerprint"],
        ),
        "prov_pixels": _pixels(context),
        "prov_tokens": _tokens(context),
        "prov_ceilings": _ceilings(context),
        "prov_cache": context.say("cache_state_off")
        if run.cache_state == "off"
        else run.cache_state,
        "prov_machine": context.say("semicolon").join(machine),
        "prov_software": context.say("listed").join(_listed(run.environment, _SOFTWARE)),
        "prov_time": f"{run.started_at} - {context.runs[-1].started_at}",
    }


def _hosts(context: ReportContext) -> str:
    hosts = {run.environment.get("host") for run in context.runs}
    return context.say("prov_hosts_value", n=len(hosts)) if len(hosts) > 1 else ""


def _ceilings(context: ReportContext) -> str:
    """Of each precision that was measured."""
    done = {run.resolved["precision"]: run for run in context.runs if run.status == "ok"}
    said = [ceilings_said(context, run) for run in done.values()]
    return "" if not said else reduce(partial(_after, context), said)


def _after(context: ReportContext, first: str, second: str) -> str:
    return context.say("sentence_pair", first=first, second=second)


def _pixels(context: ReportContext) -> str:
    """What the model is given of an image with today's setting; older files do not say."""
    if not context.recommendation:
        return ""
    by_key = {run.key: run for run in context.runs}
    run = by_key[context.recommendation.current["key"]]
    work = next((repeat.work for repeat in run.repeats if repeat.work), None)
    if not work or not work["images"] or not run.architecture:
        return ""
    pixels = work["patches"] * run.architecture["patch"] ** 2 / work["images"]
    return context.say("prov_pixels_value", megapixels=number(pixels / 1e6))


def _tokens(context: ReportContext) -> str:
    if not context.recommendation:
        return ""
    row = context.recommendation.current
    visual, prompt = row["visual_tokens_per_image"], row["prompt_tokens_per_image"]
    words = {"visual": visual, "text": prompt - visual, "new": row["new_tokens_per_image"]}
    return context.say("prov_tokens_value", **{name: number(n) for name, n in words.items()})


def _machine(context: ReportContext, environment: Mapping[str, Any]) -> str:
    known = [name for name in _MACHINE if environment.get(name) is not None]
    words = [f"{context.say(f'machine_{name}')} {environment[name]}" for name in known]
    return context.say("listed").join(words)


def _listed(values: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    return [f"{name} {values[name]}" for name in names if values.get(name) is not None]
