"""The content of a cost review: from a run file and a price to sentences, tables and figures.

The report notebook calls a review's sections in order; each returns something that Jupyter
displays. Imports go one way: ``selection``; ``context``; ``components``, ``commands``;
``sections``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvl_lab.analysis.money.cost import price
from qvl_lab.runs.records import environment_key
from qvl_lab.runs.store import Runs
from qvl_lab.show.locale import check_language
from qvl_lab.show.report import commands, selection
from qvl_lab.show.report.context import ReportContext
from qvl_lab.show.report.sections import (
    ablation as levers,
)
from qvl_lab.show.report.sections import (
    cache_savings,
    costs,
    first_page,
)
from qvl_lab.show.report.sections import (
    limits as distance,
)
from qvl_lab.show.report.sections import (
    provenance as sources,
)
from qvl_lab.show.report.sections import (
    quality as scores,
)


class Review(ReportContext):
    """What was found, and the sections that show it; made by :func:`review`."""

    title = first_page.title
    headline = first_page.headline
    waterfall = costs.waterfall
    tradeoff = costs.tradeoff
    quality = scores.quality
    resolutions = scores.resolutions
    curves = costs.curves
    feasible = costs.feasible
    stages = costs.stages
    limits = distance.limits
    ablation = levers.ablation
    hit_rates = cache_savings.hit_rates
    article = costs.article
    table = costs.cheapest
    provenance = sources.provenance
    command = staticmethod(commands.run_command)


def review(
    runs: str | Path | Runs,
    *,
    gpu: str | None = None,
    provider: str | None = None,
    kind: str | None = None,
    per_hour: float | None = None,
    currency: str | None = None,
    exchange_rates: Mapping[str, float] | None = None,
    prices_file: str | Path | None = None,
    utilisation: float = 1.0,
    current: Mapping[str, Any] | None = None,
    monthly_images: int | None = None,
    min_quality: float | None = None,
    max_vram_gib: float | None = None,
    max_ttft_s: float | None = None,
    ceilings: str | Path | None = None,
    lang: str = "en",
) -> Review:
    """Price a run file and find what to run instead.

    Parameters
    ----------
    runs : path or Runs
    gpu, provider, kind, per_hour, currency, exchange_rates, prices_file, utilisation
        See ``price``. Without a GPU the measured one is priced, or, if
        the table has no price for it, the article's A10G; the report then says so. The currency
        is CNY unless told otherwise.
    current, min_quality, max_vram_gib, max_ttft_s
        See :func:`qvl_lab.analysis.money.recommend.recommend`.
    ceilings : path, optional
        What the device can do at most, as ``qvl-lab doctor --ceilings`` writes it. If not given,
        the file beside the run file, ``runs.ceilings.json``; else the table of GPUs.
    monthly_images : int, optional
        For the monthly sum; 100,000 if not given.
    lang : str
        ``"en"`` or ``"zh"``.

    Raises
    ------
    QvlError
        If the run file cannot be read, or a setting cannot be used.
    """
    check_language(lang)
    options = {k: v for k, v in locals().items() if k not in ("runs", "lang")} | {"lang": lang}
    loaded = runs if isinstance(runs, Runs) else Runs.load(runs)
    frame, notes = selection.comparable(loaded.frame(), lang)
    if gpu is None and per_hour is None:
        gpu, provider = selection.priced_gpu(frame, provider, kind, prices_file)
    priced = price(
        frame,
        gpu,
        provider,
        kind,
        per_hour=per_hour,
        currency=currency or "CNY",
        exchange_rates=exchange_rates,
        utilisation=utilisation,
        file=prices_file,
    )
    recommendation = selection.recommended(
        priced,
        current=current,
        min_quality=min_quality,
        max_vram_gib=max_vram_gib,
        max_ttft_s=max_ttft_s,
    )
    rows = set(zip(frame["key"], frame["environment"], strict=True))
    kept = [run for run in loaded if (run.key, environment_key(run.environment)) in rows]
    return Review(
        runs=Runs(kept, path=loaded.path),
        frame=priced,
        recommendation=recommendation,
        lang=lang,
        monthly_images=monthly_images or 100_000,
        options={k: v for k, v in options.items() if v is not None and v != {}},
        notes=[*loaded.notes, *notes],
        ceilings=distance.known_ceilings(ceilings, loaded.path, selection.device(frame)),
    )


def settings_csv(found: ReportContext, path: Path) -> None:
    """All rows of a review, as priced, for a spreadsheet; without the scores of single items."""
    found.frame.drop(columns="scores").to_csv(path, index=False)
