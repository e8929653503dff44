"""``qvl-lab report`` and ``prices``: what was measured, in money."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qvl_lab.cli.app import app
from qvl_lab.cli.options import (
    AsJson,
    Gpu,
    OnBusy,
    PriceOptions,
    PricesFile,
    Quiet,
    check_writable,
    grouped,
    pairs,
    single,
)
from qvl_lab.cli.output import note
from qvl_lab.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd


@app.command(
    epilog="Examples: qvl-lab report --model tiny; "
    "qvl-lab report runs.jsonl --gpu H200 --currency CNY --lang zh --out review"
)
@grouped()
def report(
    price: PriceOptions,
    runs: Annotated[
        Path | None, typer.Argument(help="Run file of a sweep; without it --model is swept first.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Sweep this model over a small default grid first.")
    ] = None,
    workload: Annotated[str, typer.Option(help="Workload of that sweep.")] = "evaluation",
    items: Annotated[
        int | None, typer.Option(help="Questions of that sweep; 150 if not given.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Sweep for about three minutes instead of nine; the page says so.")
    ] = False,
    on_busy: OnBusy = "wait",
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("qvl-report"),
    current: Annotated[
        list[str] | None, typer.Option(help="Today's setting: batch_size=1 (repeatable).")
    ] = None,
    monthly_images: Annotated[
        int | None, typer.Option(min=1, help="Images a month, for the monthly sum.")
    ] = None,
    peak_hour_images: Annotated[
        int | None, typer.Option(min=1, help="Images of the busiest hour; without it, evenly.")
    ] = None,
    min_quality: Annotated[
        float | None, typer.Option(help="Limit on quality, 0-1, in place of --max-quality-loss.")
    ] = None,
    max_quality_loss: Annotated[
        float | None, typer.Option(help="How much of today's quality may be lost, 0-1; 0.02.")
    ] = None,
    max_vram_gib: Annotated[float | None, typer.Option(help="Limit on peak memory.")] = None,
    max_ttft_s: Annotated[
        float | None,
        typer.Option(help="Limit on the 95th percentile of time to first token, with waiting."),
    ] = None,
    max_failed_share: Annotated[
        float | None,
        typer.Option(help="Limit on items without an answer, 0-1; today's and 0.01 if not given."),
    ] = None,
    ceilings: Annotated[
        Path | None, typer.Option(help="What the device can do at most, of doctor --ceilings.")
    ] = None,
    lang: Annotated[str, typer.Option(help="en or zh.")] = "en",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn a run file into one self-contained HTML page that a team can decide from.

    Leaves report.html, report.ipynb and settings.csv in the folder. Exit code 4 if the report
    stopped; what it had is kept.
    """
    from qvl_lab.bench.defaults import default_sweep
    from qvl_lab.show.report.render import report as make_report

    if runs and model:
        raise ConfigError("give a run file or --model, not both")
    check_writable(out, folder=True)
    options = price.settings() | {"currency": price.currency or _own_currency(price)}
    today = {k: single(k, v) for k, v in pairs("--current", current).items()}
    if runs is None:
        chosen: dict[str, Any] = {"min_quality": min_quality, "max_vram_gib": max_vram_gib}
        chosen |= {"max_ttft_s": max_ttft_s, "current": today or None}
        runs = out / "runs.jsonl"
        default_sweep(
            model or "tiny",
            workload,
            runs,
            items=items,
            quick=quick,
            on_busy=on_busy,
            progress=not quiet,
            **chosen,
        )
    files = make_report(
        runs,
        out=out,
        current=today,
        monthly_images=monthly_images,
        peak_hour_images=peak_hour_images,
        min_quality=min_quality,
        max_quality_loss=max_quality_loss,
        max_vram_gib=max_vram_gib,
        max_ttft_s=max_ttft_s,
        max_failed_share=max_failed_share,
        ceilings=ceilings,
        lang=lang,
        **options,
    )
    if as_json:
        names = {name: str(getattr(files, name)) for name in ("html", "notebook", "csv")}
        print(json.dumps(names | {"headline": files.headline}, ensure_ascii=False))
    else:
        print(f"report: {files.html.resolve()}")


def _own_currency(price: PriceOptions) -> str | None:
    """The currency of the user's own price, which is not converted unasked; None for others."""
    from qvl_lab.analysis.money.prices import find_price, price_list

    if not (price.prices_file and price.gpu) or price.per_hour is not None:
        return None
    found = find_price(price.gpu, price.provider, price.kind, file=price.prices_file)
    return None if found in price_list() else found.currency


@app.command(epilog="Example: qvl-lab prices --gpu A10G")
def prices(gpu: Gpu = None, prices_file: PricesFile = None, as_json: AsJson = False) -> None:
    """List the known GPU prices and exchange rates with their dates and sources.

    Those older than 90 days, undated or doubtful are marked.
    """
    from qvl_lab.analysis.money.prices import OLD_DAYS, age_days, find_price, rates
    from qvl_lab.analysis.money.prices import prices as known_prices

    table, known = known_prices(prices_file), rates(prices_file)
    if gpu:
        name = find_price(gpu, file=prices_file).gpu
        table = table[table["gpu"] == name]
    ages = [age_days(day) for day in table["date"]]
    if as_json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        found = {
            "prices": [row | {"age_days": age} for row, age in zip(rows, ages, strict=True)],
            "rates": [asdict(rate) | {"age_days": age_days(rate.date)} for rate in known],
        }
        print(json.dumps(found, ensure_ascii=False))
        return
    _print_prices(table)
    for rate in known:
        old = _age(rate.date)
        print(f"1 {rate.base} = {rate.rate:g} {rate.quote} ({rate.date}{old}, {rate.source})")
    late = sum(age is not None and age > OLD_DAYS for age in ages)
    note(
        f"of {len(ages)} prices: more than {OLD_DAYS} days old {late}, undated {ages.count(None)}; "
        "check them before a decision rests on them"
    )


def _print_prices(table: pd.DataFrame) -> None:
    """A line for each price; under the table where each comes from, and what is doubtful."""
    shown = table[["gpu", "provider", "kind", "per_hour", "currency", "date"]].copy()
    shown["age"] = [_age(day).lstrip(", ") for day in table["date"]]
    shown["region"] = table["region"]
    counts = table["gpus_per_machine"].fillna(0).astype(int)
    shown["machine"] = [f"{n} GPU{'s' * (n > 1)}" if n else "" for n in counts]
    sources = list(dict.fromkeys(zip(table["source"], table["url"], table["note"], strict=True)))
    origins = zip(table["source"], table["url"], table["note"], strict=True)
    shown["from"] = [f"[{sources.index(origin) + 1}]" for origin in origins]
    print(shown.to_string(index=False))
    for number, (source, url, doubt) in enumerate(sources, 1):
        print(f"[{number}] " + "; ".join(filter(None, [source, url, doubt])))


def _age(day: str) -> str:
    """ ", 261 days old" for a date that is old, else ""; what is undated says so itself."""
    from qvl_lab.analysis.money.prices import age_said

    said = age_said(day)
    return f", {said}" if said not in ("", "undated") else ""
