"""Where the numbers come from: price, runs, machine, command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from qvl_lab.show.quantities import number
from qvl_lab.show.report.commands import report_command
from qvl_lab.show.report.components import section, table
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.sections.limits import ceilings_said

_MACHINE = ("gpu", "driver", "cpu", "cpu_count", "platform")
_SOFTWARE = ("qvl_lab", "commit", "torch", "transformers", "torchvision", "python")


def provenance(found: ReportContext) -> list[Any]:
    """Where every number comes from."""
    rows = [(found.say(name), value) for name, value in facts(found).items() if value]
    listed = pd.DataFrame(rows, columns=["column_what", "column_value"])
    return [section(found, "provenance_heading"), table(found, listed)]


def facts(found: ReportContext) -> dict[str, str]:
    """Key of a text to what it was; "" for what there was none of."""
    return {
        **_prices(found),
        **_measurement(found),
        "prov_file": found.say(
            "prov_file_value",
            name=found.runs.path.name if found.runs.path else "-",
            digest=(found.runs.file_sha256 or "-")[:16],
        ),
        "prov_command": report_command(found),
        "prov_notes": "; ".join(found.notes),
    }


def _prices(found: ReportContext) -> dict[str, str]:
    quoted, rate = found.frame.attrs["price"], found.frame.attrs["rate"]
    kind = quoted["kind"].replace("_", " ")
    place = f"{quoted['gpu']}, {quoted['provider']}, {kind}, {quoted['date']}"
    utilisation = f"{100 * found.frame.attrs['utilisation']:.0f}%"
    return {
        "prov_price": f"{quoted['per_hour']:g} {quoted['currency']}/h: {place}",
        "prov_source": quoted["source"],
        "prov_rate": ""
        if not rate
        else f"1 {rate['base']} = {rate['rate']:g} {rate['quote']} "
        f"({rate['date']}, {rate['source']})",
        "prov_utilisation": found.say("prov_utilisation_value", percent=utilisation),
    }


def _measurement(found: ReportContext) -> dict[str, str]:
    run = next((r for r in found.runs if r.status == "ok"), found.runs[0])
    machine = filter(None, [_listed(run.environment, _MACHINE), _hosts(found)])
    return {
        "prov_workload": found.say(
            "prov_workload_value",
            name=run.workload["name"],
            items=run.workload["items"],
            images=run.workload.get("unique_images", "?"),
            fingerprint=run.workload["fingerprint"],
        ),
        "prov_pixels": _pixels(found),
        "prov_tokens": _tokens(found),
        "prov_ceilings": _ceilings(found),
        "prov_cache": run.cache_state,
        "prov_machine": "; ".join(machine),
        "prov_software": _listed(run.environment, _SOFTWARE),
        "prov_time": f"{run.started_at} - {found.runs[-1].started_at}",
    }


def _hosts(found: ReportContext) -> str:
    hosts = {run.environment.get("host") for run in found.runs}
    return found.say("prov_hosts_value", n=len(hosts)) if len(hosts) > 1 else ""


def _ceilings(found: ReportContext) -> str:
    """Of each precision that was measured."""
    done = {run.resolved["precision"]: run for run in found.runs if run.status == "ok"}
    return " ".join(ceilings_said(found, run) for run in done.values())


def _pixels(found: ReportContext) -> str:
    """What the model is given of an image with today's setting; older files do not say."""
    if not found.recommendation:
        return ""
    by_key = {run.key: run for run in found.runs}
    run = by_key[found.recommendation.current["key"]]
    work = next((repeat.work for repeat in run.repeats if repeat.work), None)
    if not work or not work["images"] or not run.architecture:
        return ""
    pixels = work["patches"] * run.architecture["patch"] ** 2 / work["images"]
    return found.say("prov_pixels_value", megapixels=number(pixels / 1e6))


def _tokens(found: ReportContext) -> str:
    if not found.recommendation:
        return ""
    row = found.recommendation.current
    visual, prompt = row["visual_tokens_per_image"], row["prompt_tokens_per_image"]
    words = {"visual": visual, "text": prompt - visual, "new": row["new_tokens_per_image"]}
    return found.say("prov_tokens_value", **{name: number(n) for name, n in words.items()})


def _listed(values: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names if values.get(name) is not None)
